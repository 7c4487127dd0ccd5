"""Every file is read once: counts, undecodable files, duplicates; the exit code tells too."""

import json
import os
import re
import warnings
import zipfile

import numpy as np
import pytest
from helpers import encode, make_images, write_file, write_folder
from PIL import Image

from delving.data import lacking
from delving.data import verify as module
from delving.data.images import Images
from delving.data.sources import find_folder
from delving.data.verify import verify_data
from delving.data.zips import ZipReader, list_members
from delving.schema import Data


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "pets", train=3, val=2)


def spoil(root):
    """Cuts one training file off after 400 bytes and copies one to the validation images."""
    path = root / "train" / "cat" / "1.JPEG"
    path.write_bytes(path.read_bytes()[:400])
    write_file(root / "val" / "dog" / "copy.JPEG", (root / "train" / "dog" / "2.JPEG").read_bytes())


@pytest.fixture
def verify(delving):
    """`delving data verify` of a folder: (exit code, stdout, stderr)."""
    words = ["scale=smoke", "data=folder", "data.classes=2", "data.train_images=null",
             "data.val_images=null"]  # fmt: skip
    return lambda root, *more: delving("data", "verify", *words, f"data.root={root}", *more)


def test_sound_data_is_counted_by_split_and_class(root):
    report = verify_data(*find_folder(root))
    assert report.sound
    assert report.counts == {"train": {"cat": 3, "dog": 3}, "val": {"cat": 2, "dog": 2}}
    assert (report.bad, report.duplicates) == ([], [])


def test_a_class_without_validation_images_is_counted_as_zero(root):
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    (root / "val" / "cat").rmdir()
    assert verify_data(*find_folder(root)).counts["val"] == {"cat": 0, "dog": 2}


def test_undecodable_images_are_listed_by_name(root):
    spoil(root)
    report = verify_data(*find_folder(root))
    assert not report.sound
    [(name, problem)] = report.bad
    assert name == "train/cat/1.JPEG"
    assert problem.startswith("train/cat/1.JPEG cannot be decoded")
    assert report.decoded == {"train": 5, "val": 5}
    assert report.counts["train"]["cat"] == 3


def test_images_of_floating_point_numbers_are_listed_by_name(root):
    numbers = Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30))
    write_file(root / "val" / "dog" / "numbers.tif", encode(numbers, "TIFF"))
    [(name, problem)] = verify_data(*find_folder(root)).bad
    assert name == "val/dog/numbers.tif"
    assert problem.endswith("cannot be decoded: pixels are floating-point numbers, not whole ones")


def test_a_training_image_among_the_validation_images_is_found(root):
    spoil(root)
    report = verify_data(*find_folder(root))
    assert report.duplicates == [("train/dog/2.JPEG", "val/dog/copy.JPEG")]


def test_equal_images_within_one_split_are_no_duplicates(root):
    data = (root / "train" / "dog" / "2.JPEG").read_bytes()
    write_file(root / "train" / "dog" / "again.JPEG", data)
    assert verify_data(*find_folder(root)).sound


def test_what_imagenet_lacks_is_told_where_nothing_was_left_out_on_purpose(root, delving):
    words = ["scale=paper", f"data.root={root}"]
    code, out, _ = delving("data", "verify", *words)
    assert code == 0
    assert out.splitlines()[:3] == [
        "not all of imagenet: 2 classes (paper: 1,000)",
        "not all of imagenet: 6 training images (paper: 1,281,167)",
        "not all of imagenet: 4 validation images (paper: 50,000)",
    ]
    told = json.loads(delving("data", "verify", *words, "--json")[1])
    assert told["lacking"][0] == "2 classes (paper: 1,000)"
    assert "not all" not in delving("data", "verify", *words, "data.classes=2")[1]


def test_what_tiny_imagenet_lacks_of_the_classes_asked_for_is_told():
    """It has 500 training images of each class."""
    files, val = make_images([(8, 8)] * 6, classes=3), make_images([(8, 8)] * 3, classes=3)
    told = "6 training images (the whole set has 1,500 of these classes)"
    assert lacking(Data(name="tiny_imagenet"), files, val) == [told]
    assert lacking(Data(name="tiny_imagenet", train_images=6), files, val) == []
    assert lacking(Data(name="cifar10"), files, val) == []


def test_the_command_says_sound_and_ends_with_zero(root, verify):
    code, out, _ = verify(root)
    assert code == 0
    assert re.search(r"train: 6 images, 6 of them sound, 2 classes: cat 3, dog 3", out)
    assert out.splitlines()[-1] == "sound"


def test_the_command_names_what_is_wrong_and_ends_with_one(root, verify):
    spoil(root)
    code, out, _ = verify(root)
    assert code == 1
    assert "bad: train/cat/1.JPEG" in out
    assert "duplicate: train/dog/2.JPEG = val/dog/copy.JPEG" in out
    assert out.splitlines()[-1] == "1 undecodable, 1 duplicates"


def test_the_command_refuses_missing_data_with_two(tmp_path, verify):
    code, _, err = verify(tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err
    assert "Traceback" not in err


def test_every_fault_is_told_in_the_datas_order_in_one_pass(root):
    for split, name, n in (("val", "dog", 1), ("train", "cat", 2), ("train", "dog", 0)):
        (root / split / name / f"{n}.JPEG").write_bytes(b"no image")
    (root / "train" / "dog" / "1.JPEG").unlink()
    (root / "train" / "dog" / "1.JPEG").symlink_to("nowhere")
    report = verify_data(*find_folder(root))
    assert [name for name, _ in report.bad] == [
        "train/cat/2.JPEG", "train/dog/0.JPEG", "train/dog/1.JPEG", "val/dog/1.JPEG",
    ]  # fmt: skip
    assert "train/dog/1.JPEG cannot be read: No such file" in report.bad[2][1]
    # files that are equally spoilt are duplicates all the same
    assert report.duplicates == [("train/cat/2.JPEG", "val/dog/1.JPEG")]


def test_progress_is_told_by_split(root, monkeypatch):
    monkeypatch.setattr(module, "TOGETHER", 4)
    spoil(root)
    told, before = [], list(warnings.filters)
    verify_data(*find_folder(root), lambda *args: told.append(args))
    assert warnings.filters == before
    assert told == [("train", 4, 1), ("train", 6, 1), ("val", 4, 0), ("val", 5, 0)]


def test_a_broken_member_of_a_zip_is_told_among_the_others(root, tmp_path):
    names, data = [], (root / "train" / "cat" / "0.JPEG").read_bytes()
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(3):
            names.append(f"train/cat/{n}.JPEG")
            archive.writestr(names[-1], data + bytes([n]))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(data + b"\1", data + b"\7"))  # its checksum is wrong now
    images = Images(names, np.zeros(3, np.int64), ["cat"], ["cat"], ZipReader(
        list_members([path], "tiny/")))  # fmt: skip
    report = verify_data(images, images.take(np.arange(0)))
    [(name, problem)] = report.bad
    assert name == "train/cat/1.JPEG"
    assert "t.zip: Bad CRC-32" in problem
    assert report.decoded == {"train": 2, "val": 0}


def test_for_programs_all_is_told_as_json(root, verify):
    spoil(root)
    code, out, _ = verify(root, "--json")
    assert code == 1
    told = json.loads(out)
    assert told["sound"] is False
    assert told["counts"] == {"train": {"cat": 3, "dog": 3}, "val": {"cat": 2, "dog": 3}}
    assert told["decoded"] == {"train": 5, "val": 5}
    [bad] = told["bad"]
    assert bad["name"] == "train/cat/1.JPEG"
    assert "cannot be decoded" in bad["problem"]
    assert told["duplicates"] == [{"train": "train/dog/2.JPEG", "val": "val/dog/copy.JPEG"}]


def test_names_cannot_speak_to_the_terminal(root, verify):
    write_file(root / "train" / "cat" / "\x1b[2J\nsound.jpg", b"")
    write_file(root / "train" / "cat" / os.fsdecode(b"\xff\xfe.jpg"), b"")
    code, out, _ = verify(root)
    assert code == 1
    assert r"bad: train/cat/\x1b[2J\nsound.jpg cannot be decoded" in out
    assert r"bad: train/cat/\udcff\udcfe.jpg cannot be decoded" in out
    assert "\x1b" not in out
    assert out.splitlines()[-1] == "2 undecodable, 0 duplicates"
    code, out, _ = verify(root, "--json")
    names = {bad["name"] for bad in json.loads(out)["bad"]}
    assert names == {"train/cat/\x1b[2J\nsound.jpg", "train/cat/\udcff\udcfe.jpg"}
