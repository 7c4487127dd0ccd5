"""A run's state: started anew or taken up from its checkpoint, and saved."""

import os
import platform
import subprocess
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

import delving
from delving import config as configs
from delving import device as devices
from delving import record
from delving.build import load_momentum, load_weights, materialise, tensors_of
from delving.checkpoint import WEIGHTS, check_room, load_checkpoint, save_checkpoint, settle
from delving.data.loader import count_cores
from delving.kernels import gpu, native
from delving.schema import Config
from delving.session import Session, check_same_data, measure_for, plan_recipe
from delving.train import Progress, build_optimizer

NUMBER = record.NUMBER
STATE = {"progress": dict, "seconds": NUMBER, "precision": str, "data": str, "log_bytes": int}
PROGRESS = {
    "step": int, "drops": int, "best_error": NUMBER, "epochs_without_gain": int,
    "tail_loss": NUMBER, "tail_steps": int, "epoch_errors": NUMBER, "epoch_steps": int,
    "pending": list, "bad": list, "status": str,
}  # fmt: skip
ABOUT = ("env.json", "config.yaml")
BESIDE = 16 * 2**20  # bytes of log, scores of small data sets, and the rest of a run folder


def resume_or_start(session: Session) -> None:
    """Weights, input statistics, optimiser and progress: from the checkpoint, or new.

    With several ranks only the first reads the folder; the others need not see its disk.

    Raises:
        ValueError: a checkpoint of other data or another net, or none that is whole.
        DiskFullError: there is no room for what the run will write.
    """
    ranks = session.ranks
    session.recipe = plan_recipe(session.config, len(session.train_images.images))
    _agree_on_data(session)
    session.net = materialise(session.net, session.config, session.device)
    tensors: dict = {}
    with ranks.same_fate():
        tensors, state = _look(session) if ranks.first else (tensors, None)
    state = ranks.tell(state)
    with ranks.same_fate():
        restore(session, tensors, state) if state else start(session)
    ranks.spread([*session.net.state_dict().values(), *session.input.state_dict().values()])
    for names in [ranks.tell(sorted(tensors.get("optimizer", {})))] if state else ():
        _spread_momentum(session, names)


def _agree_on_data(session: Session) -> None:
    hashes = session.ranks.gather(session.data)
    strange = [rank for rank, theirs in enumerate(hashes) if theirs != hashes[0]]
    if strange:
        session.ranks.fail(
            ValueError(f"rank {strange[0]} sees other images than rank 0 at its data.root")
        )


def _look(session: Session) -> tuple[dict, dict | None]:
    """Tidies the folder, reads its checkpoint: ({file: {name: tensor}}, state), or ({}, None)."""
    folder = session.folder
    record.remove_leftovers(folder)
    for fault in settle(folder):
        session.tell(event="damaged", fault=fault)
    val, size = session.val_images.images, sum(p.nbytes for p in session.net.parameters())
    check_room(folder, 2 * size, BESIDE + 8 * len(val) * len(val.classes))
    found = load_checkpoint(folder)
    if found is None:
        return {}, None
    return found[0], read_state(found[1], folder)


def start(session: Session) -> None:
    config, folder = session.config, session.folder
    session.optimizer = build_optimizer(session.net, session.recipe)
    if not session.ranks.first:
        session.input = session.blank_input()
        return
    key = ("input", config.data.crop, config.init.range, config.precision)
    if key not in session.shelf:
        session.shelf[key] = measure_for(session, session.train_images)
    session.input = session.shelf[key]
    for name in ABOUT:
        _write_about(session, name)
    (folder / "log.jsonl").unlink(missing_ok=True)
    _log_start(session)


def _write_about(session: Session, name: str) -> None:
    if name == "env.json":
        about = environment_of(session.device, session.precision, session.data)
        record.write_json(session.folder / name, about | {"ranks": session.ranks.size})
    else:
        record.write_text(session.folder / name, configs.to_yaml(_from_anywhere(session.config)))


def _from_anywhere(config: Config) -> Config:
    """The configuration with data.root as it is seen from every working directory."""
    root = config.data.root and os.path.abspath(os.path.expanduser(config.data.root))
    return replace(config, data=replace(config.data, root=root))


def _log_start(session: Session) -> None:
    session.log(
        event="start",
        run=session.folder.name,
        steps=session.recipe.steps,
        steps_per_epoch=session.recipe.epoch,
        classes=len(session.train_images.images.classes),
        train_images=len(session.train_images.images),
        val_images=len(session.val_images.images),
        precision=session.precision,
    )


def read_state(state: dict, folder: Path) -> dict:
    """The state of a checkpoint, checked; ValueError names what is damaged in it."""
    where = f"{folder}: its checkpoint's state.json"
    progress = record.expect(state, STATE, where)["progress"]
    record.expect(progress, PROGRESS, where, infinite=("best_error",))
    strange = sorted(set(progress) - {f.name for f in fields(Progress)})
    counts = [progress[k] for k in ("step", "drops", "tail_steps", "epoch_steps")]
    rows = [row for row in progress["pending"] if not record.are_numbers(row, 4)]
    names = [name for name in progress["bad"] if not isinstance(name, str)]
    if strange or rows or names or min(*counts, state["log_bytes"], state["seconds"]) < 0:
        raise ValueError(f"{where} is damaged: {strange or rows or names or 'a count is negative'}")
    return state


def restore(session: Session, tensors: dict, state: dict) -> None:
    """Takes up a checkpoint; ValueError if it belongs to other data or another net."""
    folder = session.folder
    session.input = session.blank_input()
    session.optimizer = build_optimizer(session.net, session.recipe)
    session.progress = Progress(**state["progress"])
    session.seconds, session.precision = state["seconds"], state["precision"]
    session.weights = state["weights"]
    if not session.ranks.first:
        return
    check_same_data(session, state["data"])
    load_weights(session.net, session.input, tensors.get("model", {}), folder)
    load_momentum(session.net, session.optimizer, tensors.get("optimizer", {}), folder)
    for name in ABOUT:  # one may be lost, and a run is found by it
        if not (folder / name).exists():
            _write_about(session, name)
    if fault := record.truncate_log(folder / "log.jsonl", state["log_bytes"]):
        session.tell(event="damaged", fault=fault)
    if not record.read_events(folder, "start"):
        _log_start(session)
    session.log(
        event="resume",
        run=folder.name,
        step=session.progress.step,
        steps=session.recipe.steps,
    )


def _spread_momentum(session: Session, names: list[str]) -> None:
    for name, p in session.net.named_parameters():
        if name in names:
            kept = session.optimizer.velocity.setdefault(p, torch.empty_like(p))
            session.ranks.spread([kept])


def save(session: Session) -> None:
    """Writes a checkpoint from which the same steps follow; with several ranks the first does."""
    if not session.ranks.first:
        return
    tensors = tensors_of(session.net, session.input, session.optimizer)
    log = session.folder / "log.jsonl"
    record.sync_log(log)
    state = {
        "progress": asdict(session.progress),
        "seconds": session.seconds,
        "precision": session.precision,
        "data": session.data,
        "log_bytes": log.stat().st_size,
    }
    hashes = save_checkpoint(session.folder, tensors, state)
    session.weights = hashes[WEIGHTS]


def environment_of(device: torch.device, precision: str, data: str) -> dict:
    """env.json: where, with what and on which data a run or a detection was started."""
    return {
        "delving": delving.__version__,
        "git": git_revision(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": devices.name_device(device),
        "precision": precision,
        "kernels": _kernels(device),
        "cores": count_cores(),
        "data": data,
    }


def _kernels(device: torch.device) -> str:
    """Which kernels compute rectifiers: their sums may differ in the last digits."""
    found = {"cpu": native.load, "cuda": gpu.programs}.get(device.type, lambda: None)()
    return "plain" if found is None else "fused"


def git_revision() -> str | None:
    """The checkout's commit, `+` where it has changes; None outside of a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    # If git runs us, as in a hook, its variables may name another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"]
        told = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
        return told.decode("utf-8", "replace").strip()
    except (OSError, subprocess.CalledProcessError):
        return None
