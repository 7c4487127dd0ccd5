"""Training curves of runs, read from their logs."""

from pathlib import Path

import pandas as pd

from delving.record import read_events


def load_curves(folder: Path) -> pd.DataFrame:
    """Columns run, curve (training loss, training error, validation error), epoch, value.

    Errors are in percent, top-1; training values are means over the steps since the line before.

    Raises:
        ValueError: where the run has logged no step yet.
    """
    steps, looks = read_events(folder, "step"), read_events(folder, "val")
    if not steps or not looks:
        raise ValueError(f"{folder}: nothing logged yet to draw")
    rows = [("training loss", e["epoch"], e["loss"]) for e in steps]
    rows += [("training error", e["epoch"], e["err"]) for e in steps]
    rows += [("validation error", e["epoch"], e["top1_err"]) for e in looks]
    frame = pd.DataFrame(rows, columns=["curve", "epoch", "value"])
    frame.insert(0, "run", folder.name)
    return frame


def count_classes(folder: Path) -> int:
    return read_events(folder, "start")[0]["classes"]
