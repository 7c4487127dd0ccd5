"""A run in the making: its data, net, input and progress, opened, started, saved and resumed."""

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

import delving
from delving import config as configs
from delving import device as devices
from delving import record
from delving.build import build_model, load_weights, materialise
from delving.data import fingerprint, load_data
from delving.data.images import Images
from delving.data.input import Input, blank_input, measure_input
from delving.data.loader import Cache, cached, count_workers
from delving.evaluate import Tester
from delving.net import Layer, Net
from delving.schema import Config
from delving.train import Progress, Recipe, build_optimizer

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
    optimizer: torch.optim.SGD | None = None
    progress: Progress = field(default_factory=Progress)
    seconds: float = 0.0  # of training, over all sittings
    shelf: dict = field(default_factory=dict)  # what other runs of this process can use too

    def log(self, **event) -> None:
        record.append_event(self.folder / "log.jsonl", event)
        self.watch(event)

    @property
    def autocast(self) -> Callable:
        return partial(devices.autocast, self.device, self.precision)

    @property
    def tester(self) -> Tester:
        return Tester(self.net, self.input, self.autocast, self.config.eval.batch, self.workers)

    def sides(self, sevenths: list[int]) -> list[int]:
        """Shorter sides in pixels."""
        return [n * self.config.data.crop // 7 for n in sevenths]


def load_splits(config: Config) -> tuple[Images, Images]:
    """The training and the validation images of a configuration."""
    data = config.data
    return load_data(
        data.name,
        data.root,
        classes=data.classes,
        train_images=data.train_images,
        val_images=data.val_images,
        output_root=config.output_root,
    )


def open_session(config: Config, folder: Path, watch: Watch, shelf: dict | None = None) -> Session:
    """Data, net and device of a run; images that `shelf` has decoded already are taken from it."""
    device = devices.pick_device(config.device)
    devices.prepare_backend(device)
    workers = count_workers(config.data.workers)
    shelf = {} if shelf is None else shelf
    caches = _open_caches(config, workers, shelf)
    net, layers = build_model(config, len(caches[0].images.classes))
    precision = devices.pick_precision(config.precision, device)
    return Session(
        config, folder, *caches, net, layers, device, precision, workers, watch, shelf=shelf
    )


def _open_caches(config: Config, workers: int, shelf: dict) -> list[Cache]:
    data = config.data
    low, high = (n * data.crop // 7 for n in config.train.s)
    side = low if low == high else None
    key = (repr(data), side, workers, config.output_root)
    if key not in shelf:
        # Only the last data set's stay: two of them might not fit.
        shelf.clear()
        train, val = load_splits(config)
        shelf[key] = [
            cached(train, gigabytes=data.cache_gb, workers=workers, side=side),
            cached(val, gigabytes=data.cache_gb, workers=workers),
        ]
    return shelf[key]


def plan_recipe(config: Config, images: int) -> Recipe:
    t = config.train
    epoch = images / t.batch
    return Recipe(
        steps=max(1, round(t.epochs * epoch)),
        epoch=epoch,
        batch=t.batch,
        micro_batch=min(t.micro_batch or t.batch, t.batch),
        lr=t.lr,
        warmup=t.warmup,
        switch=tuple(t.switch),
        momentum=t.momentum,
        weight_decay=t.weight_decay,
        color=t.color,
        seed=config.seed,
    )


def resume_or_start(session: Session) -> None:
    """Weights, input statistics, optimiser and progress: from the checkpoint, or new."""
    session.recipe = plan_recipe(session.config, len(session.train_images.images))
    saved = record.load_checkpoint(session.folder)
    session.net = materialise(session.net, session.config, session.device)
    if saved:
        restore(session, *saved)
    else:
        start(session, fingerprint(session.train_images.images, session.val_images.images))


def measure_for(session: Session, source: Cache) -> Input:
    """The input statistics of the source's images, as the session's configuration wants them."""
    config = session.config
    [s] = session.sides([8])
    normalised = config.init.range == "normalised"
    found = measure_input(source, crop=config.data.crop, s=s, normalised=normalised)
    return found.to(session.device)


def start(session: Session, data: str) -> None:
    config, folder = session.config, session.folder
    key = ("input", config.data.crop, config.init.range)
    if key not in session.shelf:
        session.shelf[key] = measure_for(session, session.train_images)
    session.input = session.shelf[key]
    session.optimizer = build_optimizer(session.net, session.recipe)
    record.write_json(folder / "env.json", environment(session, data))
    record.write_text(folder / "config.yaml", configs.to_yaml(config))
    (folder / "log.jsonl").unlink(missing_ok=True)
    session.log(
        event="start",
        run=folder.name,
        steps=session.recipe.steps,
        steps_per_epoch=session.recipe.epoch,
        classes=len(session.train_images.images.classes),
        train_images=len(session.train_images.images),
        val_images=len(session.val_images.images),
        precision=session.precision,
    )


def check_same_data(session: Session, data: str) -> None:
    """ValueError where a checkpoint comes from other data than the session's."""
    here = fingerprint(session.train_images.images, session.val_images.images)
    if data != here:
        raise ValueError(
            f"{session.folder} was trained on other data (its hash {data}, here {here}): "
            "give the same data.root, or move the folder away"
        )


def restore(session: Session, tensors: dict, state: dict) -> None:
    """Takes up a checkpoint; ValueError where it belongs to other data or another net."""
    check_same_data(session, state["data"])
    session.input = blank_input(session.config.data.crop).to(session.device)
    load_weights(session.net, session.input, tensors["model"], session.folder)
    session.optimizer = build_optimizer(session.net, session.recipe)
    for name, p in session.net.named_parameters():
        if name in tensors["optimizer"]:
            momentum = torch.empty_like(p).copy_(tensors["optimizer"][name])
            session.optimizer.state[p]["momentum_buffer"] = momentum
    session.progress = Progress(**state["progress"])
    session.seconds, session.precision = state["seconds"], state["precision"]
    record.truncate_log(session.folder / "log.jsonl", state["log_bytes"])
    session.log(
        event="resume",
        run=session.folder.name,
        step=session.progress.step,
        steps=session.recipe.steps,
    )


def save(session: Session) -> None:
    """Writes a checkpoint from which the same steps follow."""
    net = {f"net.{k}": v.contiguous() for k, v in session.net.state_dict().items()}
    net |= {f"input.{k}": v.contiguous() for k, v in session.input.state_dict().items()}
    buffers = {
        name: session.optimizer.state[p].get("momentum_buffer")
        for name, p in session.net.named_parameters()
    }
    momentum = {name: v.contiguous() for name, v in buffers.items() if v is not None}
    state = {
        "progress": asdict(session.progress),
        "seconds": session.seconds,
        "precision": session.precision,
        "data": record.read_json(session.folder / "env.json")["data"],
        "log_bytes": (session.folder / "log.jsonl").stat().st_size,
    }
    record.save_checkpoint(session.folder, {"model": net, "optimizer": momentum}, state)


def environment(session: Session, data: str) -> dict:
    """env.json: where, with what and on which data the run was started."""
    return {
        "delving": delving.__version__,
        "git": git_revision(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": devices.name_device(session.device),
        "precision": session.precision,
        "cores": os.cpu_count(),
        "data": data,
    }


def git_revision() -> str | None:
    """The checkout's commit, `+` where it has changes; None outside of a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
