"""Data sets from strangers: refused by name and at once, without writing or waiting."""

import io
import os
import re
import signal
import socket
import struct
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import encode, smooth_pixels, write_file, write_folder

from delving.data import fingerprint, labels, load_data
from delving.data.images import BYTES, Images, UndecodableImageError
from delving.data.prepare import unpack_cifar
from delving.data.sources import SOURCES, find_folder, find_imagenet, find_tiny_imagenet
from delving.data.zips import ZipReader, list_members

PICTURE = encode(smooth_pixels(12, 10), "JPEG")
TINY = {
    "train/n01/images/n01_0.JPEG": PICTURE,
    "val/images/val_0.JPEG": PICTURE,
    "val/val_annotations.txt": b"val_0.JPEG\tn01\t0\t0\t9\t9\n",
    "words.txt": b"n01\tgoldfish, Carassius auratus\n",
}


@pytest.fixture(autouse=True)
def _nothing_takes_long_or_is_written_elsewhere(tmp_path):
    def give_up(number, frame):
        raise TimeoutError("hung")

    around = set(tmp_path.parent.iterdir())
    before, began = signal.signal(signal.SIGALRM, give_up), time.process_time()
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    assert time.process_time() - began < 3  # mostly for making the files
    assert set(tmp_path.parent.iterdir()) == around
    assert not Path("/canary").exists()


def refused_at_once(call, *arguments, said):
    began = time.process_time()
    with pytest.raises(ValueError, match=said) as found:
        call(*arguments)
    assert not isinstance(found.value, UnicodeError)  # whose message names no file
    assert time.process_time() - began < 1


# --- zips ---
def write_zip(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def patch(path, name, **fields):
    """Changes fields of a member in the zip's central directory; `name` is its last name there."""
    data = bytearray(path.read_bytes())
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\1\2"
    places = {"flags": (8, "<H"), "packed": (20, "<I"), "size": (24, "<I"), "offset": (42, "<I")}
    for field, value in fields.items():
        place, kind = places[field]
        struct.pack_into(kind, data, at + place, value)
    path.write_bytes(data)


ODD_NAMES = {
    "/canary": "an absolute name",
    "../canary": "leads elsewhere",
    "train/n01/../../../canary": "leads elsewhere",
    "train\\n01\\x.JPEG": "NUL or a backslash",
    "C:/canary": "an absolute name",
    "c:canary": "an absolute name",
}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_zip_with_names_that_lead_elsewhere_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "t.zip", TINY | {name: PICTURE})
    said = rf"t\.zip: {re.escape(repr(name)[1:-1]).replace(re.escape(chr(92) * 2), '.+')}: "
    refused_at_once(find_tiny_imagenet, path, said=said + f".*{ODD_NAMES[name]}")


def test_a_zip_with_nul_in_a_name_is_refused(tmp_path):
    path = write_zip(tmp_path / "t.zip", TINY | {"train/a?.JPEG": PICTURE})
    path.write_bytes(path.read_bytes().replace(b"a?.JPEG", b"a\0.JPEG"))
    refused_at_once(find_tiny_imagenet, path, said=r"t\.zip: train/a\\x00\.JPEG: a name with NUL")


def test_a_zip_with_two_members_of_one_name_is_refused(tmp_path):
    path = write_zip(tmp_path / "t.zip", TINY | {"wards.txt": b"x"})
    path.write_bytes(path.read_bytes().replace(b"wards.txt", b"words.txt"))
    refused_at_once(find_tiny_imagenet, path, said=r"t\.zip: words\.txt: a second member")


def test_what_macos_puts_into_a_zip_is_left_out(tmp_path):
    whole = find_tiny_imagenet(write_zip(tmp_path / "a.zip", TINY))
    beside = {f"__MACOSX/{n}": b"x" for n in TINY} | {"train/n01/images/._n01_0.JPEG": b"x"}
    found = find_tiny_imagenet(write_zip(tmp_path / "b.zip", TINY | beside))
    assert [images.names for images in found] == [images.names for images in whole]
    dotted = find_tiny_imagenet(
        write_zip(tmp_path / "c.zip", {f"./tiny-imagenet-200/{n}": TINY[n] for n in TINY})
    )
    assert [images.names for images in dotted] == [images.names for images in whole]


def test_zips_that_disagree_are_refused_and_those_that_agree_are_not(tmp_path):
    write_zip(tmp_path / "a.zip", TINY)
    write_zip(tmp_path / "b.zip", {"tiny-imagenet-200/words.txt": TINY["words.txt"]})
    assert len(find_tiny_imagenet(tmp_path)[0]) == 1
    write_zip(tmp_path / "c.zip", {"words.txt": b"n01\tother\n"})
    said = r"c\.zip: words\.txt: another than in .*b\.zip"
    refused_at_once(find_tiny_imagenet, tmp_path, said=said)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = write_zip(tmp_path / "t.zip", TINY)
    patch(path, "words.txt", flags=1)
    refused_at_once(find_tiny_imagenet, path, said=r"t\.zip: words\.txt: encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_would_be_unpacked_without_limit_is_refused(tmp_path, method):
    path = write_zip(tmp_path / "t.zip", TINY, method)
    refused_at_once(find_tiny_imagenet, path, said=r"t\.zip: .*: neither stored nor deflated")


def test_a_zip_that_says_it_is_a_bomb_is_refused(tmp_path):
    path = write_zip(tmp_path / "t.zip", TINY | {"train/n01/images/z.JPEG": bytes(BYTES + 1)},
                     zipfile.ZIP_DEFLATED)  # fmt: skip
    assert path.stat().st_size < 200_000
    said = r"t\.zip: train/n01/images/z\.JPEG: 100,000,001 bytes, more than 100,000,000"
    refused_at_once(find_tiny_imagenet, path, said=said)


def test_a_zip_that_hides_a_bomb_is_unpacked_no_further_than_it_says(tmp_path):
    name = "train/n01/images/n01_0.JPEG"
    path = write_zip(tmp_path / "t.zip", TINY | {name: bytes(BYTES)}, zipfile.ZIP_DEFLATED)
    patch(path, name, size=100)
    train, _ = find_tiny_imagenet(path)
    tracemalloc.start()
    with pytest.raises(UndecodableImageError, match=r"n01_0\.JPEG cannot be read: t\.zip: Bad CRC"):
        train.load(0)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "lie", [{"offset": 2**31}, {"offset": 10}, {"packed": 2**31}, {"packed": 2000}]
)
def test_a_zip_whose_directory_lies_is_refused(tmp_path, lie):
    path = write_zip(tmp_path / "t.zip", TINY)
    patch(path, "val/images/val_0.JPEG", **lie)
    said = r"t\.zip: .*(not where the zip's directory says|a broken one)"
    refused_at_once(find_tiny_imagenet, path, said=said)


def test_a_zip_whose_members_have_other_names_than_it_says_is_told_by_image(tmp_path):
    path = write_zip(tmp_path / "t.zip", TINY)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"n01_0.JPEG", b"n01_9.JPEG", 1))
    train, _ = find_tiny_imagenet(path)
    with pytest.raises(UndecodableImageError, match=r"n01_0\.JPEG cannot be read: t\.zip: File"):
        train.load(0)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_zip_is_refused_by_its_name(tmp_path, share):
    path = write_zip(tmp_path / "t.zip", TINY)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused_at_once(find_tiny_imagenet, path, said=r"t\.zip: not a zip, or a broken one")


def test_a_zip_with_a_hole_is_refused_by_its_name(tmp_path):
    path = write_zip(tmp_path / "t.zip", TINY)
    data = path.read_bytes()
    path.write_bytes(data[:200] + data[700:])
    refused_at_once(find_tiny_imagenet, path, said=r"t\.zip: ")


def test_a_zip_that_is_replaced_while_it_is_read_is_told_by_image(tmp_path):
    path = write_zip(tmp_path / "t.zip", {"a.jpg": PICTURE})
    members = list_members([path], "top/")
    write_zip(path, {"b.jpg": PICTURE})
    images = Images(["a.jpg"], np.zeros(1, np.int64), ["a"], ["a"], ZipReader(members))
    with pytest.raises(UndecodableImageError, match=r"a\.jpg cannot be read: t\.zip: .*no item"):
        images.load(0)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), os.mkdir])
def test_what_only_has_a_zips_name_is_refused(tmp_path, make):
    make(tmp_path / "t.zip")
    refused_at_once(find_tiny_imagenet, tmp_path, said=r"t\.zip: not a regular file")


# --- roots ---
def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


ROOTS = {
    "a socket": (make_socket, "neither a folder nor a file"),
    "a pipe": (os.mkfifo, "neither a folder nor a file"),
    "a text": (lambda p: p.write_text("hello\n"), "a file; data=|not a zip"),
    "a pickle of torch": (
        lambda p: write_zip(p, {"archive/data.pkl": b"cos\nsystem\n(S'touch /canary'\ntR."}),
        "a file; data=|not Tiny ImageNet",
    ),
    "a link to itself": (lambda p: p.symlink_to(p.name), "no such file or folder|Symlink loop"),
}


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_root_that_is_no_data_set_is_refused_by_its_path(tmp_path, kind, name):
    ROOTS[kind][0](tmp_path / "root")
    refused_at_once(load, name, tmp_path / "root", said=rf"root.*: .*({ROOTS[kind][1]})")


@pytest.mark.parametrize(
    "root", ["/dev/zero", "/dev/null", "/proc", "/sys", "/dev", "~nobody-here"]
)
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_root_of_the_system_is_refused_by_its_path(name, root):
    refused_at_once(load, name, root, said=rf"data\.root={root}: ")


def load(name, root):
    load_data(name, str(root), classes=None, train_images=None, val_images=None,
              output_root="unused")  # fmt: skip


# --- links ---
def test_a_linked_class_folder_is_one_like_any(tmp_path):
    write_folder(tmp_path / "real")
    for split in ("train", "val"):
        (tmp_path / "linked" / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            (tmp_path / "linked" / split / name).symlink_to(tmp_path / "real" / split / name)
    linked, real = find_folder(tmp_path / "linked"), find_folder(tmp_path / "real")
    assert fingerprint(*linked) == fingerprint(*real)
    assert linked[0].load(0).size == (40, 48)


@pytest.mark.parametrize("to", [".", "..", "../..", "/"])
def test_a_class_folder_that_leads_back_is_refused(tmp_path, to):
    write_folder(tmp_path)
    (tmp_path / "train" / "loop").symlink_to(to)
    refused_at_once(find_folder, tmp_path, said="train/loop: a link to a folder that it lies in")


def test_links_inside_a_class_folder_are_not_followed_round_and_round(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "cat" / "round").symlink_to("..")
    (tmp_path / "train" / "cat" / "self").symlink_to("self")
    train, _ = find_folder(tmp_path)
    assert len(train) == 8


def test_names_of_any_bytes_have_a_fingerprint(tmp_path):
    write_folder(tmp_path)
    before = fingerprint(*find_folder(tmp_path))
    write_file(tmp_path / "train" / "cat" / os.fsdecode(b"\xff.jpg"), PICTURE)
    after = fingerprint(*find_folder(tmp_path))
    assert re.fullmatch("[0-9a-f]{16}", after)
    assert after != before


# --- files that tell the classes ---
ANNOTATIONS = {
    b"\xff\xfe\0": "line 1: no UTF-8 text",
    b"val_0.JPEG\tn01\nval_1\xff\tn01\n": "line 2: no UTF-8 text",
    b"val_0.JPEG n01\n": r"line 1: no file and class: val_0\.JPEG n01",
    b"val_0.JPEG\tn01\n\n\tn01\n": r"line 3: no file and class",
    b"val_0.JPEG\tn01\nval_0.JPEG\tn02\n": r"line 2: a second class for val_0\.JPEG",
    b"../../../etc/passwd\tn01\n": r"val/images/\.\./\.\./\.\./etc/passwd first",
    b"/etc/passwd\tn01\n": "1 annotated images are missing",
    b"val_0.JPEG\tn\x1b[2J\n": r"val has classes that train lacks: n\\x1b\[2J",
    b"": "no images in val/",
    bytes(1000): r"line 1: no file and class: (\\x00)+",
}


@pytest.mark.parametrize("layout", ["zip", "folder"])
@pytest.mark.parametrize("told", ANNOTATIONS, ids=range(len(ANNOTATIONS)))
def test_garbage_in_the_annotations_is_told_by_line(tmp_path, told, layout):
    files = TINY | {"val/val_annotations.txt": told}
    root = write_zip(tmp_path / "t.zip", files) if layout == "zip" else tmp_path
    for name, data in files.items() if layout == "folder" else ():
        write_file(tmp_path / name, data)
    refused_at_once(find_tiny_imagenet, root, said=ANNOTATIONS[told])


@pytest.mark.parametrize(
    ("told", "said"),
    [(b"n01 goldfish\n", r"words\.txt, line 1: no id and name"),
     (b"n01\tgoldfish\nn02\t\xff\n", r"words\.txt, line 2: no UTF-8")],
)  # fmt: skip
def test_garbage_in_the_words_is_told_by_line(tmp_path, told, said):
    refused_at_once(
        find_tiny_imagenet, write_zip(tmp_path / "t.zip", TINY | {"words.txt": told}), said=said
    )


def flat_imagenet(root):
    write_file(root / "train" / "n01" / "n01_1.JPEG", PICTURE)
    write_file(root / "val" / "ILSVRC2012_val_00000001.JPEG", PICTURE)


SOLUTIONS = {
    b"": "images of no known class",
    b"a,b\n1,2\n": "line 1: not ImageId,PredictionString: a,b",
    b"ImageId,PredictionString\nILSVRC2012_val_00000001\n": "line 2: no image and class",
    b"ImageId,PredictionString\nILSVRC2012_val_00000001, \n": "line 2: no image and class",
    b"ImageId,PredictionString\n\n,n01\n": "line 3: no image and class",
    b"ImageId,PredictionString\n\nx,n01\n\xff,n01\n": "line 4: no UTF-8",
    b"\n\na,b\n": "line 3: not ImageId,PredictionString: a,b",
    b"ImageId,PredictionString\nx,n01 1\n\nx,n02 1\n": "line 4: a second class for x",
    b"ImageId,PredictionString\nx," + b"9" * 200_000: "1 images of no known class",
    b"ImageId,PredictionString\nILSVRC2012_val_00000001,n99 1 2 3 4\n": "train lacks: n99",
}


@pytest.mark.parametrize("told", SOLUTIONS, ids=range(len(SOLUTIONS)))
def test_garbage_in_the_solution_file_is_told_by_line(tmp_path, told):
    flat_imagenet(tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_bytes(told)
    refused_at_once(find_imagenet, tmp_path, said=SOLUTIONS[told])


def devkit(root, synsets=None, truth=b"1\n"):
    """Writes a devkit of one class; `synsets` takes the place of its meta.mat."""
    from scipy import io as scipy_io

    flat_imagenet(root)
    data = root / "ILSVRC2012_devkit_t12" / "data"
    kinds = [("ILSVRC2012_ID", float), ("WNID", object), ("words", object)]
    beside = io.BytesIO()
    scipy_io.savemat(beside, {"synsets": np.array([(1, "n01", "one"), (2, "n02", "two")], kinds)})
    write_file(data / "meta.mat", beside.getvalue() if synsets is None else synsets)
    write_file(data / "ILSVRC2012_validation_ground_truth.txt", truth)
    return beside.getvalue()


TRUTHS = {
    b"x\n": "ground_truth.txt, line 1: no ILSVRC2012_ID",
    b"1\n3\n": "ground_truth.txt, line 2: no ILSVRC2012_ID",
    b"1\n-1\n": "line 2: ",
    b"1\n" + b"9" * 5000: r"line 2: .*5,000 characters",
    b"\xff": "line 1: no UTF-8",
    b"": "images of no known class",
    b"2\n": "train lacks: n02",
}


@pytest.mark.parametrize("told", TRUTHS, ids=range(len(TRUTHS)))
def test_garbage_in_the_ground_truth_is_told_by_line(tmp_path, monkeypatch, told):
    # What meta.mat says, without starting the process that reads it.
    monkeypatch.setattr(labels, "read_synsets", lambda path: {"1": ["n01", ""], "2": ["n02", ""]})
    devkit(tmp_path, truth=told)
    refused_at_once(find_imagenet, tmp_path, said=TRUTHS[told])


def test_a_missing_file_of_the_devkit_is_told(tmp_path):
    devkit(tmp_path)
    (tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").unlink()
    refused_at_once(find_imagenet, tmp_path, said=r"meta\.mat: No such file")


MATS = {
    "empty": lambda good: b"",
    "text": lambda good: b"hello\n" * 50,
    "a pickle": lambda good: b"cos\nsystem\n(S'touch /canary'\ntR." * 9,
    "cut": lambda good: good[:200],
    "of another kind": lambda good: b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(99),
    "without synsets": lambda good: good.replace(b"synsets", b"synsetz"),
    "of zeros": lambda good: good[:128] + bytes(1000),
}


@pytest.mark.parametrize("kind", MATS)
def test_garbage_for_meta_mat_is_told_by_its_name(tmp_path, kind):
    devkit(tmp_path, MATS[kind](devkit(tmp_path)))
    refused_at_once(find_imagenet, tmp_path, said=r"meta\.mat: not the devkit's: .")


@pytest.mark.parametrize("tries", [3, pytest.param(200, marks=pytest.mark.long)])
def test_damage_in_meta_mat_is_found_or_does_no_harm(tmp_path, tally, tries):
    """It may make scipy crash, so that a process of its own reads it."""
    good, rng, refused = devkit(tmp_path), np.random.default_rng(5), 0
    path = tmp_path / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    for _ in range(tries):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), rng.integers(1, 9)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        signal.alarm(30)  # anew for each
        try:
            find_imagenet(tmp_path)
        except ValueError:
            refused += 1
    tally("damaged meta.mat: read or refused by name", tries, 0, f"{refused} of {tries} refused")
    assert refused > 0


# --- archives that are unpacked ---
def write_tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


TEN = [f"kind{n}" for n in range(10)]
RECORD = bytes([0]) + bytes(3072)


def cifar(**changed):
    names = "\n".join(changed.pop("names", TEN)).encode()
    return {"c/batches.meta.txt": names, "c/data_batch_1.bin": RECORD, "c/test_batch.bin": RECORD,
            **changed}  # fmt: skip


CIFARS = {
    "parent": (cifar(names=["../canary", *TEN[1:]]), r"no 10 or 100 names of classes.*\.\./canary"),
    "absolute": (cifar(names=["/canary", *TEN[1:]]), r"no 10 or 100 names .*/canary"),
    "dots": (cifar(names=["..", *TEN[1:]]), "no 10 or 100 names"),
    "backslash": (cifar(names=["a\\b", *TEN[1:]]), "no 10 or 100 names"),
    "escape": (cifar(names=["\x1b[2J", *TEN[1:]]), r"no 10 or 100 names .*\\x1b"),
    "long": (cifar(names=["x" * 300, *TEN[1:]]), "no 10 or 100 names"),
    "few": (cifar(names=TEN[1:]), "no 10 or 100 names of classes 9"),
    "twice": (cifar(names=[*TEN[1:], TEN[1]]), "no 10 or 100 names"),
    "no text": (cifar() | {"c/batches.meta.txt": b"\xff"}, "utf-8"),
    "no names": ({"c/data_batch_1.bin": RECORD}, r"no batches\.meta\.txt in it"),
    "half an image": (cifar() | {"c/data_batch_1.bin": RECORD[:-1]},
                      r"data_batch_1\.bin: 3,072 bytes are no whole number of images"),
    "a label too many": (cifar() | {"c/data_batch_1.bin": b"\x0a" + RECORD[1:]},
                         r"data_batch_1\.bin: a label beyond the 10 classes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CIFARS)
def test_an_archive_that_is_not_cifar_is_refused_and_leads_nowhere(tmp_path, kind):
    (tmp_path / "root").mkdir()
    path = write_tar(tmp_path / "cifar.tar.gz", CIFARS[kind][0])
    refused_at_once(
        unpack_cifar, path, tmp_path / "root", said=rf"cifar\.tar\.gz: .*{CIFARS[kind][1]}"
    )
    outside = [p.name for p in tmp_path.iterdir()]
    assert sorted(outside) == ["cifar.tar.gz", "root"]


def test_members_that_lead_elsewhere_are_never_written_there(tmp_path):
    files = cifar() | {"../../canary.bin": RECORD, "/canary.bin": RECORD}
    unpack_cifar(write_tar(tmp_path / "cifar.tar.gz", files), tmp_path / "root")
    written = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*.png")}
    assert written == {"root"}


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_archive_is_refused_by_its_name(tmp_path, share):
    path = write_tar(tmp_path / "cifar.tar.gz", cifar())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused_at_once(unpack_cifar, path, tmp_path / "root", said=r"cifar\.tar\.gz: ")


def test_an_archive_with_a_file_beyond_all_measure_is_refused(tmp_path):
    path = tmp_path / "cifar.tar"
    header = tarfile.TarInfo("c/batches.meta.txt")
    header.size = 300_000_000
    path.write_bytes(header.tobuf())
    with path.open("ab") as file:
        file.truncate(300_100_000)
    refused_at_once(unpack_cifar, path, tmp_path / "root", said="300,000,000 bytes, more than")
