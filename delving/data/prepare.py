"""`delving data prepare`: downloads a data set that can be downloaded, and lays it out as class
folders."""

import gzip
import os
import re
import shlex
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from delving.beside import folder_beside, remove_dead
from delving.data.download import download
from delving.words import shown

# The binary versions: the Python ones are pickles, which are never loaded here.
CIFAR = {
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "cifar100": (
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
    ),
}
IMAGENETTE = (
    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz",
    "fe2fc210e6bb7c5664d602c3cd71e612",
)
FOLDER = "imagenette2"  # in that archive
SIDE, SPLITS = 32, ("val", "train")
BYTES = 200_000_000  # of a file in an archive, at most; CIFAR-100's largest has 154 million


def prepare_cifar(name: str, root: Path) -> None:
    """Downloads a CIFAR archive into root and writes its images as PNG files in class folders."""
    remove_dead(root, SPLITS[0])
    if _is_unpacked(root):
        return
    url, md5 = CIFAR[name]
    unpack_cifar(download(url, root, md5=md5, again=_again(name, root)), root)


def unpack_cifar(archive: Path, root: Path) -> None:
    """Writes train/<class>/<batch>_<n>.png and val/... from a binary-version archive; each of the
    two folders appears whole.

    Raises:
        ValueError: the archive is damaged, or not CIFAR's. Its names never lead out of the root.
    """
    try:
        with tarfile.open(archive) as tar, folder_beside(root / SPLITS[0]) as beside:
            _unpack(tar, beside)
            for split in SPLITS:
                if (beside / split).is_dir() and not (root / split).exists():
                    os.rename(beside / split, root / split)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise ValueError(f"{archive}: {error}") from error


def _unpack(tar: tarfile.TarFile, root: Path) -> None:
    files = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}
    names_file = "fine_label_names.txt" if "train.bin" in files else "batches.meta.txt"
    names = _read_names(tar, files, names_file)
    for file in sorted(f for f in files if f.endswith(".bin")):
        split = "val" if "test" in file else "train"
        records = np.frombuffer(_read(tar, files[file]), np.uint8)
        _write_records(records, names, root / split, Path(file).stem)


def _read_names(tar: tarfile.TarFile, files: dict[str, tarfile.TarInfo], file: str) -> list[str]:
    if file not in files:
        raise ValueError(f"no {file} in it")
    names = _read(tar, files[file]).decode().split()
    # Folders are named after them.
    odd = [name for name in names if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name)]
    if odd or len(set(names)) not in (10, 100) or len(set(names)) != len(names):
        raise ValueError(f"{file}: no 10 or 100 names of classes {shown(odd[:1] or len(names))}")
    return names


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > BYTES:
        raise ValueError(f"{shown(member.name)}: {member.size:,} bytes, more than {BYTES:,}")
    return tar.extractfile(member).read()


def _write_records(records: np.ndarray, names: list[str], folder: Path, batch: str) -> None:
    """Writes a file's images. Records end with 3 x 32 x 32 pixels; the byte before them is the
    (fine) label."""
    header = 2 if len(names) == 100 else 1
    if len(records) % (header + 3 * SIDE * SIDE):
        raise ValueError(f"{batch}.bin: {len(records):,} bytes are no whole number of images")
    rows = records.reshape(-1, header + 3 * SIDE * SIDE)
    if len(rows) and rows[:, header - 1].max() >= len(names):
        raise ValueError(f"{batch}.bin: a label beyond the {len(names)} classes")
    for number, row in enumerate(rows):
        target = folder / names[row[header - 1]] / f"{batch}_{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = row[header:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(target)


def prepare_imagenette(name: str, root: Path) -> None:
    """Downloads Imagenette, unless the root is or has its folder: imagenette2, with class folders
    in train/ and val/."""
    remove_dead(root, FOLDER)
    if (root / FOLDER).is_dir() or _is_unpacked(root):
        return
    url, md5 = IMAGENETTE
    archive = download(url, root, md5=md5, again=_again(name, root))
    with folder_beside(root / FOLDER) as beside, tarfile.open(archive) as tar:
        tar.extractall(beside, filter="data")  # names never lead out
        os.rename(beside / FOLDER, root / FOLDER)  # whole, or not there


def _is_unpacked(root: Path) -> bool:
    return all((root / split).is_dir() for split in SPLITS)


def _again(name: str, root: Path) -> str:
    return f"delving data prepare data={name} {shlex.quote(f'data.root={root}')}"


PREPARE: dict[str, Callable[[str, Path], None]] = {
    "cifar10": prepare_cifar,
    "cifar100": prepare_cifar,
    "imagenette": prepare_imagenette,
}
