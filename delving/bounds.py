"""Bounds of the knobs: each is a pair of the words that state it and the check itself."""

import math
import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import Any

PROTOCOLS = ("center", "ten_view", "dense")
RANGES = ("raw", "scaled", "normalised")
FAMILIES = ("small", "large")
PRECISIONS = ("auto", "fp32", "bf16", "fp64")

Bound = tuple[str, Callable[[Any], bool]]
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
        len(v) <= 20 and all(isinstance(x, int | float) for x in v) and _rises([0.0, *v, 1.0])
    ),
)
SOME_PROTOCOLS = (
    "one or more of " + ", ".join(PROTOCOLS),
    lambda v: 0 < len(v) <= 20 and all(p in PROTOCOLS for p in v),
)


LAYERS = (
    "1 to 200 {name: notation}, as - conv1: 7x7, 64, /2; names of letters and a number after them, "
    "a conv first, an fc last, no name twice",
    lambda v: 0 < len(v) <= 200 and _are_layers(v),
)


def _are_layers(v: list[dict]) -> bool:
    """Checks layers by their names only; their notation is read when the net is built."""
    if not all(isinstance(line, dict) and len(line) == 1 for line in v):
        return False
    pairs = [pair for line in v for pair in line.items()]
    names = [str(name) for name, _ in pairs]
    named = all(re.fullmatch("[a-z]{1,9}[0-9]{0,3}", name) for name in names)
    plain = all(isinstance(text, str | int) for _, text in pairs)
    ends = names[0].startswith("conv") and names[-1].startswith("fc")
    return named and plain and ends and len(set(names)) == len(names)


def _rises(v: list[float]) -> bool:
    return all(a < b for a, b in pairwise(v))
