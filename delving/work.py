"""A worker process of `reproduce` and `train -m`: tasks come in and events go out as JSON lines.

On a CPU each trains with one thread: small nets train no faster with two, and results depend on
the number of threads.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from delving import config as configs
from delving.asked import ask
from delving.data import load_splits
from delving.device import release_memory
from delving.exits import describe
from delving.lock import HeldError
from delving.measured import measure_missing
from delving.plan import make_plan
from delving.signals import Interrupted


def main() -> None:
    """Works until its input ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no event
    shelf: dict = {}
    for line in sys.stdin:
        task = json.loads(line)
        _tell(out, _attempt(task, out, shelf))
        release_memory()


def _tell(out: TextIO, event: dict) -> None:
    out.write(json.dumps(event, default=float) + "\n")


def _attempt(task: dict, out: TextIO, shelf: dict) -> dict:
    """Does a task, returns its last event. Errors are events: one task must not end the others."""
    started = time.perf_counter()
    try:
        _work(task, out, shelf)
        return {"event": "done", "wall": time.perf_counter() - started}
    except (Exception, Interrupted) as error:
        kind = "held" if isinstance(error, HeldError) else "failed"
        if isinstance(error, Interrupted):
            kind = "interrupted"
        told = str(error) if kind == "interrupted" else describe(error)
        text, wall = " ".join(told.split()), time.perf_counter() - started
        return {"event": kind, "error": text, "wall": wall}


def _work(task: dict, out: TextIO, shelf: dict) -> None:
    if task["kind"] == "train":
        from delving.run import train_run

        config = configs.from_yaml(task["config"], task["name"])
        train_run(config, lambda event: _tell(out, event), shelf)
        return
    if task["kind"] == "make":
        _make_images(task)
        return
    if task["kind"] == "detect":
        from delving.detect.run import detect_run

        run = Path(task["run"])
        config = configs.amend(run / "config.yaml", task["words"])
        settings = configs.compose_detect(config.scale, task["detect"])
        detect_run(run, config, settings, lambda event: _tell(out, event))
        return
    plan = make_plan([task["name"]], task["words"])
    measure_missing(plan, ask(plan, task["name"]))


def _make_images(task: dict) -> None:
    """Makes generated images for the tasks that need them; if it fails, those will say why."""
    with suppress(ValueError, OSError):
        if "config" in task:
            config = configs.from_yaml(task["config"], task["name"])
            load_splits(config.data, config.output_root)
            return
        from delving.detect.job import load_splits as load_scenes
        from delving.detect.job import propose

        settings, root = configs.compose_detect(task["scale"], task["detect"]), task["root"]
        propose(load_scenes(settings, root), settings, root, lambda event: None)


if __name__ == "__main__":
    main()
