"""One process at a time works in a folder; what a dead one left holds nobody up.

The lock is the system's own on the file `lock`, which ends with its process, however that ends. Not
every shared disk tells other machines of it, hence the file's time of writing as a sign of life.
"""

import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from delving.record import FULL, disk_full

try:
    import fcntl
except ImportError:  # a system without it: signs of life alone
    fcntl = None

BEAT = 5.0  # seconds between two signs of life
TRIES = 100  # at a folder that others make and remove meanwhile
UNKNOWN_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class HeldError(ValueError):
    """Another process works in the folder."""


@contextmanager
def holding(folder: Path, beat: float = BEAT) -> Iterator[None]:
    """Holds a folder, which is made where it is not there and removed where it stays empty.

    Raises:
        HeldError: another process holds it; names its pid, host and since when.
    """
    path = folder / "lock"
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        handle = _take(path, beat)
    except OSError:
        _remove_empty(new or [folder])
        raise
    over = threading.Event()
    alive = threading.Thread(target=_show_life, args=(path, over, beat), daemon=True)
    try:
        alive.start()
        yield
    finally:
        over.set()
        alive.join()
        path.unlink(missing_ok=True)  # while it is still ours
        os.close(handle)
        _remove_empty(new or [folder])


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for place in folders:
            place.rmdir()


@contextmanager
def holding_when_free(
    folder: Path, tell: Callable[[str], None], pause: float = 0.5
) -> Iterator[None]:
    """The same, once no other process holds it, of which it tells; looked at every `pause`
    seconds."""
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


def _take(path: Path, beat: float) -> int:
    """The locked and signed file."""
    while True:
        handle = _open(path)
        try:
            known = _lock(handle, path)
            _check_signs_of_life(handle, path, beat, known)
            # Whoever held it may have removed the file that we have just opened.
            if _is_at(handle, path):
                _sign(handle, path)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _open(path: Path) -> int:
    """The file, made with its folder where either is not there. Who holds it may remove both
    between any two calls of ours, which then fail; a cause that lasts is raised at last."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return _open_once(path)
    return _open_once(path)


def _open_once(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _is_at(handle: int, path: Path) -> bool:
    """Is the open file still the one at this path?"""
    with contextlib.suppress(FileNotFoundError):
        return os.fstat(handle).st_ino == path.stat().st_ino
    return False


def _lock(handle: int, path: Path) -> bool:
    """Takes the system's lock; False where this disk has none. A record lock, since one of flock
    would live on in loader processes after a kill of their parent."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _held(path, _read_owner(handle)) from None
        if error.errno in UNKNOWN_HERE:
            return False
        raise
    return True


def _check_signs_of_life(handle: int, path: Path, beat: float, known: bool) -> None:
    """Waits for a sign of life of an owner of whom the system's lock says nothing here."""
    owner = _read_owner(handle)
    if not owner or (owner["pid"] == os.getpid() and owner["host"] == socket.gethostname()):
        return
    if owner["host"] == socket.gethostname() and (known or not _lives(owner["pid"])):
        return
    before = os.fstat(handle).st_mtime_ns
    for _ in range(12):  # the time that other machines' disks take to tell
        time.sleep(beat / 4)
        if not path.exists():
            return
        if os.fstat(handle).st_mtime_ns != before:
            raise _held(path, owner)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _read_owner(handle: int) -> dict | None:
    """{pid, host, since} as signed; None of a file that is empty or was tampered with."""
    with contextlib.suppress(ValueError, RecursionError):
        owner = json.loads(os.pread(handle, 4096, 0))
        kinds = {"pid": int, "host": str, "since": str}
        if isinstance(owner, dict) and all(isinstance(owner.get(k), t) for k, t in kinds.items()):
            return owner if owner["pid"] > 0 else None
    return None


def _sign(handle: int, path: Path) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    data = json.dumps(owner).encode()
    os.ftruncate(handle, 0)
    try:
        os.pwrite(handle, data, 0)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise (disk_full(path.parent, len(data)) if error.errno in FULL else error) from None


def _held(path: Path, owner: dict | None) -> HeldError:
    who = "another process"
    if owner:
        who = f"process {owner['pid']} on {owner['host'][:80]!r} since {owner['since'][:40]!r}"
    return HeldError(f"{path.parent} is held by {who}: one process at a time works there")


def _show_life(path: Path, over: threading.Event, beat: float) -> None:
    while not over.wait(beat):
        with contextlib.suppress(OSError):
            os.utime(path)
