"""The data sets of section 3 and smaller stand-ins: from a root to a training and a val split.

To add one: a function and a line in SOURCES, a file in conf/data, and a line in SIZES, from which
`show` and `estimate` know its size without looking.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from delving.data.images import SUFFIXES, FolderReader, Images, UndecodableImageError, published
from delving.data.labels import (
    CLASSES,
    Listing,
    parse_annotations,
    parse_words,
    read_devkit,
    read_meta,
    read_solution,
    read_words,
)
from delving.data.shapes import TEXTURES
from delving.data.zips import ZipReader, list_members
from delving.words import shown

TINY, ANNOTATIONS = "tiny-imagenet-200", "val/val_annotations.txt"


def find_folder(root: Path) -> tuple[Images, Images]:
    """root/train and root/val, each with one folder per class."""
    train, val = (_class_folders(root, split) for split in ("train", "val"))
    return _splits(train, val, FolderReader(root), {}, root=root)


def find_folder_of(name: str, root: Path) -> tuple[Images, Images]:
    """find_folder, for a data set whose classes are known: other pictures do not pass for it."""
    found = find_folder(root)
    there, wanted = found[0].classes, SIZES[name][0]
    spelt = [names.split() for names in CLASSES[name]]
    fault = ""
    if len(there) != wanted:
        fault = f"{len(there)} classes, but data={name} has {wanted}"
    elif sorted(there) not in map(sorted, spelt):
        odd = next(one for one in there if one not in spelt[0])
        ours = " or ".join(f"{names[0]} to {names[-1]}" for names in spelt)
        fault = f"{shown(odd)} is no class of data={name} ({ours})"
    elif name in PIXELS and (size := _first_size(found[0], PIXELS[name])) != PIXELS[name]:
        # MNIST's classes too are 0 to 9.
        fault = f"{found[0].names[0]} is {size}, pictures of data={name} are {PIXELS[name]}"
    if fault:
        raise ValueError(f"data.root={root}: {fault}; data=folder takes any")
    return found


def _first_size(images: Images, usual: str) -> str:
    """The first picture's width x height, or `usual` if it cannot be read."""
    with contextlib.suppress(UndecodableImageError):
        width, height = images.size(0)
        return f"{width} x {height}"
    return usual


def find_imagenette(root: Path) -> tuple[Images, Images]:
    """Imagenette as torchvision unpacks it, into imagenette2/, or that folder itself."""
    inside = root / "imagenette2"
    return find_folder_of("imagenette", inside if inside.is_dir() else root)


def find_tiny_imagenet(root: Path) -> tuple[Images, Images]:
    """Tiny ImageNet's official layout: unpacked, in its zip, or in a folder of partial zips."""
    members, reader = _tiny_members(root)
    if ANNOTATIONS not in members:
        there = f" ({_list_there(root)})" if root.is_dir() else ""
        raise ValueError(f"data.root={root}: no {ANNOTATIONS}, so not Tiny ImageNet{there}")
    # A picture that lies beside the class folders is of no class.
    parts = [(name.split("/"), name) for name in members if _is_image(name)]
    train = [(of[1], name) for of, name in parts if of[0] == "train" and len(of) > 2]
    val = parse_annotations(_told(root, reader, ANNOTATIONS))
    absent = [name for _, name in val if name not in members]
    if absent:
        raise ValueError(
            f"data.root={root}: {len(absent)} annotated images are missing, "
            f"{shown(absent[0])} first"
        )
    words = "words.txt" in members and parse_words(_told(root, reader, "words.txt"))
    return _splits(train, val, reader, words or {}, root=root)


def _tiny_members(root: Path) -> tuple[dict[str, object], Callable[[str], bytes]]:
    """The names of its files, as keys, and what reads them. Where it lies unpacked, zips beside it
    may be of anything."""
    for folder in (root / TINY, root):
        if (folder / ANNOTATIONS).is_file():
            return dict.fromkeys(_tiny_files(folder)), FolderReader(folder)
    zips = [root] if root.is_file() else sorted(root.glob("[!.]*.zip"))
    members = list_members(zips, f"{TINY}/")
    return members, ZipReader(members)


def find_imagenet(root: Path) -> tuple[Images, Images]:
    """Class folders in train/; in val/ too, or flat beside the devkit or LOC_val_solution.csv."""
    root = imagenet_root(root)
    train = _class_folders(root, "train")
    if any(p.is_dir() and not p.name.startswith(".") for p in (root / "val").glob("*")):
        val = sorted(_class_folders(root, "val"), key=lambda item: published(item[1]))
    else:
        val = _flat_val(root)
    return _splits(train, val, FolderReader(root), _imagenet_words(root), root=root)


def imagenet_root(root: Path) -> Path:
    """The folder with train/ and val/: the root, or the one that Kaggle's archive has them in."""
    nested = root / "ILSVRC" / "Data" / "CLS-LOC"
    root = nested if nested.is_dir() else root
    for split in ("train", "val"):
        _split_folder(root, split)
    return root


def _flat_val(root: Path) -> Listing:
    """ImageNet's validation images as published, in one folder. All must be there, or errors would
    not compare with others'."""
    truth = _ground_truth(root)
    files = sorted(p for p in (root / "val").glob("*") if _is_image(p.name) and p.name[0] != ".")
    strange = [path.name for path in files if path.stem not in truth]
    absent = sorted(truth.keys() - {path.stem for path in files})
    for names, what in ((strange, "images of no known class"), (absent, "images are missing")):
        if names:
            raise ValueError(f"{root / 'val'}: {len(names):,} {what}, {shown(names[0])} first")
    if len(files) > len(truth):
        raise ValueError(f"{root / 'val'}: {len(files):,} files of {len(truth):,} images")
    return [(truth[path.stem], f"val/{path.name}") for path in files]


SOURCES: dict[str, Callable[[Path], tuple[Images, Images]]] = {
    "imagenet": find_imagenet,
    "tiny_imagenet": find_tiny_imagenet,
    "imagenette": find_imagenette,
    "cifar10": partial(find_folder_of, "cifar10"),
    "cifar100": partial(find_folder_of, "cifar100"),
    "folder": find_folder,
    "shapes": find_folder,
}


def list_classes(name: str, root: Path) -> list[str]:
    """The classes of what lies there. ImageNet's files are not listed: on a network disk that takes
    minutes."""
    if name == "imagenet":
        return [folder.name for folder in _folders(imagenet_root(root) / "train")]
    return SOURCES[name](root)[0].classes


# Classes, training and validation images of each, if a run does not limit them.
SIZES = {
    "imagenet": (1000, 1_281_167, 50_000),
    "tiny_imagenet": (200, 100_000, 10_000),
    "imagenette": (10, 9_469, 3_925),
    "cifar10": (10, 50_000, 10_000),
    "cifar100": (100, 50_000, 10_000),
    "shapes": (len(TEXTURES), 4_000, 1_000),  # as many images whatever the classes
}
PIXELS = {"cifar10": "32 x 32", "cifar100": "32 x 32"}  # of every picture


def _split_folder(root: Path, split: str) -> Path:
    if (root / split).is_dir():
        return root / split
    raise ValueError(f"data.root={root}: no folder {split}/ ({_list_there(root)})")


def _list_there(root: Path) -> str:
    """What lies in a folder, for messages."""
    there = sorted(root.glob("*"))
    names = ", ".join(shown(p.name) for p in there[:8]) or "nothing"
    hint = "; tar files are to be unpacked first" if any(p.suffix == ".tar" for p in there) else ""
    return f"there is {names}{hint}"


def _class_folders(root: Path, split: str) -> Listing:
    folder, listing = _split_folder(root, split), []
    for sub in _folders(folder):
        if folder.resolve().is_relative_to(sub.resolve()):
            raise ValueError(f"{sub}: a link to a folder that it lies in")
        names = sorted(name for name in _tree(sub, root) if _is_image(name))
        if not names:
            raise ValueError(f"{sub}: a class folder without images ({', '.join(SUFFIXES)})")
        listing += [(sub.name, name) for name in names]
    return listing


def _folders(folder: Path) -> list[Path]:
    """The folders in it. Names that begin with a dot are other programs': .ipynb_checkpoints."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _tree(folder: Path, root: Path) -> Iterator[str]:
    """The files below the folder, named from the root. Links to folders are not followed, as they
    may lead round for ever; a folder that cannot be read is an error, not taken as empty."""
    for place, folders, files in os.walk(folder, onerror=_raise):
        below = Path(place).relative_to(root).as_posix()
        folders[:] = [name for name in folders if not name.startswith(".")]
        # A folder named like an image is listed, to be reported as one that cannot be read.
        found = [*filter(_is_image, folders), *files]
        yield from (f"{below}/{name}" for name in found if not name.startswith("."))  # ._cat.jpg


def _raise(error: OSError) -> None:
    raise error


def _tiny_files(root: Path) -> list[str]:
    """Tiny ImageNet's files; only its own folders are searched."""
    told = [name for name in (ANNOTATIONS, "words.txt") if (root / name).is_file()]
    splits = [root / split for split in ("train", "val") if (root / split).is_dir()]
    return sorted({*told, *(name for folder in splits for name in _tree(folder, root))})


def _told(root: Path, reader: Callable[[str], bytes], name: str) -> bytes:
    try:
        return reader(name)
    except OSError as error:
        raise ValueError(f"data.root={root}: {name}: {error.strerror or error}") from error


def _ground_truth(root: Path) -> dict[str, str]:
    """{ILSVRC2012_val_...: its class's WordNet id}."""
    if solution := _above(root, "LOC_val_solution.csv"):
        return read_solution(solution)
    if not (devkit := _devkit(root)):
        raise ValueError(
            f"data.root={root}: val/ has no class folders, and beside it lies neither "
            "ILSVRC2012_devkit_t12/ nor LOC_val_solution.csv to tell the classes"
        )
    return read_devkit(devkit)


def _imagenet_words(root: Path) -> dict[str, str]:
    """{WordNet id: name} of its classes, from the first file beside the images that tells; one that
    is not what its name says is passed over."""
    for told in (_above(root, "LOC_synset_mapping.txt"), root / "words.txt"):
        if told and told.is_file():
            with contextlib.suppress(ValueError):
                return read_words(told)
    if devkit := _devkit(root):
        with contextlib.suppress(ValueError):
            return {wnid: names.split(",")[0] for wnid, names in read_meta(devkit).values()}
    return {}


def _devkit(root: Path) -> Path | None:
    return next(root.glob("ILSVRC2012_devkit*/data"), None)


def _above(root: Path, name: str) -> Path | None:
    """The file of that name in the folder, or in the nearest above that has one: above it as the
    root is given first, since any part of that may be a link, then above where it really lies."""
    places = (p for start in (root.absolute(), root.resolve()) for p in (start, *start.parents))
    return next((p / name for p in places if (p / name).is_file()), None)


def _splits(
    train: Listing,
    val: Listing,
    reader: Callable[[str], bytes],
    words: dict[str, str],
    *,
    root: Path,
) -> tuple[Images, Images]:
    """Labels follow the training classes, sorted; val may hold fewer of them, never others."""
    classes = sorted({wnid for wnid, _ in train})
    strange = sorted({wnid for wnid, _ in val} - set(classes))
    if not train or not val:
        none = "val" if train else "train"
        raise ValueError(f"data.root={root}: no images in {none}/")
    if strange:
        names = ", ".join(map(shown, strange[:5]))
        raise ValueError(f"data.root={root}: val has classes that train lacks: {names}")
    titles = [words.get(c, c) for c in classes]
    number = {c: i for i, c in enumerate(classes)}

    def split(listing: Listing) -> Images:
        labels = np.array([number[wnid] for wnid, _ in listing], np.int64)
        return Images([name for _, name in listing], labels, classes, titles, reader)

    return split(train), split(val)
