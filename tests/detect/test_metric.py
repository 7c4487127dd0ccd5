"""VOC's mean average precision: cases worked by hand, a slow reference, properties."""

import math

import numpy as np
import pytest
import slow
from hypothesis import given, settings
from hypothesis import strategies as st
from scenery import NAMES, annotation_xml, finds, object_xml, things

from delving.detect.metric import (
    Detections,
    average_precision,
    average_precisions,
    match,
    mean_of,
    overlaps_of,
    precision_and_recall,
    recall_of,
)
from delving.detect.voc import parse_annotation

many = settings(max_examples=60)
some = settings(many, max_examples=25)
BOX, ELSEWHERE = (0, 0, 10, 10), (50, 50, 60, 60)
HALF = (0, 0, 10, 5)  # 50 of BOX's 100 pixels and no others


def both(found, truth):
    """(11 points, all points) of class 0."""
    return [average_precisions(found, truth, 1, points=points)[0] for points in (11, None)]


# --- worked by hand ---
CASES = {
    "every object is found, nothing else": (
        [(0, 0, 0.9, BOX), (1, 0, 0.2, BOX)],
        [[(0, BOX)], [(0, BOX)]],
        (100, 100),
    ),
    # Precision 1 up to recall 1/2: at the levels 0, 0.1, ..., 0.5, so 6 of 11; half of the area.
    "one of two objects is found": (
        [(0, 0, 0.9, BOX)],
        [[(0, BOX), (0, ELSEWHERE)]],
        (600 / 11, 50),
    ),
    # Right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1. Levels 0 to 0.5 see 1, the
    # five above see 2/3; the area is 1/2 of 1 and 1/2 of 2/3.
    "a duplicate is wrong": (
        [(0, 0, 0.9, BOX), (0, 0, 0.8, BOX), (0, 0, 0.7, ELSEWHERE)],
        [[(0, BOX), (0, ELSEWHERE)]],
        (100 * (6 + 5 * 2 / 3) / 11, 100 * 5 / 6),
    ),
    # The surer of the two counts though it overlaps by less: precision 1 at recall 1.
    "of two detections of an object the surer is right": (
        [(0, 0, 0.8, BOX), (0, 0, 0.9, HALF)],
        [[(0, BOX)]],
        (100, 100),
    ),
    # The better of the two overlaps the taken first object most (0.9), the second by 0.66: it is
    # wrong. So one of two objects is found, at precision 1.
    "a detection is of the object that it overlaps most, taken or not": (
        [(0, 0, 0.9, BOX), (0, 0, 0.8, (0, 0, 10, 9))],
        [[(0, BOX), (0, (0, 0, 10, 6))]],
        (600 / 11, 50),
    ),
    # A detection that overlaps two objects equally belongs to the first.
    "of equal overlaps the first object counts": (
        [(0, 0, 0.9, BOX), (0, 0, 0.8, (0, 0, 10, 5))],
        [[(0, (0, 0, 10, 5)), (0, (0, 5, 10, 10))]],
        (600 / 11, 50),
    ),
    "an overlap of exactly one half counts": ([(0, 0, 0.9, HALF)], [[(0, BOX)]], (100, 100)),
    "an overlap of less does not": ([(0, 0, 0.9, (0, 0, 10, 4.99))], [[(0, BOX)]], (0, 0)),
    # Its detection is neither right nor wrong and it is not counted: 1 of 1 at precision 1.
    "a difficult object that is found does not count": (
        [(0, 0, 0.9, ELSEWHERE), (0, 0, 0.8, BOX)],
        [[(0, BOX), (0, ELSEWHERE, True)]],
        (100, 100),
    ),
    "nor does a second detection of it": (
        [(0, 0, 0.9, ELSEWHERE), (0, 0, 0.85, ELSEWHERE), (0, 0, 0.8, BOX)],
        [[(0, BOX), (0, ELSEWHERE, True)]],
        (100, 100),
    ),
    "a difficult object that is missed does not count": (
        [(0, 0, 0.8, BOX)],
        [[(0, BOX), (0, ELSEWHERE, True)]],
        (100, 100),
    ),
    # A detection that overlaps the difficult object by 0.9 and another by 0.66 is the former's.
    "a difficult object draws detections from an easy one": (
        [(0, 0, 0.9, (0, 0, 10, 9))],
        [[(0, BOX, True), (0, (0, 0, 10, 6))]],
        (0, 0),
    ),
    "only the difficult one of a class with an easy one is found": (
        [(0, 0, 0.9, ELSEWHERE)],
        [[(0, BOX), (0, ELSEWHERE, True)]],
        (0, 0),
    ),
    "another class's object and another image's are not hits": (
        [(0, 0, 0.9, ELSEWHERE), (1, 0, 0.8, BOX), (0, 0, 0.7, BOX)],
        [[(0, BOX), (1, ELSEWHERE)], []],
        (100 / 3, 100 / 3),  # the last of three is right, at recall 1: 1/3 throughout
    ),
    "nothing is found": ([], [[(0, BOX)]], (0, 0)),
    "only another class is found": ([(0, 1, 0.9, BOX)], [[(0, BOX)]], (0, 0)),
    # Equal scores keep their order: wrong before right is 1/2, right before wrong is 1.
    "of equal scores the wrong one first": (
        [(0, 0, 0.5, ELSEWHERE), (0, 0, 0.5, BOX)],
        [[(0, BOX)]],
        (50, 50),
    ),
    "of equal scores the right one first": (
        [(0, 0, 0.5, BOX), (0, 0, 0.5, ELSEWHERE)],
        [[(0, BOX)]],
        (100, 100),
    ),
    # Three of ten, all right: recall 0.3, so the levels 0, 0.1, 0.2 and 0.3 of eleven.
    "a recall on a level reaches it": (
        [(n, 0, 0.9, BOX) for n in range(3)],
        [[(0, BOX)] for _ in range(10)],
        (400 / 11, 30),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_average_precision_is_what_one_works_out_by_hand(case):
    found, truth, wanted = CASES[case]
    ours = both(finds(*found), [things(*rows) for rows in truth])
    assert ours == pytest.approx(wanted, abs=1e-9)
    rows = [[(*row, False)[:3] for row in image] for image in truth]
    theirs = [slow.average_precision(found, rows, 0, points=points) for points in (11, None)]
    assert theirs == pytest.approx(wanted, abs=1e-9)


def test_precision_and_recall_stand_after_each_detection():
    """Wrong, right, difficult, right, with three objects: the difficult one changes neither."""
    found = finds((0, 0, 0.9, (80, 80, 90, 90)), (0, 0, 0.7, ELSEWHERE), (0, 0, 0.6, BOX),
                  (0, 0, 0.8, (20, 20, 30, 30)))  # fmt: skip
    truth = things((0, BOX), (0, ELSEWHERE, True), (0, (20, 20, 30, 30)), (0, (70, 0, 80, 9)))
    precision, recall = precision_and_recall(found, [truth], 0)
    assert precision.tolist() == pytest.approx([0, 1 / 2, 1 / 2, 2 / 3])
    assert recall.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3])


def test_many_equal_scores_stand_in_their_order_too():
    """200 detections with two scores, a hundred objects: a third of the first 100 is right."""
    truth = [[(0, (20 * n, 0, 20 * n + 10, 10), False) for n in range(100)]]
    places = [(20 * n, 0 if n % 3 == 0 else 50) for n in range(200)]
    found = [(0, 0, 0.5 + 0.25 * (n % 2), (x, y, x + 10, y + 10))
             for n, (x, y) in enumerate(places)]  # fmt: skip
    for points in (11, None):
        ours = average_precisions(finds(*found), [things(*truth[0])], 1, points=points)
        theirs = slow.average_precision(found, truth, 0, points=points)
        assert ours == [pytest.approx(theirs, abs=1e-9)]
    backwards = average_precisions(finds(*found[::-1]), [things(*truth[0])], 1, points=None)
    assert abs(backwards[0] - theirs) > 0.1


def test_precision_is_the_best_at_each_recall_or_more():
    precision, recall = np.array([0.5, 0.9, 0.6]), np.array([0.2, 0.6, 1.0])
    # 0 to 0.6: 0.9 at seven levels; 0.7 to 1: 0.6 at four. By area: 0.6 of 0.9, 0.4 of 0.6.
    assert average_precision(precision, recall) == pytest.approx((7 * 0.9 + 4 * 0.6) / 11)
    assert average_precision(precision, recall, points=None) == pytest.approx(0.78)
    assert average_precision(precision, recall, points=3) == pytest.approx((0.9 + 0.9 + 0.6) / 3)


def test_a_class_without_objects_is_nan_and_no_part_of_the_mean():
    truth = [things((0, BOX), (2, ELSEWHERE, True))]
    found = finds((0, 0, 0.9, BOX), (0, 1, 0.9, BOX), (0, 2, 0.9, ELSEWHERE))
    for points in (11, None):
        each = average_precisions(found, truth, 4, points=points)
        assert each[0] == pytest.approx(100)
        assert all(math.isnan(p) for p in each[1:])  # class 2 has only a difficult object
        assert mean_of(each) == pytest.approx(100)
    assert mean_of([50.0, 0.0, math.nan]) == 25
    assert math.isnan(mean_of([math.nan, math.nan]))


def test_pixels_count_as_in_vocs_files():
    """In VOC's files (1, 1, 10, 5) is half of (1, 1, 10, 10): 50 of 100 pixels, not 36 of 81."""
    xml = annotation_xml((20, 20), object_xml("cat", (1, 1, 10, 10)))
    _, truth = parse_annotation(xml, NAMES)
    _, other = parse_annotation(xml.replace(b"<ymax>10", b"<ymax>5"), NAMES)
    assert both(finds((0, 0, 0.9, other.boxes[0])), [truth]) == pytest.approx([100, 100])
    _, less = parse_annotation(xml.replace(b"<ymax>10", b"<ymax>4"), NAMES)
    assert both(finds((0, 0, 0.9, less.boxes[0])), [truth]) == [0, 0]


# --- at random ---
starts, sides = st.integers(0, 6), st.integers(1, 6)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), starts, starts, sides, sides)
labels = st.integers(0, 2)
scenes = st.lists(st.lists(st.tuples(labels, boxes, st.sampled_from([False, False, True])),
                           max_size=4), min_size=1, max_size=3)  # fmt: skip


@st.composite
def searched(draw):
    """Images and what was found in them, often the exact box of an object, often equal scores."""
    truth = draw(scenes)
    known = [(n, label, box) for n, rows in enumerate(truth) for label, box, _ in rows]
    anywhere = st.tuples(st.integers(0, len(truth) - 1), labels, boxes)
    where = st.one_of(st.sampled_from(known), anywhere) if known else anywhere
    scores = st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0])
    found = draw(st.lists(st.tuples(where, scores), max_size=14))
    return truth, [(image, label, score, box) for (image, label, box), score in found]


def measured(truth, found, points):
    return average_precisions(finds(*found), [things(*rows) for rows in truth], 3, points=points)


@many
@given(searched())
def test_the_fast_metric_is_the_slow_one(case):
    truth, found = case
    for points in (11, None):
        theirs = [slow.average_precision(found, truth, label, points=points) for label in range(3)]
        assert measured(truth, found, points) == pytest.approx(theirs, abs=1e-9, nan_ok=True)


@some
@given(searched(), st.integers(0, 2))
def test_a_worst_detection_that_is_wrong_helps_nothing(case, label):
    truth, found = case
    worse = [*found, (0, label, 0.0625, (100, 100, 110, 110))]
    for points in (11, None):
        before, after = measured(truth, found, points), measured(truth, worse, points)
        for a, b in zip(before, after, strict=True):
            assert math.isnan(a) == math.isnan(b)
            assert not b > a + 1e-9
            assert math.isnan(a) or -1e-9 <= a <= 100 + 1e-9


@some
@given(searched(), st.randoms(use_true_random=False))
def test_neither_the_order_of_images_nor_that_of_detections_counts(case, random):
    truth, found = case
    found = [(image, label, 0.01 * n, box) for n, (image, label, _, box) in enumerate(found, 1)]
    order = random.sample(range(len(truth)), len(truth))  # the new image n is the old order[n]
    moved = [(order.index(image), *rest) for image, *rest in random.sample(found, len(found))]
    for points in (11, None):
        theirs = measured([truth[n] for n in order], moved, points)
        assert measured(truth, found, points) == pytest.approx(theirs, abs=1e-9, nan_ok=True)


@some
@given(searched())
def test_only_the_order_of_scores_counts(case):
    truth, found = case
    squared = [(image, label, 3 * score**2 - 5, box) for image, label, score, box in found]
    for points in (11, None):
        theirs = measured(truth, squared, points)
        assert measured(truth, found, points) == pytest.approx(theirs, abs=0, nan_ok=True)


def test_a_detection_without_area_finds_no_object_without_area():
    """Their intersection and union are both 0."""
    nothing = (5, 5, 5, 9)
    found, truth = finds((0, 0, 0.9, nothing)), [things((0, nothing), (0, BOX))]
    assert [flags.tolist() for flags in match(found, truth, 0)] == [[False], [True]]
    assert both(found, truth) == [0, 0]
    boxes = np.array([nothing, BOX], np.float32)
    assert overlaps_of(boxes, boxes).tolist() == [[0, 0], [0, 1]]


# --- what proposals reach ---
def test_recall_counts_easy_objects_that_a_proposal_of_their_image_overlaps_by_half():
    truth = [things((0, BOX), (1, ELSEWHERE), (2, (20, 20, 30, 30), True)), things((0, BOX))]
    first = np.array([HALF, (50, 50, 60, 54), (20, 20, 30, 30)], np.float32)
    assert recall_of([first, np.zeros((0, 4), np.float32)], truth) == pytest.approx(100 / 3)
    assert recall_of([first, first], truth) == pytest.approx(200 / 3)
    assert math.isnan(recall_of([first], [things((0, BOX, True))]))


def test_recall_counts_objects_not_proposals():
    many_of_one = np.array([BOX, BOX, HALF, (30, 30, 40, 40)], np.float32)
    assert recall_of([many_of_one], [things((0, BOX), (0, ELSEWHERE))]) == 50
    one_of_two = np.array([BOX], np.float32)
    assert recall_of([one_of_two], [things((0, BOX), (1, BOX))]) == 100


@some
@given(scenes)
def test_objects_themselves_as_proposals_reach_all_of_them(truth):
    truth = [things(*rows) for rows in truth]
    reached = recall_of([one.boxes for one in truth], truth)
    easy = any((~one.difficult).any() for one in truth)
    assert reached == (100 if easy else pytest.approx(math.nan, nan_ok=True))


def test_boxes_far_from_the_origin_are_told_apart_to_the_pixel():
    """In large pictures: half precision could represent only every other pixel."""
    box, narrower = (4001, 0, 4011, 10), (4001, 0, 4005.9, 10)
    assert both(finds((0, 0, 0.9, box)), [things((0, box))]) == [100, 100]
    assert both(finds((0, 0, 0.9, narrower)), [things((0, box))]) == [0, 0]


def test_the_metric_is_by_default_that_of_2007():
    found, truth = finds((0, 0, 0.9, BOX)), [things((0, BOX), (0, ELSEWHERE))]
    assert average_precisions(found, truth, 1) == average_precisions(found, truth, 1, points=11)
    assert average_precisions(found, truth, 1) == pytest.approx([600 / 11])


def test_detections_know_how_many_they_are():
    assert len(finds((0, 0, 0.5, BOX), (0, 1, 0.5, BOX))) == 2
    assert isinstance(finds(), Detections)
    assert len(finds()) == 0
