"""From uint8 pixels to the net's input, on the device: mean image, PCA colour altering, range."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.data.augment import CENTER, crop_at
from delving.data.images import UndecodableImageError, evenly
from delving.data.loader import Cache, decoding_threads
from delving.kernels import KERNELS

# ours: mean image and colour eigenvectors come from at most 10,000 training images, evenly spaced,
# center crops at s = 8/7 of the crop, whatever s a net is trained with.
SAMPLED = 10_000
TOGETHER = 256  # crops summed at once


class Input(nn.Module):
    """Subtracts the per-pixel mean of the training set; its buffers travel with the weights.

    Args:
        mean: (3, crop, crop), grey levels.
        color: (3, 3), eigenvectors times eigenvalues of the covariance of RGB in [0, 1].
        std: what to divide by, grey levels; 1 leaves the paper's range of about +-128.
    """

    def __init__(self, mean: Tensor, color: Tensor, std: float):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("color", color)
        self.register_buffer("std", torch.tensor(float(std)))

    def forward(self, pixels: Tensor | np.ndarray, shift: Tensor | None = None) -> Tensor:
        """uint8 (N, H, W, 3) to (N, 3, H, W), fp32 or as the buffers are, channels last.

        `shift` (N, 3) is added in grey levels.
        assumed: in dense testing the mean image is resized to the whole image, so that at the
        crop's size it is the crop's own; it is subtracted after the flip.
        """
        mean = self.mean
        if not isinstance(pixels, Tensor):
            pixels = torch.as_tensor(pixels, device=mean.device)
        if mean.shape[1:] != pixels.shape[1:3]:
            side = pixels.shape[1:3]
            mean = F.interpolate(mean[None], side, mode="bilinear", align_corners=False)[0]
        kernels = KERNELS.get(pixels.device.type)
        if hasattr(kernels, "prepare") and self._is_usual(pixels, shift) and kernels.programs():
            return kernels.prepare(pixels, mean, shift, self.std)
        x = pixels.permute(0, 3, 1, 2).to(mean.dtype, copy=True)  # (N, 3, H, W), altered in place
        if shift is not None:
            x += shift[:, :, None, None]
        return x.sub_(mean).div_(self.std)

    def _is_usual(self, pixels: Tensor, shift: Tensor | None) -> bool:
        """Whether the project's own kernel can compute it: the same in one pass instead of four."""
        kinds = pixels.dtype == torch.uint8 and self.mean.dtype == torch.float32
        each = shift is None or (shift.shape == (len(pixels), 3) and shift.dtype == torch.float32)
        return kinds and each and pixels.is_contiguous() and 0 < pixels.numel() < 2**31

    def color_shift(self, draws: Tensor, std: float) -> Tensor:
        """AlexNet's colour altering: standard normal (N, 3) to shifts in grey levels (N, 3).

        assumed: the colour eigenvalues are those of pixels in [0, 1], the shift is scaled to grey
        levels afterwards: a few of them. Taken literally on 0 to 255 it would be hundreds.
        """
        return 255 * draws.to(self.color.dtype) * std @ self.color.T


def measure_input(source: Cache, *, crop: int, s: int, normalised: bool) -> Input:
    """The Input of a training set, measured on center crops of images with shorter side s.

    Images that cannot be decoded are left out here; training counts them.
    """
    total, outer, square, count = np.zeros((crop, crop, 3)), np.zeros((3, 3)), 0.0, 0
    for crops in _center_crops(source, crop, s):
        x = crops.astype(np.float64) / 255  # (n, crop, crop, 3)
        flat = x.reshape(-1, 3)
        total += x.sum(0)
        outer += flat.T @ flat
        square += (flat**2).sum()
        count += len(x)
    if not count:
        raise ValueError("no training image can be decoded")
    mean = total / count
    rgb = mean.mean((0, 1))
    values, vectors = np.linalg.eigh(outer / (count * crop * crop) - np.outer(rgb, rgb))
    variance = square / (count * crop * crop * 3) - (mean**2).mean()
    std = 255 * max(float(variance), 1e-8) ** 0.5 if normalised else 1.0
    return Input(_tensor(255 * mean.transpose(2, 0, 1)), _tensor(vectors * values), std)


def blank_input(crop: int) -> Input:
    """An Input to load saved buffers into."""
    return Input(torch.zeros(3, crop, crop), torch.zeros(3, 3), 1.0)


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _center_crops(source: Cache, crop: int, s: int) -> Iterator[np.ndarray]:
    """Crops as uint8 (n, crop, crop, 3), n at most TOGETHER; all cores decode."""
    images = len(source.images)
    chosen = evenly(images, SAMPLED)

    def cut(index: int) -> np.ndarray | None:
        try:
            return crop_at(source.load(index), s, crop, CENTER)
        except UndecodableImageError:
            return None

    with decoding_threads() as pool:
        for start in range(0, len(chosen), TOGETHER):
            found = pool.map(cut, chosen[start : start + TOGETHER].tolist())
            if crops := [one for one in found if one is not None]:
                yield np.stack(crops)
