"""What artefacts ask for: which runs, which of those are there, how long the others will take."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import median

from delving import config as configs
from delving import record
from delving.cost import estimate_seconds, measure_work
from delving.data import expand_home
from delving.detect.naming import detection_folder, find_other_detection
from delving.detect.voc import check_voc
from delving.groups import choices
from delving.naming import name_run
from delving.request import load_request
from delving.same import find_other, saved_value
from delving.schema import DETECT_NEUTRAL, NEUTRAL, Arm, Config, Reproduce, Request
from delving.words import shown

SMALL = "table2"
# What an artefact sets itself: its nets, and how finely their logs tell when they began to learn.
OWN = ("model", "act", "init", "seed", "model.depth", "model.layers", "model.family", "act.slope",
       "train.log_every")  # fmt: skip


@dataclass
class Plan:
    """A reproduction before it starts.

    Attributes:
        requests: artefacts in the paper's order.
        arms: {artefact: {arm: names of its runs, seeds rising}}.
        runs: {name: configuration} of every run asked for.
        small: names of Table 2's runs by arm, several seeds each: their spread is the noise.
        refused: {name: why} of runs whose folder holds another.
        rarer: {name: how much} of finished runs that were looked at less often than is asked for.
        seeds: `reproduce.seeds...` words, which `budget` includes.
        detect: settings of `delving detect`, for artefacts whose runs learn to detect objects.
        left_out: {artefact: why} of artefacts that lack data, or trainings.
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
    rarer: dict[str, str] = field(default_factory=dict)
    seeds: list[str] = field(default_factory=list)
    detect: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def telling(self) -> list[str]:
        """The overrides that change a run."""
        return [word for word in self.overrides if word.partition("=")[0] not in NEUTRAL]

    @property
    def told(self) -> list[str]:
        """The overrides that change a result."""
        detect = [w for w in self.detect if w.partition("=")[0] not in DETECT_NEUTRAL]
        return self.telling + self.seeds + detect

    @property
    def planned(self) -> dict[str, float]:
        """Seconds by purpose that the scale plans: for all artefacts together, as it sets them."""
        whole = len(self.requests) == len(choices("paper")) and not self.told
        return dict(self.budget.seconds) if whole else {}

    def sets(self, key: str) -> bool:
        """Whether an override gives this key."""
        return any(word.partition("=")[0] == key for word in self.overrides)

    def runs_of(self, artefact: str) -> list[str]:
        """The names of an artefact's runs, arm by arm."""
        return [run for names in self.arms[artefact].values() for run in names]

    def folder(self, run: str) -> Path:
        return self.root / "runs" / run

    def finished(self, run: str) -> bool:
        return run not in self.refused and (self.folder(run) / "result.json").exists()

    def detection(self, run: str) -> Path:
        """The folder of the run's detection."""
        own, usual = (configs.compose_detect(self.scale, words) for words in (self.detect, []))
        return detection_folder(self.folder(run), own, usual)

    def detected(self, run: str) -> bool:
        return (
            f"{run} detection" not in self.refused
            and (self.detection(run) / "result.json").exists()
        )

    def detectors(self) -> list[str]:
        """The runs that are to learn to detect objects, each once."""
        asked = [name for name, request in self.requests.items() if request.detect]
        return list(dict.fromkeys(run for name in asked for run in self.runs_of(name)))

    def missing(self) -> list[str]:
        """The runs to be trained."""
        return [run for run in self.runs if run not in self.refused and not self.finished(run)]

    def to_train(self) -> list[Config]:
        """The configurations of the runs that are missing."""
        return [self.runs[run] for run in self.missing()]

    def estimate(self, run: str) -> float:
        """Seconds of training on one worker, corrected by finished runs of its model, or of any."""
        told = self.corrections
        return self.estimates[run] * told.get(self.runs[run].model.name, told["any"])

    @cached_property
    def estimates(self) -> dict[str, float]:
        """Seconds of each run as estimated beforehand, counting the work of each net once."""
        alike = {run: repr((config.model, config.data)) for run, config in self.runs.items()}
        one_each = {key: run for run, key in alike.items()}
        work = {key: measure_work(self.runs[run]) for key, run in one_each.items()}
        return {run: estimate_seconds(self.runs[run], work[key]) for run, key in alike.items()}

    @cached_property
    def corrections(self) -> dict[str, float]:
        """Measured over estimated seconds, the median over the finished runs of each model; `any`:
        over all finished runs, 1 if there are none."""
        ratios: dict[str, list[float]] = {"any": []}
        for run in filter(self.finished, self.runs):
            try:
                result = record.read_result(self.folder(run))
            except ValueError:  # a damaged one is reported when it is needed
                continue
            if result["status"] == "diverged":  # it may have taken a few steps of all
                continue
            ratio = result["seconds"] / self.estimates[run]
            ratios["any"].append(ratio)
            ratios.setdefault(self.runs[run].model.name, []).append(ratio)
        return {model: median(found or [1.0]) for model, found in ratios.items()}


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
        need_data: whether artefacts that lack their data are left out.

    Raises:
        ValueError: an unknown artefact or key, a key that artefacts set themselves, a named
            artefact that is left out, or no VOC 2007 where it is said to lie.
    """
    words, seeds, detect = part_words(words)
    base = configs.compose(words)
    configs.compose_detect(base.scale, detect)
    if owned := [word for word in words if word.split("=")[0] in OWN]:
        raise ValueError(f"{shown(owned[0])}: an artefact sets {', '.join(OWN)} itself; `delving "
                         "train ... --plan` tells the time of one run of yours")  # fmt: skip
    everything = choices("paper")
    named = {name: load_request(name) for name in artefacts if name != "all"}
    wanted = everything if not artefacts or "all" in artefacts else list(named)
    overrides = [word for word in words if not word.startswith("scale=")]
    root = source or Path(base.output_root) / base.scale
    budget = configs.plan_of(base.scale, seeds)
    plan = Plan(base.scale, overrides, root, budget, seeds=seeds, detect=detect)
    asked = {name: load_request(name) for name in wanted}
    needed = {need: load_request(need) for one in asked.values() for need in one.needs}
    plan.requests = {name: (asked | needed)[name] for name in everything if name in asked | needed}
    for name, request in plan.requests.items():
        plan.arms[name] = {arm: _plan_arm(plan, one) for arm, one in request.runs.items()}
    _look_at_looks(plan)
    _look_at_detections(plan, named, need_data, from_records=source is not None)
    _look_at_seeds(plan, named)
    # Table 2's runs are looked at if they are there, but not asked for.
    aside = dataclasses.replace(plan, runs={}, refused={})
    small = [_plan_arm(aside, one) for one in load_request(SMALL).runs.values()]
    plan.small = [[run for run in arm if run not in aside.refused] for arm in small]
    return plan


def part_words(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The words for runs, for `reproduce` and for `detect`."""
    own = {prefix: [word for word in words if word.startswith(prefix)]
           for prefix in ("reproduce.", "detect.")}  # fmt: skip
    return [word for word in words if word not in chain(*own.values())], *own.values()


def _look_at_looks(plan: Plan) -> None:
    """Notes finished runs that were looked at less often: the same runs, drawn in less detail."""
    for name in filter(plan.finished, plan.runs):
        config, told = plan.runs[name], []
        for key, asked in (("eval.every", config.eval.every),
                           ("train.log_every", config.train.log_every)):  # fmt: skip
            there = saved_value(plan.folder(name), key)
            if isinstance(there, int | float) and there > asked:
                told.append(f"{key} {asked:g} asked for, {there:g} there")
        if told:
            plan.rarer[name] = "; ".join(told)


def _look_at_detections(
    plan: Plan, named: Collection[str], need_data: bool, *, from_records: bool
) -> None:
    """Refuses detections whose folder holds another; leaves out artefacts that lack images."""
    settings = configs.compose_detect(plan.scale, plan.detect)
    for run in plan.detectors():
        if why := find_other_detection(plan.detection(run), settings):
            plan.refused[f"{run} detection"] = why
    there = [plan.detected(run) for run in plan.detectors()]
    why = "detect.root=... tells where VOC 2007 lies"
    lacking = need_data and settings.data == "voc2007" and settings.root is None and not all(there)
    if from_records:
        why, lacking = "these records hold no detections", not any(there)
    elif need_data and settings.data == "voc2007" and settings.root and not all(there):
        check_voc(expand_home(settings.root, "detect.root"))
    if lacking:
        for name in [name for name, request in plan.requests.items() if request.detect]:
            _leave_out(plan, name, why, named)


def _look_at_seeds(plan: Plan, named: Collection[str]) -> None:
    """Leaves out artefacts none of whose nets are to be trained, and those that need them."""
    for name, arms in list(plan.arms.items()):
        if arms and not any(arms.values()):
            roles = sorted({arm.seeds for arm in plan.requests[name].runs.values()})
            none = ", ".join(f"reproduce.seeds.{role}" for role in roles)
            _leave_out(plan, name, f"{none}: its nets get no training", named)
    for name, request in list(plan.requests.items()):
        if lacking := [need for need in request.needs if need in plan.left_out]:
            why = f"it shows what {lacking[0]} measures; {plan.left_out[lacking[0]]}"
            _leave_out(plan, name, why, named)


def _leave_out(plan: Plan, name: str, why: str, named: Collection[str]) -> None:
    """Takes an artefact out of the plan; ValueError if it was asked for by name."""
    if name in named:
        raise ValueError(f"{name}: {why}")
    plan.left_out[name] = why
    del plan.requests[name], plan.arms[name]


def _plan_arm(plan: Plan, arm: Arm) -> list[str]:
    words = [f"scale={plan.scale}", *arm.words, *plan.overrides]
    config = configs.compose(words)
    if arm.epochs and not plan.sets("train.epochs") and config.train.epochs < arm.epochs:
        config.train.epochs = float(arm.epochs)
    config = with_switch(plan, config)
    return [add_run(plan, dataclasses.replace(config, seed=seed))
            for seed in range(getattr(plan.budget.seeds, arm.seeds))]  # fmt: skip


def with_switch(plan: Plan, config: Config) -> Config:
    """The configuration with the learning-rate switches of the scale's compared nets, unless others
    were asked for."""
    if not plan.budget.switch or config.train.switch or plan.sets("train.switch"):
        return config
    train = dataclasses.replace(config.train, switch=list(plan.budget.switch))
    return dataclasses.replace(config, train=train)


def images_of(config: Config) -> str:
    """A key: equal for runs that see the same views of the same images, and so share decoding."""
    train = config.train
    return repr((config.data, train.batch, train.s, train.flip, config.seed))


def in_order(
    runs: Mapping[str, Config], seconds: Callable[[str], float], *, gpu: bool
) -> list[str]:
    """Runs in the order to begin them: longest first, so that no long one is left alone at the end;
    on a GPU, those that see the same images in a row."""
    lots = {name: images_of(config) if gpu else "" for name, config in runs.items()}
    longest: dict[str, float] = {}
    for name, lot in lots.items():
        longest[lot] = max(seconds(name), longest.get(lot, 0.0))
    return sorted(runs, key=lambda name: (-longest[lots[name]], lots[name], -seconds(name)))


def add_run(plan: Plan, config: Config) -> str:
    """Puts a run into the plan, once; of two requests the one that validates more often counts."""
    name = name_run(config)
    if name in plan.runs:
        looks = min(config.eval, plan.runs[name].eval, key=lambda e: e.every)
        plan.runs[name] = dataclasses.replace(plan.runs[name], eval=looks)
        return name
    plan.runs[name] = config
    if why := find_other(plan.runs[name], plan.folder(name)):
        plan.refused[name] = why
    return name
