"""Puts a detection together: a trained run as trunk, VOC's images, and proposals."""

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from delving import device as devices
from delving import record
from delving.build import allocate, build_model, load_weights
from delving.checkpoint import load_checkpoint
from delving.data import expand_home
from delving.data.input import Input, blank_input
from delving.data.shapes import TEXTURES
from delving.detect.naming import Detection
from delving.detect.net import FastRCNN, build_detector
from delving.detect.proposals import METHODS, load_proposals, pick_method
from delving.detect.sample import Batches, Sizing, list_candidates, shift_statistics, useful_images
from delving.detect.scenes import VERSION, write_scenes
from delving.detect.train import Progress, Trainer
from delving.detect.voc import CLASSES, SPLITS, Split, find_voc, fingerprint, image_name, load_split
from delving.momentum import Momentum
from delving.net import CROP, Net, map_side
from delving.schema import Config, Detect
from delving.session import Watch, compile_kernels
from delving.train import group_parameters


@dataclass
class Job:
    """Everything that a detection works with."""

    folder: Path
    config: Config  # the trunk's
    about: Detection
    splits: list[Split]  # training, test
    proposals: list[list[np.ndarray]]  # of both splits
    net: FastRCNN
    input: Input
    watch: Watch
    progress: Progress = field(default_factory=Progress)
    seconds: float = 0.0  # of training, over all sittings
    heard: list[int] = field(default_factory=list)  # signals received

    def __post_init__(self):
        settings = self.about.detect
        self.candidates = list_candidates(self.splits[0], self.proposals[0])
        self.useful = useful_images(self.candidates)
        self.statistics = shift_statistics(self.candidates)
        self.sizing = sizing_of(self.config, settings)
        groups = group_parameters(self.net, settings.weight_decay)
        self.optimizer = Momentum(groups, momentum=settings.momentum)

    @property
    def data(self) -> str:
        """A hash of the images' names, annotations and proposals."""
        digest = hashlib.sha256(fingerprint(self.splits).encode())
        for boxes in (one for split in self.proposals for one in split):
            digest.update(boxes.tobytes() + b"|")
        return digest.hexdigest()[:16]

    @property
    def autocast(self) -> Callable:
        return partial(devices.autocast, self.input.mean.device, self.about.precision)

    def log(self, **event) -> None:
        record.append_event(self.folder / "log.jsonl", event)
        self.watch(event)

    def batches(self) -> Batches:
        settings = self.about.detect
        return Batches(
            self.splits[0], self.candidates, self.useful, self.sizing, self.statistics,
            settings.images, settings.rois, settings.foreground, self.about.seed,
        )  # fmt: skip

    def trainer(self) -> Trainer:
        return Trainer(self.net, self.input, self.optimizer, self.about.detect, self.about.seed,
                       self.autocast)  # fmt: skip


def sizing_of(config: Config, settings: Detect) -> Sizing:
    ratio = config.data.crop / CROP
    return Sizing(round(settings.side * ratio), round(settings.longest * ratio))


def _check_sizes(splits: list[Split], sizing: Sizing, features: nn.Sequential) -> None:
    """Raises a ValueError that names an image, if one would be too thin for the conv layers."""
    least = next(side for side in range(1, 10_000) if map_side(features, side))
    for split in splits:
        for number, size in zip(split.ids, split.sizes, strict=True):
            if min(sizing.size_of(size)) < least:
                raise ValueError(
                    f"{image_name(number)} of {size[0]}x{size[1]} pixels is too thin: resized to a "
                    f"shorter side of {sizing.side}, a longer one of at most {sizing.longest} "
                    f"(detect.side, detect.longest), a side has less than {least}"
                )


def describe(run: Path, config: Config, settings: Detect, weights: str) -> Detection:
    """The detection that is asked for, with `auto` replaced by what it means here."""
    method = settings.proposals
    if method in METHODS:
        method = pick_method(method)
    settings = dataclasses.replace(settings, proposals=method)
    device = devices.pick_device(config.device)
    precision = devices.pick_precision(config.precision, device)
    return Detection(run.name, weights, config.scale, config.seed, precision, settings)


@dataclass(frozen=True)
class Trunk:
    """A trained run's net."""

    net: Net
    input: Input
    weights: str  # their hash


def open_trunk(run: Path, config: Config) -> Trunk:
    """A run's net with its weights; its training images need not be there.

    Raises:
        ValueError: there is no checkpoint, or it is damaged or of another net.
    """
    saved = load_checkpoint(run)
    if not saved:
        raise ValueError(f"{run} has no checkpoint to start from")
    tensors, state = saved
    [last] = config.model.layers[-1]  # the classifier, whose outputs are the classes
    weight = tensors.get("model", {}).get(f"net.classifier.{last}.weight")
    if weight is None:
        raise ValueError(f"{run}: its checkpoint is of another model (no {last})")
    device = devices.pick_device(config.device)
    devices.prepare_backend(device, search=False)  # images have many shapes
    net, _ = build_model(config, len(weight))
    net = allocate(net, config, device)
    number = devices.number_type(config.precision)
    input = blank_input(config.data.crop).to(device, number)
    load_weights(net, input, tensors["model"], run)
    return Trunk(net, input, str(state.get("weights")))


def load_splits(settings: Detect, output_root: str) -> list[Split]:
    """The training and the test images; generated ones are written once below output_root/data.

    Raises:
        ValueError: there is no such data, or one of its files is not in VOC's form.
    """
    if settings.data == "shapes_voc":
        where, counts = scenes_folder(settings, output_root)
        if settings.root is None:
            where = write_scenes(where, classes=counts[0], train_images=counts[1],
                                 test_images=counts[2])  # fmt: skip
        classes = tuple(TEXTURES)
    else:
        classes = CLASSES
        if settings.root is None:
            raise ValueError("detect.data=voc2007 needs detect.root=...: what holds VOCdevkit/, or "
                             "VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar")  # fmt: skip
    read = find_voc(expand_home(settings.root, "detect.root") if settings.root else where)
    train, test = (load_split(read, name, classes) for name in SPLITS)
    if settings.data == "shapes_voc":
        train, test = (_limited(split, counts[0]) for split in (train, test))
    return [train.first(settings.train_images, "detect.train_images"),
            test.first(settings.test_images, "detect.test_images")]  # fmt: skip


def _limited(split: Split, count: int) -> Split:
    """The split with the first `count` classes; ValueError if it shows others."""
    need = 1 + max(int(one.labels.max(initial=-1)) for one in split.objects)
    if need > count:
        raise ValueError(f"detect.classes={count}: the scenes at detect.root show more, such as "
                         f"{split.classes[need - 1]}; they need {need} at least")  # fmt: skip
    return dataclasses.replace(split, classes=split.classes[:count])


def scenes_folder(settings: Detect, output_root: str) -> tuple[Path, tuple[int, int, int]]:
    """Where generated scenes lie or will lie, and how many classes, training and test images."""
    counts = (settings.classes or len(TEXTURES), settings.train_images or 1000,
              settings.test_images or 500)  # fmt: skip
    return Path(output_root) / "data" / "shapes_voc-v{}-{}x{}+{}".format(VERSION, *counts), counts


def open_job(folder: Path, config: Config, trunk: Trunk, about: Detection, watch: Watch) -> Job:
    """The data, with its proposals, and the detector with the trunk's weights."""
    settings = about.detect
    splits = load_splits(settings, config.output_root)
    _check_sizes(splits, sizing_of(config, settings), trunk.net.features)
    net = build_detector(trunk.net, classes=len(splits[0].classes), frozen=settings.frozen,
                         seed=about.seed)  # fmt: skip
    proposals = propose(splits, settings, config.output_root, watch)  # may take hours
    compile_kernels(trunk.input.mean.device, watch)
    return Job(folder, config, about, splits, proposals, net, trunk.input, watch)


def propose(
    splits: list[Split], settings: Detect, output_root: str, watch: Watch
) -> list[list[np.ndarray]]:
    """The proposals of training and test images; those made here are kept in a folder."""
    kept, proposals = Path(output_root) / "proposals", []
    for split, title in zip(splits, ("training", "test"), strict=True):
        say = partial(_tell, watch, title)
        proposals.append(load_proposals(split, settings.proposals, kept, say))
    return proposals


def _tell(watch: Watch, title: str, done: int, total: int) -> None:
    watch({"event": "proposals", "split": title, "done": done, "total": total})
