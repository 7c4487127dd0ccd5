"""Table 4: model A, dense testing at three scales and combined."""

import re
from itertools import chain
from statistics import fmean

import pandas as pd

from delving.artefact import (
    POINTS,
    Asked,
    Claim,
    Run,
    Shown,
    accuracy_claim,
    mean_and_spread,
    printed,
    published,
)
from delving.judge import all_of, judge_better, unless_stalled
from delving.paper.table2 import compare_errors

COUNT = re.compile(r" \(\d+\)$")  # of mean_and_spread
OF = "ReLU's minus PReLU's"
AS_IN_PAPER = (
    "The three scales s, shorter sides in pixels, are 8/7, 12/7 and 15/7 of the crop, here as in "
    "the paper; multi-scale averages the scores of the three."
)
OTHERS = "The scales s are shorter sides in pixels; multi-scale averages the scores of all of ours."
UNSCORED = ["dense@8/7 c", "dense@12/7 c", "dense@15/7 c", "dense"]  # where no net has scores


def show(asked: Asked) -> Shown:
    scales = _scales(asked)
    return Shown(
        "Table 4. Model A, dense testing at three scales and combined",
        f"Top-1 / top-5 errors in percent. {AS_IN_PAPER if len(scales) in (0, 4) else OTHERS}",
        table=_tabulate(asked, scales),
        claims=_claims(asked, scales or UNSCORED),
        notes=[
            "The claims on scales are about testing, so they rest on all large nets, six per seed."
        ],
    )


def _scales(asked: Asked) -> list[str]:
    """dense@<s> of the three scales, then dense, as the runs were scored."""
    each = [[name for name in run.protocols if name.startswith("dense")]
            for run in asked.runs]  # fmt: skip
    found = max(each, key=len, default=[])  # a net that diverged has none
    return sorted(found[:-1], key=lambda name: int(name.partition("@")[2])) + found[-1:]


def _tabulate(asked: Asked, scales: list[str]) -> pd.DataFrame:
    paper = published()["table4"]
    *places, multi = paper["relu"]
    singles = zip(places, scales[:-1], strict=False)  # fewer where eval.dense_s has fewer
    rows = []
    for place, protocol in [*singles, *((multi, name) for name in scales[-1:])]:
        row = {"scale, paper": str(place), "scale, ours": protocol.partition("@")[2] or "multi"}
        for act, title in (("relu", "ReLU"), ("prelu", "PReLU")):
            row[f"{title}, paper"] = " / ".join(printed(value) for value in paper[act][place])
            row[f"{title}, ours"] = both_errors(asked.arms[f"a_{act}"], protocol)
        rows.append(row)
    return pd.DataFrame(rows)


def both_errors(runs: list[Run], protocol: str) -> str:
    """'top-1 / top-5 (n)', each as mean and spread over the runs."""
    top1, top5 = (mean_and_spread(run.error(protocol, k) for run in runs) for k in (1, 5))
    return f"{COUNT.sub('', top1)} / {top5}"


def _claims(asked: Asked, scales: list[str]) -> list[Claim]:
    runs = asked.runs
    singles, multi = scales[:-1], scales[-1]
    middle = singles[len(singles) // 2]
    others = [name for name in singles if name != middle]
    rectifiers = better_claim(
        asked, "PReLU beats ReLU at each scale", ("a_prelu", "a_relu"), OF, scales
    )
    if not others:  # a single scale, as with eval.dense_s=8, leaves nothing to combine
        return [rectifiers]
    combined = _testing_claim(
        "the scales combined beat the best single scale", runs, multi, singles
    )
    if len(singles) % 2 == 0:
        return [rectifiers, combined]
    best = _testing_claim("the middle scale is the best single one", runs, middle, others)
    return [rectifiers, combined, best]


def better_claim(
    asked: Asked, claim: str, arms: tuple[str, str], of: str, protocols: list[str]
) -> Claim:
    """The claim that the first arm's top-1 error is the smaller by each of the protocols.

    `of` says in the rule what the difference is.
    """
    pairs = asked.pairs(*arms)
    parts = {name: compare_errors(asked, pairs, name, judge_better) for name in protocols}
    rule = (
        f"top-1 error by {', '.join(protocols)}, {of}, paired by seed on the same images: the "
        "95 % interval over seeds lies above 0"
    )
    finding = all_of(parts) if len(parts) > 1 else parts[protocols[0]]
    return accuracy_claim(claim, rule, runs=chain(*pairs), finding=finding)


def _testing_claim(claim: str, runs: list[Run], ours: str, others: list[str]) -> Claim:
    """A claim on testing, whatever the net. Nets of a seed share the order of their images, and the
    first weights of all layers of the same name and shape, so they count as one."""
    good = [run for run in runs if run.result["status"] == "converged" and ours in run.protocols]
    alike: dict[int, list[float]] = {}
    for run in good:
        smaller = min(run.error(name) for name in others) - run.error(ours)
        alike.setdefault(run.seed, []).append(smaller)
    found = judge_better([fmean(values) for values in alike.values()], delta=POINTS)
    rule = (
        f"the smallest top-1 error by {', '.join(others)} minus that by {ours}, averaged over the "
        "converged nets of a seed: the 95 % interval over seeds lies above 0"
    )
    statuses = {} if good else {run.name: run.result["status"] for run in runs}
    return Claim(claim, rule, POINTS, unless_stalled(found, statuses), len(good))
