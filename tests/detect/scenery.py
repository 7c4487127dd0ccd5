"""Small annotated images in VOC's layout, each made in one line."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from delving.detect.metric import Detections, Objects
from delving.detect.voc import load_split

NAMES = ("cat", "dog", "cow")


def things(*rows):
    """Objects from rows (label, box) or (label, box, difficult)."""
    rows = [(*row, False)[:3] for row in rows]
    boxes = np.array([box for _, box, _ in rows], np.float64).reshape(-1, 4)
    labels = np.array([label for label, _, _ in rows], np.int64)
    return Objects(boxes, labels, np.array([hard for _, _, hard in rows], bool))


def finds(*rows):
    """Detections from rows (image, label, score, box)."""
    boxes = np.array([row[3] for row in rows], np.float32).reshape(-1, 4)
    image, label = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    return Detections(image, label, np.array([row[2] for row in rows], np.float32), boxes)


def object_xml(name, box, difficult=0):
    """`box` as VOC writes it: xmin, ymin, xmax, ymax, from 1, the last pixel included."""
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in sides)
    return (f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{difficult}</difficult><bndbox>{inside}</bndbox></object>")  # fmt: skip


def annotation_xml(size, *objects):
    """An annotation in VOC 2007's form around the given objects' XML."""
    sides = f"<width>{size[0]}</width><height>{size[1]}</height><depth>3</depth>"
    return (f"<annotation>\n<folder>VOC2007</folder><filename>1.jpg</filename>"
            f"<size>{sides}</size><segmented>0</segmented>\n{''.join(objects)}</annotation>\n"
            ).encode()  # fmt: skip


def jpeg(size, seed=0, quality=95):
    """A JPEG of slow waves of colour, which survive compression and resizing."""
    y, x = np.mgrid[: size[1], : size[0]] / max(size)
    a, b, phase = np.random.default_rng(seed).uniform(-4, 4, (3, 3))
    pixels = 127 + 100 * np.sin(x[..., None] * a + y[..., None] * b + phase)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def voc_files(images, split="trainval"):
    """{name: bytes} below VOC2007 for images {id: (size, [(label, box, difficult)])} whose boxes
    are half-open from 0."""
    files = {f"ImageSets/Main/{split}.txt": "".join(f"{n}\n" for n in images).encode()}
    for seed, (number, (size, rows)) in enumerate(images.items()):
        objects = [object_xml(NAMES[label], (box[0] + 1, box[1] + 1, box[2], box[3]), int(*hard))
                   for label, box, *hard in rows]  # fmt: skip
        files[f"Annotations/{number}.xml"] = annotation_xml(size, *objects)
        files[f"JPEGImages/{number}.jpg"] = jpeg(size, seed)
    return files


def reader(files):
    def read(name):
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    return read


def split_of(*images):
    """A Split of images (size, [(label, box, difficult)]) that are named 0, 1, ..."""
    return load_split(reader(voc_files(dict(zip(map(str, range(99)), images, strict=False)))),
                      "trainval", NAMES)  # fmt: skip


def write_files(root, files):
    for name, data in files.items():
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"VOCdevkit/VOC2007/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
