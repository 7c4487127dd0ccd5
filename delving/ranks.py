"""Several processes that train or score one run together, as torchrun or SLURM starts them.

Rank 0 alone writes and speaks. Every rank takes its rows of each batch, so that their number
changes nothing but the order of sums.
"""

import json
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from delving.launched import RANK, SIZE, are_several
from delving.signals import ABOVE, Interrupted, counted, rank_of

VARIABLES = (RANK, SIZE, "MASTER_ADDR", "MASTER_PORT")
MEETING = 300.0  # seconds in which all ranks must come
LATE = 10.0  # seconds after which rank 0 says that it waits
ATTEMPT = timedelta(seconds=3)  # one attempt to reach the meeting place
SIGNS = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "gloo/")
# A killed rank is noticed at once, by gloo's closed connections; one whose machine vanished is
# noticed after this long, as either is by NCCL's watchdog. Rank 0 may use some of it to save.
PATIENCE = timedelta(minutes=10)


class OtherRankError(Exception):
    """Another rank failed, and says so itself; this one stops too."""

    told_elsewhere = True


class LostRankError(RuntimeError):
    """Another rank is gone without a word, killed or cut off, or never came."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank, size: among all; local_rank, local_size: among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in the tensor's place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, value: int) -> int:
        """The largest of all ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (one that JSON can hold), in the ranks' order."""
        if self.size == 1:
            return [value]
        return [self._tell(value, rank) for rank in range(self.size)]

    def tell(self, value: Any = None) -> Any:
        """Rank 0's value (one that JSON can hold), on every rank."""
        return value if self.size == 1 else self._tell(value, 0)

    def _tell(self, value: Any, rank: int) -> Any:
        # As text: torch itself would send objects as pickles.
        data = json.dumps(value).encode() if rank == self.rank else b""
        length = torch.tensor(len(data))
        dist.broadcast(length, rank)
        text = torch.empty(int(length), dtype=torch.uint8)
        if rank == self.rank:
            text.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(text, rank)
        return json.loads(text.numpy().tobytes())

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Writes rank 0's values into every rank's tensors, in place."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, 0)

    def sharing(self) -> int:
        """How many ranks, this one included, compute on the same cores: under torchrun all of a
        machine; under SLURM each may be bound to cores of its own."""
        if self.size == 1:
            return 1
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        mine = [socket.gethostname(), cores]
        return self.gather(mine).count(mine)

    def wait(self) -> None:
        """Waits until every rank is here."""
        self.largest(0)

    @contextmanager
    def same_fate(self) -> Iterator[None]:
        """What fails on one rank fails on all; nothing inside may wait for other ranks.

        Raises:
            OtherRankError: on the ranks where nothing had failed.
        """
        mine = None
        try:
            yield
        except (Exception, Interrupted) as error:
            if self.size == 1:
                raise
            mine = error
        if self.size == 1:
            return
        texts = self.gather(mine and f"{type(mine).__name__}: {mine}")
        failed = [f"rank {rank}: {text}" for rank, text in enumerate(texts) if text]
        if mine:
            if texts.index(texts[self.rank]) < self.rank:  # of those alike the first tells
                mine.told_elsewhere = True
            raise mine
        if failed:
            raise OtherRankError(failed[0])

    def fail(self, error: Exception) -> None:
        """Raises an error that every rank has found; rank 0 says it."""
        raise error if self.first else OtherRankError(str(error))

    def told(self, heard: Sequence[int]) -> int:
        """The signal that counts among all that any rank has heard, 0 if none; the same on all."""
        return self.largest(rank_of(counted(heard))) % ABOVE

    def stop_if_told(self, heard: Sequence[int], folder: Path | None = None) -> None:
        """Raises Interrupted on every rank if one of them has heard a signal."""
        self.stop(self.told(heard), folder)

    def stop(self, number: int, folder: Path | None = None) -> None:
        """Raises Interrupted unless `number`, known to all ranks, is 0; rank 0 says it."""
        if number:
            error = Interrupted(number, folder)
            error.told_elsewhere = not self.first
            raise error

    def share(self, net: nn.Module, device: torch.device) -> nn.Module:
        """The net in torch's DDP, which combines gradients over the ranks while they are computed.

        DDP takes their mean, so the loss must be multiplied by the number of ranks.
        """
        if self.size == 1:
            return net
        return nn.parallel.DistributedDataParallel(
            net,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this run; inside another `joined` the same ones.

    Raises:
        ValueError: environment variables that make no sense.
        LostRankError: another rank did not come, or is gone.
    """
    if not are_several():
        yield ALONE
    elif dist.is_initialized():
        yield _read_ranks()
    else:
        ranks = _read_ranks()
        with _naming_losses(ranks):
            _join(ranks)
            yield ranks
        # Not after an error: the others may be gone, and taking leave would wait for them.
        dist.destroy_process_group()


def _join(ranks: Ranks) -> None:
    store = _open_store(ranks)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(_meet(store, ranks), store),
        rank=ranks.rank,
        world_size=ranks.size,
        timeout=PATIENCE,
    )


def _open_store(ranks: Ranks) -> dist.TCPStore:
    """The store where ranks meet, as torch's env:// has it. Short attempts are repeated and no rank
    is waited for, since a wait inside torch hears no signal. LostRankError if nobody answers."""
    host, port = os.environ["MASTER_ADDR"], _number("MASTER_PORT")
    if port not in range(1 << 16):
        raise ValueError(f"MASTER_PORT={port}: choose from 0 to 65535")
    serves = ranks.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    until = time.monotonic() + MEETING
    while True:
        try:
            store = dist.TCPStore(host, port, ranks.size, serves, ATTEMPT, wait_for_workers=False,
                                  multi_tenant=serves)  # fmt: skip
        except dist.DistError as error:
            where = f"MASTER_ADDR={host} MASTER_PORT={port}: {str(error).splitlines()[0]}"
            if serves:
                raise ValueError(where) from error
            if time.monotonic() > until:
                raise LostRankError(where) from error
        else:
            store.set_timeout(PATIENCE)
            return store


def _meet(store: dist.Store, ranks: Ranks) -> str:
    """A name for this meeting that all its ranks know and no earlier meeting had.

    torchrun keeps its store through restarts, with what ranks now dead have written there: a rank
    that took their addresses for those of living ones would wait in vain.
    """
    own, start, told = uuid.uuid4().hex, time.monotonic(), False
    if ranks.first:
        store.set("delving/meeting", own)
    while time.monotonic() < start + MEETING:
        if ranks.first and not told and time.monotonic() > start + LATE:
            told = True
            warnings.warn(f"waiting for {ranks.size} ranks (WORLD_SIZE)", stacklevel=2)
        if ranks.first:
            there = [f"delving/{own}/{rank}" for rank in range(1, ranks.size)]
            if store.check(there):
                store.set(f"delving/{own}/all", b" ".join(store.get(key) for key in there))
                return own
        elif store.check(["delving/meeting"]):
            name = store.get("delving/meeting").decode()
            store.set(f"delving/{name}/{ranks.rank}", own)
            everyone = f"delving/{name}/all"
            if store.check([everyone]) and own in store.get(everyone).decode().split():
                return name
        time.sleep(0.02)
    raise LostRankError(f"not all of {ranks.size} ranks came within {MEETING:g} s")


@contextmanager
def _naming_losses(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, dist.DistError) or any(sign in str(error) for sign in SIGNS)
        if not known or isinstance(error, LostRankError):
            raise
        told = f"rank {ranks.rank} lost another rank, and goes on from the last checkpoint when"
        raise LostRankError(f"{told} started again: {str(error).splitlines()[0]}") from error


def _read_ranks() -> Ranks:
    lacking = [name for name in VARIABLES if not os.environ.get(name)]
    if lacking:
        raise ValueError(f"one of several processes, but {', '.join(lacking)} is not set: torchrun "
                         "--nproc-per-node=N -m delving train ... sets it")  # fmt: skip
    rank, size = _number(RANK), _number(SIZE)
    local_rank, local_size = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size)
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise ValueError(
            f"RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local_rank} of "
            f"LOCAL_WORLD_SIZE={local_size}: no such rank"
        )
    return Ranks(rank, size, local_rank, local_size)


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ValueError(f"{name}={text}: not a number")
    return int(text)


def agree(ranks: Ranks, find: Callable[[], Any]) -> Any:
    """What rank 0 finds, as JSON can hold it, on every rank; its error as same_fate has it."""
    found = None
    with ranks.same_fate():
        found = find() if ranks.first else None
    return ranks.tell(found)
