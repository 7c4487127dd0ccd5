"""The standard streams, fit for every terminal, pipe and file, and what is fit to be printed."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from io import TextIOWrapper
from typing import TextIO

from delving.words import escaped

LONGEST = 2000  # characters of a printed line
SIZES = ("COLUMNS", "LINES", "TERMINAL_WIDTH")
WIDEST = 1000  # columns


def plain(text: object, longest: int = LONGEST) -> str:
    """Foreign text as one line for a terminal, the middle left out if it is longer than `longest`
    characters."""
    line = str(text)
    if len(line) > longest:
        line = f"{line[: longest // 2]} ... {line[len(line) - longest // 2 :]}"
    return escaped(line)


def say(text: object = "") -> None:
    """Prints a plain line to the standard output at once.

    Raises:
        OSError: it cannot be written to; names the stream, unless a pipe's reader has gone.
    """
    write(plain(text))


def write(text: str) -> None:
    """Prints text as it is; otherwise like `say`."""
    with naming_output():
        print(text, flush=True)


def flush() -> None:
    """Writes what waits to be printed; otherwise like `say`."""
    with naming_output():
        sys.stdout.flush()


@contextlib.contextmanager
def naming_output() -> Iterator[None]:
    """Makes errors of the standard output name it, and silences it from then on."""
    try:
        yield
    except OSError as error:
        silence(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise OSError(error.errno, error.strerror, "standard output") from error


def settle_streams() -> None:
    """Gives a process its three streams: closed ones become the null device, so that no file of
    ours takes their numbers, and what an encoding lacks is printed as an escape."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, hence this one; children inherit it as they would any.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        elif mode == "w" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for name in SIZES:
        if not _is_size(os.environ.get(name, "80")):
            del os.environ[name]  # libraries would use it unchecked


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 9 and 0 < int(text) <= WIDEST


def settle_warnings() -> None:
    """A library's warning is one plain line, without a piece of its source."""
    warnings.formatwarning = lambda message, *where: (
        f"delving: warning: {plain(' '.join(str(message).split()))}\n"
    )


def silence(stream: TextIO) -> None:
    """Sends the stream to the null device, so that the end of the process does not fail over what
    is still to be written."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())
