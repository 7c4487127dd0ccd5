"""The initialisers of section 2.2: zero-mean Gaussians whose std keeps the signal's variance.

Eq. 10 does so for responses, Eq. 14 for gradients; Eq. 15 adds the factor 1 + a^2 for a rectifier
with slope a. Xavier is their a = 1 case. Biases start at 0, slopes at their rectifier's value.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from delving.schema import RANGES

INPUT_STD = 128.0  # the paper: mean-subtracted pixels lie in about [-128, 128]


def he(fan_in: int, fan_out: int, slope: float) -> float:
    """Eq. 10 with Eq. 15: 1/2 (1 + a^2) n Var[w] = 1, forward."""
    return math.sqrt(2 / ((1 + slope**2) * fan_in))


def he_backward(fan_in: int, fan_out: int, slope: float) -> float:
    """Eq. 14 with Eq. 15: 1/2 (1 + a^2) nhat Var[w] = 1, backward."""
    return math.sqrt(2 / ((1 + slope**2) * fan_out))


def xavier(fan_in: int, fan_out: int, slope: float) -> float:
    """As the paper compares it: n Var[w] = 1, Gaussian, the rectifier ignored."""
    return math.sqrt(1 / fan_in)


def gaussian(std: float) -> Callable[[int, int, float], float]:
    """One std for every layer, as before the paper (0.01)."""
    return lambda fan_in, fan_out, slope: std


INITIALIZERS: dict[str, Callable[[int, int, float], float]] = {
    "he": he,
    "he_backward": he_backward,
    "xavier": xavier,
}


# Three ways to keep the softmax from overflowing on input of about +-128; a comparison uses one.
# paper: 2.2 names all three.
# assumed: the He and the Xavier arm of a comparison tame the input by the same one of the three.


def layer_stds(
    layers: Sequence[nn.Module],
    rule: Callable[[int, int, float], float],
    *,
    slope: float,
    range: str,
    classifier: float = 1.0,
) -> list[float]:
    """The std of each weight layer, first to last.

    Args:
        layers: a net's nn.Conv2d and nn.Linear modules, in order.
        rule: one of INITIALIZERS or gaussian(std).
        slope: the rectifier's a at the start (0 for ReLU).
        range: `raw` (the fc layers 0.01, ..., 0.001), `scaled` (every weight times
            (1/128)^(1/L)) or `normalised` (input of unit variance, the rule everywhere).
        classifier: a factor on the last layer's std, whatever the range makes that.
            ours: below the paper scale the classifier's std is a tenth of the rule's, as the
            paper's 0.001 is of 0.01. Deep ReLU nets then leave ln(classes) several times sooner:
            large first logits are unlearned by making all features small.

    Raises:
        ValueError: an unknown range.
    """
    if range not in RANGES:
        raise ValueError(f"init.range={range!r}: choose from {', '.join(RANGES)}")
    stds = [rule(*fans(layer), slope) for layer in layers]
    if range == "raw":
        convs = sum(isinstance(layer, nn.Conv2d) for layer in layers)
        stds[convs:] = [0.01] * (len(stds) - convs - 1) + [0.001]  # paper: 2.2
    if range == "scaled":
        stds = [std * INPUT_STD ** (-1 / len(stds)) for std in stds]
    return [*stds[:-1], stds[-1] * classifier]


def fans(layer: nn.Module) -> tuple[int, int]:
    """n = k^2 c and nhat = k^2 d of a conv or fc layer with c inputs and d outputs."""
    d, c, *kernel = layer.weight.shape
    area = math.prod(kernel)
    return area * c, area * d


def initialize(
    net: nn.Module,
    stds: Callable[[Sequence[nn.Module]], list[float]],
    *,
    seed: int,
    drawn: dict[tuple, Tensor] | None = None,
) -> None:
    """Sets every parameter of `net` in place; `stds` gives weight layers their stds (layer_stds).

    A layer's normal draws depend only on the seed and the layer's name: two initialisers of the
    same net differ only by a factor per layer, and layers of equal name and shape in two nets
    agree. `drawn` keeps the draws, on the net's device, for another initialiser to use again.
    """
    named = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for (name, layer), std in zip(named, stds([m for _, m in named]), strict=True):
            layer.weight.copy_(_normal(seed, name, layer.weight, drawn)).mul_(std)
            if layer.bias is not None:  # a rectifier's own layer may have none
                layer.bias.zero_()
    for module in net.modules():
        if hasattr(module, "reset_parameters") and not isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()  # a rectifier's own, such as slopes


def _normal(seed: int, name: str, weight: Tensor, drawn: dict[tuple, Tensor] | None) -> Tensor:
    drawn, key = {} if drawn is None else drawn, (seed, name, weight.shape)
    if key not in drawn:
        generator = torch.Generator().manual_seed(key_of(seed, name))
        drawn[key] = torch.randn(weight.shape, generator=generator).to(weight.device)
    return drawn[key]


def key_of(seed: object, what: object) -> int:
    """A generator's key, derived from both arguments as text: 63 bits, of which a CPU generator
    uses 32."""
    return int.from_bytes(hashlib.sha256(f"{seed} {what}".encode()).digest()[:8], "big") >> 1
