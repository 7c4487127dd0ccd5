"""Generated scenes: reproducible, in VOC's layout, with boxes around what was drawn."""

import re

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import VOCDetection

from delving.data.shapes import TEXTURES
from delving.detect import scenes as module
from delving.detect.scenes import MARKER, RADIUS, SHORT, draw_scene, write_scenes
from delving.detect.voc import find_voc, load_split

SMALL = {"classes": 4, "train_images": 5, "test_images": 3}


def read_files(root):
    """{name: bytes} of all images and annotations."""
    return {path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*")) if path.suffix in (".jpg", ".xml")}  # fmt: skip


# --- the folder ---
def test_the_same_request_writes_the_same_bytes(tmp_path):
    first, again = (write_scenes(tmp_path / name, **SMALL) for name in ("first", "again"))
    assert read_files(first) == read_files(again)
    assert len(read_files(first)) == 2 * 8


def test_a_larger_set_contains_the_smaller(scenes, tmp_path):
    small = read_files(write_scenes(tmp_path / "small", **SMALL))
    assert small.items() < read_files(scenes).items()
    assert len(set(small.values())) == len(small)


def test_other_classes_are_drawn_otherwise(scenes, tmp_path):
    """A scene depends on the number of classes too."""
    fewer = write_scenes(tmp_path / "fewer", **(SMALL | {"classes": 2}))
    _, found = (load_split(find_voc(fewer), name, list(TEXTURES)[:2])
                for name in ("trainval", "test"))  # fmt: skip
    assert len(found) == 3
    assert read_files(fewer).keys() < read_files(scenes).keys()


def test_both_splits_are_read_as_voc_is(drawn):
    assert [len(split) for split in drawn] == [24, 12]
    for split in drawn:
        for number in range(len(split)):
            image = split.load(number)  # refuses a size other than the annotation's
            assert SHORT <= min(image.size) <= 112
            assert max(image.size) <= 4 / 3 * min(image.size)
            assert len(split.objects[number].boxes) <= 4
    assert len(set(drawn[0].ids + drawn[1].ids)) == 36


def test_every_class_occurs_in_both_splits_and_some_objects_are_difficult(drawn):
    for split in drawn:
        labels = np.concatenate([one.labels for one in split.objects])
        hard = np.concatenate([one.difficult for one in split.objects])
        assert set(labels.tolist()) == {0, 1, 2, 3}
        assert 0 < hard.mean() < 0.5
    assert any(len(one.boxes) > 1 for one in drawn[0].objects)


def test_torchvision_reads_the_same(scenes, drawn):
    for name, split in zip(("trainval", "test"), drawn, strict=True):
        theirs = VOCDetection(scenes.parent, year="2007", image_set=name, download=False)
        assert len(theirs) == len(split)
        for number, (image, tree) in enumerate(theirs):
            about, ours = tree["annotation"], split.objects[number]
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(split.load(number)))
            assert about["filename"] == f"{split.ids[number]}.jpg"
            rows = about.get("object", [])
            boxes = [[int(row["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")]
                     for row in rows]  # fmt: skip
            assert boxes == [[x1 + 1, y1 + 1, x2, y2] for x1, y1, x2, y2 in ours.boxes]
            assert [row["name"] for row in rows] == [split.classes[c] for c in ours.labels]
            assert [row["difficult"] == "1" for row in rows] == ours.difficult.tolist()


def test_a_finished_set_is_not_drawn_again(tmp_path, monkeypatch):
    root = write_scenes(tmp_path / "set", **SMALL)
    monkeypatch.setattr(module, "draw_scene", None)
    assert write_scenes(root, **SMALL) == root


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def draw_then_stop(names, rng):
        calls.append(names)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw_scene(names, rng)

    monkeypatch.setattr(module, "draw_scene", draw_then_stop)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_set_is_refused_by_what_is_in_it(tmp_path):
    root = write_scenes(tmp_path / "set", **SMALL)
    before = read_files(root)
    for change in ({"classes": 5}, {"train_images": 6}, {"test_images": 2}):
        with pytest.raises(ValueError, match=r"holds .*'classes': 4.*asked for"):
            write_scenes(root, **(SMALL | change))
    assert read_files(root) == before


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="no finished shapes_voc set"):
        write_scenes(tmp_path, **SMALL)
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(ValueError, match=re.escape(MARKER) + " is damaged"):
        write_scenes(tmp_path, **SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("classes", [-1, 0, 1, len(TEXTURES) + 1])
def test_a_wrong_number_of_classes_is_refused(classes, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"classes={classes}: choose 2 to")):
        write_scenes(tmp_path / "set", **(SMALL | {"classes": classes}))
    assert list(tmp_path.iterdir()) == []


# --- a scene ---
@pytest.fixture
def bare(monkeypatch):
    """Scenes without clutter, light and noise. Each object has a colour of its own, from 100 on, on
    a ground darker than 10, so that pixels tell what is drawn where."""
    order = []

    def next_colour(rng):
        order.append(np.full((3, 1, 1), 100.0 * len(order) + 100, np.float32))
        return order[-1], order[-1]

    def draw(seed):
        order.clear()
        return draw_scene(list(TEXTURES), np.random.default_rng(seed))

    monkeypatch.setattr(module, "draw_colours", next_colour)
    monkeypatch.setattr(module, "draw_clutter", lambda *arguments, **options: [])
    monkeypatch.setattr(module, "expose", lambda image, grid, rng: image.transpose(1, 2, 0))
    return draw


@pytest.mark.parametrize("seed", range(12))
def test_a_box_is_just_around_what_is_seen_of_its_object(bare, seed):
    """Within a pixel: where one object ends on another, half of each may give a third's colour."""
    pixels, found = bare(seed)
    shade = pixels[..., 0]
    assert found  # an image has an object or more
    for number, one in enumerate(found):
        own = 100.0 * number + 100
        rows, columns = np.nonzero(abs(shade - own) < 1e-3)  # pixels of exactly its colour
        x1, y1, x2, y2 = one.box
        core = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert x1 <= core[0] <= x1 + 2
        assert y1 <= core[1] <= y1 + 2
        assert x2 - 2 <= core[2] <= x2
        assert y2 - 2 <= core[3] <= y2
    outside = np.ones(shade.shape, bool)
    for one in found:
        x1, y1, x2, y2 = one.box
        outside[y1:y2, x1:x2] = False
    assert (shade[outside] <= 10 + 0.5 * 100 * len(found)).all()  # half an edge at most


def test_objects_are_whole_and_of_their_size(bare):
    """In units of the shorter side / 75. A lopsided triangle is 4 times its radius wide."""
    counts = []
    for seed in range(40):
        pixels, found = bare(seed)
        height, width = pixels.shape[:2]
        unit = min(height, width) / SHORT
        counts.append(len(found))
        for one in found:
            x1, y1, x2, y2 = one.box
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert max(x2 - x1, y2 - y1) <= 4.5 * RADIUS[1] * unit
            assert one.difficult or min(x2 - x1, y2 - y1) >= 0.5 * RADIUS[0] * unit
    assert set(counts) == {1, 2, 3, 4}


def square(x1, y1, x2, y2, size=(30, 40)):
    mask = np.zeros(size, np.float32)
    mask[y1:y2, x1:x2] = 1
    return mask


def test_hidden_parts_are_outside_the_box_and_mostly_hidden_objects_are_difficult():
    """The second hides two columns of the first (10 x 10), and a thing in front two more rows: 64
    of 100 pixels are left. The second keeps 79 of 100, cut off below. The third is hidden."""
    covers = [("dots", square(0, 0, 10, 10)), ("rings", square(8, 0, 18, 10)),
              ("rays", square(20, 20, 24, 24))]  # fmt: skip
    front = [square(0, 8, 9, 10), square(19, 19, 30, 30), square(9, 8, 18, 9) * 0.4,
             square(9, 9, 18, 10), square(17, 0, 18, 9),
             square(12, 3, 13, 5)]  # fmt: skip
    found = module._outline(covers, front)
    assert [one.name for one in found] == ["dots", "rings"]
    assert found[0].box == (0, 0, 8, 8)
    assert found[1].box == (8, 0, 17, 9)
    assert [one.difficult for one in found] == [True, True]
    easy = module._outline(covers[1:2], [square(17, 0, 18, 10)])  # 90 of 100
    assert easy[0].box == (8, 0, 17, 10)
    assert not easy[0].difficult


def test_a_scene_depends_on_its_generator_alone():
    names = list(TEXTURES)
    first, again, other = (draw_scene(names, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert first[1] == again[1]
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])
    assert first[0].dtype == np.uint8
    assert Image.fromarray(first[0]).mode == "RGB"
