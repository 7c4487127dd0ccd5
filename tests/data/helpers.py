"""Small images and data sets, each made in one line."""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delving.data.images import Images

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


@dataclass(frozen=True)
class MemoryReader:
    """Reads from a dict; can be sent to loader processes."""

    files: dict[str, bytes]

    def __call__(self, name: str) -> bytes:
        return self.files[name]


def smooth_pixels(width, height, seed=0):
    """(height, width, 3) uint8: slow waves and a ramp, with nothing that a filter could alias."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    a, b, phase = rng.uniform(-3, 3, (3, 3))
    waves = np.sin(x[..., None] * a + y[..., None] * b + phase)
    return (127 + 100 * waves).astype(np.uint8)


def encode(pixels, form="PNG", **options):
    beside = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(beside, form, **options)
    return beside.getvalue()


def make_png(side, packed, *, bits, kind):
    """A PNG that claims side x side pixels of a kind (0 gray, 2 RGB), whatever `packed` holds."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def make_images(sizes, *, classes=2, form="PNG", bad=()):
    """A split of images of these (width, height), classes in turn; those at `bad` are truncated."""
    files = {}
    for i, (width, height) in enumerate(sizes):
        data = encode(smooth_pixels(width, height, seed=i), form)
        files[f"{i:03d}.{form.lower()}"] = data[: len(data) // 2] if i in bad else data
    names = [f"class{c}" for c in range(classes)]
    labels = np.arange(len(files), dtype=np.int64) % classes
    return Images(list(files), labels, names, names, MemoryReader(files))


def write_file(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_folder(root, *, train=4, val=2, classes=("cat", "dog"), side=40, taller=8):
    """root/train and root/val of class folders, `train` and `val` images for each class."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            for n in range(count):
                seed = 1000 * (split == "val") + 100 * label + n
                data = encode(smooth_pixels(side, side + taller, seed), "JPEG")
                write_file(root / split / name / f"{n}.JPEG", data)
    return root


def shared(name):
    """The path of a real file; skips the test if there is none."""
    if not (SHARED / name).exists():
        pytest.skip(f"../shared/data/{name} is absent: real images are not tested here")
    return SHARED / name
