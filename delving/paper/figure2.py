"""Figure 2: model B (22 layers), ReLU, He against Xavier.

2.2: "both initializations are able to make them converge, but ours starts reducing error earlier".
"""

import math

from delving.artefact import Asked, Claim, Shown, differences
from delving.judge import INCONCLUSIVE, Finding, judge_better
from delving.paper.figure3 import converges, draw_inits, logged_pairs, tabulate_runs

EARLIER = 0.1  # powers of ten of steps: 26 % sooner


def show(asked: Asked) -> Shown:
    runs = [run for arm in asked.arms.values() for run in arm]
    return Shown(
        "Figure 2. B (22 layers), ReLU, He against Xavier",
        "Left: top-1 error of a fixed random subset of the validation images, center crop, "
        "against epochs. Right: the norm of the loss's gradient over all conv weights (solid), "
        "and of the weight-decay term (dotted).",
        figure=draw_inits(asked.arms),
        data=tabulate_runs(runs),
        claims=[
            Claim(
                "22 layers converge with He and with Xavier",
                "the training loss of every net ends more than 2 % below ln(classes)",
                None,
                converges(runs),
                len(runs),
            ),
            Claim(
                "He starts reducing the error earlier",
                "log10 of the step by which the training loss has left ln(classes) for good "
                "(Xavier's last step where it never does), Xavier's less He's, paired by seed; "
                "the 95 % interval over seeds lies above 0",
                EARLIER,
                _earlier(asked),
                len(runs),
            ),
        ],
    )


def _earlier(asked: Asked) -> Finding:
    def start(run) -> float:
        return math.log10(min(run.departure, float(run.steps.step.max())))

    pairs = logged_pairs(asked)
    if any(math.isinf(he.departure) for he, _ in pairs):
        return Finding(INCONCLUSIVE, "He itself did not leave ln(classes)")
    return judge_better(
        differences(pairs, start), delta=EARLIER, unit="powers of ten", noise=asked.noise(start)
    )
