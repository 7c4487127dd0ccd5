"""Mean image, range and colour altering, measured on the training set at hand."""

import numpy as np
import pytest
import torch
from helpers import encode, make_images, shared

from delving.data.augment import center_view, draw_augmentation
from delving.data.images import Images, select
from delving.data.input import Input, blank_input, measure_input
from delving.data.loader import Cache
from delving.data.sources import find_tiny_imagenet

CROP, S = 14, 16


def textured(count=60, side=24):
    """Images like photographs where it matters: bright and dark ones, correlated colours."""
    rng = np.random.default_rng(0)
    files = {}
    for n in range(count):
        gray = rng.normal(120, 45) + rng.normal(0, 40, (side, side, 1))
        tint = rng.normal(0, 12, (1, 1, 3)) + rng.normal(0, 6, (side, side, 3))
        files[f"{n}.png"] = encode(np.clip(gray + tint, 0, 255).astype(np.uint8))
    return Images(list(files), np.zeros(count, np.int64), ["a"], ["a"], files.__getitem__)


@pytest.fixture(scope="module")
def images():
    return textured()


def crops_of(images):
    return np.stack([center_view(images.load(i), S, CROP)[0] for i in range(len(images))])


def measured(images, normalised=False):
    return measure_input(Cache(images, 0), crop=CROP, s=S, normalised=normalised)


def test_the_mean_image_is_the_mean_of_the_center_crops(images):
    mean = measured(images).mean.permute(1, 2, 0).numpy()
    np.testing.assert_allclose(mean, crops_of(images).mean(0), atol=1e-3)


def test_raw_input_is_the_images_less_their_mean_in_grey_levels(images):
    crops = crops_of(images)
    x = measured(images)(torch.from_numpy(crops))
    assert x.shape == (len(crops), 3, CROP, CROP)
    assert x.dtype == torch.float32
    wanted = crops.astype(float) - crops.mean(0)
    np.testing.assert_allclose(x.permute(0, 2, 3, 1), wanted, atol=1e-3)
    assert abs(x.mean()) < 1e-3
    assert 40 < x.abs().max() < 255


def test_arrays_are_taken_as_tensors_are(images):
    crops, statistics = crops_of(images), measured(images)
    torch.testing.assert_close(statistics(crops), statistics(torch.from_numpy(crops)))


def test_normalised_input_has_mean_zero_and_variance_one(images):
    x = measured(images, normalised=True)(torch.from_numpy(crops_of(images)))
    assert abs(x.mean()) < 1e-4
    assert x.square().mean() == pytest.approx(1, abs=1e-3)


def test_the_mean_is_resized_to_another_size_and_is_its_own_at_the_crops(images):
    statistics = measured(images)
    mean = statistics.mean
    for size in ((CROP, CROP), (16, 20), (30, 15)):
        pixels = torch.zeros(1, *size, 3, dtype=torch.uint8)
        subtracted = -statistics(pixels)[0]
        assert subtracted.shape == (3, *size)
        assert subtracted.min() >= mean.min() - 1e-3
        assert subtracted.max() <= mean.max() + 1e-3
        assert subtracted.mean((1, 2)).sub(mean.mean((1, 2))).abs().max() < 4
    assert torch.equal(-statistics(torch.zeros(1, CROP, CROP, 3, dtype=torch.uint8))[0], mean)


def test_a_flat_mean_stays_flat_at_any_size():
    statistics = Input(torch.full((3, 14, 14), 100.0), torch.zeros(3, 3), 2.0)
    x = statistics(torch.full((2, 20, 33, 3), 110, dtype=torch.uint8))
    torch.testing.assert_close(x, torch.full((2, 3, 20, 33), 5.0))


# --- colour altering ---
def test_the_colour_directions_are_the_eigenvectors_of_the_covariance(images):
    color = measured(images).color.double().numpy()
    pixels = crops_of(images).reshape(-1, 3) / 255
    covariance = np.cov(pixels.T, bias=True)
    values = np.linalg.norm(color, axis=0)
    vectors = color / values
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(sorted(values), np.linalg.eigvalsh(covariance), rtol=1e-3)
    np.testing.assert_allclose(covariance @ vectors, vectors * values, atol=1e-5)


def shift_size(statistics):
    """The root mean square of the shift over draws and channels, in grey levels."""
    draws = torch.from_numpy(draw_augmentation(0, 0, 4000)[:, 4:])
    shift = statistics.color_shift(draws, 0.1)
    assert shift.shape == (4000, 3)
    return float(shift.square().mean().sqrt())


def test_the_typical_shift_is_a_few_grey_levels(images):
    assert 1 < shift_size(measured(images)) < 10


def test_the_typical_shift_is_a_few_grey_levels_on_real_images():
    train, _ = find_tiny_imagenet(shared("tiny-imagenet-200"))
    few = select(train, classes=None, count=600)
    statistics = measure_input(Cache(few, 0), crop=56, s=64, normalised=False)
    assert 1 < shift_size(statistics) < 10
    assert 80 < statistics.mean.mean() < 150
    color = statistics.color / statistics.color.norm(dim=0)
    torch.testing.assert_close(color.T @ color, torch.eye(3), atol=1e-3, rtol=0)


def test_a_shift_moves_the_channels_of_its_own_image_alone(images):
    statistics = measured(images, normalised=True)
    pixels = torch.from_numpy(crops_of(images)[:2])
    shift = torch.tensor([[3.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    moved = (statistics(pixels, shift) - statistics(pixels)) * statistics.std
    wanted = shift[:, :, None, None].expand_as(moved)
    torch.testing.assert_close(moved, wanted, atol=1e-3, rtol=0)


def test_the_shift_grows_with_the_std_and_vanishes_with_it(images):
    statistics, draws = (
        measured(images),
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0)),
    )
    once, twice = (statistics.color_shift(draws, std) for std in (0.1, 0.2))
    torch.testing.assert_close(2 * once, twice)
    assert not statistics.color_shift(draws, 0.0).any()


# --- measuring and saving ---
def test_undecodable_images_are_left_out():
    sizes = [(24, 24)] * 8
    spoilt, sound = make_images(sizes, bad=(2, 5)), make_images(sizes)
    rest = sound.take(np.array([0, 1, 3, 4, 6, 7]))
    torch.testing.assert_close(measured(spoilt).mean, measured(rest).mean)


def test_where_none_can_be_decoded_it_is_an_error():
    with pytest.raises(ValueError, match="no training image can be decoded"):
        measured(make_images([(24, 24)] * 2, bad=(0, 1)))


def test_images_of_one_colour_give_finite_input():
    files = {f"{n}.png": encode(np.full((20, 20, 3), 77, np.uint8)) for n in range(3)}
    flat = Images(list(files), np.zeros(3, np.int64), ["a"], ["a"], files.__getitem__)
    x = measured(flat, normalised=True)(torch.from_numpy(crops_of(flat)))
    assert x.isfinite().all()
    assert x.abs().max() < 1


def test_saved_statistics_are_loaded_into_a_blank_input(images):
    statistics, blank = measured(images, normalised=True), blank_input(CROP)
    blank.load_state_dict(statistics.state_dict())
    pixels = torch.from_numpy(crops_of(images)[:3])
    assert torch.equal(blank(pixels), statistics(pixels))
