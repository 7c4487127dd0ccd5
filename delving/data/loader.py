"""Batches for training and views for testing, in this process or by loader processes."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from delving.data.augment import augment, draw_augmentation, samples_of
from delving.data.images import Images, UndecodableImageError


class Batch(NamedTuple):
    """A training batch: uint8 (N, crop, crop, 3), labels (N,), color draws (N, 3), bad names."""

    pixels: Tensor
    labels: Tensor
    color: Tensor
    bad: list[str]


@dataclass
class Cache:
    """Decoded images kept in memory until `budget` bytes; the rest is decoded every time."""

    images: Images
    budget: float
    kept: dict[int, Image.Image] = field(default_factory=dict)

    def load(self, index: int) -> Image.Image:
        if index in self.kept:
            return self.kept[index]
        image = self.images.load(index)
        size = image.width * image.height * 4  # Pillow stores RGB in four bytes
        if self.budget >= size:
            self.budget -= size
            self.kept[index] = image
        return image

    def size(self, index: int) -> tuple[int, int]:
        kept = self.kept.get(index)
        return kept.size if kept else self.images.size(index)


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
        tables = {int(e): draw_augmentation(self.seed, int(e), count) for e in np.unique(epochs)}
        draws = np.stack([tables[int(e)][i] for e, i in zip(epochs, indices, strict=True)])
        pixels = np.empty((self.batch, self.crop, self.crop, 3), np.uint8)
        labels, bad = np.empty(self.batch, np.int64), []
        for row, index in enumerate(indices):
            image, used = self._load(int(index), bad)
            pixels[row] = augment(
                image, draws[row], crop=self.crop, sides=self.sides, flip=self.flip
            )
            labels[row] = self.source.images.labels[used]
        return Batch(*map(torch.from_numpy, (pixels, labels, draws[:, 4:])), bad)

    def _load(self, index: int, bad: list[str]) -> tuple[Image.Image, int]:
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

    An image that cannot be decoded is never replaced here: its error ends the evaluation.
    """

    def __init__(
        self, source: Cache, view: Callable[[Image.Image], np.ndarray], groups: list[np.ndarray]
    ):
        self.source, self.view, self.groups = source, view, groups

    def __getitem__(self, group: int) -> tuple[np.ndarray, Tensor]:
        indices = self.groups[group]
        views = [self.view(self.source.load(int(i))) for i in indices]
        return indices, torch.from_numpy(np.stack(views))


def iterate(dataset: Dataset, keys: range, *, workers: int, pin: bool) -> Iterator:
    """The items of `keys` in order, from `workers` loader processes (0: this one)."""
    return iter(
        DataLoader(dataset, batch_size=None, sampler=keys, num_workers=workers, pin_memory=pin)
    )


def count_workers(wanted: int) -> int:
    """-1: all cores but two, at most 16. On two cores loading in this process is fastest, since
    training itself keeps both busy."""
    return wanted if wanted >= 0 else min(16, max(0, count_cores() - 2))


def count_cores() -> int:
    """The cores this process may use; macOS and Windows tell only those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cached(images: Images, *, gigabytes: float, workers: int) -> Cache:
    """Keeps decoded images only in this process: loader processes would each keep their own."""
    return Cache(images, gigabytes * 1e9 if workers == 0 else 0)
