"""What conf/ offers, read without hydra, so that `delving list` and suggestions cost nothing."""

from pathlib import Path

# Inside the wheel conf/ lies in the package; in a checkout beside it.
CONF = next(
    p for p in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if p.is_dir()
)
GROUPS = ("model", "act", "init", "data", "train", "eval", "scale")


def choices(group: str) -> list[str]:
    """The names in a group, scales from small to large, others sorted."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    order = ["smoke", "cpu", "quarter", "paper"]
    return sorted(names, key=lambda n: order.index(n) if n in order else -1)


def describe(group: str, name: str) -> str:
    """The comment that opens a group's file, as one line."""
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comments = [x[1:].strip() for x in lines if x.startswith("#") and "@package" not in x]
    return " ".join(comments)
