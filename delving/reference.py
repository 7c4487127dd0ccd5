"""The part of outputs/<scale> that is committed: small records, from which everything is redrawn.

`python -m delving.reference outputs/cpu outputs/reference/cpu` copies it, without any run's weights
or probabilities.
"""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from delving import config as configs
from delving import record
from delving.beside import folder_beside
from delving.detect.naming import load_about, save_about
from delving.groups import choices
from delving.measured import FILE, add_parts, parts_within

OF_RUN = ("env.json", "log.jsonl", "result.json", "slopes.json", "eval/*.json", "eval/*.hits.npz")
OF_ARTEFACT = ("table.csv", "table.md", "data.csv", "verdict.json")
OF_DETECTION = ("config.yaml", "env.json", "log.jsonl", "result.json", "pictures.json")
UNSEEN = ("figure6", "figure7")  # their pictures are left out: the README shows neither


def copy_records(source: Path, to: Path) -> None:
    """Makes `to` the record of the artefacts in `source` and of the runs that they show.

    After `reproduce all` it is whole; what a single artefact shows may rest on another's runs.

    Raises:
        ValueError: nothing has been reproduced in `source`, or `to` is or holds `source`.
    """
    verdicts = {name: source / name / "verdict.json" for name in choices("paper")}
    there = {name: record.read_json(path) for name, path in verdicts.items() if path.exists()}
    if not there:
        raise ValueError(f"{source}: no artefact there; delving reproduce all makes them")
    if to.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{to} holds the source itself")
    with folder_beside(to) as scratch:
        _copy_records(source, scratch / "made", there)
        shutil.rmtree(to, ignore_errors=True)
        os.replace(scratch / "made", to)


def _copy_records(source: Path, to: Path, there: dict[str, dict]) -> None:
    """Copies the artefacts that are there, by name, and the runs that they show."""
    runs = sorted({run for verdict in there.values() for run in verdict["runs"]})
    for run in runs:
        copy_run(source / "runs" / run, to / "runs" / run)
    for name in sorted(
        {one for verdict in there.values() for one in verdict.get("detections", [])}
    ):
        copy_detection(source / "detections" / name, to / "detections" / name)
    for name in there:
        pictures = () if name in UNSEEN else ("figure.png",)
        _copy(source / name, to / name, (*OF_ARTEFACT, *pictures))
        if parts := parts_within(source / name / FILE, runs):
            add_parts(to / name / FILE, parts)
    _copy(source, to, ("reproduce.json",))


def copy_run(source: Path, to: Path) -> None:
    """Copies a run without weights and probabilities, and without the paths of its machine."""
    _copy(source, to, OF_RUN)
    config = configs.load(source / "config.yaml")
    config.data.root, config.output_root = None, "outputs"
    record.write_text(to / "config.yaml", configs.to_yaml(config))


def copy_detection(source: Path, to: Path) -> None:
    """Copies a detection without weights and without the path of its images."""
    _copy(source, to, OF_DETECTION)
    about = load_about(source / "config.yaml")
    save_about(replace(about, detect=replace(about.detect, root=None)), to)


def _copy(source: Path, to: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in sorted(p for p in source.glob(pattern) if p.name[0] != "."):
            target = to / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


if __name__ == "__main__":
    copy_records(Path(sys.argv[1]), Path(sys.argv[2]))
