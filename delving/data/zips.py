"""Reads from zips without unpacking them, and refuses those that are not what they claim to be.

The names inside are looked up, never made into paths; those that would be harmful as paths are
refused all the same, as a sign that the zip is not the data set's.
"""

import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from delving.data.images import BYTES
from delving.words import shown

# What zipfile raises on files that are not zips, or not whole ones.
FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
)
HEADER = 30  # bytes before each member, at least
ENCRYPTED = 1  # among the flag bits
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks others without limit


class ZipReader:
    """Reads members of several zips without unpacking; each process opens its own handles."""

    def __init__(self, members: dict[str, tuple[Path, str]]):
        self.members = members  # name -> (zip, member)
        self.handles: dict[tuple[int, Path], zipfile.ZipFile] = {}

    def __call__(self, name: str) -> bytes:
        """A member's bytes; OSError if the zip is damaged, or no longer what it was."""
        path, member = self.members[name]
        try:
            key = (os.getpid(), path)
            if key not in self.handles:
                self.handles[key] = zipfile.ZipFile(path)
            info = self.handles[key].getinfo(member)
            with self.handles[key].open(info) as file:
                # To the end, where the CRC is compared, but no more than the zip says.
                return file.read(min(info.file_size, BYTES) + 1)
        except FAULTS as error:
            raise OSError(f"{path.name}: {error}") from error

    def __getstate__(self) -> dict:
        return {"members": self.members, "handles": {}}


def list_members(zips: Iterable[Path], top: str) -> dict[str, tuple[Path, str]]:
    """{name: (zip, member)} of all files in the zips, sorted; names start below the folder `top` if
    they have it. What macOS and other programs added is left out.

    Raises:
        ValueError: a zip that is broken or holds what it should not; two zips that disagree.
    """
    members: dict[str, tuple[Path, str]] = {}
    sums: dict[str, tuple[int, int]] = {}  # name -> (CRC, size)
    for path in zips:
        for info in open_checked(path):
            name = info.filename.partition(top)[2] or info.filename
            hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
            if info.is_dir() or hidden or "__MACOSX" in info.filename.split("/"):
                continue
            if sums.setdefault(name, (info.CRC, info.file_size)) != (info.CRC, info.file_size):
                raise ValueError(f"{path}: {shown(name)}: another than in {members[name][0]}")
            members[name] = (path, info.filename)
    return dict(sorted(members.items()))


def open_checked(path: Path) -> list[zipfile.ZipInfo]:
    """What a zip holds; ValueError names the zip and what is wrong in it."""
    if not path.is_file():
        raise ValueError(f"{path}: {'not a regular file' if path.exists() else 'not there'}")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except FAULTS as error:
        raise ValueError(f"{path}: not a zip, or a broken one ({error})") from error
    seen: set[str] = set()
    for info in infos:
        fault = _fault_of(info) or (info.filename in seen and "a second member of that name")
        if fault:
            raise ValueError(f"{path}: {shown(info.orig_filename)}: {fault}")
        seen.add(info.filename)
    _check_places(path, infos)
    return infos


def _fault_of(info: zipfile.ZipInfo) -> str | None:
    name = info.orig_filename
    faults = {
        "a name with NUL or a backslash": "\0" in name or "\\" in name,
        "an absolute name": name.startswith("/") or re.match("[A-Za-z]:", name),
        "a name that leads elsewhere": ".." in name.split("/"),
        "encrypted": info.flag_bits & ENCRYPTED,
        "neither stored nor deflated": info.compress_type not in METHODS,
        f"{info.file_size:,} bytes, more than {BYTES:,}": info.file_size > BYTES,
    }
    return next((fault for fault, is_there in faults.items() if is_there), None)


def _check_places(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """ValueError if the zip's directory places members beyond the file's end or inside another."""
    if not infos:
        raise ValueError(f"{path}: an empty zip")
    infos = sorted(infos, key=lambda info: info.header_offset)
    ends = [info.header_offset for info in infos[1:]] + [path.stat().st_size]
    for info, end in zip(infos, ends, strict=True):
        if info.header_offset < 0 or info.header_offset + HEADER + info.compress_size > end:
            raise ValueError(
                f"{path}: {shown(info.filename)}: not where the zip's directory says: broken"
            )
