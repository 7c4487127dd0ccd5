"""Views cut from JPEG files of which no more is decoded than they need, by libjpeg-turbo itself.

The pixels are augment.py's of the whole image, bit for bit. Where that cannot be promised (no
compiler, no libjpeg-turbo, an image that is turned, cut short, damaged or of an unusual kind)
there is no such view, and the whole image is to be decoded.
"""

import ctypes
import io
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import ExifTags, Image

from delving.data.augment import crop_at, region_of
from delving.data.images import decode, opened
from delving.kernels.compiled import compile_and_load

JPEG, END = b"\xff\xd8", b"\xff\xd9"
# None of its loops gains by OpenMP's threads: images are many.
TUNED = (("-march=native",), ("-mcpu=native",), ())
P, N, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
SIDES, BOX = ctypes.c_long * 4, ctypes.c_float * 4


def cut_region(
    data: bytes, name: str, s: int, crop: int, at: tuple[float, float], *, flip: bool
) -> np.ndarray | None:
    """crop_at's view of a file, or None where the whole image has to be decoded.

    Raises:
        UndecodableImageError: the file has no header of an image, or is beyond decode's limits.
    """
    if not (data.startswith(JPEG) and data.endswith(END)) or (cut := load()) is None:
        return None
    with opened(data, name) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        if image.format != "JPEG" or image.mode not in ("RGB", "L") or turned:
            return None
        size = image.size
    return _cut(cut, data, size, s, crop, at, flip)


def _cut(
    cut: Callable,
    data: bytes,
    size: tuple[int, int],
    s: int,
    crop: int,
    at: tuple[float, float],
    flip: bool,
) -> np.ndarray | None:
    region, out = region_of(size, s, crop, at), np.empty((crop, crop, 3), np.uint8)
    sides, box = SIDES(*region.sides), BOX(*region.box)
    refused = cut(data, len(data), *size, sides, box, crop, int(flip), out.ctypes.data)
    return None if refused else out


@cache
def load() -> Callable | None:
    """jpeg.cpp's function; None where it does not compile, or cuts otherwise than Pillow."""
    library = compile_and_load("jpeg.cpp", links=("-ljpeg",), tuned=TUNED)
    if library is None:
        return None
    cut = library.jpeg_view
    cut.argtypes = [ctypes.c_char_p, ctypes.c_size_t, N, N, SIDES, BOX, INT, INT, P]
    return cut if _agrees(cut) else None


def _agrees(cut: Callable) -> bool:
    """Whether it cuts as Pillow does: both may be of any version."""
    rng = np.random.Generator(np.random.Philox(0))
    pixels = rng.integers(0, 256, (75, 98, 3), np.uint8)
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=subsampling)
        data, view = file.getvalue(), (60, 28, (0.7, 0.4))
        mine = _cut(cut, data, (98, 75), *view, True)
        if mine is None or (mine != crop_at(decode(data, ""), *view, flip=True)).any():
            return False
    return True
