"""Views cut from JPEG files without decoding all of them equal those of the whole image, bit for
bit; where that cannot be, the whole image is decoded."""

import zipfile

import numpy as np
import pytest
from helpers import SHARED, MemoryReader, encode, smooth_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from delving.data import regions
from delving.data.augment import View, crop_at, draw_augmentation, pick_side, region_of
from delving.data.images import Images, UndecodableImageError, decode
from delving.data.loader import Cache, TrainingBatches
from delving.data.regions import agrees, look_at
from delving.kernels import compiled

some = settings(max_examples=150)
places = st.floats(0, 1, exclude_max=True, width=32, allow_subnormal=False)
cutting = pytest.mark.skipif(not agrees(), reason="no C++ compiler or no libjpeg-turbo")


def noisy(width, height, seed=0):
    """Waves under noise, so that no pixel is like its neighbours."""
    noise = np.random.default_rng(seed).integers(-60, 60, (height, width, 3))
    return (smooth_pixels(width, height, seed).astype(int) + noise).clip(0, 255).astype(np.uint8)


def whole(data, view):
    return crop_at(decode(data, "x"), *view[:3], flip=view.flip)


def cut(data, view, new=True):
    """Cuts a view as a cache does from a file, `new` to it or not."""
    size = look_at(data, "x")
    return size and regions.cut_region(data, size, view, new=new)


def outcome(make, *arguments):
    """What make(*arguments) returns, or the error that it raises."""
    try:
        return make(*arguments)
    except UndecodableImageError as error:
        return error


@cutting
@some
@given(
    width=st.integers(2, 150), height=st.integers(2, 150), crop=st.integers(1, 40),
    more=st.integers(0, 60), at=st.tuples(places, places), flip=st.booleans(),
    sampling=st.sampled_from([0, 1, 2]), quality=st.integers(20, 100), gray=st.booleans(),
    restart=st.integers(0, 3), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_cut_view_is_the_whole_images(
    width, height, crop, more, at, flip, sampling, quality, gray, restart, seed
):
    """Enlarged and reduced, tall and wide, with chroma at full, half and quarter resolution."""
    image = Image.fromarray(noisy(width, height, seed))
    image = image.convert("L") if gray else image
    kind = {} if gray else {"subsampling": sampling}
    data = encode(image, "JPEG", quality=quality, restart_marker_blocks=restart, **kind)
    view = View(crop + more, crop, at, flip)
    for new in (True, False):
        found = cut(data, view, new)
        assert found is not None
        np.testing.assert_array_equal(found, whole(data, view))


@some
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)), crop=st.integers(1, 60),
       more=st.integers(0, 60), at=st.tuples(places, places))  # fmt: skip
def test_a_region_has_all_that_the_filter_sees(size, crop, more, at):
    """The region lies within the image, with half the filter's width around the view if it fits."""
    region = region_of(size, crop + more, crop, at)
    for side, first, last, begin, end in zip(
        size, region.sides[:2], region.sides[2:], region.box[:2], region.box[2:], strict=True
    ):
        reach = max(1.0, (end - begin) / crop)
        assert 0 <= first < last <= side
        assert 0 <= begin < end <= last - first
        assert first == 0 or begin >= reach
        assert last == side or last - first - end >= reach


def test_a_view_larger_than_its_image_is_refused():
    with pytest.raises(ValueError, match="a crop of 24 pixels of an image resized to 20 x 30"):
        region_of((40, 60), 20, 24, (0, 0))


@cutting
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")
def test_of_a_hundred_real_images_nearly_all_are_cut_and_all_alike():
    with zipfile.ZipFile(SHARED / "imagenet_sample_100.zip") as real:
        files = [real.read(name) for name in real.namelist() if name.endswith(".JPEG")]
    draws, count = draw_augmentation(0, 0, len(files)), 0
    for data, (u, x, y, turn) in zip(files, draws[:, :4], strict=True):
        view = View(pick_side(u, (256, 512)), 224, (x, y), bool(turn < 0.5))
        found = cut(data, view)
        count += found is not None
        if found is not None:
            np.testing.assert_array_equal(found, whole(data, view))
    assert count > 90


# --- what is left to the whole image ---
def rotated():
    exif = Image.Exif()
    exif[274] = 6
    return encode(noisy(64, 48), "JPEG", exif=exif)


def with_size(data, height):
    """The same JPEG with another height in its header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + height.to_bytes(2, "big") + data[at + 2 :]


def halved_downwards():
    """A JPEG with half of the chroma's rows and all columns, as from a camera held sideways."""
    data = bytearray(encode(noisy(64, 64), "JPEG", subsampling=1))
    at = data.index(b"\xff\xc0") + 11
    assert data[at] == 0x21
    data[at] = 0x12
    return bytes(data)


SOUND = encode(noisy(64, 48), "JPEG", quality=80)
RESTARTED = encode(noisy(64, 48), "JPEG", quality=80, restart_marker_blocks=2)
PROGRESSIVE = encode(noisy(64, 48), "JPEG", quality=80, progressive=True)
# An invalid Huffman table just before the end: only reading to the end finds it.
BROKEN_BEHIND = SOUND[:-2] + b"\xff\xc4\x00\x03\x00" + SOUND[-2:]
TOP = View(96, 16, (0.1, 0.0), False)

LEFT = {
    "PNG": encode(noisy(40, 30)),
    "rotated": rotated(),
    "for printers": encode(Image.fromarray(noisy(64, 48)).convert("CMYK"), "JPEG"),
    "progressive": PROGRESSIVE,
    "chroma halved downwards": halved_downwards(),
    "cut short": SOUND[:-40],
    "cut in half, with an end": SOUND[: len(SOUND) // 2] + b"\xff\xd9",
    "broken behind the view": BROKEN_BEHIND,
    "higher than its data": with_size(SOUND, 200),
    "something after its end": SOUND + b"\0",
    "no image at all": b"nothing",
}


@cutting
@pytest.mark.parametrize("kind", LEFT)
def test_other_files_are_left_to_the_whole_image(kind):
    assert cut(SOUND, TOP) is not None
    assert cut(LEFT[kind], TOP) is None


@cutting
def test_what_has_no_header_is_named():
    with pytest.raises(UndecodableImageError, match=r"a\.JPEG cannot be decoded"):
        look_at(b"\xff\xd8nothing\xff\xd9", "a.JPEG")


@cutting
@some
@given(data=st.sampled_from([SOUND, RESTARTED]), place=st.floats(0, 1, exclude_max=True),
       mask=st.integers(1, 255), at=st.tuples(places, places))  # fmt: skip
def test_a_damaged_byte_gives_no_view_or_the_whole_images(data, place, mask, at):
    """A file that the whole image's decoder refuses gives no view, wherever its damage is."""
    broken = bytearray(data)
    broken[int(place * len(data))] ^= mask
    view = View(40, 16, at, False)
    found = outcome(cut, bytes(broken), view)
    wanted = outcome(whole, bytes(broken), view)
    if isinstance(wanted, UndecodableImageError):
        assert found is None or isinstance(found, UndecodableImageError)
    elif found is not None:
        np.testing.assert_array_equal(found, wanted)


# --- without a compiler, or with another decoder ---
@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true"])
def test_where_nothing_compiles_there_are_no_views(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (regions.load, agrees):
        function.cache_clear()
    try:
        assert regions.load() is None
        assert cut(SOUND, TOP) is None
    finally:
        for function in (regions.load, agrees):
            function.cache_clear()


def test_a_decoder_of_other_pixels_than_pillows_is_not_used(monkeypatch):
    monkeypatch.setattr(regions, "load", lambda: lambda *_: 0)  # leaves what was in memory
    assert not agrees.__wrapped__()


def test_libraries_of_other_links_are_other_files(tmp_path, monkeypatch):
    """Libraries of one source, linked differently, must not be confused."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for links in ((), ("-lm",)):
        if compiled.compile_and_load("kernels.cpp", links=links, tuned=((),)) is None:
            pytest.skip("no C++ compiler here")
    assert len(list(tmp_path.rglob("*.so"))) == 2


def test_a_library_that_does_not_load_any_more_is_made_anew(tmp_path, monkeypatch):
    """As when a library that it was linked with has another name by now. Its flags are the first
    ones again, not the next."""
    tuned = ((), ("-DNEXT",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    if compiled.compile_and_load("kernels.cpp", tuned=tuned) is None:
        pytest.skip("no C++ compiler here")
    [name] = [path.name for path in tmp_path.rglob("*.so")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    made = tmp_path / "second" / "delving" / name
    made.parent.mkdir(parents=True)
    made.write_bytes(b"no library")
    made.with_suffix(".sha256").write_text(compiled._hash(b"no library"))
    assert compiled.compile_and_load("kernels.cpp", tuned=tuned) is not None
    assert list(tmp_path.rglob("second/**/*.so")) == [made]


# --- in batches ---
def split_of(files):
    names = [f"{i}.jpg" for i in range(len(files))]
    reader = MemoryReader(dict(zip(names, files, strict=True)))
    return Images(names, np.arange(len(files)), names, names, reader)


@cutting
def test_batches_are_the_same_of_kept_images_and_of_cut_ones(monkeypatch):
    """Even where a file is damaged behind the view: both count it as undecodable."""
    found = []

    def seen(*arguments, **named):
        found.append(regions.cut_region(*arguments, **named))
        return found[-1]

    monkeypatch.setattr("delving.data.loader.cut_region", seen)
    files = [encode(noisy(40 + i, 60 - i, i), "JPEG") for i in range(7)]
    images = split_of([*files, BROKEN_BEHIND, PROGRESSIVE])
    cut_anew, kept = (
        TrainingBatches(Cache(images, budget), batch=5, crop=24, sides=(28, 56), flip=True, seed=3)
        for budget in (0, 1e9)
    )
    for step in range(6):
        assert all((a == b).all() for a, b in zip(cut_anew[step][:3], kept[step][:3], strict=True))
        assert cut_anew[step].bad == kept[step].bad
    assert sum(view is not None for view in found) > 12


@pytest.mark.parametrize("data", [SOUND, PROGRESSIVE])
def test_a_file_is_read_once_for_a_view(data):
    calls = []
    images = Images(["a"], np.zeros(1, int), ["a"], ["a"], lambda name: calls.append(name) or data)
    found = Cache(images, 0).cut(0, TOP)
    np.testing.assert_array_equal(found, whole(data, TOP))
    assert calls == ["a"]


def test_images_are_kept_while_there_is_room_also_after_one_that_is_too_large():
    images = split_of([encode(noisy(200, 200), "JPEG"), SOUND, SOUND, SOUND])
    cache = Cache(images, 2 * 64 * 48 * 4)
    for index in (0, 1, 2, 3):
        cache.cut(index, TOP)
    assert list(cache.kept) == [1, 2]
