"""The generated data set `shapes_voc`: several textured objects per image, in PASCAL VOC's layout.

Its classes are those of `shapes`, drawn alike. Lengths are in units of 1/75 of the image's shorter
side: at a shorter side of 75 pixels, which goes with a crop of 28, a texture has the period in
pixels that nets trained on `shapes` know.
"""
# ours: generated scenes stand in for PASCAL VOC at the smoke and cpu scales.

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from delving.data.shapes import (
    TEXTURES,
    UNITS,
    draw_clutter,
    draw_colours,
    draw_grid,
    draw_outline,
    draw_ramp,
    expose,
)
from delving.data.written import write_once
from delving.detect.voc import SPLITS, YEAR

VERSION = 1  # raise it whenever a drawn byte changes
MARKER = "shapes_voc.json"
SHORT = 75  # length of an image's shorter side
RADIUS = (9, 18)  # of an object
OBJECTS = (1, 5)  # from 1 to 4 are tried in an image; one that finds no room is left out
TRIES = 20  # places tried for an object
APART = 0.8  # least distance between two centres, as a share of the sum of their radii
VISIBLE = 0.8  # share of an object; if less of it is visible, it is marked difficult


@dataclass(frozen=True)
class Drawn:
    """An object: its class, its box (x1, y1, x2, y2) in pixels, half-open, and whether more than a
    fifth of it is hidden."""

    name: str
    box: tuple[int, int, int, int]
    difficult: bool


def draw_scene(names: list[str], rng: np.random.Generator) -> tuple[np.ndarray, list[Drawn]]:
    """Objects of these classes in clutter: (H, W, 3) uint8, shorter side 75 to 112 pixels."""
    grid = draw_grid(rng, sides=(75, 113), units=SHORT)
    first, second = rng.random((2, 3, 1, 1), np.float32)
    slope = UNITS / SHORT  # the same rise across the image as in `shapes`
    image = first + (draw_ramp(grid, rng, slope=slope) + 0.5) * (second - first)  # (3, H, W)
    draw_clutter(image, grid, rng, shapes=rng.integers(6, 14), reach=SHORT * 0.6)
    covers: list[tuple[str, np.ndarray]] = []
    for x, y, radius in _place_objects(grid, rng):
        here = grid - np.array([x, y], np.float32)[:, None, None]
        name, (dark, light) = str(rng.choice(names)), draw_colours(rng)
        mask = draw_outline(here, rng, radius=radius)
        image += mask * (dark + TEXTURES[name](here, rng) * (light - dark) - image)
        covers.append((name, mask))
    front = draw_clutter(image, grid, rng, shapes=rng.integers(0, 6), reach=SHORT * 0.6)
    return expose(image, grid * np.float32(slope), rng), _outline(covers, front)


def _place_objects(grid: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each object, inside the image and hardly overlapping."""
    placed: list[tuple[float, float, float]] = []
    for _ in range(rng.integers(*OBJECTS)):
        radius = rng.uniform(*RADIUS)
        room = np.maximum(-grid[:, 0, 0] - 0.9 * radius, 0)
        for x, y in rng.uniform(-1, 1, (TRIES, 2)) * room:
            near = (np.hypot(x - a, y - b) < APART * (radius + r) for a, b, r in placed)
            if not any(near):
                placed.append((float(x), float(y), float(radius)))
                break
    return placed


def _outline(covers: list[tuple[str, np.ndarray]], front: list[np.ndarray]) -> list[Drawn]:
    """The objects with the boxes of their visible parts; later objects hide earlier ones."""
    found = []
    for number, (name, mask) in enumerate(covers):
        whole = mask > 0.5
        seen = whole.copy()
        for over in [*(m for _, m in covers[number + 1 :]), *front]:
            seen &= over <= 0.5
        ys, xs = np.nonzero(seen)
        if len(xs):
            box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
            found.append(Drawn(name, box, bool(seen.sum() < VISIBLE * whole.sum())))
    return found


def write_scenes(root: Path, *, classes: int, train_images: int, test_images: int) -> Path:
    """Writes root/VOC2007 with ImageSets/Main, Annotations and JPEGImages.

    An image depends on its split, its number and the classes alone.

    Raises:
        ValueError: the folder holds another set, or the number of classes is impossible.
    """
    if not 2 <= classes <= len(TEXTURES):
        raise ValueError(f"detect.classes={classes}: choose 2 to {len(TEXTURES)}")
    asked = {"version": VERSION, "classes": classes, "trainval": train_images, "test": test_images}
    return write_once(root, MARKER, asked, partial(_write, asked))


def _write(asked: dict, scratch: Path) -> None:
    names = list(TEXTURES)[: asked["classes"]]
    base = scratch / YEAR
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (base / folder).mkdir(parents=True)
    for split in SPLITS:
        ids = [f"{split}_{n:05d}" for n in range(asked[split])]
        for n, number in enumerate(ids):
            rng = np.random.default_rng([SPLITS.index(split), n])
            pixels, objects = draw_scene(names, rng)
            Image.fromarray(pixels).save(base / "JPEGImages" / f"{number}.jpg", quality=90)
            text = annotation(number, (pixels.shape[1], pixels.shape[0]), objects)
            (base / "Annotations" / f"{number}.xml").write_text(text, encoding="utf-8")
        listing = "".join(f"{number}\n" for number in ids)
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text(listing, encoding="utf-8")


def annotation(number: str, size: tuple[int, int], objects: list[Drawn]) -> str:
    """VOC's XML, which counts pixels from 1 and includes a box's last one."""
    rows = [
        f"<object><name>{escape(one.name)}</name><difficult>{int(one.difficult)}</difficult>"
        f"<bndbox><xmin>{one.box[0] + 1}</xmin><ymin>{one.box[1] + 1}</ymin>"
        f"<xmax>{one.box[2]}</xmax><ymax>{one.box[3]}</ymax></bndbox></object>"
        for one in objects
    ]
    head = (f"<folder>{YEAR}</folder><filename>{number}.jpg</filename><size><width>{size[0]}"
            f"</width><height>{size[1]}</height><depth>3</depth></size>")  # fmt: skip
    return "\n".join(["<annotation>", head, *rows, "</annotation>", ""])
