"""TERM, INT, HUP, USR1 and USR2 end a run after the current step, with its state saved."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# HUP comes when a terminal or a connection is closed. USR2 is what submitit has SLURM send before
# it takes a machine away.
HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # "start me again": exit code 75
ABOVE = 1000  # more than any signal's number


BEFORE = "nothing had begun; the same command starts it"


class Interrupted(BaseException):
    """A signal came, and nothing is lost. `signal` is its number.

    Like KeyboardInterrupt it is no Exception: libraries turn those into other errors or drop them.
    """

    def __init__(self, number: int, folder: Path | str | None = None, told: str = BEFORE):
        if folder:
            told = f"saved in {folder}; the same command goes on from there"
        super().__init__(f"{signal.Signals(number).name}: {told}")
        self.signal = number
        self.told_elsewhere = False  # of several ranks, one tells the user


def counted(heard: Sequence[int]) -> int:
    """The signal that counts among those heard: one that wants the run started again, as a cluster
    sends before its TERM, else the first; 0 if there is none."""
    return next((number for number in heard if number in REQUEUE), heard[0] if heard else 0)


def rank_of(number: int) -> int:
    """A signal's rank: of several processes' signals the highest counts. `% ABOVE` undoes it."""
    return number + ABOVE * (number in REQUEUE)


@contextmanager
def heeding_signals() -> Iterator[list[int]]:
    """Yields the list that heard signals are appended to, after those that leaving_at_once heard in
    vain; an INT after another signal leaves at once."""
    heard = [*getattr(signal.getsignal(signal.SIGTERM), "heard", ())]

    def hear(number: int, frame: object) -> None:
        if number == signal.SIGINT and heard:
            raise KeyboardInterrupt
        heard.append(number)

    with _handling(hear):
        yield heard


@contextmanager
def leaving_at_once(numbers: Sequence[int] = HEEDED, told: str = BEFORE) -> Iterator[list[int]]:
    """Makes a signal raise Interrupted at once, while there is nothing to save. Yields the list of
    signals heard, since Interrupted may be raised where errors are swallowed, as in __del__."""
    heard: list[int] = []

    def leave(number: int, frame: object) -> None:
        heard.append(number)
        raise Interrupted(number, told=told)

    leave.heard = heard
    with _handling(leave, numbers):
        yield heard


@contextmanager
def _handling(handler, numbers: Sequence[int] = HEEDED) -> Iterator[None]:
    left = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup: the run is to go on
    heeded = [number for number in numbers if not (left and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # one that was not set by Python cannot be set again
                signal.signal(number, old)
