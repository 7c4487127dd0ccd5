"""Trainings as tasks for worker processes: what `reproduce` and sweeps do alike."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from delving import config as configs
from delving.build import free_memory
from delving.cost import largest_gigabytes
from delving.data import load_splits
from delving.data.loader import count_cores
from delving.device import pick_device
from delving.display import Overview
from delving.estimate import estimate_detection
from delving.plan import Plan
from delving.schema import NEUTRAL, Config
from delving.workers import Outcome, Task

OVERHEAD = 6.0  # seconds of a run beside its training, as they were on two cores
DETECTING = 30.0  # of a detection at least
GIGABYTES = 1.4  # of memory, the need of a run or a measurement at least


def count_jobs(device: str, wanted: int | None, runs: Iterable[Config] = ()) -> int:
    """Of runs, how many to train side by side: on CPUs one a core, as far as free memory reaches
    for the largest; on a GPU one."""
    kind = pick_device(device).type
    if wanted:
        return wanted
    if kind != "cpu":
        return 1
    need = max(GIGABYTES, largest_gigabytes(runs))
    return max(1, min(count_cores(), int(free_memory() / 1e9 / need)))


def count_threads(device: str, jobs: int) -> int:
    """Of a worker: one of the CPU's, whose sums then are the same whatever runs beside; with a GPU
    its part of the cores, for what is measured on the CPU there, but for two: the GPU's trainings
    beside it need some to launch and to load."""
    return 1 if pick_device(device).type == "cpu" else max(1, (count_cores() - 2) // jobs)


def train_task(name: str, config: Config) -> Task:
    return Task(name, {"kind": "train", "name": name, "config": configs.to_yaml(config)})


def detect_task(plan: Plan, run: str) -> Task:
    """A detection, after its trunk."""
    neutral = [word for word in plan.overrides if word.partition("=")[0] in NEUTRAL]
    message = {"kind": "detect", "run": str(plan.folder(run)), "words": neutral,
               "scale": plan.scale, "detect": plan.detect}  # fmt: skip
    return Task(f"{run} detection", message, frozenset({run}))


def estimate_run(plan: Plan, run: str) -> float:
    """Seconds of a run on one worker, with what it takes beside its training."""
    return OVERHEAD + plan.estimate(run)


def estimate_task(plan: Plan, task: Task) -> float:
    """Seconds of a task on one worker."""
    if task.message["kind"] == "detect":
        return max(DETECTING, estimate_detection(plan, Path(task.message["run"]).name))
    if task.message["kind"] == "measure":
        return plan.requests[task.name].seconds
    return estimate_run(plan, task.name)


def make_data_once(tasks: Sequence[Task]) -> None:
    """Generated images, and their proposals, are made before workers want them at the same time."""
    seen = set()
    for task in tasks:
        if task.message["kind"] == "detect" and "detect" not in seen:
            seen.add("detect")
            with contextlib.suppress(ValueError, OSError):  # the detections will name it
                _prepare_scenes(task.message)
        if task.message["kind"] == "train":
            config = configs.from_yaml(task.message["config"], task.name)
            key = repr((config.data, config.output_root))
            if key not in seen and config.data.name == "shapes":
                seen.add(key)
                with contextlib.suppress(ValueError, OSError):  # the runs will name it
                    load_splits(config.data, config.output_root)


def _prepare_scenes(message: dict) -> None:
    from delving.detect.job import load_splits as load_scenes
    from delving.detect.job import propose

    settings = configs.compose_detect(message["scale"], message["detect"])
    if settings.data != "shapes_voc":  # selective search takes hours, of which a task can tell
        return
    root = next((word.partition("=")[2] for word in message["words"]
                 if word.startswith("output_root=")), Config.output_root)  # fmt: skip
    propose(load_scenes(settings, root), settings, root, lambda event: None)


def watching(say: Overview, note: Callable[[Outcome], None]) -> Callable[[str, dict], None]:
    """A watcher for work_through that notes outcomes and shows everything."""

    def watch(name: str, event: dict) -> None:
        if event["event"] == "outcome":
            note(event["outcome"])
        elif event["event"] == "again":
            say.say(f"{name}: {event['error']}; it goes on once more")
        elif event["event"] == "held":
            say.say(f"{name}: {event['error']}; its result is waited for")
        say(name, event)

    return watch
