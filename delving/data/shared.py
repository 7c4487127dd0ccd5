"""Batches for trainings side by side that see the same images: decoded once for all of them.

Arms of one seed see the same views of the same images. Their loader processes leave the batches in
shared memory and divide the work: a process that is asked for a batch another is making makes a
later one meanwhile. A training that is alone, or cannot share memory, loads as it otherwise would.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from delving.beside import name_beside, remove_dead
from delving.data.augment import rows_of
from delving.data.loader import Batch, TrainingBatches, iterate
from delving.data.memory import READER, claimed, hear, joined, living_in, tell
from delving.data.parcel import SHARED, Packed, Place
from delving.data.processes import Dataset

LEAST = 500_000  # bytes: a smaller batch is made as fast as it is shared
AHEAD = 4  # batches given to a loader process in advance: it delivers none while making another's
SPARE = 16  # further steps that a training may be ahead of others
PATIENCE = 30.0  # seconds that a training waits for one behind it, before it goes on without it
PAUSE = 0.05  # seconds between two looks at it
PULSE = 1.0  # seconds between two checks that the others are alive
RETRY = 30.0  # seconds after which memory that was full is tried again
TENSORS = Batch._fields[:3]
DTYPES = {"U8": torch.uint8, "I64": torch.int64, "F32": torch.float32}


@dataclass
class Other:
    """Another training, as this process sees it.

    Attributes:
        at: the step that it asked for last.
        reach: batches are kept for it from so many steps before `at` to as many after.
        patience: seconds that it is waited for when it is behind; halved whenever that was in vain.
        waited: seconds that it has been waited for since it was last level.
        left: whether waiting was in vain, and it is still behind.
    """

    patience: float
    at: int = 0
    reach: int = 0
    waited: float = 0.0
    left: bool = False

    @property
    def kept(self) -> range:
        """The steps whose batches are kept for it."""
        return range(self.at - self.reach, self.at + self.reach)

    def see(self, at: int, reach: int, step: int) -> None:
        """Records how far it is; `step`: how far this training is."""
        self.at, self.reach = at, reach
        if at >= step:
            self.waited = 0.0
        self.left = self.left and self.kept.stop <= step

    def wait(self) -> None:
        """Counts a pause spent waiting for it."""
        self.waited += PAUSE
        if self.waited > self.patience:
            self.left, self.waited = True, 0.0
            self.patience /= 2


@dataclass
class SharedBatches:
    """The batches of one training, some of them made by another one's loader processes.

    Attributes:
        batches: makes them; the other trainings' make the same.
        reader: this training's file (see memory.py), in the folder of all that see these batches.
        stop: the step after its last.
        reach: batches are kept for it from so many steps before its latest to as many after.
        patience: seconds to wait for a training that is behind, or a batch that another makes.
        others: the other trainings, by their files.
        looked: when it was last checked that they are alive.
        retry: the time before which memory is not tried again.
    """

    batches: TrainingBatches
    reader: Path
    stop: int
    reach: int
    patience: float
    others: dict[str, Other] = field(default_factory=dict)
    looked: float = 0.0
    retry: float = 0.0

    def __getitem__(self, step: int) -> Batch | Packed:
        batch = None
        with suppress(OSError):  # no error of shared memory stops a training
            tell(self.reader, step, self.reach)
            batch = self._share(step)
        return batch or self.batches[step]

    def describe(self, step: int) -> str:
        """The step and its first images, for messages."""
        return self.batches.describe(step)

    @cached_property
    def folder(self) -> Path:
        return self.reader.parent

    def _share(self, step: int) -> Packed | None:
        """The batch in shared memory, whoever makes it; None if it has to be made unshared."""
        waited = 0.0
        while True:
            if found := self._find(step):
                return found
            made = self._look(step)
            others = [other for other in self.others.values() if not other.left]
            if not others or waited > self.patience or time.monotonic() < self.retry:
                return None
            behind = [other for other in others if other.kept.stop <= step]
            # Only batches kept for every training, this one too: others would go and be made anew.
            stops = [self.stop, step + self.reach, *(other.kept.stop for other in others)]
            if not behind and self._make_one(range(step, min(stops)), made):
                continue
            # Either some are behind: left alone, they would make every batch again and never catch
            # up. Or another process is making this batch, and nothing else can be made meanwhile.
            for other in behind:
                other.wait()
            waited += 0.0 if behind else PAUSE
            time.sleep(PAUSE)

    def _look(self, step: int) -> set[int]:
        """Looks how far the others are, removes batches kept for nobody, and returns the rest."""
        if time.monotonic() >= self.looked + PULSE:
            living_in(self.folder)
            remove_dead(self.folder)  # what a killed process had begun to write
            self.looked = time.monotonic()
        made, known = set(), {}
        for name in os.listdir(self.folder):
            if name.isdecimal():
                made.add(int(name))
            elif name.startswith(READER) and name != self.reader.name:
                with suppress(FileNotFoundError):  # it has ended meanwhile
                    at, reach = hear(self.folder / name)
                    known[name] = self.others.get(name, Other(self.patience))
                    known[name].see(at, reach, step)
        self.others = known
        kept = [range(step - self.reach if known else step, step + self.reach)]
        kept += [other.kept for other in known.values()]
        unwanted = {number for number in made if not any(number in steps for steps in kept)}
        for number in unwanted:
            self._place(number).unlink(missing_ok=True)
        return made - unwanted

    def _make_one(self, steps: range, made: set[int]) -> bool:
        """Makes the first of these that is not there and that no other process makes, if any."""
        for step in steps:
            if step not in made:
                with claimed(self.folder, step) as free:
                    if free:
                        if not self._place(step).exists():  # it may have been made since
                            self._make(step)
                        return True
        return False

    def _make(self, step: int) -> None:
        *tensors, bad = self.batches[step]
        named = {name: tensor.contiguous() for name, tensor in zip(TENSORS, tensors, strict=True)}
        beside = name_beside(self._place(step))
        try:
            save_file(named, beside, {"bad": json.dumps(bad)})
            beside.replace(self._place(step))
        except (OSError, SafetensorError):  # memory is full
            self.retry = time.monotonic() + RETRY
        finally:
            beside.unlink(missing_ok=True)

    def _find(self, step: int) -> Packed | None:
        """The batch in shared memory, if it was made. It is not copied."""
        with suppress(FileNotFoundError):
            file = self._place(step).open("rb")
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            places = [_place_in(file.tell(), **header[name]) for name in TENSORS]
            return Packed(Batch(*places, json.loads(header["__metadata__"]["bad"])), file)
        return None

    def _place(self, step: int) -> Path:
        return self.folder / str(step)


def iterate_shared(
    batches: TrainingBatches, steps: range, *, data: str, workers: int, pin: bool,
    timeout: float | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """loader.py's `iterate`; if memory can be shared, its loader processes share the batches with
    those of every training that sees the same ones meanwhile.

    Args:
        data: tells the images apart from all others that may be trained on here.
    """
    how = {"workers": workers, "pin": pin, "timeout": timeout}
    if not workers or not SHARED or _reckon_bytes(batches) < LEAST:
        yield from iterate(batches, steps, **how)
        return
    reach = AHEAD * workers + SPARE
    with sharing(batches, steps, data=data, reach=reach, timeout=timeout) as shared:
        yield from iterate(shared, steps, **how, ahead=AHEAD)


@contextmanager
def sharing(
    batches: TrainingBatches, steps: range, *, data: str, reach: int, timeout: float | None = None
) -> Iterator[Dataset]:
    """The batches as loader processes share them, or unchanged if no memory can be shared."""
    about = {"step": steps.start, "reach": reach, "size": _reckon_bytes(batches)}
    patience = PATIENCE if timeout is None else min(PATIENCE, timeout / 4)
    with joined(_key_of(batches, data), **about) as reader:
        if reader is None:
            yield batches
        else:
            yield SharedBatches(batches, reader, steps.stop, reach, patience)


def _place_in(start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Place:
    """The Place of a tensor in a safetensors file, by its header entry; data begin at `start`."""
    return Place(DTYPES[dtype], tuple(shape), start + data_offsets[0])


def _key_of(batches: TrainingBatches, data: str) -> str:
    """A hash of all that the batches depend on."""
    about = (data, batches.source.side, len(batches.source.images), batches.batch, batches.crop,
             batches.sides, batches.flip, batches.seed, batches.share, CODE)  # fmt: skip
    return hashlib.sha256(repr(about).encode(errors="surrogateescape")).hexdigest()[:32]


def _hash_code() -> str:
    """A hash of the code that makes pixels: another training may have begun before a change."""
    digest = hashlib.sha256(PIL.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        with suppress(OSError):
            digest.update(source.read_bytes())
    return digest.hexdigest()


CODE = _hash_code()


def _reckon_bytes(batches: TrainingBatches) -> int:
    """The bytes of a batch's pixels."""
    rows = rows_of(batches.batch, *batches.share)
    return (rows.stop - rows.start) * batches.crop**2 * 3
