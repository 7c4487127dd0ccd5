"""Images that stay on the device give Pillow's batches to within a grey level."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import MemoryReader, make_images, shared, smooth_pixels, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from delving import record
from delving.config import compose
from delving.data import resident
from delving.data.augment import augment
from delving.data.loader import Cache, TrainingBatches
from delving.data.resident import ResidentBatches, cut, load_resident, tent_weights
from delving.data.sources import find_tiny_imagenet
from delving.run import train_run
from delving.session import Session

CPU = torch.device("cpu")
ABOUT = {"batch": 5, "crop": 14, "sides": (16, 40), "flip": True, "seed": 3}
units = st.floats(0, 1, exclude_max=True, width=32)


def slow_tents(start, scale, size, crop):
    """Pillow's filter by its definition, in float64: a triangle around each centre."""
    weights = np.zeros((crop, size))
    for out in range(crop):
        centre, reach = start + (out + 0.5) * scale, max(scale, 1.0)
        for i in range(size):
            weights[out, i] = max(0.0, 1 - abs(i + 0.5 - centre) / reach)
    return weights / weights.sum(1, keepdims=True)


@settings(max_examples=60)
@given(st.integers(8, 40), st.integers(4, 20), units, st.floats(0.2, 1.0))
def test_weights_are_those_of_the_triangle(size, crop, where, share):
    scale = share * size / crop
    start = where * (size - crop * scale)
    ours = tent_weights(torch.tensor([start]), torch.tensor([scale]), size=size, crop=crop)[0]
    np.testing.assert_allclose(ours, slow_tents(start, scale, size, crop), atol=2e-4)


def test_at_the_images_own_size_a_view_is_a_slice():
    weights = tent_weights(torch.tensor([3.0]), torch.tensor([1.0]), size=9, crop=4)[0]
    assert torch.equal(weights, torch.eye(9)[3:7])


@settings(max_examples=60)
@given(st.integers(14, 60), st.integers(14, 60), st.lists(units, min_size=4, max_size=4),
       st.booleans())  # fmt: skip
def test_a_view_is_pillows_to_a_grey_level(width, height, uniform, flip):
    pixels = smooth_pixels(width, height)
    draws = np.array([[*uniform, 0, 0, 0]], np.float32)
    theirs = augment(Image.fromarray(pixels), draws[0], crop=14, sides=(16, 40), flip=flip)
    ours = cut(torch.from_numpy(pixels)[None], draws, crop=14, sides=(16, 40), flip=flip)[0]
    assert abs(ours.numpy().astype(int) - theirs).max() <= 1


def both(images, **about):
    about = ABOUT | about
    ours = ResidentBatches(load_resident(images, CPU, 1.0), **about)
    return ours, TrainingBatches(Cache(images, 0), **about)


@pytest.mark.parametrize("share", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("bad", [(), (4,), (0, 1, 10)])
def test_batches_are_those_of_the_loader(share, bad):
    """Across the ends of epochs, for each rank, and where images cannot be decoded."""
    ours, theirs = both(make_images([(24, 20)] * 11, bad=bad), share=share)
    for step in range(7):
        a, b = ours[step], theirs[step]
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.color, b.color)
        assert a.bad == b.bad
        assert (a.pixels.int() - b.pixels.int()).abs().max() <= 1
        assert ours.describe(step) == theirs.describe(step)


def test_images_that_are_decoded_in_several_parts_keep_their_places(monkeypatch):
    images = make_images([(24, 20)] * 11, bad=(4, 10))
    whole = load_resident(images, CPU, 1.0)
    monkeypatch.setattr(resident, "TOGETHER", 4)
    parts = load_resident(images, CPU, 1.0)
    assert torch.equal(parts.pixels, whole.pixels)
    np.testing.assert_array_equal(parts.used, whole.used)


def test_where_no_image_tells_its_size_they_stay_where_they_are():
    images = make_images([(24, 20)] * 3)
    unknown = dict.fromkeys(images.read.files, b"no image")
    assert load_resident(replace(images, read=MemoryReader(unknown)), CPU, 1.0) is None


def test_images_of_several_sizes_stay_where_they_are():
    assert load_resident(make_images([(20, 20), (20, 21)]), CPU, 1.0) is None
    late = make_images([(20, 20)] * 70 + [(20, 21)])
    assert load_resident(late, CPU, 1.0) is None


def test_more_images_than_fit_stay_where_they_are():
    images = make_images([(20, 20)] * 10)
    assert load_resident(images, CPU, 1.1e-5) is None
    assert load_resident(images, CPU, 1.2e-5) is not None


def test_without_any_image_that_can_be_decoded_nothing_is_trained():
    images = make_images([(60, 60)] * 2, form="JPEG")
    cut_off = {name: data[:-200] for name, data in images.read.files.items()}
    images = replace(images, read=MemoryReader(cut_off))
    assert images.size(0) == (60, 60)
    with pytest.raises(ValueError, match="no training image can be decoded"):
        load_resident(images, CPU, 1.0)


def test_real_images_are_pillows_to_a_grey_level():
    train, _ = find_tiny_imagenet(shared("tiny-imagenet-200"))
    images = train.take(np.arange(0, len(train), 500))
    ours, theirs = both(images, batch=50, crop=56, sides=(64, 128))
    for step in range(2):
        off = (ours[step].pixels.int() - theirs[step].pixels.int()).abs()
        assert off.max() <= 1
        assert off.float().mean() < 0.2


def test_a_training_on_them_is_the_loaders_but_for_grey_levels(tmp_path, monkeypatch):
    write_folder(tmp_path / "pictures", train=16, val=2)

    def losses(root):
        words = ["scale=smoke", "data=folder", f"data.root={tmp_path / 'pictures'}", "act=prelu",
                 "data.train_images=null", "data.val_images=null", "data.classes=null",
                 "train.batch=8", "train.epochs=2", "train.log_every=1", "device=cpu",
                 "precision=fp32", f"output_root={root}"]  # fmt: skip
        folder = train_run(compose(words), lambda event: None)
        return [event["loss"] for event in record.read_events(folder, "step")]

    theirs = losses(tmp_path / "loader")
    taken = []

    def load(session):
        taken.append(load_resident(session.train_images.images, session.device, 1.0))
        return taken[-1]

    monkeypatch.setattr(Session, "resident", load)
    ours = losses(tmp_path / "resident")
    assert taken[0] is not None
    assert ours != theirs  # it was used
    np.testing.assert_allclose(ours, theirs, atol=0.02)
