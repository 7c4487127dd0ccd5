"""`delving train -m`: the product of words, planned, trained side by side, reported in a table.

What is finished is skipped, what was begun goes on, and a run that fails stops no other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from delving import config as configs
from delving import record
from delving.artefact import Run, mean_and_spread
from delving.checkpoint import NAMES
from delving.cost import measure_work
from delving.data import find_source
from delving.device import pick_device
from delving.display import Overview
from delving.naming import name_run
from delving.plan import Plan, add_run, in_order
from delving.schema import Config, check_families, differences
from delving.tasks import count_jobs, estimate_run, train_task, watching, with_images
from delving.words import count, duration
from delving.workers import Task, reckon_wall, work_through

CAP = 100  # runs, unless asked for otherwise


@dataclass
class Sweep:
    """Runs that are asked for together.

    Attributes:
        plans: their plans by outputs/<scale>, mostly one; runs in the order asked for.
        twice: words that ask for a run which earlier words ask for already.
    """

    plans: dict[Path, Plan] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)

    def members(self) -> Iterator[tuple[str, Plan, str]]:
        """(label, plan, name) of every run; the label is its name, or its folder if the sweep goes
        over several scales, whose runs share names."""
        for plan in self.plans.values():
            for name in plan.runs:
                yield name if len(self.plans) == 1 else str(plan.folder(name)), plan, name

    def missing(self) -> Iterator[tuple[str, Plan, str]]:
        for label, plan, name in self.members():
            if name not in plan.refused and not plan.finished(name):
                yield label, plan, name

    def refused(self) -> dict[str, str]:
        return {label: plan.refused[name] for label, plan, name in self.members()
                if name in plan.refused}  # fmt: skip


def plan_sweep(words: Sequence[str], *, cap: int = CAP, several: bool = True) -> Sweep:
    """The runs that words ask for, without starting anything.

    Args:
        cap: the most runs that are accepted.
        several: whether words may stand for several runs; otherwise they are one run's.

    Raises:
        ValueError: a combination that cannot be, naming its words, or too many of them.
    """
    sweep, asked, built = Sweep(), {}, []
    for one in _expand(words, cap) if several else [list(words)]:
        try:
            config = configs.compose(one)
            net = (config.model, config.data, config.act, config.init)
            if net not in built:
                measure_work(config)  # raises for a net that cannot be
                built.append(net)
            _add(sweep, asked, config, " ".join(one))
        except ValueError as error:
            raise ValueError(f"{' '.join(one)}: {error}" if several else str(error)) from error
    runs = [config for plan in sweep.plans.values() for config in plan.runs.values()]
    check_families(words, runs)
    return sweep


def _expand(words: Sequence[str], cap: int) -> list[list[str]]:
    try:
        return configs.expand(list(words), limit=cap)
    except ValueError as error:
        hint = "; --cap N takes more" if str(error).endswith(f"at most {cap:,}") else ""
        raise ValueError(f"{error}{hint}") from error


def _add(sweep: Sweep, asked: dict[tuple, str], config: Config, words: str) -> None:
    """Puts a run into its plan, once; ValueError if another one has its name."""
    root = Path(config.output_root) / config.scale
    plan = sweep.plans.get(root) or Plan(config.scale, [], root, configs.plan_of(config.scale))
    sweep.plans[root] = plan
    name = name_run(config)
    if name in plan.runs:
        first = plan.runs[name]
        if differences(config, first) or config.data.root != first.data.root:
            raise ValueError(f"its run would be {name}, as that of {asked[root, name]}")
        sweep.twice.append(words)
    asked.setdefault((root, name), words)
    add_run(plan, config)


def state_of(plan: Plan, name: str) -> str:
    """How a run stands: `refused`, `finished`, `goes on` or `new`."""
    if name in plan.refused:
        return "refused"
    if plan.finished(name):
        return "finished"
    begun = any((plan.folder(name) / checkpoint).is_dir() for checkpoint in NAMES)
    return "goes on" if begun else "new"


def tell_sweep(sweep: Sweep, say: Overview, note: Callable[[str, Plan, str], str]) -> None:
    """Tells what there is and what will be done; `note` says more of a run that is missing."""
    members = list(sweep.members())
    states = {label: state_of(plan, name) for label, plan, name in members}
    counts = {state: sum(one == state for one in states.values())
              for state in ("finished", "goes on", "new", "refused")}  # fmt: skip
    say.say(f"{count(len(members), 'run')}: {counts['finished']} finished, "
            f"{counts['goes on']} to go on, {counts['new']} new, "
            f"{counts['refused']} refused.")  # fmt: skip
    for words in sweep.twice:
        say.say(f"  dropped, asked for already: {words}")
    wide = max(len(label) for label in states)
    for label, plan, name in members:
        more = note(label, plan, name) if states[label] in ("goes on", "new") else ""
        say.say(f"  {label:{wide}}  {states[label]:8}  {more}".rstrip())
    for why in dict.fromkeys(sweep.refused().values()):
        say.say(f"  refused: {why}")


def train_here(
    sweep: Sweep, *, jobs: int | None = None, dry: bool = False, say: Overview
) -> dict[str, str]:
    """Trains what is missing in worker processes on this machine; {run: error} of what failed, or
    would fail.

    Args:
        jobs: runs side by side.
        dry: only plan.

    Raises:
        Interrupted: see work_through.
    """
    for _, plan, name in list(sweep.missing()):
        try:
            find_source(plan.runs[name].data.name, plan.runs[name].data.root)
        except ValueError as error:
            plan.refused[name] = str(error)
    devices = dict.fromkeys(plan.runs[name].device for _, plan, name in sweep.members())
    missing = [plan.runs[name] for _, plan, name in sweep.missing()]
    jobs = min(count_jobs(device, jobs, missing) for device in devices)
    weights = {label: estimate_run(plan, name) for label, plan, name in sweep.missing()}
    tell_sweep(sweep, say, lambda label, plan, name: f"about {duration(weights[label])}")
    jobs = max(1, min(jobs, len(weights)))
    if weights:
        seconds = reckon_wall([Task(name, {}, seconds=s) for name, s in weights.items()], jobs)
        say.say(f"About {duration(seconds)}, {jobs} side by side.")
    if dry:
        return sweep.refused()
    failed = sweep.refused() | (_work(sweep, weights, jobs, say) if weights else {})
    tell_results(sweep, failed, say)
    return failed


def _work(sweep: Sweep, weights: dict[str, float], jobs: int, say: Overview) -> dict[str, str]:
    runs = {label: plan.runs[name] for label, plan, name in sweep.missing()}
    gpu = any(pick_device(config.device).type == "cuda" for config in runs.values())
    order = in_order(runs, weights.__getitem__, gpu=gpu)
    tasks = with_images([train_task(label, runs[label]) for label in order], runs)
    with say.showing({task.name: weights.get(task.name, task.seconds) for task in tasks}):
        outcomes = work_through(tasks, jobs=jobs, watch=watching(say, lambda outcome: None))
    return {outcome.task.name: outcome.error for outcome in outcomes if outcome.error}


def tell_results(sweep: Sweep, failed: dict[str, str], say: Overview) -> None:
    """Tells a line for each run with its status and errors, one for each lot of seeds, what failed.

    A run that cannot be read counts as failed, and is added to `failed`.
    """
    runs: dict[str, Run] = {}
    for label, plan, name in sweep.members():
        if plan.finished(name) and label not in failed:
            try:
                record.read_result(plan.folder(name))
                runs[label] = Run(plan.folder(name))
            except ValueError as error:
                failed[label] = str(error)
    protocols = list(dict.fromkeys(p for run in runs.values() for p in run.protocols))
    rows = [["run", "status", *(f"{p} top-{k} %" for p in protocols for k in (1, 5))]]
    for label, plan, name in sweep.members():
        state = "refused" if name in plan.refused else "FAILED"
        status = runs[label].result["status"] if label in runs else state
        rows.append([label, status, *_errors([runs[label]] if label in runs else [], protocols)])
    for label, lot in _lots(sweep, runs).items():
        status = ", ".join(dict.fromkeys(run.result["status"] for run in lot))
        rows.append([f"{label}, {len(lot)} seeds", status, *_errors(lot, protocols)])
    for line in align(rows):
        say.say(line)
    for label, error in failed.items():
        say.say(f"FAILED {label}: {error}")


def _errors(runs: Sequence[Run], protocols: Sequence[str]) -> list[str]:
    """Errors in percent; for several runs mean ± standard deviation (count)."""
    cells = [mean_and_spread(run.error(p, k) for run in runs) for p in protocols for k in (1, 5)]
    return [cell.removesuffix(" (1)") for cell in cells]


def _lots(sweep: Sweep, runs: dict[str, Run]) -> dict[str, list[Run]]:
    """Lots of several finished runs that differ in their seed alone."""
    lots: dict[str, list[Run]] = {}
    for label, plan, name in sweep.members():
        if label in runs:
            lots.setdefault(label.removesuffix(f"-s{plan.runs[name].seed}"), []).append(runs[label])
    return {label: lot for label, lot in lots.items() if len(lot) > 1}


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column of one width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows]  # fmt: skip
