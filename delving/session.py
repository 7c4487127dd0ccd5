"""A run in the making: its data, net and device, put together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch

from delving import device as devices
from delving import record
from delving.build import build_model, images_at_once
from delving.data import fingerprint, load_splits
from delving.data.augment import rows_of
from delving.data.images import Images, reckon_bytes
from delving.data.input import Input, blank_input, measure_input
from delving.data.loader import (
    Batch,
    Cache,
    TrainingBatches,
    cached,
    count_workers,
)
from delving.data.resident import Resident, ResidentBatches, load_resident
from delving.data.shared import iterate_shared
from delving.evaluate import Tester
from delving.kernels import native
from delving.momentum import Momentum
from delving.net import Net
from delving.notation import Layer
from delving.ranks import ALONE, Ranks
from delving.schema import Config
from delving.step import Recipe
from delving.train import Progress
from delving.words import shown

SMALL = 2e9  # bytes of a split's images: all of Tiny ImageNet's
Watch = Callable[[dict], None]  # is told every event; those of kind "tick" are not logged


@dataclass
class Session:
    """All that a run works with, put together once."""

    config: Config
    folder: Path
    train_images: Cache
    val_images: Cache
    net: Net
    layers: list[Layer]
    device: torch.device
    precision: str
    workers: int
    watch: Watch
    input: Input | None = None
    recipe: Recipe | None = None
    optimizer: Momentum | None = None
    progress: Progress = field(default_factory=Progress)
    seconds: float = 0.0  # of training, over all sittings
    shelf: dict = field(default_factory=dict)  # what other runs of this process can use too
    weights: str | None = None  # their hash, once they are saved
    trained: str | None = None  # the precision that a checkpoint's weights were trained in
    ranks: Ranks = ALONE  # the processes that work on this run together
    heard: list[int] = field(default_factory=list)  # signals
    looks: list = field(default_factory=list)  # views of the images that each validation looks at

    @cached_property
    def data(self) -> str:
        """The hash of both splits."""
        return fingerprint(self.train_images.images, self.val_images.images)

    def tell(self, **event) -> None:
        """Tells the watcher an event; with several ranks only the first does."""
        if self.ranks.first:
            self.watch(event)

    def log(self, **event) -> None:
        if self.ranks.first:
            record.append_event(self.folder / "log.jsonl", event)
        self.tell(**event)

    @property
    def autocast(self) -> Callable:
        return partial(devices.autocast, self.device, self.precision)

    def resident(self) -> Resident | None:
        """The training images on the GPU, for this run and those after it; None if they do not fit
        there or differ in size."""
        if self.device.type != "cuda":
            return None
        images = self.train_images.images
        key = ("resident", str(self.device))
        if key not in self.shelf:
            found = load_resident(images, self.device, self.config.data.cache_gb)
            self.shelf[key] = (self.data, found)
        data, found = self.shelf[key]
        return found if data == self.data else None

    def tester(self, heard: Sequence[int] = (), kept: list | None = None) -> Tester:
        """Scores with the session's net; a signal in `heard` ends it. `kept`: see Tester."""
        return Tester(
            self.net,
            self.input,
            self.autocast,
            batch=self.config.eval.batch,
            workers=self.workers,
            timeout=self.config.data.timeout,
            ranks=self.ranks,
            heard=heard,
            folder=self.folder,
            kept=kept,
        )

    def blank_input(self) -> Input:
        """An Input to be filled with saved statistics."""
        number = devices.number_type(self.config.precision)
        return blank_input(self.config.data.crop).to(self.device, number)

    def sides(self, sevenths: list[int]) -> list[int]:
        """Shorter sides in pixels."""
        return [n * self.config.data.crop // 7 for n in sevenths]


def open_session(
    config: Config,
    folder: Path,
    watch: Watch,
    shelf: dict | None = None,
    ranks: Ranks = ALONE,
) -> Session:
    """Data, net and device of a run; images that `shelf` has decoded already are taken from it."""
    shelf, sharing = {} if shelf is None else shelf, ranks.sharing()
    with ranks.same_fate():
        rows_of(config.train.batch, ranks.rank, ranks.size)  # refused before anything is written
        device = devices.pick_device(
            config.device, local_rank=ranks.local_rank, local_size=ranks.local_size
        )
        devices.prepare_backend(device)
        workers = count_workers(config.data.workers, sharing, gpu=device.type == "cuda")
        if ranks.local_rank == 0:  # generated images are written by one process of a machine
            caches = _open_caches(config, workers, shelf, ranks)
    with ranks.same_fate():
        if ranks.local_rank:
            caches = _open_caches(config, workers, shelf, ranks)
        classes = caches[0].images.classes
        if len(classes) < 2:
            raise ValueError(f"all images are of one class, {shown(classes[0])}: there is nothing "
                             "to tell apart")  # fmt: skip
        net, layers = build_model(config, len(classes))
    precision = _same_precision(config, device, ranks)
    return Session(
        config,
        folder,
        *caches,
        net,
        layers,
        device,
        precision,
        workers,
        watch,
        shelf=shelf,
        ranks=ranks,
    )


def compile_kernels(device: torch.device, watch: Watch) -> None:
    """Compiles a CPU's kernels where that was not done before: not in the first step, where it
    would count as training and hold up signals."""
    if device.type == "cpu":
        if native.is_to_be_compiled():
            watch({"event": "compiling"})
        native.operator()


def _same_precision(config: Config, device: torch.device, ranks: Ranks) -> str:
    """The precision of all ranks: on machines of several kinds `auto` may find several."""
    found = ranks.gather(devices.pick_precision(config.precision, device))
    if len(set(found)) > 1:
        each = ", ".join(f"{precision} on rank {rank}" for rank, precision in enumerate(found))
        ranks.fail(ValueError(f"precision={config.precision}: {each}; give one of these to all"))
    return found[0]


def check_same_data(session: Session, data: str) -> None:
    """ValueError if a checkpoint comes from other data than the session's."""
    if data != session.data:
        raise ValueError(
            f"{session.folder} was trained on other data (its hash {data}, here {session.data}): "
            "give the same data.root, or move the folder away"
        )


def _open_caches(config: Config, workers: int, shelf: dict, ranks: Ranks) -> list[Cache]:
    data = config.data
    sides = tuple(n * data.crop // 7 for n in config.train.s)
    key = (repr(data), sides, workers, config.output_root)
    if key not in shelf:
        # Only the last data set's images stay: two sets might not fit.
        shelf.clear()
        train, val = load_splits(config.data, config.output_root)
        each = data.cache_gb / ranks.local_size / (len(train) + len(val))  # gigabytes per image
        shelf[key] = [
            cached(train, gigabytes=each * len(train), workers=workers,
                   side=_side_of(train, sides)),
            cached(val, gigabytes=each * len(val), workers=workers),
        ]  # fmt: skip
    return shelf[key]


def _side_of(images: Images, sides: tuple[int, int]) -> int | None:
    """The shorter side of all views, if the images are small enough to be kept resized to it; of
    others no more is decoded than a view needs. This does not depend on how many are kept, since
    the two ways may round a grey level differently."""
    low, high = sides
    return low if low == high and len(images) * reckon_bytes(low) <= SMALL else None


def plan_recipe(config: Config, images: int) -> Recipe:
    t = config.train
    epoch = images / t.batch
    return Recipe(
        steps=max(1, round(t.epochs * epoch)),
        epoch=epoch,
        batch=t.batch,
        micro_batch=images_at_once(config),
        lr=t.lr,
        warmup=t.warmup,
        switch=tuple(t.switch),
        momentum=t.momentum,
        weight_decay=t.weight_decay,
        color=t.color,
        seed=config.seed,
    )


def measure_for(session: Session, source: Cache) -> Input:
    """The input statistics of the source's images, as the session's configuration wants them."""
    config = session.config
    [s] = session.sides([8])
    normalised = config.init.range == "normalised"
    found = measure_input(source, crop=config.data.crop, s=s, normalised=normalised)
    return found.to(session.device, devices.number_type(config.precision))


def supply_batches(session: Session, steps: range) -> Iterator[Batch]:
    """This rank's rows of these steps' batches: made on the GPU if the images lie there, else by
    loader processes."""
    config, recipe, ranks = session.config, session.recipe, session.ranks
    about = {
        "batch": recipe.batch,
        "crop": config.data.crop,
        "sides": tuple(session.sides(config.train.s)),
        "flip": config.train.flip,
        "seed": config.seed,
        "share": (ranks.rank, ranks.size),
    }
    resident = session.resident()
    if resident:
        batches = ResidentBatches(resident, **about)
        return (batches[step] for step in steps)
    place = Path(config.data.root or config.output_root).expanduser().resolve()
    return iterate_shared(
        TrainingBatches(session.train_images, **about),
        steps,
        data=f"{config.data.name} {place} {session.data}",
        workers=session.workers,
        pin=session.device.type == "cuda",
        timeout=config.data.timeout,
    )
