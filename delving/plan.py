"""What artefacts ask for: which runs by which configuration, which of them are there, how long the
others will take."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

import yaml

from delving import config as configs
from delving import record
from delving.artefact import Asked, Run
from delving.cost import estimate_seconds, measure_work
from delving.detect.naming import detection_folder, find_other
from delving.foreign import check_yaml, read_text
from delving.groups import choices
from delving.naming import name_run
from delving.request import load_request
from delving.schema import (
    DETECT_NEUTRAL,
    NEUTRAL,
    Arm,
    Config,
    Reproduce,
    Request,
    differences,
    leaves,
)

SMALL = "table2"
OWN = ("model", "act", "init", "seed", "scale")  # words that belong to the artefact or the command


@dataclass
class Plan:
    """A reproduction before it starts.

    Attributes:
        requests: artefacts in the paper's order.
        arms: {artefact: {arm: names of its runs, seeds rising}}.
        runs: {name: configuration} of every run asked for.
        small: names of the small nets' runs by arm, Table 2's: what seeds alone change.
        refused: {name: why} of those whose folder holds another run.
        detect: settings of `delving detect`, for artefacts whose runs learn to detect objects.
        left_out: {artefact: why} of those that lack data.
    """

    scale: str
    overrides: list[str]
    root: Path
    budget: Reproduce
    requests: dict[str, Request] = field(default_factory=dict)
    arms: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    runs: dict[str, Config] = field(default_factory=dict)
    small: list[list[str]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    detect: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def telling(self) -> list[str]:
        """The overrides that change a run."""
        return [word for word in self.overrides if word.partition("=")[0] not in NEUTRAL]

    @property
    def told(self) -> list[str]:
        """The overrides that change a result."""
        return self.telling + [w for w in self.detect if w.partition("=")[0] not in DETECT_NEUTRAL]

    def folder(self, run: str) -> Path:
        return self.root / "runs" / run

    def finished(self, run: str) -> bool:
        return run not in self.refused and (self.folder(run) / "result.json").exists()

    def detection(self, run: str) -> Path:
        """The folder of the run's detection."""
        usual = configs.compose_detect(self.scale, [])
        return detection_folder(self.folder(run), configs.compose_detect(self.scale, self.detect),
                                usual)  # fmt: skip

    def detected(self, run: str) -> bool:
        return (
            f"{run} detection" not in self.refused
            and (self.detection(run) / "result.json").exists()
        )

    def detectors(self) -> list[str]:
        """The runs that are to learn to detect objects, each once."""
        arms = [self.arms[name] for name, request in self.requests.items() if request.detect]
        return list(dict.fromkeys(run for one in arms for names in one.values() for run in names))

    def missing(self) -> list[str]:
        """The runs to be trained, longest first, so that none is left for the end alone."""
        missing = [run for run in self.runs if run not in self.refused and not self.finished(run)]
        return sorted(missing, key=self.estimate, reverse=True)

    def estimate(self, run: str) -> float:
        """Seconds of training on one worker, as runs of this scale that are finished suggest."""
        return self.estimates[run] * self.correction

    @cached_property
    def estimates(self) -> dict[str, float]:
        """Seconds of each run as reckoned beforehand; nets that differ in the seed alone, once."""
        alike = {run: repr((config.model, config.data)) for run, config in self.runs.items()}
        one_each = {key: run for run, key in alike.items()}
        work = {key: measure_work(self.runs[run]) for key, run in one_each.items()}
        return {run: estimate_seconds(self.runs[run], work[key]) for run, key in alike.items()}

    @cached_property
    def correction(self) -> float:
        """Measured over estimated seconds of the finished runs, the median; 1 without any."""
        known = [run for run in self.runs if self.finished(run)]
        ratios = [
            record.read_result(self.folder(run))["seconds"] / self.estimates[run] for run in known
        ]
        return median(ratios) if ratios else 1.0


def make_plan(
    artefacts: Sequence[str],
    words: Sequence[str],
    source: Path | None = None,
    *,
    need_data: bool = True,
) -> Plan:
    """The plan of some artefacts (`all`, or none named, for all) under overrides.

    Args:
        source: where runs are read, in place of <output_root>/<scale>.
        need_data: whether artefacts are left out that lack theirs.

    Raises:
        ValueError: an unknown artefact or key, or one that artefacts set themselves.
    """
    detect = [word for word in words if word.startswith("detect.")]
    words = [word for word in words if not word.startswith("detect.")]
    base = configs.compose(words)
    configs.compose_detect(base.scale, detect)
    owned = [word for word in words if word.split("=")[0] in OWN[:-1]]
    if owned:
        raise ValueError(f"{owned[0]}: an artefact sets {', '.join(OWN[:-1])} itself")
    everything = choices("paper")
    named = {name: load_request(name) for name in artefacts if name != "all"}
    wanted = everything if not artefacts or "all" in artefacts else list(named)
    overrides = [word for word in words if not word.startswith("scale=")]
    root = source or Path(base.output_root) / base.scale
    plan = Plan(base.scale, overrides, root, configs.plan_of(base.scale), detect=detect)
    asked = {name: load_request(name) for name in wanted}
    needed = {need: load_request(need) for one in asked.values() for need in one.needs}
    plan.requests = {name: (asked | needed)[name] for name in everything if name in asked | needed}
    for name, request in plan.requests.items():
        plan.arms[name] = {arm: _plan_arm(plan, one) for arm, one in request.runs.items()}
    _look_at_detections(plan, named, need_data and source is None)
    aside = dataclasses.replace(
        plan, runs={}, refused={}
    )  # they are looked at where they are there
    plan.small = [_plan_arm(aside, one) for one in load_request(SMALL).runs.values()]
    return plan


def _look_at_detections(plan: Plan, named: Collection[str], need_data: bool) -> None:
    """Refuses those whose folders hold others, and leaves out artefacts that lack their images.

    Raises:
        ValueError: for such an artefact that was asked for by name.
    """
    settings = configs.compose_detect(plan.scale, plan.detect)
    for run in plan.detectors():
        if why := find_other(plan.detection(run), settings):
            plan.refused[f"{run} detection"] = why
    lacking = need_data and settings.data == "voc2007" and settings.root is None
    if lacking and not all(map(plan.detected, plan.detectors())):
        for name in [name for name, request in plan.requests.items() if request.detect]:
            plan.left_out[name] = "detect.root=... tells where VOC 2007 lies"
            if name in named:
                raise ValueError(f"{name}: {plan.left_out[name]}")
            del plan.requests[name], plan.arms[name]


def _plan_arm(plan: Plan, arm: Arm) -> list[str]:
    config = configs.compose([f"scale={plan.scale}", *arm.words, *plan.overrides])
    return [add_run(plan, dataclasses.replace(config, seed=seed))
            for seed in range(plan.budget.seeds[arm.seeds])]  # fmt: skip


def add_run(plan: Plan, config: Config) -> str:
    """Puts a run into the plan, once; of two requests the one that looks more often counts."""
    name = name_run(config)
    if name in plan.runs:
        looks = min(config.eval, plan.runs[name].eval, key=lambda e: e.every)
        plan.runs[name] = dataclasses.replace(plan.runs[name], eval=looks)
        return name
    plan.runs[name] = config
    saved = plan.folder(name) / "config.yaml"
    if saved.exists() and not _plainly_same(config, saved):
        _check_same(plan, name, saved)
    return name


def _plainly_same(config: Config, saved: Path) -> bool:
    """Whether a file surely holds the same run: a quick look, before OmegaConf takes a tenth of a
    second over each."""
    try:
        text = read_text(saved)
        check_yaml(text)
        tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        ours = dataclasses.asdict(config)
        return all(
            _value_at(tree, key) == _value_at(ours, key)
            for key, _, _ in leaves(config)
            if key not in NEUTRAL
        )
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        return False


def _value_at(tree: dict, key: str) -> object:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _check_same(plan: Plan, name: str, saved: Path) -> None:
    try:
        changed = differences(plan.runs[name], configs.load(saved))
    except ValueError as error:
        plan.refused[name] = f"{error}. Move {plan.folder(name)} away"
        return
    if changed:
        keys = "; ".join(
            f"{k} {ours} asked for, {theirs} there" for k, (ours, theirs) in changed.items()
        )
        plan.refused[name] = f"{plan.folder(name)} holds another run: {keys}. Move it away"


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
    names = [name for arm in plan.arms[artefact].values() for name in arm if plan.finished(name)]
    results = {name: (plan.folder(name) / "result.json").read_bytes() for name in names}
    return {
        "settings": plan.requests[artefact].settings,
        "runs": {name: hashlib.sha256(data).hexdigest()[:16] for name, data in results.items()},
    }


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
