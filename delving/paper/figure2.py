"""Figure 2: model B (22 layers), ReLU, He against Xavier.

Its caption: both "lead to convergence, but ours starts reducing error earlier".
"""

import math
from functools import partial

from delving.artefact import Asked, Claim, Run, Shown, differences
from delving.curves import tell_looked
from delving.judge import INCONCLUSIVE, Finding, judge_better
from delving.paper.figure3 import (
    LONGER,
    converges,
    draw_inits,
    judged,
    sound_pairs,
    tabulate_runs,
    times_given,
)

EARLIER = 0.1  # powers of ten of steps: 21 % sooner


def show(asked: Asked) -> Shown:
    runs = asked.runs
    return Shown(
        "Figure 2. B (22 layers), ReLU, He against Xavier",
        f"Left: top-1 error on {tell_looked(run.folder for run in runs)}, center crop, against "
        "epochs; nets tested more often are drawn only as often as those tested least. "
        "Right: the norm of the loss's gradient over all conv weights (solid), "
        "and of the weight-decay term (dotted).",
        figure=draw_inits(asked.arms),
        data=tabulate_runs(runs),
        claims=[
            Claim(
                "22 layers converge with He and with Xavier",
                "the training loss of every net ends more than 2 % below ln(classes); a net with "
                f"Xavier that stays there refutes it only after {LONGER} times the steps that He "
                "took to leave",
                None,
                _both(asked),
                len(runs),
            ),
            Claim(
                "He starts reducing the error earlier",
                "log10 of the step at which the training loss leaves ln(classes) for good (the "
                "last step if Xavier's never does), Xavier's minus He's, paired by seed: the "
                "95 % interval over seeds lies above 0",
                EARLIER,
                judged(asked, partial(_earlier, asked)),
                len(runs),
            ),
        ],
    )


def _both(asked: Asked) -> Finding:
    """Do all nets converge? A net of Xavier's that stalled refutes it only if it had enough time to
    converge; with less, nothing is shown."""
    found = converges(asked.runs)
    failed = {run.name for run in asked.runs if run.result["status"] != "converged"}
    given = {xavier.name: times_given(he, xavier) for he, xavier in sound_pairs(asked)
             if xavier.result["status"] == "stalled" and math.isfinite(he.departure)}  # fmt: skip
    if not given:
        return found
    times = " and ".join(f"{value:.1f}" for value in given.values())
    nets = "nets that stalled were" if len(given) > 1 else "net that stalled was"
    told = f"{found.evidence}; the {nets} trained for {times} times He's steps"
    hasty = {name for name, value in given.items() if value < LONGER}
    return Finding(INCONCLUSIVE if failed <= hasty else found.verdict, told)


def _earlier(asked: Asked, pairs: list[tuple[Run, Run]]) -> Finding:
    def start(run: Run) -> float:
        return math.log10(min(run.departure, float(run.steps.step.max())))

    if any(math.isinf(he.departure) for he, _ in pairs):
        return Finding(INCONCLUSIVE, "He itself did not leave ln(classes)")
    return judge_better(
        differences(pairs, start), delta=EARLIER, unit="powers of ten", noise=asked.noise(start)
    )
