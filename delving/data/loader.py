"""Batches for training and views for testing, in this process or by loader processes."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from delving.data.augment import Picture, augment, augmentation_of, resize_whole, samples_of
from delving.data.images import Images, UndecodableImageError
from delving.signals import HEEDED


class Batch(NamedTuple):
    """A training batch: uint8 (N, crop, crop, 3), labels (N,), color draws (N, 3), bad names."""

    pixels: Tensor
    labels: Tensor
    color: Tensor
    bad: list[str]


@dataclass
class Cache:
    """Decoded images kept in memory until `budget` bytes; the rest is decoded every time.

    With `side` they are kept resized to that shorter side, as arrays, where every view is at that
    s: a view is then a slice.
    """

    images: Images
    budget: float
    side: int | None = None
    kept: dict[int, Picture] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def load(self, index: int) -> Picture:
        if index in self.kept:
            return self.kept[index]
        picture: Picture = self.images.load(index)
        size = picture.width * picture.height * 4  # Pillow stores RGB in four bytes
        if self.side:
            picture = resize_whole(picture, self.side)
            size = picture.nbytes
        if self.budget >= size:
            self.budget -= size
            self.kept[index] = picture
        return picture

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of the image as it is in its file."""
        if index not in self.sizes:
            self.sizes[index] = self.images.size(index)
        return self.sizes[index]


class TrainingBatches(Dataset):
    """The batch of each step, made from the step's number alone.

    Args:
        source: the training images, perhaps cached.
        batch: images a step.
        crop: pixels.
        sides: the shorter side s is drawn from here, pixels.
        flip: whether to flip half of the images.
        seed: keys order and augmentation.
    """

    def __init__(
        self, source: Cache, *, batch: int, crop: int, sides: tuple[int, int], flip: bool, seed: int
    ):
        self.source, self.batch, self.crop, self.sides = source, batch, crop, sides
        self.flip, self.seed = flip, seed

    def __getitem__(self, step: int) -> Batch:
        count = len(self.source.images)
        epochs, indices = samples_of(step, self.batch, seed=self.seed, images=count)
        draws = augmentation_of(epochs, indices, seed=self.seed, images=count)
        pixels = np.empty((self.batch, self.crop, self.crop, 3), np.uint8)
        labels, bad = np.empty(self.batch, np.int64), []
        for row, index in enumerate(indices):
            image, used = self._load(int(index), bad)
            pixels[row] = augment(
                image, draws[row], crop=self.crop, sides=self.sides, flip=self.flip
            )
            labels[row] = self.source.images.labels[used]
        return Batch(*map(torch.from_numpy, (pixels, labels, draws[:, 4:])), bad)

    def _load(self, index: int, bad: list[str]) -> tuple[Picture, int]:
        """The image, or where it cannot be decoded the next that can."""
        count = len(self.source.images)
        for used in range(index, index + count):
            try:
                return self.source.load(used % count), used % count
            except UndecodableImageError:
                bad.append(self.source.images.names[used % count])
        raise ValueError("no training image can be decoded")


class Views(Dataset):
    """Test views, a group of images at a time: (indices, uint8 (N, views, height, width, 3)).

    An image that cannot be decoded is never replaced here: its error is the item, to be raised by
    who asked, since loader processes wrap what they raise.
    """

    def __init__(
        self, source: Cache, view: Callable[[Picture], np.ndarray], groups: list[np.ndarray]
    ):
        self.source, self.view, self.groups = source, view, groups

    def __getitem__(self, group: int) -> tuple[np.ndarray, Tensor] | UndecodableImageError:
        indices = self.groups[group]
        try:
            views = [self.view(self.source.load(int(i))) for i in indices]
        except UndecodableImageError as error:
            return error
        return indices, torch.from_numpy(np.stack(views))


def iterate(dataset: Dataset, keys: range, *, workers: int, pin: bool) -> Iterator:
    """The items of `keys` in order, from `workers` loader processes (0: this one)."""
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            sampler=keys,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_leave_signals_to_the_parent,
        )
    )


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the whole process group must not end the loaders before the state is saved."""
    for number in HEEDED:
        signal.signal(number, signal.SIG_IGN)


def count_workers(wanted: int) -> int:
    """-1: all cores but two, at most 16. On two cores loading in this process is fastest, since
    training itself keeps both busy."""
    return wanted if wanted >= 0 else min(16, max(0, count_cores() - 2))


def count_cores() -> int:
    """The cores this process may use; macOS and Windows tell only those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cached(images: Images, *, gigabytes: float, workers: int, side: int | None = None) -> Cache:
    """Keeps decoded images only in this process: loader processes would each keep their own."""
    return Cache(images, gigabytes * 1e9 if workers == 0 else 0, side)
