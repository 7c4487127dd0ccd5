"""TERM, INT and USR1 end a run after the step at hand, with its state saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal came; the state is saved. `signal` is its number."""

    def __init__(self, number: int, folder: Path | str):
        name = signal.Signals(number).name
        super().__init__(f"{name}: saved in {folder}; the same command goes on from there")
        self.signal = number


@contextmanager
def heeding_signals() -> Iterator[list[int]]:
    """Yields the list that heard signals are appended to; a second INT leaves at once."""
    heard: list[int] = []

    def hear(number: int, frame: object) -> None:
        if number == signal.SIGINT and heard:
            raise KeyboardInterrupt
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in HEEDED}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
