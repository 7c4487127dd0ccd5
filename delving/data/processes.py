"""Loader processes: they make items ahead, are watched while waited for, and always end.

torch's DataLoader would do, except that it reports a dead process in the middle of anything (such
as writing a checkpoint), cannot tell what the process was doing, and leaves a hanging one behind.
"""

import atexit
import ctypes
import gc
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from delving.data import parcel
from delving.data.images import UndecodableImageError
from delving.signals import HEEDED

AHEAD = 2  # items that a process is given before the first of them is taken
GRACE = 2.0  # seconds that a process has to end by itself
TICK = 1.0  # seconds between two looks at the processes
IDLE = -1  # in place of a key, while no item is being made
HINTS = {signal.SIGKILL: " (was memory short?)"}


class LoaderError(RuntimeError):
    """A loader process died, hangs or failed; the message says what it was doing."""


class Dataset(Protocol):
    """What can be loaded: an item for every key, and a description of it for messages."""

    def __getitem__(self, key: int) -> Any: ...

    def describe(self, key: int) -> str: ...


@dataclass(frozen=True)
class Loader:
    """A loader process: keys go in and items come out through `pipe`; `at` is the key in work."""

    process: multiprocessing.Process
    pipe: Connection
    at: ctypes.c_longlong


@contextmanager
def started(dataset: Dataset, count: int) -> Iterator[list[Loader]]:
    """Starts loader processes; none is left when the context or the program ends."""
    loaders: list[Loader] = []
    # Otherwise a program that ends would wait for the processes it still has, and they for it.
    end = partial(_end, loaders, os.getpid())
    atexit.register(end)
    try:
        for _ in range(count):
            loaders.append(_start(dataset))
        yield loaders
    finally:
        end()
        atexit.unregister(end)


def take(
    dataset: Dataset,
    keys: range,
    loaders: list[Loader],
    *,
    timeout: float | None,
    ahead: int = AHEAD,
) -> Iterator[Any]:
    """The items of `keys` in order; the processes take turns, each given `ahead` keys in advance.

    Raises:
        LoaderError: a process died, gave nothing for `timeout` seconds, or failed.
        ValueError: one that the dataset raised in a process, with its message.
    """
    for loader in loaders:
        parcel.limit(loader.pipe, timeout)
    given = ahead * len(loaders)
    for number, key in enumerate(keys[:given]):
        _give(loaders[number % len(loaders)], key, dataset)
    for number, key in enumerate(keys):
        loader = loaders[number % len(loaders)]
        item = _receive(key, loader, loaders, dataset=dataset, timeout=timeout)
        if number + given < len(keys):
            _give(loader, keys[number + given], dataset)
        yield item


def _start(dataset: Dataset) -> Loader:
    try:
        ours, theirs = multiprocessing.Pipe()
        at = multiprocessing.RawValue(ctypes.c_longlong, IDLE)
        start = multiprocessing.get_context(start_method()).Process
        process = start(target=_work, args=(dataset, theirs, at), daemon=True)
        with _uncollected():
            process.start()
    except OSError as error:
        raise LoaderError(f"a loader process cannot be started: {error}") from error
    theirs.close()  # else the process's death would not close the pipe
    return Loader(process, ours, at)


def start_method() -> str:
    """How loader processes are started: forked on Linux, as Python did before 3.14, so that none
    has to import torch or be sent the decoded images; else as Python or the program chooses."""
    usual = multiprocessing.get_all_start_methods()[0]
    chosen = multiprocessing.get_start_method(allow_none=True) or usual  # may be set by being used
    return "fork" if chosen == usual == "forkserver" else chosen


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps a process that is forked meanwhile from collecting garbage: freeing there what belongs
    to the parent's GPU (a recorded step, memory that it copies from) would abort the process."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _end(loaders: list[Loader], owner: int) -> None:
    """Asks the processes to end and kills those that do not: they hold nothing to be saved."""
    if os.getpid() != owner:  # called in a process that was forked meanwhile
        return
    for loader in loaders:
        with suppress(OSError):
            loader.pipe.send(None)
        if not parcel.SHARED:
            loader.pipe.close()  # a process that is sending an item hears nothing else
    latest = time.monotonic() + GRACE
    for loader in loaders:
        loader.process.join(max(0.0, latest - time.monotonic()))
        loader.process.kill()
    while loaders:
        loader = loaders.pop()
        loader.process.join(GRACE)  # one stuck in the kernel (a dead network disk) ends later
        loader.pipe.close()


def _give(loader: Loader, key: int, dataset: Dataset) -> None:
    try:
        loader.pipe.send(key)
    except OSError as error:
        raise _loss(loader, dataset, error) from error


def _receive(
    key: int, loader: Loader, loaders: list[Loader], *, dataset: Dataset, timeout: float | None
) -> Any:
    by_sentinel = {other.process.sentinel: other for other in loaders}
    for seconds in _ticks(timeout):
        if not threading.main_thread().is_alive():  # the program's end waits for this thread
            raise LoaderError("the program ends")
        ready = wait([loader.pipe, *by_sentinel], seconds)
        if loader.pipe in ready:
            with suppress(BlockingIOError):  # the rest of the item does not come
                return _open(loader, dataset)
            break
        if ready:
            raise _loss(by_sentinel[ready[0]], dataset, None)
    loader.process.kill()
    raise LoaderError(
        f"a loader process (pid {loader.process.pid}) gave nothing for {timeout:g} s "
        f"(data.timeout) at {dataset.describe(key)}"
    )


def _ticks(timeout: float | None) -> Iterator[float]:
    """Waits in seconds, `timeout` in total. If the program is stopped (by Ctrl-Z), that time falls
    within a single wait, and so does not count."""
    left = math.inf if timeout is None else timeout
    while left > 0:
        yield min(left, TICK)
        left -= TICK


def _open(loader: Loader, dataset: Dataset) -> Any:
    try:
        made, item = parcel.receive(loader.pipe)
    except BlockingIOError:
        raise
    except (EOFError, OSError) as error:
        raise _loss(loader, dataset, error) from error
    if made:
        return item
    key, error = item
    if isinstance(error, ValueError):
        raise error
    raise LoaderError(f"{error} (in a loader process, at {dataset.describe(key)})")


def _loss(loader: Loader, dataset: Dataset, error: Exception | None) -> LoaderError:
    loader.process.join(GRACE)
    how = _ending(loader.process.exitcode, error)
    return LoaderError(
        f"a loader process (pid {loader.process.pid}) {how}{_work_of(loader, dataset)}"
    )


def _ending(code: int | None, error: Exception | None) -> str:
    if code is None:  # it lives: the fault is on this side, such as too many open files
        return f"cannot be heard: {error}"
    if code >= 0:
        return f"ended, exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}{HINTS.get(-code, '')}"


def _work_of(loader: Loader, dataset: Dataset) -> str:
    key = loader.at.value
    return "" if key == IDLE else f" at {dataset.describe(key)}"


# --- in the loader process ---
def _work(dataset: Dataset, pipe: Connection, at: ctypes.c_longlong) -> None:
    gc.freeze()  # everything inherited from the parent
    gc.enable()
    # A signal to the whole process group must not end the loaders before the state is saved.
    for number in HEEDED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # nobody listens any more
        while (key := pipe.recv()) is not None:
            at.value = key
            _answer(dataset, key, pipe)
            at.value = IDLE


def _answer(dataset: Dataset, key: int, pipe: Connection) -> None:
    try:
        parcel.send(pipe, True, dataset[key])
    except Exception as error:  # also if no memory is left for the item
        parcel.send(pipe, False, (key, _portable(error)))


def _portable(error: Exception) -> Exception:
    """An error that can be sent: not every kind can be rebuilt from its message."""
    if isinstance(error, UndecodableImageError):
        return UndecodableImageError(str(error))
    if isinstance(error, ValueError):
        return ValueError(str(error))
    text = str(error)
    return LoaderError(f"{type(error).__name__}{text and ': '}{text}")


def _leave_with_the_parent() -> None:
    """Ends this process soon after its parent, whatever it is doing."""
    parent, above = multiprocessing.parent_process(), os.getppid()
    while (
        parent.is_alive() and os.getppid() == above
    ):  # sibling processes may keep open the pipe that is_alive() watches
        parent.join(TICK)
    os._exit(1)
