"""Reads a detection's folder: result.json and pictures.json."""

from pathlib import Path

from delving.record import NUMBER, STATUSES, are_numbers, expect, is_number, read_json, read_keys

MAYBE = (int, float, type(None))
RESULT = {
    "detection": str, "run": str, "scale": str, "model": str, "act": str, "init": str, "seed": int,
    "data": str, "train_images": int, "test_images": int, "steps": int, "params": int,
    "proposals": dict, "chance": MAYBE, "train_loss": MAYBE, "status": str, "seconds": NUMBER,
    "images_per_second": NUMBER, "testing": NUMBER, "device": str, "eval": dict,
}  # fmt: skip
PROPOSALS = {"method": str, "per_image": NUMBER, "recall": MAYBE}


def read_detection(folder: Path) -> dict:
    """result.json of a finished detection; ValueError names the file, and a key that is not as
    delving writes it."""
    path = folder / "result.json"
    result = read_keys(path, **RESULT)
    expect(result["proposals"], PROPOSALS, f"{path}: proposals")
    for name, scores in result["eval"].items():
        expect(scores, {"map": MAYBE, "ap": dict}, f"{path}: {name}")
        expect(scores["ap"], dict.fromkeys(scores["ap"], MAYBE), f"{path}: {name}")
    if result["status"] not in STATUSES:
        raise ValueError(f"{path} is damaged: status is {result['status'][:40]!r}")
    return result


def read_pictures(folder: Path) -> list[dict]:
    """pictures.json, a list of {image, jpeg, size, found: [[class, score, box]], objects: [[class,
    box, difficult]]}; ValueError names the file if it is anything else."""
    path = folder / "pictures.json"
    pictures = read_json(path)
    kinds = {"image": str, "jpeg": str, "size": list, "found": list, "objects": list}
    if not isinstance(pictures, list):
        raise ValueError(f"{path} is damaged: it is no list")
    for one in pictures:
        expect(one, kinds, str(path))
        found = all(
            _is_triple(x) and is_number(x[1]) and are_numbers(x[2], 4) for x in one["found"]
        )
        objects = all(_is_triple(x) and are_numbers(x[1], 4) for x in one["objects"])
        if not (found and objects and are_numbers(one["size"], 2)):
            image = one["image"][:40]
            raise ValueError(f"{path} is damaged: a box, score or size of {image!r} is none")
    return pictures


def _is_triple(one: object) -> bool:
    return isinstance(one, list) and len(one) == 3 and isinstance(one[0], str)
