"""Section 3's training: parameter groups, the schedule, one step, the loop."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from delving.data.input import Input
from delving.data.loader import Batch
from delving.device import advising
from delving.momentum import Momentum
from delving.net import Dropout, Net
from delving.ranks import ALONE, Ranks
from delving.replay import Ahead, Replay, can_be_replayed
from delving.spp import SPP
from delving.step import Recipe, accumulate_gradients, backward, is_finite, seed_step, show

# assumed: the plateau that switches the learning rate is 3 epochs without 0.1 points less of the
# running training error; never of the validation error, which is the test set here.
PATIENCE, GAIN = 3, 0.1
DROPS = 2  # paper: 1e-2, 1e-3, 1e-4
STALLED = 0.02  # share of ln(classes): a net less far below it has learned nothing
TAIL = 0.1  # share of the steps: a run's end
ROUNDING = 1e-9  # of a number of intervals


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
    """What one step showed: mean loss, error in percent, norms of the loss's gradient (whole, and
    for the conv layers' weights alone), learning rate, names of bad images."""

    loss: float
    error: float
    grad_norm: float
    conv_norm: float
    lr: float
    bad: list[str]


def compile_net(net: Net) -> nn.Module:
    """Compiles all but dropout, which would be compiled anew for each step's key, and SPP, whose
    bf16 amax torch 2.15 compiles on CPUs to gradients that are NaN."""
    for module in net.modules():
        if isinstance(module, Dropout | SPP):
            # Here, not at the class: loading the compiler takes a second and a half.
            module.forward = torch.compiler.disable(module.forward)
    return torch.compile(net)


def group_parameters(net: nn.Module, weight_decay: float) -> list[dict]:
    """The weights of conv and fc layers decay; slopes do not, since decay would push them to ReLU
    (2.1), nor does anything else.

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
    return Momentum(groups, momentum=recipe.momentum)


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
    replay: bool = True,
) -> Iterator[Step]:
    """Runs the remaining steps and yields what each showed, with `progress` up to date by then.

    A loss or gradient that is not finite ends the training, and moves no weight. With several ranks
    each takes its own rows of every batch, and all yield the same loss, error and norms.

    Args:
        replay: whether a GPU may be given a step as a whole, while the next batch is made.
    """
    way, batches = _Way(net, input, optimizer, recipe, progress, autocast, ranks), Ahead(batches)
    alone = ranks.size == 1 and recipe.micro_batch == recipe.batch
    replayed = replay and alone and can_be_replayed(net, input.mean.device)
    take = way.replaying(batches) if replayed else way.launching()
    for batch in batches:
        lr = learning_rate(recipe, progress.step, progress.drops)
        net.train()
        with advising("train.micro_batch=... takes fewer images at once, to the same end"):
            found, finite = take(batch, lr)
        loss, wrong = found[:2].tolist()
        norm, conv_norm = found[2:].sqrt().tolist()
        if not finite:
            progress.status = "diverged"
            yield Step(loss, 100.0, norm, conv_norm, lr, batch.bad)
            return
        step = Step(loss, 100 * wrong / recipe.batch, norm, conv_norm, lr, batch.bad)
        advance(progress, recipe, step)
        yield step


# Takes a batch and a learning rate; returns step.py's `show`, on the CPU, and whether it is finite.
# If it is, the weights have been moved by then.
Take = Callable[[Batch, float], tuple[Tensor, bool]]


@dataclass(frozen=True)
class _Way:
    """How steps are taken: launch by launch, or each as a whole."""

    net: Net
    input: Input
    optimizer: Momentum
    recipe: Recipe
    progress: Progress
    autocast: Callable[[], AbstractContextManager]
    ranks: Ranks

    def launching(self) -> Take:
        parameters, rehearsed = list(self.net.parameters()), self.ranks.size == 1

        def take(batch: Batch, lr: float) -> tuple[Tensor, bool]:
            nonlocal rehearsed
            for _ in range(1 if rehearsed else 2):
                # DDP reorders its sums after the first backward of a sitting. Doing that one twice
                # lets a resumed run sum all gradients in the order of an uninterrupted one.
                self.optimizer.zero_grad()
                shown = accumulate_gradients(
                    self.net,
                    self.input,
                    batch,
                    recipe=self.recipe,
                    step=self.progress.step,
                    autocast=self.autocast,
                    ranks=self.ranks,
                )
            rehearsed = True
            self.ranks.sum(shown)
            found = show(shown, parameters).cpu()  # the only wait for the device
            finite = bool(is_finite(found))
            if finite:
                self.optimizer.step(lr)
            return found, finite

        return take

    def replaying(self, batches: Ahead) -> Take:
        """Steps as a whole; the next of `batches` is fetched while the GPU is at work."""
        parameters, recipe = list(self.net.parameters()), self.recipe

        def gradients(batch: Batch) -> Tensor:
            told = {"recipe": recipe, "autocast": self.autocast}
            return show(backward(self.net, self.input, *batch[:3], **told), parameters)

        def seed(step: int) -> None:
            seed_step(self.net, self.input.mean.device, recipe, step, slice(0, recipe.batch))

        replay = Replay(self.net, self.optimizer, gradients=gradients, seed=seed)

        def take(batch: Batch, lr: float) -> tuple[Tensor, bool]:
            replay.start(batch, self.progress.step, lr)
            following = batches.fetch()
            if following is not None:
                replay.hold(following)
            return replay.wait()

        return take


def advance(progress: Progress, recipe: Recipe, step: Step) -> None:
    """Counts a step; at an epoch's end, without a `switch`, looks for a plateau of the error."""
    progress.step += 1
    progress.pending.append([step.loss, step.error, step.grad_norm, step.conv_norm])
    if progress.step > (1 - TAIL) * recipe.steps:
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
    """Whether this step reaches a multiple of the interval, which may be rounded."""
    return int(step / interval + ROUNDING) > int((step - 1) / interval + ROUNDING)


def drop_on_plateau(progress: Progress, error: float) -> None:
    """`error` is the epoch's running training error, never that of the images tested on."""
    if error < progress.best_error - GAIN:
        progress.best_error, progress.epochs_without_gain = error, 0
        return
    progress.epochs_without_gain += 1
    if progress.epochs_without_gain >= PATIENCE and progress.drops < DROPS:
        progress.drops += 1
        progress.epochs_without_gain = 0


def final_status(progress: Progress, classes: int) -> str:
    """`stalled` if the last tenth's mean loss is not 2 % below ln(classes), a blind guess."""
    if progress.status == "diverged":
        return "diverged"
    blind = math.log(classes)
    mean = progress.tail_loss / max(1, progress.tail_steps)
    return "stalled" if mean >= (1 - STALLED) * blind else "converged"
