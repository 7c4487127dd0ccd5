"""The rectifiers of section 2.1: ReLU, LReLU, PReLU with one slope per channel or per layer.

f(y) = y where y > 0, else a y (Eq. 1). To add one: a function, a line in RECTIFIERS and a file in
conf/act.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from delving.fused import rectify, rectify_pool


class Rectifier(nn.Module):
    """f(y) = max(0, y) + a min(0, y) with a fixed slope a: ReLU where it is 0, else LReLU.

    Shape: (N, C) or (N, C, H, W) to the same. `bias` (C,) is added first.
    """

    def __init__(self, slope: float):
        super().__init__()
        self.initial = slope

    def forward(self, y: Tensor, bias: Tensor | None = None) -> Tensor:
        return rectify(y, bias, *self._slope(y))

    def pooled(self, y: Tensor, bias: Tensor | None, side: int) -> Tensor:
        """The same, followed by max pooling over windows of side x side."""
        return rectify_pool(y, bias, *self._slope(y), side)

    def _slope(self, y: Tensor) -> tuple[Tensor, bool]:
        """The slopes, (channels,) or (1,), and whether they are learned."""
        # Not a buffer: those must be filled again wherever a net gets its storage.
        kind = torch.promote_types(y.dtype, torch.float32)
        return y.new_full((1,), self.initial, dtype=kind), False

    def extra_repr(self) -> str:
        return f"slope={self.initial}"


class PReLU(Rectifier):
    """The same with learned slopes, channel-wise or shared by a layer. They stay fp32 under
    autocast too.

    Args:
        slopes: how many, the number of channels or 1.
        initial: their value at the start; the paper's is 0.25.
    """

    def __init__(self, slopes: int, initial: float):
        super().__init__(initial)
        self.slope = nn.Parameter(torch.empty(slopes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.slope, self.initial)

    def _slope(self, y: Tensor) -> tuple[Tensor, bool]:
        return self.slope, True

    def extra_repr(self) -> str:
        return f"{self.slope.numel()}, initial={self.initial}"


def build_relu(channels: int, slope: float) -> nn.Module:
    """a = 0."""
    return Rectifier(0.0)


def build_lrelu(channels: int, slope: float) -> nn.Module:
    """a fixed.

    ours: LReLU's slope is PReLU's starting value (Maas et al.: 0.01), to isolate the learning.
    """
    return Rectifier(slope)


def build_prelu(channels: int, slope: float) -> nn.Module:
    """a learned, one per channel."""
    return PReLU(channels, slope)


def build_prelu_shared(channels: int, slope: float) -> nn.Module:
    """a learned, one per layer."""
    return PReLU(1, slope)


RECTIFIERS: dict[str, Callable[[int, float], nn.Module]] = {
    "relu": build_relu,
    "lrelu": build_lrelu,
    "prelu": build_prelu,
    "prelu_shared": build_prelu_shared,
}
