"""Where `delving train` trains its runs: `launcher=local`, or `slurm` with its settings."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from delving.bounds import integer, number
from delving.schema import knob
from delving.words import likeliest, nearest, refuse_slip, shown

LAUNCHERS = ("local", "slurm")


WORD = ("one line, not empty", lambda v: v != "" and v.isprintable())


@dataclass(frozen=True)
class Slurm:
    """What each job asks the cluster for, by words `slurm.<field>=value`. Not part of a run."""

    partition: str | None = knob(None, WORD)  # None: the cluster's own default
    account: str | None = knob(None, WORD)  # who pays; None: your default
    constraint: str | None = knob(None, WORD)  # features of a node, as in sbatch: "a100|h100"
    minutes: int = knob(1440, integer(1, 525_600))  # wall time; a job that reaches it is requeued
    nodes: int = knob(1, integer(1, 1024))
    gpus: int = knob(1, integer(0, 64))  # a node; each is a task, a rank of the run; 0: one on CPUs
    cpus: int = knob(8, integer(1, 1024))  # cores a task
    memory_gb: float | None = knob(None, number(0, 100_000, above=True))  # a node; None: 16 a task
    parallel: int = knob(32, integer(1, 1000))  # jobs of a sweep that run at the same time

    @property
    def tasks(self) -> int:
        """Tasks a node."""
        return max(1, self.gpus)


def split_words(words: Sequence[str]) -> tuple[list[str], Slurm | None]:
    """The words on runs, and the settings that `launcher=slurm slurm.key=value` asks for; None for
    `launcher=local`.

    Raises:
        ValueError: an unknown launcher or key, or an impossible value.
    """
    launcher, settings, rest = "local", [], []
    for word in words:
        key, sign, value = word.partition("=")
        section, _, _ = key.partition(".")
        if key == "launcher" and sign:
            launcher = value
        elif section == "slurm":
            settings.append(word)
        else:
            rest.append(refuse_slip(word, ("launcher", "slurm")))
    if launcher not in LAUNCHERS:
        near = likeliest(launcher, LAUNCHERS)
        raise ValueError(f"launcher={shown(launcher)}: choose from {', '.join(LAUNCHERS)}{near}")
    if launcher == "local" and settings:
        raise ValueError(f"{shown(settings[0])}: only with launcher=slurm")
    return rest, read_settings(settings) if launcher == "slurm" else None


def read_settings(words: Sequence[str]) -> Slurm:
    """The settings in words `slurm.key=value`; ValueError for an unknown key or a wrong value."""
    known = {f"slurm.{f.name}": f for f in dataclasses.fields(Slurm)}
    found = {}
    for word in words:
        key, _, text = word.partition("=")
        if key not in known:
            raise ValueError(f"there is no {shown(key)!r}{nearest(key, list(known))}")
        field = known[key]
        says, holds = field.metadata["check"]
        try:
            value = _read(text, field.type)
            good = value is None or holds(value)
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"{shown(word)}: must be {says}")
        found[field.name] = value
    return Slurm(**found)


def _read(text: str, kind: Any) -> Any:
    if text == "null" and type(None) in get_args(kind):
        return None
    kind = next((k for k in get_args(kind) if k is not type(None)), kind)
    if kind is int and not text.isdecimal():
        raise ValueError
    value = kind(text)
    if kind is float and not math.isfinite(value):
        raise ValueError
    return value
