"""What conf/ offers, read without hydra, so that `delving list` and suggestions cost nothing."""

import re
from itertools import takewhile
from pathlib import Path

# Inside the wheel conf/ lies in the package; in a checkout beside it.
CONF = next(
    p for p in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if p.is_dir()
)
GROUPS = ("model", "act", "init", "data", "train", "eval", "scale")


def choices(group: str) -> list[str]:
    """The names in a group: scales from small to large, artefacts in the paper's order."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if group == "paper":
        return sorted(names, key=_place)
    order = ["smoke", "cpu", "quarter", "paper"]
    return sorted(names, key=lambda n: order.index(n) if n in order else -1)


def _place(artefact: str) -> float:
    """Where an artefact stands in the paper."""
    text = (CONF / "paper" / f"{artefact}.yaml").read_text(encoding="utf-8")
    found = re.search(r"^place: *([\d.]+)", text, re.M)
    return float(found[1]) if found else 0.0


def describe(group: str, name: str) -> str:
    """The first paragraph of the comment that opens a group's file, as one line."""
    lines = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = takewhile(
        lambda x: x.startswith("# "), (x for x in lines if not x.startswith("# @package"))
    )
    return " ".join(x[2:] for x in comment)
