"""The README's generated blocks: assumptions, deviations, and results as committed.

`python -m delving.readme README.md` writes them between their markers.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from delving.groups import choices
from delving.record import read_events, read_json
from delving.report import ledger_markdown, ledger_rows, verdict_words

TAG = re.compile(r"(?:^\s*|# |\. |\"\"\")(assumed|ours): (.*)")
TAIL = 10  # log lines that the training columns average
REFERENCE = Path(__file__).parent.parent / "outputs" / "reference"


def collect(kind: str) -> list[str]:
    """One markdown line per tag of a kind: its paragraph and the file it stands in."""
    root = Path(__file__).parent.parent
    files = [*sorted((root / "conf").rglob("*.yaml")), *sorted((root / "delving").rglob("*.py"))]
    lines = []
    for path in files:
        name = path.relative_to(root).as_posix()
        texts = paragraphs(path.read_text(encoding="utf-8").splitlines(), kind)
        lines += [f"- {text} ([{name}]({name}))" for text in texts if path != Path(__file__)]
    return lines


def paragraphs(lines: list[str], kind: str) -> Iterator[str]:
    """The texts of a kind's tags: to the end of the comment, or of the docstring's paragraph."""
    for number, line in enumerate(lines):
        found = TAG.search(line)
        if not found or found[1] != kind or _is_code(lines, number, found):
            continue
        before, comment = line[: found.start(1)], "#" in line[: found.start(1)]
        parts = [found[2].removesuffix('"""')]
        one_line = found[2].endswith('"""') or (comment and before.split("#")[0].strip())
        if not one_line:
            parts += _continued(lines[number + 1 :], comment)
        text = " ".join(" ".join(parts).split())
        yield text[:1].upper() + text[1:].rstrip(". \"'") + "."


def _is_code(lines: list[str], number: int, found: re.Match) -> bool:
    """Whether what opens a line is a field of that name, as no docstring is open there."""
    opens = not lines[number][: found.start(1)].strip()
    return opens and sum(line.count('"""') for line in lines[:number]) % 2 == 0


def _continued(lines: list[str], comment: bool) -> Iterator[str]:
    for line in lines:
        text = line.strip()
        ends = not text.startswith("# ") if comment else text in ("", '"""')
        if ends or TAG.search(text):
            return
        yield text.lstrip("# ").removesuffix('"""')
        if text.endswith('"""'):
            return


HEAD = ("run", "images", "seen", "training loss", "training err", "protocol", "top-1", "top-5",
        "scored on", "status")  # fmt: skip


def results(name: str) -> list[str]:
    """A table of the committed runs below outputs/reference/<name>, and their spread over seeds."""
    folders = [path.parent for path in sorted((REFERENCE / name).glob("*/result.json"))]
    rows = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", *map(_row, folders)]
    return rows + _spread([read_json(folder / "result.json") for folder in folders])


def _row(folder: Path) -> str:
    result, [start] = read_json(folder / "result.json"), read_events(folder, "start")
    last = read_events(folder, "step")[-TAIL:]
    loss, error = (fmean(e[key] for e in last) for key in ("loss", "err"))
    [(protocol, scores)] = list(result["eval"].items())[-1:]
    cells = [
        f"`{result['run']}`",
        f"{start['train_images']:,}",
        f"{result['images_seen']:,}",
        f"{loss:.3f}",
        f"{error:.1f} %",
        protocol,
        f"{scores['top1_err']:.1f} %",
        f"{scores['top5_err']:.1f} %",
        f"{scores['images']:,}",
        result["status"],
    ]
    return "| " + " | ".join(cells) + " |"


def _spread(runs: list[dict]) -> list[str]:
    groups: dict[str, list[float]] = {}
    for result in runs:
        [(_, scores)] = list(result["eval"].items())[-1:]
        groups.setdefault(result["run"].rpartition("-s")[0], []).append(scores["top1_err"])
    lines = [
        f"- `{name}`: top-1 {fmean(errors):.1f} %, standard deviation {stdev(errors):.1f} over "
        f"{len(errors)} seeds"
        for name, errors in groups.items()
        if len(errors) > 1
    ]
    return ["", *lines] if lines else []


def ledger() -> list[str]:
    """Every claim and its verdict, from the committed records of scale cpu."""
    folder, order = REFERENCE / "cpu", choices("paper")
    words, rows = verdict_words("cpu"), ledger_rows(folder, order)
    counts = Counter(row["verdict"] for row in rows)
    told = ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items())
    trainings = len(list(folder.glob("runs/*/result.json")))
    detectors = len(list(folder.glob("detections/*/result.json")))
    summary = (f"{len(rows)} claims: {told}. They rest on {trainings} independent trainings and "
               f"{detectors} detectors made of them.")  # fmt: skip
    return [summary, "", *ledger_markdown(folder, order, "cpu")]


def table(artefact: str) -> list[str]:
    """An artefact's table, from the same."""
    path = REFERENCE / "cpu" / artefact / "table.md"
    return path.read_text(encoding="utf-8").splitlines()


def robustness() -> list[str]:
    """What the long tests tried and how often it failed, as committed."""
    text = (REFERENCE / "robustness.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("|")]


SPEED = ("ours", "baseline", "ratio", "low", "high", "limit")


def speed() -> list[str]:
    """The rows of `delving bench all --json`, as committed."""
    lines = ["| what | " + " | ".join(SPEED) + " | |", "|---" * (len(SPEED) + 2) + "|"]
    for row in read_json(REFERENCE / "bench" / "cpu.json"):
        numbers = ["" if row[key] is None else f"{row[key]:,.4g}" for key in SPEED]
        lines.append(f"| {row['row']} | " + " | ".join(numbers) + f" | {row['unit']} |")
    return lines


BLOCKS: dict[str, Callable[[], list[str]]] = {
    "assumptions": partial(collect, "assumed"),
    "deviations": partial(collect, "ours"),
    "real": partial(results, "first-tiny-imagenet"),
    "ledger": ledger,
    "robustness": robustness,
    "speed": speed,
    "table2": partial(table, "table2"),
    "table1": partial(table, "table1"),
    "detection": partial(table, "detection"),
}


def refresh(readme: str) -> str:
    """The README with every block as source and results have it now."""
    for title, make in BLOCKS.items():
        block = f"<!-- {title} -->\n" + "\n".join(make()) + f"\n<!-- end {title} -->"
        pattern = rf"<!-- {title} -->.*?<!-- end {title} -->"
        readme = re.sub(pattern, lambda _, block=block: block, readme, flags=re.S)
    return readme


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(refresh(target.read_text(encoding="utf-8")), encoding="utf-8")
