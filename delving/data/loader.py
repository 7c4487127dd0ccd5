"""Batches for training and views for testing, in this process or by loader processes."""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from delving.data.augment import (
    Picture,
    View,
    augmentation_of,
    crop_at,
    resize_whole,
    rows_of,
    samples_of,
    view_of,
)
from delving.data.images import Images, UndecodableImageError, decode, read_size
from delving.data.parcel import map_tensors
from delving.data.processes import AHEAD, Dataset, start_method, started, take
from delving.data.regions import agrees, cut_region, look_at

SHARING = "DELVING_SHARING"  # tells each worker process how many of them share the cores
NAMED = 3  # images named in a message about a batch
MOST = 16  # loader processes, if data.workers does not say how many
PIXEL = 4  # bytes in which Pillow stores an RGB pixel


class Batch(NamedTuple):
    """A training batch: uint8 (N, crop, crop, 3), labels (N,), color draws (N, 3), and the names of
    images that could not be decoded."""

    pixels: Tensor
    labels: Tensor
    color: Tensor
    bad: list[str]


@dataclass
class Cache:
    """Decoded images kept in memory up to `budget` bytes; the rest are decoded every time.

    `side`, for when every view is at that s, keeps them as arrays resized to that shorter side: a
    view is then a slice.
    """

    images: Images
    budget: float
    side: int | None = None
    kept: dict[int, Picture] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    # (N, 2): sizes of images cut before, else 0; in time each loader process holds them all.
    sound: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.sound = np.zeros((len(self.images), 2), np.uint16)

    def load(self, index: int) -> Picture:
        if index in self.kept:
            return self.kept[index]
        return self._decode(index, self.images.bytes_of(index))

    def cut(self, index: int, view: View) -> np.ndarray:
        """crop_at's view of an image. One that will be neither kept nor resized whole is decoded
        only as far as the view needs, if that is possible."""
        picture = self.kept.get(index)
        if picture is None:
            data = self.images.bytes_of(index)
            if not (self.side or self._has_room(index, data)):
                pixels = self._cut(index, data, view)
                if pixels is not None:
                    return pixels
            picture = self._decode(index, data)
        return crop_at(picture, *view[:3], flip=view.flip)

    def _cut(self, index: int, data: bytes, view: View) -> np.ndarray | None:
        new = not self.sound[index].any()
        name = self.images.names[index]
        size = look_at(data, name) if new else tuple(self.sound[index].tolist())
        pixels = cut_region(data, size, view, new=new) if size else None
        if pixels is not None:
            self.sound[index] = size
        return pixels

    def _has_room(self, index: int, data: bytes) -> bool:
        return self.budget > 0 and self.budget >= math.prod(self.size(index, data)) * PIXEL

    def _decode(self, index: int, data: bytes) -> Picture:
        picture: Picture = decode(data, self.images.names[index])
        size = picture.width * picture.height * PIXEL
        if self.side:
            picture = resize_whole(picture, self.side)
            size = picture.nbytes
        if self.budget >= size:
            self.budget -= size
            self.kept[index] = picture
        return picture

    def size(self, index: int, data: bytes | None = None) -> tuple[int, int]:
        """(width, height) of the decoded image, by its header; `data`: its file, if read before."""
        if index not in self.sizes:
            name = self.images.names[index]
            self.sizes[index] = read_size(data or self.images.bytes_of(index), name)
        return self.sizes[index]


@dataclass(frozen=True)
class TrainingBatches:
    """The batch of each step, made from the step's number alone.

    Attributes:
        source: the training images, perhaps cached.
        batch: images per step.
        crop: pixels.
        sides: the range that the shorter side s is drawn from, pixels.
        flip: whether to flip half of the images.
        seed: keys order and augmentation.
        share: (rank, ranks); only this rank's rows of a batch are made, see `rows_of`.
    """

    source: Cache
    _: KW_ONLY
    batch: int
    crop: int
    sides: tuple[int, int]
    flip: bool
    seed: int
    share: tuple[int, int] = (0, 1)

    def __getitem__(self, step: int) -> Batch:
        epochs, indices = self._samples(step)
        count = len(self.source.images)
        draws = augmentation_of(epochs, indices, seed=self.seed, images=count)
        pixels = np.empty((len(indices), self.crop, self.crop, 3), np.uint8)
        labels, bad = np.empty(len(indices), np.int64), []
        for row, index in enumerate(indices):
            view = view_of(draws[row], crop=self.crop, sides=self.sides, flip=self.flip)
            pixels[row], used = self._cut(int(index), view, bad)
            labels[row] = self.source.images.labels[used]
        return Batch(*map(torch.from_numpy, (pixels, labels, draws[:, 4:])), bad)

    def describe(self, step: int) -> str:
        """The step and its first images, for messages."""
        return f"step {step} ({name_few(self.source.images, self._samples(step)[1])})"

    def _samples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The epochs and indices of this rank's rows."""
        images = len(self.source.images)
        epochs, indices = samples_of(step, self.batch, seed=self.seed, images=images)
        rows = rows_of(self.batch, *self.share)
        return epochs[rows], indices[rows]

    def _cut(self, index: int, view: View, bad: list[str]) -> tuple[np.ndarray, int]:
        """The view of the image, or of the next one that can be decoded, and that one's index."""
        count = len(self.source.images)
        for used in (n % count for n in range(index, index + count)):
            try:
                return self.source.cut(used, view), used
            except UndecodableImageError:
                bad.append(self.source.images.names[used])
        raise ValueError("no training image can be decoded")


@dataclass(frozen=True)
class Views:
    """Test views, a group of images at a time: (indices, uint8 (N, views, height, width, 3)).

    An image that cannot be decoded is not replaced: its error is the item, for the caller to raise.
    """

    source: Cache
    view: Callable[[Picture], np.ndarray]
    groups: list[np.ndarray]

    def __getitem__(self, group: int) -> tuple[np.ndarray, Tensor] | UndecodableImageError:
        indices = self.groups[group]
        try:
            views = [self.view(self.source.load(int(i))) for i in indices]
        except UndecodableImageError as error:
            return error
        return indices, torch.from_numpy(np.stack(views))

    def describe(self, group: int) -> str:
        """The group's first images, for messages."""
        return f"a group of test images ({name_few(self.source.images, self.groups[group])})"


def name_few(images: Images, indices: np.ndarray) -> str:
    """The names of the first few of these images."""
    names = [images.names[i] for i in indices[:NAMED]]
    return ", ".join([*names, "..."] if len(indices) > NAMED else names)


def iterate(
    dataset: Dataset,
    keys: range,
    *,
    workers: int,
    pin: bool,
    timeout: float | None = None,
    ahead: int = AHEAD,
) -> Iterator:
    """The items of `keys` in order, made by `workers` loader processes (0: this one).

    They start with the first item and end with the last, or when the iterator is closed or dropped.

    Args:
        pin: whether tensors go to page-locked memory, from which copies to a GPU are fast.
        timeout: seconds a loader process may take for an item; None: no limit.
        ahead: items that a loader process is given before the first of them is taken.

    Raises:
        LoaderError: a loader process died, hangs or failed.
        ValueError: as the dataset raised it.
    """
    if not workers:
        for key in keys:
            yield _pin(dataset[key]) if pin else dataset[key]
        return
    with _pinning_thread(pin) as thread, started(dataset, workers) as loaders:
        items = take(dataset, keys, loaders, timeout=timeout, ahead=ahead)
        yield from _pinned_ahead(items, thread) if pin else items


def _pinning_thread(pin: bool) -> ThreadPoolExecutor:
    """A thread that works on this thread's GPU; it starts only when it is used."""
    device = [torch.accelerator.current_device_index()] if pin else []
    return ThreadPoolExecutor(1, initializer=torch.accelerator.set_device_index, initargs=device)


def _pinned_ahead(items: Iterator, thread: ThreadPoolExecutor) -> Iterator:
    """The items, pinned one ahead so that training does not wait for the copy."""

    def after() -> list:
        return [_pin(item) for item in islice(items, 1)]

    upcoming = thread.submit(after)
    while item := upcoming.result():
        upcoming = thread.submit(after)
        yield item[0]


def _pin(item: Any) -> Any:
    return map_tensors(item, Tensor.pin_memory)


def count_workers(wanted: int, sharing: int = 1, *, gpu: bool = False) -> int:
    """How many loader processes to start: `wanted`, or if that is -1, all but two of the cores that
    are this process's after `sharing` ranks and the trainings beside it have theirs; at most MOST.
    On two cores loading in this process (0) is fastest: training keeps both busy. So it is without
    a `gpu` where processes are not forked (macOS): each would import torch anew for each pass.
    Trainings side by side on a GPU spare one core each, and load for one another."""
    if wanted >= 0:
        return wanted
    if not gpu and start_method() != "fork":
        return 0
    beside = int(os.environ.get(SHARING, 1))
    spare = 1 if gpu and beside > 1 else 2
    return min(MOST, max(0, count_cores() // (sharing * beside) - spare))


def count_cores() -> int:
    """The cores this process may use; macOS and Windows tell only how many the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def decoding_threads() -> Iterator[ThreadPoolExecutor]:
    """A thread per core, to decode images in; after an error or Ctrl-C no waiting work is begun.
    Decoding silences warnings, which threads could leave silenced for good."""
    with warnings.catch_warnings(), ThreadPoolExecutor(count_cores()) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def cached(images: Images, *, gigabytes: float, workers: int, side: int | None = None) -> Cache:
    """A Cache that keeps images in this process alone: loader processes would each keep theirs."""
    if workers and not side:
        agrees()  # compiles once, here, while no loader process is waited for
    return Cache(images, gigabytes * 1e9 if workers == 0 else 0, side)
