"""Two ways of doing the same, measured in turns, and what the turns say."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch

from delving.device import settle

ROUNDS = 7  # at least 3; the first of each way is not counted
SECONDS = 1.0  # of one way in one round, about


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        row: what is measured, and against what.
        ours, baseline: medians over the rounds, in `unit`.
        ratio: how many times better ours is, the median of the rounds; low, high: the lowest and
            the highest round.
        limit: what this machine could do at most, in `unit`, as measured beside; fraction, what
            part of it ours is. None where there is none to measure.
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
    """To four digits: no measurement here has more."""
    return float(f"{value:.4g}")


def seconds_each(
    work: Callable[[], None], device: torch.device, least: float | None = None
) -> float:
    """Seconds of one call, from as many calls as fill `least` seconds, by default SECONDS; one is
    made before."""
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


def in_turns(ways: dict[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """What each way gave in each round, round by round; the first round warms up and is left out.

    A way is called once a round and returns what it measured.
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
    """The row of two ways' rounds; `unit` says what is better: of times and memory, less."""
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
