"""Words as people type them: how they are printed, and what they may have meant."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def cut(value: object, most: int = 80) -> str:
    """A value as text, its end left out if it is long."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def escaped(text: str) -> str:
    """A text in one line, control characters and escape sequences as repr writes them."""
    if text.isprintable():  # nearly all is, and pictures inside a page are long
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: object, most: int = 80) -> str:
    """A value as it may stand in a message: short, in one line, without control characters."""
    return escaped(cut(value, most))


def first_line(error: Exception) -> str:
    """The first line of a library's message, cut if it is long."""
    lines = str(error).splitlines() or [type(error).__name__]
    return shown(" ".join(lines[0].split()), most=300)


def quote(value: str) -> str:
    """A text as Hydra reads it back unchanged."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def at_home(key: str, value: str) -> str:
    """The value, for output_root with its `~` expanded, which not every shell does behind a `=`."""
    return os.path.expanduser(value) if key == "output_root" else value


def last_of_each(words: Iterable[str]) -> dict[str, str]:
    """{key: word} of `key=value` words: for each key its last word, in that word's place."""
    found: dict[str, str] = {}
    for word in words:
        key = word.partition("=")[0]
        found.pop(key, None)
        found[key] = word
    return found


def duration(seconds: float | None) -> str:
    """Seconds in words; a dash where there are none."""
    if seconds is None:
        return "–"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3597:
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, what: str) -> str:
    """1 run, 2 runs."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def nearest(word: str, known: Sequence[str]) -> str:
    """'; did you mean x?' with the likeliest of `known`, or else a list of them all."""
    known = list(dict.fromkeys(known))
    return likeliest(word, known) or f"; there is {', '.join(known)}"


# Other programs' words for ours.
COMMON = {"batch_size": "batch", "learning_rate": "lr", "num_workers": "workers"}


def likeliest(word: str, known: Sequence[str]) -> str:
    """'; did you mean x?' with the likeliest of `known`, or ''; for a message that names them all
    itself."""
    word = COMMON.get(word, word)
    if same := [k for k in known if k.lower() == word.lower()]:
        return f"; did you mean {same[0]}?"
    same_end = [k for k in known if k.split(".")[-1] == word.split(".")[-1]]
    word = word.lower()
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    # A single key with that end is enough; with several the one meant may be spelt otherwise.
    found = same_end if len(same_end) == 1 else list(dict.fromkeys(same_end + close))
    if not found:
        by_end = {k.split(".")[-1]: k for k in known}
        ends = difflib.get_close_matches(word.split(".")[-1], by_end, n=3)
        found = [by_end[end] for end in ends]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def refuse_slip(word: str, ours: Sequence[str]) -> str:
    """The word; ValueError if its key is nearly one of `ours`, and so a slip for it."""
    key = word.partition("=")[0]
    section = key.partition(".")[0]
    close = difflib.get_close_matches(section, ours, n=1, cutoff=0.75)
    if close and section != close[0]:
        meant = key.replace(section, close[0], 1)
        raise ValueError(f"there is no {shown(section)!r}; did you mean {shown(meant)}?")
    return word


def shortest_labels(names: list[str]) -> dict[str, str]:
    """Run names to the parts in which they differ: `prelu` and `relu` of two otherwise equal."""
    parts = [name.split("-") for name in names]
    common = set(parts[0]).intersection(*parts[1:]) if len(names) > 1 else set()
    return {
        name: "-".join(p for p in part if p not in common) or name
        for name, part in zip(names, parts, strict=True)
    }


def name_apart(folders: Sequence[Path]) -> dict[str, Path]:
    """{name: folder}, each folder once: its own name; if several share one, the scale and the name,
    or else the whole path. Runs of several scales and roots can share names."""
    once = {folder.resolve(): folder for folder in folders}
    for spell in (lambda p: p.name, lambda p: f"{p.parent.parent.name}/{p.name}", str):
        named = {spell(place): folder for place, folder in once.items()}
        if len(named) == len(once):
            break
    return named
