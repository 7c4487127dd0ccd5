"""VOC's files from strangers: random ones, broken tar files, folders that hold nothing of VOC."""

import re
import tarfile
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenery import NAMES, annotation_xml, object_xml, voc_files, write_tar

from delving.detect.voc import find_voc, load_split, parse_annotation

many = settings(max_examples=100)
TRAINVAL = "VOCtrainval_06-Nov-2007.tar"
FILES = voc_files({"000005": ((50, 40), [(0, (0, 0, 50, 40))]), "000007": ((30, 60), [])})
GOOD = annotation_xml((50, 40), object_xml("cat", (1, 2, 30, 40)), object_xml("dog", (5, 5, 9, 9)))


def read_or_refuse(data):
    """Any data gives objects inside the image, or a ValueError of one short line."""
    size, found, error = None, None, None
    try:
        size, found = parse_annotation(data, NAMES)
    except ValueError as refusal:
        error = refusal
    if error:
        assert not isinstance(error, UnicodeError)
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 400
        return
    assert min(size) >= 1
    assert found.boxes.shape == (len(found.labels), 4)
    assert (found.boxes[:, :2] < found.boxes[:, 2:]).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= size).all()
    assert ((found.labels >= 0) & (found.labels < len(NAMES))).all()


@many
@given(st.binary(max_size=300))
def test_random_bytes_are_no_annotation(data):
    with pytest.raises(ValueError, match=r"no readable XML|declarations"):
        parse_annotation(data, NAMES)


@many
@given(st.lists(st.tuples(st.integers(0, len(GOOD)), st.integers(0, 4), st.binary(max_size=4)),
                min_size=1, max_size=4))  # fmt: skip
def test_an_annotation_with_random_changes_is_read_or_refused(changes):
    data = GOOD
    for start, count, new in changes:
        data = data[:start] + new + data[start + count :]
    read_or_refuse(data)


WORDS = st.sampled_from(
    ["", "0", "-1", "1e400", "-inf", "nan", "0x10", "1_0", "٣", "9" * 400, "1e308", "50.0", " 7\n",
     "cat", "<a/>", "&lt;", "&#0;", "&#x1F600;"]
)  # fmt: skip


@many
@given(st.lists(st.tuples(st.integers(0, 40), WORDS), min_size=1, max_size=4))
def test_an_annotation_with_other_values_is_read_or_refused(changes):
    text = GOOD.decode()
    for number, word in changes:
        values = list(re.finditer(r">([^<>\s]+)<", text))
        if values:
            at = values[number % len(values)]
            text = text[: at.start(1)] + word + text[at.end(1) :]
    read_or_refuse(text.encode())


@many
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=3))
def test_an_annotation_with_tags_moved_is_read_or_refused(moves):
    parts = re.findall(rb"<[^<>]+>[^<]*", GOOD)
    for source, to in moves:
        parts.insert(to % len(parts), parts.pop(source % len(parts)))
    read_or_refuse(b"".join(parts))


def test_tags_within_tags_without_end_are_refused():
    for data in (b"<a>" * 100_000, b"<a>" * 100_000 + b"</a>" * 100_000):
        with pytest.raises(ValueError, match=r"no readable XML|size/width"):
            parse_annotation(data, NAMES)


# --- tar files ---
def test_a_tar_that_is_none_is_refused_by_its_path(tmp_path):
    for data in (b"", b"<html>404</html>", b"\x1f\x8b" + bytes(600), b"VOC" * 400):
        (tmp_path / TRAINVAL).write_bytes(data)
        with pytest.raises(ValueError, match=f"{TRAINVAL}: not a tar, or a broken one"):
            find_voc(tmp_path)


def test_a_tar_cut_off_anywhere_is_refused(tmp_path):
    """As an interrupted download leaves it; the tar's path or a file missing from it is named."""
    whole = write_tar(tmp_path / TRAINVAL, FILES).read_bytes()
    end = whole.rstrip(b"\0")  # tar files end in empty blocks, which may be absent
    for at in range(1, len(end), 397):
        (tmp_path / TRAINVAL).write_bytes(whole[:at])
        with pytest.raises(ValueError, match=rf"{TRAINVAL}|cannot be read"):
            load_all(tmp_path)
    (tmp_path / TRAINVAL).write_bytes(whole[: -(-len(end) // 512) * 512])
    assert len(load_all(tmp_path)) == 2


def load_all(root):
    split = load_split(find_voc(root), "trainval", NAMES)
    for number in range(len(split)):
        split.load(number)
    return split


def test_a_tar_that_shrinks_after_it_was_opened_is_refused(tmp_path):
    path = write_tar(tmp_path / TRAINVAL, FILES)
    split = load_split(find_voc(tmp_path), "trainval", NAMES)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=f"JPEGImages/000007.jpg cannot be read: {TRAINVAL} ends"):
        split.load(1)
    path.unlink()
    with pytest.raises(ValueError, match=r"JPEGImages/000007.jpg cannot be read: No such file"):
        split.load(1)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63, 2**80, -1, -5, -(2**40)])
def test_a_member_of_impossible_size_is_refused_by_the_tars_path(size, tmp_path):
    member = tarfile.TarInfo("VOCdevkit/VOC2007/ImageSets/Main/trainval.txt")
    member.size = size
    (tmp_path / TRAINVAL).write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(ValueError, match=rf"{TRAINVAL}|trainval\.txt cannot be read"):
        load_split(find_voc(tmp_path), "trainval", NAMES)


@settings(many, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=5))
def test_a_tar_with_random_changes_is_read_or_refused(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    path = write_tar(folder / TRAINVAL, FILES)
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    path.write_bytes(data)
    with suppress(ValueError):
        assert len(load_all(folder)) in (1, 2)


def test_links_and_devices_in_a_tar_are_no_files(tmp_path):
    with tarfile.open(tmp_path / TRAINVAL, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo("VOCdevkit/VOC2007/ImageSets/Main/trainval.txt")
            member.type, member.linkname = kind, "/etc/hostname"
            tar.addfile(member)
    with pytest.raises(ValueError, match=r"trainval\.txt cannot be read: no such file in VOC"):
        load_split(find_voc(tmp_path), "trainval", NAMES)


def test_only_one_of_the_two_tars_says_which_split_is_missing(tmp_path):
    write_tar(tmp_path / TRAINVAL, FILES)
    read = find_voc(tmp_path)
    assert len(load_split(read, "trainval", NAMES)) == 2
    with pytest.raises(ValueError, match=r"ImageSets/Main/test\.txt cannot be read"):
        load_split(read, "test", NAMES)


# --- places ---
def test_a_place_with_nothing_of_the_kind_is_refused_with_what_was_looked_for(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "VOC2007").mkdir()
    for place in (tmp_path / "absent", tmp_path / "file", tmp_path / "empty", tmp_path):
        with pytest.raises(ValueError, match=rf"detect\.root={place}: .*VOCdevkit/VOC2007/.*tar"):
            find_voc(place)


def test_what_is_unpacked_goes_before_the_tar_it_came_from(tmp_path):
    (tmp_path / TRAINVAL).write_bytes(b"half of a download")
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"trainval\.txt cannot be read: No such file"):
        load_split(find_voc(tmp_path), "trainval", NAMES)
