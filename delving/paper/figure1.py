"""Figure 1: ReLU and PReLU; the slopes are those that a trained small14 ended with."""

import numpy as np
import pandas as pd

from delving.artefact import Asked, Shown
from delving.plot import BLUE, GREY, RED, new_figure, shade


def show(asked: Asked) -> Shown:
    run = next((run for run in asked.arms["prelu"] if run.slopes), None)
    slopes = {layer: float(a.mean()) for layer, a in run.slopes.items()} if run else {}
    return Shown(
        "Figure 1. ReLU and PReLU",
        "Left, ReLU: no slope for negative responses. Right, PReLU: its slope a is learned. One "
        "line per layer of a trained small14, the mean over its channels; dark lines are early "
        "layers, light ones late.",
        figure=_draw(slopes),
        data=pd.DataFrame({"layer": list(slopes), "slope": list(slopes.values())}),
    )


def _draw(slopes: dict[str, float]):
    figure, ((left, right),) = new_figure(1, 2, size=(6.4, 2.9))
    y = np.array([-2.0, 0.0, 2.0])
    left.plot(y, np.maximum(y, 0), color=BLUE, lw=2)
    for number, a in enumerate(slopes.values()):
        color = shade(RED, number / max(1, len(slopes) - 1))
        right.plot(y, np.where(y > 0, y, a * y), color=color, lw=1.4)
    ranked = sorted(slopes, key=slopes.get)
    for name, up in ((ranked[0], 24), (ranked[-1], -14)) if ranked else ():
        right.annotate(f"{name}, a = {slopes[name]:.2f}", (-1.8, -1.8 * slopes[name]),
                       xytext=(4, up), textcoords="offset points", fontsize=8, va="center",
                       arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6})  # fmt: skip
    for axes, title in ((left, "f(y) = max(0, y)"), (right, "f(y) = max(0, y) + a min(0, y)")):
        axes.set(xlabel="y", ylabel="f(y)", xlim=(-2, 2), ylim=(-1.6, 2))
        axes.set_title(title, fontsize=9)
    return figure
