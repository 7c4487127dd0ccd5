"""Section 3's augmentation. Every draw is keyed by (seed, epoch, image), so neither the number of
loader processes nor an interruption changes it.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

# assumed: images are resized by an antialiased bilinear filter, their aspect ratio kept.
RESAMPLING = Image.Resampling.BILINEAR
ORDER, DRAWS = 0, 1
Picture = Image.Image | np.ndarray  # decoded; an array is already resized


def _generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, 2 * epoch + purpose]))


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def draw_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """A permutation of range(images)."""
    return _generator(seed, epoch, ORDER).permutation(images)


@lru_cache(maxsize=2)
def draw_augmentation(seed: int, epoch: int, images: int) -> np.ndarray:
    """(images, 7) float32: uniform in [0, 1) for s, x, y and flip, then three standard normals."""
    rng = _generator(seed, epoch, DRAWS)
    uniform = rng.random((images, 4), np.float32)
    return np.hstack([uniform, rng.standard_normal((images, 3), np.float32)])


def samples_of(step: int, batch: int, *, seed: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The epochs and indices (batch,) of a step's images.

    ours: batches run on across the ends of epochs, so that every image is seen once an epoch,
    whatever the batch.
    """
    places = np.arange(step * batch, (step + 1) * batch)
    epochs, indices = places // images, places % images
    for epoch in range(epochs[0], epochs[-1] + 1):
        of_epoch = epochs == epoch
        indices[of_epoch] = draw_order(seed, epoch, images)[indices[of_epoch]]
    return epochs, indices


def rows_of(batch: int, rank: int, ranks: int) -> slice:
    """A rank's rows of a batch; the ranks' shares cover it, and differ by at most one row.

    Raises:
        ValueError: fewer rows than ranks, or no such rank.
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"rank {rank}: choose 0 to {ranks - 1}")
    if ranks > batch:
        raise ValueError(f"a batch of {batch} for {ranks} ranks: each needs an image or more")
    return slice(batch * rank // ranks, batch * (rank + 1) // ranks)


def augmentation_of(
    epochs: np.ndarray, indices: np.ndarray, *, seed: int, images: int
) -> np.ndarray:
    """The draws (batch, 7) of a step's images."""
    draws = np.empty((len(indices), 7), np.float32)
    for epoch in range(epochs[0], epochs[-1] + 1):
        of_epoch = epochs == epoch
        draws[of_epoch] = draw_augmentation(seed, epoch, images)[indices[of_epoch]]
    return draws


def pick_side(u: float, sides: tuple[int, int]) -> int:
    """The shorter side s: uniform over the integers from sides[0] to sides[1]."""
    return sides[0] + int(u * (sides[1] - sides[0] + 1))


def resized_size(size: tuple[int, int], s: int) -> tuple[int, int]:
    """(width, height) with the shorter side s and the aspect ratio kept."""
    shorter = min(size)
    return round(size[0] * s / shorter), round(size[1] * s / shorter)


def resize_whole(image: Picture, s: int) -> np.ndarray:
    """The whole image with shorter side s: uint8 (height, width, 3)."""
    if isinstance(image, np.ndarray):
        if min(image.shape[:2]) == s:
            return image
        image = Image.fromarray(image)
    return np.asarray(image.resize(resized_size(image.size, s), RESAMPLING))


def crop_at(
    image: Picture, s: int, crop: int, at: tuple[float, float], *, flip: bool = False
) -> np.ndarray:
    """The crop x crop view of the image resized to shorter side s: uint8 (crop, crop, 3).

    `at` in [0, 1] is the position along the free width and height; 0.5 is the center. The flip
    comes last. An array is an image that was resized before; of any other image only the region
    that the filter reads for this view is resized. That view, and the one cut from Pillow's resized
    whole, are each within a grey level of the exact filter's, and so within two of each other.
    """
    if isinstance(image, np.ndarray):
        whole = resize_whole(image, s)
        x, y = _corner(whole.shape[1::-1], crop, at)
        view = whole[y : y + crop, x : x + crop]
        return view[:, ::-1] if flip else view
    region = region_of(image.size, s, crop, at)
    left, top, right, bottom = region.box
    part = image.crop(region.sides)
    # One side at a time: which one Pillow resizes first depends on its version.
    part = part.resize((crop, part.height), RESAMPLING, box=(left, 0, right, part.height))
    view = part.resize((crop, crop), RESAMPLING, box=(0, top, crop, bottom))
    # Pillow flips: copying a reversed array goes pixel by pixel, a fifth of the time of decoding.
    return np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)


class Region(NamedTuple):
    """The part of an image that a view needs: `sides`, in whole pixels of the image, and the view's
    own `box`, in pixels of that part. Both are left, top, right, bottom."""

    sides: tuple[int, int, int, int]
    box: tuple[float, float, float, float]


def region_of(size: tuple[int, int], s: int, crop: int, at: tuple[float, float]) -> Region:
    """The region that crop_at's view needs of an image of (width, height).

    Raises:
        ValueError: the view is larger than the image at this s.
    """
    full = resized_size(size, s)
    if crop > min(full):
        raise ValueError(f"a crop of {crop} pixels of an image resized to {full[0]} x {full[1]}")
    corner = _corner(full, crop, at)
    left, right, x0, x1 = _part_of(size[0], full[0], corner[0], crop)
    top, bottom, y0, y1 = _part_of(size[1], full[1], corner[1], crop)
    return Region((left, top, right, bottom), (x0, y0, x1, y1))


def _part_of(side: int, whole: int, start: int, crop: int) -> tuple[int, int, float, float]:
    """Along one side: the part's first pixel and its end, then the view's start and end in it."""
    scale = side / whole
    reach = max(scale, 1.0) + 1.0  # half the filter's width, and its rounding to whole pixels
    first = max(0, math.floor(start * scale - reach))
    last = min(side, math.ceil((start + crop) * scale + reach))
    end = min((start + crop) * scale, side)  # rounding may take it beyond
    return first, last, start * scale - first, end - first


def _corner(size: tuple[int, int], crop: int, at: tuple[float, float]) -> list[int]:
    return [min(int(u * (side - crop + 1)), side - crop) for u, side in zip(at, size, strict=True)]


def augment(
    image: Picture, draws: np.ndarray, *, crop: int, sides: tuple[int, int], flip: bool
) -> np.ndarray:
    """Random s, random crop, flipped half the time: uint8 (crop, crop, 3)."""
    view = view_of(draws, crop=crop, sides=sides, flip=flip)
    return crop_at(image, *view[:3], flip=view.flip)


class View(NamedTuple):
    """What crop_at cuts: crop x crop pixels at `at` of the image resized to s, perhaps flipped."""

    s: int
    crop: int
    at: tuple[float, float]
    flip: bool


def view_of(draws: np.ndarray, *, crop: int, sides: tuple[int, int], flip: bool) -> View:
    """The view that an image's draws (7,) stand for."""
    at, flipped = (draws[1], draws[2]), bool(flip and draws[3] < 0.5)
    return View(pick_side(draws[0], sides), crop, at, flipped)


# assumed: where two crops are equally near to the center, the right or lower one is taken.
CENTER = (0.5, 0.5)
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


def center_view(image: Picture, s: int, crop: int) -> np.ndarray:
    """(1, crop, crop, 3): one view, not flipped."""
    return crop_at(image, s, crop, CENTER)[None]


def ten_views(image: Picture, s: int, crop: int) -> np.ndarray:
    """(10, crop, crop, 3): the four corners and the center, and their flips, of the image resized
    once."""
    whole = resize_whole(image, s)
    views = np.stack([crop_at(whole, s, crop, at) for at in (*CORNERS, CENTER)])
    return np.concatenate([views, views[:, :, ::-1]])


def whole_views(image: Picture, s: int) -> np.ndarray:
    """(2, height, width, 3): the whole image with shorter side s, and its flip."""
    whole = resize_whole(image, s)
    return np.stack([whole, whole[:, ::-1]])
