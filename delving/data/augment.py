"""Section 3's augmentation. Every draw is keyed by (seed, epoch, image), so neither the number of
loader processes nor an interruption changes it.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

# assumed: images are resized by an antialiased bilinear filter, their aspect ratio kept.
RESAMPLING = Image.Resampling.BILINEAR
ORDER, DRAWS = 0, 1
Picture = Image.Image | np.ndarray  # decoded; an array is resized already


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
    """The rows of a batch that are a rank's: sizes differ by one at most, together they are all.

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

    `at` in [0, 1] says where along the free width and height; 0.5 is the center. An array is an
    image resized before. A view is flipped last. Of an image only the view's own source box is
    resized: Pillow's filter sees beyond the box, so that the view is that of the whole, but for
    rounding of a grey level.
    """
    if isinstance(image, np.ndarray):
        whole = resize_whole(image, s)
        x, y = _corner(whole.shape[1::-1], crop, at)
        view = whole[y : y + crop, x : x + crop]
        return view[:, ::-1] if flip else view
    full = resized_size(image.size, s)
    x, y = _corner(full, crop, at)
    rx, ry = (side / whole for side, whole in zip(image.size, full, strict=True))
    box = (x * rx, y * ry, (x + crop) * rx, (y + crop) * ry)
    view = image.resize((crop, crop), RESAMPLING, box=box)
    # By Pillow: an array is copied backwards pixel by pixel, which takes a fifth of decoding.
    return np.asarray(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else view)


def _corner(size: tuple[int, int], crop: int, at: tuple[float, float]) -> list[int]:
    return [min(int(u * (side - crop + 1)), side - crop) for u, side in zip(at, size, strict=True)]


def augment(
    image: Picture, draws: np.ndarray, *, crop: int, sides: tuple[int, int], flip: bool
) -> np.ndarray:
    """Random s, random crop, flipped half the time: uint8 (crop, crop, 3)."""
    turned = flip and draws[3] < 0.5
    return crop_at(image, pick_side(draws[0], sides), crop, (draws[1], draws[2]), flip=turned)


CENTER = ((0.5, 0.5),)
CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


def center_view(image: Picture, s: int, crop: int) -> np.ndarray:
    """(1, crop, crop, 3): one view, not flipped."""
    return crop_at(image, s, crop, CENTER[0])[None]


def ten_views(image: Picture, s: int, crop: int) -> np.ndarray:
    """(10, crop, crop, 3): the four corners and the center, and their flips."""
    views = np.stack([crop_at(image, s, crop, at) for at in (*CORNERS, *CENTER)])
    return np.concatenate([views, views[:, :, ::-1]])


def whole_views(image: Picture, s: int) -> np.ndarray:
    """(2, height, width, 3): the whole image with shorter side s, and its flip."""
    whole = resize_whole(image, s)
    return np.stack([whole, whole[:, ::-1]])
