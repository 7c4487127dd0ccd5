"""What artefacts measure of trained runs: measured.json, with a part for each team of runs.

A team is the runs that are measured together: a single one, or the six nets of an ensemble. What is
measured of untrained nets has a single team of no runs. So more seeds take only their own
measurements, and those of runs that came from another machine, without weights, stay.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from delving import config as configs
from delving import record
from delving.artefact import Asked, Run, code_of
from delving.lock import holding
from delving.plan import Plan
from delving.same import images_of
from delving.schema import NEUTRAL, leaves

FILE = "measured.json"
PART = {"asked": dict, "seconds": record.NUMBER, "found": dict}
Team = tuple[Run, ...]


def names_of(team: Iterable[Run]) -> tuple[str, ...]:
    return tuple(run.name for run in team)


def fingerprint(plan: Plan, artefact: str, runs: Sequence[str]) -> dict:
    """What a measurement of these runs rests on: if this differs, it is made anew."""
    settings = plan.requests[artefact].settings
    results = {name: (plan.folder(name) / "result.json").read_bytes() for name in runs}
    where = {key: word for word in plan.overrides
             if (key := word.partition("=")[0]) in ("device", "precision")}  # fmt: skip
    return {
        "settings": settings,
        "runs": {name: hashlib.sha256(data).hexdigest()[:16] for name, data in results.items()},
        **({"nets": _digest_untrained(plan, settings)} if "models" in settings else {}),
        **({} if runs else where),
    }


def _digest_untrained(plan: Plan, settings: dict) -> str:
    """A hash of all that determines the untrained nets that are measured, and their images but for
    where those lie."""
    composed = [
        configs.compose([f"scale={plan.scale}", f"model={model}", f"act={act}", *plan.overrides])
        for model in settings["models"]
        for act in settings["acts"]
    ]
    told = [
        {key: value for key, value, _ in leaves(config)
         if key not in NEUTRAL and not key.startswith(("train.", "eval."))}
        for config in composed
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def read_parts(path: Path, where: str | None = None) -> list[dict]:
    """The parts of a measured.json; none if there is no file. ValueError for a damaged one names
    `where`, or else its path; one that is not JSON, its path."""
    where = where or str(path)
    if not path.exists():
        return []
    parts = record.expect(record.read_json(path), {"parts": list}, where)["parts"]
    for part in parts:
        asked = record.expect(part, PART, where)["asked"]
        record.expect(asked, {"runs": dict}, f"{where}: asked")
    return parts


def parts_within(path: Path, runs: Iterable[str]) -> list[dict]:
    """The parts that rest on these runs alone."""
    return [part for part in read_parts(path) if set(part["asked"]["runs"]) <= set(runs)]


def by_runs(parts: Iterable[dict]) -> dict[tuple[str, ...], dict]:
    """{names of its runs: part}; of several parts on the same runs, the last."""
    return {tuple(part["asked"]["runs"]): part for part in parts}


def add_parts(path: Path, parts: Sequence[dict]) -> None:
    """Adds parts to those in the file; a new one replaces an old one on the same runs."""
    kept = by_runs([*read_parts(path), *parts])
    record.write_text(path, json.dumps({"parts": list(kept.values())}) + "\n")


def measures(artefact: str) -> bool:
    """Whether an artefact measures anything."""
    return hasattr(code_of(artefact), "measure")


def list_teams(artefact: str, arms: dict[str, list[Run]]) -> list[Team]:
    """The teams of finished runs that an artefact measures; none if it measures nothing."""
    if not measures(artefact):
        return []
    module = code_of(artefact)
    return [tuple(team) for team in module.teams(arms)] if hasattr(module, "teams") else [()]


def load_measured(plan: Plan, artefact: str, teams: Sequence[Team]) -> dict[tuple[str, ...], dict]:
    """{names of a team's runs: what was measured of them}, for teams measured as they are now.
    ValueError: the images at data.root cannot be read."""
    parts = read_parts(plan.root / artefact / FILE)
    found = {_key(part["asked"]): part["found"] for part in parts if _on_these_images(plan, part)}
    wanted = {names: _key(fingerprint(plan, artefact, names)) for names in map(names_of, teams)}
    return {names: found[asked] for names, asked in wanted.items() if asked in found}


def _on_these_images(plan: Plan, part: dict) -> bool:
    """Whether a part's images, if they are known, are those at data.root, if one is asked for.
    Runs know their images themselves."""
    return "images" not in part or _images(plan) in (None, part["images"])


def _images(plan: Plan) -> str | None:
    """The hash of the images at data.root; None if none is asked for."""
    if not any(word.startswith("data.root=") for word in plan.overrides):
        return None
    return images_of(configs.compose([f"scale={plan.scale}", *plan.overrides]))


def _key(asked: dict) -> str:
    return json.dumps(asked, sort_keys=True)


def save_measured(
    plan: Plan, artefact: str, runs: Sequence[str], found: dict[str, Any], seconds: float
) -> None:
    asked = fingerprint(plan, artefact, runs)
    part = {"asked": asked, "seconds": round(seconds, 2), "found": found}
    if "nets" in asked and (images := _images(plan)):
        part["images"] = images
    add_parts(plan.root / artefact / FILE, [part])


def measure_missing(plan: Plan, asked: Asked) -> None:
    """Measures every team that has not been measured yet, and saves each result.

    Raises:
        HeldError: another process is measuring this artefact.
        ValueError: why some could not be measured; raised once all others have been.
    """
    artefact, faults = asked.artefact, []
    module = code_of(artefact)
    teams = list_teams(artefact, asked.arms)
    with holding(plan.root / artefact):
        there = load_measured(plan, artefact, teams)
        for team in teams:
            if names_of(team) in there:
                continue
            started = time.perf_counter()
            try:
                found = module.measure(asked, *team)
            except ValueError as error:
                faults.append(str(error))
                continue
            save_measured(plan, artefact, names_of(team), found, time.perf_counter() - started)
    if faults:
        raise ValueError("; ".join(faults))
