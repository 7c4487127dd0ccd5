"""From a configuration to a run folder: `train_run` trains, scores and records; `eval_run` scores."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

import delving
from delving import config as configs
from delving import device as devices
from delving import record
from delving.build import build_model, list_deviations, load_weights, materialise
from delving.data import fingerprint, load_data
from delving.data.input import Input, blank_input, measure_input
from delving.data.loader import Cache, TrainingBatches, cached, count_workers, iterate
from delving.evaluate import Tester, error_rates, name_protocols
from delving.meter import Meter
from delving.net import Layer, Net, describe
from delving.schema import Config
from delving.signals import Interrupted, heeding_signals
from delving.train import Progress, Recipe, Step, build_optimizer, final_status, train

Watch = Callable[[dict], None]  # is told every event; those of kind "tick" are not logged
BAD_SHARE = 1e-4  # undecodable training images borne, of all; at least one
SUBSET = 20_15  # keys the fixed random validation images looked at in training


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


def train_run(config: Config, watch: Watch) -> Path:
    """Trains and scores one run, or what is left of it, and returns its folder.

    Raises:
        ValueError: bad data, or a folder of that name whose run was asked for differently.
        Interrupted: TERM, INT or USR1 came; the state is saved.
    """
    folder = record.run_folder(config.output_root, config.scale, configs.name_run(config))
    check_same_run(folder, config)
    if (folder / "result.json").exists():
        watch({"event": "finished"})
        return folder
    session = open_session(config, folder, watch)
    watch({"event": "opening", "line": opening_line(session)})
    resume_or_start(session)
    with heeding_signals() as heard:
        train_until_done(session, heard)
        finish(session, heard)
    return folder


def check_same_run(folder: Path, config: Config) -> None:
    if not (folder / "config.yaml").exists():
        return
    changed = configs.differences(config, configs.load(folder / "config.yaml"))
    if changed:
        lines = [f"{key} {ours} asked for, {theirs} there" for key, (ours, theirs) in changed.items()]
        raise ValueError(f"{folder} holds another run: {'; '.join(lines)}. Move it away to train anew")


def open_session(config: Config, folder: Path, watch: Watch) -> Session:
    device = devices.pick_device(config.device)
    devices.prepare_backend(device)
    data = config.data
    splits = load_data(
        data.name, data.root, classes=data.classes, train_images=data.train_images,
        val_images=data.val_images, output_root=config.output_root,
    )  # fmt: skip
    workers = count_workers(data.workers)
    caches = [cached(split, gigabytes=data.cache_gb, workers=workers) for split in splits]
    net, layers = build_model(config, len(splits[0].classes))
    precision = devices.pick_precision(config.precision, device)
    return Session(config, folder, *caches, net, layers, device, precision, workers, watch)


def opening_line(session: Session) -> str:
    """What this training really is, in a line."""
    config, images = session.config, len(session.train_images.images)
    name = config.model.name.upper() if len(config.model.name) == 1 else config.model.name
    width = "" if config.model.width == 1 else f" at width {_fraction(config.model.width)}"
    kind = "generated" if config.data.name == "shapes" else config.data.name
    line = f"{name}{width} on {images:,} {kind} images (scale {config.scale})."
    if config.scale == "paper":
        return line
    fitting = session.device.type != "cpu" and config.scale != "quarter"
    hint = " For this machine's GPU: scale=quarter." if fitting else ""
    return f"{line} The paper's own: scale=paper data.root=...{hint}"


def _fraction(width: float) -> str:
    return f"1/{1 / width:g}" if width < 1 and (1 / width).is_integer() else f"{width:g}"


def plan_recipe(config: Config, images: int) -> Recipe:
    t = config.train
    epoch = images / t.batch
    return Recipe(
        steps=max(1, round(t.epochs * epoch)), epoch=epoch, batch=t.batch,
        micro_batch=min(t.micro_batch or t.batch, t.batch), lr=t.lr, warmup=t.warmup,
        switch=tuple(t.switch), momentum=t.momentum, weight_decay=t.weight_decay, color=t.color,
        seed=config.seed,
    )  # fmt: skip


def resume_or_start(session: Session) -> None:
    """Weights, input statistics, optimiser and progress: from the checkpoint, or new."""
    session.recipe = plan_recipe(session.config, len(session.train_images.images))
    data = fingerprint(session.train_images.images, session.val_images.images)
    saved = record.load_checkpoint(session.folder)
    session.net = materialise(session.net, session.config, session.device)
    if saved:
        restore(session, *saved, data)
    else:
        start(session, data)


def start(session: Session, data: str) -> None:
    config, folder = session.config, session.folder
    session.input = measure_input(
        session.train_images, crop=config.data.crop, s=session.sides([8])[0],
        normalised=config.init.range == "normalised",
    ).to(session.device)  # fmt: skip
    session.optimizer = build_optimizer(session.net, session.recipe)
    record.write_json(folder / "env.json", environment(session, data))
    record.write_text(folder / "config.yaml", configs.to_yaml(config))
    (folder / "log.jsonl").unlink(missing_ok=True)
    session.log(
        event="start", run=folder.name, steps=session.recipe.steps,
        steps_per_epoch=session.recipe.epoch, classes=len(session.train_images.images.classes),
        train_images=len(session.train_images.images), val_images=len(session.val_images.images),
        precision=session.precision,
    )  # fmt: skip


def restore(session: Session, tensors: dict, state: dict, data: str) -> None:
    """Takes up a checkpoint; ValueError where it belongs to other data or another net."""
    if state["data"] != data:
        raise ValueError(
            f"{session.folder} was trained on other data (fingerprint {state['data']}, here {data}): "
            "give the same data.root, or move the folder away"
        )
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
    session.log(event="resume", step=session.progress.step)


def save(session: Session) -> None:
    """Writes a checkpoint from which the same steps follow."""
    net = {f"net.{k}": v.contiguous() for k, v in session.net.state_dict().items()}
    net |= {f"input.{k}": v.contiguous() for k, v in session.input.state_dict().items()}
    buffers = {name: session.optimizer.state[p].get("momentum_buffer")
               for name, p in session.net.named_parameters()}  # fmt: skip
    momentum = {name: v.contiguous() for name, v in buffers.items() if v is not None}
    state = {
        "progress": asdict(session.progress),
        "seconds": session.seconds,
        "precision": session.precision,
        "data": record.read_json(session.folder / "env.json")["data"],
        "log_bytes": (session.folder / "log.jsonl").stat().st_size,
    }
    record.save_checkpoint(session.folder, {"model": net, "optimizer": momentum}, state)


def train_until_done(session: Session, heard: list[int]) -> None:
    """The steps that are left, with log, validation, checkpoints and signals in between."""
    config, recipe, progress = session.config, session.recipe, session.progress
    if progress.status == "diverged" or progress.step >= recipe.steps:
        return  # trained, but not scored
    meter = Meter(session.seconds)
    for step in planned_steps(session, meter):
        session.seconds = meter.seconds
        meter.images += recipe.batch
        note_bad_images(session, step)
        report_step(session, step, meter)
        if progress.status == "diverged":
            break
        last = progress.step == recipe.steps
        if last or _passed(progress.step, recipe.epoch * config.eval.every):
            with meter.paused():
                validate(session)
        if heard or meter.checkpoint_due(config.train.checkpoint_minutes):
            with meter.paused():
                save(session)
        if heard:
            raise Interrupted(heard[0], session.folder)
    session.seconds = meter.seconds
    save(session)


def planned_steps(session: Session, meter: Meter) -> Iterator[Step]:
    """The training of the steps that are left, about to begin."""
    config, recipe, progress = session.config, session.recipe, session.progress
    batches = TrainingBatches(
        session.train_images, batch=recipe.batch, crop=config.data.crop,
        sides=tuple(session.sides(config.train.s)), flip=config.train.flip, seed=config.seed,
    )  # fmt: skip
    left = range(progress.step, recipe.steps)
    supply = iterate(batches, left, workers=session.workers, pin=session.device.type == "cuda")
    net = torch.compile(session.net) if config.train.compile else session.net
    return train(
        net, session.input, session.optimizer, batches=meter.timed(supply), recipe=recipe,
        progress=progress, autocast=session.autocast,
    )  # fmt: skip


def _passed(step: int, interval: float) -> bool:
    return int(step / interval) > int((step - 1) / interval)


def note_bad_images(session: Session, step: Step) -> None:
    """Counts undecodable training images; ValueError names them once they are too many."""
    new = [name for name in dict.fromkeys(step.bad) if name not in session.progress.bad]
    for name in new:
        session.progress.bad.append(name)
        session.log(event="bad_image", name=name)
    limit = max(1, int(BAD_SHARE * len(session.train_images.images)))
    if new and len(session.progress.bad) > limit:
        raise ValueError(
            f"{len(session.progress.bad)} training images cannot be decoded (borne: {limit}): "
            f"{', '.join(session.progress.bad[:5])}. `delving data verify` lists them all"
        )


def report_step(session: Session, step: Step, meter: Meter) -> None:
    progress, recipe = session.progress, session.recipe
    session.watch({"event": "tick", "step": progress.step, "loss": step.loss, "err": step.error})
    if progress.status == "diverged":
        session.log(event="diverged", step=progress.step, loss=str(step.loss),
                    grad_norm=str(step.grad_norm))  # fmt: skip
    elif progress.step % session.config.train.log_every == 0 or progress.step == recipe.steps:
        loss, err, norm = np.mean(progress.pending, axis=0).tolist()
        progress.pending.clear()
        session.log(
            event="step", step=progress.step, epoch=round(progress.step / recipe.epoch, 4),
            loss=loss, err=err, grad_norm=norm, lr=step.lr,
            seconds=round(session.seconds, 2), **meter.rates(),
        )  # fmt: skip


def validate(session: Session) -> None:
    """Center-crop error of a fixed random subset of the validation images, for the curves."""
    images = session.val_images.images
    count = min(session.config.eval.images, len(images))
    rng = np.random.Generator(np.random.Philox(SUBSET))
    chosen = np.sort(rng.permutation(len(images))[:count])
    s = session.sides([session.config.eval.ten_view_s])[0]
    probabilities = session.tester.center(session.val_images, s, chosen)
    session.log(
        event="val", step=session.progress.step,
        epoch=round(session.progress.step / session.recipe.epoch, 4), images=count,
        **error_rates(probabilities, images.labels[chosen]),
    )  # fmt: skip


def finish(session: Session, heard: list[int]) -> None:
    """Scores the trained net and writes result.json, the mark of a finished run."""
    status = final_status(session.progress, len(session.train_images.images.classes))
    scores = {} if status == "diverged" else score(session, heard)
    result = summarise(session, status, scores)
    session.log(event="end", status=status, seconds=round(session.seconds, 2))
    record.write_json(session.folder / "result.json", result)


def score(session: Session, heard: list[int]) -> dict[str, dict]:
    """Every protocol of the configuration, saved under its name; {name: error rates}."""
    config, images = session.config.eval, session.val_images.images
    sides = session.sides(config.dense_s)
    scored: dict[str, np.ndarray] = {}
    summaries = {}
    for name in name_protocols(config.protocols, sides):
        started = time.perf_counter()
        if name == "dense":
            scored[name] = np.mean([scored[f"dense@{s}"] for s in sides], axis=0)
        elif name.startswith("dense@"):
            scored[name] = session.tester.dense(session.val_images, int(name[6:]))
        else:
            s = session.sides([config.ten_view_s])[0]
            scored[name] = getattr(session.tester, name)(session.val_images, s)
        summaries[name] = {**error_rates(scored[name], images.labels), "images": len(images)}
        record.save_scores(
            session.folder, name,
            {"protocol": name, **summaries[name], "seconds": round(time.perf_counter() - started, 2)},
            probabilities=scored[name], labels=images.labels, names=images.names,
        )  # fmt: skip
        session.watch({"event": "score", "protocol": name, **summaries[name]})
        if heard:
            raise Interrupted(heard[0], session.folder)
    return summaries


def summarise(session: Session, status: str, scores: dict[str, dict]) -> dict:
    config, progress, recipe = session.config, session.progress, session.recipe
    steps = record.read_events(session.folder, "step")
    rows = describe(session.net, session.layers, config.data.crop)
    return {
        "run": session.folder.name,
        "scale": config.scale,
        "model": config.model.name,
        "act": config.act.name,
        "init": config.init.name,
        "seed": config.seed,
        "epochs": round(progress.step / recipe.epoch, 4),
        "images_seen": progress.step * recipe.batch,
        "params": sum(row["params"] for row in rows),
        "multiply_adds": sum(row["multiply_adds"] for row in rows),
        "train_loss": steps[-1]["loss"] if steps else None,
        "status": status,
        "seconds": round(session.seconds, 2),
        "images_per_second": round(progress.step * recipe.batch / max(session.seconds, 1e-9), 1),
        "device": devices.name_device(session.device),
        "eval": scores,
        "deviations": list_deviations(config, session.net, session.precision),
    }


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


def eval_run(folder: Path, config: Config, watch: Watch) -> dict[str, dict]:
    """Scores a run's checkpoint by the configuration's protocols; {protocol: error rates}.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of another model.
    """
    saved = record.load_checkpoint(folder)
    if not saved:
        raise ValueError(f"{folder} has no checkpoint to score")
    session = open_session(config, folder, watch)
    session.net = session.net.to_empty(device=session.device).to(memory_format=torch.channels_last)
    session.input = blank_input(config.data.crop).to(session.device)
    load_weights(session.net, session.input, saved[0]["model"], folder)
    with heeding_signals() as heard:
        return score(session, heard)
