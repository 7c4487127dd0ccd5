"""What an artefact of the paper is given (trained runs and measurements) and what it returns.

Each file of delving/paper has `show(asked) -> Shown` and, if it needs more than the records of
runs, `measure(asked, *runs) -> dict`, with `teams(arms)` to tell which runs are measured together.
Its title and its claims, with their rules, stand there too.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean, stdev
from types import ModuleType

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from delving import record
from delving.curves import count_classes, load_events
from delving.exits import describe
from delving.judge import Finding, compare_images, pooled_deviation, unless_stalled
from delving.schema import NEUTRAL
from delving.train import STALLED, TAIL

# With fewer degrees of freedom in the pooled deviation, judge's rule of 3 deviations is wrong in
# more than 5 % of pairs without a difference.
FREEDOM = 5
# The keys of the log's lines that are drawn, by the lines' kind.
LOGGED = {
    "step": ("step", "epoch", "loss", "err", "conv_grad_norm", "conv_decay_norm"),
    "val": ("epoch", "top1_err"),
}
POINTS = 0.6  # the smallest difference of rectifiers that counts, points of top-1 error
PUBLISHED = Path(__file__).parent / "paper" / "published.yaml"
MODELS = {"vgg19": "VGG-19", "a": "A", "b": "B", "c": "C"}  # the paper's names
RECTIFIERS = {"relu": "ReLU", "prelu": "PReLU"}


@cache
def published() -> dict:
    """The paper's values: one dict that all callers share and none may change."""
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Run:
    """A finished run, read from its folder or from its committed record."""

    folder: Path

    @cached_property
    def result(self) -> dict:
        return record.read_result(self.folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def seed(self) -> int:
        return self.result["seed"]

    @property
    def protocols(self) -> list[str]:
        return list(self.result["eval"])

    def error(self, protocol: str, k: int = 1) -> float:
        """Top-k error, percent; nan where the run has no such scores."""
        return self.result["eval"].get(protocol, {}).get(f"top{k}_err", math.nan)

    def hits(self, protocol: str, k: int = 1) -> np.ndarray:
        return record.load_hits(self.folder, protocol, k)

    @cached_property
    def slopes(self) -> dict[str, np.ndarray]:
        return record.load_slopes(self.folder)

    @cached_property
    def steps(self) -> pd.DataFrame:
        """The log's training lines: step, epoch, loss, err, grad_norm, ..."""
        return self._read("step")

    @cached_property
    def looks(self) -> pd.DataFrame:
        """The log's validation lines: step, epoch, top1_err, top5_err."""
        return self._read("val")

    def _read(self, kind: str) -> pd.DataFrame:
        events = load_events(self.folder, kind, LOGGED[kind])
        if not events:
            raise ValueError(f"{self.folder}: {self.result['status']} before anything was logged")
        return pd.DataFrame(events)

    @cached_property
    def blind_loss(self) -> float:
        """ln(classes), the loss of a net that has learned nothing."""
        return math.log(count_classes(self.folder))

    def looks_each(self, epochs: float) -> pd.DataFrame:
        """The looks that are `epochs` apart, and the last one. With all its looks this run would
        seem more restless than those that were looked at less often."""
        looks, step = self.looks, max(1, round(epochs / self.looks.epoch[0]))
        return looks.iloc[sorted({*range(step - 1, len(looks), step), len(looks) - 1})]

    @property
    def logged(self) -> bool:
        """Whether the log has a training line and a look to draw: not if it diverged at once."""
        return all(record.read_events(self.folder, kind) for kind in LOGGED)

    @property
    def training_error(self) -> float:
        """Top-1, percent, with dropout and augmentation: the mean over the last tenth; nan if the
        run diverged before anything was logged."""
        if not record.read_events(self.folder, "step"):
            return math.nan
        return self.mean(self.tail.err)

    @property
    def tail(self) -> pd.DataFrame:
        """The training lines of the last tenth."""
        return self.steps[self.steps.step > (1 - TAIL) * self.steps.step.iloc[-1]]

    def mean(self, values: pd.Series) -> float:
        """The mean over steps of what some of the training lines have; each line is itself the mean
        of the steps since the line before, the last of them often fewer."""
        counts = np.diff(self.steps.step, prepend=0)
        return float(np.average(values, weights=counts[values.index]))

    @property
    def departure(self) -> float:
        """The step by which the training loss has left ln(classes) for good; inf if never."""
        below = (self.steps.loss < (1 - STALLED) * self.blind_loss).to_numpy()
        stays = np.logical_and.accumulate(below[::-1])[::-1]
        return float(self.steps.step[stays.argmax()]) if stays.any() else math.inf

    @property
    def fell_back(self) -> bool:
        """Whether the training loss had left ln(classes), for a tenth of the training at least, but
        ended there."""
        below = self.steps.loss < (1 - STALLED) * self.blind_loss
        return math.isinf(self.departure) and bool(below.mean() >= TAIL)


def code_of(artefact: str) -> ModuleType:
    """The module of an artefact; ValueError if there is no file of it, or if it cannot be imported.
    That is found before anything is trained for it."""
    file, module = f"delving/paper/{artefact}.py", f"delving.paper.{artefact}"
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise ValueError(f"conf/paper/{artefact}.yaml has no {file}") from error
        raise ValueError(f"{file}: {describe(error)}") from error


def model_title(name: str) -> str:
    return MODELS.get(name, name)


def rarest(runs: Iterable[Run]) -> float:
    """Epochs between two looks at the run that was looked at least often; 0 without runs."""
    return max((run.looks.epoch[0] for run in runs), default=0.0)


@dataclass(frozen=True)
class Claim:
    """One claim of the paper with its rule and the verdict, as verdict.json has it."""

    claim: str
    rule: str
    delta: float | None
    finding: Finding
    trainings: int

    def as_json(self) -> dict:
        return {
            "claim": self.claim,
            "rule": self.rule,
            "delta": self.delta,
            "verdict": self.finding.verdict,
            "evidence": self.finding.evidence,
            "trainings": self.trainings,
        }


@dataclass(frozen=True)
class Shown:
    """A drawn artefact: a table of cells as printed, a figure and the data it draws, claims."""

    title: str
    caption: str
    table: pd.DataFrame | None = None
    figure: Figure | None = None
    data: pd.DataFrame | None = None
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """What an artefact works with.

    Attributes:
        arms: finished runs by arm, in the order of their seeds; an arm may lack some, or all.
        settings: of the artefact's own measurement.
        measured: what was measured, by artefact (this one and those it needs), then by the names of
            the runs measured together, () for untrained nets: see measured.py.
        small: Table 2's finished runs by arm, several seeds each: their spread is the noise.
        root: outputs/<scale>, or the committed record of it.
        overrides: what else was asked for on the command line, for measurements.
        detections: folders of finished detections by arm, in the order of their seeds.
    """

    artefact: str
    scale: str
    arms: dict[str, list[Run]]
    settings: dict
    measured: dict[str, dict[tuple[str, ...], dict]]
    small: list[list[Run]]
    root: Path
    overrides: list[str] = field(default_factory=list)
    detections: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """The finished runs of all arms."""
        return [run for arm in self.arms.values() for run in arm]

    @property
    def surroundings(self) -> list[str]:
        """The overrides on how and where to compute, as a run's images may have moved since."""
        return [word for word in self.overrides if word.partition("=")[0] in NEUTRAL]

    def noise(self, value: Callable[[Run], float]) -> float | None:
        """One net's deviation of a value over seeds, pooled over the small nets that converged;
        None if they are too few to tell."""
        arms = [[run for run in arm if run.result["status"] == "converged"] for arm in self.small]
        groups = [[v for run in arm if math.isfinite(v := value(run))] for arm in arms]
        enough = sum(len(group) - 1 for group in groups if group) >= FREEDOM
        return pooled_deviation(groups) if enough else None

    def pairs(self, ours: str, theirs: str) -> list[tuple[Run, Run]]:
        """The runs of two arms that share a seed."""
        others = {run.seed: run for run in self.arms[theirs]}
        return [(run, others[run.seed]) for run in self.arms[ours] if run.seed in others]


def differences(
    pairs: Iterable[tuple[Run, Run]], value: Callable[[Run], float], *, drop: bool = False
) -> list[float]:
    """How much smaller `value` is in each pair's first run; `drop` leaves out non-finite ones."""
    found = [value(theirs) - value(ours) for ours, theirs in pairs]
    return [d for d in found if math.isfinite(d)] if drop else found


def image_evidence(pairs: Sequence[tuple[Run, Run]], protocol: str) -> str | None:
    """What the images say of the only pair, its first run against its second; None if there are
    more pairs, or scores are missing."""
    if len(pairs) != 1 or not all(protocol in run.protocols for run in pairs[0]):
        return None
    return compare_images(*(run.hits(protocol) for run in pairs[0]))


def accuracy_claim(
    claim: str, rule: str, *, runs: Iterable[Run], finding: Finding, delta: float = POINTS
) -> Claim:
    """A claim on errors, judged only if every run that it rests on has converged."""
    statuses = {run.name: run.result["status"] for run in runs}
    return Claim(claim, rule, delta, unless_stalled(finding, statuses), len(statuses))


def mean_and_spread(values: Iterable[float], digits: int = 2) -> str:
    """'12.50 ± 2.80 (3)': mean, standard deviation over seeds, n; '-' without values."""
    values = [v for v in values if v is not None and math.isfinite(v)]
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f} (1)"
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f} ({len(values)})"


def printed(value: float | None, digits: int = 2) -> str:
    """A value of the paper as a cell; '-' where it prints none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
