"""PASCAL VOC's layout: images, annotations and splits, from its folder or its tar files."""

import hashlib
import math
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from PIL import Image

from delving.data.images import BYTES, FolderReader, decode
from delving.detect.metric import Objects
from delving.words import nearest, shown

YEAR = "VOC2007"
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
SPLITS = ("trainval", "test")
ID = r"[A-Za-z0-9_-]{1,64}"
LONGEST = 1_000_000  # of an annotation, bytes


@dataclass(frozen=True)
class Split:
    """Annotated images.

    Attributes:
        ids: of the images, as the split's file lists them.
        sizes: (width, height) of each, by its annotation.
        objects: of each; labels are indices into `classes`.
        read: maps a file's name to its bytes.
    """

    ids: list[str]
    sizes: list[tuple[int, int]]
    objects: list[Objects]
    classes: tuple[str, ...]
    read: Callable[[str], bytes]

    def __len__(self) -> int:
        return len(self.ids)

    def load(self, index: int) -> Image.Image:
        """The decoded image.

        Raises:
            ValueError: it cannot be read or decoded, or its size is not its annotation's.
        """
        name = image_name(self.ids[index])
        image = decode(_bytes(self.read, name), name, upright=False)  # boxes refer to it as stored
        if image.size != self.sizes[index]:
            raise ValueError(f"{name} has {image.size[0]}x{image.size[1]} pixels, its annotation "
                             f"says {self.sizes[index][0]}x{self.sizes[index][1]}")  # fmt: skip
        return image

    def bytes_of(self, index: int) -> bytes:
        """The image's file."""
        return _bytes(self.read, image_name(self.ids[index]))

    def first(self, count: int | None, key: str = "count") -> "Split":
        """The first `count` images, or all if it is None. `key` is the setting that it came from.

        Raises:
            ValueError: there are fewer.
        """
        if count is None:
            return self
        if count > len(self):
            raise ValueError(f"{key}: {count:,} images asked for, but there are {len(self):,}; "
                             f"{key}=null takes all")  # fmt: skip
        return Split(self.ids[:count], self.sizes[:count], self.objects[:count], self.classes,
                     self.read)  # fmt: skip


def image_name(number: str) -> str:
    return f"JPEGImages/{number}.jpg"


def load_split(read: Callable[[str], bytes], split: str, classes: Sequence[str]) -> Split:
    """A split of a data set in VOC's layout.

    Raises:
        ValueError: a file is not in VOC's form; the message names it, and what is wrong.
    """
    ids = _list_ids(read, split)
    found = [_annotated(read, number, classes) for number in ids]
    return Split(ids, [size for size, _ in found], [one for _, one in found], tuple(classes), read)


def check_voc(root: Path) -> None:
    """Raises ValueError if a split's list of images, or the annotation of its first one, is missing
    or damaged."""
    read = find_voc(root)
    for split in SPLITS:
        _annotated(read, _list_ids(read, split)[0], CLASSES)


def _list_ids(read: Callable[[str], bytes], split: str) -> list[str]:
    listing = f"ImageSets/Main/{split}.txt"
    ids = _bytes(read, listing).decode("utf-8-sig", "replace").split()
    odd = [number for number in ids if not re.fullmatch(ID, number)]
    if odd or not ids or len(set(ids)) != len(ids):
        raise ValueError(f"{listing}: {shown(odd[0]) if odd else 'no image, or one twice'}")
    return ids


def _annotated(
    read: Callable[[str], bytes], number: str, classes: Sequence[str]
) -> tuple[tuple[int, int], Objects]:
    name = f"Annotations/{number}.xml"
    data = _bytes(read, name)
    try:
        return parse_annotation(data, classes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _bytes(read: Callable[[str], bytes], name: str) -> bytes:
    try:
        return read(name)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}") from error


def parse_annotation(data: bytes, classes: Sequence[str]) -> tuple[tuple[int, int], Objects]:
    """((width, height), objects) of an annotation; VOC's boxes count from 1 and include the last.

    An image may be without objects.

    Raises:
        ValueError: it is not XML, an object's class is unknown, or a box is not inside the image.
    """
    if len(data) > LONGEST:
        raise ValueError(f"more than {LONGEST:,} bytes: no annotation of VOC's")
    root = _parse(data)
    width, height = (_number(root, f"size/{side}") for side in ("width", "height"))
    if not (width >= 1 and height >= 1 and width.is_integer() and height.is_integer()):
        raise ValueError(f"an image of {width:g}x{height:g} pixels")
    size = int(width), int(height)
    rows = [_parse_object(one, size, classes) for one in root.iterfind("object")]
    boxes = np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    labels = np.array([label for _, label, _ in rows], np.int64)
    return size, Objects(boxes, labels, np.array([hard for _, _, hard in rows], bool))


def _parse(data: bytes) -> ElementTree.Element:
    """The root of an XML text. Declarations, by which a short text could expand to an endless one,
    are refused in any encoding."""
    parser, tree = expat.ParserCreate(), ElementTree.TreeBuilder()

    def refuse(*_: object) -> None:
        raise ValueError("declarations: no annotation of VOC's has any")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = tree.start, tree.end
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(data, True)
        return tree.close()
    except (expat.ExpatError, LookupError, AssertionError) as error:
        raise ValueError(f"no readable XML ({error})") from error


def _parse_object(
    one: ElementTree.Element, size: tuple[int, int], classes: Sequence[str]
) -> tuple[list[float], int, bool]:
    name = (one.findtext("name") or "").strip()
    if name not in classes:
        raise ValueError(f"an object of the unknown class {shown(name)!r}{nearest(name, classes)}")
    x1, y1, x2, y2 = (_number(one, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
    if not (1 <= x1 <= x2 <= size[0] and 1 <= y1 <= y2 <= size[1]):
        raise ValueError(f"the box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) of a {name} does not lie in "
                         f"the image of {size[0]}x{size[1]} pixels")  # fmt: skip
    difficult = (one.findtext("difficult") or "").strip()
    if difficult not in ("", "0", "1"):
        raise ValueError(f"difficult is {shown(difficult)!r}, not 0 or 1")
    return [x1 - 1, y1 - 1, x2, y2], classes.index(name), difficult == "1"


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path} is {shown(text)!r}, no number")
    return value


def find_voc(root: Path) -> Callable[[str], bytes]:
    """A reader of VOC 2007. `root` is the folder VOC2007, or holds it (perhaps in VOCdevkit), or
    holds VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar, which are read as they are.

    Raises:
        ValueError: none of these is there.
    """
    for place in (root, root / YEAR, root / "VOCdevkit" / YEAR):
        if (place / "ImageSets" / "Main").is_dir():
            return FolderReader(place)
    tars = sorted(root.glob("VOC*2007*.tar")) if root.is_dir() else []
    if not tars:
        raise ValueError(f"detect.root={root}: neither VOCdevkit/{YEAR}/ nor VOCtrainval_*-2007.tar"
                         " and VOCtest_*-2007.tar are there")  # fmt: skip
    return TarReader(tars)


class TarReader:
    """Reads files below VOC2007/ in tar files, without unpacking them."""

    def __init__(self, tars: Sequence[Path]):
        self.tars = [path.name for path in tars]
        self.members: dict[str, tuple[Path, int, int]] = {}  # name -> (tar, offset, size)
        for path in tars:
            try:
                with tarfile.open(path, "r:") as tar:  # uncompressed, as they are published
                    for member in tar:
                        name = member.name.partition(f"{YEAR}/")[2]
                        if member.isreg() and name:
                            self.members[name] = (path, member.offset_data, member.size)
            except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
                raise ValueError(f"{path}: not a tar, or a broken one ({error})") from error

    def __call__(self, name: str) -> bytes:
        """A file's bytes; OSError if there is no such file, or the tar is cut off."""
        if name not in self.members:
            raise FileNotFoundError(f"no such file in {', '.join(self.tars)}")
        path, offset, size = self.members[name]
        if not 0 <= size <= BYTES:
            raise OSError(f"{size:,} bytes, more than {BYTES:,}")
        with open(path, "rb") as file:
            data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise OSError(f"{path.name} ends within it")
        return data


def fingerprint(splits: Sequence[Split]) -> str:
    """A hash of images' names, sizes and objects; the same data at another root has the same."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr((split.ids, split.sizes, split.classes)).encode())
        for one in split.objects:
            digest.update(one.boxes.tobytes() + one.labels.tobytes() + one.difficult.tobytes())
    return digest.hexdigest()[:16]
