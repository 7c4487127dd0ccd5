"""Reads files of arrays (.npz), which may be damaged or a stranger's, or refuses them by name."""

import io
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
# Bytes of an array: proposals for all of VOC take a third of it, ImageNet's scores a fortieth.
MOST = 4 * 2**30
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy's; others are unpacked without limit


def pack_arrays(**arrays: np.ndarray) -> bytes:
    """The bytes of a file that `read_arrays` reads."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def read_arrays(path: Path, keys: Sequence[str], what: str) -> list[np.ndarray]:
    """The arrays of these names.

    Args:
        what: what the file should hold, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file that is damaged, or its array that is missing, damaged, larger
            than MOST, or holds objects or NaN.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is not readable: it is no regular file")
    try:
        with zipfile.ZipFile(path) as archive:
            return [_read(archive, key) for key in keys]
    except FileNotFoundError:
        raise
    except FAULTS as error:
        raise ValueError(f"{path} is no file of {what}: {first_line(error)}") from error


def _read(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """An array; ValueError names it. Of a member no more is unpacked than the archive tells."""
    try:
        if f"{key}.npy" not in archive.namelist():
            raise ValueError("there is no such array")
        info = archive.getinfo(f"{key}.npy")
        if info.compress_type not in METHODS:
            raise ValueError("neither stored nor deflated")
        if info.file_size > MOST:
            raise ValueError(f"{info.file_size:,} bytes, more than {MOST:,}")
        with archive.open(info) as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
        if found.size > info.file_size:
            raise ValueError("more items than bytes")
        if found.dtype.kind == "f" and np.isnan(found).any():
            raise ValueError("it holds what is no number (NaN)")
        return found
    except FAULTS as error:
        told = first_line(error)
        if "allow_pickle" in told:  # numpy's advice, by which a file's own code would be run
            told = "it holds objects, not numbers or text"
        raise ValueError(f"{key}: {told}") from error
