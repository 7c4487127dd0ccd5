"""Every knob: its default (the paper's), its unit, and what it may be.

`family` is the one table that a scale changes for the paper's small models (Tables 1 and 2) and
its large ones (Table 3); the `${...}` defaults below read it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from delving.bounds import (
    BATCH,
    DEEPEST,
    DEVICE,
    FAMILIES,
    FINITE,
    FRACTIONS,
    FROM_TO,
    IMAGES,
    LAYERS,
    NAME,
    NOT_NEGATIVE,
    PATH,
    PRECISIONS,
    RANGES,
    SEVENTHS,
    SHARE,
    SOME_PROTOCOLS,
    Bound,
    integer,
    number,
    one_of,
)
from delving.words import shown


def knob(default: Any, check: Bound | None = None) -> Any:
    metadata = {"check": check}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def of_family(key: str, check: Bound | None = None) -> Any:
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
class Seeds:
    """Trainings of an arm, by the arm's role; 0: none, and what they would show is left out."""

    rectifiers: int = knob(5, integer(0, 1000))  # the small nets whose rectifiers are compared
    small: int = knob(3, integer(0, 1000))  # other small nets
    deep: int = knob(1, integer(0, 1000))  # He against Xavier at 22 and 30 layers
    large: int = knob(1, integer(0, 1000))  # A, B, C


@dataclass
class Reproduce:
    """What a scale gives `delving reproduce`: trainings per arm by role, and seconds by purpose.

    `switch`: where compared nets divide lr by ten, in fractions of the run, if nothing else sets
    train.switch: both arms do so at the same epochs (paper: 3).
    """

    seeds: Seeds = field(default_factory=Seeds)
    switch: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # planned wall time; {}: no plan


@dataclass
class Arm:
    """Trainings of an artefact that differ in their seed alone."""

    words: list[str] = field(default_factory=list)  # overrides, besides the scale's
    seeds: str = "small"  # a role of Seeds
    epochs: int | None = None  # at least this many, whatever the scale has


@dataclass
class Request:
    """What an artefact of the paper asks for: conf/paper/<artefact>.yaml."""

    place: float = 0.0  # in the paper's order
    runs: dict[str, Arm] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)  # artefacts whose measurements it shows
    settings: dict[str, Any] = field(default_factory=dict)  # of its own measurement
    seconds: float = 20.0  # that its measurement may take, on two slow cores
    alone: bool = False  # measures times: nothing else may run beside it
    detect: bool = False  # its runs are fine-tuned to detect objects


@dataclass
class Model:
    name: str = knob("", NAME)
    family: str = knob("small", one_of(FAMILIES))
    layers: list[Any] = knob([], LAYERS)  # {name: the paper's notation}, see notation.py
    depth: int | None = knob(None, integer(1, DEEPEST))  # conv + fc layers; None: as listed
    width: float = of_family("width", number(0, 100, above=True))  # times the paper's filters
    stem_stride: int | None = knob(None, integer(1, 100))  # of the first conv; None: as listed


@dataclass
class Act:
    name: str = knob("", NAME)
    slope: float = knob(0.0, number(-1000, 1000))  # a at the start (PReLU) or for good (LReLU)


@dataclass
class Init:
    name: str = knob("", NAME)
    std: float = knob(0.01, number(0, 1000, above=True))  # of `gaussian` only
    range: str = knob("raw", one_of(RANGES))  # what tames the input's +-128, see initializer.py
    classifier: float = knob(1.0, number(0, 1000, above=True))  # times the last layer's std


@dataclass
class Data:
    name: str = knob("", NAME)
    root: str | None = knob(None, PATH)  # folder or zip; None: generated images, made on demand
    classes: int | None = knob(None, integer(2, 100_000))  # first n; None: all
    train_images: int | None = knob(None, IMAGES)  # evenly over the classes; None: all
    val_images: int | None = knob(None, IMAGES)
    crop: int = knob(
        224, ("a multiple of 7 from 7 to 7,000", lambda v: 7 <= v <= 7000 and v % 7 == 0)
    )  # pixels
    workers: int = knob(-1, integer(-1, 1024, ", -1 fitting this machine"))  # loader processes
    cache_gb: float = knob(4.0, number(0, 1_000_000))  # GB of images kept decoded, or on a GPU
    timeout: float = knob(120.0, number(0, 86_400, above=True))  # seconds that a loader process
    # may take for one batch; if workers is 0 there is none, and no limit


@dataclass
class Train:
    epochs: float = of_family("epochs", number(0, 100_000, above=True))
    batch: int = knob(128, BATCH)  # images per step, over all micro-batches
    micro_batch: int | None = knob(None, BATCH)  # images on the device at once; None: the batch
    lr: float = of_family("lr", FINITE)
    warmup: float = of_family("warmup", SHARE)  # share of the steps with a rising learning rate
    switch: list[float] = knob([], FRACTIONS)  # where lr is divided by ten, in fractions of the run
    momentum: float = knob(0.9, SHARE)
    weight_decay: float = knob(5e-4, NOT_NEGATIVE)  # on weights; never on slopes
    dropout: float = knob(0.5, SHARE)  # of the hidden fc layers' units
    s: list[int] = of_family("s", FROM_TO)  # range of the shorter side, in sevenths of the crop
    flip: bool = True
    color: float = knob(0.1, NOT_NEGATIVE)  # std of the draws that scale the colour eigenvectors
    compile: bool = False  # torch.compile
    log_every: int = knob(20, integer(1, 1_000_000))  # steps a line of log.jsonl averages
    checkpoint_minutes: float = knob(10.0, number(0, 1_000_000, above=True))


@dataclass
class Eval:
    protocols: list[str] = of_family("protocols", SOME_PROTOCOLS)
    ten_view_s: int = knob(8, integer(7, 70))  # sevenths of the crop; center too
    dense_s: list[int] = knob([8, 12, 15], SEVENTHS)  # sevenths: 256, 384, 480 at crop 224
    batch: int = knob(128, BATCH)  # images per forward pass
    every: float = knob(1.0, number(0, 1_000_000, above=True))  # epochs between two validations
    images: int = knob(3000, IMAGES)  # fixed random validation images looked at in training


@dataclass
class Detect:
    """What `delving detect` does with a trained run: Fast R-CNN as published for VOC 2007."""

    data: str = knob("voc2007", one_of(("voc2007", "shapes_voc")))
    root: str | None = knob(None, PATH)  # holds VOCdevkit/ or VOC's tar files; None: generated ones
    classes: int | None = knob(None, integer(2, 100))  # of generated scenes; None: all
    train_images: int | None = knob(None, IMAGES)  # the first; None: all
    test_images: int | None = knob(None, IMAGES)
    proposals: str = knob("auto", PATH)  # auto, selective_search, grid, or an .npz file
    # Sides are scaled in proportion if the net's crop is not 224 pixels.
    side: int = knob(600, integer(32, 10_000))  # the shorter side of an image, pixels at crop 224
    longest: int = knob(1000, integer(32, 100_000))  # the longer one at most
    images: int = knob(2, integer(1, 64))  # of a batch
    rois: int = knob(128, integer(1, 65_536))  # of a batch
    foreground: float = knob(0.25, SHARE)  # largest share of RoIs that show objects
    steps: int = knob(40_000, integer(1, 100_000_000))
    lr: float = knob(1e-3, FINITE)
    switch: list[float] = knob([0.75], FRACTIONS)  # where lr is divided by ten
    momentum: float = knob(0.9, SHARE)
    weight_decay: float = knob(5e-4, NOT_NEGATIVE)
    frozen: int = knob(1, integer(0, DEEPEST))  # first conv layers that keep their weights
    nms: float = knob(0.3, SHARE)  # overlap above which the worse of two detections goes
    log_every: int = knob(20, integer(1, 1_000_000))  # steps a line of log.jsonl averages
    checkpoint_minutes: float = knob(10.0, number(0, 1_000_000, above=True))


@dataclass
class Config:
    scale: str = knob("", NAME)
    seed: int = knob(0, ("an integer from 0 to 2^63 - 1", lambda v: 0 <= v < 2**63))
    device: str = knob("auto", DEVICE)  # auto, cpu, cuda, cuda:1, mps
    precision: str = knob("auto", one_of(PRECISIONS))
    output_root: str = knob("outputs", PATH)
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
    "data.timeout",
    "train.micro_batch",
    "train.compile",
    "train.log_every",
    "train.checkpoint_minutes",
    "eval.batch",
    "eval.every",
    "eval.images",
)
# A scale limits only the images that it generates; of other data all are taken.
LIMITS = ("data.classes", "data.train_images", "data.val_images")
DETECT_NEUTRAL = ("detect.root", "detect.log_every", "detect.checkpoint_minutes")


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted key, value, field) of every knob, sections in order."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value, f


# {key of small or large nets' value, as family.small.lr: the knob that reads it}.
FAMILY = {f.default.replace("${model.family}", size)[2:-1]: f for size in FAMILIES
          for _, _, f in leaves(Config()) if str(f.default).startswith("${family.")}  # fmt: skip


def check_families(words: Sequence[str], runs: Iterable[Config]) -> None:
    """ValueError for a `family.` word that sets none of the runs, such as one for large nets when
    all are small ones. Not for a reproduction, whose artefacts ask for both kinds."""
    trained = {config.model.family: config.model.name for config in runs}
    for word in words:
        key = word.partition("=")[0]
        if key in FAMILY and trained and (other := key.split(".")[1]) not in trained:
            [(family, model)] = trained.items()
            raise ValueError(f"{shown(word)}: sets {other} nets, and {model} is a {family} one: "
                             f"{key.replace(other, family)} sets it")  # fmt: skip


def differences(ours: Config, theirs: Config) -> dict[str, tuple]:
    """{key: (ours, theirs)} of the knobs that change a result and differ."""
    other = {key: value for key, value, _ in leaves(theirs)}
    return {
        key: (value, other[key])
        for key, value, _ in leaves(ours)
        if key not in (*NEUTRAL, *DETECT_NEUTRAL) and value != other[key]
    }


def check_value(key: str, value: Any, f: Field) -> Any:
    """Returns `value`, or raises ValueError naming the key, its value and what it may be."""
    if value is not None and (check := f.metadata.get("check")) and not check[1](value):
        raise ValueError(refusal(key, value, f))
    return value


def refusal(key: str, value: Any, f: Field) -> str:
    """The message for a value that is not allowed."""
    what = "true or false" if f.type is bool else f.metadata["check"][0]
    what = what(value) if callable(what) else what
    return f"{key}={'null' if value is None else shown(value)}: must be {what}"


def validate(config: Config) -> Config:
    """check_value for every knob of `config`; returns it."""
    for key, value, f in leaves(config):
        check_value(key, value, f)
    return config
