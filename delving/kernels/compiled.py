"""Compiles the C++ sources of this folder, once for each machine, by its own compiler."""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from delving.beside import folder_beside
from delving.disk import check_writable
from delving.words import shown

FOLDER = Path(__file__).parent
# No fused multiply-add, so that results are those of the plain forms.
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-ffp-contract=off")
# Tried in this order. OpenMP calls use the library that torch has loaded, and so its threads.
TUNED = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
SECONDS = 240  # that a compiler may take: a busy machine takes one minute
DAY = 24 * 60 * 60.0  # seconds for which what failed is not tried again
LATE, UNLOADED = f"took more than {SECONDS} s", "what was compiled does not load"
LASTING = (LATE, UNLOADED)  # how the faults begin that no other flags would mend
# Said by compilers where the same may succeed a minute later.
PASSING = re.compile(
    "killed|signal terminated|(due to|with) signal|out of memory|allocate memory|bad_alloc|memory "
    "exhausted|no space left|quota exceeded|temporarily unavailable|too many open files|read-only",
    re.IGNORECASE,
)
FAULTS: dict[str, str] = {}  # by source: why the last failed attempt to compile or load it did


class RefusedError(Exception):
    """A source does not compile with these flags, or not to a library that loads."""


@dataclass(frozen=True)
class Build:
    """A source, and how it is compiled and linked."""

    source: Path
    flags: Sequence[str]
    links: Sequence[str]

    @cached_property
    def library(self) -> Path:
        """Where the library lies once it is made; OSError if there is no home. The compiler's path
        is no part of its name, since what is there serves where no compiler is."""
        text = self.source.read_text(encoding="utf-8")
        known = [text, *self.flags, *self.links, _command(), _processor()]
        return _folder() / f"{_hash(chr(10).join(known).encode())[:16]}.so"


def compile_and_load(
    source: str, *, links: Sequence[str] = (), tuned: Sequence[Sequence[str]] = TUNED
) -> ctypes.CDLL | None:
    """A source's library; None if there is no compiler, or none that compiles it.

    Args:
        links: what it is linked with, `-l...`.
        tuned: sets of further flags; the first one that works is used.
    """
    builds = _builds(source, links, tuned)
    try:
        return _first(builds, _load)
    except (RefusedError, OSError, ValueError) as error:
        FAULTS[source] = shown(error, most=400)
    return next((found for build in builds if (found := _kept(build)) is not None), None)


def is_due(
    source: str, *, links: Sequence[str] = (), tuned: Sequence[Sequence[str]] = TUNED
) -> bool:
    """Whether compile_and_load would compile now, or wait for another process that does."""
    with contextlib.suppress(RefusedError, OSError, ValueError):
        builds = _builds(source, links, tuned)
        return _first(builds, lambda build: _look_for(build) is None and bool(_prepare(build)))
    return False


def forget_failures() -> None:
    """What failed is tried again from now on."""
    with contextlib.suppress(OSError):
        for failed in _folder().glob("*.failed"):
            failed.unlink(missing_ok=True)


def _builds(source: str, links: Sequence[str], tuned: Sequence[Sequence[str]]) -> list[Build]:
    return [Build(FOLDER / source, [*FLAGS, *tuning], links) for tuning in tuned]


def _first(builds: Sequence[Build], do: Callable[[Build], Any]) -> Any:
    """What `do` returns of the first build that it does not refuse.

    Raises:
        RefusedError: it refuses all.
        OSError, ValueError: flags are not what is in the way, so that trying others is in vain.
    """
    for build in builds:
        try:
            return do(build)
        except RefusedError as error:
            fault = error
            if str(error).startswith(LASTING):
                break
    raise fault


def _load(build: Build) -> ctypes.CDLL:
    """Loads a library. A kept one that fails to load, because what it was linked with is gone, is
    made anew."""
    if (found := _look_for(build)) is not None:
        return found
    compiler = _prepare(build)
    with _alone(build.library.with_suffix(".lock")):
        found = _look_for(build)  # another process may have made it meanwhile
        return _make(build, compiler) if found is None else found


def _prepare(build: Build) -> list[str]:
    """The compiler, and makes the folder of libraries. OSError or ValueError if there is none, or
    if no library could be written or loaded there."""
    compiler, folder = _compiler(), build.library.parent
    try:
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):
            raise ValueError(f"{folder} is on a disk that is mounted noexec")
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; XDG_CACHE_HOME=... gives another place") from error
    return compiler


def _look_for(build: Build) -> ctypes.CDLL | None:
    """The kept library; None if it is to be made. RefusedError if that failed within a day."""
    found, failed = _kept(build), build.library.with_suffix(".failed")
    with contextlib.suppress(OSError):
        if found is None and time.time() - failed.stat().st_mtime < DAY:
            raise RefusedError(failed.read_text(encoding="utf-8", errors="replace"))
    return found


def _kept(build: Build) -> ctypes.CDLL | None:
    """The library that was made earlier; None if there is none, or none that loads."""
    try:
        return ctypes.CDLL(str(build.library)) if _is_whole(build.library) else None
    except OSError:
        return None


def _make(build: Build, compiler: list[str]) -> ctypes.CDLL:
    """Compiles and loads a library, and keeps it, or the fault if it would be the same again."""
    library = build.library
    try:
        with folder_beside(library) as scratch:
            _compile(build, compiler, scratch)
            found = _try_to_load(scratch / "made.so")
            for suffix in (".so", ".sha256"):
                os.replace((scratch / "made").with_suffix(suffix), library.with_suffix(suffix))
            return found
    except RefusedError as error:
        with contextlib.suppress(OSError):
            library.with_suffix(".failed").write_text(str(error), encoding="utf-8")
        raise


def _try_to_load(made: Path) -> ctypes.CDLL:
    """Raises RefusedError if it fails. Without a symbol, such as OpenMP's, other flags may do."""
    try:
        return ctypes.CDLL(str(made))
    except OSError as error:
        fault = str(error).removeprefix(f"{made}: ")
        raise RefusedError(fault if "symbol" in fault else f"{UNLOADED}: {fault}") from error


def _command() -> str:
    return os.environ.get("CXX") or "c++"


def _compiler() -> list[str]:
    """The command in CXX, split into words, such as `ccache g++`; by default c++."""
    first, *words = shlex.split(_command()) or ["c++"]
    found = shutil.which(first)
    if found is None:
        raise FileNotFoundError(f"no C++ compiler ({first})")
    return [found, *words]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process at a time compile the same: others wait, but no longer than that may take,
    since the first may be suspended. The lock ends with its process. On a disk without locks
    nobody waits."""
    with open(path, "a", encoding="utf-8") as file:
        latest = time.monotonic() + 2 * SECONDS
        while _is_taken(file) and time.monotonic() < latest:
            time.sleep(0.1)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _is_taken(file: IO) -> bool:
    """Takes a file's lock, unless another process has it, or another thread."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def _compile(build: Build, compiler: list[str], scratch: Path) -> None:
    # Called where the user is: CXX may name files from there. Linked without OpenMP's own library:
    # a second one would have threads of its own.
    compiled, made = str(scratch / "made.o"), scratch / "made.so"
    _run([*compiler, *build.flags, "-c", str(build.source), "-o", compiled])
    _run([*compiler, "-shared", compiled, *build.links, "-o", str(made)])
    if not made.exists():
        raise RefusedError(f"{compiler[0]} makes no file")
    made.with_suffix(".sha256").write_text(_hash(made.read_bytes()), encoding="utf-8")


def _run(words: list[str]) -> None:
    """Runs a compiler.

    Raises:
        RefusedError: it fails, or takes too long.
        OSError: it cannot be run, or fails for want of memory or disk, or by a signal.
    """
    about = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    english = os.environ | {"LC_ALL": "C"}
    with subprocess.Popen(words, **about, env=english, start_new_session=True) as process:
        try:
            told = process.communicate(timeout=SECONDS)[1].decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            raise RefusedError(LATE) from None
        finally:  # of a compiler that is left at a signal too, the processes that it has started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if code := process.returncode:
        passing = code < 0 or PASSING.search(told)
        raise (OSError if passing else RefusedError)(_tell(told) or f"exit status {code}")


def _tell(told: str) -> str:
    """What a compiler says of why it fails, in one line; "" if it says nothing."""
    lines = told.splitlines()
    faults = [line for line in lines if "error" in line.lower()] or lines
    return shown(faults[0], most=160) if faults else ""


def _is_whole(library: Path) -> bool:
    """Whether a library is complete: loading a truncated one would crash the program."""
    try:
        told = library.with_suffix(".sha256").read_text(encoding="utf-8")
        return told == _hash(library.read_bytes())
    except (OSError, ValueError):
        return False


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:  # a relative one counts as none, by the XDG Base Directory Specification
        return (base if base.is_absolute() else Path.home() / ".cache") / "delving"
    except RuntimeError as error:
        raise FileNotFoundError("no home") from error


def _processor() -> str:
    """What `native` means on this machine: several kinds of machines may share a disk."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), platform.processor(), *dict.fromkeys(told)])
