"""A training batch of Fast R-CNN: a few images, each with some RoIs and what they should become.

Every draw is keyed by (seed, step, place in the batch), so that an interruption changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delving.data.augment import RESAMPLING, samples_of
from delving.detect.boxes import encode, mirror
from delving.detect.metric import overlaps_of
from delving.detect.voc import Split

FOREGROUND, BACKGROUND = 0.5, 0.1  # overlaps from which an RoI counts as object, or as background
DRAWS = 12  # in the key of these draws, to tell them from others


@dataclass(frozen=True)
class Candidates:
    """An image's proposals and objects as RoIs.

    Attributes:
        boxes: (N, 4) float64.
        labels: (N,), 0 for background, else 1 + the class of the object overlapped most.
        shifts: (N, 4) to that object.
        overlap: (N,) with it.
    """

    boxes: np.ndarray
    labels: np.ndarray
    shifts: np.ndarray
    overlap: np.ndarray

    @property
    def foreground(self) -> np.ndarray:
        return np.flatnonzero(self.overlap >= FOREGROUND)

    @property
    def background(self) -> np.ndarray:
        return np.flatnonzero((self.overlap >= BACKGROUND) & (self.overlap < FOREGROUND))


class Sample(NamedTuple):
    """One image of a batch: uint8 (1, height, width, 3), RoIs (R, 4) in its pixels, labels (R,),
    shifts (R, 4), normalised."""

    pixels: Tensor
    rois: Tensor
    labels: Tensor
    shifts: Tensor


@dataclass(frozen=True)
class Sizing:
    """How images are resized: to a shorter side of `side`, or less if the longer one would be above
    `longest`; pixels."""

    side: int
    longest: int

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        factor = min(self.side / min(size), self.longest / max(size))
        return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def list_candidates(split: Split, proposals: Sequence[np.ndarray]) -> list[Candidates]:
    """Each image's proposals and its own objects, as RoIs.

    ours: difficult objects are not trained on, as they are not counted in testing (an RoI on one is
    background if it overlaps another object a little); Fast R-CNN's published code trains on them.
    """
    return [_candidates(split, n, boxes) for n, boxes in enumerate(proposals)]


def _candidates(split: Split, number: int, proposals: np.ndarray) -> Candidates:
    objects = split.objects[number]
    known = ~objects.difficult
    truth, classes = objects.boxes[known], objects.labels[known]
    boxes = np.concatenate([truth, proposals.astype(np.float64)])
    if not len(truth):
        none = np.zeros(len(boxes))
        return Candidates(boxes, none.astype(np.int64), np.zeros_like(boxes), none)
    overlaps = overlaps_of(boxes, truth)
    nearest, overlap = overlaps.argmax(1), overlaps.max(1)
    shifts = encode(torch.from_numpy(boxes), torch.from_numpy(truth[nearest])).numpy()
    labels = np.where(overlap >= FOREGROUND, 1 + classes[nearest], 0)
    return Candidates(boxes, labels, shifts, overlap)


def useful_images(candidates: Sequence[Candidates]) -> np.ndarray:
    """The images that have an RoI to train on.

    Raises:
        ValueError: none has.
    """
    useful = [n for n, c in enumerate(candidates) if len(c.foreground) + len(c.background)]
    if not useful:
        raise ValueError("no training image has an object, or a proposal near one")
    return np.array(useful)


def shift_statistics(candidates: Sequence[Candidates]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (4,) of the shifts of RoIs that overlap an object by half or
    more: the targets are normalised by them (Fast R-CNN, 2.3).

    ours: they are those of all classes together; Fast R-CNN's code has them for each class.
    """
    shifts = np.concatenate([c.shifts[c.foreground] for c in candidates])
    if not len(shifts):  # no object at all: nothing to regress
        return np.zeros(4), np.ones(4)
    return shifts.mean(0), np.maximum(shifts.std(0), 1e-3)


@dataclass(frozen=True)
class Batches:
    """The batch of each step, made from the step's number alone.

    Attributes:
        statistics: mean and standard deviation of shifts.
        images: how many in a batch.
        rois: how many in a batch, the same number from each image.
        share: of foreground RoIs among them, at most.
    """

    split: Split
    candidates: Sequence[Candidates]
    useful: np.ndarray
    sizing: Sizing
    statistics: tuple[np.ndarray, np.ndarray]
    images: int
    rois: int
    share: float
    seed: int

    def __getitem__(self, step: int) -> list[Sample]:
        _, chosen = samples_of(step, self.images, seed=self.seed, images=len(self.useful))
        return [self._sample(step, row, int(self.useful[n])) for row, n in enumerate(chosen)]

    def _sample(self, step: int, row: int, number: int) -> Sample:
        rng = np.random.default_rng([self.seed, DRAWS, step, row])
        one, mean_std = self.candidates[number], self.statistics
        chosen = choose_rois(one, self.rois // self.images, self.share, rng)
        boxes, shifts = torch.from_numpy(one.boxes[chosen]), one.shifts[chosen]
        # Flipped half of the time, as in Fast R-CNN (2.3); its code adds flipped copies to the set.
        flip, size = rng.random() < 0.5, self.split.sizes[number]
        if flip:
            boxes, shifts = mirror(boxes, size[0]), shifts * [-1, 1, 1, 1]
        shifts = torch.from_numpy((shifts - mean_std[0]) / mean_std[1])
        image = resize(self.split.load(number), self.sizing, flip=flip)
        scaled = scale_boxes(boxes, size, (image.shape[2], image.shape[1]))
        return Sample(image, scaled, torch.from_numpy(one.labels[chosen]), shifts.float())


def choose_rois(one: Candidates, count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """At most `count` RoIs, at most about a `share` of them foreground, the others background."""
    # Without background, at least one of foreground: a batch must not be empty.
    most = round(share * count) or min(count, int(not len(one.background)))
    foreground = rng.permutation(one.foreground)[:most]
    background = rng.permutation(one.background)[: count - len(foreground)]
    return np.concatenate([foreground, background])


def resize(image: Image.Image, sizing: Sizing, *, flip: bool = False) -> Tensor:
    """The image as the net sees it: uint8 (1, height, width, 3)."""
    small = image.resize(sizing.size_of(image.size), RESAMPLING)
    if flip:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(small))[None]


def scale_boxes(boxes: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """The boxes of an image of one (width, height) after resizing it to another, float32."""
    factors = boxes.new_tensor([to[0] / size[0], to[1] / size[1]] * 2)
    return (boxes * factors).float()
