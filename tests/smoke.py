"""Small runs that end in a second, and all that makes up such a run, to compare two of them."""

import json

import numpy as np
from calling import silent

from delving import record
from delving.checkpoint import load_checkpoint
from delving.config import compose
from delving.run import train_run

WORDS = [
    "scale=smoke", "device=cpu", "precision=fp32", "train.log_every=2", "data.workers=0",
    "act=prelu", "eval.protocols=center,ten_view", "eval.batch=40",
    "train.checkpoint_minutes=1e-9",  # after every step
]  # fmt: skip
VOLATILE = ("seconds", "images_per_second", "wait")


def train(root, watch=silent, *words):
    return train_run(compose([*WORDS, f"output_root={root}", *words]), watch)


def without_clocks(event):
    return {k: v for k, v in event.items() if k not in VOLATILE}


def outcome(folder):
    """All that makes up a finished run: tensors, log, result, scores, slopes."""
    tensors, progress = load_checkpoint(folder)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "tensors": {f"{part}/{name}": t.numpy().tobytes()
                    for part, named in tensors.items() for name, t in named.items()},
        "progress": progress["progress"],
        "log": [without_clocks(e) for e in events if e["event"] not in ("resume", "damaged")],
        "result": without_clocks(record.read_result(folder)),
        "scores": {p: [x.tobytes() if isinstance(x, np.ndarray) else x
                       for x in record.load_scores(folder, p)] for p in ("center", "ten_view")},
        "slopes": record.read_json(folder / "slopes.json"),
        "files": sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")),
    }  # fmt: skip


def differences(folder, whole):
    """The parts of a run that differ from the uninterrupted one's."""
    ours, theirs = outcome(folder), outcome(whole)
    return [key for key in theirs if ours[key] != theirs[key]]
