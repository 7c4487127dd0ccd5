"""Reads files of arrays (.npz), which may be damaged or a stranger's, or refuses them by name."""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from delving.words import first_line

# What numpy raises on files that are no archive of arrays, or a damaged one.
FAULTS = (
    OSError, KeyError, ValueError, TypeError, AttributeError, EOFError, SyntaxError, RuntimeError,
    MemoryError, OverflowError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


def read_arrays(path: Path, keys: Sequence[str], what: str) -> list[np.ndarray]:
    """The arrays of these names.

    Args:
        what: what the file should hold, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file that is damaged, lacks an array, or holds pickled objects or NaN.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is not readable: it is no regular file")
    try:
        with np.load(path, allow_pickle=False) as saved:
            found = [saved[key] for key in keys]
        if not all(isinstance(one, np.ndarray) for one in found):
            raise ValueError("it holds what is no array")
        for key, one in zip(keys, found, strict=True):
            if one.dtype.kind == "f" and np.isnan(one).any():
                raise ValueError(f"{key} holds what is no number (NaN)")
        return found
    except FileNotFoundError:
        raise
    except FAULTS as error:
        raise ValueError(f"{path} is no file of {what}: {first_line(error)}") from error
