"""Boxes: shifts there and back, edges, mirrors; and the sizes of the images they lie in."""

import math

import numpy as np
import pytest
import slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenery import split_of

from delving.data.augment import RESAMPLING
from delving.detect.boxes import LARGEST, clip, decode, encode, mirror
from delving.detect.sample import Sizing, resize, scale_boxes

many = settings(max_examples=50)
starts = st.floats(-200, 800, allow_subnormal=False)
sides = st.floats(8, 400, allow_subnormal=False)  # factors up to 50: below decode's limit
boxes = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], starts, starts, sides, sides)
pairs = st.lists(st.tuples(boxes, boxes), max_size=5)
lengths = st.integers(1, 600)
wholes = st.lists(st.lists(st.integers(-50, 150), min_size=4, max_size=4), max_size=5)


def table(rows):
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


@many
@given(pairs)
def test_shifts_are_those_of_the_paper(rows):
    ours = encode(table([a for a, _ in rows]), table([b for _, b in rows]))
    assert ours.shape == (len(rows), 4)
    theirs = table([slow.encode(a, b) for a, b in rows])
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_shifts_worked_by_hand():
    """From (0, 0, 10, 20), its centre at (5, 10), to (10, 0, 30, 10), its centre at (20, 5): right
    by 15 of 10, up by 5 of 20, twice as wide, half as high."""
    shifts = encode(table([0, 0, 10, 20]), table([10, 0, 30, 10]))
    assert shifts[0].tolist() == pytest.approx([1.5, -0.25, math.log(2), -math.log(2)])


@many
@given(pairs)
def test_decoding_undoes_encoding(rows):
    first, second = table([a for a, _ in rows]), table([b for _, b in rows])
    torch.testing.assert_close(decode(first, encode(first, second)), second, rtol=1e-9, atol=1e-6)
    # The same for a box per class at once, as the detector has them.
    each = decode(first[:, None], encode(first, second)[:, None].expand(-1, 3, 4))
    torch.testing.assert_close(each, second[:, None].expand(-1, 3, 4), rtol=1e-9, atol=1e-6)


def test_no_shift_leaves_a_box_as_it_is():
    box = table([3, 4, 10, 30])
    assert decode(box, torch.zeros(1, 4).double()).tolist() == box.tolist()


def test_a_wild_factor_stays_finite():
    """60 as the logarithm of a factor would mean 10^26, and fp32 overflows from 89 on."""
    shifts = torch.tensor([[0.0, 0.0, 60.0, 1e30]])
    grown = decode(torch.tensor([[0.0, 0.0, 16.0, 16.0]]), shifts)
    assert grown[0].tolist() == pytest.approx([-492, -492, 508, 508])
    assert math.exp(LARGEST) == pytest.approx(1000 / 16)
    shrunk = decode(torch.tensor([[0.0, 0.0, 16.0, 16.0]]), -shifts)
    assert shrunk[0].tolist() == pytest.approx([8, 8, 8, 8])


@many
@given(wholes)
def test_clipped_boxes_lie_inside_the_image_and_inside_ones_stay(rows):
    given_ = table(rows)
    cut = clip(given_, (100, 60))
    wanted = [[min(max(v, 0), (100, 60)[i % 2]) for i, v in enumerate(row)] for row in rows]
    assert cut.tolist() == wanted
    assert clip(cut, (100, 60)).tolist() == cut.tolist()
    each = given_[:, None].expand(-1, 2, 4)  # (R, classes, 4)
    assert clip(each, (100, 60)).tolist() == [[row, row] for row in wanted]


def test_mirroring_worked_by_hand():
    assert mirror(table([0, 5, 30, 20]), 100).tolist() == [[70, 5, 100, 20]]


@many
@given(wholes, st.integers(1, 500))
def test_mirroring_twice_is_nothing(rows, width):
    assert mirror(mirror(table(rows), width), width).tolist() == rows


@many
@given(pairs, st.integers(1, 800))
def test_mirrored_boxes_have_mirrored_shifts(rows, width):
    first, second = table([a for a, _ in rows]), table([b for _, b in rows])
    there = encode(mirror(first, width), mirror(second, width))
    theirs = encode(first, second) * table([-1, 1, 1, 1])
    torch.testing.assert_close(there, theirs, rtol=1e-9, atol=1e-9)


# --- sizes ---
@many
@given(lengths, lengths, st.integers(7, 300), st.integers(0, 300))
def test_the_shorter_side_is_as_asked_unless_the_longer_one_would_be_too_long(
    width, height, side, more
):
    sizing = Sizing(side, side + more)
    small = sizing.size_of((width, height))
    assert min(small) >= 1
    assert max(small) <= sizing.longest
    if max(width, height) * side <= sizing.longest * min(width, height):
        assert min(small) == side
    else:
        assert max(small) == sizing.longest
        assert min(small) <= side
    short, long = sorted((width, height))
    assert abs(min(small) - max(small) * short / long) <= 1 + short / long  # same aspect
    assert sizing.size_of((height, width)) == small[::-1]


def test_fast_rcnns_own_sizes():
    assert Sizing(600, 1000).size_of((500, 375)) == (800, 600)
    assert Sizing(600, 1000).size_of((500, 281)) == (1000, 562)


@pytest.mark.parametrize("flip", [False, True])
def test_an_image_is_resized_then_mirrored(flip):
    image = split_of(((60, 40), [])).load(0)
    pixels = resize(image, Sizing(60, 84), flip=flip)
    wanted = np.asarray(image.resize((84, 56), RESAMPLING))
    assert pixels.dtype == torch.uint8
    assert np.array_equal(pixels.numpy(), (wanted[:, ::-1] if flip else wanted)[None])


def test_boxes_are_scaled_with_their_image():
    boxes = torch.tensor([[0.0, 0, 60, 40], [30, 10, 45, 20]], dtype=torch.float64)
    scaled = scale_boxes(boxes, (60, 40), (90, 20))
    assert scaled.dtype == torch.float32
    assert scaled.tolist() == [[0, 0, 90, 20], [45, 5, 67.5, 10]]
