"""ICCV: transfer to object detection, small14 with ReLU and with PReLU as Fast R-CNN's trunk.

The paper reports that the net pre-trained with PReLU also wins on PASCAL VOC 2007 (its values are
not in our source).
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from delving.artefact import RECTIFIERS, Asked, Claim, Shown, mean_and_spread
from delving.data.images import from_base64
from delving.detect.record import read_detection, read_pictures
from delving.judge import judge_better, unless_stalled
from delving.plot import GREEN, GREY, RED, new_figure
from delving.terminal import plain

METRICS = {"voc07": "mean, 11 points (2007)", "all_points": "mean, all points"}
BETTER = 1.0  # points of mAP, the smallest difference that counts
COLUMNS = 4
OVERLAP = 0.5


def show(asked: Asked) -> Shown:
    found = {arm: [read_detection(folder) for folder in folders]
             for arm, folders in asked.detections.items()}  # fmt: skip
    one = next(one for arm in found.values() for one in arm)
    kind = "generated scenes" if one["data"] == "shapes_voc" else "PASCAL VOC 2007"
    grey = "" if one["data"] == "shapes_voc" else ", grey if the object is marked difficult"
    boxes = one["proposals"]
    return Shown(
        "Object detection by Fast R-CNN (ICCV version)",
        f"Average precision in percent on {one['test_images']:,} test images of {kind}, "
        f"after {one['steps']:,} steps on {one['train_images']:,} training images; mean ± standard "
        f"deviation over seeds (number of detectors). Proposals by {boxes['method']}, "
        f"{boxes['per_image']:.0f} per image. Figure: what the first seed's detectors find with a "
        "score of 0.5 or more, green if right, orange if wrong or if a better one has found the "
        f"object already{grey}; dashed: the objects.",
        table=tabulate(found),
        figure=_draw(asked.detections),
        data=pd.DataFrame([_row(one) for arm in found.values() for one in arm]),
        claims=[_claim(asked, found)],
    )


def tabulate(found: dict[str, list[dict]]) -> pd.DataFrame:
    """A row per class, then the means, the mean at random and the proposals' recall."""
    scored = [one for arm in found.values() for one in arm if one["eval"]]  # if diverged, no scores
    rows = [(title, lambda one, c=title: one["eval"]["voc07"]["ap"].get(c), 1)
            for title in (scored[0]["eval"]["voc07"]["ap"] if scored else ())]  # fmt: skip
    rows += [(title, lambda one, m=metric: one["eval"][m]["map"], 2)
             for metric, title in METRICS.items()]  # fmt: skip
    rows += [("mean at random, 11 points", lambda one: one["chance"], 2),
             ("proposals' recall at 0.5", lambda one: one["proposals"]["recall"], 2)]  # fmt: skip
    return pd.DataFrame(
        [{"": title} | {RECTIFIERS[arm]: mean_and_spread((value(one) for one in arm_found
                                                      if one["eval"]), digits)
                        for arm, arm_found in found.items()}
         for title, value, digits in rows]
    )  # fmt: skip


def _row(one: dict) -> dict:
    maps = {name: one["eval"].get(name, {}).get("map") for name in METRICS}
    each = one["eval"].get("voc07", {}).get("ap", {})
    return {
        "detection": one["detection"], "act": one["act"], "seed": one["seed"],
        "status": one["status"], **maps, "chance": one["chance"],
        "recall": one["proposals"]["recall"], "seconds": one["seconds"],
        **{f"ap {title}": value for title, value in each.items()},
    }  # fmt: skip


def _claim(asked: Asked, found: dict[str, list[dict]]) -> Claim:
    others = {one["seed"]: one for one in found["relu"]}
    pairs = [(one, others[one["seed"]]) for one in found["prelu"] if one["seed"] in others]
    more = [_map(prelu) - _map(relu) for prelu, relu in pairs]
    trunks = {run.name: run.result["status"] for run in asked.runs}
    statuses = {one["detection"]: one["status"] for pair in pairs for one in pair}
    used = {one["run"]: trunks.get(one["run"], "missing") for pair in pairs for one in pair}
    finding = judge_better([d for d in more if math.isfinite(d)], delta=BETTER, unit="points")
    return Claim(
        "with PReLU's net as its trunk Fast R-CNN detects better",
        "mAP by 11 points, PReLU's minus ReLU's, paired by the trunk's seed: the 95 % interval "
        "over seeds lies above 0",
        BETTER,
        unless_stalled(finding, statuses | used),
        len(statuses),
    )


def _map(one: dict) -> float:
    value = one["eval"].get("voc07", {}).get("map")
    return math.nan if value is None else value


def _draw(detections: dict[str, list[Path]]):
    rows = {arm: read_pictures(folders[0])[:COLUMNS] for arm, folders in detections.items()
            if folders and (folders[0] / "pictures.json").exists()}  # fmt: skip
    if not any(rows.values()):
        return None
    figure, axes = new_figure(len(rows), COLUMNS, size=(7.2, 2.0 * len(rows)))
    for cell in axes.flat:
        cell.axis("off")
    for line, (arm, pictures) in zip(axes, rows.items(), strict=True):
        line[0].set_title(RECTIFIERS[arm], fontsize=9, loc="left", fontweight="bold")
        for cell, one in zip(line, pictures, strict=False):
            _draw_picture(cell, one)
    figure.draw_without_rendering()  # only now is it known how long each name is
    for cell in axes.flat:
        _part_labels(cell)
    return figure


def _draw_picture(cell: Axes, one: dict) -> None:
    width, height = one["size"]
    image = np.asarray(from_base64(one["jpeg"]))
    cell.imshow(image, extent=(0, width, height, 0), interpolation="none")
    for _, box, _ in one["objects"]:
        _frame(cell, box, color="white", lw=0.9, ls=(0, (2, 2)))
    for (name, share, box), color in zip(one["found"], _colors(one), strict=True):
        _frame(cell, box, color=color, lw=1.3)
        note = cell.annotate(plain(f"{name} {share:.2f}"), box[:2], xytext=(0, 0),
                             textcoords="offset points", fontsize=5.5, color="white", va="bottom",
                             parse_math=False, clip_on=True,
                             bbox={"facecolor": color, "lw": 0, "pad": 0.6})  # fmt: skip
        note.set_in_layout(False)


def _part_labels(cell: Axes) -> None:
    """Moves each label, the best detection's first, to where it covers least of earlier ones."""
    placed: list[Bbox] = []
    whole, point = cell.get_window_extent(), cell.figure.dpi / 72
    for note in cell.texts:
        here = note.get_window_extent()
        step = here.height + point
        # Near its corner: at it, or up to three lines up or down, and up to its length to the left.
        moves = [(-left * here.width, rows * step) for rows in (0, -1, 1, -2, 2, -3, 3)
                 for left in (0, 0.5, 1)]  # fmt: skip

        def covered(move: tuple[float, float], here: Bbox = here) -> float:
            box = here.translated(*move)
            inside = Bbox.intersection(box, whole)
            outside = box.width * box.height - (inside.width * inside.height if inside else 0)
            shared = [Bbox.intersection(box, other) for other in placed]
            return outside + sum(both.width * both.height for both in shared if both)

        best = min(moves, key=covered)
        note.set_position((best[0] / point, best[1] / point))
        placed.append(here.translated(*best))


def _colors(one: dict) -> list[str]:
    """Each detection's colour: right, wrong or neither, as detect.metric.match counts it."""
    colors, taken, found = [RED] * len(one["found"]), set(), one["found"]
    for place in sorted(range(len(found)), key=lambda i: -found[i][1]):
        name, _, box = found[place]
        overlaps = [(_overlap(box, there), -number) for number, (title, there, _) in
                    enumerate(one["objects"]) if title == name]  # fmt: skip
        share, number = max(overlaps, default=(0.0, 0))
        if share < OVERLAP:
            continue
        if one["objects"][-number][2]:
            colors[place] = GREY
        elif number not in taken:
            colors[place] = GREEN
            taken.add(number)
    return colors


def _frame(cell: Axes, box: list[float], **look) -> None:
    x1, y1, x2, y2 = box
    cell.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **look))


def _overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union; metric.py's loads torchvision, which a drawing can do without."""
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    both = sides[0] * sides[1]
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return both / (areas - both)
