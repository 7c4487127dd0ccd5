"""Archives unpacked into class folders; what is downloaded is named and checked."""

import io
import tarfile

import numpy as np
import pytest

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


def test_what_can_be_downloaded_is_a_data_set_and_checked_by_hash():
    assert set(PREPARE) <= set(SOURCES)
    for url, md5 in CIFAR.values():
        assert url.startswith("https://")
        assert "binary" in url  # the python version is a pickle
        assert len(md5) == 32


@pytest.mark.parametrize("name", sorted(CIFAR))
def test_a_download_is_asked_for_with_its_hash_then_unpacked(tmp_path, monkeypatch, name):
    coarse = name == "cifar100"
    names, label = ("fine_label_names.txt", HUNDRED) if coarse else ("batches.meta.txt", TEN)
    train = draw_records([1], coarse=coarse, seed=0)[0]
    files = {"train.bin" if coarse else "data_batch_1.bin": train,
             "test.bin" if coarse else "test_batch.bin": train,
             names: "\n".join(label).encode()}  # fmt: skip
    asked = []

    def download(url, root, md5):
        asked.append((url, md5))
        write_archive(root / url.rsplit("/", 1)[1], files)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    PREPARE[name](name, tmp_path)
    assert asked == [CIFAR[name]]
    assert [len(split) for split in find_folder(tmp_path)] == [1, 1]
