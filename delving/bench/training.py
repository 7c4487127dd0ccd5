"""Training steps and forward passes on a batch in memory: ours against plain PyTorch."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice, repeat

import torch
from torch import Tensor, nn

from delving import device as devices
from delving.bench.limits import matmul_rate
from delving.bench.plain import make_plain, plain_steps
from delving.bench.rounds import Row, compare, in_turns, seconds_each
from delving.build import build_model, count_classes, materialise
from delving.config import compose
from delving.cost import FORWARDS
from delving.data.augment import rows_of
from delving.data.input import Input, blank_input
from delving.data.loader import Batch
from delving.momentum import Momentum
from delving.net import Net, describe
from delving.ranks import ALONE, Ranks
from delving.schema import Config
from delving.session import plan_recipe
from delving.step import Recipe
from delving.train import Progress, Step, build_optimizer, train

# On a CPU a large net takes fewer images than a batch: as many as make up these mult-adds of a
# forward pass, but no fewer than keep the weights from being most of the work.
ON_A_CPU, LEAST = 130e9, 16
STD = 60.0  # grey levels, which noise is divided by


@dataclass
class Bench:
    """A net, ours and plain, with a batch of noise on the device."""

    config: Config
    net: Net
    input: Input
    batch: Batch
    recipe: Recipe
    precision: str
    multiply_adds: int

    @cached_property
    def steps(self) -> Iterator[Step]:
        """The steps of `delving train`, without end and without loading."""
        return self.training(repeat(self.batch))

    @property
    def device(self) -> torch.device:
        return self.batch.pixels.device

    @property
    def autocast(self) -> Callable:
        return partial(devices.autocast, self.device, self.precision)

    @cached_property
    def optimizer(self) -> Momentum:
        return build_optimizer(self.net, self.recipe)

    @property
    def name(self) -> str:
        config = self.config
        width = "" if config.model.width == 1 else f" at width {config.model.width:g}"
        crop, images = config.data.crop, len(self.batch.labels)
        return (f"{config.model.name} {config.act.name}{width}, {images} images of {crop}, "
                f"{self.precision}")  # fmt: skip

    def prepare(self, batch: Batch) -> Tensor:
        """The net's input of a batch, with its colours altered."""
        return self.input(batch.pixels, self.input.color_shift(batch.color, self.recipe.color))

    def share(self, ranks: Ranks) -> Batch:
        """A rank's rows of the batch."""
        rows = rows_of(len(self.batch.labels), ranks.rank, ranks.size)
        return Batch(*(x[rows] for x in self.batch[:3]), [])

    def training(
        self, batches: Iterable[Batch], *, ranks: Ranks = ALONE, replay: bool = True
    ) -> Iterator[Step]:
        """A training on these batches; see train.py."""
        return train(ranks.share(self.net, self.device), self.input, self.optimizer,
                     batches=batches, recipe=self.recipe, progress=Progress(),
                     autocast=self.autocast, ranks=ranks, replay=replay)  # fmt: skip

    def ours(self, count: int) -> None:
        """Takes `count` more steps. Raises as `take`."""
        take(self.steps, count)

    def plain(self) -> Callable[[int], None]:
        """A function that takes as many steps in plain PyTorch, with a net of its own."""
        net = make_plain(copy.deepcopy(self.net))
        return plain_steps(net, self.batch, self.recipe, self.prepare, self.autocast)

    def limit(self, forwards: float = FORWARDS) -> float:
        """Images a second if all work ran at the matmul rate measured in this run."""
        rate = matmul_rate(self.device, self.precision)
        return rate / (2 * forwards * self.multiply_adds)


def take(training: Iterator, count: int) -> None:
    """Takes `count` more steps of a training on noise.

    Raises:
        RuntimeError: its loss was not finite, which ended it.
    """
    if sum(1 for _ in islice(training, count)) < count:
        raise RuntimeError("the training on noise ended early: its loss is not finite")


def build(words: Sequence[str], ranks: Ranks = ALONE) -> Bench:
    """The net that overrides describe, with noise for its images."""
    return build_for(compose(list(words)), ranks)


def build_for(config: Config, ranks: Ranks = ALONE) -> Bench:
    """The same for a whole configuration."""
    device = devices.pick_device(
        config.device, local_rank=ranks.local_rank, local_size=ranks.local_size
    )
    devices.prepare_backend(device)
    classes = count_classes(config)
    net, layers = build_model(config, classes)
    cost = sum(row["multiply_adds"] for row in describe(net, layers, config.data.crop))
    net = materialise(net, config, device)
    images = config.train.batch
    if device.type == "cpu":
        images = min(images, max(LEAST, int(ON_A_CPU / cost)))
    recipe = plan_recipe(config, images * 1000)
    # A rate that leaves the net as it is: learning one batch of noise by heart, it would diverge.
    recipe = replace(recipe, batch=images, micro_batch=images, lr=1e-9)
    precision = devices.pick_precision(config.precision, device)
    return Bench(config, net, noise_input(config, device), noise(config, images, classes, device),
                 recipe, precision, cost)  # fmt: skip


def noise_input(config: Config, device: torch.device) -> Input:
    found = blank_input(config.data.crop)
    found.mean.fill_(127.5)
    found.std.fill_(STD)
    return found.to(device)


def noise(config: Config, images: int, classes: int, device: torch.device) -> Batch:
    draws, crop = torch.Generator().manual_seed(0), config.data.crop
    pixels = torch.randint(0, 256, (images, crop, crop, 3), generator=draws, dtype=torch.uint8)
    labels = torch.randint(0, classes, (images,), generator=draws)
    color = torch.randn(images, 3, generator=draws)
    return Batch(*(x.to(device) for x in (pixels, labels, color)), [])


def rate_of(steps: Callable[[int], None], bench: Bench) -> float:
    """Images a second at which `steps` trains."""
    return len(bench.batch.labels) / seconds_each(lambda: steps(1), bench.device)


def bench_train(words: Sequence[str], rounds: int) -> list[Row]:
    """Images a second against plain PyTorch's, and PReLU's (or those of the rectifier that words
    name) against ReLU's; and the memory that both rectifiers take."""
    words = ["act=prelu", *words]
    memory = _memory(words)
    bench, relu = build(words), build([*words, "act=relu"])
    plain = bench.plain()
    found = in_turns(
        {
            "ours": lambda: rate_of(bench.ours, bench),
            "plain": lambda: rate_of(plain, bench),
            "relu": lambda: rate_of(relu.ours, relu),
        },
        rounds,
    )
    about = {"unit": "images/s", "device": devices.name_device(bench.device)}
    return [
        compare(f"train {bench.name}: against plain PyTorch", found["ours"], found["plain"],
                limit=bench.limit(), **about),
        compare(f"train {bench.name}: against the same net with ReLU", found["ours"],
                found["relu"], **about),
        memory,
    ]  # fmt: skip


def _memory(words: Sequence[str]) -> Row:
    """The row on memory: one net trains after the other, so that neither counts the other's."""
    found = []
    for more in (["act=relu"], []):
        bench = build([*words, *more])
        found.append([memory_of(bench) / 1e9])
    what = "peak memory" if bench.device.type == "cuda" else "kept for the backward pass"
    about = {"unit": "GB", "device": devices.name_device(bench.device)}
    name = f"train {bench.name}: {what}, against ReLU"
    return compare(name, *reversed(found), **about)


def memory_of(bench: Bench) -> int:
    """Bytes that training takes: on a GPU the peak of a step; elsewhere what a forward pass keeps,
    each tensor once, plus the weights, their gradients and their momentum."""
    if bench.device.type == "cuda":
        # Replayed steps would allocate nothing: their memory was allocated at their recording.
        steps = bench.training(repeat(bench.batch), replay=False)
        for _ in islice(steps, 2):  # cuDNN's search for algorithms takes memory of its own
            pass
        torch.cuda.reset_peak_memory_stats(bench.device)
        for _ in islice(steps, 2):
            pass
        return torch.cuda.max_memory_allocated(bench.device)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for module in bench.net.modules():
        if hasattr(module, "seed"):
            images = len(bench.batch.labels)
            module.seed(0, images, slice(0, images))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), bench.autocast():
        out = bench.net(bench.prepare(bench.batch))
    del out
    weights = {p.untyped_storage().data_ptr(): p.nbytes for p in bench.net.parameters()}
    return sum((kept | weights).values()) + 2 * sum(weights.values())


def bench_eval(words: Sequence[str], rounds: int) -> list[Row]:
    """Forward passes of crops, as ten_view makes them, against plain PyTorch's."""
    bench = build(words)
    ours, plain = bench.net.eval(), make_plain(copy.deepcopy(bench.net)).eval()
    found = in_turns(
        {name: partial(_forward_rate, net, bench, name == "ours")
         for name, net in {"ours": ours, "plain": plain}.items()},
        rounds,
    )  # fmt: skip
    return [
        compare(f"eval {bench.name}: crops, against plain PyTorch", found["ours"], found["plain"],
                limit=bench.limit(1), unit="images/s", device=devices.name_device(bench.device))
    ]  # fmt: skip


@torch.no_grad()
def _forward_rate(net: nn.Module, bench: Bench, channels_last: bool) -> float:
    """Images a second of forward passes; a net's weights are rounded once, as by the tester."""

    def forward() -> None:
        x = bench.input(bench.batch.pixels)
        net(x if channels_last else x.contiguous())

    with bench.autocast():
        return len(bench.batch.labels) / seconds_each(forward, bench.device)
