"""The run folder: the only thing between training and drawing.

config.yaml, env.json, log.jsonl (one line per event), checkpoint/, eval/, result.json. Files appear
whole or not at all: each is written beside its place and renamed.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

CURRENT, NEW, PREVIOUS = "checkpoint", "checkpoint.new", "checkpoint.previous"


def run_folder(output_root: str, scale: str, run: str) -> Path:
    return Path(output_root) / scale / "runs" / run


def find_run(text: str, output_root: str) -> Path:
    """A run by its folder or its name; ValueError names the runs there are."""
    path = Path(text)
    if (path / "config.yaml").is_file():
        return path
    folders = list_runs(output_root)
    found = [folder for folder in folders if folder.name == text]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"run {text!r} is ambiguous: {', '.join(map(str, found))}")
    known = ", ".join(str(folder) for folder in folders[:8]) or "none"
    raise ValueError(f"there is no run {text!r}; below {output_root} there is {known}")


def list_runs(output_root: str) -> list[Path]:
    return sorted(p.parent for p in Path(output_root).glob("*/runs/*/config.yaml"))


def shortest_labels(names: list[str]) -> dict[str, str]:
    """Run names to the parts in which they differ, `prelu` and `relu` of two otherwise equal."""
    parts = [name.split("-") for name in names]
    common = set(parts[0]).intersection(*parts[1:]) if len(names) > 1 else set()
    return {
        name: "-".join(p for p in part if p not in common) or name
        for name, part in zip(names, parts, strict=True)
    }


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """ValueError names the file where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error


def append_event(path: Path, event: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


def read_events(folder: Path, kind: str) -> list[dict]:
    """The events of one kind of a run's log, in order; a line cut off at its end is left out."""
    events = []
    path = folder / "log.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict) and event.get("event") == kind]


def truncate_log(path: Path, size: int) -> None:
    """Takes back what was logged after the checkpoint that a run goes on from."""
    if path.exists():
        os.truncate(path, min(size, path.stat().st_size))


def save_checkpoint(folder: Path, tensors: dict[str, dict], state: dict) -> None:
    """Writes {file: {name: tensor}} and `state` with a manifest of their hashes.

    The checkpoint before it stays as `checkpoint.previous`. At every moment one of the folders is
    whole, whatever ends the process.
    """
    from safetensors.torch import save

    new = folder / NEW
    shutil.rmtree(new, ignore_errors=True)
    contents = {f"{name}.safetensors": save(parts) for name, parts in tensors.items()}
    contents["state.json"] = json.dumps(state).encode()
    for name, data in contents.items():
        write_bytes(new / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    write_json(new / "manifest.json", hashes)
    if (folder / CURRENT).exists():
        shutil.rmtree(folder / PREVIOUS, ignore_errors=True)
        os.replace(folder / CURRENT, folder / PREVIOUS)
    os.replace(new, folder / CURRENT)


def drop_previous(folder: Path) -> None:
    """A finished run needs its last checkpoint alone."""
    shutil.rmtree(folder / PREVIOUS, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, dict], dict] | None:
    """The newest whole checkpoint as ({file: {name: tensor}}, state); None where there is none.

    Raises:
        ValueError: where there are checkpoints, but each is damaged; names each one's fault.
    """
    faults = []
    for name in (CURRENT, NEW, PREVIOUS):
        if not (folder / name).is_dir():
            continue
        fault = _fault(folder / name)
        if fault is None:
            return _read_checkpoint(folder / name)
        faults.append(fault)
    if faults and faults != [f"{folder / NEW}: no manifest.json"]:
        raise ValueError(f"no whole checkpoint: {'; '.join(faults)}")
    return None


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its manifest, if anything."""
    manifest = checkpoint / "manifest.json"
    if not manifest.is_file():
        return f"{checkpoint}: no manifest.json"
    try:
        hashes = dict(read_json(manifest))
    except (TypeError, ValueError):
        return f"{manifest} is damaged"
    if "state.json" not in hashes:
        return f"{manifest} is damaged: it does not list state.json"
    for name, digest in hashes.items():
        path = checkpoint / Path(name).name
        if not path.is_file():
            return f"{path} is missing"
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return f"{path} is damaged: its hash is not the manifest's"
    return None


def _read_checkpoint(checkpoint: Path) -> tuple[dict[str, dict], dict]:
    from safetensors.torch import load_file

    tensors = {p.stem: load_file(p) for p in sorted(checkpoint.glob("*.safetensors"))}
    return tensors, read_json(checkpoint / "state.json")


def round_scores(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities as load_scores gives them back: their logarithms in half precision, which
    keeps small ones apart that half precision itself would make equal."""
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
    beside = io.BytesIO()
    np.savez_compressed(
        beside,
        log_probabilities=_logarithms(probabilities),
        labels=labels.astype(np.int32),
        names=np.array(names),
    )
    write_bytes(folder / "eval" / f"{protocol}.npz", beside.getvalue())
    write_json(folder / "eval" / f"{protocol}.json", summary)


def load_scores(folder: Path, protocol: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(probabilities, labels, names) as saved by save_scores; ValueError where there are none."""
    path = folder / "eval" / f"{protocol}.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            probabilities = np.exp(saved["log_probabilities"].astype(np.float32))
            return probabilities, saved["labels"], saved["names"].tolist()
    except FileNotFoundError:
        raise ValueError(
            f"{folder} has no scores by {protocol}: delving eval {folder} protocol={protocol}"
        ) from None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of scores: {error}") from error


def save_ranks(folder: Path, protocol: str, ranks: np.ndarray) -> None:
    """eval/<protocol>.hits.npz: for each image one bit whether its class is the best, and one
    whether it is among the best five; what tables and verdicts need of an image."""
    beside = io.BytesIO()
    bits = {f"top{k}": np.packbits(ranks < k) for k in (1, 5)}
    np.savez_compressed(beside, images=len(ranks), **bits)
    write_bytes(folder / "eval" / f"{protocol}.hits.npz", beside.getvalue())


def load_hits(folder: Path, protocol: str, k: int = 1) -> np.ndarray:
    """(images,) bool, whether an image's class is among the best k, 1 or 5, in the data's order."""
    path = folder / "eval" / f"{protocol}.hits.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            return np.unpackbits(saved[f"top{k}"], count=int(saved["images"])).astype(bool)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} tells no hits: {error}") from error


def save_slopes(folder: Path, slopes: dict[str, Any]) -> None:
    """slopes.json: {layer: learned slopes}, to four digits; nothing where none are learned."""
    if slopes:
        rounded = {layer: [round(a, 4) for a in v.tolist()] for layer, v in slopes.items()}
        write_text(folder / "slopes.json", json.dumps(rounded) + "\n")


def load_slopes(folder: Path) -> dict[str, np.ndarray]:
    """{layer: (slopes,)} in order; empty where the run learned none."""
    path = folder / "slopes.json"
    return {k: np.array(v) for k, v in read_json(path).items()} if path.exists() else {}
