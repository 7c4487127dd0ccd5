"""Where objects might be: windows, segments, and files of both."""

import time
import warnings

import numpy as np
import pytest
import slow
from calling import silent
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scenery import jpeg, reader, split_of, voc_files

from delving.detect import proposals as module
from delving.detect.metric import recall_of
from delving.detect.proposals import (
    color_segments,
    grid_windows,
    load_proposals,
    pick_method,
    propose_windows,
)
from delving.detect.voc import load_split

many = settings(max_examples=30)
HAS_OPENCV = module._opencv() is not None
PICTURES = {"a": ((60, 40), [(0, (5, 5, 30, 30))]), "b": ((44, 50), []), "c": ((40, 40), [])}


def split_with(**changed):
    """A split of three images, some of whose files are changed."""
    files = voc_files(PICTURES) | {name.replace("_", "/") + ".jpg": data
                                   for name, data in changed.items()}  # fmt: skip
    return load_split(reader(files), "trainval", ("cat", "dog", "cow"))


def refuse_to_propose(*arguments):
    raise AssertionError("proposed again")


# --- windows and segments ---
@many
@given(st.integers(8, 160), st.integers(8, 160))
def test_windows_lie_inside_the_image_and_reach_its_edges(width, height):
    boxes = grid_windows((width, height))
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= (width, height)).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert boxes.min(0)[:2].tolist() == [0, 0]
    assert boxes.max(0)[2:].tolist() == [width, height]
    assert len(boxes) > 50


@many
@given(st.integers(20, 120), st.integers(20, 120), st.data())
def test_any_square_of_some_size_has_a_window_that_overlaps_it_by_about_half(width, height, data):
    side = data.draw(st.integers(min(width, height) // 4, min(width, height)))
    x, y = (data.draw(st.integers(0, whole - side)) for whole in (width, height))
    square = (x, y, x + side, y + side)
    assert max(slow.overlap(window, square) for window in grid_windows((width, height))) >= 0.45


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (300, 5), (8, 200), (75, 100)])
def test_proposals_of_an_image_of_any_size_have_an_area_inside_it(size):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    boxes = propose_windows(Image.fromarray(pixels))
    assert boxes.dtype == np.float32
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= size).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()


def test_proposals_are_sorted_and_none_comes_twice(drawn):
    for number in range(4):
        boxes = propose_windows(drawn[0].load(number))
        rows = [tuple(row) for row in boxes.tolist()]
        assert rows == sorted(set(rows))
        again = propose_windows(drawn[0].load(number))
        assert boxes.tobytes() == again.tobytes()


def test_nearly_all_objects_of_generated_scenes_are_reached(drawn):
    splits = [(split, number) for split in drawn for number in range(len(split))]
    found = [propose_windows(split.load(number)) for split, number in splits]
    truth = [split.objects[number] for split, number in splits]
    assert recall_of(found, truth) >= 95
    assert np.mean([len(boxes) for boxes in found]) < 2000  # the number that selective search gives


def test_proposals_are_the_windows_and_the_segments(drawn):
    image = drawn[0].load(1)
    parts = [*grid_windows(image.size).tolist(), *color_segments(image, 48).tolist()]
    assert set(map(tuple, propose_windows(image).tolist())) == set(map(tuple, parts))


def plain(size, square, colours=((30, 60, 90), (200, 180, 40))):
    pixels = np.full((size[1], size[0], 3), colours[0], np.uint8)
    x1, y1, x2, y2 = square
    pixels[y1:y2, x1:x2] = colours[1]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("square", [(12, 7, 30, 25), (0, 0, 20, 20), (41, 30, 64, 48)])
def test_a_plain_square_on_a_plain_ground_is_a_segment(square):
    found = color_segments(plain((64, 48), square), 48).tolist()
    assert list(map(float, square)) in found
    assert [0, 0, 64, 48] in found
    assert list(map(float, square)) in propose_windows(plain((64, 48), square)).tolist()


@pytest.mark.parametrize("square", [(24, 14, 60, 50), (25, 15, 61, 51), (30, 33, 97, 90)])
def test_in_a_larger_image_it_is_found_within_a_cell(square):
    """At half the size a cell is two pixels, and a cell of mixed colour is of neither segment."""
    found = color_segments(plain((128, 96), square), 48)
    assert abs(found - np.array(square)).max(1).min() <= 2


@pytest.mark.parametrize("size", [(101, 75), (75, 112), (50, 48), (333, 500), (30, 7), (90, 3)])
def test_a_plain_image_is_one_segment_whatever_it_is_resized_to(size):
    found = color_segments(plain(size, (0, 0, 0, 0)), 48)
    assert found.tolist() == [[0, 0, *size]] * 2  # one for each of two thresholds


def test_small_and_gentle_segments_are_none():
    """A speck 3 of 48 pixels wide; two greys that are 5 apart, less than any threshold."""
    assert color_segments(plain((48, 48), (10, 10, 13, 13)), 48).tolist() == [[0, 0, 48, 48]] * 2
    greys = plain((48, 48), (10, 10, 30, 30), ((100,) * 3, (105,) * 3))
    assert color_segments(greys, 48).tolist() == [[0, 0, 48, 48]] * 2


# --- methods ---
def test_a_method_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    split = split_with()
    for wanted in ("selektiv", str(tmp_path / "absent.npz"), str(tmp_path)):
        with pytest.raises(ValueError, match=r"detect\.proposals=.*auto, selective_search, grid"):
            load_proposals(split, wanted, tmp_path / "kept", silent)
    assert not (tmp_path / "kept").exists()


def test_without_opencv_selective_search_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_opencv", lambda: None)
    with pytest.raises(ValueError, match=r"needs opencv.*pip install 'delving\[detect\]'"):
        load_proposals(split_with(), "selective_search", tmp_path, silent)
    assert pick_method("auto") == "grid"
    assert pick_method("grid") == "grid"


@pytest.mark.skipif(not HAS_OPENCV, reason="opencv-contrib-python-headless is not installed")
def test_selective_search_gives_the_same_each_time(drawn):
    image = drawn[0].load(0)
    boxes = module.search_selectively(image)
    rows = [tuple(row) for row in boxes.tolist()]
    assert rows == sorted(set(rows))
    assert len(rows) > 20
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= image.size).all()
    assert module.search_selectively(image).tobytes() == boxes.tobytes()
    assert pick_method("auto") == "selective_search"


# --- kept ---
def test_they_are_made_once_and_then_read(tmp_path, monkeypatch):
    split, told = split_with(), []
    first = load_proposals(split, "grid", tmp_path, lambda *numbers: told.append(numbers))
    assert told == [(3, 3)]
    for number, boxes in enumerate(first):
        assert boxes.dtype == np.float32
        assert boxes.tobytes() == propose_windows(split.load(number)).tobytes()
    assert len(list(tmp_path.glob("grid-*.npz"))) == 1
    monkeypatch.setattr(module, "propose_windows", refuse_to_propose)
    again = load_proposals(split, "grid", tmp_path, silent)
    assert [boxes.tobytes() for boxes in again] == [boxes.tobytes() for boxes in first]
    monkeypatch.setattr(module, "_opencv", lambda: None)
    load_proposals(split, "auto", tmp_path, silent)  # the same here


def test_after_an_image_that_cannot_be_read_no_other_is_begun(tmp_path, monkeypatch):
    """Selective search takes seconds per image."""
    begun = []

    def propose(image):
        begun.append(image)
        time.sleep(0.02)
        raise ValueError("no boxes")

    monkeypatch.setattr(module, "propose_windows", propose)
    split = split_of(*[((40, 40), [])] * module.SHARD)
    before = list(warnings.filters)
    with pytest.raises(ValueError, match="no boxes"):
        load_proposals(split, "grid", tmp_path, silent)
    assert len(begun) < module.SHARD
    assert warnings.filters == before


def test_a_file_holds_some_of_the_images(tmp_path, monkeypatch):
    whole = load_proposals(split_with(), "grid", tmp_path / "whole", silent)
    monkeypatch.setattr(module, "SHARD", 2)
    told = []
    split = load_proposals(split_with(), "grid", tmp_path, lambda *numbers: told.append(numbers))
    assert told == [(2, 3), (3, 3)]
    assert [boxes.tobytes() for boxes in split] == [boxes.tobytes() for boxes in whole]
    assert len(list(tmp_path.glob("grid-*.npz"))) == 2


def test_another_images_bytes_or_name_give_another_file(tmp_path):
    load_proposals(split_with(), "grid", tmp_path, silent)
    load_proposals(split_with(JPEGImages_b=jpeg((44, 50), seed=9)), "grid", tmp_path, silent)
    other = split_of(*PICTURES.values())  # the same images by other names
    load_proposals(other, "grid", tmp_path, silent)
    assert len(list(tmp_path.glob("grid-*.npz"))) == 3


def test_a_later_version_gives_another_file(tmp_path, monkeypatch):
    load_proposals(split_with(), "grid", tmp_path, silent)
    monkeypatch.setattr(module, "GRID", module.GRID + 1)
    load_proposals(split_with(), "grid", tmp_path, silent)
    assert len(list(tmp_path.glob("grid-*.npz"))) == 2


def test_the_kept_file_of_a_tiny_image_is_read_too(tmp_path, monkeypatch):
    """Its windows are smaller than a pixel before rounding."""
    split = split_of(((5, 5), []))
    load_proposals(split, "grid", tmp_path, silent)
    monkeypatch.setattr(module, "propose_windows", refuse_to_propose)
    load_proposals(split, "grid", tmp_path, silent)
