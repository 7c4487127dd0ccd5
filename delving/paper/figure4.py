"""Figure 4: images that the ensemble classifies correctly, with labels; also draws Figure 5."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from delving.artefact import Asked, Claim, Shown, accuracy_claim
from delving.data.images import from_base64
from delving.judge import judge_no_larger
from delving.paper.table7 import RIGHT, class_errors, ensembles_of, members_of, pictures_of
from delving.plot import GREEN, RED, new_figure
from delving.terminal import plain

COLUMNS = 4
DOGS = ("n02085620", "n02113978")  # WordNet ids of ImageNet's 118 breeds, first and last
SIBLINGS = 1.0  # points of top-5 error


def show(asked: Asked) -> Shown:
    pictures = pictures_of(asked)
    return Shown(
        "Figure 4. Images classified correctly",
        f"{_count(len(pictures['right']), min(RIGHT, len(pictures['classes'])))}. Above each its "
        "true label, below the five likeliest classes with their probabilities; green: the true "
        "one.",
        figure=draw_pictures(pictures["right"], pictures),
        data=list_pictures(pictures["right"], pictures),
        claims=_siblings(asked, _dogs(pictures)),
        notes=[] if _dogs(pictures) else ["No fine-grained siblings (dogs) among these classes."],
    )


def _count(drawn: int, asked: int) -> str:
    told = (
        f"{drawn} validation images: for each of {asked} classes, spread over all, the first that "
        "the first seed's ensemble classifies correctly"
    )
    return f"{told}; {asked - drawn} of them have none" if drawn < asked else told


def draw_pictures(shown: list[dict], pictures: dict) -> Figure:
    """Each image with its true label above and its five likeliest classes below."""
    rows = max(1, -(-len(shown) // COLUMNS))
    figure, axes = new_figure(rows, COLUMNS, size=(7.2, 2.15 * rows))
    for cell in axes.flat:
        cell.axis("off")
    for cell, one in zip(axes.flat, shown, strict=False):
        _draw_picture(cell, one, pictures["titles"])
    return figure


def _draw_picture(cell: Axes, one: dict, titles: list[str]) -> None:
    image = from_base64(one["jpeg"])
    cell.imshow(np.asarray(image), interpolation="nearest")
    # All cells are square, so that the text below an image has the same room, be it wide or tall.
    middle, side = np.array(image.size) / 2 - 0.5, max(image.size)
    cell.set_xlim(middle[0] - side / 2, middle[0] + side / 2)
    cell.set_ylim(middle[1] + side / 2, middle[1] - side / 2)
    # A class's name is no formula, whatever signs it has.
    look = {"fontweight": "bold", "parse_math": False}
    cell.set_title(plain(titles[one["label"]]), fontsize=8, **look)
    for place, (label, share) in enumerate(one["top5"]):
        color = GREEN if label == one["label"] else (RED if place == 0 else "#333333")
        told = plain(f"{titles[label]}  {100 * share:.0f} %")
        cell.text(0.5, -0.06 - 0.115 * place, told, fontsize=6.5, color=color, ha="center",
                  va="top", parse_math=False, transform=cell.transAxes)  # fmt: skip


def list_pictures(shown: list[dict], pictures: dict) -> pd.DataFrame:
    """Columns image, label, first ... fifth."""
    titles, places = pictures["titles"], ("first", "second", "third", "fourth", "fifth")
    return pd.DataFrame(
        [
            {"image": one["name"], "label": titles[one["label"]]}
            | {
                place: f"{titles[c]} {p:.4f}"
                for place, (c, p) in zip(places, one["top5"], strict=False)
            }
            for one in shown
        ]
    )


def _dogs(pictures: dict) -> list[int]:
    """The classes whose WordNet ids are of dog breeds."""
    return [c for c, wnid in enumerate(pictures["classes"])
            if re.fullmatch(r"n\d{8}", wnid) and DOGS[0] <= wnid <= DOGS[1]]  # fmt: skip


def _siblings(asked: Asked, dogs: list[int]) -> list[Claim]:
    """Section 4: the nets do well at fine-grained recognition, such as of dog breeds."""
    if not dogs:
        return []
    less, ensembles = [], ensembles_of(asked)
    for ensemble in ensembles:
        errors = class_errors(ensemble)
        others, own = np.delete(errors, dogs), errors[dogs]
        if not (np.isnan(own).all() or np.isnan(others).all()):
            less.append(float(np.nanmean(others) - np.nanmean(own)))
    return [
        accuracy_claim(
            "fine-grained siblings (dogs) are told apart as well as the rest",
            "mean top-5 error of the other classes minus that of the dog breeds, one difference "
            f"per ensemble: the 95 % interval over seeds lies above -{SIBLINGS:g} points",
            runs=members_of(asked, ensembles),
            # No noise: how much seeds change this contrast is not known of one ensemble.
            finding=judge_no_larger(less, delta=SIBLINGS),
            delta=SIBLINGS,
        )
    ]
