"""ICCV: the Fisher matrix of small14 with ReLU and PReLU, and how centred its responses are.

With PReLU the mean response moves towards zero, so that the off-diagonal blocks of the Fisher
matrix get closer to zero, which improves its conditioning.
"""

import math
import sys
from statistics import fmean

import numpy as np
import pandas as pd

from delving.artefact import RECTIFIERS, Asked, Claim, Run, Shown, mean_and_spread
from delving.fisher import (
    choose_parameters,
    describe_fisher,
    response_statistics,
    sample_gradients,
)
from delving.judge import judge_better, unless_stalled
from delving.plot import BLUE, RED, label_lines, new_figure
from delving.probe import open_run, some_images
from delving.signal import weight_layers

# The smallest effects that count: a share of the rms; powers of ten (11 %); powers of ten.
CENTRED, SMALLER, CONDITIONED = 0.02, 0.05, 0.1


def teams(arms: dict[str, list[Run]]) -> list[list[Run]]:
    """Each run by itself, those that diverged aside: their weights bear no measuring."""
    return [[run] for runs in arms.values() for run in runs if run.result["status"] != "diverged"]


def measure(asked: Asked, run: Run) -> dict:
    """A run's figures of the Fisher matrix, and of the responses."""
    settings = asked.settings
    session = open_run(run.folder, *asked.surroundings)
    x, _ = some_images(session, settings["images"])
    # The choice of parameters and the labels' draws are the same in both arms of a seed.
    units, weights = settings["units"], settings["weights"]
    while units * (1 + weights) * len(weight_layers(session.net)) * 2 >= len(x) and weights > 1:
        units, weights = max(1, units - 1), weights - 1  # with fewer images, fewer parameters
    chosen = choose_parameters(session.net, units, weights=weights, seed=run.seed)
    gradients = sample_gradients(session.net, x, chosen, seed=run.seed)
    return {
        "fisher": describe_fisher(gradients, chosen),
        "responses": response_statistics(session.net, x),
    }


def show(asked: Asked) -> Shown:
    found = {name: one for (name,), one in asked.measured.get("fisher", {}).items()}
    arms = {arm: [found[run.name] for run in runs if run.name in found]
            for arm, runs in asked.arms.items()}  # fmt: skip
    return Shown(
        "The Fisher matrix with ReLU and PReLU (ICCV version)",
        "The Fisher matrix of some parameters of every layer, scaled to a unit diagonal, on "
        "validation images (and training images if those are too few), with labels drawn from the "
        "net's own prediction. Mean ± standard deviation over seeds (number of nets). Figure: how "
        "far each layer's mean response is from zero, as a share of its root mean square: 0 means "
        "centred, 1 constant.",
        table=tabulate(arms),
        figure=_draw(arms),
        data=_list_responses(found),
        claims=_claims(asked, found),
        notes=[
            "Our source does not say which off-diagonal blocks the paper means: those between "
            "layers are judged, the others are listed. Energies are mean squared entries. If "
            "inputs and gradients are independent, the entry of a unit's bias and one of its "
            "weights is the mean of that weight's input over its root mean square."
        ],
    )


def centre(one: dict) -> float:
    """The mean response over the rms, averaged over the layers that have any response."""
    return float(np.nanmean([row["channel_mean"] for row in one["responses"]]))


def between(one: dict) -> float:
    """The mean squared entry of the off-diagonal blocks, those between layers."""
    return one["fisher"]["between"]["energy"]


def log_between(one: dict) -> float:
    """log10 of `between`, or of its error if larger: an estimate near 0 may have either sign."""
    return math.log10(max(between(one), one["fisher"]["between"]["error"], 1e-12))


def condition(one: dict) -> float:
    """log10 of the condition number."""
    return math.log10(_bounded(one["fisher"]["condition"], one))


def _bounded(number: float, one: dict) -> float:
    """A condition number, bounded by what float64 can tell: with P parameters, the smallest
    eigenvalue is not known below P eps of the largest, and may come out as 0."""
    return min(number, 1 / (one["fisher"]["parameters"] * sys.float_info.epsilon))


def silent(one: dict) -> float:
    """Percent of all units that never fire."""
    units = sum(row["units"] for row in one["responses"])
    return 100 * sum(row["silent"] * row["units"] for row in one["responses"]) / units


def tabulate(arms: dict[str, list[dict]]) -> pd.DataFrame:
    """A row per figure and a column per rectifier: the other way round is too wide for a page."""
    columns = {title: _cells(arms[arm]) for arm, title in RECTIFIERS.items()}
    return pd.DataFrame(columns).rename_axis("").reset_index()


def _cells(nets: list[dict]) -> dict[str, str]:
    errors = [one["fisher"]["between"]["error"] for one in nets]
    return {
        "mean response / rms": mean_and_spread(map(centre, nets), 3),
        "energy within layers": mean_and_spread(
            (one["fisher"]["within"]["energy"] for one in nets), 4
        ),
        "energy between a unit's bias and weights": mean_and_spread(
            (one["fisher"]["bias_weight"]["energy"] for one in nets), 4
        ),
        "energy between layers": mean_and_spread(map(between, nets), 4),
        "error of the energy between layers": mean_and_spread(errors, 4),
        "log10 of the condition number": mean_and_spread(map(condition, nets), 2),
        "the same by half the samples": mean_and_spread(
            (
                fmean(math.log10(_bounded(half, one)) for half in one["fisher"]["condition_halves"])
                for one in nets
            ),
            2,
        ),
        "units that never fire, %": mean_and_spread(map(silent, nets), 1),
    }


def _draw(arms: dict[str, list[dict]]):
    figure, ((panel,),) = new_figure(1, 1, size=(5.4, 3.0))
    layers: list[str] = []
    ends = []
    for (arm, nets), color in zip(arms.items(), (BLUE, RED), strict=True):
        for number, one in enumerate(nets):
            values = [row["channel_mean"] for row in one["responses"]]
            layers = [row["name"] for row in one["responses"]]
            panel.plot(values, color=color, lw=1.1, marker="o", ms=2.5)
            if number == 0:
                ends.append((len(values) - 1, values[-1], RECTIFIERS[arm], color))
    panel.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    panel.set(ylabel="mean response / rms", ylim=(0, 1), xlim=(-0.5, len(layers) + 1))
    label_lines(panel, ends)
    return figure


def _list_responses(found: dict) -> pd.DataFrame:
    rows = [{"run": run} | {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
            for run, one in found.items() for row in one["responses"]]  # fmt: skip
    return pd.DataFrame(rows)


def _claims(asked: Asked, found: dict) -> list[Claim]:
    pairs = [pair for pair in asked.pairs("prelu", "relu") if all(r.name in found for r in pair)]
    statuses = {run.name: run.result["status"] for pair in pairs for run in pair}

    def claim(text: str, rule: str, value, delta: float, unit: str) -> Claim:
        less = [value(found[relu.name]) - value(found[prelu.name]) for prelu, relu in pairs]
        finding = unless_stalled(judge_better(less, delta=delta, unit=unit), statuses)
        rule += ", ReLU's minus PReLU's, paired by seed: the 95 % interval over seeds lies above 0"
        return Claim(text, rule, delta, finding, len(statuses))

    return [
        claim("PReLU's mean response is nearer to zero", "mean response over its rms (root "
              "mean square over channels, mean over layers)", centre, CENTRED, "of the rms"),
        claim("PReLU's off-diagonal blocks are smaller", "log10 of the mean squared entry between "
              "layers", log_between, SMALLER, "powers of ten"),
        claim("PReLU's Fisher matrix is better conditioned", "log10 of the condition number",
              condition, CONDITIONED, "powers of ten"),
    ]  # fmt: skip
