"""Compiles the C++ sources of this folder, once for each machine, by its own compiler."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from delving.beside import folder_beside
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
SECONDS = 120
FAULTS: dict[str, str] = {}  # by source: why the last failed attempt to compile or load it did


def compile_and_load(
    source: str, *, links: Sequence[str] = (), tuned: Sequence[Sequence[str]] = TUNED
) -> ctypes.CDLL | None:
    """A source's library; None if there is no compiler, or none that compiles it.

    Args:
        links: what it is linked with, `-l...`.
        tuned: sets of further flags; the first one that works is used.
    """
    for tuning in tuned:
        try:
            return _load(FOLDER / source, [*FLAGS, *tuning], links)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            FAULTS[source] = _tell(error)
    return None


def _tell(error: Exception) -> str:
    """Why a source could not be compiled, in one line."""
    told = getattr(error, "stderr", None)
    lines = told.decode("utf-8", "replace").splitlines() if told else []
    faults = [line for line in lines if "error" in line.lower()] or lines
    return shown(faults[0] if faults else error, most=160)


def _load(source: Path, flags: list[str], links: Sequence[str]) -> ctypes.CDLL:
    """Loads a library. A kept one that fails to load, because what it was linked with is gone, is
    made anew."""
    library, is_new = _compiled(source, flags, links)
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        library.unlink(missing_ok=True)
        library.with_suffix(".sha256").unlink(missing_ok=True)
        if is_new:
            raise
    return _load(source, flags, links)


def _compiled(source: Path, flags: list[str], links: Sequence[str]) -> tuple[Path, bool]:
    """The library's file, and whether it was made now because it was missing or damaged.

    Raises:
        OSError, SubprocessError: there is no compiler, it fails, or nothing can be written.
    """
    compiler = _compiler()
    known = [source.read_text(encoding="utf-8"), *flags, *links, *compiler, _processor()]
    library = _folder() / f"{_hash(chr(10).join(known).encode())[:16]}.so"
    is_new = not _is_whole(library)
    if is_new:
        with folder_beside(library) as scratch:
            _compile(compiler, flags, source, links, scratch)
            for suffix in (".so", ".sha256"):
                made = (scratch / "made").with_suffix(suffix)
                os.replace(made, library.with_suffix(suffix))
    return library, is_new


def _compiler() -> list[str]:
    """The command in CXX, split into words, such as `ccache g++`; by default c++."""
    first, *words = shlex.split(os.environ.get("CXX") or "") or ["c++"]
    found = shutil.which(first)
    if found is None:
        raise FileNotFoundError(f"no C++ compiler ({first})")
    return [found, *words]


def _compile(
    compiler: list[str], flags: list[str], source: Path, links: Sequence[str], scratch: Path
) -> None:
    # Linked without OpenMP's own library: a second one would have threads of its own.
    for words in ([*compiler, *flags, "-c", str(source), "-o", "made.o"],
                  [*compiler, "-shared", "made.o", *links, "-o", "made.so"]):  # fmt: skip
        subprocess.run(words, cwd=scratch, check=True, capture_output=True, timeout=SECONDS)
    of_library = _hash((scratch / "made.so").read_bytes())
    (scratch / "made.sha256").write_text(of_library, encoding="utf-8")


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
