"""What a plan gives its artefacts: the runs that are finished, and what was measured for them."""

from collections.abc import Sequence
from pathlib import Path

from delving.artefact import Asked, Run
from delving.measured import list_teams, load_measured
from delving.plan import Plan


def ask(plan: Plan, artefact: str) -> Asked:
    """What an artefact is given: its finished runs, and the measurements that are there."""
    request = plan.requests[artefact]
    measured = {name: found for name in (artefact, *request.needs)
                if (found := measured_of(plan, name))}  # fmt: skip
    return Asked(
        artefact,
        plan.scale,
        finished_arms(plan, artefact),
        request.settings,
        measured,
        [_finished(plan, names) for names in plan.small],
        plan.root,
        plan.overrides,
        _detections(plan, artefact) if request.detect else {},
    )


def finished_arms(plan: Plan, artefact: str) -> dict[str, list[Run]]:
    return {arm: _finished(plan, names) for arm, names in plan.arms[artefact].items()}


def measured_of(plan: Plan, artefact: str) -> dict[tuple[str, ...], dict]:
    """{names of a team's runs: what was measured of them}, see measured.py."""
    return load_measured(plan, artefact, list_teams(artefact, finished_arms(plan, artefact)))


def is_measured(plan: Plan, artefact: str) -> bool:
    """Whether the finished runs leave nothing to be measured."""
    teams = list_teams(artefact, finished_arms(plan, artefact))
    return len(load_measured(plan, artefact, teams)) == len(teams)


def _detections(plan: Plan, artefact: str) -> dict[str, list[Path]]:
    return {arm: [plan.detection(run) for run in names if plan.detected(run)]
            for arm, names in plan.arms[artefact].items()}  # fmt: skip


def _finished(plan: Plan, names: Sequence[str]) -> list[Run]:
    return [Run(plan.folder(name)) for name in names if plan.finished(name)]
