"""Bounds of the knobs: each is a pair of the words that state it, or what finds the words for a
refused value, and the check itself."""

import math
import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from delving.words import shown

PROTOCOLS = ("center", "ten_view", "dense")
RANGES = ("raw", "scaled", "normalised")
FAMILIES = ("small", "large")
PRECISIONS = ("auto", "fp32", "bf16", "fp64")

Bound = tuple[str | Callable[[Any], str], Callable[[Any], bool]]
# Upper bounds are far beyond honest use: anything above them would hang or exhaust the memory.
DEEPEST = 1000  # conv and fc layers
SIDES = 20  # image sides in a list, at most
LEAST = 1e-30  # the smallest magnitude of a number other than 0


def number(low: float, high: float, *, above: bool = False) -> Bound:
    words = f"a number {'above' if above else 'from'} {low:g}{', at most' if above else ' to'} "
    return (
        f"{words}{high:,}",
        lambda v: (low < v if above else low <= v) and v <= high and _is_normal(v),
    )


def _is_normal(v: float) -> bool:
    """Whether a number is 0 or far enough from it not to be flushed to 0 once a net computes."""
    return v == 0 or abs(v) >= LEAST


def integer(low: int, high: int, more: str = "") -> Bound:
    return f"an integer from {low} to {high:,}{more}", lambda v: low <= v <= high


def one_of(choices: tuple[str, ...]) -> Bound:
    return "one of " + ", ".join(choices), lambda v: v in choices


def matching(pattern: str, words: str) -> Bound:
    return words, lambda v: re.fullmatch(pattern, v) is not None


def _sevenths(v: list) -> bool:
    """Whether all are integers from 7 to 70: OmegaConf checks no types in a list of lists."""
    return all(isinstance(x, int) and 7 <= x <= 70 for x in v)


FINITE = (f"a finite number above 0, {LEAST:g} or more", lambda v: math.isfinite(v) and v >= LEAST)
NOT_NEGATIVE = (
    "a finite number of at least 0", lambda v: math.isfinite(v) and v >= 0 and _is_normal(v)
)  # fmt: skip
SHARE = ("in [0, 1)", lambda v: 0 <= v < 1 and _is_normal(v))
BATCH, IMAGES = integer(1, 65_536), integer(1, 100_000_000)
# Folders are named after them.
NAME = matching(
    r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}", "a name: letters, digits, _ . + -, at most 64"
)
# Whether the machine has it is checked by pick_device.
DEVICE = matching("auto|cpu|mps|cuda(:[0-9]{1,3})?", "auto, cpu, cuda, cuda:N or mps")
PATH = (
    "a path: 1 to 4,096 characters, in UTF-8, none of them a control character",
    lambda v: 0 < len(v) <= 4096 and not {"Cc", "Cs"} & set(map(unicodedata.category, v)),
)
SEVENTHS = (
    f"1 to {SIDES} integers, sevenths of the crop from 7 to 70",
    lambda v: 0 < len(v) <= SIDES and _sevenths(v),
)
FROM_TO = (
    "[from, to] in sevenths of the crop, 7 <= from <= to <= 70",
    lambda v: len(v) == 2 and _sevenths(v) and v[0] <= v[1],
)
FRACTIONS = (
    "at most 20 rising fractions in (0, 1), or [] for a plateau",
    lambda v: (
        len(v) <= 20
        and all(isinstance(x, int | float) for x in v)
        and all(a < b for a, b in pairwise([0.0, *v, 1.0]))
    ),
)
SOME_PROTOCOLS = (
    "one or more of " + ", ".join(PROTOCOLS),
    lambda v: 0 < len(v) <= 20 and all(p in PROTOCOLS for p in v),
)


LISTED = "a list of {name: notation}, as - conv1: 7x7, 64, /2"
# OmegaConf's words for a mapping in the place of a list, and ours.
MAPPED = ("Cannot merge DictConfig with ListConfig", f"a mapping; model.layers is {LISTED}")
LAYERS = (lambda v: f"{LISTED}; {_fault_of_layers(v)}", lambda v: not _fault_of_layers(v))


def _fault_of_layers(v: list) -> str:
    """What is wrong with layers by their names; their notation is read when the net is built."""
    if not isinstance(v, list):
        return f"{shown(v)} is no list"
    if not 0 < len(v) <= 200:
        return f"1 to 200 of them, not {len(v):,}"
    if fault := next(filter(None, map(_fault_of_line, v)), ""):
        return fault
    names = [name for line in v for name in line]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        return f"{twice[0]} is there twice"
    if not names[0].startswith("conv"):
        return f"the first is to be a conv, not {names[0]}"
    return "" if names[-1].startswith("fc") else f"the last is to be an fc, not {names[-1]}"


def _fault_of_line(line: Any) -> str:
    if not (isinstance(line, dict) and len(line) == 1):
        return f"{shown(line)} is not one"
    [(name, text)] = line.items()
    if not re.fullmatch("[a-z]{1,9}[0-9]{0,3}", str(name)):
        return f"{shown(name)}: a name is letters, and a number after them"
    if isinstance(text, dict):  # as YAML reads {3,1}
        return f'{name}: levels of spp are written in quotes, "{{3,1}}"'
    return "" if isinstance(text, str | int) else f"{name}: {shown(text)} is no notation"
