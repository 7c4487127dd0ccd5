"""Measures training time without pauses for validation and saving, and the wait for data in it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Meter:
    """Seconds of training over all sittings; images and waiting since the last log line."""

    def __init__(self, seconds: float):
        self.start, self.offset, self.pauses = time.perf_counter(), seconds, 0.0
        self.checkpointed = self.start
        self.images, self.waited, self.since = 0, 0.0, seconds
        self.gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # in a GPU's work

    @property
    def seconds(self) -> float:
        return self.offset + time.perf_counter() - self.start - self.pauses

    def timed(self, supply: Iterator, device: torch.device) -> Iterator:
        """Passes batches on and measures how long training waited for each; a GPU waits from the
        end of the work it was given before until the batch is there."""
        while True:
            before, given = time.perf_counter(), _mark(device)
            batch = next(supply, None)
            if given:
                self.gaps.append((given, _mark(device)))
            else:
                self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self.pauses += time.perf_counter() - before

    def checkpoint_due(self, minutes: float) -> bool:
        """Whether this many minutes have passed since it was last true, or since the start."""
        due = time.perf_counter() - self.checkpointed > 60 * minutes
        self.checkpointed = time.perf_counter() if due else self.checkpointed
        return due

    def rates(self) -> dict[str, float]:
        """images_per_second and the share of time waited for data, since the last call."""
        for given, came in self.gaps:
            came.synchronize()
            self.waited += given.elapsed_time(came) / 1000
        self.gaps.clear()
        now = self.seconds
        took = max(now - self.since, 1e-9)
        rates = {
            "images_per_second": round(self.images / took, 1),
            "wait": round(self.waited / took, 4),
        }
        self.images, self.waited, self.since = 0, 0.0, now
        return rates


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """An event after all work that a GPU was given so far; None on other devices."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
