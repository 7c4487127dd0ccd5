"""Section 3's training: parameter groups, the schedule, one step, the loop."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delving.data.augment import rows_of
from delving.data.input import Input
from delving.data.loader import Batch
from delving.device import advising, wide
from delving.momentum import Momentum
from delving.net import Dropout, Net
from delving.ranks import ALONE, Ranks
from delving.spp import SPP

# assumed: the plateau that switches the learning rate is 3 epochs without 0.1 points less of the
# running training error; never of the validation error, which is the test set here.
PATIENCE, GAIN = 3, 0.1
DROPS = 2  # paper: 1e-2, 1e-3, 1e-4
STALLED = 0.02  # of ln(classes)


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


@dataclass
class Progress:
    """Where a training stands; all of it is saved and resumed."""

    step: int = 0
    drops: int = 0  # how often the learning rate was divided by ten on a plateau
    best_error: float = math.inf  # training error of the best epoch, percent
    epochs_without_gain: int = 0
    tail_loss: float = 0.0  # summed over the last tenth of the steps
    tail_steps: int = 0
    epoch_errors: float = 0.0
    epoch_steps: int = 0
    pending: list[list[float]] = field(default_factory=list)  # steps since the last log line
    bad: list[str] = field(default_factory=list)  # images that could not be decoded
    status: str = "running"


@dataclass(frozen=True)
class Step:
    """What one step showed: mean loss, error in percent, norms of the loss's gradient (all of it,
    and that of the conv layers' weights), names of bad images."""

    loss: float
    error: float
    grad_norm: float
    conv_norm: float
    lr: float
    bad: list[str]


def compile_net(net: Net) -> nn.Module:
    """torch.compile of all but dropout, whose new key each step would be compiled anew each step,
    and SPP, whose bf16 amax torch 2.15 compiles on CPUs to gradients that are NaN."""
    for module in net.modules():
        if isinstance(module, Dropout | SPP):
            # Here, not at the class: to load the compiler takes a second and a half.
            module.forward = torch.compiler.disable(module.forward)
    return torch.compile(net)


def group_parameters(net: nn.Module, weight_decay: float) -> list[dict]:
    """Weights decay; slopes do not, since that would push them to ReLU (2.1), nor does whatever
    else a rectifier learns.

    assumed: biases do not decay, as in Caffe of the time, and learn at the weights' rate.
    """
    weights = {id(m.weight) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    decayed = [p for p in net.parameters() if id(p) in weights]
    kept = [p for p in net.parameters() if id(p) not in weights]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def build_optimizer(net: nn.Module, recipe: Recipe) -> Momentum:
    """assumed: momentum is PyTorch's, the learning rate outside of the velocity (Caffe: inside)."""
    groups = group_parameters(net, recipe.weight_decay)
    return Momentum(groups, lr=recipe.lr, momentum=recipe.momentum)


def learning_rate(recipe: Recipe, step: int, drops: int) -> float:
    """The rate of a step: rising over the warm-up, divided by ten at each switch passed."""
    passed = sum(step >= fraction * recipe.steps for fraction in recipe.switch)
    # ours: the quarter scale starts with a short linear warm-up.
    rising = min(1.0, (step + 1) / max(1.0, recipe.warmup * recipe.steps))
    return recipe.lr * rising * 10.0 ** -(passed + drops)


def train(
    net: Net,
    input: Input,
    optimizer: Momentum,
    *,
    batches: Iterable[Batch],
    recipe: Recipe,
    progress: Progress,
    autocast: Callable[[], AbstractContextManager],
    ranks: Ranks = ALONE,
) -> Iterator[Step]:
    """Runs the steps that are left and yields what each showed; `progress` is up to date then.

    A loss or gradient that is not finite ends the training before the optimiser sees it. Of several
    ranks each has its rows of every batch, and all of them see the same.
    """
    parameters = list(net.parameters())
    is_conv = torch.tensor([p.dim() == 4 for p in parameters])
    rehearsed = ranks.size == 1
    for batch in batches:
        lr = learning_rate(recipe, progress.step, progress.drops)
        for group in optimizer.param_groups:
            group["lr"] = lr
        net.train()
        for _ in range(1 if rehearsed else 2):
            # DDP puts its sums in order after the first backward of a sitting, and a run that was
            # taken up is to sum every step's gradients in the order of one that was not.
            optimizer.zero_grad()
            with advising("train.micro_batch=... takes fewer images at once, to the same end"):
                shown = accumulate_gradients(
                    net,
                    input,
                    batch,
                    recipe=recipe,
                    step=progress.step,
                    autocast=autocast,
                    ranks=ranks,
                )
        rehearsed = True
        ranks.sum(shown)
        squares = torch.cat([shown, *gradient_squares(parameters)]).cpu()  # one wait
        loss, wrong, squares = squares[0].item(), squares[1].item(), squares[2:]
        norm, conv_norm = (part.sum().sqrt().item() for part in (squares, squares[is_conv]))
        if not math.isfinite(loss + norm):
            progress.status = "diverged"
            yield Step(loss, 100.0, norm, conv_norm, lr, batch.bad)
            return
        optimizer.step()
        step = Step(loss, 100 * wrong / recipe.batch, norm, conv_norm, lr, batch.bad)
        advance(progress, recipe, step)
        yield step


def gradient_squares(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Each gradient's squared norm, in tensors to be put together: by dot products on a CPU, twice
    as fast there as norms of all at once, which are a few launches elsewhere, in place of one or
    two for each."""
    gradients = [p.grad for p in parameters]
    if gradients[0].device.type == "cpu":
        return [torch.dot(g, g)[None] for g in map(_in_a_row, gradients)]
    return [torch.stack(torch._foreach_norm(gradients)).square()]


def _in_a_row(x: Tensor) -> Tensor:
    """All numbers, in the order that they lie in: flatten() would copy where channels are last."""
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
    """Forward and backward by micro-batches of this rank's rows: (2,), their share of the batch's
    mean loss and how many of them are wrong."""
    device, own = input.mean.device, rows_of(recipe.batch, ranks.rank, ranks.size)
    shown = torch.zeros(2, device=device, dtype=input.mean.dtype)
    starts = range(own.start, own.stop, recipe.micro_batch)
    for start in starts:
        rows = slice(start, min(start + recipe.micro_batch, own.stop))
        here = slice(rows.start - own.start, rows.stop - own.start)
        pixels, labels, color = (x[here].to(device, non_blocking=True) for x in batch[:3])
        shift = input.color_shift(color, recipe.color) if recipe.color else None
        seed_dropout(net, (recipe.seed, step), batch=recipe.batch, rows=rows)
        seed_generators(device, (recipe.seed, step), start)
        # The ranks' gradients are summed once, with the last micro-batch.
        summed = ranks.size == 1 or start == starts[-1]
        with nullcontext() if summed else net.no_sync():
            with autocast():
                logits = net(input(pixels, shift))
            part = F.cross_entropy(wide(logits), labels, reduction="sum") / recipe.batch
            (part * ranks.size).backward()
        shown[0] += part.detach()
        shown[1] += (logits.detach().argmax(1) != labels).sum()
    return shown


def seed_dropout(net: nn.Module, keys: tuple[int, int], *, batch: int, rows: slice) -> None:
    """Gives each dropout layer its own key for this (seed, step)."""
    layers = [m for m in net.modules() if isinstance(m, Dropout)]
    for number, layer in enumerate(layers):
        layer.seed(_key(keys, number), batch, rows)


def seed_generators(device: torch.device, keys: tuple[int, int], first: int) -> None:
    """Gives torch's own generators a key for this (seed, step) and first row: a rectifier that
    draws from them does so anew in each step, and the same after a restart."""
    generators = [torch.default_generator]
    if device.type == "cuda":  # torch.manual_seed, which sets those of all devices, takes 0.2 ms
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    for generator in generators:
        generator.manual_seed(_key(keys, f"from row {first}"))


def _key(keys: tuple[int, int], what: object) -> int:
    return int.from_bytes(hashlib.sha256(f"{keys} {what}".encode()).digest()[:8], "big") >> 1


def advance(progress: Progress, recipe: Recipe, step: Step) -> None:
    """Counts a step, and at an epoch's end looks whether the training error has its plateau."""
    progress.step += 1
    progress.pending.append([step.loss, step.error, step.grad_norm, step.conv_norm])
    if progress.step > 0.9 * recipe.steps:
        progress.tail_loss += step.loss
        progress.tail_steps += 1
    progress.epoch_errors += step.error
    progress.epoch_steps += 1
    if passed(progress.step, recipe.epoch):
        error = progress.epoch_errors / progress.epoch_steps
        progress.epoch_errors, progress.epoch_steps = 0.0, 0
        if not recipe.switch:
            drop_on_plateau(progress, error)


def passed(step: int, interval: float) -> bool:
    """Whether a multiple of the interval lies in this step."""
    return int(step / interval) > int((step - 1) / interval)


def drop_on_plateau(progress: Progress, error: float) -> None:
    """`error` is the running training error of the epoch, never of the images tested on."""
    if error < progress.best_error - GAIN:
        progress.best_error, progress.epochs_without_gain = error, 0
        return
    progress.epochs_without_gain += 1
    if progress.epochs_without_gain >= PATIENCE and progress.drops < DROPS:
        progress.drops += 1
        progress.epochs_without_gain = 0


def final_status(progress: Progress, classes: int) -> str:
    """`stalled` where the last tenth's mean loss is not 2 % below ln(classes), a blind guess."""
    if progress.status == "diverged":
        return "diverged"
    blind = math.log(classes)
    mean = progress.tail_loss / max(1, progress.tail_steps)
    return "stalled" if mean >= (1 - STALLED) * blind else "converged"
