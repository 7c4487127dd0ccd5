"""Sends tensors from a loader process, in memory that both sides see, or as bytes.

torch's own way asks the sender for each tensor when unpacking it, and waits for ever if the sender
has stopped; it also needs room in /dev/shm, of which containers have little.
"""

import errno
import io
import math
import mmap
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import torch
from torch import Tensor

SHARED = hasattr(os, "memfd_create")  # not on macOS: there items travel as bytes
ALIGNED = 64  # bytes; tensors begin at multiples of it
MARK = b"f"  # what a file travels with


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Packed:
    """An item as it travels: a Place instead of each tensor, and the open file with their data."""

    places: Any
    file: BinaryIO

    def unpack(self) -> Any:
        """The item; closes the file. Writing to its tensors changes no other process's."""
        with self.file as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            return _unpack(self.places, memory)


def send(pipe: Connection, made: bool, item: Any) -> None:
    """Sends an item: a tensor, a tuple of tensors and other small things, or a Packed one. `made`:
    whether it is the item that was asked for.

    Raises:
        OSError: no memory is left, or nobody listens.
    """
    packed = item if isinstance(item, Packed) else _pack(item)
    with packed.file as memory:
        pipe.send((made, packed.places))
        if SHARED:
            _send_file(pipe, memory)
        else:
            pipe.send_bytes(memory.getvalue())  # a view that an error keeps would forbid closing


def limit(pipe: Connection, seconds: float | None) -> None:
    """Makes `receive` wait at most this many seconds for each part of an item (None: for ever): its
    sender may be stopped midway."""
    whole, part = divmod(round(1e6 * (seconds or 0)), 10**6)  # 0: for ever
    with _socket_of(pipe) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", whole, part))


def receive(pipe: Connection) -> tuple[bool, Any]:
    """What was sent; its tensors' memory is freed with the last of them.

    Raises:
        BlockingIOError: nothing came for as long as `limit` says.
        EOFError, OSError: the other side is gone, or no file can be opened here.
    """
    made, places = pipe.recv()
    if SHARED:
        return made, Packed(places, _receive_file(pipe)).unpack()
    return made, _unpack(places, bytearray(pipe.recv_bytes()))


def map_tensors(item: Any, change: Callable, of: type = Tensor) -> Any:
    """The item with `change` applied to its tensors, or to whatever in it is of the type `of`."""
    if isinstance(item, of):
        return change(item)
    if isinstance(item, tuple):
        parts = [map_tensors(part, change, of) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
    return item


def _socket_of(pipe: Connection) -> socket.socket:
    return socket.fromfd(pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)


def _send_file(pipe: Connection, file: BinaryIO) -> None:
    """Python's own way (send_handle) awaits the receipt on this very pipe, which carries keys: on
    Linux from 3.14 on."""
    with _socket_of(pipe) as end:
        socket.send_fds(end, [MARK], [file.fileno()])


def _receive_file(pipe: Connection) -> BinaryIO:
    with _socket_of(pipe) as end:
        mark, files, _, _ = socket.recv_fds(end, len(MARK), maxfds=1)
    if not mark:
        raise EOFError
    if not files:  # the system drops what it has no number for
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return open(files[0], "rb")


def _open_memory() -> BinaryIO:
    """A file without a name: it vanishes with the last process that holds it, however that ends."""
    return open(os.memfd_create("images"), "w+b") if SHARED else io.BytesIO()


def _pack(item: Any) -> Packed:
    memory = _open_memory()
    try:
        places = map_tensors(item, lambda tensor: _write(memory, tensor))
        memory.write(bytes(1))  # an empty file cannot be mapped
        memory.flush()
    except BaseException:
        memory.close()
        raise
    return Packed(places, memory)


def _unpack(places: Any, memory: mmap.mmap | bytearray) -> Any:
    return map_tensors(places, lambda place: _read(memory, place), of=Place)


def _write(memory: BinaryIO, tensor: Tensor) -> Place:
    offset = memory.seek(math.ceil(memory.tell() / ALIGNED) * ALIGNED)
    memory.write(tensor.contiguous().numpy())
    return Place(tensor.dtype, tuple(tensor.shape), offset)


def _read(memory: mmap.mmap | bytearray, place: Place) -> Tensor:
    count = math.prod(place.shape)
    flat = torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.offset)
    return flat.view(place.shape)
