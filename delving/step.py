"""One step's gradients: forward and backward by micro-batches, random seeds, norms."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.data.augment import rows_of
from delving.data.input import Input
from delving.data.loader import Batch
from delving.device import wide
from delving.initializer import key_of
from delving.net import Dropout, Net
from delving.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Recipe:
    """Numbers of one training; `epoch` is in steps, `warmup` and `switch` are shares of `steps`."""

    steps: int
    epoch: float
    batch: int
    micro_batch: int
    lr: float
    warmup: float
    switch: tuple[float, ...]
    momentum: float
    weight_decay: float
    color: float
    seed: int


def gradient_squares(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Each gradient's squared norm. On a CPU by dot products, which are twice as fast there;
    elsewhere by norms of all at once, which take few launches."""
    gradients = [p.grad for p in parameters]
    if gradients[0].device.type == "cpu":
        return torch.stack([torch.dot(g, g) for g in map(_in_a_row, gradients)])
    return torch.stack(torch._foreach_norm(gradients)).square()


def show(shown: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """(4,): what accumulate_gradients returned, then the squared norms of the whole gradient and of
    the gradient of the conv layers' weights."""
    parameters = [p for p in parameters if p.grad is not None]  # a rectifier's may be frozen
    squares = gradient_squares(parameters)
    # By index: for a mask the CPU would wait until the GPU has counted it.
    conv = [n for n, p in enumerate(parameters) if p.dim() == 4]
    parts = squares.sum(), squares.index_select(0, _numbers(tuple(conv), squares.device)).sum()
    return torch.cat([shown, torch.stack(parts)])


@cache
def _numbers(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def is_finite(found: Tensor) -> Tensor:
    """Whether the loss and gradient that `show` returned are finite, ()."""
    return (found[0] + found[2]).isfinite()


def _in_a_row(x: Tensor) -> Tensor:
    """All numbers in the order they lie in memory; flatten() would copy a channels-last tensor."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return (x.movedim(1, -1) if last else x).reshape(-1)


@torch.no_grad()
def decay_norm(net: nn.Module, weight_decay: float) -> float:
    """The norm of the weight-decay term of the conv layers' weights, which the optimiser adds to
    the loss's gradient: what is left of the update where the gradient has vanished (Figure 3)."""
    weights = [_in_a_row(p) for p in net.parameters() if p.dim() == 4]
    return weight_decay * torch.stack([torch.dot(w, w) for w in weights]).sum().sqrt().item()


def accumulate_gradients(
    net: Net,
    input: Input,
    batch: Batch,
    *,
    recipe: Recipe,
    step: int,
    autocast: Callable[[], AbstractContextManager],
    ranks: Ranks = ALONE,
) -> Tensor:
    """Forward and backward of this rank's rows by micro-batches; (2,), their share of the batch's
    mean loss and how many of them are wrong."""
    device, own = input.mean.device, rows_of(recipe.batch, ranks.rank, ranks.size)
    shown = torch.zeros(2, device=device, dtype=input.mean.dtype)
    starts = range(own.start, own.stop, recipe.micro_batch)
    for start in starts:
        rows = slice(start, min(start + recipe.micro_batch, own.stop))
        here = slice(rows.start - own.start, rows.stop - own.start)
        part = (x[here].to(device, non_blocking=True) for x in batch[:3])
        seed_step(net, device, recipe, step, rows)
        # The ranks' gradients are summed once, with the last micro-batch.
        summed = ranks.size == 1 or start == starts[-1]
        with nullcontext() if summed else net.no_sync():
            shown += backward(net, input, *part, recipe=recipe, autocast=autocast, times=ranks.size)
    return shown


def backward(
    net: Net,
    input: Input,
    pixels: Tensor,
    labels: Tensor,
    color: Tensor,
    *,
    recipe: Recipe,
    autocast: Callable[[], AbstractContextManager],
    times: int = 1,
) -> Tensor:
    """Forward and backward of images on the device, gradients multiplied by `times`; returns what
    accumulate_gradients does."""
    shift = input.color_shift(color, recipe.color) if recipe.color else None
    with autocast():
        logits = net(input(pixels, shift))
    loss = F.cross_entropy(wide(logits), labels, reduction="sum") / recipe.batch
    (loss * times).backward()
    wrong = (logits.detach().argmax(1) != labels).sum()
    return torch.stack([loss.detach(), wrong.to(loss.dtype)])


def seed_step(net: Net, device: torch.device, recipe: Recipe, step: int, rows: slice) -> None:
    """Gives everything that draws random numbers its key for this (seed, step) and rows."""
    seed_dropout(net, (recipe.seed, step), batch=recipe.batch, rows=rows)
    seed_generators(device, (recipe.seed, step), rows.start)


def seed_dropout(net: nn.Module, keys: tuple[int, int], *, batch: int, rows: slice) -> None:
    """Gives each dropout layer its own key for this (seed, step)."""
    layers = [m for m in net.modules() if isinstance(m, Dropout)]
    for number, layer in enumerate(layers):
        layer.seed(key_of(keys, number), batch, rows)


def seed_generators(device: torch.device, keys: tuple[int, int], first: int) -> None:
    """Gives torch's own generators a key for this (seed, step) and first row: a rectifier that
    draws from them gets new numbers in each step, and the same ones after a restart."""
    generators = [torch.default_generator]
    if device.type == "cuda":  # torch.manual_seed, which sets those of all devices, takes 0.2 ms
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    for generator in generators:
        generator.manual_seed(key_of(keys, f"from row {first}"))
