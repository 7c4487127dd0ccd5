"""Draws artefacts' folders (table, figure, verdict) from records, and the page over all of them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

import delving
from delving import config as configs
from delving import record
from delving.artefact import Asked, Shown, code_of
from delving.asked import ask, measured_of
from delving.curves import check_end, read_counts
from delving.detect.record import read_detection, read_pictures
from delving.groups import choices
from delving.measured import FILE, fingerprint
from delving.plan import Plan
from delving.plot import save_figure
from delving.report import names_shown, write_report
from delving.schema import Config
from delving.state import git_revision
from delving.words import escaped

CITATION = (
    "He, Zhang, Ren, Sun: Delving Deep into Rectifiers: Surpassing Human-Level Performance on "
    "ImageNet Classification. arXiv 1502.01852, 2015"
)
SHARED = (
    "Tables 4 to 7 and Figures 4 to 7 share six large nets per seed, as does the convergence figure"
)
SOURCE = Path(__file__).parent
DRAWN = ("table.csv", "table.md", "figure.png", "figure.svg", "data.csv", "verdict.json")


def draw_artefact(plan: Plan, name: str, to: Path) -> None:
    """Draws one artefact from its records into the folder `to`, unless it is there already, drawn
    from the same records by the same code.

    Raises:
        ValueError: nothing of what it shows is there.
    """
    asked = ask(plan, name)
    if why := find_lack(plan, asked):
        raise ValueError(f"{name}: nothing to show, {why}")
    stamp, drawn = _stamp(plan, name), _read_stamps(to)
    if drawn.get(name) == stamp | {"files": _digest(to / file for file in DRAWN)}:
        return
    shown = code_of(name).show(asked)
    caption = shown.caption + _tell_images(plan, name)
    for old in DRAWN:
        (to / old).unlink(missing_ok=True)
    _write(shown, to)
    shares = (team for need in plan.requests[name].needs for team in asked.measured[need])
    runs = sorted({run.name for run in asked.runs}.union(*shares))
    detections = sorted(folder.name for arm in asked.detections.values() for folder in arm)
    record.write_json(
        to / "verdict.json",  # last: it marks the folder as whole
        {
            "artefact": name,
            "scale": plan.scale,
            "title": shown.title,
            "caption": caption,
            "notes": shown.notes,
            "command": " ".join(["delving reproduce", name, f"scale={plan.scale}", *plan.told]),
            "runs": runs,
            **({"detections": detections} if detections else {}),
            "claims": [claim.as_json() for claim in shown.claims],
        },
    )
    stamp["files"] = _digest(to / file for file in DRAWN)
    record.write_json(to.parent / "drawn.json", drawn | {name: stamp})


def _tell_images(plan: Plan, artefact: str) -> str:
    """What an artefact's nets were trained and tested on, as the last sentence of its caption."""
    asked = (artefact, *plan.requests[artefact].needs)
    runs = {run for name in asked for run in plan.runs_of(name)}
    told = _counts(plan, runs)
    parts = [f"{train:,} images of {classes:,} classes, tested on {val:,}"
             for classes, train, val in told]  # fmt: skip
    return f" Nets trained on {'; on '.join(parts)}." if parts else ""


def _counts(plan: Plan, runs: Iterable[str]) -> list[tuple[int, int, int]]:
    """(classes, training images, validation images) of the finished runs, each triple once."""
    return sorted({read_counts(plan.folder(run)) for run in runs if plan.finished(run)})


def find_lack(plan: Plan, asked: Asked) -> str | None:
    """What an artefact lacks to be drawn, if anything."""
    request = plan.requests[asked.artefact]
    lacking = [need for need in request.needs if need not in asked.measured]
    arms = asked.detections if request.detect else asked.arms
    if lacking or (arms and not any(arms.values())):
        return ", ".join(lacking) or "no finished run"
    return None


def _read_stamps(to: Path) -> dict[str, dict]:
    """What each artefact was drawn from, by drawn.json beside their folders; nothing if that is
    damaged, so that all are drawn anew."""
    try:
        return record.read_keys(to.parent / "drawn.json")
    except (ValueError, FileNotFoundError):
        return {}


def _stamp(plan: Plan, name: str) -> dict:
    """What a drawing rests on: runs, overrides, its own measurements and those of the artefacts it
    needs, the small nets, detections, and the source."""
    measured = [plan.root / n / FILE for n in (name, *plan.requests[name].needs)]
    runs = [run for run in plan.runs_of(name) if plan.finished(run)]
    small = [plan.folder(run) / "result.json" for arm in plan.small for run in arm]
    found = [plan.detection(run) for run in plan.detectors()] if plan.requests[name].detect else []
    detections = [folder / file for folder in found for file in ("result.json", "pictures.json")]
    return {
        "asked": fingerprint(plan, name, runs),
        "overrides": plan.told,
        "measured": _digest(measured),
        "small": _digest(small),
        "detections": _digest(detections),
        "source": _digest(sorted(p for p in SOURCE.rglob("*") if p.suffix in (".py", ".yaml"))),
    }


def _digest(paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.name}\n".encode() + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()[:16]


def _write(shown: Shown, to: Path) -> None:
    if shown.table is not None:
        record.write_text(to / "table.csv", shown.table.to_csv(index=False))
        record.write_text(to / "table.md", to_markdown(shown.table))
    if shown.data is not None:
        record.write_text(to / "data.csv", shown.data.to_csv(index=False))
    if shown.figure is not None:
        for ending in ("png", "svg"):
            save_figure(shown.figure, to / f"figure.{ending}")
            shown.figure.set_layout_engine("none")  # laid out with the first: half the time


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table of the cells as they are, except for escaped bars and control characters."""

    def line(cells) -> str:
        return "| " + " | ".join(escaped(str(cell)).replace("|", "\\|") for cell in cells) + " |"

    rows = [line(table.columns), "|" + "---|" * len(table.columns)]
    return "\n".join([*rows, *(line(row) for row in table.itertuples(index=False))]) + "\n"


def draw_report(plan: Plan, to: Path, failed: dict[str, str]) -> Path:
    """report.html over every artefact folder in `to`."""
    shown = names_shown(to, choices("paper"))
    runs = [name for name in shown if (plan.folder(name) / "result.json").exists()]
    about = {
        "scale": plan.scale,
        "data": name_data(plan),
        "headline": headline(plan),
        "machine": _machine(plan, runs),
        "seconds": load_times(plan),
        "deviations": _deviations(plan, runs),
        "trainings": len(runs),
        "detectors": len(names_shown(to, choices("paper"), "detections")),
        "shared": SHARED,
        "failed": [{"run": run, "error": error} for run, error in failed.items()],
        "left_out": plan.left_out,
        "paper": CITATION,
        "made": f"delving {delving.__version__}, git {git_revision() or 'unknown'}",
    }
    return write_report(to, choices("paper"), about)


def load_times(plan: Plan) -> dict[str, dict] | None:
    """Seconds planned and used by purpose, from reproduce.json; None if there is no such file.

    Raises:
        ValueError: it is damaged; names the key.
    """
    path = plan.root / "reproduce.json"
    if not path.exists():
        return None
    seconds = record.read_keys(path, seconds=dict)["seconds"]
    kinds = {"planned": dict, "used": dict}
    record.expect(seconds, kinds, f"{path}: seconds")
    for key in kinds:
        record.expect(seconds[key], dict.fromkeys(seconds[key], record.NUMBER), f"{path}: {key}")
    return seconds


def load_environment(folder: Path) -> dict:
    """A run's env.json; ValueError if it is damaged."""
    return record.read_keys(folder / "env.json")


def scoring_seconds(folder: Path) -> float:
    """How long scoring a run took, all protocols together; ValueError names the damaged file."""
    files = sorted((folder / "eval").glob("[!.]*.json"))
    return sum(record.read_keys(path, seconds=record.NUMBER)["seconds"] for path in files)


def check_records(plan: Plan) -> None:
    """Reads what is there, so that a damaged record is reported before hours of work.

    Raises:
        ValueError: names the file and the key.
    """
    load_times(plan)
    for artefact in plan.requests:
        measured_of(plan, artefact)
    for folder in (plan.folder(run) for run in plan.runs if plan.finished(run)):
        record.read_result(folder)
        read_counts(folder)
        check_end(folder)
        record.load_slopes(folder)
        load_environment(folder)
        scoring_seconds(folder)
    for folder in (plan.detection(run) for run in plan.detectors() if plan.detected(run)):
        read_detection(folder)
        read_pictures(folder)


def headline(plan: Plan) -> str:
    """What a scale's results rest on, in a line; images as counted once a net is trained."""
    data = _compose_family(plan, "small14").data
    kind, source = "images", f" of {data.name}"
    if data.name == "shapes":
        kind, source = "generated drawings", ""
    told = [f"{train:,} {kind} of {classes:,} classes{source} (tested on {val:,})"
            for classes, train, val in _counts(plan, plan.runs)]  # fmt: skip
    count = f"{data.train_images:,} " if data.train_images else ""
    return (
        f"Trained on {' or '.join(told) or count + kind + source}, {data.crop}-pixel crops; small "
        "nets at {} of the paper's width for {} epochs, large ones at {} for {}."
    ).format(*_extent(plan, "small14"), *_extent(plan, "a"))


def _extent(plan: Plan, model: str) -> tuple[str, str]:
    """Widths and epochs of a plan's nets of a model's family; if it has none, the scale's."""
    usual = _compose_family(plan, model)
    nets = [c for c in plan.runs.values() if c.model.family == usual.model.family] or [usual]
    values = {net.model.width for net in nets}, {net.train.epochs for net in nets}
    return tuple(" or ".join(f"{value:g}" for value in sorted(one)) for one in values)


def name_data(plan: Plan) -> str:
    """The name of the data set that a plan's nets are trained on."""
    return _compose_family(plan, "small14").data.name


def _compose_family(plan: Plan, model: str) -> Config:
    """The configuration of one of a plan's nets, as far as all of its family share it."""
    return configs.compose([f"scale={plan.scale}", f"model={model}", "act=relu", *plan.telling])


def _machine(plan: Plan, runs: list[str]) -> dict[str, str]:
    """Where the runs were trained; several answers if they were trained in several places."""
    keys = ("device", "cores", "precision", "torch", "python", "platform")
    files = [load_environment(plan.folder(name)) for name in runs]
    return {key: "; ".join(sorted({str(env.get(key)) for env in files})) for key in keys if files}


def _deviations(plan: Plan, runs: list[str]) -> list[str]:
    """The deviations of all runs, each once, the most frequent first."""
    lists = [record.read_result(plan.folder(name))["deviations"] for name in runs]
    every = list(dict.fromkeys(line for lines in lists for line in lines))
    counts = {line: sum(line in lines for lines in lists) for line in every}
    ranked = sorted(every, key=lambda line: -counts[line])
    return [line if counts[line] == len(runs) else f"{line}, in {counts[line]} of {len(runs)} runs"
            for line in ranked]  # fmt: skip
