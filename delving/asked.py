"""What a plan gives its artefacts: the runs that are finished, and what was measured for them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from delving import config as configs
from delving import record
from delving.artefact import Asked, Run
from delving.plan import Plan
from delving.schema import NEUTRAL, leaves


def ask(plan: Plan, artefact: str) -> Asked:
    """What an artefact is given: its finished runs, and the measurements that are there."""
    request = plan.requests[artefact]
    measured = {name: found for name in (artefact, *request.needs)
                if (found := load_measured(plan, name)) is not None}  # fmt: skip
    return Asked(
        artefact,
        plan.scale,
        {arm: _finished(plan, names) for arm, names in plan.arms[artefact].items()},
        request.settings,
        measured,
        [_finished(plan, names) for names in plan.small],
        plan.root,
        plan.overrides,
        _detections(plan, artefact) if request.detect else {},
    )


def _detections(plan: Plan, artefact: str) -> dict[str, list[Path]]:
    return {arm: [plan.detection(run) for run in names if plan.detected(run)]
            for arm, names in plan.arms[artefact].items()}  # fmt: skip


def _finished(plan: Plan, names: Sequence[str]) -> list[Run]:
    return [Run(plan.folder(name)) for name in names if plan.finished(name)]


def fingerprint(plan: Plan, artefact: str) -> dict:
    """What a measurement rests on: it is made anew where this differs."""
    settings = plan.requests[artefact].settings
    names = [name for arm in plan.arms[artefact].values() for name in arm if plan.finished(name)]
    results = {name: (plan.folder(name) / "result.json").read_bytes() for name in names}
    where = {key: word for word in plan.overrides
             if (key := word.partition("=")[0]) in ("device", "precision")}  # fmt: skip
    return {
        "settings": settings,
        "runs": {name: hashlib.sha256(data).hexdigest()[:16] for name, data in results.items()},
        **({"nets": _digest_untrained(plan, settings)} if "models" in settings else {}),
        **({} if names else where),
    }


def _digest_untrained(plan: Plan, settings: dict) -> str:
    """Of all that makes the nets that are measured as they start, and their images."""
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


def load_measured(plan: Plan, artefact: str) -> dict | None:
    """What was measured for an artefact; None where nothing was, or for other runs."""
    path = plan.root / artefact / "measured.json"
    if not path.exists():
        return None
    saved = record.expect(record.read_json(path), {"asked": dict, "found": dict}, str(path))
    return saved["found"] if saved["asked"] == fingerprint(plan, artefact) else None


def save_measured(plan: Plan, artefact: str, found: dict, seconds: float) -> None:
    saved = {"asked": fingerprint(plan, artefact), "seconds": round(seconds, 2), "found": found}
    record.write_text(plan.root / artefact / "measured.json", json.dumps(saved) + "\n")
