"""Tensors on their way from a loader process, in memory that both sides see, or as bytes.

torch's own way asks the sender for each tensor while it is unpacked, and waits for ever where that
process has stopped; it also needs room in /dev/shm, of which containers have little.
"""

import io
import math
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, BinaryIO

import torch
from torch import Tensor

# Elsewhere, as on macOS, Python waits for a handle's receipt on this very pipe, where keys are.
SHARED = hasattr(os, "memfd_create")
ALIGNED = 64  # bytes, at whose multiples tensors begin


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


def send(pipe: Connection, item: Any) -> None:
    """Sends an item: a tensor or a tuple of them, with small other things among them.

    Raises:
        OSError: no memory is left, or nobody listens.
    """
    with _open_memory() as memory:
        places = map_tensors(item, lambda tensor: _write(memory, tensor))
        memory.write(bytes(1))  # nothing at all could not be mapped
        memory.flush()
        pipe.send(places)
        if SHARED:
            send_handle(pipe, memory.fileno(), None)
        else:
            pipe.send_bytes(memory.getbuffer())


def receive(pipe: Connection) -> Any:
    """The item that was sent; its tensors' memory is freed with the last of them.

    Raises:
        EOFError, OSError, RuntimeError: the other side is gone, or no file can be opened here.
    """
    places = pipe.recv()
    memory = _map(recv_handle(pipe)) if SHARED else bytearray(pipe.recv_bytes())
    return map_tensors(places, lambda place: _read(memory, place), of=Place)


def map_tensors(item: Any, change: Callable, of: type = Tensor) -> Any:
    """The item with `change` made to its tensors, or to whatever is `of` another type."""
    if isinstance(item, of):
        return change(item)
    if isinstance(item, tuple):
        parts = [map_tensors(part, change, of) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
    return item


def _open_memory() -> BinaryIO:
    """A file without a name: it goes with the last process that holds it, however that ends."""
    return open(os.memfd_create("images"), "w+b") if SHARED else io.BytesIO()


def _map(handle: int) -> mmap.mmap:
    try:
        return mmap.mmap(handle, 0)
    finally:
        os.close(handle)


def _write(memory: BinaryIO, tensor: Tensor) -> Place:
    offset = memory.seek(math.ceil(memory.tell() / ALIGNED) * ALIGNED)
    memory.write(tensor.contiguous().numpy())
    return Place(tensor.dtype, tuple(tensor.shape), offset)


def _read(memory: mmap.mmap | bytearray, place: Place) -> Tensor:
    count = math.prod(place.shape)
    flat = torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.offset)
    return flat.view(place.shape)
