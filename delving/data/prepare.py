"""`delving data prepare`: downloads or generates a data set where that can be done, and lays it out
as class folders."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

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
SIDE = 32


def prepare_cifar(name: str, root: Path) -> None:
    """Downloads a CIFAR archive into root and writes its images as PNG files in class folders."""
    from torchvision.datasets.utils import download_url

    url, md5 = CIFAR[name]
    download_url(url, root, md5=md5)
    unpack_cifar(root / url.rsplit("/", 1)[1], root)


def unpack_cifar(archive: Path, root: Path) -> None:
    """Writes train/<class>/<n>.png and val/... from a binary-version archive."""
    with tarfile.open(archive) as tar:
        files = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}
        names_file = "fine_label_names.txt" if "train.bin" in files else "batches.meta.txt"
        names = tar.extractfile(files[names_file]).read().decode().split()
        for file in sorted(f for f in files if f.endswith(".bin")):
            split = "val" if "test" in file else "train"
            records = np.frombuffer(tar.extractfile(files[file]).read(), np.uint8)
            _write_records(records, names, root / split, Path(file).stem)


def _write_records(records: np.ndarray, names: list[str], folder: Path, batch: str) -> None:
    """Records end with 3 x 32 x 32 pixels; the byte before is the (fine) label."""
    header = 2 if len(names) == 100 else 1
    rows = records.reshape(-1, header + 3 * SIDE * SIDE)
    for number, row in enumerate(rows):
        target = folder / names[row[header - 1]] / f"{batch}_{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = row[header:].reshape(3, SIDE, SIDE).transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(target)


def prepare_imagenette(name: str, root: Path) -> None:
    """Downloads Imagenette by torchvision; its folder has train/ and val/ of class folders."""
    from torchvision.datasets import Imagenette

    if not (root / "imagenette2").is_dir():
        Imagenette(root, split="train", size="full", download=True)


PREPARE: dict[str, Callable[[str, Path], None]] = {
    "cifar10": prepare_cifar,
    "cifar100": prepare_cifar,
    "imagenette": prepare_imagenette,
}
