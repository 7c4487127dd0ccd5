"""TERM, INT, HUP, USR1 and USR2 end a run after the step at hand, with its state saved."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# HUP comes where a terminal or a connection is closed. USR2 is what submitit has SLURM send before
# it takes a machine away.
HEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)  # "start me again": exit code 75
ABOVE = 1000  # all numbers of signals


BEFORE = "nothing had begun; the same command starts it"


class Interrupted(BaseException):
    """A signal came, and nothing is lost. `signal` is its number.

    As KeyboardInterrupt no Exception: libraries make other errors of those, or nothing at all.
    """

    def __init__(self, number: int, folder: Path | str | None = None, told: str = BEFORE):
        if folder:
            told = f"saved in {folder}; the same command goes on from there"
        super().__init__(f"{signal.Signals(number).name}: {told}")
        self.signal = number
        self.told_elsewhere = False  # of several ranks one tells of it


def counted(heard: Sequence[int]) -> int:
    """Which of the signals heard counts: one that wants the run started again, as a cluster sends
    before its TERM, else the first; 0 where there is none."""
    return next((number for number in heard if number in REQUEUE), heard[0] if heard else 0)


def rank_of(number: int) -> int:
    """The number, of several processes' the larger counts; `% ABOVE` gives it back."""
    return number + ABOVE * (number in REQUEUE)


@contextmanager
def heeding_signals() -> Iterator[list[int]]:
    """Yields the list that heard signals are appended to, after those that leaving_at_once heard in
    vain; a second INT leaves at once."""
    heard = [*getattr(signal.getsignal(signal.SIGTERM), "heard", ())]

    def hear(number: int, frame: object) -> None:
        if number == signal.SIGINT and heard:
            raise KeyboardInterrupt
        heard.append(number)

    with _handling(hear):
        yield heard


@contextmanager
def leaving_at_once(numbers: Sequence[int] = HEEDED, told: str = BEFORE) -> Iterator[list[int]]:
    """While nothing is there to be saved, a signal ends the run where it stands, tidily. Yields the
    list of those heard: Interrupted may have been raised where nothing is passed on, as in __del__.
    """
    heard: list[int] = []

    def leave(number: int, frame: object) -> None:
        heard.append(number)
        raise Interrupted(number, told=told)

    leave.heard = heard
    with _handling(leave, numbers):
        yield heard


@contextmanager
def _handling(handler, numbers: Sequence[int] = HEEDED) -> Iterator[None]:
    left = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup: it is to go on without us
    heeded = [number for number in numbers if not (left and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # one that was not set by Python cannot be set again
                signal.signal(number, old)
