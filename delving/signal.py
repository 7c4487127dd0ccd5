"""Section 2.2, measured: what a net does to the second moments of responses and gradients.

Layer l takes x_l, responds y_l = W_l x_l + b_l, and its rectifier f hands on x_{l+1} = f(y_l);
dx_l and dy_l are the gradients with respect to them, n_l and nhat_l the fans.

    E[y_l^2]  = 1/2 (1 + a^2) n_l Var[w_l] E[y_{l-1}^2]        forward   (Eq. 8, 9, 15)
    E[dx_l^2] = 1/2 (1 + a^2) nhat_l Var[w_l] E[dx_{l+1}^2]    backward  (Eq. 12-15)

The first layer's forward factor, from x_1 to y_1, and the last layer's backward one, from dy to
dx, pass no rectifier: no half.

ours: the variances of section 2.2 leave out pooling, zero padding and strides; here all three are
measured in each net and taken out before a factor is compared with the paper's.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from operator import mul
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.initializer import fans
from delving.notation import Layer
from delving.spp import SPP

KINDS = {nn.Conv2d: "conv", nn.Linear: "fc"}
WEIGHTED, POOLS = tuple(KINDS), (nn.MaxPool2d, SPP)
NO_POOL = {"pools": "", "pool_forward": 1.0, "pool_backward": 1.0}


class Call(NamedTuple):
    """A module's name, last part only, and what went in and out of it in one forward pass."""

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor


@contextmanager
def watching(
    net: nn.Module, kinds: tuple[type, ...] = (nn.Module,), *, ending: str = ""
) -> Iterator[list[Call]]:
    """A list to which modules of these kinds and this ending add their calls, in eval mode."""
    calls: list[Call] = []

    def note(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls.append(Call(name, module, inputs[0], output))

    with ExitStack() as stack:
        stack.callback(net.train, net.training)
        for name, module in net.named_modules():
            if isinstance(module, kinds) and name.endswith(ending):
                hook = partial(note, name.split(".")[-1])
                stack.enter_context(module.register_forward_hook(hook))
        net.eval()
        yield calls


def weight_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The conv and fc layers in order, by the last part of their names; a meta net's too."""
    return {n.split(".")[-1]: m for n, m in net.named_modules() if isinstance(m, WEIGHTED)}


def shrink_classifier(layers: Sequence[Layer], units: int) -> list[Layer]:
    """The same net with hidden fc layers of `units` units, for questions about its conv layers.

    Drawing the classifier costs most. Conv layers are drawn by seed and name, so their weights are
    those of the whole net.
    """
    return [replace(x, filters=units) if x.kind == "fc" and x.filters else x for x in layers]


# Measuring


def layer_moments(net: nn.Module, x: Tensor, labels: Tensor) -> list[dict]:
    """One forward and one backward pass (mean cross-entropy, eval mode): a row per weight layer.

    Args:
        net: calls each conv and fc layer once; on a device that knows float64.
        x: (N, C, H, W) or (N, C), cast to the net's type.
        labels: (N,) classes.

    Returns:
        name; kind, `conv` or `fc`; x2, y2, dx2, dy2, means of the squares over images, channels
        and positions, summed in float64; pools, names of the pooling layers right before it, with
        pool_forward, E[out^2] / E[in^2], and pool_backward, E[din^2] / E[dout^2] (1.0 if none);
        border_forward and border_backward, the share of the filter's taps that meet a signal,
        weighted by its square: zero padding takes the rest, and from the gradient a stride does
        too (3/4 at /2). Parameters' gradients are neither computed nor touched.
    """
    x = x.detach().to(next(net.parameters()).dtype).requires_grad_()
    with watching(net, WEIGHTED + POOLS) as calls, torch.enable_grad():
        loss = F.cross_entropy(net(x), labels)
    gradients = torch.autograd.grad(loss, [t for call in calls for t in (call.x, call.y)])
    rows, before = [], NO_POOL
    for call, dx, dy in zip(calls, gradients[::2], gradients[1::2], strict=True):
        own = [_second_moment(t) for t in (call.x, call.y, dx, dy)]
        if isinstance(call.module, POOLS):
            before = _add_pool(before, call.name, own)
            continue
        row = dict(zip(("x2", "y2", "dx2", "dy2"), own, strict=True)) | before | _borders(call, dy)
        rows.append({"name": call.name, "kind": KINDS[type(call.module)]} | row)
        before = NO_POOL
    return rows


def _add_pool(before: dict, name: str, own: list[float]) -> dict:
    x2, y2, dx2, dy2 = own
    return {
        "pools": f"{before['pools']} {name}".strip(),
        "pool_forward": before["pool_forward"] * _ratio(y2, x2),
        "pool_backward": before["pool_backward"] * _ratio(dx2, dy2),
    }


def _second_moment(x: Tensor) -> float:
    """E[x^2] over everything, summed in float64."""
    return torch.linalg.vector_norm(x.detach(), dtype=torch.float64).item() ** 2 / x.numel()


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan  # no signal at all: there is no factor


def _borders(call: Call, dy: Tensor) -> dict:
    """Over draws of W_l the mean of y_l^2 is exactly n_l Var[w_l] E[x_l^2] times border_forward; if
    W_l and dy_l are independent, that of dx_l^2 is nhat_l Var[w_l] E[dy_l^2] times the other."""
    if isinstance(call.module, nn.Linear):
        return {"border_forward": 1.0, "border_backward": 1.0}
    x, g = _energy(call.x), _energy(dy)  # (1, 1, H, W) of either side
    windows = (call.module.kernel_size, call.module.stride, call.module.padding)
    met = F.avg_pool2d(x, *windows)  # the mean over a filter's taps, zeros included
    handed_back = g * F.avg_pool2d(torch.ones_like(x), *windows)
    return {
        "border_forward": _ratio(met.mean().item(), x.mean().item()),
        "border_backward": _ratio(handed_back.sum().item() / x.numel(), g.mean().item()),
    }


def _energy(x: Tensor) -> Tensor:
    """(N, C, H, W) to the sum of squares at each position, (1, 1, H, W) float64."""
    norms = torch.linalg.vector_norm(x.detach(), dim=(0, 1), dtype=torch.float64)
    return norms.square()[None, None]


# The paper's theory


def theory(layers: Mapping[str, nn.Module], stds: Sequence[float], *, slope: float) -> list[dict]:
    """What the paper says of the second moments, in expectation over draws of the weights.

    Args:
        layers: see weight_layers.
        stds: of their weights, in order (see initializer.layer_stds).
        slope: the rectifier's a (0 for ReLU), the same in every layer.

    Returns:
        A row per layer: name, kind; gain, 1/2 (1 + a^2); forward and backward, the factors of the
        two equations at the top of the file; y2, E[y_l^2] relative to the first layer's; dx2,
        E[dx_l^2] relative to the last conv layer's.
    """
    gain, end, rows = 0.5 * (1 + slope**2), len(layers) - 1, []
    for i, ((name, layer), std) in enumerate(zip(layers.items(), stds, strict=True)):
        n, nhat = fans(layer)
        row = {"name": name, "kind": KINDS[type(layer)], "gain": gain}
        row["forward"] = (gain if i > 0 else 1) * n * std**2
        row["backward"] = (gain if i < end else 1) * nhat * std**2
        rows.append(row)
    return _chain(rows)


def _chain(rows: Sequence[dict]) -> list[dict]:
    """The rows with the products of their factors: y2 from the first layer, dx2 from the last."""
    y2 = list(accumulate([1.0, *(row["forward"] for row in rows[1:])], mul))
    dx2 = list(accumulate([row["backward"] for row in reversed(rows)], mul))[::-1]
    last = dx2[last_conv(rows)]
    return [row | {"y2": y, "dx2": d / last} for row, y, d in zip(rows, y2, dx2, strict=True)]


def last_conv(rows: Sequence[dict]) -> int:
    """The index of the last conv layer's row; of the last row if there are only fc layers."""
    return max((i for i, row in enumerate(rows) if row["kind"] == "conv"), default=len(rows) - 1)


def with_geometry(predicted: Sequence[dict], moments: Sequence[dict]) -> list[dict]:
    """theory's rows with pooling, borders and strides counted as measured in one net.

    Max pooling hands the gradient to maxima, few of them negative: of 2x2 independent responses
    ReLU passes 15/16 of it, not 1/2. So where pooling lies between two layers, what it and the
    rectifier do together is taken as measured.
    """
    rows = []
    for i, (row, seen) in enumerate(zip(predicted, moments, strict=True)):
        forward, backward = seen["border_forward"], seen["border_backward"]
        if i and seen["pools"]:
            forward *= _ratio(seen["x2"], moments[i - 1]["y2"]) / row["gain"]
        if seen is not moments[-1] and moments[i + 1]["pools"]:
            backward *= _ratio(seen["dy2"], moments[i + 1]["dx2"]) / row["gain"]
        counted = {"forward": row["forward"] * forward, "backward": row["backward"] * backward}
        rows.append(row | counted)
    return _chain(rows)


# Both, over draws of the weights


def summarise(draws: Sequence[Sequence[dict]], predicted: Sequence[dict]) -> list[dict]:
    """Measurement beside theory, per layer, over draws of the weights.

    Theory predicts the arithmetic mean over draws: with pooling and borders counted, y2 measured
    over y2 predicted is 1 in expectation, at any width and for any images, since the weights'
    signs alone make responses symmetric (dx2 only as far as weights and gradients are independent,
    as the paper assumes). Over draws of narrow nets that ratio is about log-normal: a few large
    ones make its mean; its log2 has mean -ln(2) / 2 times the log2's variance. So both are told.

    Args:
        draws: layer_moments of each draw, two at least; predicted: see theory.

    Returns:
        A row per layer: name, kind, and for q of y2 and dx2, relative as in theory, in bits:
        q_theory; q_here, theory with_geometry, and q_measured, means over draws; q_off and
        q_spread, mean and standard deviation of log2(measured / here). Not in bits: q_ratio, the
        arithmetic mean of measured / here. A draw that lost all signal makes them infinite or nan.
    """
    columns = {key: [row[key] for row in predicted] for key in ("name", "kind")}
    for key in ("y2", "dx2"):
        measured, here = _measured_and_here(draws, predicted, key)
        off = (measured / here).log2()
        columns[f"{key}_theory"] = _table([predicted], key)[0].log2().tolist()
        columns[f"{key}_here"] = here.log2().mean(0).tolist()
        columns[f"{key}_measured"] = measured.log2().mean(0).tolist()
        columns[f"{key}_off"] = off.mean(0).tolist()
        columns[f"{key}_spread"] = off.std(0).tolist()
        columns[f"{key}_ratio"] = (measured / here).mean(0).tolist()
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _measured_and_here(draws: Sequence, predicted: Sequence[dict], key: str) -> list[Tensor]:
    """(draws, layers) both, relative to the first layer's y2 or the last conv's dx2."""
    measured, start = _table(draws, key), 0 if key == "y2" else last_conv(predicted)
    here = _table([with_geometry(predicted, moments) for moments in draws], key)
    return [measured / measured[:, [start]], here]


def _table(draws: Sequence[Sequence[dict]], key: str) -> Tensor:
    return torch.tensor([[row[key] for row in rows] for rows in draws], dtype=torch.float64)


def bits_per_layer(draws: Sequence[Sequence[dict]], predicted: Sequence[dict]) -> dict:
    """By how many bits a conv layer changes the second moment, pooling and borders taken out.

    For L conv layers, the total change over the number of layers that make it: forward L - 1, from
    y_1 to y_L; backward L - 2, from dx_L to dx_2 (Eq. 13 ends there). ValueError for L < 3.

    Returns:
        forward and backward, a number per draw, to put an interval on; forward_theory and
        backward_theory, the paper's (forward 0 for He, -1 for Xavier with ReLU). Narrow nets lie
        below theory (see summarise): by ln(2) / 2 times the total's variance over draws, per layer.
    """
    last, found = last_conv(predicted), {}
    if last < 2:
        raise ValueError(f"bits a layer of {last + 1} conv layers: 3 at least")
    for name, key, end, layers in (("forward", "y2", last, last), ("backward", "dx2", 1, last - 1)):
        measured, here = _measured_and_here(draws, predicted, key)
        paper = math.log2(predicted[end][key]) / layers
        off = (measured / here)[:, end].log2() / layers
        found |= {name: (paper + off).tolist(), f"{name}_theory": paper}
    return found


# The text's example: VGG's model B with one std for every layer


def constant_std_ratio(stds_by_rule: Sequence[float], std: float) -> float:
    """By how much one std for these layers shrinks the gradient's std, against a rule's stds.

    paper: 2.2, 5.9 x 4.2^2 x 2.9^2 x 2.1^4 = 1.7 x 10^4: conv2 to conv10 of VGG's model B, nine
    stds of Eq. 14 to three digits after the point, against 0.01.
    """
    return math.prod(s / std for s in stds_by_rule)


def propagated_gradient(moments: Sequence[dict]) -> float:
    """The std of the gradient propagated from the last conv layer to the second, as in Eq. 13.

    The std of dx_2, at the input of conv2, over the std of dx_{L+1}, at the last conv layer's
    rectified response before pooling: between them lie the weights of conv2 to conv L, nine layers
    for L = 10. Two initialisers with the same draws differ in it as constant_std_ratio says.
    """
    after = moments[last_conv(moments) + 1]
    return math.sqrt(_ratio(moments[1]["dx2"], after["dx2"] * after["pool_backward"]))
