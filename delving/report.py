"""The page of a scale, report.html, and its ledger of claims.

A pure function of the artefact folders' files and of `about`: it trains nothing, draws nothing and
times nothing, so the same files give the same bytes. The page loads nothing: styles and figures
stand inside it.
"""

import base64
import csv
import html
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from delving.record import read_keys, write_text
from delving.words import count, duration, escaped

TEMPLATE = "report.html.j2"
GENERATED = ("smoke", "cpu")  # on generated images, where no accuracy claim is `reproduced`
# The mark tells verdicts apart without colour.
MARKS = {"reproduced": "✓", "not_reproduced": "✗", "inconclusive": "?"}
WORDS = {name: name.replace("_", " ") for name in MARKS}
ANSWERS = {"reproduced": "yes", "not_reproduced": "no", "inconclusive": "inconclusive"}
LARGEST_SVG = 400_000  # bytes; above it the PNG is lighter to open
PNG_DPI = 160  # as plot.save_figure writes them
FILES = ("table.csv", "data.csv", "figure.svg", "figure.png", "verdict.json")
ABOUT = ("headline", "machine", "seconds", "deviations", "trainings", "detectors", "shared",
         "failed", "left_out", "paper", "made")  # fmt: skip
NUMBER = re.compile(r"[-+−–±~<>≤≥ ]*\.?\d")
# No line breaks between a number and its unit, nor within `n = 3` or `p < 0.05`.
UNITS = ("%|points?|powers|percent|times|steps?|epochs?|images|classes|seeds?|nets|runs|layers|"
         "h|min|s")  # fmt: skip
TIED = re.compile(rf" (?:(?<=\d )(?=(?:{UNITS})(?![\w.=]))|(?<=\b[np] )(?=[<=])|(?<=[<=] )(?=\d))")
# Before each further part of the evidence, which has a name; `over images` belongs to the last one.
NEXT_PART = re.compile(r"; (?!over images )(?=[^:;]{1,60}: )")
NO_NUMBER = ("", "-", "–", "—", "n/a")


def write_report(folder: Path, order: Sequence[str], about: dict) -> Path:
    """Writes folder/report.html of the artefact folders below `folder` and returns its path.

    Args:
        folder: outputs/<scale>.
        order: every artefact's name, in the paper's order; one without a verdict.json is named as
            absent.
        about: what no artefact knows, each key optional: scale, data (the data set's name), paper
            (citation), headline, machine (name to text), seconds (planned and used, name to
            seconds), deviations, failed (run and error), left_out (artefact to why), trainings,
            detectors, shared, made.

    Raises:
        ValueError: names a verdict.json that is damaged.
    """
    about = {**dict.fromkeys(ABOUT), "scale": folder.name, "data": "shapes", **about}
    artefacts = [_load_artefact(folder / name) for name in order if _is_there(folder, name)]
    rows = ledger_rows(folder, order)
    counts = Counter(row["verdict"] for row in rows)
    page = _template().render(
        about=about,
        artefacts=artefacts,
        absent=_absent(folder, order, about["left_out"] or {}),
        rows=[row | {"evidence": _first_part(row["evidence"])} for row in rows],
        counts={verdict: counts[verdict] for verdict in MARKS},
        settings=_several_settings(artefacts),
        times=_time_rows(about["seconds"] or {}),
        heading=verdict_heading(about["scale"], about["data"]),
        words=verdict_words(about["scale"]),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def names_shown(folder: Path, order: Sequence[str], kind: str = "runs") -> list[str]:
    """The runs, or the `detections`, that the artefacts below `folder` rest on, each once.

    Raises:
        ValueError: names a verdict.json that is damaged.
    """
    there = [_read_verdict(folder / name)[kind] for name in order if _is_there(folder, name)]
    return sorted({name for names in there for name in names if isinstance(name, str)})


def tell_trainings(trainings: int, detectors: int | None) -> str:
    """What a ledger rests on: '31 trainings and 6 detectors made of them'."""
    told = count(trainings, "training")
    return told + (f" and {count(detectors, 'detector')} made of them" if detectors else "")


def ledger_rows(folder: Path, order: Sequence[str]) -> list[dict]:
    """Every claim of every artefact that is there, in order: the claim's own keys and `artefact`.

    Raises:
        ValueError: names a verdict.json that is damaged.
    """
    return [
        {"artefact": name, **claim}
        for name in order
        if _is_there(folder, name)
        for claim in _read_verdict(folder / name)["claims"]
    ]


def ledger_markdown(folder: Path, order: Sequence[str], scale: str) -> list[str]:
    """The ledger as the lines of a GitHub table; see ledger_rows. It has the first part of the
    evidence; the report's sections have all."""
    head, words = verdict_heading(scale), verdict_words(scale)
    lines = [f"| artefact | claim | {head} | evidence |", "|---|---|---|---|"]
    for row in ledger_rows(folder, order):
        verdict = f"{MARKS[row['verdict']]} {words[row['verdict']]}"
        cells = (label(row["artefact"]), row["claim"], verdict, _first_part(row["evidence"]))
        lines.append("| " + " | ".join(map(_markdown, cells)) + " |")
    return lines


def _first_part(evidence: str) -> str:
    first, more, _ = evidence.partition("; ")
    return first + (" …" if more else "")


def verdict_heading(scale: str, data: str = "shapes") -> str:
    """What a column of verdicts is called at a scale, for nets trained on a data set."""
    where = "on generated images" if data == "shapes" else "at this scale"
    return f"holds {where}?" if scale in GENERATED else "verdict"


def verdict_words(scale: str) -> dict[str, str]:
    """Verdicts as said at a scale."""
    return ANSWERS if scale in GENERATED else WORDS


def label(name: str) -> str:
    """An artefact's name as the paper says it: table2 is Table 2."""
    return re.sub(r"(?<=[a-z])(?=\d)", " ", name).capitalize()


def tie(text: str) -> str:
    """A text with no-break spaces between numbers and their units."""
    return TIED.sub("\xa0", text)


def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Records may be a stranger's. A value that is no plain str is the template's, or a number.
        finalize=lambda value: tie(escaped(value)) if type(value) is str else value,
    )
    environment.filters |= {"label": label, "duration": duration, "parts": NEXT_PART.split,
                            "rest_on": tell_trainings}  # fmt: skip
    environment.globals["marks"] = MARKS
    return environment.get_template(TEMPLATE)


def _absent(folder: Path, order: Sequence[str], left_out: Mapping[str, str]) -> list[str]:
    """The artefacts that are not there, and why if that is known."""
    names = [name for name in order if not _is_there(folder, name)]
    return [f"{label(n)} ({left_out[n]})" if n in left_out else label(n) for n in names]


def _several_settings(artefacts: Sequence[dict]) -> dict[str, str]:
    """{words of a command: the artefacts made by it}, if there are several commands: some artefacts
    then have other settings than the headline's."""
    found: dict[str, list[str]] = {}
    for artefact in artefacts:
        found.setdefault(words_of(artefact), []).append(label(artefact["name"]))
    return {words: ", ".join(names) for words, names in found.items()} if len(found) > 1 else {}


def words_of(artefact: Mapping) -> str:
    """The words of the command in an artefact's verdict.json."""
    return " ".join(word for word in artefact["command"].split() if "=" in word)


def tell_words(folder: Path) -> str:
    """'; made with <words>' of the first artefact below a folder that tells its words; or ''."""
    for path in sorted(folder.glob("*/verdict.json")):
        with suppress(ValueError):
            if words := words_of(_read_verdict(path.parent)):
                return f"; made with {words}"
    return ""


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name / "verdict.json").is_file()


def _load_artefact(folder: Path) -> dict:
    """All that the page shows of one artefact."""
    return _read_verdict(folder) | {
        "name": folder.name,
        "figure": _load_figure(folder),
        "table": _read_table(folder / "table.csv"),
        "files": [f"{folder.name}/{name}" for name in FILES if (folder / name).is_file()],
    }


def _read_verdict(folder: Path) -> dict:
    """verdict.json with every key there; ValueError names the file and its fault."""
    path = folder / "verdict.json"
    try:
        verdict = _told(read_keys(path))
        for key in ("claims", "notes", "runs", "detections"):
            if not isinstance(verdict.setdefault(key, []), list):
                raise ValueError(f"{path} is damaged: {key} is no list")
        for key in ("title", "caption", "command"):
            if not isinstance(verdict.get(key, ""), str):
                raise ValueError(f"{path} is damaged: {key} is no text")
        for fault in filter(None, map(_claim_fault, verdict["claims"])):
            raise ValueError(f"{path} is damaged: {fault}")
    except ValueError as error:
        raise ValueError(f"{error}. `delving reproduce {folder.name}` draws it anew") from error
    empty = {"rule": "", "delta": None, "evidence": "", "trainings": None}
    claims = [empty | _told(claim) for claim in verdict["claims"]]
    plain = {"title": label(folder.name), "caption": "", "command": ""}
    return plain | verdict | {"claims": claims}


def _told(values: dict) -> dict:
    """Without null values, so that null and left out mean the same."""
    return {key: value for key, value in values.items() if value is not None}


def _claim_fault(claim: Any) -> str | None:
    if not isinstance(claim, dict) or not isinstance(claim.get("claim"), str):
        return f"a claim without words: {claim!r}"
    if not isinstance(claim.get("evidence") or "", str):
        return f"the evidence of {claim['claim']!r} is {claim['evidence']!r}"
    if claim.get("verdict") not in tuple(MARKS):
        choices = ", ".join(MARKS)
        return f"the verdict on {claim['claim']!r} is {claim.get('verdict')!r}, none of {choices}"
    return None


def _load_figure(folder: Path) -> dict | None:
    """The figure as a data URI, and its width: as an image of its own, an SVG's ids never clash."""
    svg, png = folder / "figure.svg", folder / "figure.png"
    small = svg.is_file() and svg.stat().st_size <= LARGEST_SVG
    if small or (svg.is_file() and not png.is_file()):
        data = svg.read_bytes()
        found = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', data)
        return _embed("svg+xml", data, float(found[1]) / 72 if found else None)
    if not png.is_file():
        return None
    data = png.read_bytes()  # IHDR, its first chunk, opens with the width
    return _embed("png", data, int.from_bytes(data[16:20], "big") / PNG_DPI)


def _embed(kind: str, data: bytes, inches: float | None) -> dict:
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"uri": uri, "pixels": round(inches * 96) if inches else None}


def _read_table(path: Path) -> dict | None:
    """A table's head, its rows, and per column whether it holds numbers; None if it is empty."""
    if not path.is_file():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not lines:
        return None
    head, *rows = lines
    numeric = [_is_numeric([row[i] for row in rows if i < len(row)]) for i in range(len(head))]
    return {"head": head, "rows": rows, "numeric": numeric}


def _is_numeric(cells: list[str]) -> bool:
    told = [cell for cell in cells if cell.strip() not in NO_NUMBER]
    return bool(told) and all(NUMBER.match(cell) for cell in told)


def _time_rows(seconds: dict) -> list[tuple[str, float | None, float | None]]:
    """(what, planned, used) for whatever either of the two names, and their sums."""
    planned, used = seconds.get("planned") or {}, seconds.get("used") or {}
    names = list(dict.fromkeys([*planned, *used]))
    rows = [(name, planned.get(name), used.get(name)) for name in names]
    if len(names) > 1 and "total" not in names:
        rows.append(("total", _total(planned), _total(used)))
    return rows


def _total(seconds: dict) -> float | None:
    told = [value for value in seconds.values() if value is not None]
    return sum(told) if told else None


def _markdown(text: str) -> str:
    return html.escape(escaped(" ".join(text.split())), quote=False).replace("|", "\\|")
