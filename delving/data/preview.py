"""`delving data preview`: a contact sheet of a data set, and of what augmentation makes of it."""

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
from PIL import Image

from delving.data.augment import augment, draw_augmentation
from delving.data.images import Images, UndecodableImageError, evenly
from delving.data.input import Input, measure_input
from delving.data.loader import Cache

CLASSES, COLUMNS, WORDS = 12, 10, 18
PIXELS = 160  # an image's longer side in the sheet; whole photographs would take gigabytes


def sheet_rows(images: Images) -> list[tuple[str, list[np.ndarray]]]:
    """(title, images) of the first classes: their first images, whole, shrunk for the sheet."""
    rows = []
    for label, title in list(enumerate(images.titles))[:CLASSES]:
        sound = _sound(images, np.flatnonzero(images.labels == label))
        rows.append((title[:WORDS], [_small(image) for _, image in islice(sound, COLUMNS)]))
    return rows


def _small(image: Image.Image) -> np.ndarray:
    image.thumbnail((PIXELS, PIXELS))
    return np.asarray(image)


def _sound(images: Images, chosen: Iterable[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, image) of those that can be decoded; `delving data verify` names the others."""
    for index in chosen:
        with contextlib.suppress(UndecodableImageError):
            yield int(index), images.load(int(index))


def augmented_rows(
    images: Images, input: Input, *, sides: tuple[int, int], flip: bool, color: float, seed: int
) -> list[tuple[str, list[np.ndarray]]]:
    """The same few images over epochs, as training sees them before the mean is subtracted."""
    crop, rows = input.mean.shape[1], []
    for index, image in _sound(images, evenly(len(images), 6)):
        views = []
        for epoch in range(COLUMNS):
            draws = draw_augmentation(seed, epoch, len(images))[index]
            view = augment(image, draws, crop=crop, sides=sides, flip=flip)
            shift = input.color_shift(torch.from_numpy(draws[None, 4:]), color)[0].numpy()
            views.append(np.clip(view + shift, 0, 255).astype(np.uint8))
        rows.append((images.titles[images.labels[index]][:WORDS], views))
    return rows


def sample_input(images: Images, crop: int) -> Input:
    """The input statistics of a thousand training images, enough for a picture."""
    sample = Cache(images.take(evenly(len(images), 1000)), 0)
    return measure_input(sample, crop=crop, s=8 * crop // 7, normalised=False)


def describe_shift(input: Input, color: float) -> str:
    """How far colour altering shifts red, green and blue, as std in grey levels."""
    stds = (255 * color * input.color).square().sum(1).sqrt().tolist()
    return "colour altering of std " + ", ".join(f"{std:.1f}" for std in stds) + " grey levels"
