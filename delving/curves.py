"""Training curves of runs, read from their logs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from delving.record import NUMBER, expect, read_events, read_result


def load_events(folder: Path, kind: str, keys: Sequence[str]) -> list[dict]:
    """The events of one kind in a run's log; ValueError names the file and the key that is not a
    number in every one."""
    where, numbers = f"{folder / 'log.jsonl'}: {kind}", dict.fromkeys(keys, NUMBER)
    norms = ("conv_grad_norm", "conv_decay_norm")  # beyond single precision where a net diverges
    return [expect(event, numbers, where, infinite=norms) for event in read_events(folder, kind)]


def load_curves(folder: Path) -> pd.DataFrame:
    """Columns run, curve (training loss, training error, validation error), epoch, value.

    Errors are in percent, top-1; training values are means over the steps since the line before.

    Raises:
        ValueError: the run has not logged both a step and a look yet.
    """
    steps = load_events(folder, "step", ("epoch", "loss", "err"))
    looks = load_events(folder, "val", ("epoch", "top1_err"))
    if not steps or not looks:
        raise ValueError(f"{folder}: nothing logged yet to draw")
    rows = [("training loss", e["epoch"], e["loss"]) for e in steps]
    rows += [("training error", e["epoch"], e["err"]) for e in steps]
    rows += [("validation error", e["epoch"], e["top1_err"]) for e in looks]
    frame = pd.DataFrame(rows, columns=["curve", "epoch", "value"])
    frame.insert(0, "run", folder.name)
    return frame


def read_counts(folder: Path) -> tuple[int, int, int]:
    """Classes, training and validation images of a run; ValueError if its log does not tell."""
    keys = ("classes", "train_images", "val_images")
    told = [tuple(event[key] for key in keys) for event in load_events(folder, "start", keys)]
    if not told:
        raise ValueError(f"{folder / 'log.jsonl'} is damaged: it has no start")
    return told[0]


def tell_looked(folders: Iterable[Path]) -> str:
    """On how many of the validation images runs were tested during training: 'all 2,500 validation
    images', '400 of 800 validation images, always the same ones'."""
    told = {
        (look["images"], read_counts(folder)[2])
        for folder in folders
        for look in load_events(folder, "val", ("images",))[:1]
    }
    parts = [
        f"all {count:,} validation images"
        if count == there
        else f"{count:,} of {there:,} validation images, always the same ones"
        for count, there in sorted(told)
    ]
    return " or ".join(parts) or "validation images"


def check_end(folder: Path) -> None:
    """Raises ValueError if the log of a finished run does not reach the training's end."""
    planned = load_events(folder, "start", ("steps",))
    steps = [event["step"] for event in load_events(folder, "step", ("step",))]
    last = steps[-1] if steps else 0
    if planned and last < planned[0]["steps"] and read_result(folder)["status"] != "diverged":
        path, told = folder / "log.jsonl", f"step {last:,} of {planned[0]['steps']:,}"
        raise ValueError(f"{path} is damaged: it ends with {told}")


def count_classes(folder: Path) -> int:
    """The number of classes that a run was trained on; ValueError if its log does not tell."""
    told = [event["classes"] for event in load_events(folder, "start", ("classes",))]
    if not told or told[0] < 2:
        raise ValueError(f"{folder / 'log.jsonl'} is damaged: its start tells no classes")
    return told[0]
