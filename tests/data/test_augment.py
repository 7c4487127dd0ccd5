"""Draws keyed by (seed, epoch, image), sizes, crops, the ten views."""

import numpy as np
import pytest
from helpers import smooth_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from delving.data.augment import (
    RESAMPLING,
    augment,
    augmentation_of,
    center_view,
    crop_at,
    draw_augmentation,
    draw_order,
    pick_side,
    resized_size,
    samples_of,
    ten_views,
    view_of,
    whole_views,
)

some = settings(max_examples=60)
# Without subnormal numbers: a training in the same process flushes them to zero.
units = st.floats(0, 1, exclude_max=True, width=32, allow_subnormal=False)
sizes = st.tuples(st.integers(8, 200), st.integers(8, 200))


def image_of(width, height, seed=0):
    return Image.fromarray(smooth_pixels(width, height, seed))


def whole_at(image, s):
    return np.asarray(image.resize(resized_size(image.size, s), RESAMPLING))


# --- draws ---
@some
@given(images=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 4),
       seed=st.integers(0, 2**40))  # fmt: skip
def test_every_image_is_seen_once_an_epoch_whatever_the_batch(images, batch, epochs, seed):
    steps = -(-epochs * images // batch)
    parts = [samples_of(step, batch, seed=seed, images=images) for step in range(steps)]
    epoch, index = (np.concatenate(column) for column in zip(*parts, strict=True))
    assert all(len(p[1]) == batch for p in parts)
    for e in range(epochs):
        assert sorted(index[epoch == e].tolist()) == list(range(images))
    assert epoch.tolist() == sorted(epoch.tolist())


@some
@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 500), images=st.integers(1, 50))
def test_the_same_key_draws_the_same_and_no_call_before_matters(seed, epoch, images):
    order = draw_order(seed, epoch, images).copy()
    draws = draw_augmentation(seed, epoch, images).copy()
    for function in (draw_order, draw_augmentation):
        function(seed, epoch + 1, images)
        function.cache_clear()
    assert (draw_order(seed, epoch, images) == order).all()
    assert (draw_augmentation(seed, epoch, images) == draws).all()


def test_another_seed_or_epoch_draws_otherwise():
    keys = [(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({draw_order(*key, 50).tobytes() for key in keys}) == len(keys)
    assert len({draw_augmentation(*key, 50).tobytes() for key in keys}) == len(keys)


def test_no_two_epochs_nor_order_and_augmentation_share_their_random_numbers(monkeypatch):
    keys, real = [], np.random.Philox

    def note(key):
        keys.append(tuple(key))
        return real(key=key)

    monkeypatch.setattr(np.random, "Philox", note)
    for function in (draw_order, draw_augmentation):
        function.cache_clear()
        for seed in range(3):
            for epoch in range(4):
                function(seed, epoch, 5)
    assert len(set(keys)) == len(keys) == 2 * 3 * 4


def test_an_images_draws_are_its_own_wherever_it_stands_in_the_batch():
    epochs, indices = np.array([0, 0, 1, 1]), np.array([3, 1, 1, 4])
    found = augmentation_of(epochs, indices, seed=0, images=5)
    wanted = [draw_augmentation(0, e, 5)[i] for e, i in zip(epochs, indices, strict=True)]
    assert (found == wanted).all()


def test_draws_are_of_the_side_the_place_from_the_left_and_from_the_top_and_the_flip():
    for flip, draw, flipped in ((True, 0.4, True), (True, 0.5, False), (False, 0.4, False)):
        draws = np.array([0.99, 0.25, 0.75, draw, 0, 0, 0])
        view = view_of(draws, crop=14, sides=(16, 32), flip=flip)
        assert view == (32, 14, (0.25, 0.75), flipped)


def test_draws_are_uniform_then_normal_and_independent():
    draws = draw_augmentation(0, 0, 20_000)
    assert draws.shape == (20_000, 7)
    uniform, normal = draws[:, :4], draws[:, 4:]
    assert ((uniform >= 0) & (uniform < 1)).all()
    np.testing.assert_allclose(uniform.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(uniform.std(0), 12**-0.5, atol=0.01)
    np.testing.assert_allclose(normal.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(normal.std(0), 1, atol=0.03)
    assert abs(np.corrcoef(draws.T) - np.eye(7)).max() < 0.03


# --- sizes ---
@some
@given(st.integers(1, 300), st.integers(0, 300), units)
def test_the_side_lies_within_its_limits(low, more, u):
    assert low <= pick_side(u, (low, low + more)) <= low + more


@pytest.mark.parametrize("sides", [(32, 32), (32, 64), (256, 512)])
def test_the_side_takes_every_value_about_equally_often(sides):
    drawn = [pick_side(u, sides) for u in draw_augmentation(0, 0, 50_000)[:, 0]]
    counts = np.bincount(drawn)[sides[0] :]
    assert len(counts) == sides[1] - sides[0] + 1
    expected = len(drawn) / len(counts)
    assert abs(counts - expected).max() < 5 * expected**0.5


@some
@given(sizes, st.integers(1, 300))
def test_resizing_keeps_the_ratio_and_makes_the_shorter_side_s(size, s):
    width, height = resized_size(size, s)
    assert min(width, height) == s
    longer, whole = max(width, height), max(size) * s / min(size)
    assert abs(longer - whole) <= 0.5
    assert (width - height) * (size[0] - size[1]) >= 0


# --- crops ---
@some
@given(st.integers(20, 60), st.integers(20, 60), units, units)
def test_without_resizing_a_crop_is_a_slice(width, height, u, v):
    image, crop, s = image_of(width, height), 14, min(width, height)
    x, y = (min(int(w * (n - crop + 1)), n - crop) for w, n in ((u, width), (v, height)))
    wanted = np.asarray(image)[y : y + crop, x : x + crop]
    assert (crop_at(image, s, crop, (u, v)) == wanted).all()


@some
@given(st.integers(40, 150), st.integers(40, 150), st.integers(28, 100), units,
       units)  # fmt: skip
def test_a_crop_is_that_of_the_whole_resized_image(width, height, s, u, v):
    image, crop = image_of(width, height), 28
    full = resized_size(image.size, s)
    x, y = (min(int(w * (n - crop + 1)), n - crop) for w, n in zip((u, v), full, strict=True))
    wanted = whole_at(image, s)[y : y + crop, x : x + crop].astype(int)
    off = abs(crop_at(image, s, crop, (u, v)) - wanted)
    assert off.max() <= 2
    assert off.mean() < 0.5


@some
@given(sizes, st.integers(14, 60), st.lists(units,
                                            min_size=4, max_size=4))  # fmt: skip
def test_any_draw_on_any_image_gives_a_whole_crop(size, more, draws):
    view = augment(image_of(*size), np.array(draws), crop=14, sides=(14, 14 + more), flip=True)
    assert view.shape == (14, 14, 3)
    assert view.dtype == np.uint8


def test_the_center_is_in_the_middle():
    image = image_of(40, 30)
    assert (center_view(image, 30, 14)[0] == np.asarray(image)[8:22, 13:27]).all()


def test_half_of_the_images_are_flipped_and_none_where_it_is_off():
    image = image_of(28, 28)
    plain = np.asarray(image)
    draws = draw_augmentation(0, 0, 2000)
    views = [augment(image, d, crop=28, sides=(28, 28), flip=True) for d in draws]
    flipped = sum((view == plain[:, ::-1]).all() for view in views)
    assert flipped + sum((view == plain).all() for view in views) == 2000
    assert 0.45 < flipped / 2000 < 0.55
    straight = (augment(image, d, crop=28, sides=(28, 28), flip=False) for d in draws[:50])
    assert all((view == plain).all() for view in straight)


def test_random_crops_reach_every_place():
    pixels = np.zeros((16, 18, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(18)[None], np.arange(16)[:, None]
    image = Image.fromarray(pixels)
    corners = set()
    for draws in draw_augmentation(0, 0, 600):
        view = augment(image, draws, crop=14, sides=(16, 16), flip=False)
        corners.add((int(view[0, 0, 0]), int(view[0, 0, 1])))
    assert corners == {(x, y) for x in range(5) for y in range(3)}


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (30, 30)])
@pytest.mark.parametrize("s", [30, 40, 20])
def test_an_array_is_an_image_and_resized_only_where_it_has_another_side(width, height, s):
    image = image_of(width, height)
    whole = whole_at(image, s)
    assert (whole_views(np.asarray(image), s)[0] == whole).all()
    for flip in (False, True):
        wanted = whole[-14:, :14][:, :: -1 if flip else 1]
        assert (crop_at(np.asarray(image), s, 14, (0, 1), flip=flip) == wanted).all()


# --- views ---
@pytest.mark.parametrize("s", [32, 20, 48])
def test_ten_views_are_corners_center_and_their_flips(s):
    image, crop = image_of(40, 32), 14
    whole, views = whole_at(image, s), ten_views(image, s, crop)
    assert views.shape == (10, crop, crop, 3)
    corners = [
        whole[:crop, :crop],
        whole[:crop, -crop:],
        whole[-crop:, :crop],
        whole[-crop:, -crop:],
    ]
    for view, corner in zip(views, corners, strict=False):
        assert (view == corner).all()
    rounding = 0 if s == 32 else 2  # where the image is resized
    assert np.abs(views[4].astype(int) - center_view(image, s, crop)[0]).max() <= rounding
    assert (views[5:] == views[:5, :, ::-1]).all()


def test_whole_views_are_the_whole_image_and_its_flip():
    image = image_of(50, 40)
    views = whole_views(image, 32)
    assert views.shape == (2, 32, 40, 3)
    assert (views[0] == whole_at(image, 32)).all()
    assert (views[1] == views[0][:, ::-1]).all()


def test_at_the_crops_size_the_whole_image_is_the_center_crop():
    image = image_of(30, 30)
    assert (whole_views(image, 28)[0] == center_view(image, 28, 28)[0]).all()
