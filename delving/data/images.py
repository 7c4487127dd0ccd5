"""A split of a data set: names, labels, and how to read and decode one image."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM", "TIFF")


# What Pillow raises on files that are no images, or not whole ones.
FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class UndecodableImageError(ValueError):
    """An image file that is no image, or not a whole one."""


@dataclass(frozen=True)
class Images:
    """One split.

    Attributes:
        names: paths below the data root, in the order of the labels.
        labels: (N,) int64, indices into `classes`.
        classes: folder names, sorted.
        titles: what a person calls each class; the folder's name where nothing better is known.
        read: from a name to the file's bytes.
    """

    names: list[str]
    labels: np.ndarray
    classes: list[str]
    titles: list[str]
    read: Callable[[str], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """The decoded image; UndecodableImageError names the file."""
        return decode(self._bytes(index), self.names[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) as `load` would give it, from the file's header alone."""
        with _opened(self._bytes(index), self.names[index]) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            return image.size[::-1] if turned else image.size

    def _bytes(self, index: int) -> bytes:
        try:
            return self.read(self.names[index])
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise UndecodableImageError(f"{self.names[index]} cannot be read: {error}") from error

    def take(self, indices: np.ndarray) -> "Images":
        names = [self.names[i] for i in indices]
        return Images(names, self.labels[indices], self.classes, self.titles, self.read)


def decode(data: bytes, name: str) -> Image.Image:
    """An RGB image from a file's bytes, whatever the name's ending: upright, 8 bits, no alpha.

    Raises:
        UndecodableImageError: truncated, empty, not an image, or too large to be one (a bomb).
    """
    with _opened(data, name) as image:
        if image.mode.startswith("I;16"):  # convert() would clip 16 bits at 255, not scale them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        # assumed: an image is turned upright by its EXIF rotation.
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except FAULTS as error:
        raise UndecodableImageError(f"{name} cannot be decoded: {error}") from error


@dataclass(frozen=True)
class FolderReader:
    root: Path

    def __call__(self, name: str) -> bytes:
        return (self.root / name).read_bytes()


class ZipReader:
    """Reads members of several zips without unpacking; each process opens its own handles."""

    def __init__(self, members: dict[str, tuple[Path, str]]):
        self.members = members  # name -> (zip, member)
        self.handles: dict[tuple[int, Path], zipfile.ZipFile] = {}

    def __call__(self, name: str) -> bytes:
        path, member = self.members[name]
        key = (os.getpid(), path)
        if key not in self.handles:
            self.handles[key] = zipfile.ZipFile(path)
        return self.handles[key].read(member)

    def __getstate__(self) -> dict:
        return {"members": self.members, "handles": {}}


def select(images: Images, *, classes: int | None, count: int | None) -> Images:
    """The first `classes` classes, and `count` images spread evenly over them, first ones first.

    Raises:
        ValueError: where the split has fewer than asked for.
    """
    if classes and classes > len(images.classes):
        raise ValueError(f"data.classes={classes}: the data has {len(images.classes)}")
    kept = classes or len(images.classes)
    indices = np.flatnonzero(images.labels < kept)
    if count and count > len(indices):
        raise ValueError(f"{count} images asked for, but these {kept} classes have {len(indices)}")
    if count:
        indices = _spread(images.labels[indices], indices, count)
    few = images.take(indices)
    return Images(few.names, few.labels, few.classes[:kept], few.titles[:kept], few.read)


def _spread(labels: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Round by round: everyone's first image, everyone's second, ... until there are `count`."""
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, np.diff([*starts, len(labels)]))
    chosen = np.lexsort((labels, rank))[:count]
    return indices[np.sort(chosen)]
