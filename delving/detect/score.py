"""Fast R-CNN's testing: scores and moves every proposal, and keeps the best of overlapping ones."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from delving.data.input import Input
from delving.detect.boxes import clip, decode
from delving.detect.metric import (
    Detections,
    average_precisions,
    mean_of,
    recall_of,
)
from delving.detect.net import FastRCNN
from delving.detect.sample import Sizing, resize, scale_boxes
from delving.detect.voc import Split
from delving.device import wide

ROIS = 2048  # judged at once
# ours: of a tested image the 100 best detections of a score of 0.01 or more count, over all
# classes; Fast R-CNN's code has had other limits from one release to the next.
LEAST, MOST = 0.01, 100
METRICS = {"voc07": 11, "all_points": None}


@dataclass(frozen=True)
class Judge:
    """Finds objects with a trained detector.

    Attributes:
        statistics: mean and deviation (4,) by which shifts were normalised.
        overlap: if two detections of a class overlap by more, the worse one goes.
    """

    net: FastRCNN
    input: Input
    sizing: Sizing
    statistics: tuple[np.ndarray, np.ndarray]
    overlap: float
    autocast: Callable[[], AbstractContextManager]

    @torch.no_grad()
    def find(self, split: Split, number: int, proposals: np.ndarray) -> Detections:
        """What is found in one image; nothing if it has no proposals.

        Raises:
            FloatingPointError: the scores are not finite.
        """
        self.net.eval()
        size, device = split.sizes[number], self.input.mean.device
        boxes = torch.from_numpy(proposals)
        if not len(boxes):
            return _detections(number, boxes, *boxes.new_zeros(2, 0))
        image = resize(split.load(number), self.sizing)
        rois = scale_boxes(boxes, size, (image.shape[2], image.shape[1])).to(device)
        with self.autocast():
            feature_map = self.net.features(self.input(image.to(device)))
            parts = [self.net.judge(self.net.pool(feature_map, some)) for some in rois.split(ROIS)]
        scores = torch.cat([wide(part[0]) for part in parts]).softmax(1)[:, 1:]
        if not torch.isfinite(scores).all():
            raise FloatingPointError("the detector's scores are not finite")
        mean, std = (scores.new_tensor(x) for x in self.statistics)
        shifts = torch.cat([wide(part[1]) for part in parts]) * std + mean
        moved = clip(decode(boxes.to(scores)[:, None], shifts), size)
        return _detections(number, *suppress(moved.cpu(), scores.cpu(), self.overlap))


def suppress(boxes: Tensor, scores: Tensor, overlap: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best detections of an image: boxes (N, 4), scores (N,) and classes (N,), best first.

    Args:
        boxes: (R, classes, 4); scores: (R, classes).
    """
    from torchvision.ops import nms  # not at the top: see metric.py

    kept = []
    for label in range(scores.shape[1]):
        mine = (scores[:, label] >= LEAST).nonzero().flatten()
        best = mine[nms(boxes[mine, label], scores[mine, label], overlap)]
        kept.append((boxes[best, label], scores[best, label], torch.full_like(best, label)))
    found = [torch.cat(parts) for parts in zip(*kept, strict=True)]
    order = found[1].argsort(descending=True, stable=True)[:MOST]
    return found[0][order], found[1][order], found[2][order]


def _detections(number: int, boxes: Tensor, scores: Tensor, labels: Tensor) -> Detections:
    return Detections(
        np.full(len(boxes), number, np.int64),
        labels.numpy().astype(np.int64),
        scores.numpy().astype(np.float32),
        boxes.numpy().astype(np.float32),
    )


def joined(parts: Sequence[Detections]) -> Detections:
    """The detections of several images as one."""
    keys = ("image", "label", "score", "boxes")
    return Detections(*(np.concatenate([getattr(part, key) for part in parts]) for key in keys))


def score(found: Detections, split: Split) -> dict[str, dict]:
    """{metric: {map, ap}}, percent; a class without objects to be found has None."""
    summary = {}
    for name, points in METRICS.items():
        each = average_precisions(found, split.objects, len(split.classes), points=points)
        shown = dict(zip(split.classes, map(_rounded, each), strict=True))
        summary[name] = {"map": _rounded(mean_of(each)), "ap": shown}
    return summary


def chance(split: Split, proposals: Sequence[np.ndarray]) -> float | None:
    """The 11-point mAP of a detector that has learned nothing: random classes and scores for random
    proposals, as many per image as count."""
    rng = np.random.Generator(np.random.Philox(0))
    parts = []
    for number, boxes in enumerate(proposals):
        some = rng.permutation(len(boxes))[:MOST]
        labels = rng.integers(0, len(split.classes), len(some))
        parts.append(Detections(np.full(len(some), number), labels,
                                rng.random(len(some), np.float32), boxes[some]))  # fmt: skip
    each = average_precisions(joined(parts), split.objects, len(split.classes))
    return _rounded(mean_of(each))


def recall(split: Split, proposals: Sequence[np.ndarray]) -> float | None:
    """Percent of the objects that some proposal is near; None without objects."""
    return _rounded(recall_of(proposals, split.objects))


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 3)
