"""Table 5: single models, ten_view; also Table 6's rows and claims."""

from itertools import chain

import pandas as pd

from delving.artefact import (
    POINTS,
    Asked,
    Claim,
    Shown,
    accuracy_claim,
    mean_and_spread,
    printed,
    published,
)
from delving.judge import judge_alike
from delving.paper.table2 import compare_errors
from delving.paper.table4 import OF, better_claim

MODELS = {"a_relu": "A, ReLU", "a_prelu": "A, PReLU", "b_prelu": "B, PReLU", "c_prelu": "C, PReLU"}
OTHERS = {"msra_spp": "MSRA (SPP-net)", "vgg16": "VGG-16 (tested by the authors)",
          "googlenet": "GoogLeNet"}  # fmt: skip


def show(asked: Asked) -> Shown:
    paper = published()["table5"]
    return Shown(
        "Table 5. Single models, ten_view",
        "Errors in percent on the validation images, by ten_view: the paper's table with its "
        "other systems as printed, and ours (number of nets).",
        table=tabulate(asked, [(OTHERS | MODELS, paper)], "ten_view"),
        claims=claims(asked, "ten_view"),
    )


def tabulate(asked: Asked, blocks: list[tuple[dict, dict]], protocol: str) -> pd.DataFrame:
    """The paper's rows, ours beside them where a row is one of our arms."""
    rows = []
    for titles, paper in blocks:
        for key, title in titles.items():
            runs = asked.arms.get(key, [])
            rows.append(
                {
                    "model": title,
                    "top-1, paper": printed(paper[key][0]),
                    "top-5, paper": printed(paper[key][1]),
                    "top-1, ours": mean_and_spread(run.error(protocol) for run in runs),
                    "top-5, ours": mean_and_spread(run.error(protocol, 5) for run in runs),
                }
            )
    return pd.DataFrame(rows)


def claims(asked: Asked, protocol: str) -> list[Claim]:
    """The claims on top-1 errors of single models by one protocol."""
    return [
        better_claim(asked, "A: PReLU beats ReLU", ("a_prelu", "a_relu"), OF, [protocol]),
        better_claim(asked, "C beats B", ("c_prelu", "b_prelu"), "B's minus C's", [protocol]),
        _alike(asked, protocol),
    ]


def _alike(asked: Asked, protocol: str) -> Claim:
    pairs = asked.pairs("b_prelu", "a_prelu")
    found = compare_errors(asked, pairs, protocol, judge_alike)
    rule = (
        f"top-1 error by {protocol}, A's minus B's, paired by seed on the same images: the 90 % "
        f"interval over seeds lies within ±{POINTS} points"
    )
    return accuracy_claim("A and B are alike", rule, runs=chain(*pairs), finding=found)
