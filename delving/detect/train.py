"""Fast R-CNN's training: its loss, one step, the loop."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from delving.data.input import Input
from delving.detect.net import FastRCNN
from delving.detect.sample import Batches, Sample
from delving.device import wide
from delving.momentum import Momentum
from delving.schema import Detect
from delving.step import seed_dropout, seed_generators

AHEAD = 4  # batches made while others are trained on


@dataclass
class Progress:
    """Where a training stands; all of it is saved and resumed."""

    step: int = 0
    pending: list[list[float]] = field(default_factory=list)  # since the last log line
    status: str = "running"


def detection_loss(
    scores: Tensor, shifts: Tensor, labels: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of the classes and that of the boxes, means over all RoIs (Fast R-CNN, Eq. 1 to 3).

    Args:
        scores: (R, classes + 1); shifts: (R, classes, 4).
        labels: (R,), 0 for background; targets: (R, 4), normalised, read where there is an object.
    """
    scores, shifts = wide(scores), wide(shifts)
    there = labels.nonzero().flatten()
    own = shifts[there, labels[there] - 1]
    of_boxes = F.smooth_l1_loss(own, targets[there].to(own.dtype), reduction="sum") / len(labels)
    return F.cross_entropy(scores, labels), of_boxes


@dataclass(frozen=True)
class Trainer:
    """Makes steps of one training; `autocast` is the context of a forward pass."""

    net: FastRCNN
    input: Input
    optimizer: Momentum
    settings: Detect
    seed: int
    autocast: Callable[[], AbstractContextManager]

    def steps(
        self, supply: Iterable[list[Sample]], progress: Progress
    ) -> Iterator[tuple[float, ...]]:
        """Makes a step of each batch, until one diverges; yields each one's loss, its parts for
        classes and boxes, and the percentage of RoIs that were classified wrongly."""
        for batch in supply:
            yield self._step(batch, progress)
            if progress.status == "diverged":
                return

    def _step(self, batch: list[Sample], progress: Progress) -> tuple[float, ...]:
        self.net.train()
        device = self.input.mean.device
        labels = torch.cat([sample.labels for sample in batch]).to(device)
        targets = torch.cat([sample.shifts for sample in batch]).to(device)
        keys = (self.seed, progress.step)
        seed_dropout(self.net, keys, batch=len(labels), rows=slice(0, len(labels)))
        seed_generators(device, keys, 0)
        with self.autocast():
            images = [self.input(sample.pixels.to(device)) for sample in batch]
            scores, shifts = self.net(images, [sample.rois.to(device) for sample in batch])
        losses = detection_loss(scores, shifts, labels, targets)
        self.optimizer.zero_grad()
        sum(losses).backward()
        wrong = (scores.detach().argmax(1) != labels).float().mean()
        told = torch.stack([*(part.detach() for part in losses), wrong.to(losses[0].dtype)])
        of_classes, of_boxes, error = told.tolist()  # to the CPU: not all devices have float64
        error *= 100
        loss = of_classes + of_boxes
        if math.isfinite(loss):
            self.optimizer.step(learning_rate(self.settings, progress.step))
            progress.step += 1
            progress.pending.append([loss, of_classes, of_boxes, error])
        else:
            progress.status = "diverged"
        return loss, of_classes, of_boxes, error


def ahead(batches: Batches, first: int, total: int) -> Iterator[list[Sample]]:
    """The batches of steps `first` to `total` - 1, made by a thread while others are trained on."""
    left = iter(range(first, total))
    with ThreadPoolExecutor(1) as thread:
        made = deque(thread.submit(batches.__getitem__, step) for step in islice(left, AHEAD))
        try:
            while made:
                batch = made.popleft().result()
                made += [thread.submit(batches.__getitem__, step) for step in islice(left, 1)]
                yield batch
        finally:
            for future in made:
                future.cancel()


def learning_rate(settings: Detect, step: int) -> float:
    """The rate, divided by ten at each switch passed (Fast R-CNN: after 30,000 of 40,000 steps).

    ours: in detection too biases do not decay and learn at the weights' rate; Fast R-CNN's decay,
    and learn twice as fast.
    """
    return settings.lr * 0.1 ** sum(step >= share * settings.steps for share in settings.switch)
