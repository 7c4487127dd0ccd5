"""Losses, the learning rate, and what a detector reports as found."""

from contextlib import nullcontext

import numpy as np
import pytest
import slow
import torch
from composed import composed
from hypothesis import given, settings
from hypothesis import strategies as st
from scenery import NAMES, finds, split_of

from delving.build import build_model, materialise
from delving.config import compose_detect
from delving.data.input import blank_input
from delving.detect import score as module
from delving.detect.net import build_detector
from delving.detect.proposals import grid_windows
from delving.detect.sample import Sizing
from delving.detect.score import Judge, chance, joined, recall, score, suppress
from delving.detect.train import detection_loss, learning_rate

many = settings(max_examples=50)
LEAST, MOST = 0.01, 100


# --- of overlapping ones the best ---
def check_suppression(boxes, scores, overlap):
    table = torch.tensor(boxes, dtype=torch.float64).reshape(len(scores), -1, 4)
    ours = suppress(table, torch.tensor(scores, dtype=torch.float64), overlap)
    kept = slow.suppress(boxes, scores, overlap, least=LEAST, count=MOST)
    assert ours[2].tolist() == [label for label, _ in kept]
    assert ours[1].tolist() == [scores[n][label] for label, n in kept]
    assert ours[0].tolist() == [list(boxes[n][label]) for label, n in kept]
    return kept


starts, sides = st.integers(0, 8), st.integers(1, 8)
box = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), starts, starts, sides, sides)
sure = st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.3, 0.5, 0.7, 0.9])
judged = st.lists(st.tuples(st.tuples(box, box), st.tuples(sure, sure)), min_size=1, max_size=12)


@many
@given(judged, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_of_overlapping_detections_of_a_class_the_best_stays(rows, overlap):
    check_suppression([row[0] for row in rows], [row[1] for row in rows], overlap)


def test_suppression_worked_by_hand():
    """In class 0 the second box overlaps the first by 0.9, the third by 0.4; class 1 is separate,
    and a score of 0.009 is no detection."""
    boxes = [[(0, 0, 10, 10)] * 2, [(0, 0, 10, 9)] * 2, [(0, 0, 10, 4)] * 2, [(9, 9, 20, 20)] * 2]
    scores = [[0.5, 0.009], [0.8, 0.1], [0.3, 0.7], [0.1, 0.6]]
    assert check_suppression(boxes, scores, 0.3) == [(0, 1), (1, 2), (1, 3), (0, 3)]
    # At 0.45 class 0's third box stays beside (0, 0, 10, 9), 40 of whose 90 pixels it covers.
    assert (0, 2) in check_suppression(boxes, scores, 0.45)
    kept = check_suppression([[(0, 0, 10, 10)], [(0, 0, 10, 3)]], [[0.9], [0.8]], 0.3)
    assert kept == [(0, 0), (0, 1)]  # 0.3 is not above 0.3


def test_at_most_a_hundred_detections_stay_over_all_classes():
    apart = [[(20 * n, 0, 20 * n + 10, 10)] * 3 for n in range(60)]
    scores = np.random.default_rng(0).permutation(180).reshape(60, 3) / 200 + 0.02
    kept = check_suppression(apart, scores.tolist(), 0.3)
    assert len(kept) == MOST
    assert min(scores[n, label] for label, n in kept) == np.sort(scores.ravel())[-100]


def test_nothing_sure_enough_is_nothing():
    boxes, scores, labels = suppress(torch.zeros(3, 2, 4), torch.full((3, 2), 0.009), 0.3)
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))


# --- the loss ---
numbers = st.floats(-20, 20, allow_subnormal=False)
fours = st.lists(numbers, min_size=4, max_size=4)
rois = st.lists(
    st.tuples(st.lists(numbers, min_size=4, max_size=4), st.lists(fours, min_size=3, max_size=3),
              st.integers(0, 3), fours),
    min_size=1, max_size=6,
)  # fmt: skip


@many
@given(rois)
def test_the_loss_is_the_slow_one(rows):
    scores, shifts, labels, targets = zip(*rows, strict=True)
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (scores, shifts, targets)]
    ours = detection_loss(tensors[0], tensors[1], torch.tensor(labels), tensors[2])
    theirs = slow.detection_loss(scores, shifts, labels, targets)
    assert [part.item() for part in ours] == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_the_loss_worked_by_hand():
    """Two classes and background at equal scores: ln 3 each. One of four RoIs is of class 2, its
    shifts off by 0.5, 0, 3 and -2: a quarter of 1/8 + 0 + 5/2 + 3/2."""
    shifts = torch.zeros(4, 2, 4)
    shifts[2, 1] = torch.tensor([0.5, 0, 3, -2])
    shifts[2, 0] = shifts[0] = 9  # shifts of another class and of background do not count
    of_classes, of_boxes = detection_loss(torch.zeros(4, 3), shifts, torch.tensor([0, 0, 2, 0]),
                                          torch.zeros(4, 4))  # fmt: skip
    assert of_classes.item() == pytest.approx(np.log(3))
    assert of_boxes.item() == pytest.approx((1 / 8 + 5 / 2 + 3 / 2) / 4)


def test_background_alone_has_no_loss_of_boxes_but_a_gradient_of_classes():
    scores, shifts = torch.zeros(3, 3, requires_grad=True), torch.ones(3, 2, 4, requires_grad=True)
    targets = torch.full((3, 4), torch.nan)  # never read
    of_classes, of_boxes = detection_loss(
        scores, shifts, torch.zeros(3, dtype=torch.int64), targets
    )
    (of_classes + of_boxes).backward()
    assert of_boxes.item() == 0
    assert not shifts.grad.any()
    assert scores.grad.any()


def test_the_loss_of_half_precision_is_in_full():
    parts = detection_loss(torch.zeros(2, 3).bfloat16(), torch.zeros(2, 2, 4).bfloat16(),
                           torch.tensor([0, 1]), torch.zeros(2, 4))  # fmt: skip
    assert [part.dtype for part in parts] == [torch.float32] * 2


def test_the_rate_is_divided_by_ten_at_each_switch():
    fast = compose_detect("paper", [])
    rates = [learning_rate(fast, step) for step in (0, 29_999, 30_000, 39_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])  # Fast R-CNN's own
    twice = compose_detect("paper", ["detect.steps=10", "detect.switch=[0.5,0.8]"])
    rates = [learning_rate(twice, step) / twice.lr for step in range(10)]
    assert rates == pytest.approx([1] * 5 + [0.1] * 3 + [0.01] * 2)


# --- a detector that knows what it finds ---
STATISTICS = np.array([0.1, 0.0, 0.0, 0.2]), np.array([0.5, 1.0, 1.0, 0.1])
SPLIT = split_of(((60, 40), [(1, (10, 5, 30, 25))]), ((40, 60), []))


def judge(logits=(0.0, 2.0, -1.0, -9.0), shifts=(0, 0, 0, 0), overlap=0.3):
    """A Judge whose heads give every region these logits (background's first) and every class these
    normalised shifts."""
    config = composed(("scale=smoke", "model=small14", "act=prelu", "precision=fp32"))
    net = materialise(build_model(config, 4)[0], config, torch.device("cpu"))
    made = build_detector(net, classes=3, frozen=1, seed=0)
    with torch.no_grad():
        for head, bias in ((made.scores, logits), (made.shifts, [*shifts] * 3)):
            head.weight.zero_()
            head.bias.copy_(torch.tensor(bias))
    return Judge(made, blank_input(28), Sizing(60, 90), STATISTICS, overlap, nullcontext)


APART = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 12]], np.float32)


def test_regions_are_moved_by_the_shifts_of_their_class_and_cut_off_at_the_edges():
    """Un-normalised they are 0.1 + 0.5 * 0.4, 0, 0 and 0.2 - 0.1 * 2: right by 0.3 of a width."""
    found = judge(shifts=(0.4, 0, 0, -2)).find(SPLIT, 0, APART)
    assert found.image.tolist() == [0] * len(found)
    best = found.label == 0
    assert sorted(found.boxes[best].tolist()) == [
        pytest.approx(row, abs=1e-4)
        for row in ([3, 0, 13, 10], [26, 20, 46, 40], [53, 0, 60, 12])]  # fmt: skip
    softmax = np.exp([0.0, 2.0, -1.0, -9.0]) / np.exp([0.0, 2.0, -1.0, -9.0]).sum()
    assert found.score[best] == pytest.approx(softmax[1], rel=1e-5)
    assert found.score[found.label == 1] == pytest.approx(softmax[2], rel=1e-5)
    assert set(found.label.tolist()) == {0, 1}  # 0.00001 is less than 0.01
    assert found.score.tolist() == sorted(found.score.tolist(), reverse=True)


def test_no_proposal_finds_nothing():
    found = judge().find(SPLIT, 1, np.zeros((0, 4), np.float32))
    assert len(found) == 0
    assert (found.boxes.shape, found.label.dtype, found.score.dtype) == ((0, 4), "i8", "f4")
    whole = joined([found, judge().find(SPLIT, 0, APART), found])
    assert len(whole) == 6
    assert set(whole.image.tolist()) == {0}


def test_detections_are_of_the_image_that_was_looked_at():
    assert set(judge().find(SPLIT, 1, APART[:2]).image.tolist()) == {1}


def test_regions_are_judged_in_parts_as_at_once(monkeypatch):
    boxes = grid_windows((60, 40)).astype(np.float32)
    made = judge()
    with torch.no_grad():
        made.net.scores.weight.normal_(0, 1e-3, generator=torch.Generator().manual_seed(0))
    whole = made.find(SPLIT, 0, boxes)
    monkeypatch.setattr(module, "ROIS", 7)
    parts = made.find(SPLIT, 0, boxes)
    assert len(set(whole.score.tolist())) > 5
    assert parts.label.tolist() == whole.label.tolist()
    np.testing.assert_allclose(parts.score, whole.score, rtol=1e-5)
    np.testing.assert_allclose(parts.boxes, whole.boxes, atol=1e-3)


def test_what_is_judged_is_the_region_and_not_its_neighbour():
    """The image's halves differ: boxes score differently, but the same alone or in company."""
    made = judge()
    with torch.no_grad():
        made.net.scores.weight.normal_(0, 1e-3, generator=torch.Generator().manual_seed(0))
    alone = [made.find(SPLIT, 0, APART[n : n + 1]).score[0] for n in range(3)]
    assert len(set(alone)) == 3
    together = made.find(SPLIT, 0, APART)
    for value in alone:
        assert np.abs(together.score - value).min() < 1e-5


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(FloatingPointError, match="not finite"):
        judge(logits=(0.0, float("nan"), 0.0, 0.0)).find(SPLIT, 0, APART)


# --- summaries ---
def test_scores_are_told_by_class_and_none_without_objects():
    told = score(finds((0, 1, 0.9, (10, 5, 30, 25)), (0, 0, 0.9, (10, 5, 30, 25))), SPLIT)
    assert told == {name: {"map": 100.0, "ap": {"cat": None, "dog": 100.0, "cow": None}}
                    for name in ("voc07", "all_points")}  # fmt: skip
    empty = score(finds(), SPLIT.first(1))
    assert [one["map"] for one in empty.values()] == [0.0, 0.0]
    nothing = score(finds((0, 0, 0.9, (0, 0, 9, 9))), split_of(((60, 40), [])))
    assert nothing["voc07"] == {"map": None, "ap": dict.fromkeys(NAMES)}


def test_both_metrics_are_told():
    """One of two objects is found: 6 of 11 levels, half of the area."""
    split = split_of(((60, 40), [(0, (0, 0, 10, 10)), (0, (30, 0, 40, 10))]))
    told = score(finds((0, 0, 0.9, (0, 0, 10, 10))), split)
    assert told["voc07"]["map"] == pytest.approx(54.545)
    assert told["all_points"]["map"] == 50


def test_recall_is_told_in_percent_or_as_none():
    assert recall(SPLIT, [np.array([[10, 5, 30, 24]]), np.zeros((0, 4))]) == 100
    assert recall(SPLIT, [APART, APART]) == 0
    assert recall(split_of(((60, 40), [])), [APART]) is None


def test_chance_is_low_and_the_same_each_time(drawn):
    proposals = [grid_windows(size) for size in drawn[1].sizes]
    first = chance(drawn[1], proposals)
    np.random.default_rng().random()
    assert chance(drawn[1], proposals) == first
    assert 0 <= first < 10
    none = [np.zeros((0, 4), np.float32)] * len(proposals)
    assert chance(drawn[1], none) == 0


def test_chance_is_worked_out_by_one_metric_alone(drawn, monkeypatch):
    """On VOC's test images each takes as long as scoring a detector by it."""
    asked, real = [], module.average_precisions

    def watched(*given, points=11):
        asked.append(points)
        return real(*given, points=points)

    monkeypatch.setattr(module, "average_precisions", watched)
    assert chance(drawn[1], [grid_windows(size) for size in drawn[1].sizes]) > 0
    assert asked == [11]
