"""The first conv layer on a GPU: 7x7 with stride 2 on three channels, computed as 4x4 with stride 1
on sixteen. The products are the same, in a shape that the GPU's matrix units are made for."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.kernels import KERNELS

CHANNELS = 16  # twelve, and four of zeros


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The layer's convolution, without its bias."""
    if _is_foldable(layer, x):
        kernels, last = KERNELS[x.device.type], x.contiguous(memory_format=torch.channels_last)
        if kernels.knows(last):
            blocks = kernels.fold(last, torch.get_autocast_dtype(x.device.type))
            return F.conv2d(blocks, fold_weight(layer.weight))
    return F.conv2d(x, layer.weight, None, layer.stride, layer.padding)


def _is_foldable(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether this is such a layer, run in bf16 on images, which need no gradient."""
    kind, kernels = x.device.type, KERNELS.get(x.device.type)
    geometry = (layer.in_channels, layer.kernel_size, layer.stride, layer.padding)
    if geometry != (3, (7, 7), (2, 2), (3, 3)) or x.requires_grad or x.dtype != torch.float32:
        return False
    if not hasattr(kernels, "fold") or torch.compiler.is_compiling():
        return False
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16


def fold_weight(weight: Tensor) -> Tensor:
    """(filters, 3, 7, 7) to (filters, 16, 4, 4): a filter gets a row and a column of zeros in front
    and is cut into 2x2 blocks, whose (row, column, channel) become channels; four of zeros follow.
    """
    x = F.pixel_unshuffle(F.pad(weight, (1, 0, 1, 0)), 2)
    x = x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    return F.pad(x, (0, 0, 0, 0, 0, CHANNELS - x.shape[1])).contiguous(
        memory_format=torch.channels_last
    )
