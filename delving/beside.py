"""Temporary places where files and folders are made before they appear whole, and their removal.

A place's name tells the machine and the process that made it, so whoever makes the same thing again
can remove what a killed process will never finish.
"""

import contextlib
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIGITS = 10, 10, 20  # of the machine, of the process, of the time


def name_beside(path: Path) -> Path:
    """The temporary path at which to make what shall appear at `path`. `remove_leftovers` of
    record.py knows its form."""
    parts = zip((_machine(), os.getpid(), time.time_ns()), DIGITS, strict=True)
    return path.with_name(f".{path.name}.{''.join(f'{part:0{n}}' for part, n in parts)}")


def remove_dead(folder: Path, name: str = "") -> None:
    """Removes what dead processes of this machine had begun to make in a folder, of one name or of
    all."""
    start = f".{name}." if name else "."
    with contextlib.suppress(OSError):
        for place in folder.iterdir():
            if place.name.startswith(start) and _is_dead(place.suffix[1:]):
                shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Makes a new folder, and its parents, in which to make what shall appear at a path; afterwards
    removes it with everything left in it."""
    remove_dead(path.parent, path.name)
    place = name_beside(path)
    try:
        place.mkdir(parents=True)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def lives(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _machine() -> int:
    """A number for this machine and PID namespace: containers may share a host name and a disk, but
    each has process numbers of its own."""
    numbers = ""
    with contextlib.suppress(OSError):  # not Linux
        numbers = os.readlink("/proc/self/ns/pid")
    return zlib.crc32(f"{socket.gethostname()} {numbers}".encode(errors="surrogateescape"))


def _is_dead(digits: str) -> bool:
    machine, pid = digits[: DIGITS[0]], digits[DIGITS[0] : -DIGITS[2]]
    whole = digits.isdecimal() and len(digits) == sum(DIGITS)
    return whole and int(machine) == _machine() and not lives(int(pid))
