"""What a run will take, as reckoned before any was trained here."""

import math
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

from delving.build import build_model, count_classes
from delving.data import load_data
from delving.data.images import reckon_bytes
from delving.data.loader import MOST, count_workers
from delving.data.sources import SIZES
from delving.device import pick_device
from delving.net import Net, describe
from delving.notation import Layer, count_depth
from delving.schema import Config, Data

# Seconds of a run before anything was measured here: so many multiplications a second of a small
# net on one CPU core, and what a layer costs each step besides. Finished runs correct both.
RATE, LAYER = 4e10, 1.8e-3
# On a GPU so many, and what a step costs besides: as they were of small14, A and C at scale paper,
# of small14 and A at scale quarter, on an H100, within a fifth.
GPU_RATE, GPU_STEP = 2.9e14, 2.7e-3
# Images a second of ImageNet's files from a loader process, where s is drawn from a range, and
# where it is 8/7 of the crop alone, so that less is cut away: the first on an H100's host, the
# second by what it was of the first on a core with AVX2.
DRAWN, FIXED = 360.0, 250.0
# Of a data set that has no size of its own; as many images however few the classes.
ASSUMED = (1, 100_000, 10_000)
FORWARDS = 3  # a step's work, forward and backward, in forward passes
FP32, HALF = 4, 2  # bytes
# GB of a training on a CPU: its process, and so many times what its net is reckoned to take. So it
# was of small14, small30, A and C at scale quarter; small14 and A at scale paper took less.
PROCESS, TIMES = 1.0, 2.2


def estimate_seconds(config: Config, work: tuple[int, int]) -> float:
    """Of a run's training, on one worker, by its net's (mult-adds, depth)."""
    multiply_adds, depth = work
    images = config.train.epochs * count_images(config)[0]
    steps = images / config.train.batch
    if is_for_a_gpu(config.device):
        return FORWARDS * multiply_adds * images / GPU_RATE + GPU_STEP * steps
    return FORWARDS * multiply_adds * images / RATE + LAYER * depth * steps


def is_for_a_gpu(device: str) -> bool:
    """A device that is not here is told where it is wanted."""
    with suppress(ValueError):
        return pick_device(device).type == "cuda"
    return False


def reckon_delivery(config: Config, *, here: bool) -> tuple[float, int]:
    """Training images a second that loader processes deliver at most, and how many they are: on
    this machine, or on one with cores enough. Other files than ImageNet's are small, or kept."""
    processes = count_workers(config.data.workers) if here else config.data.workers
    processes = MOST if processes < 0 else max(1, processes)
    low, high = config.train.s
    each = DRAWN if low < high else FIXED
    return (each * processes if config.data.name == "imagenet" else math.inf), processes


def count_images(config: Config) -> tuple[int, int]:
    """Training and validation images: those that lie there, or what configuration and data set's
    name tell; of the first n of its classes their share."""
    data = config.data
    if there := count_there(data):
        return there
    classes, *whole = SIZES.get(data.name, ASSUMED)
    share = 1.0 if data.name == "shapes" else min(1.0, (data.classes or math.inf) / classes)
    return tuple(given or round(count * share) for given, count in
                 zip((data.train_images, data.val_images), whole, strict=True))  # fmt: skip


def count_there(data: Data) -> tuple[int, int] | None:
    """Training and validation images at data.root; None where there is none that can be read, or
    where it is ImageNet's, which is known and on a network's disk takes minutes to list."""
    if data.root is None or data.name == "imagenet":
        return None
    return _count_there(data.name, data.root, data.classes, data.train_images, data.val_images)


@cache
def _count_there(name: str, root: str, classes: int | None, train: int | None, val: int | None):
    limits = {"classes": classes, "train_images": train, "val_images": val}
    try:
        splits = load_data(name, root, **limits, output_root=root)
    except (ValueError, OSError):  # told where the images are wanted
        return None
    return tuple(len(split.names) for split in splits)


def reckon_memory(config: Config) -> float:
    """GB: weights, gradients and momentum in fp32, and each layer's responses in half precision."""
    net, _, rows = describe_net(config)
    shapes = [row["output"].split("x") for row in rows]
    responses = sum(math.prod(map(int, shape)) for shape in shapes) * config.train.batch
    weights = sum(p.numel() for p in net.parameters())
    return (3 * FP32 * weights + HALF * responses) / 1e9


def largest_gigabytes(runs: Iterable[Config]) -> float:
    """GB of memory that the largest training of these takes on a CPU; 0 without any."""
    alike = {repr((c.model, c.data, c.train.batch)): c for c in runs}
    return max((PROCESS + TIMES * reckon_memory(c) + _images(c) for c in alike.values()),
               default=0.0)  # fmt: skip


def _images(config: Config) -> float:
    """GB of the images that are kept decoded, were they of the size that they are tested at."""
    each = reckon_bytes(8 * config.data.crop / 7)
    return min(config.data.cache_gb, sum(count_images(config)) * each / 1e9)


def measure_work(config: Config) -> tuple[int, int]:
    """A net's mult-adds an image, and its layers."""
    _, layers, rows = describe_net(config)
    return sum(row["multiply_adds"] for row in rows), count_depth(layers)


def describe_net(config: Config) -> tuple[Net, list[Layer], list[dict]]:
    """The net on the meta device, its layers, and each layer's output and cost."""
    net, layers = build_model(config, count_classes(config))
    return net, layers, describe(net, layers, config.data.crop)
