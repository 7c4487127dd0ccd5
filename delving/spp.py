"""Spatial pyramid pooling (2.3): of the training map, and of every window in dense testing."""

from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.kernels import KERNELS, is_watched
from delving.kernels.native import is_plain


def bin_edges(size: int, bins: int) -> list[tuple[int, int]]:
    """[start, end) of each SPP bin along a side: floor(i n / b) to ceil((i + 1) n / b).

    assumed: this one rule for SPP's bins serves training and dense testing. On maps that they do
    not divide bins overlap, and where cells are too few they repeat.
    """
    return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def pool_bins(x: Tensor, bins: int) -> Tensor:
    """(N, C, H, W) to the maximum of each bin, (N, C, bins, bins).

    One side at a time, by slices: AdaptiveMaxPool2d has no deterministic backward on CUDA.
    ours: cells that tie for an SPP bin's maximum share its gradient; max pooling picks one.
    """
    for dim in (2, 3):
        size = x.shape[dim]
        if size % bins == 0:  # bins of one size that do not overlap: one pass for all
            x = x.unflatten(dim, (bins, size // bins)).amax(dim + 1)
        else:
            parts = [x.narrow(dim, a, b - a).amax(dim) for a, b in bin_edges(size, bins)]
            x = torch.stack(parts, dim)
    return x


def pool_levels(x: Tensor, levels: Sequence[int]) -> Tensor:
    """(N, C, H, W) to (N, C times the bins of all levels)."""
    return torch.cat([pool_bins(x, bins).flatten(1) for bins in levels], 1)


class _Fused(torch.autograd.Function):
    """pool_levels by kernels of our own: one pass each way, where slices take a dozen per level."""

    @staticmethod
    def forward(ctx, x: Tensor, levels: Sequence[int], kernels: ModuleType) -> Tensor:
        out, *kept = kernels.spp(x, levels)
        ctx.save_for_backward(x, *kept)
        ctx.levels, ctx.kernels = levels, kernels
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        x, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # with create_graph: the kernels have no gradients
            pooled = pool_levels(x, ctx.levels)
            return *torch.autograd.grad(pooled, x, grad, create_graph=True), None, None
        # Kernels read what lies in memory; hooks on saved tensors may keep them otherwise.
        x = x.to(grad.dtype).contiguous(memory_format=torch.channels_last)
        if not is_plain(grad):
            grad = x.new_empty(grad.shape).copy_(grad)
        return ctx.kernels.spp_backward(grad, x, *kept, ctx.levels), None, None


class SPP(nn.Module):
    """Spatial pyramid pooling: (N, C, H, W) to (N, C times the bins of all levels)."""

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        self.levels = tuple(levels)

    def forward(self, x: Tensor) -> Tensor:
        kernels = KERNELS.get(x.device.type)
        if self._fits(kernels, x):
            return _Fused.apply(x, self.levels, kernels)
        return pool_levels(x, self.levels)

    @staticmethod
    def _fits(kernels: ModuleType | None, x: Tensor) -> bool:
        known = kernels and not is_watched() and kernels.knows(x)
        return known and x.dim() == 4 and min(x.shape[2:]) > 0

    def windows(self, x: Tensor, size: int) -> Tensor:
        """SPP of every size x size window of (N, C, H, W): (N, rows, columns, C times bins).

        A bin's maxima in all windows at once are a max pooling with stride 1, shifted. Kernels of
        our own, which have no gradients, read each window's bins from the map instead.
        """
        kernels = KERNELS.get(x.device.type)
        if self._fits(kernels, x) and not x.requires_grad:
            return kernels.spp_windows(x, self.levels, size)
        rows, columns = x.shape[2] - size + 1, x.shape[3] - size + 1
        pooled: dict[tuple[int, int], Tensor] = {}
        levels = []
        for bins in self.levels:
            cells = []
            for top, bottom in bin_edges(size, bins):
                for left, right in bin_edges(size, bins):
                    kernel = (bottom - top, right - left)
                    if kernel not in pooled:
                        pooled[kernel] = F.max_pool2d(x, kernel, stride=1)
                    cells.append(pooled[kernel][:, :, top : top + rows, left : left + columns])
            levels.append(torch.stack(cells, 2).flatten(1, 2))  # (N, C x bins, rows, columns)
        return torch.cat(levels, 1).permute(0, 2, 3, 1)

    def extra_repr(self) -> str:
        return str(set(self.levels))
