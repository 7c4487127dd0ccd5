"""What conf/ offers, read without hydra, so that `delving list` and suggestions cost nothing."""

import ast
import difflib
import re
from itertools import takewhile
from pathlib import Path

from delving.bounds import DEEPEST, FAMILIES
from delving.words import shown

# Inside the wheel conf/ lies in the package; in a checkout beside it.
CONF = next(
    p for p in (Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf") if p.is_dir()
)
PAPER_DEPTH = 14  # of small14, which small<N> lengthens
GROUPS = ("model", "act", "init", "data", "train", "eval", "scale")


def choices(group: str) -> list[str]:
    """The names in a group: scales from small to large, artefacts in the paper's order."""
    names = sorted(path.stem for path in (CONF / group).glob("[!.]*.yaml"))
    if group == "paper":
        return sorted(names, key=_place)
    order = ["smoke", "cpu", "quarter", "paper"]
    return sorted(names, key=lambda n: order.index(n) if n in order else -1)


def _place(artefact: str) -> float:
    """Where an artefact stands in the paper."""
    found = re.search(r"^place: *([\d.]+)", _read(CONF / "paper" / f"{artefact}.yaml"), re.M)
    return float(found[1]) if found else 0.0


def describe(group: str, name: str) -> str:
    """The first paragraph of the comment that opens a group's file, as one line, without a comment
    behind it; of an artefact without any, its module's first line."""
    lines = _read(CONF / group / f"{name}.yaml").splitlines()
    comment = takewhile(
        lambda x: x.startswith("# "), (x for x in lines if not x.startswith("# @package"))
    )
    told = " ".join(re.sub(" {2,}# .*", "", x[2:]).rstrip() for x in comment)
    return told or (_docstring(name) if group == "paper" else "")


def _docstring(artefact: str) -> str:
    """The first line of an artefact's docstring, read without importing it."""
    try:
        tree = ast.parse(_read(Path(__file__).parent / "paper" / f"{artefact}.py"))
    except (OSError, SyntaxError, ValueError):  # it is told where the file is needed
        return ""
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def _check_file(group: str, name: str) -> None:
    """Refuses what Hydra would accept, or report in words of its own: a name that is not the
    file's, under which it would not be found again, and a family that no scale knows."""
    path = CONF / group / f"{name}.yaml"
    for key, known in (("name", (name,)), ("family", FAMILIES)):
        said = re.search(rf"^{key}: *[\"']?([^\"'#\n]*?)[\"']? *(#.*)?$", _read(path), re.M)
        if said and said[1] and said[1] not in known:
            where = f"conf/{group}/{path.name}"
            raise ValueError(f"{where}: {key}: {shown(said[1])}; must be {' or '.join(known)}")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")  # composing reports what is wrong


def choose(group: str, value: str) -> list[str]:
    """The words that compose a choice, more than one for small<N>.

    Raises:
        ValueError: names the choices, and the likeliest; or what does not fit in its file.
    """
    names = choices(group)
    if value in names:
        _check_file(group, value)
        return [f"{group}={value}"]
    deeper = re.fullmatch(r"small([1-9][0-9]{1,3})", value)
    if group == "model" and deeper and PAPER_DEPTH <= int(deeper[1]) <= DEEPEST:
        return ["model=small14", f"model.name={value}", f"model.depth={int(deeper[1])}"]
    more = f", small<N> with N >= {PAPER_DEPTH}, at most {DEEPEST:,}" if group == "model" else ""
    close = difflib.get_close_matches(value.lower(), names, n=1)
    if group == "model" and (asked := re.fullmatch("small([0-9]{1,9})", value)):
        close = ["small14"] if int(asked[1]) <= PAPER_DEPTH else []
    advice = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"{group}={shown(value)}: choose from {', '.join(names)}{more}{advice}")
