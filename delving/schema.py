"""Every knob: its default (the paper's), its unit, and what it may be.

`family` is the one table that a scale changes for the paper's small models (Tables 1 and 2) and
its large ones (Table 3); the `${...}` defaults below read it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from typing import Any

PROTOCOLS = ("center", "ten_view", "dense")
RANGES = ("raw", "scaled", "normalised")
PRECISIONS = ("auto", "fp32", "bf16")


def _finite(low: float, *, above: bool = False) -> tuple[str, Callable[[Any], bool]]:
    words = f"a finite number {'above' if above else 'of at least'} {low:g}"
    return words, lambda v: math.isfinite(v) and (v > low if above else v >= low)


def _one_of(choices: tuple[str, ...]) -> tuple[str, Callable[[Any], bool]]:
    return "one of " + ", ".join(choices), lambda v: v in choices


POSITIVE, NOT_NEGATIVE = _finite(0, above=True), _finite(0)
SHARE = ("in [0, 1)", lambda v: 0 <= v < 1)
COUNT = ("an integer of at least 1", lambda v: v >= 1)
SEVENTHS = ("sevenths of the crop, each at least 7", lambda v: len(v) > 0 and min(v) >= 7)
FROM_TO = ("[from, to] in sevenths, 7 <= from <= to", lambda v: len(v) == 2 and 7 <= v[0] <= v[1])
FRACTIONS = ("rising fractions in (0, 1), or [] for a plateau", lambda v: _rises([0.0, *v, 1.0]))
SOME_PROTOCOLS = (
    "one or more of " + ", ".join(PROTOCOLS),
    lambda v: len(v) > 0 and all(p in PROTOCOLS for p in v),
)


def _rises(v: list[float]) -> bool:
    return all(a < b for a, b in pairwise(v))


def knob(default: Any, check: tuple[str, Callable[[Any], bool]] | None = None) -> Any:
    metadata = {"check": check}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def of_family(key: str, check: tuple[str, Callable[[Any], bool]] | None = None) -> Any:
    return knob(f"${{family.${{model.family}}.{key}}}", check)


@dataclass
class Family:
    """What differs between the paper's small and large models."""

    epochs: float
    s: list[int]
    protocols: list[str]
    width: float = 1.0
    lr: float = 0.01
    warmup: float = 0.0


@dataclass
class Families:
    # paper: Table 2, 75 epochs at s = 256, ten_view; section 3, about 80 epochs, s in [256, 512].
    small: Family = field(default_factory=lambda: Family(75, [8, 8], ["ten_view"]))
    large: Family = field(default_factory=lambda: Family(80, [8, 16], ["ten_view", "dense"]))


@dataclass
class Reproduce:
    """What a scale gives `delving reproduce`: trainings per arm by role, and seconds by purpose."""

    seeds: dict[str, int] = field(
        default_factory=lambda: {"rectifiers": 5, "small": 3, "deep": 1, "large": 1}
    )
    seconds: dict[str, float] = field(default_factory=dict)  # planned, of wall time; {}: not shared


@dataclass
class Arm:
    """Trainings of an artefact that differ in their seed alone."""

    words: list[str] = field(default_factory=list)  # overrides, beside the scale's
    seeds: str = "small"  # a role in Reproduce.seeds


@dataclass
class Request:
    """What an artefact of the paper asks for: conf/paper/<artefact>.yaml."""

    place: float = 0.0  # in the paper's order
    runs: dict[str, Arm] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)  # artefacts whose measurements it shows
    settings: dict[str, Any] = field(default_factory=dict)  # of its own measurement
    alone: bool = False  # measures times: nothing else may run beside it


@dataclass
class Model:
    name: str = ""
    family: str = knob("small", _one_of(("small", "large")))
    layers: list[dict[str, Any]] = knob(
        [], ("not empty", len)
    )  # in the paper's notation, see net.py
    depth: int | None = knob(None, COUNT)  # conv + fc layers; None: as listed
    width: float = of_family("width", POSITIVE)  # times the paper's filters and fc units
    stem_stride: int | None = knob(None, COUNT)  # of the first conv; None: as listed


@dataclass
class Act:
    name: str = ""
    slope: float = knob(
        0.0, ("finite", math.isfinite)
    )  # a at the start (PReLU) or for good (LReLU)


@dataclass
class Init:
    name: str = ""
    std: float = knob(0.01, POSITIVE)  # of `gaussian` only
    range: str = knob("raw", _one_of(RANGES))  # what tames the input's +-128, see initializer.py
    classifier: float = knob(1.0, POSITIVE)  # times the last layer's std


@dataclass
class Data:
    name: str = ""
    root: str | None = None  # folder or zip; None: generated images, made on demand
    classes: int | None = knob(None, ("at least 2", lambda v: v >= 2))  # first n; None: all
    train_images: int | None = knob(None, COUNT)  # evenly over the classes; None: all
    val_images: int | None = knob(None, COUNT)
    crop: int = knob(
        224, ("a multiple of 7, at least 7", lambda v: v >= 7 and v % 7 == 0)
    )  # pixels
    workers: int = knob(-1, ("-1 (cores - 2) or more", lambda v: v >= -1))  # loader processes
    cache_gb: float = knob(4.0, NOT_NEGATIVE)  # decoded images kept in memory, GB


@dataclass
class Train:
    epochs: float = of_family("epochs", POSITIVE)
    batch: int = knob(128, COUNT)  # images a step, over all micro-batches
    micro_batch: int | None = knob(None, COUNT)  # images on the device at once; None: the batch
    lr: float = of_family("lr", POSITIVE)
    warmup: float = of_family("warmup", SHARE)  # share of the steps with a rising learning rate
    switch: list[float] = knob([], FRACTIONS)  # where lr is divided by ten, in fractions of the run
    momentum: float = knob(0.9, SHARE)
    weight_decay: float = knob(5e-4, NOT_NEGATIVE)  # on weights; never on slopes
    dropout: float = knob(0.5, SHARE)  # of the hidden fc layers' units
    s: list[int] = of_family("s", FROM_TO)  # shorter side drawn from, in sevenths of the crop
    flip: bool = True
    color: float = knob(0.1, NOT_NEGATIVE)  # std of the draws that scale the colour eigenvectors
    compile: bool = False  # torch.compile
    log_every: int = knob(20, COUNT)  # steps a line of log.jsonl averages
    checkpoint_minutes: float = knob(10.0, POSITIVE)


@dataclass
class Eval:
    protocols: list[str] = of_family("protocols", SOME_PROTOCOLS)
    ten_view_s: int = knob(8, ("at least 7", lambda v: v >= 7))  # sevenths of the crop; center too
    dense_s: list[int] = knob([8, 12, 15], SEVENTHS)  # sevenths: 256, 384, 480 at crop 224
    batch: int = knob(128, COUNT)  # images a forward
    every: float = knob(1.0, POSITIVE)  # epochs between two looks at the validation error
    images: int = knob(3000, COUNT)  # fixed random validation images looked at in training


@dataclass
class Config:
    scale: str = ""
    seed: int = knob(0, ("an integer from 0 to 2^63 - 1", lambda v: 0 <= v < 2**63))
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: str = knob("auto", _one_of(PRECISIONS))
    output_root: str = "outputs"
    model: Model = field(default_factory=Model)
    act: Act = field(default_factory=Act)
    init: Init = field(default_factory=Init)
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)


# What may differ between two sittings of the same run: none of it changes what is computed.
NEUTRAL = (
    "device",
    "output_root",
    "data.root",
    "data.workers",
    "data.cache_gb",
    "train.micro_batch",
    "train.compile",
    "train.log_every",
    "train.checkpoint_minutes",
    "eval.batch",
    "eval.every",
    "eval.images",
)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted key, value, field) of every knob, sections in order."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value, f


def differences(ours: Config, theirs: Config) -> dict[str, tuple]:
    """{key: (ours, theirs)} of the knobs that change a result and differ."""
    other = {key: value for key, value, _ in leaves(theirs)}
    return {
        key: (value, other[key])
        for key, value, _ in leaves(ours)
        if key not in NEUTRAL and value != other[key]
    }


def validate(config: Config) -> Config:
    """Returns `config`, or raises ValueError naming the key, its value and what it may be."""
    for key, value, f in leaves(config):
        check = f.metadata.get("check")
        if check and value is not None and not check[1](value):
            raise ValueError(f"{key}={value}: must be {check[0]}")
    return config
