"""Every layout that a data set comes in, and what is said where it is missing."""

import csv
import dataclasses
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import encode, shared, smooth_pixels, write_file, write_folder

from delving.data import fingerprint, load_data, prepare_data
from delving.data.labels import CLASSES
from delving.data.sources import SIZES, SOURCES, find_folder, find_imagenet, find_tiny_imagenet
from delving.groups import choices

PICTURE = encode(smooth_pixels(12, 10), "JPEG")


def load(name, root, *, classes=None, train_images=None, val_images=None, output_root="unused"):
    return load_data(name, root, classes=classes, train_images=train_images,
                     val_images=val_images, output_root=output_root)  # fmt: skip


# --- class folders ---
def test_class_folders_become_two_splits_with_the_same_labels(tmp_path):
    train, val = find_folder(write_folder(tmp_path, train=3, val=2, classes=("b", "a", "c")))
    assert train.classes == val.classes == ["a", "b", "c"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.names[0] == "train/a/0.JPEG"
    assert val.load(3).size == (40, 48)


def test_other_files_and_any_case_of_an_ending_are_no_trouble(tmp_path):
    write_folder(tmp_path)
    write_file(tmp_path / "train" / "cat" / "notes.txt", b"x")
    write_file(tmp_path / "train" / "README", b"x")
    write_file(tmp_path / "train" / "cat" / "deeper" / "X.PnG", PICTURE)
    train, _ = find_folder(tmp_path)
    assert [n for n in train.names if "cat" in n] == [
        *(f"train/cat/{n}.JPEG" for n in range(4)), "train/cat/deeper/X.PnG",
    ]  # fmt: skip


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_refused_with_what_lies_there(tmp_path, split):
    write_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / "other")
    with pytest.raises(ValueError, match=rf"no folder {split}/ .*other"):
        find_folder(tmp_path)


def test_a_class_folder_without_images_is_refused_by_its_name(tmp_path):
    write_folder(tmp_path)
    write_file(tmp_path / "train" / "eel" / "notes.txt", b"x")
    with pytest.raises(ValueError, match=r"train/eel: a class folder without images"):
        find_folder(tmp_path)


def test_a_validation_class_that_training_lacks_is_refused_by_its_name(tmp_path):
    write_folder(tmp_path)
    write_file(tmp_path / "val" / "eel" / "1.jpg", PICTURE)
    with pytest.raises(ValueError, match="train lacks: eel"):
        find_folder(tmp_path)


def test_validation_may_hold_fewer_classes(tmp_path):
    write_folder(tmp_path, classes=("a", "b", "c"))
    for path in (tmp_path / "val" / "b").iterdir():
        path.unlink()
    (tmp_path / "val" / "b").rmdir()
    _, val = find_folder(tmp_path)
    assert val.labels.tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_class_folders_is_refused(tmp_path, split):
    write_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / "other")
    (tmp_path / split).mkdir()
    with pytest.raises(ValueError, match=f"no images in {split}/"):
        find_folder(tmp_path)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100),
                                               ("imagenette", 10)])  # fmt: skip
def test_a_folder_of_other_classes_does_not_pass_for_a_known_data_set(tmp_path, name, classes):
    """Else its net would be shown, and its work estimated, for classes that are not there."""
    root = write_folder(tmp_path, train=1, val=1, side=8)
    with pytest.raises(ValueError, match=rf"2 classes, but data={name} has {classes}; data=folder"):
        load(name, str(root))
    write_folder(tmp_path, train=1, val=1, side=8, classes=[f"k{n}" for n in range(classes - 2)])
    with pytest.raises(ValueError, match=rf"(cat|k0) is no class of data={name} \(.*; data=folder"):
        load(name, str(root))
    assert len(load("folder", str(root))[0].classes) == classes


@pytest.mark.parametrize(("name", "way"), [(n, w) for n in CLASSES for w in range(len(CLASSES[n]))])
def test_a_known_data_set_goes_by_the_names_of_its_classes_or_their_numbers(tmp_path, name, way):
    names = CLASSES[name][way].split()
    root = write_folder(tmp_path, train=1, val=1, side=32, taller=0, classes=names)
    assert load(name, str(root))[0].classes == sorted(names)
    assert len(names) == len(set(names)) == SIZES[name][0]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pictures_of_another_size_do_not_pass_for_cifar(tmp_path, name):
    """MNIST's class folders too are named 0 to 9."""
    names = [str(n) for n in range(SIZES[name][0])]
    root = write_folder(tmp_path, train=1, val=1, side=28, taller=0, classes=names)
    told = rf"train/0/0.JPEG is 28 x 28, pictures of data={name} are 32 x 32; data=folder takes any"
    with pytest.raises(ValueError, match=told):
        load(name, str(root))
    assert len(load("folder", str(root))[0]) == len(names)
    write_file(root / "train" / "0" / "0.JPEG", b"no picture")  # which training counts
    assert load(name, str(root))[0].classes == sorted(names)


# --- Tiny ImageNet ---
WNIDS = ("n01", "n02", "n03")


def tiny_files(numbers=range(4)):
    """{name below tiny-imagenet-200/: bytes}, the official layout's training part in miniature."""
    files = {
        f"train/{wnid}/images/{wnid}_{n}.JPEG": PICTURE for wnid in WNIDS for n in numbers
    }  # fmt: skip
    files |= {f"train/{wnid}/{wnid}_boxes.txt": b"0 0 9 9\n" for wnid in WNIDS}
    return files


def tiny_val():
    files = {f"val/images/val_{n}.JPEG": PICTURE for n in range(5)}
    rows = [f"val_{n}.JPEG\t{WNIDS[n % 3]}\t0\t0\t9\t9\n" for n in range(5)]
    words = "n01\tgoldfish, Carassius auratus\nn03\tbullfrog\nn99\tother\n"
    return files | {
        "val/val_annotations.txt": "".join(rows).encode(),
        "words.txt": words.encode(),
        "wnids.txt": "\n".join(WNIDS).encode(),
        "test/images/test_0.JPEG": PICTURE,
    }


def write_zip(path, files, top="tiny-imagenet-200/"):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(top + name, data)
    return path


def lay_out(folder, layout):
    """The same miniature in each of the layouts; returns the root to give."""
    everything = tiny_files() | tiny_val()
    if layout == "one zip":
        return write_zip(folder / "tiny-imagenet-200.zip", everything)
    if layout == "folder of one zip":
        write_zip(folder / "t.zip", everything)
    elif layout == "partial zips":
        write_zip(folder / "train-0.zip", tiny_files(range(2)))
        write_zip(folder / "train-1.zip", tiny_files(range(2, 4)))
        write_zip(folder / "val.zip", tiny_val())
    else:
        inside = folder if layout == "unpacked" else folder / "tiny-imagenet-200"
        for name, data in everything.items():
            write_file(inside / name, data)
    return folder


LAYOUTS = ["one zip", "folder of one zip", "partial zips", "unpacked", "unpacked below"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiny_imagenet_is_the_same_in_every_layout(tmp_path, layout):
    train, val = find_tiny_imagenet(lay_out(tmp_path, layout))
    assert train.classes == val.classes == list(WNIDS)
    assert train.titles == ["goldfish", "n02", "bullfrog"]
    assert Counter(train.labels.tolist()) == {0: 4, 1: 4, 2: 4}
    assert dict(zip(val.names, val.labels.tolist(), strict=True)) == {
        f"val/images/val_{n}.JPEG": n % 3 for n in range(5)
    }
    assert train.load(5).size == val.load(4).size == (12, 10)


def test_the_layout_changes_neither_order_nor_fingerprint(tmp_path):
    prints = set()
    for layout in LAYOUTS:
        (tmp_path / layout).mkdir()
        prints.add(fingerprint(*find_tiny_imagenet(lay_out(tmp_path / layout, layout))))
    assert len(prints) == 1


@pytest.mark.parametrize("layout", ["unpacked", "unpacked below"])
def test_files_beside_tiny_imagenet_change_nothing(tmp_path, layout):
    before = fingerprint(*find_tiny_imagenet(lay_out(tmp_path, layout)))
    write_zip(tmp_path / "holiday.zip", {"beach.jpg": PICTURE}, top="")
    write_file(tmp_path / "half-downloaded.zip", b"PK")
    assert fingerprint(*find_tiny_imagenet(tmp_path)) == before


@pytest.mark.parametrize("layout", ["partial zips", "unpacked"])
def test_a_picture_beside_the_class_folders_is_no_class(tmp_path, layout):
    before = fingerprint(*find_tiny_imagenet(lay_out(tmp_path, layout)))
    if layout == "unpacked":
        write_file(tmp_path / "train" / "sheet.jpg", PICTURE)
    else:
        write_zip(tmp_path / "more.zip", {"train/sheet.jpg": PICTURE})
    assert fingerprint(*find_tiny_imagenet(tmp_path)) == before


def test_what_lies_in_place_of_tiny_imagenet_is_told(tmp_path):
    write_file(tmp_path / "notes.txt", b"x")
    with pytest.raises(ValueError, match=r"not Tiny ImageNet \(there is notes\.txt\)"):
        find_tiny_imagenet(tmp_path)


def test_fewer_images_or_other_labels_are_other_data(tmp_path):
    train, val = find_tiny_imagenet(lay_out(tmp_path, "one zip"))
    fewer = train.take(np.arange(len(train) - 1))
    assert fingerprint(fewer, val) != fingerprint(train, val)
    relabelled = type(val)(val.names, (val.labels + 1) % 3, val.classes, val.titles, val.read)
    assert fingerprint(train, relabelled) != fingerprint(train, val)


def test_a_broken_zip_is_refused_by_its_name(tmp_path):
    lay_out(tmp_path, "partial zips")
    whole = (tmp_path / "train-1.zip").read_bytes()
    (tmp_path / "train-1.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-1\.zip: not a zip, or a broken one"):
        find_tiny_imagenet(tmp_path)


@pytest.mark.parametrize("lost", ["val.zip", "train-0.zip train-1.zip"])
def test_missing_parts_of_tiny_imagenet_are_named(tmp_path, lost):
    lay_out(tmp_path, "partial zips")
    for name in lost.split():
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"val_annotations\.txt|no images in train/"):
        find_tiny_imagenet(tmp_path)


def test_a_zip_that_is_something_else_is_refused(tmp_path):
    path = write_zip(tmp_path / "other.zip", {"readme.txt": b"x"}, top="")
    with pytest.raises(ValueError, match="not Tiny ImageNet"):
        find_tiny_imagenet(path)


def test_real_tiny_imagenet_has_what_its_readme_says():
    train, val = find_tiny_imagenet(shared("tiny-imagenet-200"))
    assert len(train.classes) == 200
    assert len(val) == 10_000
    assert set(Counter(train.labels.tolist()).values()) == {250}
    assert set(Counter(val.labels.tolist()).values()) == {50}
    assert train.titles[train.classes.index("n01443537")] == "goldfish"
    for images in (train, val):
        for index in range(0, len(images), len(images) // 50):
            assert images.load(index).size == images.size(index) == (64, 64)


# --- ImageNet ---
def flat_imagenet(root, count=4):
    for wnid in WNIDS:
        write_file(root / "train" / wnid / f"{wnid}_1.JPEG", PICTURE)
    for n in range(1, count + 1):
        write_file(root / "val" / f"ILSVRC2012_val_{n:08d}.JPEG", PICTURE)
    return {f"val/ILSVRC2012_val_{n:08d}.JPEG": n % 3 for n in range(1, count + 1)}


def found_labels(images):
    return dict(zip(images.names, images.labels.tolist(), strict=True))


def test_imagenet_with_class_folders_is_like_any_folder(tmp_path):
    write_folder(tmp_path, classes=WNIDS)
    for ours, theirs in zip(find_imagenet(tmp_path), find_folder(tmp_path), strict=True):
        assert (ours.names, ours.classes) == (theirs.names, theirs.classes)


def write_solution(path, truth):
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "PredictionString"])
        for name, label in truth.items():
            wnid = WNIDS[label]
            stem = name.removeprefix("val/").removesuffix(".JPEG")
            rows.writerow([stem, f"{wnid} 1 2 3 4 {wnid} 5 6 7 8 "])


@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
def test_flat_validation_images_take_their_classes_from_the_solution_file(tmp_path, below):
    truth = flat_imagenet(tmp_path / below)
    write_solution(tmp_path / "LOC_val_solution.csv", truth)
    train, val = find_imagenet(tmp_path)
    assert train.classes == list(WNIDS)
    assert found_labels(val) == truth
    assert val.load(0).size == (12, 10)


def test_validation_images_sorted_into_class_folders_are_the_same_split_as_flat(tmp_path):
    """Else a run could be neither continued nor scored with the other layout."""
    flat, folders = tmp_path / "flat", tmp_path / "folders"
    truth = flat_imagenet(flat, count=7)
    write_solution(flat / "LOC_val_solution.csv", truth)
    shutil.copytree(flat / "train", folders / "train")
    for name, label in truth.items():
        write_file(folders / "val" / WNIDS[label] / name.removeprefix("val/"), PICTURE)
    (train, val), (_, ours) = find_imagenet(flat), find_imagenet(folders)
    assert (ours.ids, ours.labels.tolist()) == (val.names, val.labels.tolist())
    assert fingerprint(train, ours) == fingerprint(train, val)
    assert ours.load(0).size == val.load(0).size
    swapped = dataclasses.replace(ours, labels=ours.labels[::-1].copy())
    assert fingerprint(train, swapped) != fingerprint(train, val)


def test_flat_validation_images_take_their_classes_from_the_devkit(tmp_path):
    from scipy import io

    truth = flat_imagenet(tmp_path)
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    # ILSVRC ids in an order other than the WordNet ids', and one synset that is not a class
    ids = {"n02": 1, "n03": 2, "n01": 3, "n77": 4}
    kinds = [("ILSVRC2012_ID", float), ("WNID", object), ("words", object)]
    named = [(i, wnid, f"name of {wnid}, another") for wnid, i in ids.items()]
    synsets = np.array(named, dtype=kinds)
    io.savemat(data / "meta.mat", {"synsets": synsets[:, None]})
    lines = [f"{ids[WNIDS[label]]}\n" for label in truth.values()]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines))
    _, val = find_imagenet(tmp_path)
    assert found_labels(val) == truth
    assert val.titles == [f"name of {wnid}" for wnid in WNIDS]


def test_validation_images_that_lack_are_told_since_errors_are_of_all_of_them(tmp_path):
    write_solution(tmp_path / "LOC_val_solution.csv", flat_imagenet(tmp_path))
    (tmp_path / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(ValueError, match="1 images are missing, ILSVRC2012_val_00000003 first"):
        find_imagenet(tmp_path)


def test_other_programs_folders_do_not_hide_flat_validation_images(tmp_path):
    write_solution(tmp_path / "LOC_val_solution.csv", flat_imagenet(tmp_path))
    (tmp_path / "val" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG").rename(
        tmp_path / "val" / "ILSVRC2012_val_00000001.jpg"
    )
    assert len(find_imagenet(tmp_path)[1]) == 4


def test_a_solution_file_that_excel_saved_or_that_lies_above_is_read(tmp_path, monkeypatch):
    truth, path = flat_imagenet(tmp_path / "in"), tmp_path / "LOC_val_solution.csv"
    write_solution(path, truth)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    monkeypatch.chdir(tmp_path / "in")
    assert found_labels(find_imagenet(Path())[1]) == truth


def test_a_solution_file_that_begins_with_a_blank_line_is_read(tmp_path):
    truth, path = flat_imagenet(tmp_path), tmp_path / "LOC_val_solution.csv"
    write_solution(path, truth)
    path.write_bytes(b"\r\n" + path.read_bytes())
    assert found_labels(find_imagenet(tmp_path)[1]) == truth


@pytest.mark.parametrize("linked", ["ILSVRC", "ILSVRC/Data/CLS-LOC", ""])
def test_a_solution_file_above_a_link_to_kaggles_folder_is_read(tmp_path, linked):
    inside = Path("ILSVRC/Data/CLS-LOC")
    truth = flat_imagenet(tmp_path / "disk" / inside.relative_to(linked))
    link = tmp_path / "kaggle" / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "disk")
    write_solution(tmp_path / "kaggle" / "LOC_val_solution.csv", truth)
    for root in (tmp_path / "kaggle", tmp_path / "kaggle" / inside):
        assert found_labels(find_imagenet(root)[1]) == truth


@pytest.mark.parametrize(
    ("name", "between"), [("LOC_synset_mapping.txt", " "), ("words.txt", "\t")]
)
def test_classes_are_called_by_their_first_name_where_a_file_tells(tmp_path, name, between):
    write_folder(tmp_path, classes=WNIDS)
    told = "".join(f"{wnid}{between}name of {wnid}, another\n" for wnid in WNIDS)
    write_file(tmp_path / name, told.encode())
    for images in find_imagenet(tmp_path):
        assert images.titles == [f"name of {wnid}" for wnid in WNIDS]


@pytest.mark.parametrize("name", ["words.txt", "LOC_synset_mapping.txt"])
def test_what_only_looks_like_a_list_of_names_is_none(tmp_path, name):
    write_folder(tmp_path, classes=WNIDS)
    write_file(tmp_path / name, b"hello\xff\n")
    (tmp_path / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    assert find_imagenet(tmp_path)[1].titles == list(WNIDS)


def test_one_bad_list_of_names_does_not_hide_the_next(tmp_path):
    write_folder(tmp_path, classes=WNIDS)
    write_file(tmp_path / "LOC_synset_mapping.txt", b"hello\n")
    write_file(tmp_path / "words.txt", b"n01\tgoldfish, Carassius auratus\n")
    assert find_imagenet(tmp_path)[1].titles == ["goldfish", "n02", "n03"]


def test_flat_validation_images_without_any_truth_are_refused(tmp_path):
    flat_imagenet(tmp_path)
    with pytest.raises(ValueError, match=r"devkit.*LOC_val_solution\.csv"):
        find_imagenet(tmp_path)


def test_a_hundred_real_full_size_images_all_decode(tmp_path):
    archive = shared("imagenet_sample_100.zip")
    with zipfile.ZipFile(archive) as sample:
        sample.extractall(tmp_path)
    (tmp_path / "train").symlink_to(tmp_path / "val")
    _, val = find_imagenet(tmp_path)
    assert len(val) == len(val.classes) == 100
    for index in range(100):
        image = val.load(index)
        assert image.mode == "RGB"
        assert image.size == val.size(index)


# --- load_data ---
def test_every_data_set_of_conf_has_a_source_and_every_source_a_conf_file():
    assert sorted(SOURCES) == sorted(choices("data"))


def test_an_unknown_data_set_is_refused_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"data=imagnet: choose from .*tiny_imagenet"):
        load("imagnet", str(tmp_path))


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"shapes"}))
def test_a_data_set_without_a_root_is_refused_with_what_to_write(name):
    with pytest.raises(ValueError, match=rf"data={name} needs data\.root="):
        load(name, None)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_root_that_is_not_there_is_refused_by_its_path(tmp_path, name):
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere: there is no such"):
        load(name, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_an_empty_root_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"data\.root="):
        load(name, str(tmp_path))


def test_what_other_programs_hide_in_a_folder_is_no_class_and_no_image(tmp_path):
    root = write_folder(tmp_path)
    before = fingerprint(*load("folder", str(root)))
    for name in (".ipynb_checkpoints/cat.jpg", "cat/._0.JPEG", "cat/.thumbs/0.jpg"):
        write_file(root / "train" / name, b"no image")
    assert fingerprint(*load("folder", str(root))) == before


def test_limits_apply_to_both_splits(tmp_path):
    root = str(write_folder(tmp_path, classes=("a", "b", "c")))
    train, val = load("folder", root, classes=2, train_images=5, val_images=2)
    assert (len(train), len(val), train.classes, val.classes) == (5, 2, ["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="classes=4"):
        load("folder", root, classes=4)
    with pytest.raises(ValueError, match=r"data\.val_images=99: these 3 classes have"):
        load("folder", root, val_images=99)


def test_shapes_need_no_root_and_are_generated_once(tmp_path):
    limits = {"classes": 2, "train_images": 4, "val_images": 2, "output_root": str(tmp_path)}
    train, val = load("shapes", None, **limits)
    assert (len(train), len(val), len(train.classes)) == (4, 2, 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    again = load("shapes", None, **limits)
    assert fingerprint(*again) == fingerprint(train, val)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenette"])
def test_a_download_needs_a_root_to_go_to(name):
    with pytest.raises(ValueError, match=rf"data={name} needs data\.root="):
        prepare_data(name, None)
