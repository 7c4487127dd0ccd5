"""Training batches made on the net's device from images kept there: on a GPU, if all images are of
one size and fit. Two matrix products cut, resize and flip a batch."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from delving.data.augment import augmentation_of, pick_side, resized_size
from delving.data.images import Images, UndecodableImageError
from delving.data.loader import Batch, TrainingBatches, decoding_threads

LOOKED_AT = 64  # images whose sizes are compared before any is decoded
TOGETHER = 1024  # images decoded before they go to the device


@dataclass(frozen=True)
class Resident:
    """The images of a split on a device.

    Attributes:
        images: their names and labels.
        pixels: uint8 (images, height, width, 3); zeros where one cannot be decoded.
        used: (images,), the index of each image itself, or of the next that can be decoded.
    """

    images: Images
    pixels: Tensor
    used: np.ndarray


def load_resident(images: Images, device: torch.device, gigabytes: float) -> Resident | None:
    """The images on the device; None if they are not all of one size, or too many.

    Raises:
        ValueError: not one can be decoded.
    """
    size = _common_size(images, gigabytes)
    if size is None:
        return None
    width, height = size
    pixels = torch.zeros(len(images), height, width, 3, dtype=torch.uint8, device=device)
    good = np.zeros(len(images), bool)
    with decoding_threads() as pool:
        for start in range(0, len(images), TOGETHER):
            numbers = range(start, min(start + TOGETHER, len(images)))
            found = list(pool.map(lambda n: _decode(images, n), numbers))
            if any(one is not None and one.shape != (height, width, 3) for one in found):
                return None
            for number, one in zip(numbers, found, strict=True):
                good[number] = one is not None
            empty = np.zeros((height, width, 3), np.uint8)
            part = np.stack([empty if one is None else one for one in found])
            pixels[start : numbers.stop] = torch.from_numpy(part).to(device)
    if not good.any():
        raise ValueError("no training image can be decoded")
    return Resident(images, pixels, _next_good(good))


def _common_size(images: Images, gigabytes: float) -> tuple[int, int] | None:
    """(width, height) of the first images, if they agree and all images would fit at that size."""
    sizes = set()
    for number in range(min(LOOKED_AT, len(images))):
        try:
            sizes.add(images.size(number))
        except UndecodableImageError:
            continue
    if len(sizes) != 1:
        return None
    [(width, height)] = sizes
    return (width, height) if len(images) * width * height * 3 <= gigabytes * 1e9 else None


def _decode(images: Images, number: int) -> np.ndarray | None:
    try:
        return np.asarray(images.load(number))
    except UndecodableImageError:
        return None


def _next_good(good: np.ndarray) -> np.ndarray:
    """For each place itself if it is good, else the next good one; the first follows the last."""
    places = np.flatnonzero(good)
    after = np.searchsorted(places, np.arange(len(good)))
    return places[after % len(places)]


@dataclass(frozen=True)
class ResidentBatches(TrainingBatches):
    """The batch of each step, as TrainingBatches makes it but for rounding by one grey level.

    ours: on a GPU images of one size are resized there, in floating point; Pillow rounds between
    the two directions, so that a pixel may differ by a grey level.
    """

    source: Resident

    def __getitem__(self, step: int) -> Batch:
        images, device = self.source.images, self.source.pixels.device
        epochs, indices = self._samples(step)
        draws = augmentation_of(epochs, indices, seed=self.seed, images=len(images))
        used = self.source.used[indices]
        bad = [images.names[n % len(images)] for index, other in zip(indices, used, strict=True)
               for n in range(index, other if other >= index else other + len(images))]  # fmt: skip
        chosen = self.source.pixels[send(used, device)]
        pixels = cut(chosen, draws, crop=self.crop, sides=self.sides, flip=self.flip)
        return Batch(pixels, send(images.labels[used], device), send(draws[:, 4:], device), bad)


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device; a GPU's current work is not waited for."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def cut(
    pixels: Tensor, draws: np.ndarray, *, crop: int, sides: tuple[int, int], flip: bool
) -> Tensor:
    """augment.py's `augment` for a batch: uint8 (N, height, width, 3) to (N, crop, crop, 3).

    Args:
        draws: (N, 7), as draw_augmentation gives them.
    """
    height, width = pixels.shape[1:3]
    chosen = [pick_side(u, sides) for u in draws[:, 0]]
    known = {s: resized_size((width, height), s) for s in dict.fromkeys(chosen)}
    full = np.array([known[s] for s in chosen], np.float32)  # (N, 2), width and height
    corners = np.minimum((draws[:, 1:3] * (full - crop + 1)).astype(int), full - crop)
    scales = np.array([width, height]) / full  # pixels of the image for one of the view's
    told = np.concatenate([corners * scales, scales, draws[:, 3:4] < 0.5], 1)
    start_x, start_y, scale_x, scale_y, turned = send(told.astype(np.float32), pixels.device).T
    across = tent_weights(start_x, scale_x, size=width, crop=crop)
    down = tent_weights(start_y, scale_y, size=height, crop=crop)
    if flip:
        across = torch.where(turned[:, None, None] > 0, across.flip(1), across)
    rows = torch.bmm(down, pixels.flatten(2).float()).unflatten(2, (width, 3))
    columns = rows.transpose(1, 2).flatten(2)  # (N, width, crop x 3): one product per image
    views = torch.bmm(across, columns).unflatten(2, (crop, 3)).transpose(1, 2)  # (N, crop, crop, 3)
    return (views + 0.5).clamp(0, 255).to(torch.uint8).contiguous()


def tent_weights(start: Tensor, scale: Tensor, *, size: int, crop: int) -> Tensor:
    """(N, crop, size): how much of each pixel along a side goes into each of the view's.

    The antialiased bilinear filter: a tent around the view's pixel, wider if the image shrinks.
    """
    numbers = torch.arange(max(size, crop), device=start.device) + 0.5
    centers = start[:, None] + numbers[:crop] * scale[:, None]  # (N, crop)
    distance = (numbers[:size] - centers[..., None]) / scale.clamp(min=1)[:, None, None]
    weights = (1 - distance.abs()).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)
