"""Loading training images from JPEG files, against torchvision's ImageFolder and v2 transforms."""

import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from delving.bench.rounds import Row, compare, in_turns
from delving.bench.training import build, take
from delving.config import compose
from delving.data import expand_home
from delving.data.images import SUFFIXES, FolderReader, Images
from delving.data.loader import TrainingBatches, cached, count_cores, count_workers, iterate
from delving.data.shared import iterate_shared
from delving.data.zips import ZipReader, open_checked
from delving.device import name_device, pick_device
from delving.meter import Meter
from delving.net import CROP

COUNT, CLASSES = 100, 10  # images, repeated for as long as it takes
SIZE, QUALITY = (500, 375), 90  # as ImageNet's are on average
SIDES, BATCH = (256, 512), 16
SECONDS = 3.0  # of a round
STEPS = range(1_000_000)  # more than there is time for


def bench_loader(words: Sequence[str], rounds: int) -> list[Row]:
    """Images a second at s in [256, 512] and crop 224, and how long a training waits for them.

    The JPEG files are those of data.root, a folder or zip, or else generated. The training is of A
    on a GPU and of small14 on a CPU, unless words name a model.
    """
    config = compose([*words, "scale=paper"])
    gpu, root = pick_device(config.device).type == "cuda", config.data.root
    workers = count_workers(config.data.workers, gpu=gpu)
    half = max(1, workers // 2)
    with tempfile.TemporaryDirectory() as scratch:
        files = _given(expand_home(root)) if root else _generated()
        images = write_folder(Path(scratch), files)
        ways = {
            "ours": lambda: _rate(_ours(images, workers)),
            "torchvision": lambda: _rate(_torchvision(Path(scratch), workers)),
            "decoding": lambda: _decode_rate(images),
        }
        found = in_turns(ways, rounds)
        ways = {
            "shared": lambda: _rate(_two_arms(images, half, f"bench {os.getpid()}")),
            "apart": lambda: _rate(_two_arms(images, half, None)),
        }
        arms = in_turns(ways, rounds)
        waiting = _waiting(words, images, rounds)
    limit = median(found["decoding"]) * max(1, min(workers, count_cores()))
    kind = "real" if root else "generated"
    name = f"loader, {kind} JPEG files, s in [256, 512], crop 224, {workers} processes"
    # The limit is for loaders that decode whole images.
    rate = compare(f"{name}: against torchvision's", found["ours"], found["torchvision"],
                   limit=limit, unit="images/s", device=f"{count_cores()} cores")  # fmt: skip
    two = compare(f"loader, the same to two nets of one seed, {half} processes each: against each "
                  "its own", arms["shared"], arms["apart"], unit="images/s",
                  device=f"{count_cores()} cores")  # fmt: skip
    return [rate, two, waiting]


def _waiting(words: Sequence[str], images: Images, rounds: int) -> Row:
    """The share of its time that a training spends waiting for these images."""
    named = any(word.startswith("model=") for word in words)
    device = pick_device(compose(list(words)).device)
    model = "a" if device.type == "cuda" else "small14"
    own = [w for w in words if not w.startswith("data.") or w.startswith("data.workers=")]
    bench = build([*own, "scale=paper", *([] if named else [f"model={model}"])])
    gpu, meter = bench.device.type == "cuda", Meter(0.0)
    workers = count_workers(bench.config.data.workers, gpu=gpu)
    source, count = cached(images, gigabytes=0, workers=workers), bench.recipe.batch
    batches = TrainingBatches(source, batch=count, crop=CROP, sides=SIDES, flip=True, seed=0)
    supply = iterate(batches, STEPS, workers=workers, pin=gpu)
    with closing(supply):
        steps = bench.training(meter.timed(supply, bench.device))
        found = in_turns({"wait": lambda: _waited(steps, meter)}, rounds)["wait"]
    return compare(f"train {bench.name}, {workers} loader processes: time waited for data", found,
                   unit="%", device=name_device(device))  # fmt: skip


def _waited(steps: Iterator, meter: Meter) -> float:
    """Takes steps for some seconds; the percentage of them spent waiting for data."""
    meter.rates()
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        take(steps, 1)
    return 100 * meter.rates()["wait"]


def write_folder(root: Path, files: Iterator[bytes]) -> Images:
    """Writes the first COUNT files into class folders below root."""
    names = []
    for number, data in enumerate(islice(files, COUNT)):
        names.append(f"class{number % CLASSES}/{number}.JPEG")
        (root / names[-1]).parent.mkdir(exist_ok=True)
        (root / names[-1]).write_bytes(data)
    classes = [f"class{i}" for i in range(CLASSES)]
    labels = np.arange(len(names)) % CLASSES
    return Images(names, labels, classes, classes, FolderReader(root))


def _given(root: Path) -> Iterator[bytes]:
    """The JPEG files of a folder or a zip, COUNT at most.

    Raises:
        ValueError: nothing is there, it is neither, or there are fewer files than CLASSES.
    """
    if not root.exists():
        raise ValueError(f"data.root={root}: there is no such folder or zip")
    if root.is_dir():
        names = [str(path.relative_to(root)) for path in sorted(root.rglob("*"))]
        read = FolderReader(root)
    else:
        names = [info.filename for info in open_checked(root)]
        read = ZipReader({name: (root, name) for name in names})
    names = [name for name in names if name.lower().endswith(SUFFIXES[:2])]
    if len(names) < CLASSES:
        raise ValueError(f"data.root={root}: {len(names)} JPEG files, at least {CLASSES} needed")
    yield from map(read, names[:COUNT])


def _generated() -> Iterator[bytes]:
    """JPEG files of noise whose spectrum falls as photographs' do, so that they are as large."""
    rng = np.random.Generator(np.random.Philox(0))
    for _ in range(COUNT):
        layers = [
            np.asarray(Image.fromarray(rng.integers(0, 256, (SIZE[1] // n, SIZE[0] // n, 3),
                                                    dtype=np.uint8)).resize(SIZE), np.float32) * n
            for n in (2, 4, 8, 16, 32)
        ]  # fmt: skip
        file = io.BytesIO()
        mixed = sum(layers) / (2 + 4 + 8 + 16 + 32)
        Image.fromarray(mixed.astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        yield file.getvalue()


def _rate(batches: Iterator[int]) -> float:
    """Images a second, without the first batch, during which the processes start."""
    next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        count += next(batches)
    return count / (time.perf_counter() - start)


def _ours(images: Images, workers: int, data: str | None = None) -> Iterator[int]:
    """Images in each of our batches. `data`: see iterate_shared; None shares with nobody."""
    source = cached(images, gigabytes=0, workers=workers)
    batches = TrainingBatches(source, batch=BATCH, crop=CROP, sides=SIDES, flip=True, seed=0)
    how = {"workers": workers, "pin": False}
    supply = iterate(batches, STEPS, **how)
    if data:
        supply = iterate_shared(batches, STEPS, data=data, **how)
    for batch in supply:
        yield len(batch.labels)


def _two_arms(images: Images, workers: int, data: str | None) -> Iterator[int]:
    """Images in each step of two trainings of one seed that keep in step."""
    with closing(_ours(images, workers, data)) as one, closing(_ours(images, workers, data)) as two:
        for counts in zip(one, two, strict=True):
            yield sum(counts)


def _torchvision(root: Path, workers: int) -> Iterator[int]:
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    resized = [v2.Resize(s, antialias=True) for s in range(SIDES[0], SIDES[1] + 1)]
    change = v2.Compose([
        v2.PILToTensor(),
        v2.RandomChoice(resized),
        v2.RandomCrop(CROP),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.25] * 3),
    ])  # fmt: skip
    data = ImageFolder(root, change)
    # One endless epoch: with few files, many workers would mostly be starting and ending epochs.
    sampler = RandomSampler(data, replacement=True, num_samples=10**7)
    loader = DataLoader(data, BATCH, num_workers=workers, sampler=sampler)
    while True:
        for _, labels in loader:
            yield len(labels)


def _decode_rate(images: Images) -> float:
    """Images a second that one core decodes if it does nothing else."""
    files = [images.bytes_of(index) for index in range(len(images))]
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS / 2:
        Image.open(io.BytesIO(files[count % len(files)])).convert("RGB")
        count += 1
    return count / (time.perf_counter() - start)
