"""Fast R-CNN's training: its loss, one step, the loop."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from delving.data.input import Input
from delving.detect.net import FastRCNN
from delving.detect.sample import Batches, Sample
from delving.device import wide
from delving.momentum import Momentum
from delving.schema import Detect
from delving.train import seed_dropout

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
    """(of the classes, of the boxes), each a mean over all RoIs (Fast R-CNN, Eq. 1 to 3).

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

    def steps(self, batches: Batches, progress: Progress) -> Iterator[tuple[float, ...]]:
        """Makes the steps that are left; yields each one's loss, of classes, of boxes, and the
        error of RoIs, percent."""
        total = self.settings.steps
        with ThreadPoolExecutor(1) as thread:
            first = range(progress.step, min(total, progress.step + AHEAD))
            ahead = [thread.submit(batches.__getitem__, step) for step in first]
            try:
                while progress.step < total and progress.status != "diverged":
                    batch = ahead.pop(0).result()
                    upcoming = progress.step + AHEAD
                    if upcoming < total:
                        ahead.append(thread.submit(batches.__getitem__, upcoming))
                    yield self._step(batch, progress)
            finally:
                for future in ahead:
                    future.cancel()

    def _step(self, batch: list[Sample], progress: Progress) -> tuple[float, ...]:
        self.net.train()
        device = self.input.mean.device
        rate = learning_rate(self.settings, progress.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        labels = torch.cat([sample.labels for sample in batch]).to(device)
        targets = torch.cat([sample.shifts for sample in batch]).to(device)
        keys = (self.seed, progress.step)
        seed_dropout(self.net, keys, batch=len(labels), rows=slice(0, len(labels)))
        with self.autocast():
            images = [self.input(sample.pixels.to(device)) for sample in batch]
            scores, shifts = self.net(images, [sample.rois.to(device) for sample in batch])
        losses = detection_loss(scores, shifts, labels, targets)
        self.optimizer.zero_grad()
        sum(losses).backward()
        wrong = (scores.detach().argmax(1) != labels).float().mean()
        told = torch.stack([*(part.detach().double() for part in losses), 100 * wrong.double()])
        of_classes, of_boxes, error = told.tolist()
        loss = of_classes + of_boxes
        if math.isfinite(loss):
            self.optimizer.step()
            advance(progress, [loss, of_classes, of_boxes, error])
        else:
            progress.status = "diverged"
        return loss, of_classes, of_boxes, error


def learning_rate(settings: Detect, step: int) -> float:
    """Divided by ten at each switch passed (Fast R-CNN: after 30,000 of 40,000 steps)."""
    return settings.lr * 0.1 ** sum(step >= share * settings.steps for share in settings.switch)


def advance(progress: Progress, row: list[float]) -> None:
    """Counts a step."""
    progress.step += 1
    progress.pending.append(row)
