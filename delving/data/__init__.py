"""Section 3's images: the data sets (one of them generated), augmentation, and loading."""

import hashlib
from pathlib import Path

from delving.data.images import Images, select
from delving.data.sources import SIZES, SOURCES, imagenet_root
from delving.schema import Data


def load_data(
    name: str,
    root: str | None,
    *,
    classes: int | None,
    train_images: int | None,
    val_images: int | None,
    output_root: str,
) -> tuple[Images, Images]:
    """The training and the validation split of a data set, limited as asked.

    Args:
        name: a key of SOURCES.
        root: the folder or zip; None only for shapes, which are generated below output_root.

    Raises:
        ValueError: unknown name, no root, nothing there, or fewer images than asked for.
    """
    where = find_source(name, root)
    if where is None:
        where = generate_shapes(output_root, classes, train_images, val_images)
    train, val = SOURCES[name](where)
    if train_images and train_images < (kept := classes or len(train.classes)):
        raise ValueError(f"data.train_images={train_images}: fewer than the {kept} classes")
    return (
        select(train, classes=classes, count=train_images, key="data.train_images"),
        select(val, classes=classes, count=val_images, key="data.val_images"),
    )


def find_source(name: str, root: str | None) -> Path | None:
    """Where a data set lies; None for the generated one without a root: it is made on demand.

    Raises:
        ValueError: unknown name, no root, nothing there.
    """
    if name not in SOURCES:
        raise ValueError(f"data={name}: choose from {', '.join(SOURCES)}")
    if root is None and name != "shapes":
        what = "folder or zip" if name == "tiny_imagenet" else "folder"
        raise ValueError(f"data={name} needs data.root=... (its {what})")
    return None if root is None else _existing(name, root)


def check_there(name: str, root: str | None) -> None:
    """Raises load_data's ValueError if a data set is missing or of another kind. ImageNet's files
    are not listed: on a network disk that takes minutes."""
    where = find_source(name, root)
    if name == "imagenet":
        imagenet_root(where)
    elif where is not None:
        SOURCES[name](where)


def load_splits(data: Data, output_root: str) -> tuple[Images, Images]:
    """load_data with the settings of a run's configuration."""
    return load_data(
        data.name,
        data.root,
        classes=data.classes,
        train_images=data.train_images,
        val_images=data.val_images,
        output_root=output_root,
    )


def prepare_data(name: str, root: str | None) -> None:
    """Downloads what can be downloaded; the rest must be there, or is generated when loaded."""
    from delving.data.prepare import PREPARE

    if name in PREPARE:
        if root is None:
            raise ValueError(f"data={name} needs data.root=... (the folder to download to)")
        PREPARE[name](name, expand_home(root))


def _existing(name: str, root: str) -> Path:
    where = expand_home(root)
    if not where.exists():
        raise ValueError(f"data.root={where}: there is no such file or folder")
    if where.is_file() and name != "tiny_imagenet":
        raise ValueError(f"data.root={where}: a file; data={name} is a folder")
    if not where.is_file() and not where.is_dir():
        raise ValueError(f"data.root={where}: neither a folder nor a file")
    if name == "shapes" and not (where / "train").is_dir():
        real = ", ".join(other for other in SOURCES if other != name)
        raise ValueError(f"data.root={where}: no generated images. Of real ones say which: "
                         f"scale=quarter, scale=paper, or data= one of {real}")  # fmt: skip
    return where


def expand_home(text: str, key: str = "data.root") -> Path:
    """The path in a text, `~` being the user's home; ValueError names the key if there is none."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{key}={text}: {error}") from error


def generate_shapes(
    output_root: str, classes: int | None, train_images: int | None, val_images: int | None
) -> Path:
    """Writes the generated data set once, below output_root/data."""
    from delving.data.shapes import write_shapes

    where, counts = shapes_folder(output_root, classes, train_images, val_images)
    for key, count in zip(("data.train_images", "data.val_images"), counts[1:], strict=True):
        if count < counts[0]:
            raise ValueError(f"{key}={count}: one or more of each of the {counts[0]} classes")
    return write_shapes(where, classes=counts[0], train_images=counts[1], val_images=counts[2])


def shapes_folder(
    output_root: str, classes: int | None, train_images: int | None, val_images: int | None
) -> tuple[Path, list[int]]:
    """Where the generated data set lies or will lie, and how many classes, training and validation
    images it has."""
    from delving.data.shapes import VERSION

    asked = (classes, train_images, val_images)
    counts = [count or usual for count, usual in zip(asked, SIZES["shapes"], strict=True)]
    return Path(output_root) / "data" / "shapes-v{}-{}x{}+{}".format(VERSION, *counts), counts


def lacking(data: Data, train: Images, val: Images) -> list[str]:
    """What ImageNet lacks on disk, if the settings ask for all of it, and Tiny ImageNet of the
    classes asked for; of other data sets, parts are usual, and nothing is reported."""
    if data.name == "tiny_imagenet" and not data.train_images:
        there, all_of = len(train), whole_training_set(data.name, len(train.classes))
        told = f"{there:,} training images (the whole set has {all_of:,} of these classes)"
        return [told] if there < all_of else []
    if data.name != "imagenet" or any((data.classes, data.train_images, data.val_images)):
        return []
    what_there = ("classes", "training images", "validation images")
    counts = zip(what_there, (len(train.classes), len(train), len(val)), SIZES["imagenet"],
                 strict=True)  # fmt: skip
    return [f"{there:,} {what} (paper: {all_of:,})" for what, there, all_of in counts
            if there < all_of]  # fmt: skip


def whole_training_set(name: str, classes: int) -> int:
    """How many training images a data set has of so many of its classes, if all have as many."""
    every, images, _ = SIZES[name]
    return images * classes // every


def fingerprint(train: Images, val: Images) -> str:
    """A hash of both splits' names and labels; the same data at another root has the same hash."""
    digest = hashlib.sha256()
    for split in (train, val):
        names = "\n".join(split.ids).encode(errors="surrogateescape")  # names may be any bytes
        digest.update(names + split.labels.tobytes())
    return digest.hexdigest()[:16]
