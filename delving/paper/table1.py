"""Table 1: small14 layer by layer with its learned slopes, the paper's beside ours.

Claims, 2.1: "the first conv layer (conv1) has coefficients (0.681 and 0.596) significantly greater
than 0"; channel-wise, "the deeper conv layers in general have smaller coefficients". As slopes
start at 0.25, the first claim holds easily; so it is judged too whether conv1's slope is the
largest of all conv layers', as in the table.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from delving.artefact import Asked, Claim, Run, Shown, mean_and_spread, printed, published
from delving.config import compose
from delving.judge import Finding, all_of, judge_better, rank_correlation, unless_stalled
from delving.notation import read_layers
from delving.plot import BLUE, GREY, RED, label_lines, new_figure

ARMS = {"prelu_shared": "channel-shared", "prelu": "channel-wise"}
STANDS_OUT, FALLS = 0.05, 0.2  # the smallest effects that count: of a slope, of a correlation


def show(asked: Asked) -> Shown:
    arms = {arm: [run for run in asked.arms[arm] if run.slopes] for arm in ARMS}
    return Shown(
        "Table 1. The 14-layer model and its learned slopes",
        "Mean of the learned slopes a of each layer at the end of training: the paper's, and ours "
        "as mean ± standard deviation over seeds (number of nets). Channel-wise slopes are "
        "averaged over the channels first.",
        table=_tabulate(arms),
        figure=draw_slopes({name: arms[arm] for arm, name in ARMS.items()}),
        data=list_slopes(run for runs in arms.values() for run in runs),
        claims=_claims(asked),
        notes=_beyond_one(arms),
    )


def _tabulate(arms: dict[str, list[Run]]) -> pd.DataFrame:
    paper = published()["table1"]
    rows = []
    for layer in read_layers(compose(["model=small14", "scale=paper"]).model.layers):
        name = layer.name
        row = {"layer": name, "filters, stride": layer.notation}
        for place, (arm, title) in enumerate(ARMS.items()):
            values = [run.slopes[name].mean() for run in arms[arm] if name in run.slopes]
            row[f"{title}, paper"] = printed(paper[name][place], 3) if name in paper else ""
            row[f"{title}, ours"] = mean_and_spread(values, 3) if name in paper else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _beyond_one(arms: dict[str, list[Run]]) -> list[str]:
    """How many slopes ended beyond 1: nothing bounds them, yet the paper's rarely do (2.1)."""
    found = {title: np.concatenate([a for run in arms[arm] for a in run.slopes.values()])
             for arm, title in ARMS.items() if arms[arm]}  # fmt: skip
    parts = [f"{(abs(a) > 1).sum():,} of {len(a):,} {title} ones" for title, a in found.items()]
    return [f"Slopes above 1 or below -1: {', '.join(parts)}; in the paper rarely."] * bool(parts)


def list_slopes(runs: Sequence[Run]) -> pd.DataFrame:
    """Columns run, layer, slopes (how many), mean, low, high (their range)."""
    return pd.DataFrame(
        [
            (run.name, layer, len(a), *(round(float(v), 4) for v in (a.mean(), a.min(), a.max())))
            for run in runs
            for layer, a in run.slopes.items()
        ],
        columns=["run", "layer", "slopes", "mean", "low", "high"],
    )


def draw_slopes(arms: dict[str, Sequence[Run]]) -> Figure:
    """Mean slope against layer: one line per run, a panel per arm, the paper's table in grey."""
    figure, axes = new_figure(1, len(arms), size=(3.6 * len(arms) + 0.4, 3.0))
    paper = published()["table1"]
    for panel, (place, (title, runs)) in zip(axes[0], enumerate(arms.items()), strict=True):
        layers, ends = list(runs[0].slopes) if runs else list(paper), []
        for run in runs:
            panel.plot([a.mean() for a in run.slopes.values()], color=(RED, BLUE)[place % 2], lw=1,
                       marker="o", ms=2.5, alpha=0.8)  # fmt: skip
        if runs:
            last = np.mean([list(run.slopes.values())[-1].mean() for run in runs])
            ends.append((len(layers) - 1, last, "ours", (RED, BLUE)[place % 2]))
        if layers == list(paper):
            values = [pair[0 if _is_shared(runs, place) else 1] for pair in paper.values()]
            panel.plot(values, color=GREY, lw=1.2, ls=(0, (3, 2)), marker="s", ms=2.5)
            ends.append((len(layers) - 1, values[-1], "paper", GREY))
        panel.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
        panel.axhline(0, color="#555555", lw=0.6)
        panel.set(ylabel="mean slope a", xlim=(-0.5, len(layers) + 0.8))
        panel.set_title(title, fontsize=9)
        label_lines(panel, ends)
    return figure


def _is_shared(runs: Sequence[Run], place: int) -> bool:
    """Whether a panel is of channel-shared slopes; without runs, the first one is."""
    return all(len(a) == 1 for a in runs[0].slopes.values()) if runs else place == 0


def _claims(asked: Asked) -> list[Claim]:
    shared, wise = asked.arms["prelu_shared"], asked.arms["prelu"]
    positive, outstanding = (
        all_of({
            title: _judge(asked.arms[arm], value, delta=STANDS_OUT, what=what)
            for arm, title in ARMS.items()
        })
        for value, what in ((first, "slope"), (stand_out, "lead in slope"))
    )  # fmt: skip
    return [
        Claim(
            "conv1's slope is significantly above 0",
            "per net, conv1's mean slope: the 95 % interval over seeds lies above 0, for both "
            "shared and channel-wise slopes",
            STANDS_OUT,
            positive,
            len(shared) + len(wise),
        ),
        Claim(
            "conv1's slope stands out",
            "per net, conv1's mean slope minus the largest mean slope of the other conv layers: "
            "the 95 % interval over seeds lies above 0, for both shared and channel-wise slopes",
            STANDS_OUT,
            outstanding,
            len(shared) + len(wise),
        ),
        Claim(
            "channel-wise slopes fall with depth",
            "per net, the rank correlation (Spearman) of mean slope and depth over the conv "
            "layers, with its sign reversed: the 95 % interval over seeds lies above 0",
            FALLS,
            _judge(wise, fall_with_depth, delta=FALLS, what="rank correlation, sign reversed,"),
            len(wise),
        ),
    ]


def _judge(
    runs: list[Run], value: Callable[[list[float]], float], *, delta: float, what: str
) -> Finding:
    learned = [run for run in runs if run.slopes and run.result["status"] == "converged"]
    values = [value(_conv_means(run)) for run in learned]
    found = judge_better(values, delta=delta, unit="", what=what)
    return unless_stalled(found, {run.name: run.result["status"] for run in runs})


def _conv_means(run: Run) -> list[float]:
    return [float(a.mean()) for layer, a in run.slopes.items() if layer.startswith("conv")]


def first(means: list[float]) -> float:
    """The first layer's slope."""
    return means[0]


def stand_out(means: list[float]) -> float:
    """The first layer's slope less the largest of the others."""
    return means[0] - max(means[1:])


def fall_with_depth(means: list[float]) -> float:
    """1 where every conv layer's slope is smaller than that of the layer before; 0 where none
    has moved."""
    if len(set(means)) == 1:
        return 0.0
    return -rank_correlation(range(len(means)), means)
