"""Nets that train side by side in processes of their own, or as ranks that share each batch."""

import json
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from delving.artefact import published
from delving.bench.rounds import Row, compare, in_turns
from delving.launched import child

STEPS = 40  # of a round
GRACE = 60.0  # seconds for a process to end


class Racer:
    """A process that trains a net on noise, and waits between rounds."""

    def __init__(self, words: Sequence[str], *, plain: bool, threads: int, **environment: str):
        own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            **child("delving.bench.racer", json.dumps([plain, list(words)]), **own, **environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def start(self) -> None:
        """Tells the process to take the steps of a round. RuntimeError: it has ended."""
        try:
            print(STEPS, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None

    def rate(self) -> float:
        """Images a second of the steps that were started.

        Raises:
            RuntimeError: the process has ended.
        """
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        return float(line)

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"a process of the race ended, exit code {self.process.wait()}")

    def __enter__(self) -> "Racer":
        return self

    def __exit__(self, *_) -> None:
        self.let_go()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def let_go(self) -> None:
        """Tells the process to end."""
        with suppress(BrokenPipeError):  # what a dead process never read
            self.process.stdin.close()


def race(racers: Sequence[Racer]) -> float:
    """Images a second of all racers together."""
    for racer in racers:
        racer.start()
    return sum(racer.rate() for racer in racers)


def bench_side_by_side(words: Sequence[str], cores: int, rounds: int) -> list[Row]:
    """As many of our nets as `cores`, with a thread each, which is how `reproduce` trains, against
    one plain net with `cores` threads; and one of ours with as many against that plain net."""
    with ExitStack() as stack:

        def racer(*, plain: bool, threads: int) -> Racer:
            return stack.enter_context(Racer(words, plain=plain, threads=threads))

        ways = {
            "ours": [racer(plain=False, threads=1) for _ in range(cores)],
            "alone": [racer(plain=False, threads=cores)],
            "plain": [racer(plain=True, threads=cores)],
        }
        found = in_turns({name: lambda r=racers: race(r) for name, racers in ways.items()}, rounds)
    about = {"unit": "images/s", "device": f"cpu, {cores} cores"}
    name = f"train {' '.join(words)}"
    return [
        compare(f"{name}, {cores} nets side by side: against a plain net with {cores} threads",
                found["ours"], found["plain"], **about),
        compare(f"{name}, {cores} threads: against a plain net with as many", found["alone"],
                found["plain"], **about),
    ]  # fmt: skip


def bench_ranks(words: Sequence[str], counts: Sequence[int], rounds: int) -> list[Row]:
    """One run by n ranks, with a GPU or else a thread each, against one rank: the same batch,
    shared, as in the paper's "speedup". If the paper tells a speedup for n, the row names it."""
    rows, paper = [], published()["text"]["speedup"]
    for count in counts:
        with ExitStack() as stack:
            alone = [stack.enter_context(Racer(words, plain=False, threads=1))]
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()),
                      "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}  # fmt: skip
            ranks = [
                stack.enter_context(Racer(words, plain=False, threads=1, RANK=str(rank),
                                          LOCAL_RANK=str(rank), **shared))
                for rank in range(count)
            ]  # fmt: skip
            # A rank that ends waits for the others to end: all are told before any is waited for.
            stack.callback(lambda all_of_them=ranks: [rank.let_go() for rank in all_of_them])
            found = in_turns({"ranks": lambda r=ranks: race(r), "alone": lambda a=alone: race(a)},
                             rounds)  # fmt: skip
        told = f" (the paper's: {paper[count]}x)" if count in paper else ""
        rows.append(compare(f"train {' '.join(words)}, {count} ranks: against one{told}",
                            found["ranks"], found["alone"], unit="images/s",
                            device=f"{count} devices"))  # fmt: skip
    return rows


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
