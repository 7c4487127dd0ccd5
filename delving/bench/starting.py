"""How long commands take to begin."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delving.bench.rounds import Row, compare, in_turns
from delving.config import compose
from delving.device import name_device, pick_device
from delving.launched import child

POLL = 0.005  # seconds between two looks


def bench_start(words: Sequence[str], rounds: int) -> list[Row]:
    """Seconds that `delving --help` takes; and seconds from the command to a training's first step,
    less those of loading torch, which no training can do without."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = in_turns(
            {
                "help": lambda: _seconds(child("delving", "--help")),
                "torch": lambda: _seconds({"args": [sys.executable, "-c", "import torch"]}),
                "step": lambda: _first_step(scratch, words),
            },
            rounds,
        )
    device = name_device(pick_device(compose(list(words)).device))
    beyond = [step - torch for step, torch in zip(found["step"], found["torch"], strict=True)]
    return [
        compare("start: delving --help", found["help"], unit="s", device="cpu"),
        compare("start: to the first step of train scale=smoke, beyond import torch", beyond,
                unit="s", device=device),
    ]  # fmt: skip


def _seconds(command: dict[str, Any]) -> float:
    start = time.perf_counter()
    subprocess.run(**command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _first_step(scratch: Path, words: Sequence[str]) -> float:
    """Seconds from the command to the first step in its log, when the training is killed."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    (scratch / "data").mkdir(exist_ok=True)
    (folder / "data").symlink_to(scratch / "data")  # the images are generated once
    command = child("delving", "train", *words, "scale=smoke", "train.log_every=1",
                    f"output_root={folder}")  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and not _has_stepped(folder):
            time.sleep(POLL)
        took = time.perf_counter() - start
    finally:
        process.kill()
        process.wait()
    if not _has_stepped(folder):
        raise RuntimeError(f"{' '.join(command['args'])} ended without a step")
    return took


def _has_stepped(folder: Path) -> bool:
    logs = folder.glob("smoke/runs/*/log.jsonl")
    return any('"event": "step"' in log.read_text(encoding="utf-8") for log in logs)
