"""A split of a data set: names, labels, and how to read and decode one image."""

import base64
import io
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# Pillow is not asked to decode the last row: such files are reported, not silently passed over.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".gif", ".ppm", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif", ".jp2"),
)
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM", "TIFF")
# ours: an image of more than 89,478,485 pixels (Pillow's limit), of more than 100 MB in its file,
# or more than 100 times as long as it is wide counts as undecodable: unpacked, or resized to a
# shorter side s, it would take gigabytes.
PIXELS, BYTES, ASPECT = 89_478_485, 100_000_000, 100

SORTED = re.compile(r"^val/[^/]+/(?=ILSVRC2012_val_\d+\.\w+$)")

# What Pillow raises on files that are not images, or not whole ones.
FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# For each EXIF orientation but the upright one. Pillow's own function also rewrites the other EXIF
# entries, and fails on odd ones.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Back from upright to as stored; all but the two quarter turns undo themselves.
RETURNS = TURNS | {6: TURNS[8], 8: TURNS[6]}
# What begins the parts of a PNG that may hold an orientation.
MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


class UndecodableImageError(ValueError):
    """A file that is not an image, or not a whole one."""


def published(name: str) -> str:
    """A name without the class folder into which ImageNet's validation images, published flat, are
    often sorted."""
    return SORTED.sub("val/", name)


@dataclass(frozen=True)
class Images:
    """One split.

    Attributes:
        names: paths below the data root, in the order of the labels.
        labels: (N,) int64, indices into `classes`.
        classes: folder names, sorted.
        titles: what a person calls each class; the folder's name where nothing better is known.
        read: maps a name to the file's bytes.
    """

    names: list[str]
    labels: np.ndarray
    classes: list[str]
    titles: list[str]
    read: Callable[[str], bytes]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ids(self) -> list[str]:
        """The names, the same in all of a data set's layouts; see `published`."""
        return [published(name) for name in self.names]

    def load(self, index: int) -> Image.Image:
        """The decoded image; UndecodableImageError names the file."""
        return decode(self.bytes_of(index), self.names[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) as `load` would give it, see `read_size`."""
        return read_size(self.bytes_of(index), self.names[index])

    def bytes_of(self, index: int) -> bytes:
        """The file's bytes; UndecodableImageError names the file if it cannot be read."""
        try:
            return self.read(self.names[index])
        except OSError as error:
            raise UndecodableImageError(
                f"{self.names[index]} cannot be read: {error.strerror or error}"
            ) from error

    def take(self, indices: np.ndarray) -> "Images":
        names = [self.names[i] for i in indices]
        return Images(names, self.labels[indices], self.classes, self.titles, self.read)


def decode(data: bytes, name: str, *, upright: bool = True) -> Image.Image:
    """The RGB image in a file's bytes, whatever the name's ending: 8 bits, no alpha; `upright`, or
    as stored.

    Raises:
        UndecodableImageError: the file is truncated, empty, not an image, has floating-point
            pixels, or is beyond the limits above.
    """
    with opened(data, name) as image:
        # Pillow turns a TIFF upright as it loads it, and then tells no orientation any more.
        back = RETURNS.get(orientation(image)) if image.format == "TIFF" else None
        image.load()
        # assumed: an image is turned upright by its EXIF rotation.
        turn = TURNS.get(orientation(image)) if upright else back
        if turn is not None:
            image = image.transpose(turn)
        if image.mode.startswith("I"):  # convert() would clip 16 bits at 255, not scale them
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        # Pillow's functions for both copy the image even if there is nothing to change.
        return image if image.mode == "RGB" else image.convert("RGB")


def read_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of `decode`'s image, from the file's header alone.

    Raises:
        UndecodableImageError: the file has no header of an image, or is beyond the limits above.
    """
    with opened(data, name) as image:
        # Pillow unpacks a PNG's pixels to look for an orientation behind them.
        sure = image.format == "PNG" and not any(mark in data for mark in MARKS)
        turned = not sure and orientation(image) in (5, 6, 7, 8)
        # For a TIFF, Pillow already gives the size after turning.
        return image.size[::-1] if turned and image.format != "TIFF" else image.size


def reckon_bytes(side: float) -> float:
    """The bytes of a decoded image with this shorter side and the usual aspect ratio, 1.5."""
    return 3 * 1.5 * side**2


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, if there is none or it makes no sense."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except FAULTS:  # only the EXIF block is damaged: the picture may be sound
        return 1
    return found if found in TURNS else 1


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """An image of which only the header has been read. Whatever is wrong with it, also if found
    within the context, becomes an UndecodableImageError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about oddities in images that it can read
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size)
                if image.mode == "F":  # convert() would clip; nothing tells their range
                    raise ValueError("pixels are floating-point numbers, not whole ones")
                yield image
    except FAULTS as error:
        why = str(error)
        if isinstance(error, UnidentifiedImageError):  # Pillow's text has an address in memory
            why = "no image of a known format" if data else "an empty file"
        raise UndecodableImageError(f"{name} cannot be decoded: {why}") from error


def _check_size(width: int, height: int) -> None:
    size = f"{width:,} x {height:,} pixels"
    if width * height > PIXELS:
        raise ValueError(f"{size}, more than {PIXELS:,}")
    if max(width, height) > ASPECT * min(width, height):
        raise ValueError(f"{size}, more than {ASPECT} times as long as wide")


def to_base64(image: Image.Image, quality: int) -> str:
    """The image as a JPEG file in text, for JSON."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return base64.b64encode(file.getvalue()).decode()


def from_base64(text: str) -> Image.Image:
    """The image that `to_base64` made a text of."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


@dataclass(frozen=True)
class FolderReader:
    """Reads files below a folder."""

    root: Path

    def __call__(self, name: str) -> bytes:
        return read_file(self.root / name)


def read_file(path: Path) -> bytes:
    """A regular file's bytes; a pipe might never deliver, and a device never end.

    Raises:
        OSError: it is not a regular file, has more than BYTES, or cannot be read.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError("not a regular file")
    if about.st_size > BYTES:
        raise OSError(f"{about.st_size:,} bytes, more than {BYTES:,}")
    return path.read_bytes()


def select(images: Images, *, classes: int | None, count: int | None, key: str = "count") -> Images:
    """The first `classes` classes, and `count` images spread evenly over them, the first of each.
    `key` is the setting that `count` came from, for messages.

    Raises:
        ValueError: the split has fewer than asked for, or none.
    """
    if classes and classes > len(images.classes):
        there = f"the data has {len(images.classes)}"
        raise ValueError(f"data.classes={classes}: {there}; data.classes=null takes all")
    kept = classes or len(images.classes)
    indices = np.flatnonzero(images.labels < kept)
    if not len(indices):
        raise ValueError(f"{key}: there is no image of the {kept} classes")
    if count and count > len(indices):
        there = f"these {kept} classes have {len(indices)}"
        raise ValueError(f"{key}={count}: {there}; {key}=null takes all")
    if count:
        indices = _spread(images.labels[indices], indices, count)
    few = images.take(indices)
    return Images(few.names, few.labels, few.classes[:kept], few.titles[:kept], few.read)


def _spread(labels: np.ndarray, indices: np.ndarray, count: int) -> np.ndarray:
    """Picks every class's first image, then every class's second, ... until there are `count`."""
    order = np.argsort(labels, kind="stable")
    _, starts = np.unique(labels[order], return_index=True)
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(starts, np.diff([*starts, len(labels)]))
    chosen = np.lexsort((labels, rank))[:count]
    return indices[np.sort(chosen)]


def evenly(images: int, count: int) -> np.ndarray:
    """`count` of the indices below `images`, evenly spaced, or all of them if there are fewer."""
    return np.linspace(0, images - 1, min(count, images)).round().astype(int)
