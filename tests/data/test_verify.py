"""Every file looked at once: counts, undecodable ones, duplicates; told by the exit code too."""

import re
import sys

import pytest
from helpers import write_file, write_folder

from delving import cli
from delving.data.sources import find_folder
from delving.data.verify import verify_data


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "pets", train=3, val=2)


def spoil(root):
    """Cuts one training file in half and copies one to the validation images."""
    path = root / "train" / "cat" / "1.JPEG"
    path.write_bytes(path.read_bytes()[:400])
    write_file(root / "val" / "dog" / "copy.JPEG", (root / "train" / "dog" / "2.JPEG").read_bytes())


def verify_by_command(monkeypatch, capsys, root):
    words = ["data", "verify", "scale=smoke", "data=folder", f"data.root={root}",
             "data.classes=2", "data.train_images=null", "data.val_images=null"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["delving", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr()


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
    [line] = report.bad
    assert line.startswith("train/cat/1.JPEG cannot be decoded")
    assert report.counts["train"]["cat"] == 3


def test_a_training_image_among_the_validation_images_is_found(root):
    spoil(root)
    report = verify_data(*find_folder(root))
    assert report.duplicates == [("train/dog/2.JPEG", "val/dog/copy.JPEG")]


def test_equal_images_within_one_split_are_no_duplicates(root):
    data = (root / "train" / "dog" / "2.JPEG").read_bytes()
    write_file(root / "train" / "dog" / "again.JPEG", data)
    assert verify_data(*find_folder(root)).sound


def test_the_command_says_sound_and_ends_with_zero(root, monkeypatch, capsys):
    code, said = verify_by_command(monkeypatch, capsys, root)
    assert code == 0
    assert re.search(r"train: 6 images, 2 classes: cat 3, dog 3", said.out)
    assert said.out.splitlines()[-1] == "sound"


def test_the_command_names_what_is_wrong_and_ends_with_one(root, monkeypatch, capsys):
    spoil(root)
    code, said = verify_by_command(monkeypatch, capsys, root)
    assert code == 1
    assert "bad: train/cat/1.JPEG" in said.out
    assert "duplicate: train/dog/2.JPEG = val/dog/copy.JPEG" in said.out
    assert said.out.splitlines()[-1] == "1 undecodable, 1 duplicates"


def test_the_command_refuses_missing_data_with_two(tmp_path, monkeypatch, capsys):
    code, said = verify_by_command(monkeypatch, capsys, tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in said.err
    assert "Traceback" not in said.err
