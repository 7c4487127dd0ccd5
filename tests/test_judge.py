"""The verdicts: what each rule says, how often it is wrong, how often it finds what is there."""

import itertools
import math
import re
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from delving.judge import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Finding,
    Interval,
    all_of,
    bootstrap_points,
    compare_images,
    judge_alike,
    judge_better,
    judge_no_larger,
    mcnemar,
    mean_interval,
    number,
    of_log_normal,
    pooled_deviation,
    rank_correlation,
    settled,
    unless_stalled,
)

RULES = [judge_better, judge_alike, judge_no_larger]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
few_and_more_seeds = pytest.mark.parametrize("seeds", [3, 5])
TRIALS = 1000
# 5 % plus three standard errors of a simulation of this length.
FIVE_PERCENT = 0.05 + 3 * math.sqrt(0.05 * 0.95 / TRIALS)
ORDER = [NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED]
POOL = [5, 5, 3, 3]  # small nets per arm, over which a scale's seed deviation is pooled

fewer = settings(max_examples=40)  # 13 properties in a few seconds

# Eighths add and subtract exactly, so that a shift moves the mean and nothing else.
eighths = st.integers(-80, 80).map(lambda count: count / 8)
samples = st.lists(eighths, max_size=6)
sizes = st.integers(1, 40).map(lambda count: count / 8)
noises = st.none() | sizes


def verdict(rule, differences, **how):
    return rule(differences, **how).verdict


def shares(rule, trials, **how):
    """The share of each verdict that a rule gives over `trials`, (trials, seeds) differences."""
    found = [verdict(rule, row, **how) for row in trials.tolist()]
    return {word: found.count(word) / len(found) for word in ORDER}


def draw(seeds, *, mean, deviation, seed=0):
    return np.random.default_rng(seed).normal(mean, deviation, size=(TRIALS, seeds))


# Intervals


def test_the_interval_of_1_2_3_is_2_plus_minus_4_303_over_root_3():
    interval = mean_interval([1, 2, 3])
    assert (interval.mean, interval.n) == (2, 3)
    assert interval.high - 2 == 2 - interval.low == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)


@fewer
@given(st.lists(eighths, min_size=2, max_size=8), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_is_scipys(values, level):
    assume(len(set(values)) > 1)
    limits = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
    interval = mean_interval(values, level)
    assert (interval.low, interval.high) == pytest.approx(limits)


@fewer
@given(st.floats(-1e6, 1e6), st.integers(2, 7))
def test_equal_values_have_an_interval_without_width(value, n):
    assert mean_interval([value] * n) == Interval(value, value, value, n)


@few_and_more_seeds
def test_the_interval_misses_the_true_mean_in_one_of_twenty(seeds):
    intervals = [mean_interval(row) for row in draw(seeds, mean=1, deviation=2).tolist()]
    missed = np.mean([not i.low < 1 < i.high for i in intervals])
    assert abs(missed - 0.05) < FIVE_PERCENT - 0.05


@pytest.mark.parametrize("values", [[], [1.0]])
def test_no_interval_below_two_values(values):
    with pytest.raises(ValueError, match=f"at least 2 values, not {len(values)}"):
        mean_interval(values)


# What the rules say


def test_better_is_reproduced_where_the_interval_lies_above_0():
    finding = judge_better([2.0, 2.5, 3.0], delta=1)
    assert finding == Finding(
        REPRODUCED, "mean difference 2.5 points, 95 % interval 1.26 to 3.74, n = 3: above 0"
    )


def test_a_sure_effect_below_delta_is_reproduced_and_called_small():
    finding = judge_better([0.2, 0.25, 0.3], delta=1, unit="bits")
    assert finding.verdict == REPRODUCED
    assert finding.evidence.endswith("above 0, an effect smaller than 1 bits")


def test_an_effect_is_called_small_by_its_upper_limit_not_its_mean():
    seen = mean_interval([0.7, 0.9, 1.1])
    assert seen.mean < 1 < seen.high
    finding = judge_better([0.7, 0.9, 1.1], delta=1)
    assert finding.verdict == REPRODUCED
    assert finding.evidence.endswith("above 0")


def test_a_value_without_a_unit_is_told_without_a_gap():
    """Such as a slope."""
    finding = judge_better([2.0, 2.5, 3.0], delta=1, unit="", what="slope")
    assert finding.evidence == "mean slope 2.5, 95 % interval 1.26 to 3.74, n = 3: above 0"


def test_of_a_single_pair_no_mean_is_told():
    one, two = (judge_better([3.1] * n, delta=5, noise=1).evidence for n in (1, 2))
    assert one.startswith("difference 3.1 points, n = 1, ")
    assert two.startswith("mean difference 3.1 points, n = 2, ")


def test_a_noise_of_zero_is_known():
    assert verdict(judge_better, [0.1], delta=1, noise=0.0) == REPRODUCED
    assert verdict(judge_better, [0.1], delta=1, noise=None) == INCONCLUSIVE


@pytest.mark.parametrize(("holds", "expected"), [(True, REPRODUCED), (False, NOT_REPRODUCED)])
def test_what_needs_no_statistics_holds_or_does_not(holds, expected):
    assert settled(holds, "said so") == Finding(expected, "said so")


@pytest.mark.parametrize(
    ("judge", "differences", "delta", "expected", "evidence"),
    [
        (judge_better, [-0.1, 0.0, 0.1], 1, NOT_REPRODUCED,
         "interval -0.248 to 0.248, n = 3: below 1 points"),
        (judge_better, [1, 2, 3], 1, INCONCLUSIVE,
         "-0.484 to 4.48, n = 3: rules out neither 0 nor 1 points"),
        (judge_alike, [-1, 0, 1], 2, REPRODUCED,  # by the 90 % interval: the 95 % one is ±2.48
         "90 % interval -1.69 to 1.69, n = 3: within ±2 points"),
    ],
)  # fmt: skip
def test_the_interval_decides_by_where_it_lies_about_delta(
    judge, differences, delta, expected, evidence
):
    finding = judge(differences, delta=delta)
    assert finding.verdict == expected
    assert finding.evidence.endswith(evidence)


def test_alike_is_not_reproduced_by_the_95_percent_interval_outside_of_delta():
    assert verdict(judge_alike, [4, 5, 6], delta=2.5) == NOT_REPRODUCED
    assert verdict(judge_alike, [-4, -5, -6], delta=2.5) == NOT_REPRODUCED
    assert verdict(judge_alike, [4, 5, 6], delta=3) == INCONCLUSIVE  # the 90 % interval is outside
    assert "95 % interval 2.52 to 7.48" in judge_alike([4, 5, 6], delta=2.5).evidence


def test_no_difference_found_is_not_yet_alike():
    finding = judge_alike([-3, 0, 3], delta=1)
    assert finding.verdict == INCONCLUSIVE
    assert "neither clearly within nor outside of ±1 points" in finding.evidence


def test_no_larger_asks_for_an_interval_above_minus_delta():
    assert verdict(judge_no_larger, [-0.5, 0, 0.5], delta=1.3) == REPRODUCED
    assert verdict(judge_no_larger, [-0.5, 0, 0.5], delta=1.2) == INCONCLUSIVE
    assert verdict(judge_no_larger, [-3.5, -3, -2.5], delta=1.2) == NOT_REPRODUCED
    assert judge_no_larger([9, 9, 9], delta=1).evidence.endswith("above -1 points")


@every_rule
def test_equal_differences_are_judged_by_their_value(rule):
    expected = {
        judge_better: [NOT_REPRODUCED, NOT_REPRODUCED, REPRODUCED, REPRODUCED],
        judge_alike: [NOT_REPRODUCED, REPRODUCED, REPRODUCED, NOT_REPRODUCED],
        judge_no_larger: [NOT_REPRODUCED, REPRODUCED, REPRODUCED, REPRODUCED],
    }
    found = [verdict(rule, [value] * 3, delta=0.1) for value in (-0.3, 0.0, 0.05, 0.3)]
    assert found == expected[rule]


def test_a_difference_of_exactly_delta_is_not_alike():
    assert verdict(judge_alike, [0.1] * 3, delta=0.1) == INCONCLUSIVE


@every_rule
def test_without_a_trained_pair_nothing_is_known(rule):
    assert rule([], delta=1, noise=1) == Finding(INCONCLUSIVE, "no trained pair")


@every_rule
@pytest.mark.parametrize("pairs", [1, 2])
def test_one_pair_or_two_without_known_noise_decide_nothing(rule, pairs):
    finding = rule([50] * pairs, delta=1)
    assert finding.verdict == INCONCLUSIVE
    assert f"n = {pairs}: how much seeds vary is not known" in finding.evidence


@every_rule
@fewer
@given(mean=st.integers(-20, 20), apart=st.integers(0, 20), noise=st.sampled_from([0.1, 1, 3]))
def test_two_pairs_speak_as_one_of_their_mean_with_less_noise(rule, mean, apart, noise):
    """However far apart they are: the deviation of two tells nothing."""
    two = rule([mean - apart, mean + apart], delta=5, noise=noise)
    one = rule([mean], delta=5, noise=noise / 2**0.5)
    assert two.verdict == one.verdict
    assert "n = 2, " in two.evidence
    assert "(± 2.12 seed deviations of small nets)" in two.evidence


@pytest.mark.parametrize(
    ("rule", "difference", "expected"),
    [
        (judge_better, 3.1, REPRODUCED),
        (judge_better, 3.0, INCONCLUSIVE),
        (judge_better, -3.0, INCONCLUSIVE),  # with more seeds, an interval below delta refutes
        (judge_better, -3.1, NOT_REPRODUCED),
        (judge_alike, 0.0, INCONCLUSIVE),
        (judge_alike, 8.0, INCONCLUSIVE),
        (judge_alike, 8.1, NOT_REPRODUCED),
        (judge_alike, -8.1, NOT_REPRODUCED),
        (judge_no_larger, -1.9, REPRODUCED),
        (judge_no_larger, -2.0, INCONCLUSIVE),
        (judge_no_larger, -8.0, INCONCLUSIVE),
        (judge_no_larger, -8.1, NOT_REPRODUCED),
    ],
)
def test_a_single_pair_speaks_beyond_three_seed_deviations(rule, difference, expected):
    finding = rule([difference], delta=5, noise=1)
    assert finding.verdict == expected
    assert "n = 1, " in finding.evidence
    assert "(± 3 seed deviations of small nets)" in finding.evidence


@pytest.mark.parametrize("rule", [judge_better, judge_alike])
@fewer
@given(differences=samples, noise=noises)
def test_images_are_told_and_decide_nothing(rule, differences, noise):
    without = rule(differences, delta=1, noise=noise)
    told = rule(differences, delta=1, noise=noise, images="over images: 3 points")
    assert told == Finding(without.verdict, f"{without.evidence}; over images: 3 points")


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_difference_that_is_not_finite_is_named(rule, bad):
    with pytest.raises(ValueError, match=rf"differences must be finite, not {bad} in \[1.0, {bad}"):
        rule([1.0, bad, 2.0], delta=1)


@every_rule
@pytest.mark.parametrize("how", [{"delta": -0.1}, {"delta": 1, "noise": -0.1}, {"delta": math.nan}])
def test_delta_and_noise_are_sizes(rule, how):
    with pytest.raises(ValueError, match="delta and noise must be"):
        rule([1.0, 2.0, 3.0], **how)


# What holds for any differences


@pytest.mark.parametrize("rule", [judge_better, judge_no_larger])
@fewer
@given(differences=samples, shift=sizes, delta=sizes, noise=noises)
def test_a_larger_effect_never_gets_a_worse_verdict(rule, differences, shift, delta, noise):
    judge = partial(verdict, rule, delta=delta, noise=noise)
    shifted = [value + shift for value in differences]
    assert ORDER.index(judge(differences)) <= ORDER.index(judge(shifted))


@fewer
@given(differences=samples, shift=sizes, delta=sizes, noise=noises)
def test_moving_away_from_0_never_makes_nets_more_alike(differences, shift, delta, noise):
    assume(sum(differences) >= 0)
    judge = partial(verdict, judge_alike, delta=delta, noise=noise)
    shifted = [value + shift for value in differences]
    assert ORDER.index(judge(differences)) >= ORDER.index(judge(shifted))


@fewer
@given(differences=samples, delta=sizes, wider=sizes, noise=noises)
def test_a_wider_margin_never_makes_nets_less_alike(differences, delta, wider, noise):
    for rule in (judge_alike, judge_no_larger):
        found = [verdict(rule, differences, delta=d, noise=noise) for d in (delta, delta + wider)]
        assert ORDER.index(found[0]) <= ORDER.index(found[1])


@fewer
@given(differences=samples, delta=sizes, noise=noises)
def test_alike_does_not_mind_which_arm_is_first(differences, delta, noise):
    judge = partial(verdict, judge_alike, delta=delta, noise=noise)
    assert judge(differences) == judge([-value for value in differences])


@fewer
@given(differences=samples, delta=sizes, noise=noises)
def test_what_is_better_one_way_is_refuted_the_other_way(differences, delta, noise):
    judge = partial(verdict, judge_better, delta=delta, noise=noise)
    if judge(differences) == REPRODUCED:
        assert judge([-value for value in differences]) == NOT_REPRODUCED


@fewer
@given(differences=samples, delta=sizes, noise=noises, random=st.randoms())
def test_the_order_of_the_seeds_changes_nothing(differences, delta, noise, random):
    mixed = random.sample(differences, len(differences))
    for rule in RULES:
        assert rule(differences, delta=delta, noise=noise) == rule(mixed, delta=delta, noise=noise)


@fewer
@given(st.lists(eighths, min_size=3, max_size=6), sizes)
def test_the_rules_are_scipys_one_sided_tests(differences, delta):
    assume(len(set(differences)) > 1)

    def p(bound, side):
        return stats.ttest_1samp(differences, bound, alternative=side).pvalue

    better = p(0, "greater") < 0.025
    alike = max(p(-delta, "greater"), p(delta, "less")) < 0.05
    no_larger = p(-delta, "greater") < 0.025
    found = [verdict(rule, differences, delta=delta) == REPRODUCED for rule in RULES]
    assert found == [better, alike, no_larger]


# How often the rules are wrong, and how often they find what is there


@few_and_more_seeds
def test_no_difference_is_rarely_called_better(seeds):
    found = shares(judge_better, draw(seeds, mean=0, deviation=1), delta=0.5)
    assert found[REPRODUCED] <= 0.05


@few_and_more_seeds
def test_an_effect_of_delta_is_rarely_refuted(seeds):
    found = shares(judge_better, draw(seeds, mean=0.5, deviation=0.3), delta=0.5)
    assert found[NOT_REPRODUCED] <= 0.05


@few_and_more_seeds
@pytest.mark.parametrize("deviation", [0.1, 1.0])
def test_a_difference_of_delta_is_rarely_called_alike_or_refuted(seeds, deviation):
    found = shares(judge_alike, draw(seeds, mean=1, deviation=deviation), delta=1)
    assert found[REPRODUCED] <= FIVE_PERCENT  # exactly 5 % where seeds hardly vary
    assert found[NOT_REPRODUCED] <= 0.05


@few_and_more_seeds
def test_what_is_larger_by_delta_is_rarely_called_no_larger_or_refuted(seeds):
    found = shares(judge_no_larger, draw(seeds, mean=-1, deviation=0.5), delta=1)
    assert found[REPRODUCED] <= 0.05
    assert found[NOT_REPRODUCED] <= 0.05


@pytest.mark.parametrize(
    ("rule", "true_difference"), [(judge_better, 0.0), (judge_no_larger, -1.0)]
)
@pytest.mark.parametrize("pairs", [1, 2])
def test_one_pair_or_two_are_rarely_wrong_with_the_noise_of_a_pool(rule, true_difference, pairs):
    rng, deviation, wrong = np.random.default_rng(0), 0.7, 0
    for _ in range(TRIALS):
        pool = [rng.normal(arm, deviation, size=n).tolist() for arm, n in enumerate(POOL)]
        differences = true_difference + rng.normal(0, deviation, size=(pairs, 2)) @ [1, -1]
        finding = rule(differences.tolist(), delta=1, noise=pooled_deviation(pool))
        wrong += finding.verdict == REPRODUCED
    assert wrong / TRIALS <= 0.05


def test_a_claim_with_one_false_part_is_rarely_reproduced():
    rows = [draw(3, mean=mean, deviation=1, seed=mean) for mean in (0, 9)]
    judge = partial(judge_better, delta=0.5)
    claims = [all_of({"false": judge(f), "true": judge(t)}) for f, t in zip(*rows, strict=True)]
    assert np.mean([claim.verdict == REPRODUCED for claim in claims]) <= 0.05


@pytest.mark.parametrize(
    ("rule", "true_difference"), [(judge_better, 1.0), (judge_alike, 0.0), (judge_no_larger, 0.0)]
)
def test_what_is_clearly_there_is_found(rule, true_difference):
    three = draw(3, mean=true_difference, deviation=0.2)
    five = draw(5, mean=true_difference, deviation=0.4)
    assert shares(rule, three[:300], delta=1)[REPRODUCED] > 0.9
    assert shares(rule, five[:300], delta=1)[REPRODUCED] > 0.9


# Claims of several parts, and runs that did not converge


def part(verdict):
    return Finding(verdict, f"evidence of {verdict}")


@fewer
@given(st.lists(st.sampled_from(ORDER), min_size=1, max_size=4))
def test_a_claim_is_as_good_as_its_worst_part(verdicts):
    finding = all_of({f"part {n}": part(v) for n, v in enumerate(verdicts)})
    assert finding.verdict == min(verdicts, key=ORDER.index)


def test_each_part_is_named_with_its_evidence_those_that_decide_first():
    finding = all_of({"depth 22": part(REPRODUCED), "depth 30": part(INCONCLUSIVE)})
    assert finding.evidence == (
        "depth 30: evidence of inconclusive; depth 22: evidence of reproduced"
    )


def test_a_claim_without_parts_is_not_reproduced_by_default():
    assert all_of({}) == Finding(INCONCLUSIVE, "no part was judged")


@pytest.mark.parametrize("found", ORDER)
def test_where_all_runs_converged_the_finding_stands(found):
    statuses = {"small14-relu-he-s0": "converged", "small14-prelu-he-s0": "converged"}
    assert unless_stalled(part(found), statuses) == part(found)


@pytest.mark.parametrize("found", ORDER)
def test_runs_that_stalled_or_diverged_are_named_and_nothing_is_claimed(found):
    statuses = {"a-s0": "converged", "b-s0": "stalled", "c-s0": "diverged"}
    finding = unless_stalled(part(found), statuses)
    assert finding.verdict == INCONCLUSIVE
    assert "b-s0 stalled, c-s0 diverged" in finding.evidence
    assert "a-s0" not in finding.evidence
    assert f"evidence of {found}" in finding.evidence


# Deviations and ranks


def test_the_pooled_deviation_weighs_arms_by_their_degrees_of_freedom():
    # Squares about the arms' own means: 2 with 1 degree of freedom, 2 with 2; 7 tells nothing.
    assert pooled_deviation([[1, 3], [11, 12, 13], [7]]) == pytest.approx(math.sqrt(4 / 3))


@fewer
@given(st.lists(st.lists(eighths, max_size=5), max_size=4), eighths)
def test_the_pooled_deviation_minds_no_difference_between_arms(groups, shift):
    moved = [[value + n * shift for value in group] for n, group in enumerate(groups)]
    assert pooled_deviation(moved) == pooled_deviation(groups)


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], [2.0]]])
def test_without_two_nets_of_an_arm_the_deviation_is_not_known(groups):
    assert pooled_deviation(groups) is None


def test_the_rank_correlation_sees_order_alone():
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [3, 2, 1, 0.5]) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with ranks 1 2 3 against 2 1 3
    assert rank_correlation([1, 2, 3], [20, 10, 30]) == pytest.approx(0.5)


@pytest.mark.parametrize("x", [[], [1], [2, 2, 2]])
def test_ranks_of_equal_values_are_refused(x):
    with pytest.raises(ValueError, match="two different values"):
        rank_correlation(x, list(range(len(x))))


# Two nets on the same images


def hits(*, won, lost, both=0, neither=0):
    """Hits of two nets: `won` images right by A alone, `lost` by B alone."""
    a = [True] * won + [False] * lost + [True] * both + [False] * neither
    b = [False] * won + [True] * lost + [True] * both + [False] * neither
    return np.array(a), np.array(b)


def numbers_of(text):
    found = re.fullmatch(
        r"over images \(these two nets only\): (\S+) points, "
        r"95 % (\S+) to (\S+) \(bootstrap\), McNemar p = (\S+)",
        text,
    )
    return [float(x) for x in found.groups()]


@fewer
@given(st.integers(0, 5), st.integers(0, 5))
def test_mcnemar_is_the_share_of_all_ways_the_images_could_have_fallen(won, lost):
    ways = [sum(way) for way in itertools.product([1, -1], repeat=won + lost)]
    share = np.mean([abs(way) >= abs(won - lost) for way in ways])
    assert mcnemar(won, lost) == pytest.approx(share)


@pytest.mark.parametrize(("won", "lost"), [(30, 12), (5, 60), (20, 20), (3, 0)])
def test_the_bootstrap_is_that_of_images_drawn_one_by_one(won, lost):
    a, b = hits(won=won, lost=lost, both=150, neither=200 - won - lost)
    picks = np.random.default_rng(1).integers(a.size, size=(5000, a.size))
    points = 100 * (a[picks].mean(axis=1) - b[picks].mean(axis=1))
    slow = np.quantile(points, [0.025, 0.975])
    fast = bootstrap_points(won, lost, images=a.size, seed=0)
    assert np.abs(np.array(fast) - slow).max() <= 1.5 * 100 / a.size  # an image and a half


def test_the_difference_over_images_is_positive_where_the_first_errs_less():
    a, b = hits(won=60, lost=38, both=300, neither=602)
    points, low, high, p = numbers_of(compare_images(a, b))
    assert points == 2.2
    assert 0 < low < points < high
    assert p == pytest.approx(mcnemar(60, 38), rel=0.01)
    mirrored = numbers_of(compare_images(b, a))
    assert (mirrored[0], mirrored[3]) == (-points, p)
    assert mirrored[1] < mirrored[2] < 0


def test_the_comparison_of_images_is_the_same_text_every_time():
    a, b = hits(won=400, lost=300, both=40_000, neither=9_300)
    text = compare_images(a, b)
    assert text == compare_images(a, b) == compare_images(a.tolist(), b.tolist())
    told = "over images (these two nets only): 0.2 points, 95 % "
    assert text.startswith(told)


def test_nets_that_agree_on_every_image_differ_by_nothing():
    a, b = hits(won=0, lost=0, both=5, neither=5)
    assert compare_images(a, b, of="both") == (
        "over images (both only): 0 points, 95 % 0 to 0 (bootstrap), McNemar p = 1"
    )


def test_a_tiny_chance_is_told_as_a_limit():
    assert compare_images(*hits(won=100, lost=0)).endswith("McNemar p < 0.0001")
    assert compare_images(*hits(won=12, lost=0)).endswith("McNemar p = 0.000488")  # 2^-11


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], [])])
def test_hits_must_be_of_the_same_images(a, b):
    with pytest.raises(ValueError, match="same images"):
        compare_images(a, b)


# Numbers as they are told


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2 / 3, "0.667"),
        (-12.345, "-12.3"),
        (1234.5, "1230"),
        (-0.0, "0"),
        (30.2 - 30.1 - 0.1, "0"),
        (5.0, "5"),
        (0.000123456, "0.000123"),
    ],
)
def test_numbers_have_three_significant_places(value, text):
    assert number(value) == text


def test_draws_that_obey_eq_9_are_found_to():
    """Of log-normal ratios whose mean is 1, the mean of logarithms lies far below 0."""
    rng, layers, deviation = np.random.default_rng(0), 10, 1.4  # of all layers, in bits
    low = -math.log(2) / 2 * deviation**2
    draws = (low + deviation * rng.standard_normal((4000, 20))) / layers
    means = np.array([np.mean(of_log_normal(row.tolist(), layers)) for row in draws])
    assert draws.mean() == pytest.approx(low / layers, abs=0.002)
    assert means.mean() == pytest.approx(0, abs=0.002)
    intervals = [mean_interval(of_log_normal(row.tolist(), layers), 0.9) for row in draws[:1000]]
    assert np.mean([i.low < 0 < i.high for i in intervals]) == pytest.approx(0.9, abs=0.04)


def test_equal_draws_need_no_correction():
    assert of_log_normal([0.25] * 5, 9) == [0.25] * 5
