"""Figures: one matplotlib style, direct labels, colours that survive colour blindness."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "delving",
}
# Okabe & Ito's palette.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)


def new_figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes, (rows, columns)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=160)
    return path


def label_line(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    """A direct label at a line's end, in its colour."""
    axes.annotate(text, (x, y), xytext=(4, 0), textcoords="offset points", color=color, va="center")


def draw_curves(curves: dict[str, dict[str, list[tuple[float, float]]]], *, classes: int) -> Figure:
    """Training loss, and training and validation error, against epochs; one colour a run.

    Args:
        curves: label -> {"loss", "train", "val"} -> points (epoch, value).
        classes: ln(classes), the loss of a blind guess, is drawn dotted.
    """
    figure, ((left, right),) = new_figure(1, 2, size=(7.2, 2.9))
    for color, (label, parts) in zip(COLORS, curves.items(), strict=False):
        left.plot(*zip(*parts["loss"], strict=True), color=color, lw=1.3)
        label_line(left, *parts["loss"][-1], label, color)
        right.plot(*zip(*parts["train"], strict=True), color=color, lw=1, ls=(0, (3, 2)))
        right.plot(*zip(*parts["val"], strict=True), color=color, lw=1.6, label=label)
    left.axhline(np.log(classes), color="#888888", lw=0.8, ls=":")
    left.annotate(
        f"ln {classes}: blind guess",
        (0, np.log(classes)),
        xytext=(2, 3),
        textcoords="offset points",
        color="#666666",
        fontsize=8,
    )
    left.set(xlabel="epoch", ylabel="training loss")
    left.margins(x=0.16)
    right.set(xlabel="epoch", ylabel="top-1 error (%)")
    right.set_title("solid: validation, center crop; dashed: training", fontsize=8, color="#444444")
    right.legend(loc="best")
    return figure


def draw_sheet(rows: list[tuple[str, list[np.ndarray]]], *, title: str) -> Figure:
    """A contact sheet: (label, images uint8 (H, W, 3)) per row."""
    columns = max(len(images) for _, images in rows)
    figure, axes = new_figure(
        len(rows), columns, size=(1.0 * columns + 1.2, 1.02 * len(rows) + 0.4)
    )
    for (label, images), line in zip(rows, axes, strict=True):
        for cell in line:
            cell.axis("off")
        for cell, image in zip(line, images, strict=False):
            cell.imshow(image, interpolation="nearest")
        line[0].text(-0.12, 0.5, label, transform=line[0].transAxes, ha="right", va="center")
    figure.suptitle(title, fontsize=10)
    return figure
