"""Trainings as tasks for worker processes: what `reproduce` and sweeps have in common."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from delving import config as configs
from delving.cost import largest_gigabytes
from delving.data import shapes_folder
from delving.data.loader import count_cores
from delving.device import free_memory, pick_device
from delving.display import Overview
from delving.estimate import estimate_detection
from delving.plan import Plan
from delving.schema import NEUTRAL, Config
from delving.workers import Outcome, Task

OVERHEAD = 6.0  # seconds of a run besides its training, as measured on two cores
DETECTING = 30.0  # seconds that a detection takes at least
DRAWING, DRAWING_SCENES = 3e-3, 22e-3  # seconds for a generated image; one with proposals
GIGABYTES = 1.4  # of memory that a run or a measurement needs at least


def count_jobs(device: str, wanted: int | None, runs: Iterable[Config] = ()) -> int:
    """How many runs to train side by side, unless `wanted` says: on CPUs one per core, as far as
    free memory suffices for the largest; on a GPU one."""
    kind = pick_device(device).type
    if wanted:
        return wanted
    if kind != "cpu":
        return 1
    need = max(GIGABYTES, largest_gigabytes(runs))
    return max(1, min(count_cores(), int(free_memory() / 1e9 / need)))


def count_threads(device: str, jobs: int) -> int:
    """A worker's threads. On a CPU one, so that its sums are the same whatever runs beside it; with
    a GPU its share of all cores but two, for what the CPU computes all the same (the signal of
    VGG's model B, detections' proposals): trainings on the GPU need some to launch and to load."""
    return 1 if pick_device(device).type == "cpu" else max(1, (count_cores() - 2) // jobs)


def train_task(name: str, config: Config) -> Task:
    return Task(name, {"kind": "train", "name": name, "config": configs.to_yaml(config)})


def detect_task(plan: Plan, run: str) -> Task:
    """A detection, to be done after the run that it starts from."""
    neutral = [word for word in plan.overrides if word.partition("=")[0] in NEUTRAL]
    message = {"kind": "detect", "run": str(plan.folder(run)), "words": neutral,
               "scale": plan.scale, "detect": plan.detect}  # fmt: skip
    return Task(f"{run} detection", message, frozenset({run}))


def estimate_run(plan: Plan, run: str) -> float:
    """Seconds of a run on one worker, with what it takes besides its training."""
    return OVERHEAD + plan.estimate(run)


def estimate_task(plan: Plan, task: Task) -> float:
    """Seconds of a task on one worker."""
    if task.message["kind"] == "make":
        return task.seconds
    if task.message["kind"] == "detect":
        return max(DETECTING, estimate_detection(plan, Path(task.message["run"]).name))
    if task.message["kind"] == "measure":
        return plan.requests[task.name].seconds
    return estimate_run(plan, task.name)


def with_images(tasks: Sequence[Task], runs: Mapping[str, Config]) -> list[Task]:
    """The tasks, and before them one for each set of generated images that is still to be made. The
    tasks that need it wait for it: otherwise each would begin to make it.

    Args:
        runs: configurations whose images are needed, by task.
    """
    makers: dict[str, Task] = {}
    waiting = []
    for task in tasks:
        if maker := _maker_for(task, runs.get(task.name)):
            makers.setdefault(maker.name, maker)
            task = replace(task, after=task.after | {maker.name})
        waiting.append(task)
    return [*makers.values(), *waiting]


def _maker_for(task: Task, config: Config | None) -> Task | None:
    """The task that makes the generated images for another; None if it needs none, or has them."""
    if config and config.data.name == "shapes" and config.data.root is None:
        counts = config.data.classes, config.data.train_images, config.data.val_images
        folder, made = shapes_folder(config.output_root, *counts)
        message = task.message
        if "config" not in message:  # a measurement's
            message = message | {"config": configs.to_yaml(config)}
        return _maker(folder, DRAWING * sum(made[1:]), message)
    if task.message["kind"] == "detect":
        from delving.detect.job import scenes_folder

        root = next((word.partition("=")[2] for word in task.message["words"]
                     if word.startswith("output_root=")), Config.output_root)  # fmt: skip
        settings = configs.compose_detect(task.message["scale"], task.message["detect"])
        # Not for VOC: selective search takes hours, of which a detection can tell.
        if settings.data == "shapes_voc" and settings.root is None:
            folder, made = scenes_folder(settings, root)
            return _maker(folder, DRAWING_SCENES * sum(made[1:]), task.message | {"root": root})
    return None


def _maker(folder: Path, seconds: float, message: dict) -> Task | None:
    if folder.exists():
        return None
    return Task(folder.name, message | {"kind": "make"}, seconds=seconds, serves=True)


def watching(say: Overview, note: Callable[[Outcome], None]) -> Callable[[str, dict], None]:
    """A watcher for work_through that notes outcomes and shows everything."""

    def watch(name: str, event: dict) -> None:
        if event["event"] == "outcome":
            note(event["outcome"])
        elif event["event"] == "again":
            say.say(f"{name}: {event['error']}; it is tried once more")
        elif event["event"] == "held":
            say.say(f"{name}: {event['error']}; its result is waited for")
        say(name, event)

    return watch
