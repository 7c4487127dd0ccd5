"""The data sets of section 3 and its smaller stand-ins: from a root to a training and a val split.

Adding one: a function and a line in SOURCES, and a file in conf/data.
"""

import csv
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from delving.data.images import SUFFIXES, FolderReader, Images, ZipReader

Listing = list[tuple[str, str]]  # (class, name below the root)


def find_folder(root: Path) -> tuple[Images, Images]:
    """root/train and root/val, each with one folder per class."""
    train, val = (_class_folders(root, split) for split in ("train", "val"))
    return _splits(train, val, FolderReader(root), {})


def find_imagenette(root: Path) -> tuple[Images, Images]:
    """As torchvision unpacks it, imagenette2/, or that folder itself."""
    return find_folder(root / "imagenette2" if (root / "imagenette2").is_dir() else root)


def find_tiny_imagenet(root: Path) -> tuple[Images, Images]:
    """Tiny ImageNet's official layout: unpacked, in its zip, or in a folder of partial zips."""
    if root.is_file() or any(root.glob("*.zip")):
        zips = [root] if root.is_file() else sorted(root.glob("*.zip"))
        members = _zip_members(zips)
        reader = ZipReader(members)
    else:
        root = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
        members = dict.fromkeys(_tree(root))
        reader = FolderReader(root)
    if "val/val_annotations.txt" not in members:
        raise ValueError(f"data.root={root}: no val/val_annotations.txt, so not Tiny ImageNet")
    train = [(n.split("/")[1], n) for n in members if n.startswith("train/") and _is_image(n)]
    val = _annotated(reader)
    absent = [name for _, name in val if name not in members]
    if absent:
        raise ValueError(
            f"data.root={root}: {len(absent)} annotated images lack, {absent[0]} first"
        )
    return _splits(train, val, reader, _words(reader, members))


def find_imagenet(root: Path) -> tuple[Images, Images]:
    """train/ of class folders; val/ alike, or flat beside the devkit or LOC_val_solution.csv."""
    nested = root / "ILSVRC" / "Data" / "CLS-LOC"
    root = nested if nested.is_dir() else root
    if any(p.is_dir() for p in (root / "val").glob("*")):
        return find_folder(root)
    train = _class_folders(root, "train")
    truth, files = _ground_truth(root), sorted((root / "val").glob("*.JPEG"))
    strange = [path.name for path in files if path.stem not in truth]
    if strange:
        raise ValueError(f"{root / 'val'}: {len(strange)} images of no known class: {strange[0]}")
    val = [(truth[path.stem], f"val/{path.name}") for path in files]
    return _splits(train, val, FolderReader(root), {})


SOURCES: dict[str, Callable[[Path], tuple[Images, Images]]] = {
    "imagenet": find_imagenet,
    "tiny_imagenet": find_tiny_imagenet,
    "imagenette": find_imagenette,
    "cifar10": find_folder,
    "cifar100": find_folder,
    "folder": find_folder,
    "shapes": find_folder,
}


def _class_folders(root: Path, split: str) -> Listing:
    folder = root / split
    if not folder.is_dir():
        there = (
            ", ".join(sorted(p.name for p in root.glob("*"))[:8]) if root.is_dir() else "nothing"
        )
        raise ValueError(f"data.root={root}: no folder {split}/ (there is {there or 'nothing'})")
    listing: Listing = []
    for sub in sorted(p for p in folder.iterdir() if p.is_dir()):
        names = sorted(p.relative_to(root).as_posix() for p in sub.rglob("*") if _is_image(p.name))
        if not names:
            raise ValueError(f"{sub}: a class folder without images ({', '.join(SUFFIXES)})")
        listing += [(sub.name, name) for name in names]
    return listing


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _tree(root: Path) -> Iterable[str]:
    return (p.relative_to(root).as_posix() for p in sorted(root.rglob("*")) if p.is_file())


def _zip_members(zips: list[Path]) -> dict[str, tuple[Path, str]]:
    members = {}
    for path in zips:
        try:
            with zipfile.ZipFile(path) as archive:
                found = archive.namelist()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: not a zip, or a broken one ({error})") from error
        members |= {_below(m): (path, m) for m in found if not m.endswith("/")}
    return dict(sorted(members.items()))


def _below(member: str) -> str:
    return member.partition("tiny-imagenet-200/")[2] or member


def _annotated(reader: Callable[[str], bytes]) -> Listing:
    lines = reader("val/val_annotations.txt").decode().splitlines()
    rows = (line.split("\t")[:2] for line in lines if line.strip())
    return [(wnid, f"val/images/{file}") for file, wnid in rows]


def _words(reader: Callable[[str], bytes], members: dict) -> dict[str, str]:
    """WordNet ids to names, the first synonym alone."""
    if "words.txt" not in members:
        return {}
    rows = (line.partition("\t") for line in reader("words.txt").decode().splitlines())
    return {wnid: name.split(",")[0] for wnid, _, name in rows}


def _ground_truth(root: Path) -> dict[str, str]:
    """ILSVRC2012_val_... to its class's WordNet id."""
    solution = next(
        (
            p / "LOC_val_solution.csv"
            for p in (root, *root.parents)
            if (p / "LOC_val_solution.csv").is_file()
        ),
        None,
    )
    if solution:
        with open(solution, newline="") as rows:
            return {
                row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(rows)
            }
    devkit = next(root.glob("ILSVRC2012_devkit*/data"), None)
    if not devkit:
        raise ValueError(
            f"data.root={root}: val/ has no class folders, and beside it lies neither "
            "ILSVRC2012_devkit_t12/ nor LOC_val_solution.csv to tell the classes"
        )
    return _devkit_truth(devkit)


def _devkit_truth(devkit: Path) -> dict[str, str]:
    from scipy.io import loadmat  # slow to import, and needed for this layout alone

    rows = loadmat(devkit / "meta.mat", squeeze_me=True)["synsets"]
    wnid = {int(row[0]): str(row[1]) for row in rows}
    ids = (devkit / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    return {f"ILSVRC2012_val_{i + 1:08d}": wnid[int(x)] for i, x in enumerate(ids)}


def _splits(
    train: Listing, val: Listing, reader: Callable[[str], bytes], words: dict[str, str]
) -> tuple[Images, Images]:
    """Labels follow the training classes, sorted; val may hold fewer of them, never others."""
    classes = sorted({wnid for wnid, _ in train})
    strange = sorted({wnid for wnid, _ in val} - set(classes))
    if not train or not val:
        raise ValueError(f"no images in {'train' if not train else 'val'}/")
    if strange:
        raise ValueError(f"val has classes that train lacks: {', '.join(strange[:5])}")
    titles = [words.get(c, c) for c in classes]
    number = {c: i for i, c in enumerate(classes)}

    def split(listing: Listing) -> Images:
        labels = np.array([number[wnid] for wnid, _ in listing], np.int64)
        return Images([name for _, name in listing], labels, classes, titles, reader)

    return split(train), split(val)
