"""The rectifiers of section 2.1: ReLU, LReLU, PReLU with one slope a channel or one a layer.

f(y) = y where y > 0, else a y (Eq. 1). Adding one: a function and a line in RECTIFIERS, and a file
in conf/act.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _LearnedSlope(torch.autograd.Function):
    """Eq. 1 and its gradients (Eq. 2-3), slope, products and sums in fp32 whatever y's type.

    torch's own prelu rounds slope and slope gradient to bf16 under autocast, and writes that
    gradient at the size of the whole activation before it sums. Neither `where` nor a comparison
    here: on a CPU each costs ten times what these passes cost.
    """

    @staticmethod
    def forward(ctx, y: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(y, slope)
        kind = "cpu" if y.is_meta else y.device.type
        with torch.autocast(kind, enabled=False):  # it would take prelu to bf16 again
            return F.prelu(y.to(slope.dtype), slope).to(y.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = ctx.saved_tensors
        y, wide = y.to(slope.dtype), grad.to(slope.dtype)
        where_positive = torch.ops.aten.threshold_backward(wide, y, 0)
        elsewhere = wide - where_positive
        per_channel = slope.view(1, -1, *[1] * (y.dim() - 2))
        grad_y = torch.addcmul(where_positive, elsewhere, per_channel)
        every_other = [d for d in range(y.dim()) if d != 1 or slope.numel() == 1]
        grad_slope = (elsewhere * y).sum(every_other).view_as(slope)
        return grad_y.to(grad.dtype), grad_slope


class PReLU(nn.Module):
    """f(y) = max(0, y) + a min(0, y) with a learned slope a, channel-wise or shared by a layer.

    Args:
        slopes: how many slopes, the number of channels or 1.
        initial: their value at the start; the paper's is 0.25.

    Shape: (N, C) or (N, C, H, W) to the same. The slope stays fp32 also under autocast.
    """

    def __init__(self, slopes: int, initial: float):
        super().__init__()
        self.initial = initial
        self.slope = nn.Parameter(torch.empty(slopes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.slope, self.initial)

    def forward(self, y: Tensor) -> Tensor:
        return _LearnedSlope.apply(y, self.slope)

    def extra_repr(self) -> str:
        return f"{self.slope.numel()}, initial={self.initial}"


def build_relu(channels: int, slope: float) -> nn.Module:
    """a = 0."""
    return nn.ReLU()


def build_lrelu(channels: int, slope: float) -> nn.Module:
    """a fixed.

    ours: LReLU's slope is PReLU's starting value (Maas et al.: 0.01), to isolate the learning.
    """
    return nn.LeakyReLU(slope)


def build_prelu(channels: int, slope: float) -> nn.Module:
    """a learned, one a channel."""
    return PReLU(channels, slope)


def build_prelu_shared(channels: int, slope: float) -> nn.Module:
    """a learned, one a layer."""
    return PReLU(1, slope)


RECTIFIERS: dict[str, Callable[[int, float], nn.Module]] = {
    "relu": build_relu,
    "lrelu": build_lrelu,
    "prelu": build_prelu,
    "prelu_shared": build_prelu_shared,
}
