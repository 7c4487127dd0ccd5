"""Folders of generated images: written once, whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path

from delving import record
from delving.beside import folder_beside
from delving.data.images import read_file
from delving.words import first_line, shown


def write_once(root: Path, marker: str, asked: dict, write: Callable[[Path], None]) -> Path:
    """The folder `root`, filled by `write` unless the same request filled it before.

    Args:
        marker: the file that says what was asked for; written last, so that only a complete folder
            has it.

    Raises:
        ValueError: the folder holds anything else.
        DiskFullError: there is no room for it.
    """
    root = Path(root)
    if _holds(root, marker, asked):
        return root
    try:
        with folder_beside(root) as scratch:
            write(scratch)
            (scratch / marker).write_text(json.dumps(asked) + "\n", encoding="utf-8")
            scratch.rename(root)
    except OSError as error:
        if _holds(root, marker, asked):  # another process has finished it meanwhile
            return root
        if error.errno in record.FULL:
            told = f"the disk of {root.parent} is full: there was no room for {root.name}"
            raise record.DiskFullError(told) from error
        raise
    return root


def _holds(root: Path, marker: str, asked: dict) -> bool:
    """Whether root holds what was asked for; ValueError if it holds anything else."""
    if not root.exists() or not any(root.iterdir()):
        return False
    there = (root / marker).exists()
    found = _read(root / marker) if there else f"no finished {Path(marker).stem} set"
    if found != asked:
        raise ValueError(
            f"{root} holds {shown(found, most=200)}, asked for {asked}: remove it or choose another"
        )
    return True


def _read(marker: Path) -> object:
    try:
        return json.loads(read_file(marker))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{marker} is damaged: {first_line(error)}") from error
