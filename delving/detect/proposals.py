"""Where objects might be: selective search, or a grid of windows and segments of one colour.

Neither sees an annotation. Proposals are made once for each image and kept, SHARD images to a file,
which is named by a hash of the images and of the method.
"""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy  # loads its parts at their first use
from PIL import Image

from delving.arrays import pack_arrays, read_arrays
from delving.data import expand_home
from delving.data.loader import decoding_threads
from delving.detect.voc import Split
from delving.record import write_bytes
from delving.words import first_line

KEY = "detect.proposals"
METHODS = ("auto", "selective_search", "grid")
GRID = 1  # raise it whenever the grid's or the segments' boxes change
SHARD = 64  # images per file
# The grid: the square roots of windows' areas, as shares of the image's shorter side; ratios of
# height to width; and the step between windows, as a share of their own side.
SIZES, RATIOS, STEP = (0.2, 0.28, 0.4, 0.56, 0.8), (0.5, 1.0, 2.0), 0.45
# Segments: neighbouring pixels that differ by so many grey levels or less belong together, in the
# image resized to so many pixels along its shorter side.
DIFFERENCES, SEGMENTED = (8, 20), 48
LEAST = 0.08  # least side of a segment, as a share of the image's shorter side


def pick_method(wanted: str) -> str:
    """The method, with `auto` replaced by what it means here; ValueError if selective search is
    asked for but not installed."""
    if wanted == "grid":
        return wanted
    there = _opencv() is not None
    if wanted == "selective_search" and not there:
        raise ValueError("detect.proposals=selective_search needs opencv-contrib-python-headless: "
                         "pip install 'delving[detect]'; or detect.proposals=grid")  # fmt: skip
    return "selective_search" if there else "grid"


def _opencv():
    try:
        import cv2

        return cv2 if hasattr(cv2, "ximgproc") else None
    except (ImportError, OSError):
        return None


def load_proposals(
    split: Split, wanted: str, folder: Path, say: Callable[[int, int], None]
) -> list[np.ndarray]:
    """The proposals of each image, (N, 4) float32 as in boxes.py, sorted; made if they are missing.

    Args:
        wanted: a method, or an .npz file of `names` (images), `counts` (boxes of each) and `boxes`.
        folder: where they are kept.
        say: is called with how many images are done, and of how many.

    Raises:
        ValueError: no such method or file, or one that lacks an image.
    """
    if wanted not in METHODS:
        return _from_file(expand_home(wanted, KEY), split)
    method = pick_method(wanted)
    found: list[np.ndarray] = []
    for start in range(0, len(split), SHARD):
        numbers = range(start, min(start + SHARD, len(split)))
        found += _shard(split, numbers, method, folder)
        say(len(found), len(split))
    return found


def _shard(split: Split, numbers: range, method: str, folder: Path) -> list[np.ndarray]:
    path = folder / f"{method}-{_key(split, numbers, method)}.npz"
    names = [split.ids[n] for n in numbers]
    if path.exists():
        try:
            kept = _read(path)
            return [kept[name] for name in names]
        except (ValueError, KeyError):  # damaged: they are made anew
            path.unlink(missing_ok=True)
    propose = {"grid": propose_windows, "selective_search": search_selectively}[method]
    with decoding_threads() as pool:
        boxes = list(pool.map(lambda n: propose(split.load(n)), numbers))
    write_bytes(path, pack(names, boxes))
    return boxes


def _key(split: Split, numbers: range, method: str) -> str:
    made_by = f"{method} {GRID if method == 'grid' else _opencv().__version__}"
    digest = hashlib.sha256(made_by.encode())
    for n in numbers:
        digest.update(split.ids[n].encode() + hashlib.sha256(split.bytes_of(n)).digest())
    return digest.hexdigest()[:16]


def pack(names: Sequence[str], boxes: Sequence[np.ndarray]) -> bytes:
    """The bytes of a file of proposals: names, counts, boxes."""
    counts = np.array([len(b) for b in boxes], np.int64)
    stacked = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float32)
    return pack_arrays(names=np.array(names), counts=counts, boxes=stacked)


def _read(path: Path) -> dict[str, np.ndarray]:
    """{image: boxes}; ValueError names the file if it is not one of proposals."""
    names, counts, boxes = read_arrays(path, ("names", "counts", "boxes"), "proposals")
    try:
        _check(names, counts, boxes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no file of proposals: {first_line(error)}") from error
    parts = np.split(boxes.astype(np.float32), np.cumsum(counts)[:-1]) if len(counts) else []
    return dict(zip(names.tolist(), parts, strict=True))


def _check(names: np.ndarray, counts: np.ndarray, boxes: np.ndarray) -> None:
    whole = boxes.ndim == 2 and boxes.shape[1] == 4 and np.isfinite(boxes).all()
    fitting = len(names) == len(set(names.tolist())) == len(counts)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ValueError(f"its counts are {counts.dtype} of shape {counts.shape}, no whole numbers")
    # Summed as Python's integers: a sum of 64 bits may wrap round to the right number.
    if not (whole and fitting and (counts >= 0).all() and sum(counts.tolist()) == len(boxes)):
        raise ValueError("its names, counts and boxes do not fit together")
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        raise ValueError("a box without an area")


def hash_of(proposals: str) -> str | None:
    """The hash of a file of proposals; None if a method makes them, or the file is gone."""
    if proposals in METHODS or not (path := expand_home(proposals, KEY)).is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _from_file(path: Path, split: Split) -> list[np.ndarray]:
    _check_kind(path)
    kept = _read(path)
    lacking = [number for number in split.ids if number not in kept]
    if lacking:
        raise ValueError(f"{path}: no proposals for {len(lacking):,} images, {lacking[0]} first")
    outside = [number for number, size in zip(split.ids, split.sizes, strict=True)
               if len(kept[number]) and not _inside(kept[number], size)]  # fmt: skip
    if outside:
        raise ValueError(f"{path}: a box of {outside[0]} does not lie in the image")
    return [_sorted(kept[number]) for number in split.ids]


def _check_kind(path: Path) -> None:
    """Raises ValueError, which names the choices, unless it is an archive as numpy writes them."""
    choices = f"choose from {', '.join(METHODS)}, or a file (.npz) of names, counts and boxes"
    if not path.is_file():
        raise ValueError(f"{KEY}={path}: {choices}")
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):  # numpy would take it for pickled objects
            raise ValueError(f"{KEY}={path} is no file of proposals: {choices}")


def _inside(boxes: np.ndarray, size: tuple[int, int]) -> bool:
    return bool((boxes >= 0).all() and (boxes[:, 2:] <= size).all())


def _with_area(boxes: np.ndarray) -> np.ndarray:
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]


def _sorted(boxes: np.ndarray) -> np.ndarray:
    """The boxes without repetition, in an order that follows from them alone."""
    return np.unique(boxes.astype(np.float32).reshape(-1, 4), axis=0)


def search_selectively(image: Image.Image) -> np.ndarray:
    """Selective search in its fast setting, as Fast R-CNN uses it (Uijlings et al. 2013).

    Its own order changes at random from one call to the next.
    """
    search = _opencv().ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
    search.switchToSelectiveSearchFast()
    found = np.asarray(search.process(), np.float32).reshape(-1, 4)  # x, y, width, height
    found[:, 2:] += found[:, :2]
    return _sorted(_with_area(found))


def propose_windows(image: Image.Image) -> np.ndarray:
    """Windows of several sizes and shapes all over the image, and its segments of one colour."""
    boxes = [grid_windows(image.size), color_segments(image, SEGMENTED)]
    return _sorted(_with_area(np.concatenate(boxes)))


def grid_windows(size: tuple[int, int]) -> np.ndarray:
    """The grid for an image of (width, height); windows lie inside the image, the last ones at its
    edge."""
    found = []
    for share in SIZES:
        for ratio in RATIOS:
            sides = share * min(size) * np.array([ratio**-0.5, ratio**0.5])
            sides = np.minimum(sides, size)
            counts = np.ceil((size - sides) / (STEP * sides) - 1e-9).astype(int) + 1
            x, y = (np.linspace(0, size[i] - sides[i], counts[i]) for i in (0, 1))
            corners = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
            found.append(np.hstack([corners, corners + sides]))
    return np.concatenate(found).round()


def color_segments(image: Image.Image, side: int) -> np.ndarray:
    """Boxes around connected regions whose neighbouring pixels differ by little, in the image
    resized to the shorter side `side`."""
    factor = min(image.size) / side
    small = image.resize([max(1, round(s / factor)) for s in image.size], Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32)
    found = [_segment(pixels, most) for most in DIFFERENCES]
    boxes = np.concatenate(found) * (np.array(image.size * 2) / np.array(small.size * 2))
    large = (boxes[:, 2:] - boxes[:, :2] >= LEAST * min(image.size)).all(1)
    return boxes[large].round()


def _segment(pixels: np.ndarray, most: float) -> np.ndarray:
    """Boxes (N, 4) around regions of neighbouring pixels that differ by `most` or less."""
    height, width = pixels.shape[:2]
    number = np.arange(height * width).reshape(height, width)
    right = np.abs(np.diff(pixels, axis=1)).max(-1) <= most
    down = np.abs(np.diff(pixels, axis=0)).max(-1) <= most
    first = np.concatenate([number[:, :-1][right], number[:-1][down]])
    second = np.concatenate([number[:, 1:][right], number[1:][down]])
    links = scipy.sparse.coo_array((np.ones(len(first), bool), (first, second)),
                                   shape=(number.size, number.size))  # fmt: skip
    _, labels = scipy.sparse.csgraph.connected_components(links, directed=False)
    slices = scipy.ndimage.find_objects(labels.reshape(height, width) + 1)
    return np.array([(x.start, y.start, x.stop, y.stop) for y, x in slices], float)
