"""Checks that folders can be written before anything is begun; finds a place for caches."""

import atexit
import contextlib
import logging
import os
import shutil
import stat
import tempfile
from pathlib import Path

NAME = "x" * 100  # as long as our files' names get


def check_writable(folder: Path) -> None:
    """Checks that files can be written in a folder, which need not exist; leaves nothing behind.

    Raises:
        ValueError: names the folder, and what stands in the way.
    """
    try:
        _try_to_write(nearest_folder(folder / NAME))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{folder} cannot be written: {why}") from error


def find_target(path: Path) -> Path:
    """The file to write when `path` is asked for: of a link, its target.

    Raises:
        ValueError: `path` is a folder, device or pipe, which a file would replace; or its folder
            cannot be written.
    """
    try:
        target = path.resolve() if path.is_symlink() else path
        # Not exists(): from Python 3.14 on it has no fault to tell.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not stat.S_ISREG(path.stat().st_mode):
                raise ValueError(f"{path} is no plain file")
    except (OSError, RuntimeError) as error:  # a link to itself
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path} cannot be written: {why}") from error
    check_writable(target.parent)
    return target


def _try_to_write(folder: Path) -> None:
    # An attempt, since permissions show neither a read-only disk nor /proc, and do not bind root.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder.absolute()} takes no files ({error.strerror})") from error


def nearest_folder(file: Path) -> Path:
    """The nearest existing folder above a file, or the file itself if it is a folder.

    Raises:
        OSError, ValueError: the path is too long, a link to nothing, or below what is no folder.
    """
    for path in (file, *file.parents):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if path.is_dir():
            return path
        kind = "a link to nothing" if path.is_symlink() and not path.exists() else "no folder"
        raise ValueError(f"{path} is {kind}")
    raise ValueError("there is nothing above it")


def settle_caches() -> None:
    """Gives matplotlib a temporary folder if it cannot write its settings and caches, about which
    it would warn on every start; nor does it tell that it fills them, where that takes long. Call
    before it is imported; child processes share the folder."""
    try:
        for folder in _folders_of_matplotlib():
            check_writable(folder)
    except (RuntimeError, ValueError):
        with contextlib.suppress(OSError):  # no place at all: drawing will report it
            place = tempfile.mkdtemp(prefix="delving-matplotlib-")
            os.environ["MPLCONFIGDIR"] = place
            atexit.register(shutil.rmtree, place, ignore_errors=True)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def _folders_of_matplotlib() -> list[Path]:
    """Where it keeps settings and caches; RuntimeError if there is no home."""
    if os.environ.get("MPLCONFIGDIR"):
        return [Path(os.environ["MPLCONFIGDIR"])]
    bases = {"XDG_CONFIG_HOME": ".config", "XDG_CACHE_HOME": ".cache"}
    return [Path(os.environ.get(key) or Path.home() / usual) / "matplotlib"
            for key, usual in bases.items()]  # fmt: skip
