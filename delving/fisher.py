"""Section 2.1's analysis (ICCV version): the Fisher matrix, and how far responses lie from zero.

F = E[g g^T], where g is the gradient of log p(y | x) with respect to the parameters and y is drawn
from the net's own prediction. The paper says that PReLU moves mean responses towards zero, and with
them F's off-diagonal blocks, which improves F's conditioning.

assumed: the Fisher matrix, too large for a whole net, is that of a few seeded units per layer,
each with its bias and a few incoming weights, scaled to a unit diagonal; as our source does not
say which off-diagonal blocks of it the ICCV version means, three kinds are told apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.net import ACT
from delving.signal import WEIGHTED, Call, watching, weight_layers

GROUPS = 10  # of the jackknife


@dataclass(frozen=True)
class Chosen:
    """Some parameters of the layer `name`: the bias and some incoming weights of some units.

    Attributes: `units` (U,); `weights` (U, W), indices into weight[unit].flatten(). In matrices
    the layer has U (1 + W) columns: unit after unit, each with its bias first.
    """

    name: str
    units: Tensor
    weights: Tensor


# Gradients of single samples


def choose_parameters(net: nn.Module, units: int, *, weights: int, seed: int) -> list[Chosen]:
    """Chooses `units` units of every weight layer and `weights` weights of each, from different
    input channels if there are enough. Nets of equal shapes and seeds get equal indices.

    A layer with too few gives all its weights, and all its units but one: the classifier's
    gradients sum to zero over classes, so all of them together would make F singular.
    """
    draws = torch.Generator().manual_seed(seed)
    chosen = []
    for name, layer in weight_layers(net).items():
        d, c, *kernel = layer.weight.shape
        some = torch.randperm(d, generator=draws)[: max(1, min(units, d - 1))]
        incoming = [_spread(c, math.prod(kernel), weights, draws) for _ in some]
        chosen.append(Chosen(name, some, torch.stack(incoming)))
    return chosen


def _spread(channels: int, area: int, count: int, draws: torch.Generator) -> Tensor:
    """(count,) distinct weights of a (channels, area) filter, spread over channels, then taps."""
    i = torch.arange(min(count, channels * area))
    channel = torch.randperm(channels, generator=draws)[i % channels]
    tap = torch.randperm(area, generator=draws)[(i // channels + i % channels) % area]
    return channel * area + tap


def sample_gradients(
    net: nn.Module, x: Tensor, chosen: Sequence[Chosen], *, seed: int, batch: int = 256
) -> Tensor:
    """The gradient of log p(y | x) for each sample, y drawn from the net's prediction, eval mode.

    Args:
        x: (N, C, H, W) or (N, C), on the net's device; cast to its type.
        seed: of the draws of y, which do not depend on the batch.
        batch: samples a pass.

    Returns:
        (N, P) float64 on the CPU, columns as in `chosen`.
    """
    uniform = torch.rand(len(x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x.to(next(net.parameters()).dtype)
    parts = zip(x.split(batch), uniform.split(batch), strict=True)
    return torch.cat([_pass(net, some, chosen, draws) for some, draws in parts])


def _pass(net: nn.Module, x: Tensor, chosen: Sequence[Chosen], uniform: Tensor) -> Tensor:
    """One backward pass for all samples: as they are independent, dE/dy holds each one's own."""
    with watching(net, WEIGHTED) as calls, torch.enable_grad():
        log_p = F.log_softmax(net(x), 1)
        labels = draw_labels(log_p.detach().exp(), uniform.to(x.device))
        likelihood = log_p.gather(1, labels[:, None]).sum()
    found = {call.name: call for call in calls}
    gradients = torch.autograd.grad(likelihood, [found[some.name].y for some in chosen])
    columns = [
        column
        for some, dy in zip(chosen, gradients, strict=True)
        for column in _columns(found[some.name], dy, some)
    ]
    return torch.stack(columns, 1).cpu()  # (N, P)


def draw_labels(p: Tensor, uniform: Tensor) -> Tensor:
    """(N, classes) probabilities and (N,) uniform draws to (N,) labels."""
    passed = (p.double().cumsum(1) <= uniform[:, None]).sum(1)
    return passed.clamp(max=p.shape[1] - 1)  # where rounding leaves the last sum below the draw


def _columns(call: Call, dy: Tensor, chosen: Chosen) -> list[Tensor]:
    """(N,) float64 per parameter, summed over positions: dy for a bias, dy times the input that it
    saw for a weight.

    An fc layer is a conv layer with 1x1 filters on a 1x1 map.
    """
    layer, x = call.module, call.x.detach()
    if isinstance(layer, nn.Linear):
        x, dy, kernel, stride = x[:, :, None, None], dy[:, :, None, None], (1, 1), (1, 1)
    else:
        (top, left), kernel, stride = layer.padding, layer.kernel_size, layer.stride
        x = F.pad(x, (left, left, top, top))
    columns = []
    for unit, weights in zip(chosen.units.tolist(), chosen.weights.tolist(), strict=True):
        own = dy[:, unit].double()  # (N, H, W)
        columns.append(own.sum((1, 2)))
        for weight in weights:
            channel, tap = divmod(weight, kernel[0] * kernel[1])
            seen = _shifted(x[:, channel], divmod(tap, kernel[1]), stride, own.shape[1:])
            columns.append((own * seen).sum((1, 2)))
    return columns


def _shifted(x: Tensor, start: tuple, stride: tuple, size: Sequence[int]) -> Tensor:
    """(N, rows, columns): the inputs that a filter's tap at `start` sees, one for each response."""
    rows, columns = (
        slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(start, stride, size, strict=True)
    )
    return x[:, rows, columns]


# The Fisher matrix


def describe_fisher(gradients: Tensor, chosen: Sequence[Chosen]) -> dict:
    """How far from diagonal F = G^T G / N is, scaled to a unit diagonal.

    Off-diagonal energy is the mean of the squared entry over pairs of parameters: 0 for a diagonal
    F, 1 if any two gradients are proportional. Squaring an estimate adds its noise, about 1 / N, so
    samples are split into even and odd ones and the product of the halves' entries stands for the
    square: where the true entry is 0 it is 0 in expectation, hence negative at times. Its standard
    error is the jackknife's, leaving out a tenth of the samples at a time (up to sqrt(2) too large
    if all true entries are 0); the choice of parameters adds its own, seen over seeds.

    Args:
        gradients: (N, P), see sample_gradients; chosen: whose columns they are.

    Returns:
        samples; parameters, the number in use; dead, those without a gradient in any sample, and
        rare, those with one in only one of the halves, both left out; within (a layer), between
        (layers: the off-diagonal blocks) and bias_weight (bias and weights of one unit, whose entry
        is the mean input over its root mean square, as far as inputs and gradients are
        independent): {energy, error, pairs}; condition, the largest over the smallest eigenvalue
        with all samples; condition_halves, the same with each half: larger, as fewer samples spread
        eigenvalues, for a true condition of 1 to ((1 + r) / (1 - r))^2 with r^2 = P / (N / 2).

    Raises:
        ValueError: no parameter is in use, or not fewer than there are samples in a half.
    """
    alive = torch.stack([(half != 0).any(0) for half in (gradients[::2], gradients[1::2])])
    used = alive.all(0)
    g = gradients[:, used]
    if not 0 < g.shape[1] < len(g) // 2:
        raise ValueError(
            f"{g.shape[1]} parameters with a gradient in {len(g)} samples: it takes at least one, "
            "and more samples than parameters in each half"
        )
    grams = torch.stack([_grams(g[::2]), _grams(g[1::2])])  # (2, groups, P, P)
    masks = {name: mask[used][:, used].triu(1) for name, mask in _pairs(chosen).items()}
    halves = grams.sum(1)
    return {
        "samples": len(g),
        "parameters": g.shape[1],
        "dead": int((~alive.any(0)).sum()),
        "rare": int((alive.any(0) & ~used).sum()),
        **_energies(grams, masks),
        "condition": condition(unit_diagonal(halves.sum(0))),
        "condition_halves": [condition(unit_diagonal(half)) for half in halves],
    }


def _grams(g: Tensor) -> Tensor:
    """(n, P) to the sums of g g^T over each tenth of the samples, (groups, P, P)."""
    return torch.stack([part.T @ part for part in (g[k::GROUPS] for k in range(GROUPS))])


def _pairs(chosen: Sequence[Chosen]) -> dict[str, Tensor]:
    """(P, P) masks of the three kinds of pairs, symmetric."""
    layer, unit, bias = [], [], []
    for number, some in enumerate(chosen):
        for own, weights in zip(some.units.tolist(), some.weights.tolist(), strict=True):
            layer += [number] * (1 + len(weights))
            unit += [own] * (1 + len(weights))
            bias += [True] + [False] * len(weights)
    layer, unit, bias = (torch.tensor(x) for x in (layer, unit, bias))
    same = layer[:, None] == layer
    one_unit = same & (unit[:, None] == unit)
    return {"within": same, "between": ~same, "bias_weight": one_unit & (bias[:, None] ^ bias)}


def _energies(grams: Tensor, masks: dict[str, Tensor]) -> dict[str, dict]:
    everyone = list(range(GROUPS))
    parts = [everyone, *([k for k in everyone if k != left_out] for left_out in everyone)]
    found: dict[str, list[float]] = {name: [] for name in masks}
    for part in parts:
        first, second = (unit_diagonal(half[part].sum(0)) for half in grams)
        for name, mask in masks.items():
            found[name].append((first * second)[mask].mean().item())
    return {
        name: {"energy": whole, "error": _jackknife(rest), "pairs": int(masks[name].sum())}
        for name, (whole, *rest) in found.items()
    }


def _jackknife(values: Sequence[float]) -> float:
    """The standard error of an estimate, from the estimates that leave out one group each."""
    n = len(values)
    mean = sum(values) / n
    return math.sqrt((n - 1) / n * sum((v - mean) ** 2 for v in values))


def unit_diagonal(f: Tensor) -> Tensor:
    """(P, P) with entries f_ij / sqrt(f_ii f_jj); 0 where a parameter has no gradient."""
    scale = f.diagonal().rsqrt().where(f.diagonal() > 0, 0)
    return scale[:, None] * f * scale


def condition(f: Tensor) -> float:
    """The largest over the smallest eigenvalue of a symmetric (P, P); inf where it is singular."""
    values = torch.linalg.eigvalsh(f)
    return (values[-1] / values[0]).item() if values[0] > 0 else math.inf


# Mean responses


@torch.no_grad()
def response_statistics(net: nn.Module, x: Tensor, *, batch: int = 256) -> list[dict]:
    """How centred f(y) is for each layer with a rectifier f, over images and positions, eval mode.

    Args:
        x: (N, C, H, W) or (N, C), on the net's device.

    Returns:
        A row per layer: name; units, channels or fc units; channel_mean, the root mean square over
        channels of a channel's mean f(y), over the root mean square of f(y): 0 for a layer whose
        channels are centred, 1 where each is constant; mean, the plain mean over the same; silent,
        the share of units with y <= 0 for all images and positions. Both means are nan if all f(y)
        are 0.
    """
    tallies: dict[str, list[tuple]] = {}
    for some in x.to(next(net.parameters()).dtype).split(batch):
        with watching(net, ending=ACT) as calls:
            net(some)
        for call in calls:
            tallies.setdefault(call.name.removesuffix(ACT), []).append(_tally(call))
    return [{"name": name} | _statistics(own) for name, own in tallies.items()]


def _tally(call: Call) -> tuple[Tensor, ...]:
    """By channel: f(y)'s sum, sum of squares and count, and whether y was ever positive."""
    y, f = (t.transpose(0, 1).flatten(1) for t in (call.x, call.y))  # (C, the rest)
    wide = f.double()
    return wide.sum(1), wide.square().sum(1), torch.full((len(f),), f.shape[1]), y.amax(1) > 0


def _statistics(tallies: Sequence[tuple]) -> dict:
    total, square, count, fired = (torch.stack(x).sum(0).cpu() for x in zip(*tallies, strict=True))
    means, size = total / count, (square / count).mean().sqrt()
    return {
        "units": len(means),
        "channel_mean": (means.square().mean().sqrt() / size).item(),
        "mean": (means.mean() / size).item(),
        "silent": (fired == 0).double().mean().item(),
    }
