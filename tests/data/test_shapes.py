"""The generated data set: deterministic, balanced, textured; never half-written."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
from calling import killed_at
from PIL import Image

from delving.data import shapes
from delving.data.shapes import TEXTURES, draw_image, write_shapes
from delving.record import DiskFullError

SMALL = {"classes": 3, "train_images": 8, "val_images": 4}


def read_files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


def draw_pattern(name, seed):
    """The bare texture on 48 x 48 units, its mean subtracted."""
    y, x = np.mgrid[-24:24, -24:24].astype(np.float32)
    pattern = TEXTURES[name](np.stack([x, y]), np.random.default_rng(seed))
    return pattern - pattern.mean()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes") / "small", **SMALL)


def test_same_seed_writes_the_same_bytes(small, tmp_path):
    assert read_files(write_shapes(tmp_path / "again", **SMALL)) == read_files(small)


def test_what_a_killed_process_had_drawn_goes_with_the_next(small, tmp_path):
    root = tmp_path / "small"
    killed_at(Path, "rename", lambda: write_shapes(root, **SMALL))
    assert len(list(tmp_path.iterdir())) == 1
    assert read_files(write_shapes(root, **SMALL)) == read_files(small)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_another_seed_and_the_other_split_draw_other_images(small, tmp_path):
    files = read_files(small)
    other = read_files(write_shapes(tmp_path / "other", **SMALL, seed=1))
    assert files.keys() == other.keys()
    assert len({*files.values(), *other.values()}) == 2 * len(files)


def test_a_larger_set_contains_the_smaller(small, tmp_path):
    larger = write_shapes(tmp_path / "larger", classes=4, train_images=14, val_images=6)
    assert read_files(small).items() < read_files(larger).items()


def test_images_are_spread_evenly_over_the_first_classes(small):
    names = list(TEXTURES)[:3]
    for split, counts in {"train": [3, 3, 2], "val": [2, 1, 1]}.items():
        assert sorted(path.name for path in (small / split).iterdir()) == sorted(names)
        assert [len(list((small / split / name).glob("*.jpg"))) for name in names] == counts


def test_every_file_decodes_to_its_own_size(small):
    sizes = set()
    for path in small.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert np.asarray(image).std() > 5
            sizes.add(image.size)
    assert len(sizes) > len(list(small.rglob("*.jpg"))) / 2


@pytest.mark.parametrize("name", TEXTURES)
def test_images_of_a_class_vary_within_their_bounds(name):
    for n in range(6):
        image = draw_image(name, np.random.default_rng(n))
        height, width, channels = image.shape
        assert image.dtype == np.uint8
        assert channels == 3
        assert 40 <= min(height, width) <= 72
        assert 0.75 <= width / height <= 4 / 3


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_spans_black_to_white_with_several_edges(name):
    for n in range(20):
        pattern = draw_pattern(name, n)
        assert np.ptp(pattern) == pytest.approx(1, abs=0.05)
        signs = pattern[12:36, 12:36] > 0  # what a 24-unit object shows
        flips = max((np.diff(signs, axis=axis) != 0).sum(axis).max() for axis in (0, 1))
        assert flips >= 4


def test_mean_colour_carries_no_class():
    """Nearest class mean on mean RGB: 10 classes, 300 test images, chance 10 +- 1.7 % right."""
    names, each = list(TEXTURES)[:10], 60
    colours = np.array(
        [
            [draw_image(name, np.random.default_rng([c, n])).mean((0, 1)) for n in range(each)]
            for c, name in enumerate(names)
        ]
    )  # (10, 60, 3)
    means = colours[:, :30].mean(1)
    distances = np.linalg.norm(colours[:, 30:, None] - means, axis=-1)  # (10, 30, 10)
    right = distances.argmin(-1) == np.arange(10)[:, None]
    assert right.mean() < 0.10 + 3 * 0.0173


def mean_spectrum(patterns):
    """The mean power per frequency, (48, 48), blurred a little and scaled to unit norm."""
    power = np.mean([np.abs(np.fft.fft2(pattern)) ** 2 for pattern in patterns], axis=0)
    power = sum(np.roll(power, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
    return power / np.linalg.norm(power)


@pytest.mark.parametrize("name", TEXTURES)
def test_a_mirror_image_keeps_its_class(name):
    """Mirroring keeps a texture's spectrum, so diagonals must be drawn in both directions."""
    patterns = [draw_pattern(name, n) for n in range(150)]
    plain = mean_spectrum(patterns[:75])
    mirrored = mean_spectrum([pattern[:, ::-1] for pattern in patterns[75:]])
    assert (plain * mirrored).sum() > 0.8


def test_stripes_of_different_classes_have_different_spectra():
    spectra = [
        mean_spectrum([draw_pattern(name, n) for n in range(75)])
        for name in ("horizontal", "vertical", "diagonal")
    ]
    overlaps = np.array([[(a * b).sum() for a in spectra] for b in spectra])
    assert (overlaps[~np.eye(3, dtype=bool)] < 0.2).all()


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def draw_then_stop(name, rng):
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw_image(name, rng)

    monkeypatch.setattr(shapes, "draw_image", draw_then_stop)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shapes, "draw_image", full)
    with pytest.raises(DiskFullError, match=re.escape(f"the disk of {tmp_path} is full")):
        write_shapes(tmp_path / "set", **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_finished_set_is_not_drawn_again(small, monkeypatch):
    monkeypatch.setattr(shapes, "draw_image", None)
    assert write_shapes(small, **SMALL) == small


def test_two_writers_at_once_leave_one_complete_set(small, tmp_path, monkeypatch):
    root, write_split = tmp_path / "set", shapes._write_split

    def overtaken(folder, **arguments):
        monkeypatch.setattr(shapes, "_write_split", write_split)
        write_shapes(root, **SMALL)
        write_split(folder, **arguments)

    monkeypatch.setattr(shapes, "_write_split", overtaken)
    assert read_files(write_shapes(root, **SMALL)) == read_files(small)
    assert list(tmp_path.iterdir()) == [root]


def test_other_arguments_are_refused_by_name(small):
    with pytest.raises(ValueError, match=r"'seed': 0.*'seed': 7"):
        write_shapes(small, **SMALL, seed=7)


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="no finished shapes set"):
        write_shapes(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_damaged_marker_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "shapes.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"shapes\.json is damaged"):
        write_shapes(tmp_path, classes=2, train_images=2, val_images=2)


@pytest.mark.parametrize("classes", [-1, 0, 1, len(TEXTURES) + 1])
def test_a_wrong_number_of_classes_is_refused(classes, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"classes={classes}: choose 2 to")):
        write_shapes(tmp_path / "set", classes=classes, train_images=4, val_images=4)
    assert list(tmp_path.iterdir()) == []
