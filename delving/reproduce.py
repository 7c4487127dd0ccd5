"""`delving reproduce`: trains and measures what is missing, then draws it and writes the report."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from delving import config as configs
from delving import record
from delving.announce import tell_outcome, tell_plan
from delving.asked import ask, is_measured
from delving.data import check_there
from delving.device import pick_device
from delving.display import Overview
from delving.draw import (
    check_records,
    draw_artefact,
    draw_report,
    find_lack,
    load_times,
    scoring_seconds,
)
from delving.estimate import probe_seconds
from delving.exits import describe
from delving.groups import choices
from delving.lock import clear_up, holding_when_free
from delving.measured import measures
from delving.plan import Plan, in_order, make_plan, part_words
from delving.report import ledger_rows, tell_words
from delving.tasks import (
    count_jobs,
    count_threads,
    detect_task,
    estimate_task,
    train_task,
    watching,
    with_images,
)
from delving.words import count
from delving.workers import Outcome, Task, work_through

PURPOSES = ("start", "small", "deep", "scoring", "measuring", "detection", "report")


@dataclass
class Ledger:
    """Seconds of wall time by purpose, with `jobs` side by side; what failed; what was not begun
    for lack of time."""

    jobs: int
    late: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0.0))
    failed: dict[str, str] = field(default_factory=dict)


def list_tasks(plan: Plan, words: Sequence[str], device: str = "auto") -> list[Task]:
    """Tasks for what is missing: runs, then measurements, each after its runs (those of untrained
    nets wait for none), then detections."""
    gpu, missing = pick_device(device).type != "cpu", plan.missing()
    runs = {name: plan.runs[name] for name in missing}
    tasks = [train_task(name, runs[name]) for name in in_order(runs, plan.estimate, gpu=gpu)]
    for artefact, request in plan.requests.items():
        lacking = frozenset(plan.runs_of(artefact)) & set(missing)
        ready = not lacking and is_measured(plan, artefact)
        if measures(artefact) and not ready:
            message = {"kind": "measure", "name": artefact, "words": list(words)}
            tasks.append(Task(artefact, message, lacking, request.alone))
    detections = [detect_task(plan, run) for run in plan.detectors() if _undetected(plan, run)]
    untrained = {
        name: configs.compose([f"scale={plan.scale}", *plan.overrides])
        for name, request in plan.requests.items()
        if "models" in request.settings
    }
    return with_images(tasks + detections, plan.runs | untrained)


def _undetected(plan: Plan, run: str) -> bool:
    return not (plan.detected(run) or run in plan.refused or f"{run} detection" in plan.refused)


def work(
    plan: Plan,
    tasks: list[Task],
    *,
    jobs: int,
    say: Overview,
    until: float = math.inf,
    threads: int = 1,
    keep_times: bool = True,
) -> Ledger:
    """Does the tasks; what fails is noted, and stops no other.

    Args:
        until: a time.monotonic(); what would end later is not begun.
        threads: of each worker.
        keep_times: whether reproduce.json, which is for reproductions alone, keeps the times of
            interrupted work.

    Raises:
        Interrupted: see work_through.
    """
    ledger = Ledger(min(jobs, max(1, len(tasks))), failed=dict(plan.refused))
    if not tasks:
        return ledger
    watch = watching(say, lambda outcome: _count(plan, ledger, outcome))
    try:
        outcomes = work_through(tasks, jobs=jobs, watch=watch, until=until, threads=threads)
    except BaseException:
        if keep_times:
            save_times(plan, jobs, ledger.seconds)
        raise
    done = {outcome.task.name for outcome in outcomes}
    ledger.late = [task.name for task in tasks if task.name not in done and not task.serves]
    return ledger


def _count(plan: Plan, ledger: Ledger, outcome: Outcome) -> None:
    name, wall = outcome.task.name, outcome.wall
    if outcome.error:
        ledger.failed[name] = outcome.error
    kind = outcome.task.message["kind"]
    if kind != "train":
        purpose = {"make": "start", "measure": "measuring", "detect": "detection"}[kind]
        ledger.seconds[purpose] += wall if outcome.task.alone else wall / ledger.jobs
        return
    try:
        # All of an unfinished run counts as training, as most of it is.
        seconds = record.read_result(plan.folder(name))["seconds"] if plan.finished(name) else wall
        scored = scoring_seconds(plan.folder(name))
    except ValueError as error:  # a file that is not the run's own
        ledger.failed[name] = str(error)
        return
    trained = min(wall, seconds)  # of a resumed run, what this sitting can have taken
    # The budget's roles: small14 is quick, all other nets take the time of `deep`.
    purpose = "small" if plan.runs[name].model.name == "small14" else "deep"
    scored = min(scored, wall - trained)
    shares = {purpose: trained, "scoring": scored, "start": wall - trained - scored}
    for key, seconds in shares.items():
        ledger.seconds[key] += seconds / ledger.jobs


def save_times(plan: Plan, jobs: int, spent: dict[str, float]) -> None:
    """reproduce.json: seconds planned and used, summed over sittings that computed something."""
    before = load_times(plan) or {"planned": {}, "used": {}}
    used = {key: round(before["used"].get(key, 0.0) + spent.get(key, 0.0), 1)
            for key in dict.fromkeys([*before["used"], *spent])}  # fmt: skip
    seconds = {"planned": before["planned"] | plan.planned, "used": used}
    record.write_json(plan.root / "reproduce.json", {"jobs": jobs, "seconds": seconds})


def draw(plan: Plan, artefacts: Sequence[str], to: Path) -> dict[str, str]:
    """Draws artefacts into `to`; {artefact: error} of those that cannot be drawn."""
    failed = {}
    for name in plan.requests:
        clear_up(to / name)  # in case a process died after measuring all
    for name in artefacts:
        try:
            draw_artefact(plan, name, to / name)
        except Exception as error:  # even a bug in its code is to stop no other
            failed[name] = describe(error)
            (to / name / "verdict.json").unlink(missing_ok=True)  # an older one is no answer
    return failed


def reproduce_artefacts(
    artefacts: Sequence[str],
    words: Sequence[str],
    *,
    source: Path | None = None,
    jobs: int | None = None,
    minutes: float = math.inf,
    dry: bool = False,
    say: Overview,
) -> dict[str, str]:
    """`delving reproduce`: plans, says so, works, draws; {run or artefact: error} of what failed.

    Args:
        source: records to draw from, in place of training anything.
        minutes: tasks that would not end within them are not begun; none is left half done.
        dry: only plan.
    """
    until = time.monotonic() + 60 * minutes
    plan = make_plan(artefacts, words, source)
    if source:
        _check_source(plan)
    else:
        _check_data(plan)
    check_records(plan)
    config = configs.compose(part_words(words)[0])
    to = Path(config.output_root) / plan.scale
    every = not artefacts or "all" in artefacts
    wanted = [name for name in plan.requests if every or name in artefacts]
    ledger_rows(to, [name for name in choices("paper") if name not in wanted])  # none is damaged
    tasks = [] if source else list_tasks(plan, words, config.device)
    jobs = count_jobs(config.device, jobs, plan.to_train())
    if math.isfinite(minutes):
        probe_nets(plan, say)
    tasks = [replace(task, seconds=estimate_task(plan, task)) for task in tasks]
    tell_plan(plan, tasks, jobs, say)
    if dry:
        return dict(plan.refused)
    threads = count_threads(config.device, jobs)
    with say.showing({task.name: task.seconds for task in tasks}):
        ledger = work(plan, tasks, jobs=jobs, say=say, until=until, threads=threads)
    if ledger.late:  # an artefact whose runs were not begun has not failed
        late = [{name, *plan.requests[name].needs} & {*ledger.late} for name in wanted]
        wanted = [name for name, of_it in zip(wanted, late, strict=True)
                  if not of_it and find_lack(plan, ask(plan, name)) is None]  # fmt: skip
    lacking = {run: f"{plan.folder(run) / 'result.json'}: not there"
               for run in plan.missing() if source}  # fmt: skip
    with holding_when_free(to, say.say):  # processes that share the work end together
        if tasks:
            save_times(plan, jobs, ledger.seconds)
        started = time.perf_counter()
        failed = draw(plan, wanted, to) | lacking | ledger.failed  # what came first is the cause
        ledger.seconds["report"] = time.perf_counter() - started
        if tasks:
            save_times(plan, jobs, {"report": ledger.seconds["report"]})
        page, rows = draw_report(plan, to, failed), ledger_rows(to, wanted)
    tell_outcome(plan, ledger.seconds, ledger.late, failed, rows, say)
    say.say(str(page))
    return failed


def _check_source(plan: Plan) -> None:
    """Refuses records that nothing can be drawn from. Runs have the same names at every scale."""
    why, runs = "", plan.root / "runs"
    if not runs.is_dir():
        raise ValueError(f"--from {plan.root}: there are no records, {runs} is no folder")
    if plan.runs and len(plan.missing()) == len(plan.runs):
        why = f"none of {count(len(plan.runs), 'run')} is there, such as {next(iter(plan.runs))}"
    for path in sorted(runs.glob("*/result.json"))[:1]:
        if (there := record.read_result(path.parent)["scale"]) != plan.scale:
            why = f"records of scale={there}, not of scale={plan.scale}"
    if why:
        raise ValueError(f"{plan.root}: {why}{tell_words(plan.root)}")


def _check_data(plan: Plan) -> None:
    """Checks that the images to train on are there: one error now, not hours later by each run."""
    for name, root in dict.fromkeys((c.data.name, c.data.root) for c in plan.to_train()):
        check_there(name, root)


def probe_nets(plan: Plan, say: Overview) -> None:
    """Estimates by trying steps of each net here, unless finished runs tell how long one takes: by
    estimates for a CPU core nothing would seem to fit into a GPU's minutes."""
    if not any(plan.finished(run) for run in plan.runs):
        plan.estimates = probe_seconds(plan, say.say)


def work_runs(plan: Plan, device: str, say: Overview) -> dict[str, str]:
    """Trains the runs of a plan that are missing; {run: error} of those that failed. ValueError
    if their images are not there."""
    _check_data(plan)
    tasks = list_tasks(plan, plan.overrides, device)
    jobs = count_jobs(device, None, plan.to_train())
    tasks = [replace(task, seconds=estimate_task(plan, task)) for task in tasks]
    tell_plan(plan, tasks, jobs, say)
    threads = count_threads(device, jobs)
    with say.showing({task.name: task.seconds for task in tasks}):
        return work(plan, tasks, jobs=jobs, say=say, threads=threads, keep_times=False).failed
