"""PASCAL VOC's files: what is read from them, in folders and in tar files."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scenery import (
    NAMES,
    annotation_xml,
    jpeg,
    object_xml,
    reader,
    voc_files,
    write_files,
    write_tar,
)

from delving.detect.voc import (
    CLASSES,
    find_voc,
    fingerprint,
    load_split,
    parse_annotation,
)

TRAINVAL, TEST = "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"
PICTURES = {"000005": ((50, 40), [(0, (0, 0, 50, 40)), (2, (3, 4, 5, 6), True)]),
            "000007": ((30, 60), []),
            "2008_000001": ((20, 20), [(1, (1, 2, 20, 19))])}  # fmt: skip
OTHERS = {"000001": ((24, 20), [(2, (2, 2, 9, 9))])}
FILES, TEST_FILES = voc_files(PICTURES), voc_files(OTHERS, "test")


# --- annotations ---
def test_boxes_become_half_open_from_zero():
    """VOC counts pixels from 1 and includes the last: 1 to 50 of 50 is all of [0, 50)."""
    objects = (object_xml("cat", (1, 1, 50, 40)), object_xml("cow", (2, 3, 2, 3), difficult=1),
               object_xml("dog", (5.5, 2, 9.25, 3)))  # fmt: skip
    size, found = parse_annotation(annotation_xml((50, 40), *objects), NAMES)
    assert size == (50, 40)
    assert found.boxes.tolist() == [[0, 0, 50, 40], [1, 2, 2, 3], [4.5, 1, 9.25, 3]]
    assert found.labels.tolist() == [0, 2, 1]
    assert found.difficult.tolist() == [False, True, False]


def test_an_image_may_be_without_objects():
    size, found = parse_annotation(annotation_xml((5, 4)), NAMES)
    assert size == (5, 4)
    assert (found.boxes.shape, found.labels.shape, found.difficult.shape) == ((0, 4), (0,), (0,))
    assert (found.boxes.dtype, found.labels.dtype, found.difficult.dtype) == ("f8", "i8", "?")


def test_parts_of_a_person_are_no_objects():
    """VOC has boxes of some people's heads, hands and feet, nested in the person's object."""
    part = ("<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax>"
            "<ymax>5</ymax></bndbox></part></object>")  # fmt: skip
    person = object_xml("person", (1, 1, 9, 9)).replace("</object>", part)
    _, found = parse_annotation(annotation_xml((20, 20), person), CLASSES)
    assert found.boxes.tolist() == [[0, 0, 9, 9]]


@pytest.mark.parametrize("tag", ["difficult", "truncated", "pose", "depth", "folder", "filename"])
def test_what_is_not_needed_may_be_absent_or_empty(tag):
    xml = annotation_xml((20, 20), object_xml("dog", (1, 1, 9, 9))).decode()
    for instead in ("", f"<{tag}/>"):
        less = re.sub(f"<{tag}>.*?</{tag}>", instead, xml)
        assert len(less) < len(xml)
        _, found = parse_annotation(less.encode(), NAMES)
        assert found.boxes.tolist() == [[0, 0, 9, 9]]
        assert found.difficult.tolist() == [False]


def test_comments_spaces_and_encodings_are_xml_too():
    xml = annotation_xml((20, 20), object_xml("  dog ", (" 1", 1, 9, 9))).decode()
    xml = xml.replace("<folder>", "<!-- by hand --><folder>").replace("VOC2007<", "VÖC<")
    for encoding in ("utf-8", "latin-1", "utf-16"):
        head = f'<?xml version="1.0" encoding="{encoding}"?>'
        _, found = parse_annotation((head + xml).encode(encoding), NAMES)
        assert found.boxes.tolist() == [[0, 0, 9, 9]]
        assert found.labels.tolist() == [1]


GOOD = annotation_xml((20, 10), object_xml("cat", (1, 2, 8, 9))).decode()
DOCTYPE = '<!DOCTYPE a [<!ENTITY x "cat">]>'
BAD = {
    "cut off": (GOOD[:-20], "no readable XML"),
    "empty": ("", "no readable XML"),
    "binary": ("\0\1\2", "no readable XML"),
    "two roots": (GOOD + GOOD, "no readable XML"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?>' + GOOD, "no readable XML"),
    "an entity": (DOCTYPE + GOOD.replace(">cat<", ">&x;<"), "declarations"),
    "an external entity": ('<!DOCTYPE a SYSTEM "file:///etc/passwd">' + GOOD, "declarations"),
    "an undeclared entity": (GOOD.replace(">cat<", ">&cat;<"), "no readable XML"),
    "too long": (GOOD + " " * 1_000_000, "more than 1,000,000 bytes"),
    "another class": (GOOD.replace(">cat<", ">cta<"), "unknown class 'cta'.*did you mean cat"),
    "a class in capitals": (GOOD.replace(">cat<", ">Cat<"), "unknown class 'Cat'"),
    "no class": (GOOD.replace("<name>cat</name>", ""), "unknown class ''"),
    "no size": (re.sub("<size>.*</size>", "", GOOD), "size/width is 'None'"),
    "no height": (GOOD.replace("<height>10</height>", ""), "size/height is 'None'"),
    "no width in it": (GOOD.replace("<width>20<", "<width><"), "size/width is ''"),
    "a width of 0": (GOOD.replace("<width>20<", "<width>0<"), "an image of 0x10 pixels"),
    "half a pixel": (GOOD.replace("<width>20<", "<width>20.5<"), "an image of 20.5x10 pixels"),
    "an endless width": (GOOD.replace("<width>20<", "<width>inf<"), "size/width is 'inf'"),
    "no box": (re.sub("<bndbox>.*</bndbox>", "", GOOD), "bndbox/xmin is 'None'"),
    "no xmax": (re.sub("<xmax>.*</xmax>", "", GOOD), "bndbox/xmax is 'None'"),
    "a word as xmin": (GOOD.replace("<xmin>1<", "<xmin>left<"), "bndbox/xmin is 'left'"),
    "nan as ymin": (GOOD.replace("<ymin>2<", "<ymin>nan<"), "bndbox/ymin is 'nan'"),
    "from 0": (GOOD.replace("<xmin>1<", "<xmin>0<"), r"\(0, 2, 8, 9\) of a cat .* 20x10 pixels"),
    "below the image": (GOOD.replace("<ymax>9<", "<ymax>11<"), r"\(1, 2, 8, 11\) of a cat"),
    "right of it": (GOOD.replace("<xmax>8<", "<xmax>21<"), r"\(1, 2, 21, 9\) of a cat"),
    "difficult in a word": (GOOD.replace("<difficult>0<", "<difficult>y<"), "difficult is 'y'"),
    "inverted": (GOOD.replace("<xmin>1<", "<xmin>9<"), r"\(9, 2, 8, 9\) of a cat"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_annotation_is_refused_by_what_is_bad(what):
    xml, said = BAD[what]
    with pytest.raises(ValueError, match=said) as found:
        parse_annotation(xml.encode(), NAMES)
    assert not isinstance(found.value, UnicodeError)
    assert len(str(found.value)) < 400
    files = FILES | {"Annotations/000007.xml": xml.encode()}
    with pytest.raises(ValueError, match=f"Annotations/000007.xml: .*{said}"):
        load_split(reader(files), "trainval", NAMES)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_declarations_are_refused_in_every_encoding(encoding):
    head = '<?xml version="1.0" encoding="utf-16"?>' + DOCTYPE
    with pytest.raises(ValueError, match="declarations"):
        parse_annotation((head + GOOD.replace(">cat<", ">&x;<")).encode(encoding), NAMES)


# --- splits ---
def write_folder(root):
    return write_files(root, FILES | TEST_FILES)


def write_tars(root):
    root.mkdir(exist_ok=True)
    write_tar(root / TRAINVAL, FILES)
    write_tar(root / TEST, TEST_FILES)
    return root


PLACES = {
    "VOC2007 itself": lambda root: write_folder(root / "VOC2007"),
    "what holds it": lambda root: write_folder(root / "VOC2007").parent,
    "what holds VOCdevkit": lambda root: write_folder(root / "VOCdevkit" / "VOC2007").parents[1],
    "VOCdevkit": lambda root: write_folder(root / "VOCdevkit" / "VOC2007").parent,
    "tar files": write_tars,
}


@pytest.mark.parametrize("place", PLACES)
def test_both_splits_are_read_wherever_they_lie(place, tmp_path):
    read = find_voc(PLACES[place](tmp_path))
    split, test = (load_split(read, name, NAMES) for name in ("trainval", "test"))
    assert (len(split), len(test)) == (3, 1)
    assert split.ids == list(PICTURES)
    assert split.sizes == [size for size, _ in PICTURES.values()]
    for number, (_, rows) in enumerate(PICTURES.values()):
        assert split.objects[number].boxes.tolist() == [list(row[1]) for row in rows]
        assert split.objects[number].labels.tolist() == [row[0] for row in rows]
        assert split.load(number).size == split.sizes[number]
        assert split.bytes_of(number) == FILES[f"JPEGImages/{split.ids[number]}.jpg"]
    assert split.objects[0].difficult.tolist() == [False, True]
    assert np.asarray(test.load(0)).std() > 5


def test_the_first_images_are_a_split_of_their_own():
    split = load_split(reader(FILES), "trainval", NAMES)
    assert split.first(None) is split
    few = split.first(2)
    assert (len(few), few.ids, few.classes) == (2, split.ids[:2], NAMES)
    assert few.load(1).size == (30, 60)
    with pytest.raises(ValueError, match="4 images asked for, but there are 3"):
        split.first(4)


LISTING = "ImageSets/Main/trainval.txt"
BAD_FILES = {
    "no listing": ({LISTING: None}, f"{LISTING} cannot be read"),
    "an empty listing": ({LISTING: b" \n"}, f"{LISTING}: no image"),
    "an image twice": ({LISTING: b"000005\n000005\n"}, f"{LISTING}: .*twice"),
    "an id with a path in it": ({LISTING: b"000005\n../../passwd\n"}, f"{LISTING}: .*passwd"),
    "an absolute path": ({LISTING: b"/etc/passwd\n"}, f"{LISTING}: /etc/passwd"),
    "an id of bytes": ({LISTING: b"\xff\xfe\n"}, f"{LISTING}: "),
    "an endless id": ({LISTING: b"0" * 10_000}, f"{LISTING}: 0+"),
    "no annotation": ({"Annotations/000007.xml": None}, "Annotations/000007.xml cannot be read"),
}


@pytest.mark.parametrize("what", BAD_FILES)
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_bad_data_set_is_refused_by_its_file(what, kind, tmp_path):
    change, said = BAD_FILES[what]
    files = {name: data for name, data in (FILES | change).items() if data is not None}
    if kind == "folder":
        write_files(tmp_path / "VOC2007", files)
        (tmp_path / "VOC2007" / LISTING).parent.mkdir(parents=True, exist_ok=True)
    else:
        write_tar(tmp_path / TRAINVAL, files)
    with pytest.raises(ValueError, match=said) as found:
        load_split(find_voc(tmp_path), "trainval", NAMES)
    assert len(str(found.value)) < 400


BAD_IMAGES = {
    "no image": (None, "JPEGImages/000007.jpg cannot be read"),
    "another size": (jpeg((60, 30)), "JPEGImages/000007.jpg has 60x30 pixels.*says 30x60"),
    "half an image": (FILES["JPEGImages/000007.jpg"][:300], "JPEGImages/000007.jpg cannot be dec"),
    "no JPEG": (b"<html>", "JPEGImages/000007.jpg cannot be decoded"),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_a_bad_image_is_refused_by_its_name_when_it_is_loaded(what):
    data, said = BAD_IMAGES[what]
    files = FILES | {"JPEGImages/000007.jpg": data}
    split = load_split(reader({k: v for k, v in files.items() if v is not None}), "trainval", NAMES)
    assert split.load(0).size == (50, 40)
    with pytest.raises(ValueError, match=said):
        split.load(1)


def test_boxes_are_of_the_image_as_it_is_stored():
    """An EXIF rotation would turn the picture under its boxes."""
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[:20, :25] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", exif=exif)
    files = FILES | {"JPEGImages/000005.jpg": file.getvalue()}
    shown = np.asarray(load_split(reader(files), "trainval", NAMES).load(0))
    assert shown[5, 5].min() > 200
    assert shown[35, 45].max() < 50


def test_a_list_of_images_may_begin_with_a_byte_order_mark():
    name = "ImageSets/Main/trainval.txt"
    found = load_split(reader(FILES | {name: b"\xef\xbb\xbf" + FILES[name]}), "trainval", NAMES)
    assert found.ids == load_split(reader(FILES), "trainval", NAMES).ids


# --- what is the same data ---
def test_the_same_data_elsewhere_has_the_same_fingerprint(tmp_path):
    splits = [load_split(find_voc(PLACES[place](tmp_path / place)), "trainval", NAMES)
              for place in ("VOC2007 itself", "tar files")]  # fmt: skip
    assert fingerprint(splits[:1]) == fingerprint(splits[1:])
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(splits))


def test_whatever_is_looked_for_has_a_part_in_the_fingerprint():
    split = load_split(reader(FILES), "trainval", NAMES)
    one = split.objects[0]
    objects = [replace(one, boxes=one.boxes + np.array([[0, 0, 0, 0], [0, 0, 1, 0]])),
               replace(one, labels=one.labels[::-1].copy()),
               replace(one, difficult=~one.difficult)]  # fmt: skip
    others = [replace(split, objects=[changed, *split.objects[1:]]) for changed in objects]
    others += [split.first(2), replace(split, ids=["x", *split.ids[1:]]),
               replace(split, sizes=[(51, 40), *split.sizes[1:]]),
               replace(split, classes=NAMES[::-1])]  # fmt: skip
    prints = [fingerprint([other]) for other in (split, *others)]
    assert len(set(prints)) == len(prints)
    assert fingerprint([split, split.first(2)]) != fingerprint([split.first(2), split])
