"""What a run will take, as estimated before any was trained here."""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache

import torch

from delving.build import build_model, count_classes, images_at_once
from delving.data import load_data
from delving.data.images import reckon_bytes
from delving.data.loader import MOST, count_workers
from delving.data.sources import SIZES
from delving.device import pick_device, pick_precision
from delving.net import Net, describe
from delving.notation import Layer, count_depth
from delving.schema import Config, Data

# For the seconds of a run before any is finished here: a small net's multiplications a second on
# one CPU core, and the seconds that each layer adds to a step. Finished runs correct the result.
RATE, LAYER = 4e10, 1.8e-3
# The same on a GPU, and the seconds that each step adds: within a fifth of what was measured on an
# H100 with small14, A and C at scale paper, and small14 and A at scale quarter.
GPU_RATE, GPU_STEP = 2.9e14, 2.7e-3
# Images a second that a loader process delivers from ImageNet's files if s is drawn from a range,
# and if it is always 8/7 of the crop, so that less is cut away: the first measured on an H100's
# host, the second derived from it by their ratio on a core with AVX2.
DRAWN, FIXED = 360.0, 250.0
# Classes, training and validation images of a data set of unknown size: with a single class, the
# images stay as many however few classes are used.
ASSUMED = (1, 100_000, 10_000)
FORWARDS = 3  # a step's work, forward and backward, in forward passes
FP32, HALF = 4, 2  # bytes
# GB of a training on a CPU: its process, and TIMES what reckon_memory gives for its net. Measured
# with small14, small30, A and C at scale quarter; small14 and A at scale paper took less, as did
# small14 at scale quarter in fp32, whose responses took 1.4 times what they are reckoned to.
PROCESS, TIMES = 1.0, 2.2


def estimate_seconds(config: Config, work: tuple[int, int]) -> float:
    """Seconds of a run's training on one worker, from its net's (mult-adds, depth)."""
    multiply_adds, depth = work
    images = config.train.epochs * count_images(config)[0]
    steps = images / config.train.batch
    if is_for_a_gpu(config.device):
        return FORWARDS * multiply_adds * images / GPU_RATE + GPU_STEP * steps
    return FORWARDS * multiply_adds * images / RATE + LAYER * depth * steps


def is_for_a_gpu(device: str) -> bool:
    """Whether it is a GPU of this machine; a missing device is reported once it is needed."""
    with suppress(ValueError):
        return pick_device(device).type == "cuda"
    return False


def reckon_delivery(config: Config, *, here: bool) -> tuple[float, int]:
    """Training images a second that loader processes deliver at most, and how many processes there
    are: on this machine if `here`, else on one with enough cores. Only ImageNet has a limit: other
    files are small, or kept."""
    processes, gpu = config.data.workers, is_for_a_gpu(config.device)
    processes = count_workers(processes, gpu=gpu) if here else processes
    processes = MOST if processes < 0 else max(1, processes)
    low, high = config.train.s
    each = DRAWN if low < high else FIXED
    return (each * processes if config.data.name == "imagenet" else math.inf), processes


def count_images(config: Config) -> tuple[int, int]:
    """Training and validation images: those at data.root, else what the configuration and the data
    set's name tell; for the first n of its classes, their share."""
    data = config.data
    if there := count_there(data):
        return there
    classes, *whole = SIZES.get(data.name, ASSUMED)
    share = 1.0 if data.name == "shapes" else min(1.0, (data.classes or math.inf) / classes)
    return tuple(given or round(count * share) for given, count in
                 zip((data.train_images, data.val_images), whole, strict=True))  # fmt: skip


def count_there(data: Data) -> tuple[int, int] | None:
    """Training and validation images at data.root; None if none can be read there, and for
    ImageNet, whose size is known and whose listing takes minutes on a network disk."""
    if data.root is None or data.name == "imagenet":
        return None
    return _count_there(data.name, data.root, data.classes, data.train_images, data.val_images)


@cache
def _count_there(name: str, root: str, classes: int | None, train: int | None, val: int | None):
    limits = {"classes": classes, "train_images": train, "val_images": val}
    try:
        splits = load_data(name, root, **limits, output_root=root)
    except (ValueError, OSError):  # reported once the images are needed
        return None
    return tuple(len(split.names) for split in splits)


def reckon_memory(config: Config) -> float:
    """GB: weights, gradients and momentum in fp32, and each layer's responses, in half precision
    unless another is asked for."""
    net, _, rows = describe_net(config)
    shapes = [row["output"].split("x") for row in rows]
    responses = sum(math.prod(map(int, shape)) for shape in shapes) * images_at_once(config)
    weights = sum(p.numel() for p in net.parameters())
    number = HALF if config.precision in ("auto", "bf16") else FP32
    return (3 * FP32 * weights + number * responses) / 1e9


def largest_gigabytes(runs: Iterable[Config]) -> float:
    """GB of memory that the largest of these trainings takes on a CPU; 0 without any."""
    here = [replace(c, precision=pick_precision(c.precision, torch.device("cpu"))) for c in runs]
    alike = {repr((c.model, c.data, c.precision, images_at_once(c))): c for c in here}
    return max((PROCESS + TIMES * reckon_memory(c) + _images(c) for c in alike.values()),
               default=0.0)  # fmt: skip


def _images(config: Config) -> float:
    """GB of the images that are kept decoded, as if they had the size at which they are tested."""
    each = reckon_bytes(8 * config.data.crop / 7)
    return min(config.data.cache_gb, sum(count_images(config)) * each / 1e9)


def measure_work(config: Config) -> tuple[int, int]:
    """A net's mult-adds an image, and its depth."""
    _, layers, rows = describe_net(config)
    return sum(row["multiply_adds"] for row in rows), count_depth(layers)


def describe_net(config: Config) -> tuple[Net, list[Layer], list[dict]]:
    """The net on the meta device, its layers, and each layer's output and cost."""
    net, layers = build_model(config, count_classes(config))
    return net, layers, describe(net, layers, config.data.crop)
