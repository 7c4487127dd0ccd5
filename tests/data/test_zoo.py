"""Every odd file that a folder of images may hold, and what becomes of it in training, testing and
`data verify`."""

import os
import re
import signal
import socket
import time
import zlib
from functools import lru_cache, partial

import numpy as np
import pytest
from helpers import encode, make_png, smooth_pixels, write_file
from PIL import Image

from delving.data.augment import center_view, whole_views
from delving.data.images import ASPECT, BYTES, FolderReader, Images, UndecodableImageError
from delving.data.loader import Cache, TrainingBatches, Views

WIDTH, HEIGHT = 37, 23
COLOR = Image.fromarray(smooth_pixels(WIDTH, HEIGHT))
DEEP = (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 60).astype(np.uint16)
PALETTE = COLOR.quantize(64)
UPRIGHT, TURNED = (WIDTH, HEIGHT), (HEIGHT, WIDTH)


def turned(orientation, image=COLOR, form="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, form, exif=exif)


def with_alpha(mode):
    alpha = Image.new("L", COLOR.size, 128)
    return Image.merge(mode, (*COLOR.convert(mode[:-1]).split(), alpha))


def flat(width, height):
    return encode(np.full((height, width, 3), 90, np.uint8))


# name: (bytes, (width, height))
SOUND = {
    "sixteen_bits.png": (encode(Image.fromarray(DEEP)), UPRIGHT),
    "sixteen_bits.pgm.ppm": (encode(Image.fromarray(DEEP.astype(np.int32)), "PPM"), UPRIGHT),
    "palette_one_transparent.png": (encode(PALETTE, transparency=3), UPRIGHT),
    "palette_all_transparent.png": (encode(PALETTE, transparency=bytes(range(64))), UPRIGHT),
    "grey.jpg": (encode(COLOR.convert("L"), "JPEG"), UPRIGHT),
    "grey_alpha.png": (encode(with_alpha("LA")), UPRIGHT),
    "alpha.png": (encode(with_alpha("RGBA")), UPRIGHT),
    "one_bit.png": (encode(COLOR.convert("1")), UPRIGHT),
    "cmyk.jpg": (encode(COLOR.convert("CMYK"), "JPEG"), UPRIGHT),
    **{f"exif_{n}.jpg": (turned(n), UPRIGHT if n < 5 else TURNED) for n in range(1, 9)},
    **{f"exif_{n}.tiff": (turned(n, form="TIFF"), UPRIGHT if n < 5 else TURNED) for n in (3, 6)},
    **{f"exif_{n}_deep.png": (turned(n, Image.fromarray(DEEP), "PNG"),
                              UPRIGHT if n < 5 else TURNED) for n in (3, 5)},
    "one_pixel.png": (flat(1, 1), (1, 1)),
    "long.png": (flat(2 * ASPECT, 2), (2 * ASPECT, 2)),
    "tall.png": (flat(2, 2 * ASPECT), (2, 2 * ASPECT)),
    "animated.gif": (encode(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
                     UPRIGHT),
    "an image without its ending.txt.jpg": (encode(COLOR, "BMP"), UPRIGHT),
    "line\nbreak \x1b[2J.jpg": (encode(COLOR, "JPEG"), UPRIGHT),
    os.fsdecode(b"no utf-8 \xff\xfe.jpg"): (encode(COLOR, "JPEG"), UPRIGHT),
}  # fmt: skip


@lru_cache
def bomb(side, whole=True):
    """A PNG of side x side black pixels, one bit each: unpacked, some hundred times as large."""
    packer = zlib.compressobj(1)
    rows = bytes((side // 8 + 1) * 100)
    packed = [packer.compress(rows) for _ in range(side // 100 if whole else 0)]
    pixels = b"".join([*packed, packer.flush()])
    return make_png(side, pixels, bits=1, kind=0)


JPEG, PNG = encode(COLOR, "JPEG"), encode(COLOR)


def make_pipe(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link(path, to):
    path.symlink_to(to)


def make_unreadable(path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path.write_bytes(JPEG)
    path.chmod(0)


def make_huge(path):
    with path.open("wb") as file:
        file.truncate(BYTES + 1)  # sparse: takes no room on the disk


# name: (bytes, or what makes the file, what is said of it)
BROKEN = {
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated.png": (PNG[: len(PNG) // 2], "truncated|Truncated"),
    "empty.jpg": (b"", "cannot be decoded: an empty file"),
    "text.jpg": (b"<html>404 not found</html>", "no image of a known format"),
    "needle.png": (partial(flat, 30_000, 2), r"30,000 x 2 pixels, more than 100 times as long"),
    "tower.png": (partial(flat, 2, 30_000), r"2 x 30,000 pixels, more than 100 times as long"),
    "claimed_bomb.png": (partial(bomb, 30_000, whole=False), "decompression bomb"),
    "real_bomb.png": (partial(bomb, 30_000), "decompression bomb"),
    "smaller_bomb.png": (partial(bomb, 9600), r"9,600 x 9,600 pixels, more than 89,478,485"),
    "pipe.jpg": (make_pipe, "cannot be read: not a regular file"),
    "folder.jpg": (make_folder, "cannot be read: not a regular file"),
    "socket.jpg": (make_socket, "cannot be read: not a regular file"),
    "endless.jpg": (partial(link, to="/dev/zero"), "cannot be read: not a regular file"),
    "dangling.jpg": (partial(link, to="nowhere.jpg"), "cannot be read: No such file"),
    "circle.jpg": (partial(link, to="circle.jpg"), "cannot be read: Too many levels"),
    "huge.jpg": (make_huge, "cannot be read: 100,000,001 bytes, more than 100,000,000"),
    "unreadable.jpg": (make_unreadable, "cannot be read: Permission denied"),
    "broken line\nbreak \x1b[2J.jpg": (b"", "an empty file"),
    os.fsdecode(b"broken no utf-8 \xff\xfe.jpg"): (b"", "an empty file"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_hangs():
    def give_up(number, frame):
        raise TimeoutError("hung")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(folder, name):
    """Writes one of the zoo into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = (SOUND.get(name) or BROKEN[name])[0]
    if isinstance(made, partial) and made.func in (flat, bomb):
        made = made()
    write_file(folder / name, made) if isinstance(made, bytes) else made(folder / name)


def images_of(folder, *names):
    labels = np.arange(len(names))
    classes = [f"class{n}" for n in labels]
    return Images(list(names), labels, classes, classes, FolderReader(folder))


def train_on(images):
    batches = TrainingBatches(
        Cache(images, 0), batch=len(images), crop=14, sides=(16, 32), flip=True, seed=0
    )
    return batches[0]


SOME_VIEWS = {"center": partial(center_view, s=16, crop=14), "dense": partial(whole_views, s=16)}


# --- images ---
@pytest.mark.parametrize("name", SOUND, ids=ascii)
def test_an_odd_image_is_rgb_of_its_upright_size(tmp_path, name):
    put(tmp_path, name)
    images = images_of(tmp_path, name)
    loaded = images.load(0)
    assert (loaded.mode, loaded.size) == ("RGB", SOUND[name][1])
    assert images.size(0) == loaded.size


@pytest.mark.parametrize("name", SOUND, ids=ascii)
def test_an_odd_image_is_trained_on_and_tested_like_any(tmp_path, name):
    put(tmp_path, name)
    images = images_of(tmp_path, name)
    batch = train_on(images)
    assert batch.bad == []
    assert batch.pixels.shape == (1, 14, 14, 3)
    for view in SOME_VIEWS.values():
        indices, views = Views(Cache(images, 0), view, [np.array([0])])[0]
        assert indices.tolist() == [0]
        assert views.shape[0] == 1


# --- what is none ---
@pytest.mark.parametrize("name", BROKEN, ids=ascii)
def test_what_cannot_be_an_image_is_refused_by_its_name_at_once(tmp_path, name):
    put(tmp_path, name)
    images, before = images_of(tmp_path, name), time.process_time()
    with pytest.raises(UndecodableImageError, match=BROKEN[name][1]) as found:
        images.load(0)
    assert str(found.value).startswith(f"{name} cannot be ")
    assert time.process_time() - before < 1
    if not name.startswith("truncated"):  # their header is whole
        with pytest.raises(UndecodableImageError, match=BROKEN[name][1]):
            images.size(0)


@pytest.mark.parametrize("name", BROKEN, ids=ascii)
def test_training_takes_the_next_image_and_names_it(tmp_path, name):
    put(tmp_path, name)
    put(tmp_path, "grey.jpg")
    batch = train_on(images_of(tmp_path, name, "grey.jpg"))
    assert batch.bad == [name]
    assert batch.labels.tolist() == [1, 1]
    assert batch.pixels.shape == (2, 14, 14, 3)


@pytest.mark.parametrize("kind", SOME_VIEWS)
@pytest.mark.parametrize("name", BROKEN, ids=ascii)
def test_testing_never_replaces_it_but_names_it(tmp_path, name, kind):
    put(tmp_path, name)
    put(tmp_path, "grey.jpg")
    images = images_of(tmp_path, "grey.jpg", name)
    error = Views(Cache(images, 0), SOME_VIEWS[kind], [np.arange(2)])[0]
    assert isinstance(error, UndecodableImageError)
    assert name in str(error)


def test_a_long_image_resized_as_a_whole_stays_small(tmp_path):
    """s = 512 is the largest that training draws."""
    put(tmp_path, "long.png")
    [view, _] = whole_views(images_of(tmp_path, "long.png").load(0), 512)
    assert view.nbytes == 512 * 512 * ASPECT * 3 < 1e8


# --- data verify ---
@pytest.fixture
def verify(delving):
    """`delving data verify` of a folder of any classes: (exit code, stdout)."""
    words = ["scale=smoke", "data=folder", "data.classes=null", "data.train_images=null",
             "data.val_images=null"]  # fmt: skip
    return lambda root: delving("data", "verify", *words, f"data.root={root}")[:2]


def test_verify_finds_nothing_wrong_with_odd_images(tmp_path, verify):
    for name in SOUND:
        put(tmp_path / "train" / "zoo", name)
    put(tmp_path / "val" / "zoo", "one_pixel.png")
    (tmp_path / "train" / "zoo" / "one_pixel.png").unlink()
    code, said = verify(tmp_path)
    count = len(SOUND) - 1
    assert said.splitlines() == [
        f"train: {count} images, {count} of them sound, 1 classes: zoo {count}",
        "val: 1 images, 1 of them sound, 1 classes: zoo 1",
        "sound",
    ]
    assert code == 0


def test_verify_lists_all_that_is_wrong_in_order_and_in_one_pass(tmp_path, verify):
    names = [name for name in BROKEN if name != "unreadable.jpg"]
    for name in names:
        put(tmp_path / "train" / "zoo", name)
    put(tmp_path / "val" / "zoo", "one_pixel.png")
    code, said = verify(tmp_path)
    lines = said.splitlines()
    assert lines[0] == f"train: {len(names)} images, 0 of them sound, 1 classes: zoo {len(names)}"
    assert lines[-1] == f"{len(names)} undecodable, 0 duplicates"
    told = lines[2:-1]
    assert len(told) == len(names)
    for line, name in zip(told, sorted(names), strict=True):
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
        assert line.startswith(f"bad: train/zoo/{shown} cannot be ")
        assert re.search(BROKEN[name][1], line)
    assert code == 1
