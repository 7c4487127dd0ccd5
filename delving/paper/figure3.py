"""Figure 3: the 30-layer small model, He against Xavier; also `delving compare-init`'s drawing.

2.2: with He the model converges; Xavier "completely stalls the learning, and the gradients are
diminishing as monitored in the experiments", and more epochs do not help.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from delving.artefact import Asked, Claim, Run, Shown, rarest
from delving.curves import tell_looked
from delving.judge import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Finding,
    all_of,
    judge_better,
    unless_stalled,
)
from delving.plot import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    end_at_last,
    label_lines,
    mark,
    new_figure,
    smooth,
)

LONGER = 5  # times the steps that He takes to leave ln(classes): then Xavier is said to stall
DIMINISHED = 1.0  # powers of ten
# Where all nets leave ln(classes) early, the drawing ends after SHOWN times the steps that the last
# one takes, but not before LOOKS looks. The paper's two figures show 3 and 9 epochs.
SHOWN = 4
LOOKS = 8
STAYED = "at ln(classes) for all {steps:,} steps"
FELL_BACK = "left ln(classes) and fell back within {steps:,} steps"
TITLES = {"he": "He", "xavier": "Xavier", "he_backward": "He, backward", "gaussian": "Gaussian"}
COLORS = {"he": BLUE, "xavier": RED, "he_backward": GREEN, "gaussian": ORANGE}


def show(asked: Asked) -> Shown:
    runs = asked.runs
    return Shown(
        "Figure 3. 30 layers, ReLU, He against Xavier",
        f"Left: top-1 error on {tell_looked(run.folder for run in runs)}, center crop, against "
        "epochs. Right: the norm of the loss's gradient over all conv weights (solid), and of the "
        "weight-decay term that is added to it (dotted): where the solid line lies below the "
        "dotted one, weight decay alone moves the weights.",
        figure=draw_inits(asked.arms),
        data=tabulate_runs(runs),
        claims=_claims(asked),
    )


def tabulate_runs(runs: Iterable[Run]) -> pd.DataFrame:
    """The tables of several runs; one that diverged at once has none."""
    return pd.concat([tabulate(run) for run in runs if run.logged] or [pd.DataFrame()])


def tabulate(run: Run) -> pd.DataFrame:
    """Columns run, curve, epoch, value: the validation error and what is drawn of the gradients."""
    names = {"loss": "training loss", "conv_grad_norm": "gradient of the conv weights",
             "conv_decay_norm": "weight-decay term of the conv weights"}  # fmt: skip
    parts = [("validation error", run.looks.epoch, run.looks.top1_err)]
    parts += [(title, run.steps.epoch, run.steps[key]) for key, title in names.items()]
    return pd.concat(
        pd.DataFrame({"run": run.name, "curve": title, "epoch": x, "value": y.round(7)})
        for title, x, y in parts
    )


def draw_inits(arms: dict[str, list[Run]]) -> Figure:
    """Errors, and norms of gradients and decay, one colour per initialiser, one line per seed."""
    figure, ((errors, norms),) = new_figure(1, 2, size=(7.2, 3.0))
    logged = {arm: [run for run in runs if run.logged] for arm, runs in arms.items()}
    drawn = list(chain.from_iterable(logged.values()))
    every = rarest(drawn)
    until, trained = _beginning(drawn, every)
    epoch = "epoch" if until == trained else f"epoch, the first {until:.2g} of {trained:.3g}"
    errors.set(xlabel=epoch, ylabel="top-1 error (%)")
    norms.set(xlabel=epoch, ylabel="norm, conv weights", yscale="log")
    ends: dict[Axes, list] = {errors: [], norms: []}
    colors = colors_of(logged)
    for arm, runs in logged.items():
        if runs:
            title, color = title_of(arm), colors[arm]
            x, y = np.transpose([_draw_errors(errors, run, every, until, color) for run in runs])
            ends[errors].append((x.max(), y.mean(), title, color))
            x, y = np.transpose([_draw_norms(norms, run, until, color) for run in runs])
            ends[norms].append((x.max(), np.exp(np.log(y).mean()), title, color))
    for axes, own in ends.items():
        end_at_last(axes, room=0.2)
        label_lines(axes, own)
    norms.set_title("solid: gradient of the loss; dotted: weight decay", fontsize=8)
    return figure


def title_of(init: str) -> str:
    return TITLES.get(init, init)


def colors_of(inits: Iterable[str]) -> dict[str, str]:
    """{initialiser: its colour}; those of COLORS have the same in every figure."""
    others = cycle((PURPLE, SKY, GREY))
    return {init: COLORS[init] if init in COLORS else next(others) for init in inits}


def _beginning(runs: list[Run], every: float) -> tuple[float, float]:
    """Epochs to draw and epochs trained. These figures are about the beginning, which would be a
    mere corner of a long training's picture; if a net stalls, its whole training is drawn."""
    trained = max((run.steps.epoch.iloc[-1] for run in runs), default=0.0)
    left = max((_epochs_until(run, run.departure) for run in runs), default=math.inf)
    until = max(SHOWN * left, LOOKS * every)
    return (until if until < trained / 2 else trained), trained


def _epochs_until(run: Run, step: float) -> float:
    return step * run.steps.epoch.iloc[-1] / run.steps.step.iloc[-1]


def _draw_errors(
    axes: Axes, run: Run, every: float, until: float, color: str
) -> tuple[float, float]:
    """Draws the validation error each `every` epochs, from chance on; returns where it ends."""
    shown = run.looks_each(every)
    shown = shown[shown.epoch <= until + every / 2]  # a look may come a part of a step late
    chance = 100 * (1 - math.exp(-run.blind_loss))
    x, y = [0.0, *shown.epoch], [chance, *shown.top1_err]
    axes.plot(x, y, color=color, lw=1.4)
    return x[-1], y[-1]


def _draw_norms(axes: Axes, run: Run, until: float, color: str) -> tuple[float, float]:
    steps = run.steps[run.steps.epoch <= until]
    gradient = np.exp(smooth(np.log(steps.conv_grad_norm.clip(lower=1e-12))))
    points = mark(gradient)
    axes.plot(steps.epoch, gradient, color=color, lw=1.4, **points)
    axes.plot(steps.epoch, steps.conv_decay_norm, color=color, lw=1.2, ls=":", **points)
    return steps.epoch.iloc[-1], gradient.iloc[-1]


def _claims(asked: Asked) -> list[Claim]:
    he, pairs = asked.arms["he"], asked.pairs("he", "xavier")
    return [
        Claim(
            "30 layers converge with He",
            "the training loss of every net ends more than 2 % below ln(classes)",
            None,
            converges(he),
            len(he),
        ),
        Claim(
            "30 layers stall with Xavier",
            "in every pair Xavier's training loss stays within 2 % of ln(classes) to the end, and "
            f"Xavier was trained for at least {LONGER} times the steps that He took to leave",
            None,
            judged(asked, stalls),
            2 * len(pairs),
        ),
        Claim(
            "Xavier's gradients diminish",
            "log10 of the norm of the loss's gradient over all conv weights, mean over the steps "
            "before He leaves ln(classes), He's minus Xavier's, paired by seed: the 95 % interval "
            "over seeds lies above 0; and in the last tenth of training Xavier's gradient is "
            "smaller than its weight-decay term",
            DIMINISHED,
            judged(asked, partial(diminish, asked)),
            2 * len(pairs),
        ),
    ]


def sound_pairs(asked: Asked) -> list[tuple[Run, Run]]:
    """Pairs of He's and Xavier's runs that share a seed, without those of which one diverged."""
    return [pair for pair in asked.pairs("he", "xavier") if not any(map(_diverged, pair))]


def _diverged(run: Run) -> bool:
    return run.result["status"] == "diverged" or not run.logged


def judged(asked: Asked, judge: Callable[[list[tuple[Run, Run]]], Finding]) -> Finding:
    """A finding on the pairs in which no run diverged. If any did, it is inconclusive and names the
    run: what that would have done with more time is not known."""
    runs = [run for pair in asked.pairs("he", "xavier") for run in pair if _diverged(run)]
    return unless_stalled(judge(sound_pairs(asked)), {r.name: r.result["status"] for r in runs})


def times_given(he: Run, xavier: Run) -> float:
    """Xavier's steps of training, as a multiple of those that He took to leave ln(classes)."""
    return float(xavier.steps.step.iloc[-1]) / he.departure


def converges(runs: list[Run]) -> Finding:
    """Do all runs leave ln(classes)?"""
    if not runs:
        return Finding(INCONCLUSIVE, "no trained net")
    good = all(run.result["status"] == "converged" for run in runs)
    return Finding(REPRODUCED if good else NOT_REPRODUCED, tell_departures(runs))


def tell_departures(runs: Iterable[Run]) -> str:
    """When nets left ln(classes), in the order of the runs; those alike share a phrase."""
    alike: dict[tuple, list[Run]] = {}
    for run in runs:
        steps = int(run.steps.step.iloc[-1]) if run.logged else None
        how = ""
        if run.logged and not math.isfinite(run.departure):
            how = FELL_BACK if run.fell_back else STAYED
        key = (title_of(run.result["init"]), run.result["status"], how, steps)
        alike.setdefault(key, []).append(run)
    return ", ".join(_departures(*key, found) for key, found in alike.items())


def _departures(init: str, status: str, how: str, steps: int | None, runs: list[Run]) -> str:
    told = f"{init} {status}" + (f" {len(runs)} times" if len(runs) > 1 else "")
    if steps is None:
        return told
    if how:
        return f"{told}: {how.format(steps=steps)}"
    *others, last = [f"{run.departure:,.0f}" for run in runs]
    left = f"{', '.join(others)} and {last}" if others else last
    return f"{told}: left ln(classes) by step {left} of {steps:,}"


def stalls(pairs: list[tuple[Run, Run]]) -> Finding:
    """Does the second of each pair stay at ln(classes) for LONGER times the first's departure?"""
    if not pairs:
        return Finding(INCONCLUSIVE, "no trained pair")
    told = tell_departures([run for inits in zip(*pairs, strict=True) for run in inits])
    if any(math.isfinite(theirs.departure) or theirs.fell_back for _, theirs in pairs):
        return Finding(NOT_REPRODUCED, told)
    times = [times_given(ours, theirs) for ours, theirs in pairs]
    told += f"; trained for at least {min(times):.1f} times He's steps"
    return Finding(REPRODUCED if min(times) >= LONGER else INCONCLUSIVE, told)


def diminish(asked: Asked, pairs: list[tuple[Run, Run]]) -> Finding:
    """Is Xavier's gradient smaller than He's, and in the end smaller than its weight decay?"""
    smaller = judge_better(
        [_early_gradient(he, he) - _early_gradient(xavier, he) for he, xavier in pairs],
        delta=DIMINISHED,
        unit="powers of ten",
        noise=asked.noise(lambda run: _early_gradient(run, run)),
    )
    if not pairs or not all((xavier.steps.conv_decay_norm > 0).all() for _, xavier in pairs):
        return smaller  # without weight decay there is nothing to be smaller than
    ends = [_end_ratio(xavier) for _, xavier in pairs]
    told = "gradient over weight-decay term in the last tenth: " + ", ".join(
        f"{ratio:.2g}" for ratio in ends
    )
    below = Finding(REPRODUCED if max(ends) < 1 else NOT_REPRODUCED, told)
    return all_of({"smaller": smaller, "below decay": below})


def _early_gradient(run: Run, he: Run) -> float:
    """Mean log10 of the conv gradient's norm over the steps until `he` left ln(classes)."""
    early = run.steps.step <= min(he.departure, run.steps.step.iloc[-1])
    return run.mean(np.log10(run.steps.conv_grad_norm[early].clip(lower=1e-12)))


def _end_ratio(run: Run) -> float:
    return run.mean(run.tail.conv_grad_norm / run.tail.conv_decay_norm)
