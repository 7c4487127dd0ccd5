"""Archives are unpacked into class folders; downloads are named and checked."""

import errno
import hashlib
import http.client
import io
import os
import shutil
import tarfile
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
from calling import killed_at
from helpers import write_folder

from delving import cli
from delving.data import prepare
from delving.data.prepare import CIFAR, PREPARE, unpack_cifar
from delving.data.sources import SOURCES, find_folder

TEN = [f"kind{n}" for n in range(10)]
HUNDRED = [f"fine{n:02d}" for n in range(100)]


def draw_records(labels, *, coarse, seed):
    """(bytes of a .bin file, pixels (N, 32, 32, 3)) in CIFAR's binary layout."""
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
    rows = []
    for label, image in zip(labels, pixels, strict=True):
        header = bytes([7, label] if coarse else [label])
        rows.append(header + image.transpose(2, 0, 1).tobytes())
    return b"".join(rows), pixels


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-binary/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_cifar10_becomes_class_folders_of_the_same_pixels(tmp_path):
    parts = {f"data_batch_{n}.bin": ([n, 9, 0], n) for n in (1, 2)} | {
        "test_batch.bin": ([9, 0], 9)
    }
    drawn = {name: draw_records(labels, coarse=False, seed=seed)
             for name, (labels, seed) in parts.items()}  # fmt: skip
    files = {name: data for name, (data, _) in drawn.items()}
    files |= {"batches.meta.txt": "\n".join(TEN).encode() + b"\n\n", "readme.html": b"<html>"}
    unpack_cifar(write_archive(tmp_path / "c.tar.gz", files), tmp_path)
    counts = {split: len(list((tmp_path / split).rglob("*.png"))) for split in ("train", "val")}
    assert counts == {"train": 6, "val": 2}
    train, _ = find_folder(tmp_path)
    assert train.classes == ["kind0", "kind1", "kind2", "kind9"]
    found = dict(zip(train.names, range(len(train)), strict=True))
    for name, pixels in ((n, p) for n, (_, p) in drawn.items() if n.startswith("data")):
        for number, label in enumerate(parts[name][0]):
            path = f"train/{TEN[label]}/{name[:-4]}_{number}.png"
            assert (np.asarray(train.load(found[path])) == pixels[number]).all()
    shown = sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "val").rglob("*.png"))
    assert shown == ["val/kind0/test_batch_1.png", "val/kind9/test_batch_0.png"]


def test_cifar100_takes_the_fine_label_not_the_coarse_one(tmp_path):
    data, pixels = draw_records([42, 99], coarse=True, seed=0)
    test, _ = draw_records([42], coarse=True, seed=1)
    files = {"train.bin": data, "test.bin": test, "coarse_label_names.txt": b"coarse\n" * 20}
    files["fine_label_names.txt"] = "\n".join(HUNDRED).encode()
    unpack_cifar(write_archive(tmp_path / "c.tar.gz", files), tmp_path)
    train, val = find_folder(tmp_path)
    assert train.names == ["train/fine42/train_0.png", "train/fine99/train_1.png"]
    assert val.names == ["val/fine42/test_0.png"]
    for index in range(2):
        assert (np.asarray(train.load(index)) == pixels[index]).all()


def test_what_was_interrupted_is_no_smaller_data_set(tmp_path, monkeypatch):
    """Otherwise a run would silently train on half of the images."""
    data, _ = draw_records([0, 1, 2], coarse=False, seed=0)
    files = {"data_batch_1.bin": data, "test_batch.bin": data}
    files["batches.meta.txt"] = "\n".join(TEN).encode()
    archive, saved = write_archive(tmp_path / "c.tar.gz", files), []

    def save(image, path):
        saved.append(path)
        if len(saved) == 5:
            raise KeyboardInterrupt
        path.write_bytes(b"an image")

    with monkeypatch.context() as patch:
        patch.setattr(prepare.Image.Image, "save", save)
        with pytest.raises(KeyboardInterrupt):
            unpack_cifar(archive, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["c.tar.gz"]
    unpack_cifar(archive, tmp_path)
    assert {len(list((tmp_path / split).rglob("*.png"))) for split in ("train", "val")} == {3}


@pytest.mark.parametrize(("owner", "name"), [(os, "rename"), (shutil, "rmtree")])
def test_what_a_killed_process_had_unpacked_goes_with_the_next(tmp_path, monkeypatch, owner, name):
    """The leftovers are as large as the data set itself."""
    data, _ = draw_records([0, 1, 2], coarse=False, seed=0)
    files = {"data_batch_1.bin": data, "test_batch.bin": data}
    files["batches.meta.txt"] = "\n".join(TEN).encode()
    archive = write_archive(tmp_path / "c.tar.gz", files)
    monkeypatch.setattr(prepare, "download", lambda *_, **__: archive)
    killed_at(owner, name, lambda: prepare.prepare_cifar("cifar10", tmp_path))
    assert len(list(tmp_path.glob(".*"))) == 1
    prepare.prepare_cifar("cifar10", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"c.tar.gz", "train", "val"}


def test_what_can_be_downloaded_is_a_data_set_and_checked_by_hash():
    assert set(PREPARE) <= set(SOURCES)
    for url, md5 in CIFAR.values():
        assert url.startswith("https://")
        assert "binary" in url  # the python version is a pickle
        assert len(md5) == 32


# --- downloads ---
class Answer(io.BytesIO):
    """What a server sends, and how many bytes it announced."""

    def __init__(self, data, length=None):
        super().__init__(data)
        self.length = len(data) if length is None else length


@pytest.fixture
def served(monkeypatch):
    """Serves bytes, or fails, in place of the network; lists (URL, timeout) of each request."""

    def serve(data, length=None):
        asked = []

        def urlopen(request, timeout):
            asked.append((request.full_url, timeout))
            if isinstance(data, Exception):
                raise data
            return Answer(data, length)

        monkeypatch.setattr("urllib.request.urlopen", urlopen)
        return asked

    return serve


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def meant(monkeypatch, name, data):
    """Makes these bytes the expected ones of a data set's archive."""
    if name in CIFAR:
        monkeypatch.setitem(CIFAR, name, (CIFAR[name][0], md5(data)))
    else:
        monkeypatch.setattr(prepare, "IMAGENETTE", (prepare.IMAGENETTE[0], md5(data)))


def url_of(name):
    return CIFAR[name][0] if name in CIFAR else prepare.IMAGENETTE[0]


@pytest.mark.parametrize("name", sorted(CIFAR))
def test_a_download_is_checked_then_unpacked_and_not_done_again(
    tmp_path, monkeypatch, served, name
):
    coarse = name == "cifar100"
    names, label = ("fine_label_names.txt", HUNDRED) if coarse else ("batches.meta.txt", TEN)
    train = draw_records([1], coarse=coarse, seed=0)[0]
    files = {"train.bin" if coarse else "data_batch_1.bin": train,
             "test.bin" if coarse else "test_batch.bin": train,
             names: "\n".join(label).encode()}  # fmt: skip
    data = write_archive(tmp_path / "c.tar.gz", files).read_bytes()
    meant(monkeypatch, name, data)
    asked, root = served(data), tmp_path / "a" / "root"
    for _ in range(2):
        PREPARE[name](name, root)
    [(url, timeout)] = asked
    assert url == url_of(name)
    assert 0 < timeout <= 60
    assert [len(split) for split in find_folder(root)] == [1, 1]
    assert {p.name for p in root.iterdir()} == {"train", "val", url.rsplit("/", 1)[1]}


def test_imagenette_is_unpacked_whole_and_not_asked_for_again(tmp_path, monkeypatch, served):
    source, beside = tmp_path / "imagenette2" / "val", io.BytesIO()
    source.mkdir(parents=True)
    (source / "a.JPEG").write_bytes(b"a")
    with tarfile.open(fileobj=beside, mode="w:gz") as tar:
        tar.add(source.parent, "imagenette2")
    meant(monkeypatch, "imagenette", beside.getvalue())
    asked, root = served(beside.getvalue()), tmp_path / "root"
    for _ in range(2):
        PREPARE["imagenette"]("imagenette", root)
    assert len(asked) == 1
    assert {p.name for p in root.iterdir()} == {"imagenette2", "imagenette2.tgz"}
    assert (root / "imagenette2" / "val" / "a.JPEG").read_bytes() == b"a"


def test_imagenette_is_not_downloaded_into_its_own_folder(tmp_path, served):
    asked = served(URLError("no network"))
    root = write_folder(tmp_path / "imagenette2", classes=TEN)
    PREPARE["imagenette"]("imagenette", root)
    assert asked == []
    assert {p.name for p in root.iterdir()} == {"train", "val"}


NO_NETWORK = {
    "no name is resolved": URLError(OSError(-3, "Temporary failure in name resolution")),
    "nobody answers": TimeoutError("timed out"),
    "it is gone": HTTPError("https://x", 404, "Not Found", {}, None),
    "the line is cut": http.client.IncompleteRead(b"abc"),
}


@pytest.mark.parametrize("name", sorted(PREPARE))
@pytest.mark.parametrize("error", NO_NETWORK.values(), ids=NO_NETWORK)
def test_without_a_network_it_says_what_to_do_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, served, name, error
):
    served(error)
    root = tmp_path / "a" / "my root"
    words = ["data", "prepare", f"data={name}", f"data.root={root}"]
    monkeypatch.setattr("sys.argv", ["delving", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert (end.value.code, len(err.splitlines())) == (1, 1)
    for told in (url_of(name), f"by hand to {root}", f"prepare data={name} 'data.root={root}'"):
        assert told in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(PREPARE))
def test_a_download_that_is_cut_off_or_another_file_is_not_kept(
    tmp_path, monkeypatch, served, name
):
    meant(monkeypatch, name, b"the whole file")
    served(b"the whole", length=14)
    with pytest.raises(RuntimeError, match="9 bytes came"):
        PREPARE[name](name, tmp_path / "root")
    assert list(tmp_path.iterdir()) == []
    mine = tmp_path / url_of(name).rsplit("/", 1)[1]
    mine.write_bytes(b"the who")  # downloaded by hand, and cut off too
    with pytest.raises(RuntimeError, match=r"in place of the one there, whose MD5 is not"):
        PREPARE[name](name, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [mine.name]


def test_a_root_that_is_no_folder_is_bad_input_and_no_fault_of_the_network(tmp_path, served):
    served(b"")
    (tmp_path / "root").write_text("mine")
    with pytest.raises(FileExistsError):
        PREPARE["cifar10"]("cifar10", tmp_path / "root")


def test_a_full_disk_under_a_download_is_told_with_its_place(tmp_path, monkeypatch, served):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    served(b"")
    monkeypatch.setattr("shutil.copyfileobj", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*cifar-10"):
        PREPARE["cifar10"]("cifar10", tmp_path / "root")
    assert list(tmp_path.iterdir()) == []
