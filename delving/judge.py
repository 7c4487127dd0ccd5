"""The statistics of all verdicts: paired differences over seeds, intervals, equivalence, rules.

The unit counted is the trained net: one difference per seed, between two nets that differ only in
what is claimed. The images of one test set show how surely two given nets differ, never how the
next two would turn out: what they show is appended to the evidence and decides nothing.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads its submodules at their first use

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not_reproduced", "inconclusive"
ENOUGH = 3  # trained pairs for an interval of their own; for two, t is 12.7 and tells nothing
# A single pair decides beyond this many seed deviations, the mean of two beyond 1 / sqrt(2) of
# that. A difference's deviation is sqrt(2) of one net's, so 3 of a net's are 2.1 of a difference's:
# wrong to one side in 1.7 %, in 2.5 % if the deviation is itself estimated from 5 + 3 + 3 + 5 + 3 +
# 3 nets, as Table 2's at scale cpu (16 degrees of freedom), and in over 5 % below 5 degrees.
NOISES = 3
DRAWS = 5000  # of the bootstrap


@dataclass(frozen=True)
class Finding:
    """A verdict, and one plain sentence that says what it rests on."""

    verdict: str
    evidence: str


@dataclass(frozen=True)
class Interval:
    """A mean and its limits, in the unit of the values, of n trained nets or pairs."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean with Student's two-sided t interval, which has no width if all values are equal.

    Raises:
        ValueError: fewer than 2 values, or one that is not finite.
    """
    values = finite("values", values)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, not {len(values)}")
    mean = statistics.mean(values)  # exact: equal values keep their mean, and have deviation 0
    quantile = float(scipy.special.stdtrit(len(values) - 1, (1 + level) / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def of_log_normal(bits: Sequence[float], layers: int) -> list[float]:
    """The bits with a correction, after which their mean tells by how many bits a layer changes the
    second moment's arithmetic mean, if the moment is log-normal over draws: their own mean plus
    ln(2) / 2 of the variance of the total over `layers`, per layer.

    Args:
        bits: per layer, one number of each draw, at least two. Each gets its own part of that
            variance, so that an interval of the mean includes the variance's uncertainty.
    """
    mean, n = sum(bits) / len(bits), len(bits)
    share = math.log(2) / 2 * layers * n / (n - 1)
    return [value + share * (value - mean) ** 2 for value in bits]


def judge_better(
    differences: Sequence[float],
    *,
    delta: float,
    unit: str = "points",
    noise: float | None = None,
    images: str | None = None,
    what: str = "difference",
) -> Finding:
    """Is there an effect in the claimed direction, in which differences are positive?

    Reproduced if the 95 % interval lies above 0, even if the effect is smaller than `delta`; not
    reproduced if it lies below `delta`, the smallest effect that counts, or, for one or two pairs,
    below 0. Those are judged by `noise`, one net's `pooled_deviation`. Errors: see `seen_interval`.

    Args:
        what: the evidence's name for the values, if they are single nets' and not differences.
    """
    seen = seen_interval(differences, delta=delta, noise=noise)
    least = delta if seen.n >= ENOUGH else 0.0
    verdict, why = INCONCLUSIVE, f"rules out neither 0 nor {amount(delta, unit)}"
    if seen.low > 0:
        small = f", an effect smaller than {amount(delta, unit)}" if seen.high < delta else ""
        verdict, why = REPRODUCED, f"above 0{small}"
    elif seen.high < least:
        verdict, why = NOT_REPRODUCED, f"below {amount(least, unit) if seen.high >= 0 else 0}"
    elif least == 0:
        why = "contains 0"
    return Finding(verdict, tell(seen, why, unit=unit, images=images, what=what))


def judge_alike(
    differences: Sequence[float],
    *,
    delta: float,
    unit: str = "points",
    noise: float | None = None,
    images: str | None = None,
) -> Finding:
    """Is the difference smaller than `delta`, either way? "Not significant" would not show that.

    Reproduced if the 90 % interval lies within +-`delta` (two one-sided tests of 5 % each), not
    reproduced if the 95 % interval lies outside it; one or two pairs can only refute.
    """
    seen = seen_interval(differences, delta=delta, noise=noise, level=0.9)
    wide = seen_interval(differences, delta=delta, noise=noise)
    verdict, where = INCONCLUSIVE, "neither clearly within nor outside of"
    if wide.low > delta or wide.high < -delta:
        verdict, where, seen = NOT_REPRODUCED, "outside of", wide
    elif seen.n < ENOUGH:
        where = f"{'one pair' if seen.n == 1 else 'two pairs'} cannot show that others stay within"
    elif -delta < seen.low and seen.high < delta:
        verdict, where = REPRODUCED, "within"
    why, level = f"{where} ±{number(delta)} {unit}", 0.95 if seen is wide else 0.9
    return Finding(verdict, tell(seen, why, unit=unit, images=images, level=level))


def judge_no_larger(
    differences: Sequence[float], *, delta: float, unit: str = "points", noise: float | None = None
) -> Finding:
    """Is one thing no larger than another, by a margin of `delta`? Non-inferiority.

    Differences say how much smaller it is (positive = smaller). Reproduced if the 95 % interval
    lies above -`delta`, not reproduced if below it; for one or two pairs it comes from `noise`.
    """
    seen = seen_interval(differences, delta=delta, noise=noise)
    verdict, where = INCONCLUSIVE, "contains"
    if seen.low > -delta:
        verdict, where = REPRODUCED, "above"
    elif seen.high < -delta:
        verdict, where = NOT_REPRODUCED, "below"
    return Finding(verdict, tell(seen, f"{where} {number(-delta)} {unit}", unit=unit))


def seen_interval(
    differences: Sequence[float], *, delta: float, noise: float | None, level: float = 0.95
) -> Interval:
    """The interval that a rule looks at: Student's t over three or more pairs; for one or two, the
    mean +-3 noise / sqrt(n), without limits if the noise is not known.

    Raises:
        ValueError: a difference, `delta` or `noise` is not finite, or one of the latter negative.
    """
    values = finite("differences", differences)
    if min(finite("delta and noise", [delta, noise or 0.0])) < 0:
        raise ValueError(f"delta and noise must be 0 or more, not {delta} and {noise}")
    if len(values) >= ENOUGH:
        return mean_interval(values, level)
    mean = statistics.mean(values) if values else math.nan
    known = values and noise is not None
    half = NOISES * noise / math.sqrt(len(values)) if known else math.inf
    return Interval(mean, mean - half, mean + half, len(values))


def tell(
    seen: Interval,
    why: str,
    *,
    unit: str,
    images: str | None = None,
    level: float = 0.95,
    what: str = "difference",
) -> str:
    """The evidence: mean difference, interval, n and unit, why, and what the images show."""
    mean, limits = amount(seen.mean, unit), f"{number(seen.low)} to {number(seen.high)}"
    text = f"mean {what} {mean}, {100 * level:g} % interval {limits}, n = {seen.n}: {why}"
    if seen.n == 0:
        text = "no trained pair"
    elif seen.n < ENOUGH:
        deviations = number(NOISES / math.sqrt(seen.n))
        known = f", {limits} (± {deviations} seed deviations of small nets): {why}"
        rest = known if math.isfinite(seen.high) else ": how much seeds vary is not known"
        text = f"{'mean ' if seen.n > 1 else ''}{what} {mean}, n = {seen.n}{rest}"
    return f"{text}; {images}" if images else text


def all_of(findings: Mapping[str, Finding]) -> Finding:
    """A claim of several parts: reproduced if every part is, not reproduced if any part is not.

    No correction for the number of parts: a claim with a false part passes no more often than that
    part alone would, but one whose parts all hold is refuted by chance more often the more parts it
    has. The evidence begins with the parts that decide.
    """
    verdicts = {finding.verdict for finding in findings.values()}
    ranked = (NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED)
    verdict = next((one for one in ranked if one in verdicts), INCONCLUSIVE)
    parts = sorted(findings.items(), key=lambda part: part[1].verdict != verdict)
    evidence = "; ".join(f"{name}: {finding.evidence}" for name, finding in parts)
    return Finding(verdict, evidence or "no part was judged")


def settled(holds: bool, told: str) -> Finding:
    """A finding that needs no statistics."""
    return Finding(REPRODUCED if holds else NOT_REPRODUCED, told)


def unless_stalled(finding: Finding, statuses: Mapping[str, str]) -> Finding:
    """The finding if all runs (name: status) converged; else inconclusive, naming the others.

    A net at chance says nothing about accuracy: `unless_stalled(judge_better(...), statuses)`.
    """
    others = [f"{run} {status}" for run, status in statuses.items() if status != "converged"]
    if not others:
        return finding
    told = f"not judged because {', '.join(others)}; measured: {finding.evidence}"
    return Finding(INCONCLUSIVE, told)


def pooled_deviation(groups: Iterable[Sequence[float]]) -> float | None:
    """One net's deviation over seeds, sqrt(sum (n - 1) s^2 / sum (n - 1)), in the values' unit.

    One group per arm; the arms' means may differ. None where no group has two values.
    """
    arms = [values for group in groups if len(values := finite("values", group)) > 1]
    if not arms:
        return None
    squares = math.fsum((len(arm) - 1) * statistics.variance(arm) for arm in arms)
    return math.sqrt(squares / sum(len(arm) - 1 for arm in arms))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's, 1 if y rises with x. ValueError if either has no two different values."""
    x, y = finite("x", x), finite("y", y)
    if min(len(set(x)), len(set(y))) < 2:
        raise ValueError(f"ranks need at least two different values, not x = {x}, y = {y}")
    return float(scipy.stats.spearmanr(x, y).statistic)


def compare_images(
    hits_a: Sequence[bool], hits_b: Sequence[bool], *, of: str = "these two nets"
) -> str:
    """How far net A is ahead of B, in points of error over the same images (positive: A errs less).

    Hits say per image whether the net was right. ValueError unless both count as many images.
    """
    a, b = np.asarray(hits_a, dtype=bool), np.asarray(hits_b, dtype=bool)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"hits must be of the same images, not of {a.shape} and {b.shape}")
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    limits = bootstrap_points(won, lost, images=a.size, seed=0)
    points, p = 100 * (won - lost) / a.size, mcnemar(won, lost)
    chance = f"McNemar p {f'= {number(p)}' if p >= 1e-4 else '< 0.0001'}"
    limits = " to ".join(map(number, limits))
    return f"over images ({of} only): {number(points)} points, 95 % {limits} (bootstrap), {chance}"


def bootstrap_points(won: int, lost: int, *, images: int, seed: int) -> list[float]:
    """95 % limits, in points, of the difference when the images are drawn anew, in pairs.

    Drawing images amounts to drawing the counts of three sorts (won, lost, neither): a multinomial.
    """
    shares = np.array([won, lost, images - won - lost]) / images
    counts = np.random.Generator(np.random.Philox(seed)).multinomial(images, shares, size=DRAWS)
    points = 100 * (counts[:, 0] - counts[:, 1]) / images
    return np.quantile(points, [0.025, 0.975], method="inverted_cdf").tolist()


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p (McNemar, 1947): by chance, images only one net gets right split 1 : 1."""
    return float(scipy.stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def finite(what: str, values: Iterable[float]) -> list[float]:
    """The values as plain floats; ValueError names those that are not finite."""
    values = [float(value) for value in values]
    if bad := [value for value in values if not math.isfinite(value)]:
        raise ValueError(f"{what} must be finite, not {', '.join(map(str, bad))} in {values}")
    return values


def amount(value: float, unit: str) -> str:
    """A number and its unit, if it has one."""
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Three significant digits, so that texts agree on all machines; no -0, no rounding residue."""
    return f"{float(f'{round(value, 12):.3g}') + 0.0:g}"
