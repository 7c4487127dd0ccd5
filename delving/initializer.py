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


# assumed: Eq. 15's factor holds for all weight layers, also for conv1, which no rectifier precedes.

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
            if layer.bias is not None:  # the nets' own all have one, others' may not
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


# A net's storage and its first values


def start(net: nn.Module, device: torch.device, fill: Callable[[nn.Module], None]) -> None:
    """Gives a meta net its storage in fp32 and the values that `fill` sets in place.

    Raises:
        ValueError: a module leaves a parameter or buffer of its own without a value (one of bools
            or unsigned integers starts at 0), shares a parameter with another, or has a buffer that
            no checkpoint would keep.
    """
    give_storage(net, device, torch.float32)
    values = [*net.named_parameters(), *net.named_buffers()]
    for _, value in values:
        value.data.fill_(_nothing(value.dtype))
    fill(net)
    lost = [name for name, _ in net.named_buffers() if name not in net.state_dict()]
    if lost:
        raise ValueError(f"{lost[0]} is a buffer that is not persistent: no checkpoint keeps it")
    unset = [name for name, value in values if _is_unset(value)]
    if unset:
        raise ValueError(f"{unset[0]} got no initial value: its module needs reset_parameters()")


def give_storage(net: nn.Module, device: torch.device, number: torch.dtype) -> None:
    """Allocates parameters and buffers. Module.to_empty would load torch's compiler, which takes
    half a second."""
    seen: set[int] = set()
    for place, module in net.named_modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if id(p) in seen:
                raise ValueError(f"{place}.{name} is another layer's too: each has its own")
            seen.add(id(p))
            own = torch.empty(p.shape, dtype=number, device=device)
            setattr(module, name, nn.Parameter(own, p.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            kind = number if buffer.is_floating_point() else buffer.dtype
            setattr(module, name, torch.empty(buffer.shape, dtype=kind, device=device))


def _nothing(kind: torch.dtype) -> float:
    """A value that no module starts from; 0 if the type has none to spare."""
    if kind.is_floating_point or kind.is_complex:
        return math.nan
    return torch.iinfo(kind).min if kind.is_signed else 0


def _is_unset(value: Tensor) -> bool:
    nothing = _nothing(value.dtype)
    return bool(nothing and (value.isnan() if math.isnan(nothing) else value == nothing).any())
