"""Views cut from JPEG files by libjpeg-turbo itself, decoding no more than the view needs.

The pixels are, bit for bit, those that augment.py cuts from the whole image. Where that cannot be
promised (no compiler, no libjpeg-turbo 2.1 with its headers, an image that is rotated, progressive,
cut short, damaged or of an unusual kind), no view is cut and the whole image has to be decoded.
"""

import ctypes
import io
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

from delving.data.augment import View, crop_at, region_of
from delving.data.images import decode, opened, orientation
from delving.kernels.compiled import compile_and_load

JPEG, END = b"\xff\xd8", b"\xff\xd9"
# No -fopenmp: with many images at once, threads within one gain nothing.
TUNED = (("-march=native",), ("-mcpu=native",), ())
P, N, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
SIDES, BOX = ctypes.c_long * 4, ctypes.c_float * 4


def look_at(data: bytes, name: str) -> tuple[int, int] | None:
    """A file's (width, height) by its header; None unless views can be cut from such a file.

    Raises:
        UndecodableImageError: the file has no header of an image, or is beyond decode's limits.
    """
    if not (data.startswith(JPEG) and data.endswith(END) and agrees()):
        return None
    with opened(data, name) as image:
        usual = image.format == "JPEG" and image.mode in ("RGB", "L") and orientation(image) == 1
        return image.size if usual else None


def cut_region(data: bytes, size: tuple[int, int], view: View, *, new: bool) -> np.ndarray | None:
    """crop_at's view of a file: uint8 (crop, crop, 3), or None where the whole image has to be
    decoded.

    Args:
        size: as look_at gives it.
        new: whether no view of the file was cut before; it is then read to its end.
    """
    if (decoder := load()) is None:
        return None
    region = region_of(size, view.s, view.crop, view.at)
    out = np.empty((view.crop, view.crop, 3), np.uint8)
    how = (SIDES(*region.sides), BOX(*region.box), view.crop, int(view.flip), int(new))
    refused = decoder(data, len(data), *size, *how, out.ctypes.data)
    return None if refused else out


@cache
def load() -> Callable | None:
    """jpeg.cpp's function; None if it does not compile."""
    library = compile_and_load("jpeg.cpp", links=("-ljpeg",), tuned=TUNED)
    if library is None:
        return None
    decoder = library.jpeg_view
    decoder.argtypes = [ctypes.c_char_p, ctypes.c_size_t, N, N, SIDES, BOX, INT, INT, INT, P]
    return decoder


@cache
def agrees() -> bool:
    """Whether jpeg.cpp gives Pillow's pixels in the versions of both here; False without it."""
    rng = np.random.Generator(np.random.Philox(0))
    pixels, view = rng.integers(0, 256, (75, 98, 3), np.uint8), View(60, 28, (0.7, 0.4), True)
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90, subsampling=subsampling)
        found = cut_region(file.getvalue(), (98, 75), view, new=True)
        wanted = crop_at(decode(file.getvalue(), ""), *view[:3], flip=True)
        if found is None or (found != wanted).any():
            return False
    return True
