"""Ways of doing the same thing, measured in turns, and what the turns say."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch

from delving.device import settle

SECONDS = 1.0  # about, of one way in one round


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        row: what is measured, and against what.
        ours, baseline: medians over the rounds, in `unit`.
        ratio: how many times better ours is, the median of the rounds; low, high: the lowest and
            the highest round.
        limit: the most that this machine could do, in `unit`, measured in the same run; fraction:
            the share of it that ours reaches.

    What was not measured is None.
    """

    row: str
    ours: float
    baseline: float | None
    ratio: float | None
    low: float | None
    high: float | None
    limit: float | None
    fraction: float | None
    unit: str
    device: str

    def as_record(self) -> dict:
        return {k: round_off(v) if isinstance(v, float) else v for k, v in asdict(self).items()}


def round_off(value: float) -> float:
    """To four significant digits: no measurement here has more."""
    return float(f"{value:.4g}")


def seconds_each(
    work: Callable[[], None], device: torch.device, least: float | None = None
) -> float:
    """Seconds a call, over as many calls as fill `least` seconds (by default SECONDS), after one
    that is not counted."""
    least = SECONDS if least is None else least
    work()
    settle(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < least or not count:
        for _ in range(1 if device.type == "cpu" or not least else 10):
            work()
            count += 1
        settle(device)
    return (time.perf_counter() - start) / count


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way measured in each of the rounds, after one more that only warms up.

    Each way is called once a round and returns what it measured.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            value = way()
            if number:
                found[name].append(value)
    return found


def compare(
    row: str,
    found: list[float],
    theirs: list[float] | None = None,
    *,
    unit: str,
    device: str,
    limit: float | None = None,
) -> Row:
    """The row of `found` beside `theirs`, if given; of time, memory and % less is better."""
    less = unit in ("s", "ms", "GB", "%")
    mine = median(found)
    pairs = zip(found, theirs or found, strict=True)
    ratios = [b / a if less else a / b for a, b in pairs] if theirs else []
    part = None if limit is None else (limit / mine if less else mine / limit)
    return Row(
        row,
        mine,
        median(theirs) if theirs else None,
        median(ratios) if ratios else None,
        min(ratios, default=None),
        max(ratios, default=None),
        limit,
        part,
        unit,
        device,
    )
