"""The generated blocks of the READMEs: assumptions, deviations, and committed results.

`python -m delving.readme` writes them between their markers.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from delving.artefact import model_title
from delving.config import load
from delving.curves import read_counts
from delving.data import whole_training_set
from delving.groups import choices
from delving.record import read_json
from delving.report import ledger_markdown, ledger_rows, tell_trainings, verdict_words, words_of
from delving.words import duration

TAG = re.compile(r"(?:^\s*|# |\. |\"\"\")(assumed|ours): (.*)")
REFERENCE = Path(__file__).parent.parent / "outputs" / "reference"
READMES = (REFERENCE.parent.parent / "README.md", REFERENCE / "bench" / "README.md")


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
    """Whether a tag that opens a line is a field of that name: no docstring is open there."""
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


def ledger(scale: str) -> list[str]:
    """Every claim and its verdict, from a scale's committed records."""
    folder, order = REFERENCE / scale, choices("paper")
    words, rows = verdict_words(scale), ledger_rows(folder, order)
    counts = Counter(row["verdict"] for row in rows)
    told = ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items())
    trainings = len(list(folder.glob("runs/*/result.json")))
    detectors = len(list(folder.glob("detections/*/result.json")))
    summary = f"{len(rows)} claims: {told}. They rest on {tell_trainings(trainings, detectors)}."
    return [summary, "", *ledger_markdown(folder, order, scale)]


def table(scale: str, artefact: str) -> list[str]:
    """An artefact's table, from the same records."""
    path = REFERENCE / scale / artefact / "table.md"
    return path.read_text(encoding="utf-8").splitlines()


def picture(scale: str, artefact: str) -> list[str]:
    """An artefact's figure, with its title, from the same records."""
    folder = REFERENCE / scale / artefact
    where = (folder / "figure.png").relative_to(REFERENCE.parent.parent).as_posix()
    return [f"![{read_json(folder / 'verdict.json')['title']}]({where})"]


def about(scale: str) -> list[str]:
    """What a scale's committed records were made of, by which command, on which machine."""
    folder = REFERENCE / scale
    runs = [path.parent for path in sorted(folder.glob("runs/*/result.json"))]
    images = sorted({read_counts(run) for run in runs})
    name = load(runs[0] / "config.yaml").data.name
    machines = sorted({_machine(read_json(run / "env.json")) for run in runs})
    times = read_json(folder / "reproduce.json")
    commands = {words_of(read_json(path)) for path in sorted(folder.glob("*/verdict.json"))}
    return [
        *(f"- Images: {train:,} for training, of {classes:,} classes, out of the "
          f"{whole_training_set(name, classes):,} that {name} has of them; {val:,} for testing."
          for classes, train, val in images),
        f"- Nets: {len(runs)}, each trained once: {_tell_nets(runs)}.",
        f"- Time: {duration(sum(times['seconds']['used'].values()))} in all, {times['jobs']} side "
        f"by side, {'; '.join(machines)}.",
        *(f"- Command: `delving reproduce ... {words}`" for words in sorted(commands)),
    ]  # fmt: skip


def _machine(env: dict) -> str:
    return f"{env['device']}, {env['precision']}, torch {env['torch']}"


def _tell_nets(runs: list[Path]) -> str:
    """How many of each model, width and number of epochs."""
    configs = [load(run / "config.yaml") for run in runs]
    counts = Counter((c.model.name, c.model.width, c.train.epochs) for c in configs)
    return ", ".join(
        f"{count} {model_title(model)} at width {width:g} for {epochs:g} epochs"
        for (model, width, epochs), count in sorted(counts.items())
    )


def robustness() -> list[str]:
    """What the long tests tried and how often it failed, as committed."""
    text = (REFERENCE / "robustness.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("|")]


SPEED = ("ours", "baseline", "ratio", "low", "high", "limit")
SHORT = {
    "h100": (
        "bias + PReLU, forward and backward, bf16 [128, 256, 56, 56]: against eager PReLU",
        "bias + PReLU, forward and backward, bf16 [128, 256, 56, 56]: against fused ReLU",
        "train a prelu, 128 images of 224, bf16: against plain PyTorch",
        "train a prelu, 128 images of 224, bf16: against the same net with ReLU",
        "train a prelu, 128 images of 224, bf16: peak memory, against ReLU",
        "dense a prelu, 289 windows at 480: against a forward pass per window",
        "loader, real JPEG files, s in [256, 512], crop 224, 14 processes: against torchvision's",
    ),
    "cpu": (
        "bias + PReLU, forward and backward, bf16 [8, 256, 56, 56]: against eager PReLU",
        "train scale=cpu device=cpu, 2 nets side by side: against a plain net with 2 threads",
        "train small14 prelu, 128 images of 224, bf16: against plain PyTorch",
        "dense a prelu, 289 windows at 480: against a forward pass per window",
        "loader, real JPEG files, s in [256, 512], crop 224, 0 processes: against torchvision's",
    ),
}


def speed(machine: str) -> list[str]:
    """The committed rows of `delving bench all --json` on that machine."""
    return _speed_table(read_json(REFERENCE / "bench" / f"{machine}.json"), SPEED, ("unit",))


def speed_short() -> list[str]:
    """The rows that tell most, for a GPU and for a CPU."""
    rows = []
    for machine, names in SHORT.items():
        found = {row["row"]: row for row in read_json(REFERENCE / "bench" / f"{machine}.json")}
        rows += [found[name] for name in names]
    return _speed_table(rows, SPEED[:-1], ("unit", "device"))


def _speed_table(rows: list[dict], numbers: Sequence[str], words: Sequence[str]) -> list[str]:
    lines = ["| " + " | ".join(["what", *numbers, *words]) + " |",
             "|---" * (1 + len(numbers) + len(words)) + "|"]  # fmt: skip
    for row in rows:
        cells = ["" if row[key] is None else f"{row[key]:,.4g}" for key in numbers]
        lines.append("| " + " | ".join([row["row"], *cells, *(row[key] for key in words)]) + " |")
    return lines


PICTURES = {
    "quarter": ("convergence", "table1", "figure3", "figure4"),
    "cpu": ("figure3", "convergence", "signal", "detection"),
}
BLOCKS: dict[str, Callable[[], list[str]]] = {
    "assumptions": partial(collect, "assumed"),
    "deviations": partial(collect, "ours"),
    "about_quarter": partial(about, "quarter"),
    "ledger_quarter": partial(ledger, "quarter"),
    "table2_quarter": partial(table, "quarter", "table2"),
    "table4_quarter": partial(table, "quarter", "table4"),
    "ledger": partial(ledger, "cpu"),
    "robustness": robustness,
    "speed_short": speed_short,
    "speed": partial(speed, "cpu"),
    "speed_gpu": partial(speed, "h100"),
    "table2": partial(table, "cpu", "table2"),
    "table1": partial(table, "cpu", "table1"),
    "detection": partial(table, "cpu", "detection"),
    **{
        f"picture_{artefact}_{scale}": partial(picture, scale, artefact)
        for scale, artefacts in PICTURES.items()
        for artefact in artefacts
    },
}


def refresh(readme: str) -> str:
    """A README with every block as source and results have it now."""
    for title, make in BLOCKS.items():
        if f"<!-- {title} -->" not in readme:
            continue
        block = f"<!-- {title} -->\n" + "\n".join(make()) + f"\n<!-- end {title} -->"
        pattern = rf"<!-- {title} -->.*?<!-- end {title} -->"
        readme = re.sub(pattern, lambda _, block=block: block, readme, flags=re.S)
    return readme


if __name__ == "__main__":
    for target in READMES:
        target.write_text(refresh(target.read_text(encoding="utf-8")), encoding="utf-8")
