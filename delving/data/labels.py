"""Which class an image is of, read from the files in which data sets say so.

Errors name the file and the line.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from delving.data.images import read_file
from delving.data.mat import read_synsets
from delving.words import shown

Listing = list[tuple[str, str]]  # (class, name below the root)
# The classes of data sets that tell them by their folders alone, in each way to spell them.
CLASSES = {
    "cifar10": (
        "airplane automobile bird cat deer dog frog horse ship truck",
        " ".join(map(str, range(10))),
    ),
    "cifar100": (
        """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
        worm""",
        " ".join(map(str, range(100))),
    ),
    "imagenette": (
        "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 "
        "n03445777 n03888257",
    ),
}


def parse_annotations(data: bytes) -> Listing:
    """Tiny ImageNet's val_annotations.txt: lines of file, class and box, separated by tabs."""
    of_file: dict[str, str] = {}
    for number, line in _lines(data, "val_annotations.txt"):
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if not file or not wnid:
            raise _fault("val_annotations.txt", number, f"no file and class: {shown(line)}")
        if file in of_file:
            raise _fault("val_annotations.txt", number, f"a second class for {shown(file)}")
        of_file[file] = wnid
    return [(wnid, f"val/images/{file}") for file, wnid in of_file.items()]


def parse_words(data: bytes, path: Path | str = "words.txt", between: str = "\t") -> dict[str, str]:
    """{WordNet id: name}, the first synonym alone, from a words.txt; with a space as `between`,
    from Kaggle's LOC_synset_mapping.txt."""
    words = {}
    for number, line in _lines(data, path):
        wnid, _, names = line.partition(between)
        if not names:
            raise _fault(path, number, f"no id and name: {shown(line)}")
        words[wnid] = names.split(",")[0]
    return words


def read_words(path: Path) -> dict[str, str]:
    """parse_words of a file, whose name tells which of the two kinds it is."""
    return parse_words(read_listing(path), path, "\t" if path.name == "words.txt" else " ")


def read_solution(path: Path) -> dict[str, str]:
    """{ILSVRC2012_val_...: its class's WordNet id}, from Kaggle's LOC_val_solution.csv."""
    truth, lines = {}, _lines(read_listing(path), path)
    for number, head in islice(lines, 1):
        if head != "ImageId,PredictionString":
            raise _fault(path, number, f"not ImageId,PredictionString: {shown(head)}")
    for number, line in lines:
        image, _, boxes = line.partition(",")
        if not image or not boxes.split():
            raise _fault(path, number, f"no image and class: {shown(line)}")
        if image in truth:
            raise _fault(path, number, f"a second class for {shown(image)}")
        truth[image] = boxes.split()[0]
    return truth


def read_devkit(devkit: Path) -> dict[str, str]:
    """As read_solution, from ILSVRC2012_devkit_t12's data folder: meta.mat and the ground truth."""
    synsets, truth = read_meta(devkit), {}
    path = devkit / "ILSVRC2012_validation_ground_truth.txt"
    for image, (number, line) in enumerate(_lines(read_listing(path), path), 1):
        word = line.strip()
        if word not in synsets:
            raise _fault(path, number, f"no ILSVRC2012_ID of meta.mat: {shown(word)}")
        truth[f"ILSVRC2012_val_{image:08d}"] = synsets[word][0]
    return truth


def read_meta(devkit: Path) -> dict[str, list[str]]:
    """The synsets of a devkit's data folder: {ILSVRC2012_ID in digits: [WordNet id, names]}."""
    read_listing(devkit / "meta.mat")  # raises what is wrong with it as a file, in our words
    return read_synsets(devkit / "meta.mat")


def read_listing(path: Path) -> bytes:
    """A file's bytes; ValueError names the file if it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error


def _decode(data: bytes, path: Path | str) -> str:
    try:
        return data.decode("utf-8-sig")  # Excel begins with a byte order mark
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise _fault(path, number, "no UTF-8 text") from error


def _lines(data: bytes, path: Path | str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    for number, line in enumerate(_decode(data, path).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _fault(path: Path | str, number: int, what: str) -> ValueError:
    return ValueError(f"{path}, line {number}: {what}")
