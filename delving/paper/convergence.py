"""ICCV: training and validation error against epochs, ReLU and PReLU, for A, B, C and small14.

PReLU converges faster, with lower training and validation error throughout. The abstract says that
it has "little overfitting risk", hence the claims on the gap between the two errors.
"""

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from delving.artefact import (
    POINTS,
    RECTIFIERS,
    Asked,
    Claim,
    Run,
    Shown,
    accuracy_claim,
    differences,
    model_title,
    rarest,
)
from delving.curves import load_curves, tell_looked
from delving.judge import all_of, judge_better, judge_no_larger
from delving.plot import BLUE, RED, end_at_last, label_lines, new_figure, smooth

LARGE = ("a", "b", "c")
TITLES = {model: model_title(model) for model in (*LARGE, "small14")}
TRAINING, VALIDATION = {"lw": 0.8, "ls": (0, (3, 2))}, {"lw": 1.5}


def show(asked: Asked) -> Shown:
    runs = [run for run in asked.runs if run.logged]
    return Shown(
        "Convergence of ReLU and PReLU (ICCV version)",
        "Top-1 error against epochs, one line per net. Dashed: on the training images, with "
        f"dropout and augmentation. Solid: on {tell_looked(run.folder for run in runs)}, center "
        "crop; nets tested more often are drawn only as often as those of their model tested "
        "least.",
        figure=_draw(asked),
        data=pd.concat([load_curves(run.folder) for run in runs] or [pd.DataFrame()]),
        claims=[
            _claim(asked, f"{who}: {claim}", models, judged)
            for claim, judged in CLAIMS.items()
            for who, models in (("small14", ("small14",)), ("A, B, C", LARGE))
        ],
        notes=_all_along(asked),
    )


def _draw(asked: Asked):
    """A panel for each model that has runs."""
    trained = [model for model in TITLES if _logged(asked, model)] or list(TITLES)
    rows, columns = -(-len(trained) // 2), min(2, len(trained))
    figure, axes = new_figure(rows, columns, size=(0.6 + 3.3 * columns, 0.2 + 2.5 * rows))
    panels = dict(zip(trained, axes.flat, strict=False))
    ends = {model: _draw_model(panel, asked, model) for model, panel in panels.items()}
    figure.suptitle("solid: validation; dashed: training", fontsize=8, color="#555555")
    for models in (LARGE, ("small14",)):
        _share_limits([panels[model] for model in models if model in panels])
    for model, panel in panels.items():
        panel.set(xlabel="epoch", ylabel="top-1 error (%)")
        panel.set_title(TITLES[model], fontsize=9)
        end_at_last(panel, room=0.22)
        label_lines(panel, ends[model])
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    return figure


def _share_limits(panels: Sequence[Axes]) -> None:
    """Sets the same y limits, multiples of 5 around all that is drawn, so that panels compare."""
    boxes = [panel.dataLim for panel in panels if np.isfinite(panel.dataLim.bounds).all()]
    for panel in panels if boxes else ():
        low, high = min(box.y0 for box in boxes), max(box.y1 for box in boxes)
        panel.set_ylim(max(0, 5 * math.ceil(low / 5) - 5), min(100, 5 * math.floor(high / 5) + 5))


def _draw_model(panel: Axes, asked: Asked, model: str) -> list[tuple[float, float, str, str]]:
    """Draws every run of a model; returns where each rectifier's lines end, its name and colour."""
    ends, every = [], rarest(_logged(asked, model))
    for (act, name), color in zip(RECTIFIERS.items(), (BLUE, RED), strict=True):
        drawn = [_draw_run(panel, run, color, every) for run in _logged(asked, model, act)]
        if drawn:
            ends.append((drawn[0][0], float(np.mean([y for _, y in drawn])), name, color))
    return ends


def _logged(asked: Asked, model: str, act: str | None = None) -> list[Run]:
    """A model's runs, of one rectifier or both, that got as far as a line to draw."""
    acts = (act,) if act else ("relu", "prelu")
    return [run for one in acts for run in asked.arms[f"{model}_{one}"] if run.logged]


def _draw_run(panel: Axes, run: Run, color: str, every: float) -> tuple[float, float]:
    """Draws both curves of a run, a look each `every` epochs; returns where the second one ends."""
    steps, looks = run.steps, run.looks_each(every)
    panel.plot(steps.epoch, smooth(steps.err), color=color, **TRAINING)
    panel.plot(looks.epoch, smooth(looks.top1_err), color=color, **VALIDATION)
    return looks.epoch.iloc[-1], looks.top1_err.iloc[-1]


def mean_validation(run: Run) -> float:
    """The validation error's mean over whole epochs, percent: the area below its curve. Over all
    looks, a run that is looked at more often would be charged with more of its beginning."""
    return float(np.mean(by_epoch(run)))


def by_epoch(run: Run) -> np.ndarray:
    """(epochs,) validation errors at the ends of whole epochs, percent."""
    looks = run.looks
    epochs = np.arange(1, max(1, round(looks.epoch.iloc[-1])) + 1)
    return np.interp(epochs, looks.epoch, looks.top1_err)


def mean_training(run: Run) -> float:
    """The training error's mean over the whole run, percent."""
    return run.mean(run.steps.err)


def final_gap(run: Run) -> float:
    """Validation less training error at the end, points."""
    return float(run.looks.top1_err.iloc[-1]) - run.training_error


def _all_along(asked: Asked) -> list[str]:
    """In how many epochs PReLU errs less: in the paper it does throughout."""
    parts = []
    for model, title in TITLES.items():
        pairs = [p for p in asked.pairs(f"{model}_prelu", f"{model}_relu")
                 if all(run.logged for run in p)]  # fmt: skip
        ahead = [ours < theirs for pair in pairs
                 for ours, theirs in zip(*map(by_epoch, pair), strict=False)]  # fmt: skip
        parts += [f"{title} {sum(ahead)} of {len(ahead)}"] if ahead else []
    told = "Epochs after which PReLU's validation error is below that of ReLU with the same seed: "
    return [f"{told}{', '.join(parts)}."] if parts else []


# {claim: (its rule, the judge of the differences, {what they are of: its value for a run})}
CLAIMS = {
    "PReLU errs less, averaged over the training": (
        "top-1 error averaged over the whole training, ReLU's minus PReLU's, paired by seed: the "
        "95 % interval over seeds lies above 0, for both validation and training errors",
        judge_better,
        {"validation": mean_validation, "training": mean_training},
    ),
    "PReLU's gap from training to validation is no larger": (
        "gap between validation and training error at the end, ReLU's minus PReLU's, paired by "
        f"seed: the 95 % interval over seeds lies above -{POINTS} points",
        judge_no_larger,
        {"gap": final_gap},
    ),
}


def _claim(asked: Asked, claim: str, models: Sequence[str], judged: tuple) -> Claim:
    """A claim judged on the pairs that logged, and only if every run of a pair converged."""
    rule, judge, values = judged
    pairs = {model: asked.pairs(f"{model}_prelu", f"{model}_relu") for model in models}
    parts = {}
    for model, mine in pairs.items():
        logged = [pair for pair in mine if all(run.logged for run in pair)]
        for name, value in values.items():
            found = differences(logged, value)
            noise = asked.noise(value)
            parts[f"{TITLES[model]}, {name}"] = judge(found, delta=POINTS, noise=noise)
    runs = [run for mine in pairs.values() for run in chain(*mine)]
    return accuracy_claim(claim, rule, runs=runs, finding=all_of(parts))
