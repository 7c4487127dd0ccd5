"""Table 2: the small model with four rectifiers; the text's Xavier row and 30-layer row."""

from collections.abc import Callable
from itertools import chain

import pandas as pd

from delving.artefact import (
    POINTS,
    Asked,
    Claim,
    Run,
    Shown,
    accuracy_claim,
    differences,
    image_evidence,
    mean_and_spread,
    printed,
    published,
)
from delving.judge import Finding, all_of, judge_alike, judge_better

PROTOCOL = "ten_view"
ROWS = {  # arm: (what the row is called, where the paper's values stand)
    "relu": ("ReLU", ("table2", "relu")),
    "lrelu": ("LReLU (ICCV)", ("table2", "lrelu")),
    "prelu_shared": ("PReLU, channel-shared", ("table2", "prelu_shared")),
    "prelu": ("PReLU, channel-wise", ("table2", "prelu")),
    "xavier": ("ReLU, Xavier (text)", ("text", "small14_relu_xavier")),
    "small30": ("ReLU, 30 layers (text)", ("text", "small30_relu_he")),
}
RULE = "top-1 error by ten_view, {}, paired by seed on the same images: "
ABOVE = "the 95 % interval over seeds lies above 0"
WITHIN = f"the 90 % interval over seeds lies within ±{POINTS} points"
ALIKE = (judge_alike, WITHIN)
COMPARED = (  # claim, arms (better or first one first), their difference, how it is judged
    ("PReLU (channel-wise) beats ReLU", ("prelu", "relu"),
     "ReLU's minus PReLU's", (judge_better, ABOVE)),
    ("PReLU (channel-shared) beats ReLU", ("prelu_shared", "relu"),
     "ReLU's minus PReLU's", (judge_better, ABOVE)),
    ("the two PReLUs perform comparably", ("prelu", "prelu_shared"),
     "channel-shared minus channel-wise", ALIKE),
    ("LReLU performs like ReLU", ("lrelu", "relu"),
     "ReLU's minus LReLU's", ALIKE),
    ("with 14 layers Xavier and He end alike", ("relu", "xavier"),
     "Xavier's minus He's", ALIKE),
)  # fmt: skip


def show(asked: Asked) -> Shown:
    return Shown(
        "Table 2. The small model with four rectifiers",
        "Errors in percent by ten_view: the paper's, and ours as mean ± standard deviation over "
        "seeds (number of nets). The training error is that of the last tenth of training, "
        "with dropout and augmentation.",
        table=pd.DataFrame([_row(asked.arms[arm], *of) for arm, of in ROWS.items()]),
        claims=_claims(asked),
        notes=[
            "LReLU's slope is fixed at PReLU's starting value; our source does not give the "
            "paper's."
        ],
    )


def _row(runs: list[Run], title: str, where: tuple[str, str]) -> dict[str, str]:
    paper = published()[where[0]][where[1]]
    return {
        "": title,
        "top-1, paper": printed(paper[0]),
        "top-5, paper": printed(paper[1]),
        "top-1, ours": mean_and_spread(run.error(PROTOCOL) for run in runs),
        "top-5, ours": mean_and_spread(run.error(PROTOCOL, 5) for run in runs),
        "training error": mean_and_spread((run.training_error for run in runs), 1),
        "status": ", ".join(sorted({run.result["status"] for run in runs})) or "-",
    }


def _claims(asked: Asked) -> list[Claim]:
    return [
        *(
            _compare(asked, claim, arms=arms, judge=judge, rule=RULE.format(of) + rule)
            for claim, arms, of, (judge, rule) in COMPARED
        ),
        _degrades(asked),
    ]


def _compare(
    asked: Asked, claim: str, *, arms: tuple[str, str], judge: Callable, rule: str
) -> Claim:
    """One arm's top-1 error against another's, by judge_better or judge_alike."""
    pairs = asked.pairs(*arms)
    found = compare_errors(asked, pairs, PROTOCOL, judge)
    return accuracy_claim(claim, rule, runs=chain(*pairs), finding=found)


def compare_errors(
    asked: Asked, pairs: list[tuple[Run, Run]], protocol: str, judge: Callable[..., Finding]
) -> Finding:
    """A judge's finding on the top-1 errors of pairs by one protocol. The noise is always that of
    ten_view: by the others the small nets have no scores."""
    return judge(
        differences(pairs, lambda run: run.error(protocol), drop=True),
        delta=POINTS,
        noise=asked.noise(lambda run: run.error(PROTOCOL)),
        images=image_evidence(pairs, protocol),
    )


def _degrades(asked: Asked) -> Claim:
    """2.2: 38.56 against 33.82, "accuracy degradation": in training too, hence no overfitting."""
    pairs = asked.pairs("relu", "small30")
    parts = {
        "testing": compare_errors(asked, pairs, PROTOCOL, judge_better),
        "training": judge_better(
            differences(pairs, lambda run: run.training_error, drop=True),
            delta=POINTS,
            noise=asked.noise(lambda run: run.training_error),
        ),
    }
    rule = RULE.format("30 layers' minus 14 layers'") + ABOVE
    rule += "; the same for the training error of the last tenth"
    claim = "30 layers are worse than 14, in training error too"
    return accuracy_claim(claim, rule, runs=chain(*pairs), finding=all_of(parts))
