"""Figures: one matplotlib style, direct labels, colours that survive colour blindness."""

import io
import warnings
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from delving import record
from delving.terminal import plain

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
DPI = 160
ENDINGS = (".png", ".svg")
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
GREY = "#777777"
GAP = 11  # points between two labels
mpl.rcdefaults()  # a matplotlibrc of this machine, or of the working directory, changes no figure


def new_figure(rows: int, columns: int, *, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """A figure of `size` inches and its axes, (rows, columns)."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained", dpi=DPI)
        return figure, figure.subplots(rows, columns, squeeze=False)


def check_ending(path: Path) -> None:
    """ValueError if it is not the ending of a picture."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path}: a picture ends in {' or '.join(ENDINGS)}")


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a .png or a .svg, whole and undated: the same picture gives the same file.

    Uses the canvas itself: savefig draws everything twice.

    Raises:
        ValueError: another ending.
    """
    check_ending(path)
    file = io.BytesIO()
    figure.dpi = DPI  # an .svg written before has changed it
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A class may be named in any script; the picture shows a box for what the font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        if path.suffix == ".svg":
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
        else:
            FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    record.write_bytes(path, file.getvalue())
    return path


def end_at_last(axes: Axes, *, room: float) -> None:
    """Ends the x axis at the last point drawn, with no tick beyond it and `room` (a share of its
    length) for labels. Call it once all lines are drawn."""
    last = axes.dataLim.x1
    if not np.isfinite(last):  # no line has a point
        return
    axes.set_xlim(0, last * (1 + room))
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10], integer=last >= 2).tick_values(0, last)
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= last])
    axes.spines.bottom.set_bounds(0, last)


def label_lines(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Direct labels at the ends (x, y, text, colour) of several lines, GAP points apart at least,
    none on the x axis. A name is no formula, whatever characters it has.

    Call it once the limits of the axes are final.
    """
    scale = 72 / axes.figure.dpi
    at = [axes.transData.transform((x, y))[1] * scale for x, y, _, _ in ends]
    places = _spread(at, GAP)
    lowest = axes.transData.transform((0, axes.get_ylim()[0]))[1] * scale + GAP / 2
    for i in sorted(range(len(places)), key=lambda i: places[i]):
        places[i] = max(places[i], lowest)
        lowest = places[i] + GAP
    for (x, y, text, color), before, place in zip(ends, at, places, strict=True):
        where = {"xytext": (4, place - before), "textcoords": "offset points", "va": "center"}
        axes.annotate(plain(text), (x, y), color=color, parse_math=False, **where)


def _spread(at: list[float], gap: float) -> list[float]:
    """The places moved apart until neighbours are `gap` apart, their mean kept."""
    places, groups = list(at), [[i] for i in sorted(range(len(at)), key=lambda i: at[i])]
    number = 1
    while number < len(groups):
        before, group = groups[number - 1], groups[number]
        if places[group[0]] - places[before[-1]] >= gap - 1e-9:
            number += 1
            continue
        merged = before + group
        middle = fmean(at[i] for i in merged)
        for rank, i in enumerate(merged):
            places[i] = middle + gap * (rank - (len(merged) - 1) / 2)
        groups[number - 1 : number + 1] = [merged]
        number = max(1, number - 1)  # it may now be too close to the one below
    return places


def shade(color: str, lightness: float) -> tuple[float, float, float]:
    """A colour between itself (0) and 0.6 of the way to white (1)."""
    rgb = np.array(to_rgb(color))
    return tuple(rgb + (1 - rgb) * 0.6 * lightness)


def draw_curves(curves: pd.DataFrame, *, labels: dict[str, str], classes: Sequence[int]) -> Figure:
    """Training loss, and training and validation error, against epochs; one colour per run.

    Args:
        curves: as curves.load_curves gives them, of one or more runs.
        labels: what to call each run; a single one's is the title.
        classes: numbers of them; ln of each, the loss of a blind guess, is drawn dotted.
    """
    figure, ((left, right),) = new_figure(1, 2, size=(7.2, 2.9))
    ends = {left: [], right: []}
    for color, (run, label) in zip(cycle(COLORS), labels.items(), strict=False):
        mine = curves[curves.run == run].set_index("curve")
        for axes, curve, look in (
            (left, "training loss", {"lw": 1.3}),
            (right, "training error", {"lw": 0.8, "ls": (0, (3, 2))}),
            (right, "validation error", {"lw": 1.6}),
        ):
            line = mine.loc[[curve]]
            values = smooth(line.value)
            axes.plot(line.epoch, values, color=color, **look, **mark(line.epoch))
            if curve != "training error":
                ends[axes].append((line.epoch.iloc[-1], values.iloc[-1], label, color))
    for count in classes:
        left.axhline(np.log(count), color="#888888", lw=0.8, ls=":")
    told = " and ".join(f"ln {count}" for count in classes)
    left.set_title(f"dotted: {told}, a blind guess", fontsize=8, color="#555555")
    right.set_title("solid: validation; dashed: training", fontsize=8, color="#555555")
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="top-1 error (%)")
    alone = len(labels) == 1
    if alone:
        figure.suptitle(plain(*labels.values()), fontsize=10, parse_math=False)
    for axes, own in ends.items():
        end_at_last(axes, room=0.02 if alone else 0.18)
        axes.set_ylim(*axes.get_ylim())
        label_lines(axes, [] if alone else own)
    return figure


def mark(x: Sequence[float]) -> dict[str, object]:
    """How to mark a line: without a marker, one of a single point would not be seen."""
    return {"marker": "o", "ms": 3} if len(x) == 1 else {}


def smooth(values: pd.Series) -> pd.Series:
    """A running mean over a fiftieth of the run, so that single batches do not hide the course."""
    points = max(1, round(len(values) / 50))
    return values.rolling(points, min_periods=1).mean()


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
        look = {"ha": "right", "va": "center", "parse_math": False}
        line[0].text(-0.12, 0.5, plain(label), transform=line[0].transAxes, **look)
    figure.suptitle(plain(title), fontsize=10, parse_math=False)
    return figure
