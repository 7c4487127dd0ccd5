"""The run folder: the only thing between training and drawing.

config.yaml, env.json, log.jsonl (one line per event), checkpoint/, eval/, slopes.json, result.json.
Files appear whole or not at all: each is written beside its place and renamed.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delving.arrays import pack_arrays, read_arrays
from delving.beside import name_beside, remove_dead
from delving.words import likeliest

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, a limit on a file's size
MOST_JSON = 64 * 2**20  # bytes: no file of a run is a tenth of that
NUMBER = (int, float)
HUGE = 1e100  # more than is ever measured; sums of smaller numbers stay finite
# result.json: the contract's keys.
RESULT: dict[str, type | tuple[type, ...]] = {
    "run": str, "scale": str, "model": str, "act": str, "init": str, "seed": int,
    "epochs": NUMBER, "images_seen": int, "params": int, "multiply_adds": int,
    "train_loss": (int, float, type(None)), "status": str, "seconds": NUMBER,
    "images_per_second": NUMBER, "device": str, "eval": dict, "deviations": list,
}  # fmt: skip
STATUSES = ("converged", "stalled", "diverged")
SCORES = {"top1_err": NUMBER, "top5_err": NUMBER, "images": int}


def run_folder(output_root: str, scale: str, run: str) -> Path:
    return Path(output_root) / scale / "runs" / run


def find_run(text: str, output_root: str, scale: str = "*") -> Path:
    """A run by its folder or its name; ValueError names the runs there are."""
    path = Path(text)
    if os.path.isfile(path / "config.yaml"):  # no error if the place cannot be looked at
        path = Path(os.path.abspath(path))  # what lies above it counts
        own = re.search(rb"(?m)^scale: *(\w+)", (path / "config.yaml").read_bytes())
        if scale != "*" and own and own[1].decode() != scale:
            raise ValueError(f"{path} is a run of scale={own[1].decode()}, not of scale={scale}")
        return path
    folders = list_runs(output_root, scale=scale)
    found = [folder for folder in folders if folder.name == text]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"run {text!r} is ambiguous, say scale=...: {', '.join(map(str, found))}")
    meant = likeliest(text, [folder.name for folder in folders])
    known = ", ".join(str(folder) for folder in folders[:8]) or "none"
    more = f" and {len(folders) - 8} more: delving list runs" if len(folders) > 8 else ""
    there = meant or f"; below {output_root} there is {known}{more}"
    raise ValueError(f"there is no run {text!r}{there}")


def list_runs(output_root: str, kind: str = "runs", scale: str = "*") -> list[Path]:
    return sorted(p.parent for p in Path(output_root).glob(f"{scale}/{kind}/*/config.yaml"))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, which appears whole, and its folders; DiskFullError if there is no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_dead(path.parent, path.name)
    beside = name_beside(path)
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise _named(error, path, len(data)) from error
    finally:
        beside.unlink(missing_ok=True)


class DiskFullError(OSError):
    """There is no room; nothing that was there is harmed."""


def disk_full(folder: Path, need: int, also: str = "") -> DiskFullError:
    """The error that says how many bytes are missing below a folder."""
    lack = need - shutil.disk_usage(folder).free
    missing = f"{lack:,} bytes are missing" if lack > 0 else "a quota or limit is reached"
    told = f"the disk of {folder} is full: {need:,} bytes to write, {missing}{also and '; ' + also}"
    return DiskFullError(told)


def _named(error: OSError, path: Path, need: int) -> OSError:
    own = OSError(error.errno, error.strerror, str(path)) if error.errno else error  # not beside it
    return disk_full(path.parent, need) if error.errno in FULL else own


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in a file; ValueError names the file if there is none."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        raise ValueError(f"{path} is not readable JSON: it is no regular file")
    if found.st_size > MOST_JSON:
        raise ValueError(f"{path} is not readable JSON: {found.st_size:,} bytes are too many")
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, path: Path) -> Any:
    """The JSON in a file's bytes; ValueError names the file."""
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def is_number(value: Any) -> bool:
    """Whether a value is a number as records have them: finite, and below HUGE in size."""
    return isinstance(value, NUMBER) and not isinstance(value, bool) and abs(value) < HUGE


def are_numbers(values: Any, count: int) -> bool:
    """Whether it is a list of so many such numbers."""
    return isinstance(values, list) and len(values) == count and all(map(is_number, values))


def expect(value: Any, kinds: dict[str, Any], where: str, *, infinite: Sequence[str] = ()) -> dict:
    """The value, if it is a dict with these keys of these types, their numbers finite except for
    the keys in `infinite`; else ValueError names `where` and the key."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is damaged: it is no table of keys")
    for key, kind in kinds.items():
        if key not in value:
            raise ValueError(f"{where} is damaged: it lacks {key}")
        found = value[key]
        number = is_number(found) or (key in infinite and found == math.inf)
        if not isinstance(found, kind) or (isinstance(found, NUMBER) and not number):
            raise ValueError(f"{where} is damaged: {key[:80]} is {str(found)[:40]!r}")
    return value


def read_keys(path: Path, **kinds: Any) -> dict:
    """The keys and values in a JSON file; ValueError names it, and what `expect` refuses in it."""
    return expect(read_json(path), kinds, str(path))


def read_result(folder: Path) -> dict:
    """result.json of a finished run; ValueError names the file and the key that is damaged."""
    path = folder / "result.json"
    result = read_keys(path, **RESULT)
    for protocol, scores in result["eval"].items():
        expect(scores, SCORES, f"{path}: {protocol}")
    strange = [line for line in result["deviations"] if not isinstance(line, str)]
    if strange or result["status"] not in STATUSES:
        raise ValueError(f"{path} is damaged: {strange or result['status']!r}"[:300])
    return result


def remove_leftovers(folder: Path) -> None:
    """Removes files that a killed process had not finished writing."""
    for place in (folder, folder / "eval"):
        for path in place.glob(".*"):
            if path.suffix[1:].isdecimal() and not path.is_dir():
                path.unlink(missing_ok=True)


def append_event(path: Path, event: dict) -> None:
    """Adds a line to a log; one that a full disk cuts off is taken back."""
    line = (json.dumps(event) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(line) < len(line):  # a full disk may take part of it
                raise OSError(errno.ENOSPC, "cut off")
        except OSError as error:
            os.truncate(path, size)
            raise _named(error, path, len(line)) from error


def read_events(folder: Path, kind: str) -> list[dict]:
    """The events of one kind of a run's log, in order; a damaged line is left out."""
    events, path = [], folder / "log.jsonl"
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is not readable: it is no regular file")
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict) and event.get("event") == kind]


def sync_log(path: Path) -> None:
    """Makes a log survive a loss of power, as the checkpoint that counts its bytes does."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def truncate_log(path: Path, size: int) -> str | None:
    """Cuts off what was logged after the checkpoint to resume from; says what the log lacks."""
    data = path.read_bytes() if path.exists() else b""
    write_bytes(path, data[: size if size <= len(data) else data.rfind(b"\n") + 1])
    lost = size - len(data)
    return f"{path} lacks {lost:,} bytes logged before the checkpoint" if lost > 0 else None


def round_scores(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities as load_scores returns them: rounded to logarithms in half precision, which
    keep apart small ones that would be equal in half precision themselves.

    ours: images are ranked by probabilities as they are kept, rounded to about three digits; of two
    equal ones the class with the lower number goes first.
    """
    return np.exp(_logarithms(probabilities).astype(np.float32))


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)).astype(np.float16)


def save_scores(
    folder: Path,
    protocol: str,
    summary: dict,
    *,
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: list[str],
) -> None:
    """eval/<protocol>.json, and beside it the probabilities (images, classes) of each image."""
    packed = pack_arrays(
        log_probabilities=_logarithms(probabilities),
        labels=labels.astype(np.int32),
        names=np.array(names),
    )
    write_bytes(folder / "eval" / f"{protocol}.npz", packed)
    write_json(folder / "eval" / f"{protocol}.json", summary)


def load_scores(folder: Path, protocol: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(probabilities, labels, names) as saved by save_scores; ValueError if there are none."""
    path = folder / "eval" / f"{protocol}.npz"
    try:
        logs, labels, names = read_arrays(path, ("log_probabilities", "labels", "names"), "scores")
    except FileNotFoundError:
        there = sorted(p.stem for p in path.parent.glob("*.npz") if p.suffixes == [".npz"])
        lacks = f"{folder} has no scores of each image by {protocol}, there is "
        how = f"delving eval {folder} protocol=center|ten_view|dense"
        if not (folder / "checkpoint").exists():
            how = "its weights, by which they are made, are where it was trained"
        raise ValueError(f"{lacks}{', '.join(there) or 'none'}: {how}") from None
    return np.exp(logs.astype(np.float32)), labels, names.tolist()


def save_ranks(folder: Path, protocol: str, ranks: np.ndarray) -> None:
    """eval/<protocol>.hits.npz: for each image one bit whether its class is the best, and one
    whether it is among the best five; what tables and verdicts need of an image."""
    bits = {f"top{k}": np.packbits(ranks < k) for k in (1, 5)}
    write_bytes(folder / "eval" / f"{protocol}.hits.npz", pack_arrays(images=len(ranks), **bits))


def load_hits(folder: Path, protocol: str, k: int = 1) -> np.ndarray:
    """(images,) bool: is an image's class among the best k, 1 or 5? In the data's order."""
    path = folder / "eval" / f"{protocol}.hits.npz"
    try:
        bits, images = read_arrays(path, (f"top{k}", "images"), "hits")
        if len(bits) != -(-int(images) // 8):
            raise ValueError(f"{len(bits)} bytes of {int(images)} images")
        return np.unpackbits(bits, count=int(images)).astype(bool)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise ValueError(f"{path} tells no hits: {error}") from error


def save_slopes(folder: Path, slopes: dict[str, Any]) -> None:
    """slopes.json: {layer: learned slopes}, to four decimals; no file if none, or not finite."""
    rounded = {layer: [round(a, 4) for a in v.tolist()] for layer, v in slopes.items()}
    if rounded and all(is_number(a) for v in rounded.values() for a in v):
        write_text(folder / "slopes.json", json.dumps(rounded) + "\n")


def load_slopes(folder: Path) -> dict[str, np.ndarray]:
    """{layer: (slopes,)} in order; empty if there are none. ValueError names a damaged layer."""
    path = folder / "slopes.json"
    found = read_keys(path) if path.exists() else {}
    for layer, slopes in found.items():
        if not (isinstance(slopes, list) and slopes and all(map(is_number, slopes))):
            raise ValueError(f"{path} is damaged: {layer[:80]} is {str(slopes)[:40]!r}")
    return {layer: np.array(slopes) for layer, slopes in found.items()}
