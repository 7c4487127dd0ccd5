"""Decoding whatever people have: to upright 8-bit RGB, or to an error that names the file."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from helpers import MemoryReader, encode, make_images, make_png, smooth_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from delving.data.images import Images, UndecodableImageError, decode, select

WIDTH, HEIGHT = 37, 23
PIXELS = smooth_pixels(WIDTH, HEIGHT)
COLOR = Image.fromarray(PIXELS)


def one(data, name="train/a/1.JPEG"):
    return Images([name], np.zeros(1, np.int64), ["a"], ["a"], MemoryReader({name: data}))


def with_alpha():
    return Image.merge("RGBA", (*COLOR.split(), Image.new("L", COLOR.size, 128)))


KINDS = {
    "png": (COLOR, "PNG", {}, 0),
    "jpeg": (COLOR, "JPEG", {"quality": 95}, 12),
    "progressive": (COLOR, "JPEG", {"quality": 95, "progressive": True}, 12),
    "grayscale": (COLOR.convert("L"), "JPEG", {"quality": 95}, None),
    "cmyk": (COLOR.convert("CMYK"), "JPEG", {"quality": 95}, 20),
    "palette": (COLOR.quantize(256), "PNG", {}, 30),
    "alpha": (with_alpha(), "PNG", {}, 0),
    "webp": (COLOR, "WEBP", {"lossless": True}, 0),
    "gif": (COLOR.quantize(256), "GIF", {}, 30),
    "bmp": (COLOR, "BMP", {}, 0),
    "one bit": (COLOR.convert("1"), "PNG", {}, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_rgb_of_its_size_and_colours(kind):
    image, form, options, tolerance = KINDS[kind]
    images = one(encode(image, form, **options))
    loaded = images.load(0)
    assert (loaded.mode, loaded.size) == ("RGB", (WIDTH, HEIGHT))
    assert images.size(0) == loaded.size
    pixels = np.asarray(loaded).astype(int)
    if tolerance is None:  # gray: three equal channels
        assert (pixels == pixels[..., :1]).all()
        wanted = np.asarray(image.convert("L")).astype(int)
        assert abs(pixels[..., 0] - wanted).max() <= 12
    else:
        assert abs(pixels - PIXELS).max() <= tolerance


def test_sixteen_bits_are_scaled_to_eight_not_clipped():
    deep = (np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 60).astype(np.uint16)
    pixels = np.asarray(decode(encode(Image.fromarray(deep)), "deep.png")).astype(int)
    assert abs(pixels[..., 0] - deep / 257).max() <= 1
    assert pixels.max() > 190


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_that_exif_turns_is_upright_and_its_size_is_known(orientation):
    upright = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    upright[: HEIGHT // 2, : WIDTH // 2] = (250, 10, 10)  # a red top left corner
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    images = one(encode(np.ascontiguousarray(stored), "JPEG", exif=exif, quality=95))
    loaded = images.load(0)
    assert loaded.size == images.size(0) == (WIDTH, HEIGHT)
    pixels = np.asarray(loaded)
    assert pixels[3, 3, 0] > 200
    assert pixels[3, 3, 1] < 60
    for corner in (pixels[3, -4], pixels[-4, 3], pixels[-4, -4]):
        assert corner.max() < 60


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_as_stored_is_turned_in_no_format(form, orientation):
    """Boxes of detection refer to it."""
    exif, options = Image.Exif(), {"lossless": True} if form == "WEBP" else {}
    exif[0x0112] = orientation
    stored = decode(encode(PIXELS, form, exif=exif, **options), "x", upright=False)
    assert stored.size == (WIDTH, HEIGHT)
    assert abs(np.asarray(stored).astype(int) - PIXELS).max() <= 20


def test_the_size_of_a_png_is_known_without_decoding_it(monkeypatch):
    def load(image):
        raise AssertionError("decoded")

    images = one(encode(PIXELS, "PNG"))
    monkeypatch.setattr(PngImageFile, "load", load)
    assert images.size(0) == (WIDTH, HEIGHT)


def test_an_orientation_behind_the_pixels_of_a_png_is_heeded():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(PIXELS, "PNG", exif=exif)
    start, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4
    last = len(data) - 12  # IEND's
    images = one(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert images.load(0).size == images.size(0) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_odd_entries_beside_the_orientation_are_no_trouble(form):
    # Orientation 6, and a resolution that is text: Pillow reads it, but could not write it anew.
    entries = struct.pack("<HHIHxx", 0x0112, 3, 1, 6) + struct.pack("<HHI4s", 0x011A, 2, 3, b"72")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    images = one(encode(PIXELS, form, exif=exif))
    assert images.load(0).size == images.size(0) == (HEIGHT, WIDTH)


def test_an_image_whose_exif_is_damaged_is_as_its_pixels_are():
    images = one(encode(PIXELS, "PNG", exif=b"Exif\0\0no header of a TIFF"))
    assert images.load(0).size == images.size(0) == (WIDTH, HEIGHT)


def test_an_image_of_one_pixel_is_an_image():
    images = one(encode(np.full((1, 1, 3), 9, np.uint8)))
    assert images.load(0).size == images.size(0) == (1, 1)


def bomb():
    """A PNG that claims 60,000 x 60,000 pixels."""
    return make_png(60_000, zlib.compress(b"\0"), bits=8, kind=2)


JPEG, PNG = encode(COLOR, "JPEG"), encode(COLOR, "PNG")
BROKEN = {
    "empty": b"",
    "text": b"<html>404 not found</html>",
    "jpeg cut in half": JPEG[: len(JPEG) // 2],
    "jpeg cut in its header": JPEG[:30],
    "png cut in half": PNG[: len(PNG) // 2],
    "png header alone": PNG[:33],
    "zeros": bytes(500),
    "bomb": bomb(),
    "floating-point tiff": encode(COLOR.convert("F"), "TIFF"),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_whole_image_is_refused_by_its_name(kind):
    with pytest.raises(UndecodableImageError, match=r"train/a/1\.JPEG cannot be decoded"):
        one(BROKEN[kind]).load(0)


@pytest.mark.parametrize(
    "kind", ["empty", "text", "jpeg cut in its header", "bomb", "floating-point tiff"]
)
def test_the_size_of_what_has_no_good_header_is_refused_by_its_name(kind):
    with pytest.raises(UndecodableImageError, match=r"train/a/1\.JPEG"):
        one(BROKEN[kind]).size(0)


@settings(max_examples=80)
@given(st.integers(0, len(JPEG) - 3))
def test_a_jpeg_cut_anywhere_is_refused_never_half_shown(length):
    with pytest.raises(UndecodableImageError):
        decode(JPEG[:length], "cut.jpg")


@settings(max_examples=80)
@given(st.sampled_from([JPEG, PNG]), st.integers(0, 10_000), st.integers(1, 255))
def test_a_damaged_byte_gives_an_image_or_the_one_error(data, place, mask):
    damaged = bytearray(data)
    damaged[place % len(data)] ^= mask
    try:
        assert decode(bytes(damaged), "damaged").mode == "RGB"
    except UndecodableImageError as error:
        assert "damaged" in str(error)  # noqa: PT017


def test_images_survive_the_way_to_a_loader_process():
    images = make_images([(9, 8), (7, 6)])
    again = pickle.loads(pickle.dumps(images))
    assert [again.load(i).size for i in range(2)] == [(9, 8), (7, 6)]


# --- select ---
def listing(counts):
    """A split without files: counts[i] images of class i, class after class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    names = [f"{label}/{n}" for label, count in enumerate(counts) for n in range(count)]
    classes = [f"c{i}" for i in range(len(counts))]
    return Images(names, labels, classes, classes, io.BytesIO)


sizes = st.lists(st.integers(1, 9), min_size=2, max_size=6)


@settings(max_examples=100)
@given(sizes, st.data())
def test_chosen_images_spread_evenly_over_the_classes(counts, data):
    images = listing(counts)
    count = data.draw(st.integers(1, sum(counts)))
    chosen = select(images, classes=None, count=count)
    held = np.bincount(chosen.labels, minlength=len(counts))
    assert held.sum() == len(chosen) == len(set(chosen.names)) == count
    for mine, all_mine in zip(held, counts, strict=True):
        # no class has two fewer than another, unless it has no more
        assert mine == all_mine or mine >= held.max() - 1
    for name, label in zip(chosen.names, chosen.labels, strict=True):
        assert name.split("/")[0] == str(label)


@settings(max_examples=100)
@given(sizes, st.data())
def test_a_larger_choice_contains_the_smaller_and_first_ones_come_first(counts, data):
    images = listing(counts)
    few, more = sorted(data.draw(st.integers(1, sum(counts))) for _ in range(2))
    smaller = select(images, classes=None, count=few)
    assert set(smaller.names) <= set(select(images, classes=None, count=more).names)
    for label, held in enumerate(np.bincount(smaller.labels, minlength=len(counts))):
        wanted = [f"{label}/{n}" for n in range(held)]
        assert [n for n in smaller.names if n.startswith(f"{label}/")] == wanted


def test_the_first_classes_are_kept_with_their_labels():
    chosen = select(listing([3, 2, 4]), classes=2, count=None)
    assert chosen.classes == ["c0", "c1"]
    assert chosen.titles == ["c0", "c1"]
    assert chosen.labels.tolist() == [0, 0, 0, 1, 1]


def test_without_limits_everything_is_kept():
    images = listing([3, 2])
    assert select(images, classes=None, count=None).names == images.names


@pytest.mark.parametrize(
    ("classes", "count", "said"),
    [
        (4, None, r"data\.classes=4.* 3"),
        (None, 10, r"count=10: .* have 9"),
        (2, 6, r"count=6: .* have 5"),
    ],
)
def test_more_than_there_is_is_refused_with_what_there_is(classes, count, said):
    with pytest.raises(ValueError, match=said):
        select(listing([3, 2, 4]), classes=classes, count=count)


def test_a_split_without_images_of_the_chosen_classes_is_refused():
    with pytest.raises(ValueError, match="count: there is no image of the 2 classes"):
        select(listing([0, 0, 4]), classes=2, count=None)
