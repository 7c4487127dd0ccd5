"""Files of proposals: a user's own, and kept ones that are damaged."""

import io
import zipfile
import zlib

import numpy as np
import pytest
from calling import silent
from hypothesis import given, settings
from hypothesis import strategies as st
from scenery import split_of

from delving.detect.proposals import hash_of, load_proposals, pack

many = settings(max_examples=100)
SPLIT = split_of(((40, 30), [(0, (5, 5, 30, 30))]), ((30, 40), []))  # images 0 and 1
BOXES = [np.array([[1, 2, 30, 30], [0, 0, 40, 30], [1, 2, 30, 30]]), np.zeros((0, 4))]


def array(values):
    file = io.BytesIO()
    np.save(file, np.array(values))
    return file.getvalue()


def write(path, method=zipfile.ZIP_STORED, **members):
    """An .npz file of these arrays; members given as bytes are written as they are."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, values in members.items():
            data = values if isinstance(values, bytes) else array(values)
            file.writestr(f"{name}.npy", data)
    return path


GOOD = {"names": ["0", "1"], "counts": [1, 1], "boxes": [[0.0, 0, 9, 9], [1, 1, 5, 5]]}


def load(path):
    return load_proposals(SPLIT, str(path), path.parent / "kept", silent)


# --- one's own ---
def test_a_persons_own_are_read_in_the_splits_order_sorted_and_once(tmp_path):
    path = tmp_path / "own.npz"
    other = np.array([[0, 0, 500, 500]])  # of an image that is not asked for
    path.write_bytes(pack(["1", "other", "0"], [BOXES[1], other, BOXES[0]]))
    first, second = load(path)
    assert first.tolist() == [[0, 0, 40, 30], [1, 2, 30, 30]]
    assert second.shape == (0, 4)
    assert (first.dtype, second.dtype) == (np.float32, np.float32)
    assert not (tmp_path / "kept").exists()


def test_they_may_lie_in_ones_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.npz").write_bytes(pack(["0", "1"], BOXES))
    first, _ = load_proposals(SPLIT, "~/own.npz", tmp_path / "kept", silent)
    assert first.tolist() == [[0, 0, 40, 30], [1, 2, 30, 30]]
    assert hash_of("~/own.npz") == hash_of(str(tmp_path / "own.npz"))


def test_numpy_alone_writes_such_a_file(tmp_path):
    np.savez(tmp_path / "own.npz", **GOOD)
    first, second = load(tmp_path / "own.npz")
    assert (first.tolist(), second.tolist()) == ([[0, 0, 9, 9]], [[1, 1, 5, 5]])


def test_a_missing_image_is_named(tmp_path):
    path = write(tmp_path / "own.npz", **(GOOD | {"names": ["0", "2"]}))
    with pytest.raises(ValueError, match=r"own\.npz: no proposals for 1 images, 1 first"):
        load(path)


@pytest.mark.parametrize("box", [[0, 0, 41, 9], [0, 0, 9, 31], [-1, 0, 9, 9], [0, -0.5, 9, 9]])
def test_a_box_outside_its_image_is_named(tmp_path, box):
    path = write(tmp_path / "own.npz", **(GOOD | {"boxes": [box, [1, 1, 5, 5]]}))
    with pytest.raises(ValueError, match=r"own\.npz: a box of 0 does not lie in the image"):
        load(path)


HUGE = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000, 4), }\n"
BROKEN = {
    "boxes of five numbers": {"boxes": [[0.0, 0, 9, 9, 1]] * 2},
    "a row of numbers": {"boxes": [0.0, 0, 9, 9]},
    "nan": {"boxes": [[0, 0, 9, np.nan], [1, 1, 5, 5]]},
    "infinity": {"boxes": [[0, 0, 9, np.inf], [1, 1, 5, 5]]},
    "words": {"boxes": [["a"] * 4] * 2},
    "no width": {"boxes": [[3.0, 0, 3, 9], [1, 1, 5, 5]]},
    "inverted": {"boxes": [[0.0, 9, 9, 0], [1, 1, 5, 5]]},
    "too many names": {"names": ["0", "1", "2"]},
    "too few boxes counted": {"counts": [1, 0]},
    "one name": {"names": "0"},
    "negative counts": {"counts": [-1, 3]},
    "counts that come round to the right sum": {
        "counts": [2**62] * 4 + [2, 0],
        "names": list("012345"),
    },
    "counts of no whole numbers": {"counts": [1.0, 1.0]},
    "a name twice": {"names": ["0", "1", "1"], "counts": [1, 1, 0]},
    "no boxes": {"boxes": None},
    "boxes that are no array": {"boxes": b"boxes"},
    "a header that is none": {"boxes": b"\x93NUMPY\1\0\x10\0{'descr': (((((("},
    "more boxes than fit anywhere": {"boxes": b"\x93NUMPY\1\0%c\0%s" % (len(HUGE), HUGE)},
    "pickled": {"names": np.array(["0", "1"], object)},
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_by_its_name(tmp_path, what):
    members = {key: value for key, value in (GOOD | BROKEN[what]).items() if value is not None}
    path = write(tmp_path / "own.npz", **members)
    with pytest.raises(ValueError, match=r"own\.npz is no file of proposals: ") as found:
        load(path)
    assert len(str(found.value).splitlines()) == 1


CUT_OFF = pack(["0"], BOXES[:1])[:200]


@pytest.mark.parametrize("data", [b"", b"PK", b"<html>", b"\x93NUMPY", CUT_OFF])
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path, data):
    (tmp_path / "own.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"own\.npz is no file of proposals: "):
        load(tmp_path / "own.npz")


@pytest.mark.parametrize("text", ["1 2 3 4\n", "", "image,x1,y1,x2,y2\n"])
def test_a_text_file_is_refused_with_the_choices(tmp_path, text):
    (tmp_path / "own.txt").write_text(text)
    choices = "auto, selective_search, grid, or a file .* of names, counts and boxes"
    with pytest.raises(ValueError, match=rf"detect.proposals=.*own\.txt.*{choices}") as refusal:
        load(tmp_path / "own.txt")
    assert "pickle" not in str(refusal.value)


def damaged_stream():
    """A good zip whose compressed bytes are not a deflate stream: neither its directory nor a
    checksum shows this before it is unpacked."""
    data = bytearray(pack(["0", "1"], BOXES))
    start = data.index(b"boxes.npy") + len("boxes.npy")
    data[start + 20 : start + 30] = b"\xff" * 10
    with pytest.raises((zlib.error, zipfile.BadZipFile)), zipfile.ZipFile(io.BytesIO(data)) as file:
        file.read("boxes.npy")
    return bytes(data)


def test_a_file_with_a_damaged_stream_is_refused_by_its_name(tmp_path):
    (tmp_path / "own.npz").write_bytes(damaged_stream())
    with pytest.raises(ValueError, match=r"own\.npz is no file of proposals: "):
        load(tmp_path / "own.npz")


@many
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_file_with_random_changes_is_read_or_refused(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    data = bytearray(pack(["0", "1"], BOXES))
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    found, error = None, None
    try:
        found = load(path)
    except ValueError as refusal:
        error = refusal
    if error:
        assert "changed.npz" in str(error)
    else:
        assert [boxes.shape[1] for boxes in found] == [4, 4]


# --- kept ones ---
def is_good(path):
    with np.load(path) as saved:
        return set(saved) == {"names", "counts", "boxes"}


DAMAGES = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "another's": lambda data: pack(["x"], [np.ones((1, 4)) * [0, 0, 1, 1]]),
    "zeros in the middle": lambda data: data[:100] + bytes(400) + data[500:],
    "ones in the middle": lambda data: data[:200] + b"\xff" * 40 + data[240:],
    "ones in the boxes": lambda data: data[:500] + b"\xff" * 30 + data[530:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_kept_file_is_made_anew(tmp_path, damage):
    first = load_proposals(SPLIT, "grid", tmp_path, silent)
    (path,) = tmp_path.glob("grid-*.npz")
    good = path.read_bytes()
    path.write_bytes(DAMAGES[damage](good))
    again = load_proposals(SPLIT, "grid", tmp_path, silent)
    assert [boxes.tobytes() for boxes in again] == [boxes.tobytes() for boxes in first]
    assert list(tmp_path.iterdir()) == [path]
    assert is_good(path)
