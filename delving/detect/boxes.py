"""Boxes: (N, 4) tensors of x1, y1, x2, y2 in pixels, half-open as slices are.

So an area is (x2 - x1) (y2 - y1), equal to VOC's own, whose boxes include their last pixel.
"""

import math

import torch
from torch import Tensor

# ours: a predicted box is at most 62.5 times as wide or as high as its RoI.
LARGEST = math.log(1000 / 16)  # of the log that is predicted: exp() stays finite


def encode(boxes: Tensor, truth: Tensor) -> Tensor:
    """The shifts (N, 4) that take boxes to the true ones: the centre's, in units of the sides, and
    the logarithms of the sides' factors (R-CNN, appendix C)."""
    (x, y, w, h), (tx, ty, tw, th) = _centred(boxes), _centred(truth)
    return torch.stack([(tx - x) / w, (ty - y) / h, (tw / w).log(), (th / h).log()], -1)


def decode(boxes: Tensor, shifts: Tensor) -> Tensor:
    """The boxes (..., 4) that shifts (..., 4) take boxes (..., 4) to: the inverse of `encode`."""
    x, y, w, h = _centred(boxes)
    dx, dy, dw, dh = shifts.unbind(-1)
    x, y = x + dx * w, y + dy * h
    w, h = w * dw.clamp(max=LARGEST).exp(), h * dh.clamp(max=LARGEST).exp()
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1)


def _centred(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cuts boxes (..., 4) off at the edges of an image of (width, height)."""
    width, height = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Where boxes (N, 4) lie in the flipped image."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], -1)
