"""Sweeps: words that stand for several, such as `act=relu,prelu` or `seed=0..4`; their product."""

import itertools
import math
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from delving.words import quote, shown

RANGE = re.compile(r"(-?[0-9]{1,40})\.\.(-?[0-9]{1,40})")


@dataclass(frozen=True)
class Several:
    """What a word stands for, one after the other; counted before any is made."""

    count: int
    values: Iterable[str]


def read_ranges(text: str) -> Several | None:
    """`0..2,7` as 0, 1, 2 and 7; None if there is no range in it.

    Raises:
        ValueError: for a range that counts down.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(RANGE.fullmatch(part) for part in parts):
        return None
    lots = [_range_of(part) for part in parts]
    return Several(sum(lot.count for lot in lots), itertools.chain(*(lot.values for lot in lots)))


def _range_of(part: str) -> Several:
    found = RANGE.fullmatch(part)
    if not found:
        return Several(1, [part])
    first, last = int(found[1]), int(found[2])
    if last < first:
        raise ValueError(f"{shown(part)} counts down: write {shown(f'{last}..{first}')}")
    return Several(last - first + 1, map(str, range(first, last + 1)))


def read_steps(start: float, stop: float, step: float) -> Several:
    """Hydra's range: from start on, by steps, as long as stop is not reached. Floats count as the
    decimals they are written as, so that steps of 0.1 lead to exactly 0.3."""
    try:
        first, end, width = (Fraction(str(number)) for number in (start, stop, step))
        count = max(0, math.ceil((end - first) / width))
    except (ValueError, ZeroDivisionError):
        raise ValueError("a range takes finite numbers, and a step other than 0") from None
    whole = all(isinstance(number, int) for number in (start, stop, step))
    steps = (first + i * width for i in itertools.count())
    values = (str(int(x)) if whole else repr(float(x)) for x in steps)
    return Several(count, itertools.islice(values, min(count, sys.maxsize)))


def shuffled(several: Several, key: str) -> Several:
    """The same values in an order that depends on the key alone."""

    def values() -> Iterator[str]:
        lot = list(several.values)
        random.Random(key).shuffle(lot)
        yield from lot

    return Several(several.count, values())


def multiply(sweeps: Sequence[Several], limit: int) -> list[list[str]]:
    """Every choice of one word from each, the last changing fastest.

    Raises:
        ValueError: for more than `limit` of them, before any is made.
    """
    count = math.prod(sweep.count for sweep in sweeps)
    if count > limit:
        many = f"{count:,}" if count < 10**15 else f"some 10^{math.floor(math.log10(count))}"
        raise ValueError(f"these words make {many} runs; at most {limit:,}")
    return [list(words) for words in itertools.product(*(sweep.values for sweep in sweeps))]


def read_sweep(parsed: Any, *, lists: bool, names: Sequence[str]) -> Several | None:
    """What a word that Hydra has parsed stands for; None if that is one value.

    Args:
        parsed: its Override.
        lists: whether the knob takes a list, for which `8,16` is one and `[8,8],[8,16]` are two.
        names: what glob(...) chooses from; none where there is nothing to choose.

    Raises:
        ValueError: a word whose values cannot be listed one by one.
    """
    kind, sweep = parsed.value_type.name, parsed.value()
    if kind == "ELEMENT" or (kind == "SIMPLE_CHOICE_SWEEP" and lists and _is_one_list(parsed)):
        return None
    if kind == "GLOB_CHOICE_SWEEP" and names:
        chosen = [n for n in names if _fits(n, sweep.include) and not _fits(n, sweep.exclude)]
        return Several(len(chosen), chosen)
    if kind == "RANGE_SWEEP":
        return _in_order(read_steps(sweep.start, sweep.stop, sweep.step), sweep)
    if kind in ("CHOICE_SWEEP", "SIMPLE_CHOICE_SWEEP"):
        return _in_order(Several(len(sweep.list), [_word_of(x) for x in sweep.list]), sweep)
    raise ValueError("neither a value nor a list of values")


def _fits(name: str, patterns: Sequence[Any]) -> bool:
    return any(fnmatchcase(name, _word_of(pattern)) for pattern in patterns)


def _is_one_list(parsed: Any) -> bool:
    """Without brackets: `8,16`; not `[8,8],[8,16]`, and not `sort(16,8)`."""
    bare = "(" not in parsed.get_value_string()
    return bare and not any(isinstance(x, list) for x in parsed.value().list)


def _in_order(several: Several, sweep: Any) -> Several:
    """As it is, or shuffled, with itself as the key: the same words give the same order."""
    return shuffled(several, repr(sweep)) if sweep.shuffle else several


def _word_of(value: Any, *, inside: bool = False) -> str:
    """A value as Hydra reads it back."""
    if isinstance(value, list):
        return "[" + ",".join(_word_of(x, inside=True) for x in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_word_of(v, inside=True)}" for k, v in value.items()) + "}"
    text = getattr(value, "text", value)  # of a quoted one
    if isinstance(text, str):
        return quote(text) if inside and not re.fullmatch(r"[A-Za-z_]\w*", text) else text
    if text is None or isinstance(text, bool):
        return "null" if text is None else str(text).lower()
    if isinstance(text, int | float):
        return repr(text)
    raise ValueError("a sweep inside another")
