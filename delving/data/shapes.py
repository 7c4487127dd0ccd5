"""The generated data set `shapes`: objects told apart by their local texture alone.

Outline, position, size, colour, light and clutter vary freely and carry no class; a mirror image
keeps its class. Lengths are in units of 1/32 of the image's shorter side: a texture keeps its
period in pixels when the image is resized to a shorter side of 32.
"""
# ours: generated images stand in for ImageNet at the smoke and cpu scales; no error on them
# compares with the paper's.

import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from delving.data.written import write_once

VERSION = 2  # raise it whenever a drawn byte changes: folders of another version are refused
MARKER = "shapes.json"
SPLITS = ("train", "val")
UNITS = 32  # length of an image's shorter side
TAU = np.float32(2 * np.pi)
TILT = 0.16  # radians (9 degrees): directions 45 degrees apart stay apart
# These three set the difficulty: clear enough for narrow ReLU nets to learn within 600 steps.
CONTRAST = (0.35, 0.95)  # distance between a texture's two colours; black to white is 1
NOISE = (0.005, 0.04)  # std of the pixel noise, on the same scale
RADIUS = (12, 16)  # of the textured object


# --- textures: (grid (2, H, W) in units, origin at the object; rng) -> pattern (H, W) in [0, 1] ---
def _frame(grid, rng, *, period, angle=0.0, tilt=TILT):
    """Coordinates x, y in periods, turned by angle +- tilt, bent a little, shifted at random."""
    turn = angle + rng.uniform(-tilt, tilt) + np.array([0, np.pi / 2])
    x, y = np.tensordot(_direction(turn) / np.float32(rng.uniform(*period)), grid, axes=1)
    shift, bend = rng.random(2, np.float32), np.float32(rng.uniform(-0.012, 0.012))
    return x + shift[0] + bend * y * y, y + shift[1] + bend * x * x


def _wave(phase, level=0.0):
    """Soft-edged stripes of period 1; a level above 0 makes the bright ones thinner."""
    return np.clip(0.5 + 1.5 * (np.cos(TAU * phase) - level), 0, 1)


def _cell(x, y):
    """Offsets from the nearest point of the unit lattice, in periods."""
    return x - np.rint(x), y - np.rint(y)


def stripes(grid, rng, *, angles):
    return _wave(_frame(grid, rng, period=(3.5, 7), angle=rng.choice(angles))[0])


def board(grid, rng, *, angle):
    x, y = _frame(grid, rng, period=(6, 9), angle=angle)
    return np.clip(0.5 + 3 * np.sin(TAU * x) * np.sin(TAU * y), 0, 1)


def dots(grid, rng):
    x, y = _cell(*_frame(grid, rng, period=(4.5, 7.5), tilt=np.pi))
    return np.clip(0.5 + 5 * (0.27 - np.hypot(x, y)), 0, 1)


def rings(grid, rng):
    x, y = _cell(*_frame(grid, rng, period=(6, 9), tilt=np.pi))
    return np.clip(0.5 + 8 * (0.12 - np.abs(np.hypot(x, y) - 0.32)), 0, 1)


def lattice(grid, rng):
    x, y = _frame(grid, rng, period=(4.5, 8))
    return np.maximum(_wave(x, 0.6), _wave(y, 0.6))


def zigzag(grid, rng):
    x, y = _frame(grid, rng, period=(4, 6), angle=rng.choice([0, np.pi / 2]))
    return _wave(y + 2 * np.abs(x / 2 - np.rint(x / 2)))


def bricks(grid, rng):
    x, y = _frame(grid, rng, period=(4, 6))
    return np.maximum(_wave(y, 0.6), _wave((x + np.floor(y)) / 2, 0.85))


def targets(grid, rng):
    x, y = grid - rng.uniform(-4, 4, (2, 1, 1)).astype(np.float32)
    return _wave(np.hypot(x, y) / np.float32(rng.uniform(3.5, 6)) + rng.random())


def rays(grid, rng):
    x, y = grid - rng.uniform(-4, 4, (2, 1, 1)).astype(np.float32)
    return _wave(np.arctan2(y, x) * (int(rng.integers(5, 9)) / TAU) + rng.random())


def crosses(grid, rng):
    x, y = np.abs(_cell(*_frame(grid, rng, period=(6, 9), tilt=np.pi)))
    return np.clip(0.5 + 8 * np.minimum(0.11 - np.minimum(x, y), 0.36 - np.maximum(x, y)), 0, 1)


def triangles(grid, rng):
    x, y = _frame(grid, rng, period=(5, 8))
    return np.clip(0.5 + 6 * ((y - np.floor(y)) / 2 - np.abs(x - np.rint(x))), 0, 1)


TEXTURES: dict[str, Callable] = {  # the order counts: a set of n classes has the first n
    "horizontal": partial(stripes, angles=[np.pi / 2]),
    "vertical": partial(stripes, angles=[0]),
    "diagonal": partial(stripes, angles=[-np.pi / 4, np.pi / 4]),  # a mirror swaps the two
    "checks": partial(board, angle=0),
    "diamonds": partial(board, angle=np.pi / 4),
    "dots": dots,
    "rings": rings,
    "lattice": lattice,
    "zigzag": zigzag,
    "bricks": bricks,
    "targets": targets,
    "rays": rays,
    "crosses": crosses,
    "triangles": triangles,
}


# --- one image ---
def draw_image(texture: str, rng: np.random.Generator) -> np.ndarray:
    """An object with the texture in clutter: (H, W, 3) uint8, shorter side 40 to 72 pixels."""
    grid = draw_grid(rng)
    first, second = rng.random((2, 3, 1, 1), np.float32)
    image = first + (draw_ramp(grid, rng, slope=1) + 0.5) * (second - first)  # (3, H, W)
    draw_clutter(image, grid, rng, shapes=rng.integers(2, 6))
    radius = rng.uniform(*RADIUS)
    room = np.maximum(-grid[:, 0, 0] - 0.9 * radius, 0)
    here = grid - (rng.uniform(-1, 1, 2) * room).astype(np.float32)[:, None, None]
    first, second = draw_colours(rng)
    coat = first + TEXTURES[texture](here, rng) * (second - first)
    image += draw_outline(here, rng, radius=radius) * (coat - image)
    draw_clutter(image, grid, rng, shapes=rng.integers(0, 4))  # now in front of the object
    return expose(image, grid, rng)


def draw_grid(rng, *, sides=(40, 73), units=UNITS):
    """Coordinates (2, H, W) of the pixels, x then y, with the origin at the centre. The shorter
    side is `units` long, and has at least sides[0] and less than sides[1] pixels."""
    short, aspect = int(rng.integers(*sides)), rng.uniform(1, 4 / 3)
    sides = (short, int(short * aspect))
    height, width = sides if rng.random() < 0.5 else sides[::-1]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x - (width - 1) / 2, y - (height - 1) / 2]) * np.float32(units / short)


def _direction(angle):
    """Unit vectors (..., 2)."""
    return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)


def draw_ramp(grid, rng, *, slope):
    """A plane (H, W), 0 at the origin, that rises by up to `slope` per UNITS along either axis."""
    return np.tensordot(rng.uniform(-slope, slope, 2).astype(np.float32) / UNITS, grid, axes=1)


def draw_outline(grid, rng, *, radius):
    """Coverage (H, W) in [0, 1] of a convex polygon or of a blob around the origin."""
    if rng.random() < 0.5:
        corners = rng.integers(3, 8)
        turns = np.arange(corners) + rng.random() + rng.uniform(-0.2, 0.2, corners)
        across = np.tensordot(_direction(2 * np.pi / corners * turns), grid, axes=1)
        return np.clip(radius * 0.85 + 0.5 - across.max(0), 0, 1)
    distance = np.sqrt(np.square(grid).sum(0)) + np.float32(1e-6)
    x, y = grid / distance
    around = x + np.complex64(1j) * y
    twice = around * around  # powers of `around` are waves of the angle
    waves = (0.3, 0.15, 0.1) * rng.random(3) * np.exp(2j * np.pi * rng.random(3))
    a, b, c = waves.astype(np.complex64)
    edge = radius + radius * (twice * (a + around * (b + c * twice))).real
    return np.clip(edge + 0.5 - distance, 0, 1)


def draw_colours(rng):
    """Two colours (3, 1, 1) in [0, 1], apart mostly in brightness: JPEG blurs a mere hue."""
    apart = rng.choice([-1, 1]) + 0.5 * rng.standard_normal(3)
    apart *= rng.uniform(*CONTRAST) * np.sqrt(3) / np.linalg.norm(apart)
    ends = rng.uniform(0.2, 0.8, 3) + np.stack([-apart, apart]) / 2
    return np.clip(ends, 0, 1).astype(np.float32)[..., None, None]


def draw_clutter(image, grid, rng, *, shapes, reach=20):
    """Paints plain shapes and lines of any colour into image (3, H, W), their centres at most
    `reach` from the origin along either axis; returns what each covers, (H, W) in [0, 1]."""
    masks = []
    for colour in rng.random((shapes, 3, 1, 1), np.float32):
        there = grid - rng.uniform(-reach, reach, (2, 1, 1)).astype(np.float32)
        if rng.random() < 0.3:
            across = np.tensordot(_direction(rng.uniform(0, np.pi)), there, axes=1)
            mask = np.clip(rng.uniform(0.8, 2) - np.abs(across), 0, 1)
        else:
            mask = draw_outline(there, rng, radius=rng.uniform(2, 7))
        image += mask * (colour - image)
        masks.append(mask)
    return masks


def expose(image, grid, rng):
    """(3, H, W) in [0, 1] to (H, W, 3) of 8 bits: light falls off to one side, noise is added."""
    image = image * (rng.uniform(0.8, 1.1) + draw_ramp(grid, rng, slope=0.6))
    image += np.float32(rng.uniform(*NOISE)) * rng.standard_normal(image.shape, np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


# --- the folder ---
def write_shapes(
    root: Path, *, classes: int, train_images: int, val_images: int, seed: int = 0
) -> Path:
    """Writes root/<split>/<class>/<class>_<n>.jpg, the images spread evenly over the classes.

    An image depends on (seed, split, class, n) alone: a larger set contains the smaller. A root
    that holds this set is returned at once; one that holds anything else is refused (ValueError).
    """
    if not 2 <= classes <= len(TEXTURES):
        raise ValueError(f"classes={classes}: choose 2 to {len(TEXTURES)} ({', '.join(TEXTURES)})")
    asked = {
        "version": VERSION,
        "classes": classes,
        "train_images": train_images,
        "val_images": val_images,
        "seed": seed,
    }
    return write_once(root, MARKER, asked, partial(_write_splits, asked))


def _write_splits(asked, scratch):
    for split in SPLITS:
        images = asked[f"{split}_images"]
        _write_split(scratch / split, classes=asked["classes"], images=images, seed=asked["seed"])


def _write_split(folder, *, classes, images, seed):
    for index, name in enumerate(list(TEXTURES)[:classes]):
        (folder / name).mkdir(parents=True)
        for n in range(images // classes + (index < images % classes)):
            # the name's checksum, not its place: a new line in TEXTURES changes no old image
            key = [seed, SPLITS.index(folder.name), zlib.crc32(name.encode()), n]
            image = Image.fromarray(draw_image(name, np.random.default_rng(key)))
            image.save(folder / name / f"{name}_{n:05d}.jpg", quality=90)
