"""Batches for trainings side by side that see the same images: decoded once for all of them.

Arms of one seed see the same views of the same images. Their loader processes leave the batches in
shared memory and divide the work: who is asked for a batch that another is making makes a later one
meanwhile. A training that is alone, or where no memory can be shared, loads as if this were not.
"""

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from delving.beside import name_beside, remove_dead
from delving.data.augment import rows_of
from delving.data.loader import Batch, TrainingBatches, iterate
from delving.data.parcel import SHARED, Packed, Place
from delving.data.processes import Dataset

try:
    import fcntl
except ImportError:  # a system without it has no MEMORY either
    fcntl = None

MEMORY = Path("/dev/shm")  # files there are memory that all processes see; only Linux has it
ROOM = 0.5  # of the memory that is free, for what is kept for a training
AHEAD = 4  # batches that a loader process is given: it delivers none while it makes another's
SPARE = 16  # steps that a training may be ahead of others besides
PATIENCE = 30.0  # seconds that a training waits for one behind it, before it goes on alone
PAUSE = 0.01  # seconds between two looks at it
OLD = 60.0  # seconds, after which a folder without readers is nobody's
TRIES = 10  # at a folder that another training removes meanwhile
TENSORS = Batch._fields[:3]
DTYPES = {"U8": torch.uint8, "I64": torch.int64, "F32": torch.float32}
NUMBER = 8  # bytes
READER, CLAIMS = "reader", "claims"


class NoRoomError(Exception):
    """No memory is left to share."""


@dataclass
class SharedBatches:
    """The batches of one training, some of them made by another one's loader processes.

    Attributes:
        batches: makes them; the other trainings' make the same.
        folder: in shared memory, of all trainings that see these batches.
        reader: this one's file there, see ranges_in.
        stop: the step after its last.
        patience: seconds that one behind is waited for.
        left: readers that were waited for in vain, and are behind still.
        full: whether there was no room.
    """

    batches: TrainingBatches
    folder: Path
    reader: Path
    stop: int
    patience: float
    left: set[str] = field(default_factory=set)
    full: bool = False

    def __getitem__(self, step: int) -> Batch | Packed:
        # No fault of the memory stops a training; somebody may have removed the folder.
        with suppress(NoRoomError, OSError):
            self._tell(step)
            while not self.full and self._others(step):
                found = self._find(step)
                if found:
                    return found
                self._wait_for_those_behind(step)
                self._make_one(step)
        return self.batches[step]

    def describe(self, step: int) -> str:
        """The step and its first images, for messages."""
        return self.batches.describe(step)

    def _tell(self, step: int) -> None:
        handle = os.open(self.reader, os.O_WRONLY)
        try:
            os.pwrite(handle, step.to_bytes(NUMBER), 0)
        finally:
            os.close(handle)

    def _others(self, step: int) -> dict[str, range]:
        """What is kept for the other trainings, but for those left behind."""
        remove_dead(self.folder, READER)
        kept = {path.name: steps for path, steps in ranges_in(self.folder).items()
                if path != self.reader}  # fmt: skip
        self.left -= {name for name, steps in kept.items() if step < steps.stop}
        return {name: steps for name, steps in kept.items() if name not in self.left}

    def _wait_for_those_behind(self, step: int) -> None:
        """Until this step is among those kept for them: else they would make again what was made,
        and never catch up."""
        until = time.monotonic() + self.patience
        while behind := [n for n, steps in self._others(step).items() if steps.stop <= step]:
            if time.monotonic() >= until:
                self.left.update(behind)
            time.sleep(PAUSE)

    def _make_one(self, step: int) -> None:
        """Makes this batch, or while another process is at it the next one that nobody is at; where
        there is none of these, waits for it."""
        stops = [steps.stop for steps in self._others(step).values()]
        for number in range(step, min([self.stop, *stops])):
            if not self._place(number).exists():
                with self._claim(number, wait=False) as free:
                    if free:
                        self._make(number)
                        return
        with self._claim(step, wait=True):
            return

    def _make(self, step: int) -> None:
        place = self._place(step)
        if place.exists():  # since it was looked for
            return
        *tensors, bad = self.batches[step]
        named = {name: tensor.contiguous() for name, tensor in zip(TENSORS, tensors, strict=True)}
        beside = name_beside(place)
        try:
            save_file(named, beside, {"bad": json.dumps(bad)})
            beside.replace(place)
        except (OSError, SafetensorError) as error:
            self.full = True
            raise NoRoomError from error
        finally:
            beside.unlink(missing_ok=True)
        self._remove_unwanted()

    def _remove_unwanted(self) -> None:
        """Removes what is kept for nobody."""
        ranges = ranges_in(self.folder).values()
        for place in batches_in(self.folder):
            if not any(int(place.name) in steps for steps in ranges):
                place.unlink(missing_ok=True)

    def _find(self, step: int) -> Packed | None:
        """The batch where it lies, if it was made. It is not copied."""
        with suppress(FileNotFoundError):
            file = self._place(step).open("rb")
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            places = [_place_in(file.tell(), **header[name]) for name in TENSORS]
            return Packed(Batch(*places, json.loads(header["__metadata__"]["bad"])), file)
        return None

    def _place(self, step: int) -> Path:
        return self.folder / str(step)

    @contextmanager
    def _claim(self, step: int, *, wait: bool) -> Iterator[bool]:
        """Keeps others from making a batch; False where another is at it. It is the system's lock
        of a file's byte, one for each step, which ends with its process."""
        handle = os.open(self.folder / CLAIMS, os.O_RDWR)
        try:
            yield _lock(handle, step, wait=wait)
        finally:
            os.close(handle)


def iterate_shared(
    batches: TrainingBatches, steps: range, *, data: str, workers: int, pin: bool,
    timeout: float | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """loader.py's `iterate`, whose loader processes share the batches with those of every training
    that sees the same meanwhile, where memory can be shared.

    Args:
        data: tells the images apart from all others that may be trained on here.
    """
    how = {"workers": workers, "pin": pin, "timeout": timeout}
    if not workers:
        yield from iterate(batches, steps, **how)
        return
    reach = AHEAD * workers + SPARE
    with _sharing(batches, steps, data, reach=reach, timeout=timeout) as shared:
        yield from iterate(shared, steps, **how, ahead=AHEAD)


@contextmanager
def _sharing(
    batches: TrainingBatches, steps: range, data: str, *, reach: int, timeout: float | None = None
) -> Iterator[Dataset]:
    reader = SHARED and _join(_key_of(batches, data), _reckon_bytes(batches), steps.start, reach)
    if not reader:
        yield batches
        return
    patience = PATIENCE if timeout is None else min(PATIENCE, timeout / 4)
    try:
        yield SharedBatches(batches, reader.parent, reader, steps.stop, patience)
    finally:
        reader.unlink(missing_ok=True)
        _remove_unread(reader.parent)


def _place_in(start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Place:
    """Of a tensor in a file of safetensors, by its entry in the header, after which data start."""
    return Place(DTYPES[dtype], tuple(shape), start + data_offsets[0])


def ranges_in(folder: Path) -> dict[Path, range]:
    """The steps whose batches are kept for each training, by its file, which has two numbers: the
    step that it asked for last, and how far from it these reach."""
    found = {}
    for path in folder.iterdir():
        if path.name.startswith(f".{READER}."):
            with suppress(FileNotFoundError):  # it has ended meanwhile
                data = path.read_bytes()
                at, reach = int.from_bytes(data[:NUMBER]), int.from_bytes(data[NUMBER:])
                found[path] = range(at - reach, at + reach)
    return found


def batches_in(folder: Path) -> list[Path]:
    """The files of batches."""
    return [path for path in folder.iterdir() if path.name.isdecimal()]


def _key_of(batches: TrainingBatches, data: str) -> str:
    """Of all that pixels depend on, the code and its library too: a training may have begun before
    they were changed."""
    about = (data, batches.source.side, len(batches.source.images), batches.batch, batches.crop,
             batches.sides, batches.flip, batches.seed, batches.share, PIL.__version__)  # fmt: skip
    digest = hashlib.sha256(repr(about).encode(errors="surrogateescape"))
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _reckon_bytes(batches: TrainingBatches) -> int:
    """Of a batch's pixels."""
    rows = rows_of(batches.batch, *batches.share)
    return (rows.stop - rows.start) * batches.crop**2 * 3


def _join(key: str, size: int, step: int, reach: int) -> Path | None:
    """The file of a new reader; None where no memory can be shared, or not enough for batches of
    `size` bytes."""
    with suppress(OSError):
        base = _own_folder()
        if 2 * reach * size > ROOM * shutil.disk_usage(base).free:
            return None
        for folder in base.iterdir():
            if time.time() - folder.stat().st_mtime > OLD:
                _remove_unread(folder)
        for _ in range(TRIES):
            with suppress(FileNotFoundError):  # its last reader has just removed it
                return _add_reader(base / key, step, reach)
    return None


def _own_folder() -> Path:
    """OSError where there is none that is this user's alone: others could put anything there."""
    folder = MEMORY / f"delving-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(folder)
    return folder


def _add_reader(folder: Path, step: int, reach: int) -> Path:
    folder.mkdir(exist_ok=True)
    remove_dead(folder, READER)
    if not ranges_in(folder):
        for place in batches_in(folder):  # of trainings that were killed
            place.unlink(missing_ok=True)
    (folder / CLAIMS).touch()
    reader = name_beside(folder / READER)
    reader.write_bytes(step.to_bytes(NUMBER) + reach.to_bytes(NUMBER))
    return reader


def _remove_unread(folder: Path) -> None:
    with suppress(OSError):
        remove_dead(folder, READER)
        if not ranges_in(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _lock(handle: int, place: int, *, wait: bool) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
    except BlockingIOError:
        return False
    return True
