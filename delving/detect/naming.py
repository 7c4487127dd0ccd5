"""Which detection is meant: its folder's name, and the config.yaml in it."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import yaml

from delving import record
from delving.foreign import check_yaml, read_text
from delving.same import saved_value
from delving.schema import Detect, differences, validate


@dataclass(frozen=True)
class Detection:
    """What a detection is, as config.yaml in its folder says."""

    run: str
    weights: str  # hash of the trunk's weights
    scale: str
    seed: int
    precision: str
    detect: Detect


def detection_folder(run: Path, settings: Detect, usual: Detect, precision: str = "auto") -> Path:
    """outputs/<scale>/detections/<run>-<data>, then the settings that differ from the scale's own,
    then the precision if it is not the run's own; a long name ends in a hash instead."""
    found = differences(_Only(settings), _Only(usual))  # neutral settings are left out
    changed = {key: ours for key, (ours, _) in found.items()}
    extra = [_short(key, value) for key, value in sorted(changed.items()) if key != "detect.data"]
    if precision not in ("auto", saved_value(run, "precision")):
        extra.append(f"precision{precision}")
    name = "-".join([run.name, settings.data, *extra])
    if len(name) > 100:
        name = f"{run.name}-{settings.data}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return run.absolute().parent.parent / "detections" / name


def _short(key: str, value: object) -> str:
    text = Path(value).stem if key == "detect.proposals" else str(value)
    return key.split(".")[-1] + "".join(c for c in text if c.isalnum() or c in "_.+")


def save_about(about: Detection, folder: Path) -> None:
    """Writes config.yaml, complete."""
    text = yaml.safe_dump(dataclasses.asdict(about), sort_keys=False)
    record.write_text(folder / "config.yaml", text)


def load_about(path: Path) -> Detection:
    """What save_about wrote; ValueError names the file if it is anything else."""
    text = read_text(path)
    try:
        check_yaml(text)
        tree = yaml.safe_load(text)
        about = Detection(**tree | {"detect": validate(Detect(**tree["detect"]))})
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: no configuration of a detection: {error}") from error
    kinds = {"run": str, "weights": str, "scale": str, "seed": int, "precision": str}
    record.expect(tree, kinds, str(path))
    return about


def find_other_detection(folder: Path, settings: Detect) -> str | None:
    """Tells what a folder holds if that is a detection with other settings; else None."""
    if not (folder / "config.yaml").exists():
        return None
    try:
        there = load_about(folder / "config.yaml").detect
    except ValueError as error:
        return f"{error}. Move {folder} away"
    if settings.proposals == "auto":  # whichever method that was here
        settings = dataclasses.replace(settings, proposals=there.proposals)
    return _tell_apart(folder, differences(_Only(settings), _Only(there)))


@dataclass(frozen=True)
class _Only:
    """Settings under their key `detect`, so that all keys have that prefix."""

    detect: Detect


def check_same(about: Detection, folder: Path) -> None:
    """Raises ValueError if the folder holds another detection."""
    if (folder / "config.yaml").exists():
        found = _tell_apart(folder, differences(about, load_about(folder / "config.yaml")))
        if found:
            raise ValueError(found)


def _tell_apart(folder: Path, changed: dict[str, tuple]) -> str | None:
    lines = [f"{key} {ours} asked for, {theirs} there" for key, (ours, theirs) in changed.items()]
    other = f"{folder} holds another detection: {'; '.join(lines)}. Move it away to train anew"
    return other if lines else None
