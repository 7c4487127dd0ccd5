"""A training batch: which regions, their targets, and in which image."""

from dataclasses import replace

import numpy as np
import pytest
import slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenery import split_of

from delving.config import compose_detect
from delving.detect.boxes import decode, mirror
from delving.detect.metric import overlaps_of
from delving.detect.proposals import grid_windows
from delving.detect.sample import (
    Batches,
    Candidates,
    Sizing,
    choose_rois,
    list_candidates,
    resize,
    scale_boxes,
    shift_statistics,
    useful_images,
)

many = settings(max_examples=50)
SPLIT = split_of(
    ((60, 40), [(0, (10, 5, 30, 25)), (1, (35, 5, 55, 25), True)]),
    ((40, 62), [(2, (5, 30, 25, 50)), (0, (20, 5, 38, 20))]),
    ((44, 44), []),
    ((45, 45), [(1, (4, 4, 40, 40), True)]),
)
PROPOSALS = [grid_windows(size).astype(np.float32) for size in SPLIT.sizes]
CANDIDATES = list_candidates(SPLIT, PROPOSALS)
STATISTICS = shift_statistics(CANDIDATES)
SIZING = Sizing(side=60, longest=84)


def candidates_of(objects, *proposals):
    """The candidates of one image of 100 x 100."""
    split = split_of(((100, 100), objects))
    return list_candidates(split, [np.array(proposals, np.float32).reshape(-1, 4)])[0]


# --- labels ---
def test_an_overlap_of_one_half_makes_foreground_and_of_a_tenth_background():
    """Overlaps of 100, 50, 49.9, 10, 9.9 and 0 of 100 pixels."""
    one = candidates_of([(1, (0, 0, 10, 10))], (0, 0, 10, 10), (0, 0, 10, 5), (0, 0, 10, 4.99),
                        (0, 0, 10, 1), (0, 0, 10, 0.99), (50, 50, 60, 60))  # fmt: skip
    assert one.labels.tolist() == [2, 2, 2, 0, 0, 0, 0]  # the first is the object itself
    assert one.foreground.tolist() == [0, 1, 2]
    assert one.background.tolist() == [3, 4]
    assert one.overlap.tolist() == pytest.approx([1, 1, 0.5, 0.499, 0.1, 0.099, 0])


def test_a_proposal_is_of_the_object_that_it_overlaps_most():
    near, far = (0, (0, 0, 10, 10)), (2, (4, 0, 14, 10))
    one = candidates_of([near, far], (3, 0, 13, 10), (1, 0, 11, 10))
    assert one.labels.tolist() == [1, 3, 3, 1]
    assert one.shifts[2].tolist() == pytest.approx(slow.encode((3, 0, 13, 10), far[1]))
    assert one.shifts[3].tolist() == pytest.approx(slow.encode((1, 0, 11, 10), near[1]))


def test_own_objects_are_candidates_without_a_shift():
    one = CANDIDATES[1]
    assert one.boxes[:2].tolist() == SPLIT.objects[1].boxes.tolist()
    assert one.boxes[2:].tolist() == PROPOSALS[1].tolist()
    assert (one.labels[:2].tolist(), one.overlap[:2].tolist()) == ([3, 1], [1, 1])
    assert not one.shifts[:2].any()


def test_difficult_objects_are_not_trained_on():
    """They serve neither as objects nor as background."""
    hard = (1, (50, 50, 60, 60), True)
    one = candidates_of([(0, (0, 0, 10, 10)), hard], (50, 50, 60, 60), (50, 50, 60, 58))
    assert one.boxes[0].tolist() == [0, 0, 10, 10]
    assert one.labels.tolist() == [1, 0, 0]
    assert one.background.tolist() == []
    for number in (2, 3):  # without objects, and with only a difficult one
        one = CANDIDATES[number]
        assert len(one.boxes) == len(PROPOSALS[number])
        assert not len(one.foreground) + len(one.background)


def test_labels_and_shifts_are_those_of_a_slow_search():
    for number in (0, 1):
        objects, one = SPLIT.objects[number], CANDIDATES[number]
        rows = zip(objects.boxes, objects.labels, objects.difficult, strict=True)
        easy = [(box, label) for box, label, hard in rows if not hard]
        for n, box in enumerate(one.boxes):
            overlaps = [slow.overlap(box, there) for there, _ in easy]
            best = int(np.argmax(overlaps))
            assert one.overlap[n] == pytest.approx(overlaps[best], abs=1e-12)
            assert one.labels[n] == (1 + easy[best][1] if overlaps[best] >= 0.5 else 0)
            assert one.shifts[n] == pytest.approx(slow.encode(box, easy[best][0]))


# --- which images, which statistics ---
def test_images_with_an_object_are_of_use_and_without_any_there_is_no_training():
    assert useful_images(CANDIDATES).tolist() == [0, 1]
    with pytest.raises(ValueError, match="no training image has an object"):
        useful_images(CANDIDATES[2:])
    with pytest.raises(ValueError, match="no training image has an object"):
        useful_images([])


def test_normalised_shifts_have_no_mean_and_a_deviation_of_one(drawn):
    split = drawn[0]
    found = list_candidates(split, [grid_windows(size) for size in split.sizes])
    mean, std = shift_statistics(found)
    shifts = np.concatenate([one.shifts[one.labels > 0] for one in found])
    normalised = (shifts - mean) / std
    assert len(shifts) > 200
    assert normalised.mean(0) == pytest.approx(np.zeros(4), abs=1e-9)
    assert normalised.std(0) == pytest.approx(np.ones(4), abs=1e-9)


def test_statistics_of_nothing_or_of_equal_shifts_divide_by_something():
    assert [s.tolist() for s in shift_statistics(CANDIDATES[2:])] == [[0] * 4, [1] * 4]
    mean, std = shift_statistics([candidates_of([(0, (0, 0, 10, 10))])])  # only the object itself
    assert mean.tolist() == [0] * 4
    assert (std > 0).all()


# --- regions ---
@many
@given(st.lists(st.sampled_from([0.0, 0.09, 0.1, 0.3, 0.49, 0.5, 0.7, 1.0]), max_size=60),
       st.integers(0, 16), st.integers(0, 2**32))  # fmt: skip
def test_at_most_a_quarter_is_foreground_and_the_rest_background(overlaps, quarter, seed):
    overlap = np.array(overlaps)
    none = np.zeros((len(overlap), 4))
    one = Candidates(none, (overlap >= 0.5).astype(np.int64), none, overlap)
    chosen = choose_rois(one, 4 * quarter, 0.25, np.random.default_rng(seed))
    objects = int((overlap[chosen] >= 0.5).sum())
    assert len(set(chosen.tolist())) == len(chosen)
    assert (overlap[chosen] >= 0.1).all()
    assert objects == min(quarter, (overlap >= 0.5).sum())
    around = ((overlap >= 0.1) & (overlap < 0.5)).sum()
    assert len(chosen) == objects + min(4 * quarter - objects, around)


@pytest.mark.parametrize(("count", "share"), [(1, 0.25), (2, 0.2), (5, 0.0)])
def test_where_there_is_no_background_one_region_is_chosen_at_least(count, share):
    """A usable image must not make an empty batch, even if its share is less than one."""
    overlap = np.array([0.6, 0.7, 0.0, 0.3])
    for kept, wanted in (([0, 1, 2], {0, 1}), ([0, 1, 2, 3], {3})):
        none = np.zeros((len(kept), 4))
        one = Candidates(none, np.zeros(len(kept), np.int64), none, overlap[kept])
        chosen = choose_rois(one, count, share, np.random.default_rng(0))
        assert len(chosen) == 1
        assert set(chosen.tolist()) <= wanted


def test_every_region_is_chosen_some_time():
    overlap = np.array([0.6] * 10 + [0.3] * 30 + [0.0] * 5)
    one = Candidates(np.zeros((45, 4)), np.zeros(45, np.int64), np.zeros((45, 4)), overlap)
    rng = np.random.default_rng(0)
    counts = np.zeros(45)
    for _ in range(400):
        counts[choose_rois(one, 16, 0.25, rng)] += 1
    assert counts.sum() == 400 * 16
    np.testing.assert_allclose(counts[:10], 400 * 4 / 10, rtol=0.3)
    np.testing.assert_allclose(counts[10:40], 400 * 12 / 30, rtol=0.3)


# --- batches ---
def batches(seed=0, rois=32, images=2):
    return Batches(SPLIT, CANDIDATES, useful_images(CANDIDATES), SIZING, STATISTICS, images, rois,
                   0.25, seed)  # fmt: skip


def bytes_of(batch):
    return [[part.numpy().tobytes() for part in sample] for sample in batch]


def test_a_batch_follows_from_the_seed_and_the_step_alone():
    one, other = batches(), batches()
    forth = [bytes_of(one[step]) for step in range(4)]
    back = [bytes_of(other[step]) for step in reversed(range(4))][::-1]
    np.random.default_rng().random()
    assert forth == back
    assert len({str(batch) for batch in forth}) == 4
    assert bytes_of(batches(seed=1)[0]) != forth[0]


def test_shapes_and_types_are_as_said():
    for sample in batches()[0]:
        count = len(sample.rois)
        assert 4 <= count <= 16
        assert sample.pixels.shape[0] == 1
        assert sample.pixels.shape[3] == 3
        assert sample.pixels.dtype == torch.uint8
        assert (sample.rois.shape, sample.rois.dtype) == ((count, 4), torch.float32)
        assert (sample.labels.shape, sample.labels.dtype) == ((count,), torch.int64)
        assert (sample.shifts.shape, sample.shifts.dtype) == ((count, 4), torch.float32)
        assert 1 <= (sample.labels > 0).sum() <= 4


def views():
    """{(image, flipped): pixels} of the usable images."""
    return {(number, flip): resize(SPLIT.load(number), SIZING, flip=flip)
            for number in (0, 1) for flip in (False, True)}  # fmt: skip


def test_pixels_regions_and_targets_are_mirrored_together():
    """Back in the image's own pixels, every region is a candidate or a mirrored one, and its shifts
    lead to the candidate's object or to that object mirrored."""
    whole, seen = views(), set()
    for step in range(8):
        for sample in batches()[step]:
            number, flip = next(key for key, pixels in whole.items()
                                if pixels.shape == sample.pixels.shape
                                and torch.equal(pixels, sample.pixels))  # fmt: skip
            seen.add((number, flip))
            size, one, objects = SPLIT.sizes[number], CANDIDATES[number], SPLIT.objects[number]
            scaled = (sample.pixels.shape[2], sample.pixels.shape[1])
            shifts = sample.shifts.double() * torch.from_numpy(STATISTICS[1])
            moved = decode(sample.rois.double(), shifts + torch.from_numpy(STATISTICS[0]))
            rois, moved = (scale_boxes(b.double(), scaled, size) for b in (sample.rois, moved))
            if flip:
                # normalised after mirroring: the mean applies to the mirrored shifts
                rois, moved = mirror(rois, size[0]), mirror(moved, size[0])
            far = np.abs(one.boxes[:, None] - rois.numpy()[None]).max(-1)
            assert (far.min(0) < 1e-3).all()
            assert one.labels[far.argmin(0)].tolist() == sample.labels.tolist()
            for label, box in zip(sample.labels.tolist(), moved, strict=True):
                near = objects.boxes[(objects.labels == label - 1) & ~objects.difficult]
                assert not label or np.abs(near - box.numpy()).max(1).min() < 1e-2
    assert seen == set(whole)


def test_every_image_of_use_comes_once_an_epoch():
    whole = views()
    for step in range(4):
        shapes = {tuple(sample.pixels.shape) for sample in batches()[step]}
        assert shapes == {tuple(pixels.shape) for pixels in whole.values()}


def test_of_an_image_that_comes_twice_in_a_batch_the_draws_are_two():
    one = replace(batches(images=4, rois=64), useful=np.array([0]))
    assert len({str(bytes_of([sample])) for sample in one[0]}) == 4


def test_an_object_without_a_proposal_near_it_is_a_region_all_the_same():
    split = split_of(((100, 100), [(0, (0, 0, 10, 10))]))
    found = list_candidates(split, [np.array([[0, 0, 10, 4], [60, 60, 99, 99]], np.float32)])
    assert overlaps_of(found[0].boxes, split.objects[0].boxes).ravel().tolist() == [1, 0.4, 0]
    batch = Batches(split, found, useful_images(found), SIZING, STATISTICS, 1, 8, 0.25, 0)[0]
    assert sorted(batch[0].labels.tolist()) == [0, 1]


@pytest.mark.parametrize("rois", [1, 2])
def test_settings_that_are_taken_give_every_batch_a_region(rois):
    """Without one the loss is 0 / 0, which would end the training as diverged."""
    try:
        compose_detect("smoke", [f"detect.rois={rois}", "detect.images=2"])
    except ValueError:
        return
    made = batches(rois=rois)
    assert all(sum(len(sample.rois) for sample in made[step]) for step in range(6))
