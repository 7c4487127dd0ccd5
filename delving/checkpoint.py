"""Checkpoints: one is always whole, whatever ends the process; damage is found and named.

`checkpoint` is the newest, `checkpoint.previous` the one before it. A new one is written as
`checkpoint.new`, read back and compared with its manifest, and only then takes its place.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

from delving.record import (
    DiskFullError,
    disk_full,
    parse_json,
    read_keys,
    write_bytes,
    write_json,
)

CURRENT, NEW, PREVIOUS = "checkpoint", "checkpoint.new", "checkpoint.previous"
NAMES = (NEW, CURRENT, PREVIOUS)  # the newest first
WEIGHTS = "model.safetensors"
DAMAGED = "checkpoint.damaged"  # set aside, for whoever wants to know why
REMOVED = "checkpoint.removed"  # half of one that a kill left may lie there
KEPT = 3  # checkpoints at once, while one is written

Loaded = tuple[dict[str, dict], dict]  # ({file: {name: tensor}}, state)


def save_checkpoint(folder: Path, tensors: dict[str, dict], state: dict) -> dict[str, str]:
    """Writes {file: {name: tensor}} and `state` with a manifest of their hashes, which it returns.

    The checkpoint before it stays as `checkpoint.previous`, and the one before that is removed once
    the new one has been read back.

    Raises:
        OSError: the disk is full, and says how many bytes are missing, or does not give back what
            was written; earlier checkpoints are left as they were.
    """
    from safetensors.torch import save

    contents = {f"{name}.safetensors": save(parts) for name, parts in tensors.items()}
    contents["state.json"] = json.dumps(state).encode()
    shutil.rmtree(folder / NEW, ignore_errors=True)
    try:
        hashes = _write_new(folder / NEW, contents)
    except OSError as error:
        shutil.rmtree(folder / NEW, ignore_errors=True)
        if isinstance(error, DiskFullError):
            need = sum(map(len, contents.values()))
            raise disk_full(folder, need, "the checkpoints before it are intact") from error
        raise
    fault = find_fault(folder / NEW)
    if fault:
        raise OSError(f"{fault}, just after it was written: is the disk sound?")
    _promote(folder)
    return hashes


def _write_new(new: Path, contents: dict[str, bytes]) -> dict[str, str]:
    for name, data in contents.items():
        write_bytes(new / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write_json(new / "manifest.json", hashes)
    _sync(new)
    return hashes


def _sync(folder: Path) -> None:
    """Makes renames inside a folder survive a loss of power, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _promote(folder: Path) -> None:
    """Makes a whole `checkpoint.new` the newest; `settle` repairs what a kill in between leaves."""
    if (folder / CURRENT).exists():
        _remove(folder / PREVIOUS)
        os.replace(folder / CURRENT, folder / PREVIOUS)
    os.replace(folder / NEW, folder / CURRENT)
    _sync(folder)


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint under another name: the half that a kill leaves would pass for a damaged
    one."""
    removed = checkpoint.with_name(REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    if checkpoint.is_dir():
        os.replace(checkpoint, removed)
        shutil.rmtree(removed, ignore_errors=True)


def check_room(folder: Path, tensors: int, beside: int) -> None:
    """Raises OSError if the disk cannot hold the checkpoints of a run that is about to start.

    Args:
        tensors: bytes of one checkpoint.
        beside: bytes of everything else that the run will write.
    """
    there = sum((folder / name).is_dir() for name in (CURRENT, PREVIOUS))
    need = (KEPT - there) * tensors + beside
    if shutil.disk_usage(folder).free < need:
        raise disk_full(folder, need, "nothing was started")


def drop_previous(folder: Path) -> None:
    """Removes previous and damaged checkpoints: a finished run needs only its last one."""
    for name in (PREVIOUS, DAMAGED):
        _remove(folder / name)


def settle(folder: Path) -> list[str]:
    """Puts in order what a kill or a bad disk left, before a run goes on; returns what it found and
    did.

    A whole `checkpoint.new` becomes the newest. A damaged checkpoint is set aside if there is a
    whole one, which it would otherwise push out.
    """
    shutil.rmtree(folder / REMOVED, ignore_errors=True)
    faults = {name: find_fault(folder / name) for name in NAMES if (folder / name).is_dir()}
    if faults.get(NEW):
        shutil.rmtree(folder / NEW)  # cut off while it was written
        del faults[NEW]
    whole = [name for name, fault in faults.items() if not fault]
    if not whole:  # as load_checkpoint will say
        return []
    told = []
    for name, fault in faults.items():
        if fault:
            shutil.rmtree(folder / DAMAGED, ignore_errors=True)
            os.replace(folder / name, folder / DAMAGED)
            used = "the one before it is used" if whole == [PREVIOUS] else "the newest is whole"
            told.append(f"{fault}; {used}")
    if NEW in whole:
        _promote(folder)
    elif CURRENT not in whole:
        os.replace(folder / PREVIOUS, folder / CURRENT)
    return told


def weights_hash(folder: Path) -> str | None:
    """The hash of the newest checkpoint's weights, by its manifest; None if no manifest tells."""
    for name in NAMES:
        with contextlib.suppress(ValueError, OSError):
            listed = {path.name: digest for path, digest in _listed(folder / name)}
            return listed.get(WEIGHTS)
    return None


def load_checkpoint(folder: Path) -> Loaded | None:
    """The newest whole checkpoint as ({file: {name: tensor}}, state); None if there is none.

    The state has the hash of the weights' file under `weights`. A training may save in the same
    folder meanwhile.

    Raises:
        ValueError: there are checkpoints, but all are damaged; names the fault of each.
    """
    faults: list[str] = []
    for patience in (0.05, 0.2, 0):  # folders change places while a training saves
        faults = []
        for name in NAMES:
            if (folder / name).is_dir():
                try:
                    return _read(folder / name)
                except (ValueError, FileNotFoundError) as error:
                    faults.append(str(error))
                except OSError as error:
                    faults.append(_unreadable(folder / name, error))
        time.sleep(patience if faults else 0)
    if faults and faults != [f"{folder / NEW}: no manifest.json"]:
        told = "; ".join(faults)
        raise ValueError(f"no whole checkpoint: {told}. Move {folder} away to begin anew")
    return None  # no checkpoint, or the very first was cut off


BAD_DISK = (errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO))


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest, if anything."""
    try:
        for path, digest in _listed(checkpoint):
            with open(path, "rb") as file:
                _compare(path, hashlib.file_digest(file, "sha256").hexdigest(), digest)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    except OSError as error:
        return _unreadable(checkpoint, error)
    return None


def _unreadable(checkpoint: Path, error: OSError) -> str:
    """The fault, if the disk is bad. Other errors, such as a network's or missing permission, pass
    or can be mended: they are raised, and nothing is set aside."""
    if error.errno not in BAD_DISK:
        raise error
    return f"{error.filename or checkpoint} cannot be read: {error.strerror or error}"


def _listed(checkpoint: Path) -> list[tuple[Path, str]]:
    """The manifest's files and hashes; ValueError if it is no manifest or lists a missing file."""
    manifest = checkpoint / "manifest.json"
    if not manifest.is_file():
        raise ValueError(f"{checkpoint}: no manifest.json")
    try:
        hashes = read_keys(manifest)
    except ValueError:
        raise ValueError(f"{manifest} is damaged") from None
    strange = [n for n in hashes if n != "state.json" and not re.fullmatch(r"\w+\.safetensors", n)]
    if strange or "state.json" not in hashes:
        what = f"it lists {strange[0]!r}" if strange else "it does not list state.json"
        raise ValueError(f"{manifest} is damaged: {what}")
    lost = [name for name in hashes if not (checkpoint / name).is_file()]
    if lost:
        raise ValueError(f"{checkpoint / lost[0]} is missing, though manifest.json lists it")
    return [(checkpoint / name, digest) for name, digest in hashes.items()]


def _compare(path: Path, found: str, digest: str) -> None:
    if found != digest:
        raise ValueError(f"{path} is damaged: its hash is not the manifest's")


def _read(checkpoint: Path) -> Loaded:
    """Reads each file once, so that what was hashed is what is used."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    tensors, state, listed = {}, {}, _listed(checkpoint)
    for path, digest in listed:
        data = path.read_bytes()
        _compare(path, hashlib.sha256(data).hexdigest(), digest)
        if path.suffix == ".json":
            state = parse_json(data, path)
            continue
        try:
            tensors[path.stem] = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no file of tensors: {error}") from error
    if isinstance(state, dict):  # else its reader will say so
        state["weights"] = next((digest for path, digest in listed if path.name == WEIGHTS), None)
    return tensors, state
