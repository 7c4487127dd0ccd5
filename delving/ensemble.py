"""Section 3's ensemble: runs whose saved probabilities are averaged, image by image."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from delving import record
from delving.evaluate import error_rates


def average(folders: Sequence[Path], protocol: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The mean of the runs' probabilities, (images, classes), with the images' labels and names.

    Raises:
        ValueError: fewer than two runs, one without scores, or scores of other images.
    """
    if len(folders) < 2:
        raise ValueError(f"an ensemble needs two runs or more, not {len(folders)}")
    total, labels, names = record.load_scores(folders[0], protocol)
    for folder in folders[1:]:
        more, its_labels, its_names = record.load_scores(folder, protocol)
        if its_names != names or more.shape != total.shape or (its_labels != labels).any():
            raise ValueError(f"{folder} was scored on other images than {folders[0]}")
        total = total + more
    return record.round_scores(total / len(folders)), labels, names


def check_members(folders: Sequence[Path]) -> None:
    """Raises ValueError unless these are finished runs, each named once, on the same images."""
    if len(folders) < 2:
        raise ValueError(f"an ensemble needs two runs or more, not {len(folders)}")
    known: dict[Path, str] = {}
    for folder in folders:
        place = folder.resolve()
        if place in known:
            raise ValueError(f"{folder.name} is named twice")
        if place.name in known.values():
            raise ValueError(f"{folder}: another of these runs has the same name")
        known[place] = place.name
        if not (folder / "result.json").exists():
            raise ValueError(f"{folder} is not finished: the command that began it goes on")
    images = [_images_of(folder) for folder in folders]
    for folder, own in zip(folders, images, strict=True):
        if None not in (own, images[0]) and own != images[0]:
            raise ValueError(f"{folder} is of other images than {folders[0]}")


def _images_of(folder: Path) -> str | None:
    """The hash of a run's images; None if it has no env.json."""
    path = folder / "env.json"
    return record.read_keys(path).get("data") if path.exists() else None


def summarise(
    folders: Sequence[Path], protocol: str, averaged: tuple[np.ndarray, np.ndarray] | None = None
) -> dict:
    """{runs, protocol, top1_err, top5_err, images, members: {run: {top1_err, top5_err}}}.

    Args:
        averaged: probabilities and labels as `average` gave them, where they are at hand.
    """
    probabilities, labels = averaged or average(folders, protocol)[:2]
    members = {}
    for folder in folders:
        own, _, _ = record.load_scores(folder, protocol)
        members[folder.name] = error_rates(own, labels)
    return {
        "runs": [folder.name for folder in folders],
        "protocol": protocol,
        **error_rates(probabilities, labels),
        "images": len(labels),
        "members": members,
    }


def save_ensemble(folders: Sequence[Path], protocol: str, to: Path) -> dict:
    """Writes <to>/ensemble.json and, in the form of a run's scores, the averaged probabilities."""
    probabilities, labels, names = average(folders, protocol)
    summary = summarise(folders, protocol, (probabilities, labels))
    kept = {key: summary[key] for key in ("protocol", "top1_err", "top5_err", "images")}
    record.save_scores(to, protocol, kept, probabilities=probabilities, labels=labels, names=names)
    record.write_json(to / "ensemble.json", summary)
    return summary


def name_ensemble(folders: Sequence[Path]) -> str:
    """Its members' names; beyond 80 characters a hash stands for all but the first."""
    whole = "+".join(folder.name for folder in folders)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return whole if len(whole) <= 80 else f"{folders[0].name}+{len(folders) - 1}-{digest}"


def pick_protocol(folders: Sequence[Path]) -> str:
    """Dense testing, as the paper has it, if all runs were scored so; else the last of the first
    run's protocols that all share."""
    lists = [list(record.read_result(folder)["eval"]) for folder in folders]
    common = [name for name in (lists[0] if lists else []) if all(name in own for own in lists)]
    if not common:
        raise ValueError("these runs share no protocol: delving eval RUN protocol=...")
    return "dense" if "dense" in common else common[-1]
