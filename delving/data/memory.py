"""Folders in shared memory, where trainings that see the same batches meet.

A user has one folder there, and in it one folder per key. Each training of that key has a file in
it that it keeps locked: the lock ends with the training and its loader processes, however they end.
"""

import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from delving.beside import name_beside

MEMORY = Path("/dev/shm")  # files there are memory that all processes see; only Linux has it
ROOM = 0.5  # share of the free memory that the batches kept for a training may take
READER, CLAIMS, LOCK = "reader-", "claims", "lock"
NUMBER = 8  # bytes of each number in a training's file
PATIENCE, PAUSE = 1.0, 0.01  # seconds to wait for another to join or leave, and between tries


@contextmanager
def joined(key: str, *, step: int, reach: int, size: int) -> Iterator[Path | None]:
    """A training's file in the folder of its key, for as long as the context lasts; None if no
    memory can be shared.

    Args:
        step: the first that the training will ask for.
        reach: batches are kept for it from so many steps before its latest to as many after.
        size: bytes of a batch.
    """
    reader = None
    with suppress(OSError):
        reader, file = _join(key, step, reach, size)
    if reader is None:
        yield None
        return
    try:
        yield reader
    finally:
        file.close()
        with suppress(OSError):
            reader.unlink(missing_ok=True)  # another may have found it unlocked
            with _alone(reader.parents[1]):
                _remove_unread(reader.parent)


def living_in(folder: Path) -> list[Path]:
    """The files of the living trainings in a folder; those of dead ones are removed."""
    found = []
    for path in folder.glob(f"{READER}*"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            if _try_lock(file):
                path.unlink(missing_ok=True)
            else:
                found.append(path)
    return found


def tell(reader: Path, step: int, reach: int) -> None:
    """Writes what `hear` reads into a training's existing file."""
    with reader.open("r+b", buffering=0) as file:
        _write(file, step, reach)


def hear(reader: Path) -> tuple[int, int]:
    """The step that a training asked for last, and its reach, see `joined`."""
    data = reader.read_bytes()
    return int.from_bytes(data[:NUMBER]), int.from_bytes(data[NUMBER:])


@contextmanager
def claimed(folder: Path, step: int) -> Iterator[bool]:
    """Keeps other processes from making a step's batch; False if one is making it already. The
    system locks a byte of a file, one for each step; the lock ends with its process."""
    with (folder / CLAIMS).open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, step)
        except BlockingIOError:
            yield False
        else:
            yield True


def _join(key: str, step: int, reach: int, size: int) -> tuple[Path, BinaryIO]:
    """The training's file, and the handle that locks it; OSError if no memory can be shared."""
    base = _own_folder()
    if 2 * reach * size > ROOM * shutil.disk_usage(base).free:
        raise OSError(errno.ENOSPC, "no room to share", str(base))
    with _alone(base):
        for folder in base.iterdir():
            if folder.is_dir():
                _remove_unread(folder)  # of trainings that were killed
        folder = base / key
        folder.mkdir(exist_ok=True)
        (folder / CLAIMS).touch()
        reader = folder / f"{READER}{uuid.uuid4().hex}"
        beside = name_beside(reader)
        file = beside.open("x+b", buffering=0)
        # Not a record lock, which ends when its process closes any handle of the file.
        fcntl.flock(file, fcntl.LOCK_EX)
        _write(file, step, reach)
        beside.rename(reader)  # nobody sees it unlocked
    return reader, file


def _write(file: BinaryIO, step: int, reach: int) -> None:
    file.write(step.to_bytes(NUMBER) + reach.to_bytes(NUMBER))


def _own_folder() -> Path:
    """The user's folder; OSError if it is not theirs alone: others could put anything there."""
    folder = MEMORY / f"delving-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(folder)
    return folder


@contextmanager
def _alone(base: Path) -> Iterator[None]:
    """Keeps others from joining or leaving meanwhile. TimeoutError if another is doing so and does
    not finish, perhaps because it was stopped midway."""
    with (base / LOCK).open("wb") as file:
        until = time.monotonic() + PATIENCE
        while not _try_lock(file):
            if time.monotonic() >= until:
                raise TimeoutError(base)
            time.sleep(PAUSE)
        yield


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unread(folder: Path) -> None:
    if not living_in(folder):
        shutil.rmtree(folder, ignore_errors=True)
