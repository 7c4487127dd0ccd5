"""How the console script ends: every error in a line, with the exit codes of the contract."""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from delving.signals import HEEDED, REQUEUE, Interrupted, counted, leaving_at_once
from delving.terminal import flush, plain

BAD_INPUT = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
STOPPED = "stopped here; the same command does what is left"
BAD_PLACES = (errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)


def exit_code(command: Callable[[], int], *, debug: bool = False) -> int:
    """What a command returns, or the code of the error that ended it, which is printed in a line,
    with `debug` below its traceback."""
    others, heard = [number for number in HEEDED if number != signal.SIGINT], []
    with _noting_interrupts() as noted:
        try:
            _check_directory()
            # For imports, plans and drawing; runs and detections handle signals themselves, as
            # they have something to save.
            with leaving_at_once(others, STOPPED) as heard:
                code = command()
            flush()
            return code
        except KeyboardInterrupt:
            return _fail("interrupted", 130)
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # rich's exit, on a help text
                return 0
            raise
        except (Exception, Interrupted) as error:
            # A library that was being imported may have turned it into another error.
            if noted:
                return _fail("interrupted", 130)
            if heard and not isinstance(error, Interrupted):
                error = Interrupted(counted(heard), told=STOPPED)
            if debug:
                traceback.print_exc()
            return _report(error)


def end(code: int) -> NoReturn:
    """Ends the process with that code. If ranks are still joined, after an error, torch's shutdown
    is skipped: it would wait for others that may be gone, or abort."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Yields a list in which Ctrl-C is noted, besides the KeyboardInterrupt that it raises."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _check_directory() -> None:
    # Libraries ask for it, and one of torch's ends the process if there is none.
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the working directory was deleted: go to one that is there") from None


def _report(error: BaseException) -> int:
    silent, number = getattr(error, "told_elsewhere", False), getattr(error, "signal", None)
    if number is not None:
        return _fail("" if silent else str(error), 75 if number in REQUEUE else 128 + number)
    if hasattr(error, "format_message"):  # typer's own: an unknown option or command
        return _fail(_tell_usage(error), 2)
    with contextlib.suppress(OSError):
        flush()  # else the process would fail over it at its end
    if isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
        return 0
    bad_input = isinstance(error, BAD_INPUT) or getattr(error, "errno", None) in BAD_PLACES
    return _fail("" if silent else describe(error), 2 if bad_input else 1)


def _tell_usage(error: Exception) -> str:
    """typer's words; for a command that resembles none, the commands there are, and for a key that
    was given as an option, how to give it."""
    from delving.groups import GROUPS  # valid commands do without it
    from delving.schema import Config, leaves

    told, group = error.format_message(), getattr(getattr(error, "ctx", None), "command", None)
    key = getattr(error, "option_name", "").lstrip("-").replace("-", "_")
    if key in {*GROUPS, *(name for name, _, _ in leaves(Config()))}:
        return f"No such option: {error.option_name} (write {key}=...)"
    if told.startswith("No such command") and "Did you mean" not in told:
        return f"{told.rstrip('.')}: choose from {', '.join(getattr(group, 'commands', ()))}"
    return told


def describe(error: BaseException) -> str:
    """An error in words, never empty: the path and its fault, the message, or the kind."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        # Of a rename the target: the other was made for it, under a name of no meaning to users.
        place = error.filename if error.filename2 is None else error.filename2
        at = "" if place is None else f"{os.fsdecode(place)}: "
        return f"{at}{error.strerror}"
    text, kind = str(error).strip(), type(error).__name__
    telling = isinstance(error, ValueError | OSError | RuntimeError) and text
    return text if telling else f"{kind}: {text}" if text else kind


def _fail(message: str, code: int) -> int:
    line = plain(" ".join(message.split()))
    with contextlib.suppress(OSError):  # nobody reads it; the code still tells
        if line:  # typer has printed the help by itself where a command is missing
            print(f"delving: {line}", file=sys.stderr, flush=True)
    return code
