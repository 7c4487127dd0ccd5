"""Views cut from JPEG files without decoding the whole of them are those of the whole image, bit
for bit; what cannot be cut so is left to the whole image."""

import io
import zipfile

import numpy as np
import pytest
from helpers import SHARED, MemoryReader, encode, smooth_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from delving.data import regions
from delving.data.augment import crop_at, draw_augmentation, pick_side
from delving.data.images import Images, UndecodableImageError, decode
from delving.data.loader import Cache, TrainingBatches
from delving.data.regions import cut_region
from delving.kernels import compiled

some = settings(deadline=None, derandomize=True, max_examples=150)
places = st.floats(0, 1, exclude_max=True, width=32, allow_subnormal=False)
cutting = pytest.mark.skipif(regions.load() is None, reason="no C++ compiler or no libjpeg-turbo")


def noisy(width, height, seed=0):
    """Waves under noise, so that no pixel is like its neighbours."""
    noise = np.random.default_rng(seed).integers(-60, 60, (height, width, 3))
    return (smooth_pixels(width, height, seed).astype(int) + noise).clip(0, 255).astype(np.uint8)


def whole(data, *view, flip):
    return crop_at(decode(data, "x"), *view, flip=flip)


@cutting
@some
@given(
    width=st.integers(15, 150), height=st.integers(15, 150), crop=st.integers(1, 40),
    more=st.integers(0, 60), at=st.tuples(places, places), flip=st.booleans(),
    sampling=st.sampled_from([0, 1, 2]), quality=st.integers(20, 100), gray=st.booleans(),
    progressive=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_cut_view_is_the_whole_images(
    width, height, crop, more, at, flip, sampling, quality, gray, progressive, seed
):
    """Larger and smaller, high and wide, with chroma at full, half and quarter resolution."""
    image = Image.fromarray(noisy(width, height, seed))
    image = image.convert("L") if gray else image
    kind = {} if gray else {"subsampling": sampling}
    data = encode(image, "JPEG", quality=quality, progressive=progressive, **kind)
    view = (crop + more, crop, at)
    cut = cut_region(data, "x", *view, flip=flip)
    assert cut is not None
    np.testing.assert_array_equal(cut, whole(data, *view, flip=flip))


@cutting
@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared")
def test_of_a_hundred_real_images_nearly_all_are_cut_and_all_alike():
    with zipfile.ZipFile(SHARED / "imagenet_sample_100.zip") as real:
        files = [real.read(name) for name in real.namelist() if name.endswith(".JPEG")]
    draws, cut = draw_augmentation(0, 0, len(files)), 0
    for data, (u, x, y, turn) in zip(files, draws[:, :4], strict=True):
        view = (pick_side(u, (256, 512)), 224, (x, y))
        found = cut_region(data, "x", *view, flip=turn < 0.5)
        cut += found is not None
        if found is not None:
            np.testing.assert_array_equal(found, whole(data, *view, flip=turn < 0.5))
    assert cut > 90


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return encode(noisy(40, 30), "JPEG", exif=exif)


LEFT = {
    "PNG": encode(noisy(40, 30)),
    "a JPEG that is turned": turned(),
    "a JPEG for printers": encode(Image.fromarray(noisy(40, 30)).convert("CMYK"), "JPEG"),
    "a JPEG cut short": encode(noisy(40, 30), "JPEG")[:-40],
    "a JPEG with something after its end": encode(noisy(40, 30), "JPEG") + b"\0",
    "no image at all": b"\xff\xd8nothing\xff\xd9"[2:],
}


@pytest.mark.parametrize("kind", LEFT)
def test_other_files_are_left_to_the_whole_image(kind):
    assert cut_region(LEFT[kind], "x", 32, 16, (0.5, 0.5), flip=False) is None


def test_what_has_no_header_is_named():
    if regions.load() is not None:
        with pytest.raises(UndecodableImageError, match=r"a\.JPEG cannot be decoded"):
            cut_region(b"\xff\xd8nothing\xff\xd9", "a.JPEG", 32, 16, (0.5, 0.5), flip=False)


SOUND = encode(noisy(64, 48), "JPEG", quality=80)
MANY = encode(noisy(64, 48), "JPEG", quality=80, progressive=True, restart_marker_blocks=2)


@cutting
@some
@given(data=st.sampled_from([SOUND, MANY]), place=st.floats(0, 1, exclude_max=True),
       mask=st.integers(1, 255), at=st.tuples(places, places))  # fmt: skip
def test_a_damaged_byte_gives_the_whole_images_view_or_none(data, place, mask, at):
    """What the decoder warns of is refused, so that nothing depends on how it mends."""
    broken = bytearray(data)
    broken[int(place * len(data))] ^= mask
    try:
        cut = cut_region(bytes(broken), "x", 40, 16, at, flip=False)
        wanted = whole(bytes(broken), 40, 16, at, flip=False)
    except UndecodableImageError:
        return
    if cut is not None:
        np.testing.assert_array_equal(cut, wanted)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true"])
def test_where_nothing_compiles_whole_images_are_decoded(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert regions.load.__wrapped__() is None
    monkeypatch.setattr(regions, "load", lambda: None)
    assert cut_region(SOUND, "x", 40, 16, (0.5, 0.5), flip=False) is None


def test_one_that_cuts_otherwise_than_pillow_is_not_used(monkeypatch):
    class Library:
        @staticmethod
        def jpeg_view(*_):
            return 0  # and leaves what was in memory

    monkeypatch.setattr(regions, "compile_and_load", lambda *_, **__: Library)
    assert regions.load.__wrapped__() is None


def test_batches_are_the_same_of_kept_images_and_of_cut_ones():
    files = {f"{i}.jpg": encode(noisy(40 + i, 60 - i, i), "JPEG") for i in range(7)}
    names = list(files)
    images = Images(names, np.arange(7), names, names, MemoryReader(files))
    for step in range(4):
        cut, kept = (
            TrainingBatches(Cache(images, budget), batch=5, crop=24, sides=(28, 56), flip=True,
                            seed=3)[step]
            for budget in (0, 1e9)
        )  # fmt: skip
        assert (cut.pixels == kept.pixels).all()
        assert (cut.labels == kept.labels).all()


def test_libraries_of_other_links_are_other_files(tmp_path, monkeypatch):
    """One of the same source must not be taken for the other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for links in ((), ("-lm",)):
        if compiled.compile_and_load("kernels.cpp", links=links, tuned=((),)) is None:
            pytest.skip("no C++ compiler here")
    assert len(list(tmp_path.rglob("*.so"))) == 2


def test_a_views_own_bytes_are_its_images(tmp_path):
    """A cache with no room reads a file once for each view."""
    calls = []

    def read(name):
        calls.append(name)
        return SOUND

    images = Images(["a"], np.zeros(1, int), ["a"], ["a"], read)
    cache, draws = Cache(images, 0), draw_augmentation(0, 0, 1)[0]
    view = cache.cut(0, draws, crop=16, sides=(20, 40), flip=True)
    assert view.shape == (16, 16, 3)
    assert calls == ["a"]
    assert Image.open(io.BytesIO(SOUND)).size == (64, 48)
