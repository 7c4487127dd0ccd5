"""PASCAL VOC's mean average precision: the 11-point metric of 2007, and the one of all points.

A detection is right if it overlaps its object, the one that it overlaps most, by half or more, and
no better detection has found that object. Objects marked `difficult` count neither as found nor as
missed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

OVERLAP = 0.5  # intersection over union from which an object counts as found


@dataclass(frozen=True)
class Objects:
    """What is to be found in an image: boxes (N, 4) as in boxes.py, labels and flags (N,)."""

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class Detections:
    """What was found in all images: image, label and score (N,), boxes (N, 4)."""

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


def average_precisions(
    found: Detections, truth: Sequence[Objects], classes: int, *, points: int | None = 11
) -> list[float]:
    """The average precision of each class, percent; nan for a class without objects to be found.

    Args:
        truth: the objects of each image.
        points: how many recalls precision is read at: 11 as in 2007; None: all, as from 2010 on.
    """
    return [
        100 * average_precision(*precision_and_recall(found, truth, label), points=points)
        for label in range(classes)
    ]


def mean_of(precisions: Sequence[float]) -> float:
    """Their mean over the classes that have objects to be found; nan if none has."""
    known = [p for p in precisions if math.isfinite(p)]
    return float(np.mean(known)) if known else math.nan


def precision_and_recall(
    found: Detections, truth: Sequence[Objects], label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each detection of a class, best first; recalls are nan if there is
    nothing to be found."""
    right, wrong = match(found, truth, label)
    hits, misses = np.cumsum(right), np.cumsum(wrong)
    total = sum(int(((x.labels == label) & ~x.difficult).sum()) for x in truth)
    recall = hits / total if total else np.full(len(hits) or 1, math.nan)
    return hits / np.maximum(hits + misses, 1), recall


def match(found: Detections, truth: Sequence[Objects], label: int) -> tuple[np.ndarray, np.ndarray]:
    """Which detections of a class, best first, are right and which wrong; those of difficult
    objects are neither. Of detections with equal scores, the earlier one counts as the better."""
    chosen = np.flatnonzero(found.label == label)
    chosen = chosen[np.argsort(-found.score[chosen], kind="stable")]
    right, wrong = np.zeros((2, len(chosen)), bool)
    taken: set[tuple[int, int]] = set()
    best = _best_objects(found, truth, label)
    for place, detection in enumerate(chosen):
        overlap, number, difficult = best[detection]
        which = (int(found.image[detection]), number)
        if overlap < OVERLAP:
            wrong[place] = True
        elif not difficult:
            right[place], wrong[place] = which not in taken, which in taken
            taken.add(which)
    return right, wrong


def _best_objects(
    found: Detections, truth: Sequence[Objects], label: int
) -> dict[int, tuple[float, int, bool]]:
    """For each detection of a class, the object it overlaps most: (overlap, number, difficult)."""
    best: dict[int, tuple[float, int, bool]] = {}
    of_class = np.flatnonzero(found.label == label)
    for image in np.unique(found.image[of_class]):
        mine = of_class[found.image[of_class] == image]
        there = np.flatnonzero(truth[image].labels == label)
        if not len(there):
            best |= dict.fromkeys(mine.tolist(), (0.0, -1, False))
            continue
        overlaps = overlaps_of(found.boxes[mine], truth[image].boxes[there])
        for detection, row in zip(mine.tolist(), overlaps, strict=True):
            number = int(there[row.argmax()])
            best[detection] = (float(row.max()), number, bool(truth[image].difficult[number]))
    return best


def overlaps_of(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, M) intersections over unions, in float64; 0 for two boxes without area."""
    # Not at the top: torchvision loads torch's compiler, which takes seconds, and plans of
    # detections do without.
    from torchvision.ops import box_iou

    both = (torch.from_numpy(np.asarray(b, np.float64).reshape(-1, 4)) for b in (boxes, others))
    return box_iou(*both).nan_to_num(0.0).numpy()


def average_precision(
    precision: np.ndarray, recall: np.ndarray, *, points: int | None = 11
) -> float:
    """The mean, over recalls of 0, 0.1, ..., 1, of the best precision at that recall or more; if
    `points` is None, the area below the curve of these best precisions over all recalls."""
    if len(recall) and math.isnan(recall[0]):
        return math.nan
    if points:
        levels = np.linspace(0, 1, points)
        reached = [precision[recall >= level - 1e-12] for level in levels]
        return float(np.mean([p.max() if len(p) else 0.0 for p in reached]))
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best))


def recall_of(proposals: Sequence[np.ndarray], truth: Sequence[Objects]) -> float:
    """Percent of all objects, difficult ones aside, that some proposal of their image overlaps by
    half or more; nan without objects. An object that no proposal is near cannot be found."""
    reached = total = 0
    for boxes, objects in zip(proposals, truth, strict=True):
        wanted = objects.boxes[~objects.difficult]
        total += len(wanted)
        if len(wanted) and len(boxes):
            reached += int((overlaps_of(boxes, wanted).max(0) >= OVERLAP).sum())
    return 100 * reached / total if total else math.nan
