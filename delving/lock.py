"""One process at a time works in a folder; what a dead one leaves holds nobody up.

The lock is the system's own, on the file `lock`; it ends with its process, however that ends. Not
every shared disk tells other machines of it, so the file's modification time is a sign of life, and
a key in the file decides between two that took it at once: the later one's key stays.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from delving.beside import lives, name_beside, remove_dead
from delving.record import FULL, DiskFullError, disk_full, remove_leftovers

BEAT = 5.0  # seconds between two signs of life
TRIES = 100  # at a folder that others make and remove meanwhile
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a link would make us write elsewhere
UNKNOWN_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class HeldError(ValueError):
    """Another process works in the folder."""


@contextmanager
def holding(folder: Path, beat: float = BEAT) -> Iterator[None]:
    """Holds a folder, which is made if missing and removed if it stays empty. A process must not
    hold the same folder twice at a time, which the system's lock does not prevent.

    Raises:
        HeldError: another process holds it; names its pid, host and since when.
    """
    path = folder / "lock"
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        handle, key = _take(path, beat)
    except OSError:
        _remove_empty(new or [folder])
        raise
    over = threading.Event()
    args = (handle, path, over, beat, key)
    alive = threading.Thread(target=_show_life, args=args, daemon=True)
    try:
        alive.start()
        remove_dead(folder)
        yield
    finally:
        over.set()
        alive.join()
        if _is_at(handle, path) and not _taken_over(handle, key):
            path.unlink(missing_ok=True)
        os.close(handle)
        _remove_empty(new or [folder])


def clear_up(folder: Path) -> None:
    """Removes the lock and the unfinished files of a process that died when all was done there, so
    that no later command would take it up. Leaves them if somebody works there, or if nothing may
    be written."""
    if (folder / "lock").exists():
        with contextlib.suppress(HeldError, OSError), holding(folder):
            remove_leftovers(folder)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for place in folders:
            place.rmdir()


@contextmanager
def holding_when_free(
    folder: Path, tell: Callable[[str], None], pause: float = 0.5
) -> Iterator[None]:
    """Like `holding`, but waits until no other process holds the folder, which it `tell`s once; it
    looks every `pause` seconds."""
    told = False
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(holding(folder))
                break
            except HeldError as error:
                if not told:
                    tell(f"{error}; its end is waited for")
                told = True
                time.sleep(pause)
        yield


def _take(path: Path, beat: float) -> tuple[int, str]:
    """The locked file, and the key that it is signed with."""
    while True:
        handle, key = _open(path)
        try:
            known = _lock(handle, path)
            rivals = not key and _check_signs_of_life(handle, path, beat, known)
            # Whoever held it may have removed the file that we have just opened.
            if _is_at(handle, path):
                key = key or _sign(handle, path)
                if rivals:  # they have waited as long, and sign it now as well
                    time.sleep(beat / 2)
                if other := _taken_over(handle, key):
                    raise _held(path, other)
                return handle, key
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _open(path: Path) -> tuple[int, str]:
    """The open file and, if it was made here, the key it was made with, else ""; a missing folder
    is made too. The holder may remove both between any two calls of ours, which then fail; only a
    cause that lasts is raised."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return _open_once(path)
    return _open_once(path)


def _open_once(path: Path) -> tuple[int, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | NO_LINK), ""
    beside = name_beside(path)
    handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        key = _sign(handle, beside)
        _lock(handle, beside)
        os.link(beside, path)  # nobody sees it unsigned or unlocked
        return handle, key
    except BaseException as error:
        os.close(handle)
        if not isinstance(error, OSError) or isinstance(error, FileExistsError | DiskFullError):
            raise
    finally:
        beside.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644), ""  # a disk without hard links


def _is_at(handle: int, path: Path) -> bool:
    """Is the open file still the one at this path?"""
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(handle).st_ino == path.stat().st_ino
    return False


def _lock(handle: int, path: Path) -> bool:
    """Takes the system's lock; False if this disk has none. A record lock, since flock's would live
    on in loader processes after their parent was killed."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _held(path, _read_owner(handle)) from None
        if error.errno in UNKNOWN_HERE:
            return False
        raise
    return True


def _check_signs_of_life(handle: int, path: Path, beat: float, known: bool) -> bool:
    """Waits for a sign of life from an owner whom the system's lock does not show here; returns
    whether others, whom it does not show either, may have waited too."""
    owner, here = _read_owner(handle), socket.gethostname()
    if not owner or (owner["host"] == here and (known or owner["pid"] == os.getpid())):
        return False
    if owner["host"] == here and not lives(owner["pid"]):
        return True
    before = os.fstat(handle).st_mtime_ns
    for _ in range(12):  # as long as a sign takes to show on other machines
        time.sleep(beat / 4)
        if not path.exists():
            return True
        if os.fstat(handle).st_mtime_ns != before:
            raise _held(path, _read_owner(handle) or owner)
    return True


def _read_owner(handle: int) -> dict | None:
    """{pid, host, since, key} as signed; None if the file is empty or was tampered with."""
    with contextlib.suppress(ValueError, RecursionError):
        owner = json.loads(os.pread(handle, 4096, 0))
        kinds = {"pid": int, "host": str, "since": str}
        if isinstance(owner, dict) and all(isinstance(owner.get(k), t) for k, t in kinds.items()):
            return owner if owner["pid"] > 0 else None
    return None


def _taken_over(handle: int, key: str) -> dict | None:
    """Who has signed our file since, if anyone. It is read through the handle that we hold: closing
    another one of the same file would end the system's lock."""
    with contextlib.suppress(OSError):
        owner = _read_owner(handle)
        return owner if owner and owner.get("key") != key else None
    return None


def _sign(handle: int, path: Path) -> str:
    since, key = time.strftime("%Y-%m-%d %H:%M:%S"), uuid.uuid4().hex
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "key": key}
    data = json.dumps(owner).encode()
    os.ftruncate(handle, 0)
    try:
        os.pwrite(handle, data, 0)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise (disk_full(path.parent, len(data)) if error.errno in FULL else error) from None
    return key


def _held(path: Path, owner: dict | None) -> HeldError:
    who = "another process"
    if owner:
        who = f"process {owner['pid']} on {owner['host'][:80]!r} since {owner['since'][:40]!r}"
    return HeldError(f"{path.parent} is held by {who}: one process at a time works there")


def _show_life(handle: int, path: Path, over: threading.Event, beat: float, key: str) -> None:
    """Shows signs of life until `over`. If another process has taken the folder, because this one
    was suspended or cut off for some beats, ends this one, so that not both of them write."""
    while not over.wait(beat):
        if other := _taken_over(handle, key):
            told = f"{_held(path, other)}, and took it from this one, which showed no sign of life"
            print(f"delving: {told}", file=sys.stderr, flush=True)
            os._exit(1)
        with contextlib.suppress(OSError):
            os.utime(path)
