"""The run folder: whole files or none, damage found by its name, nothing unpickled."""

import errno
import io
import math
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from calling import killed_at

from delving import arrays, beside, record
from delving.beside import name_beside
from delving.exits import describe


# --- files ---
def test_a_log_that_is_no_file_is_refused_and_a_line_too_deep_left_out(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("[" * 200_000 + '\n{"event": "val", "epoch": 1}\n')
    assert [event["epoch"] for event in record.read_events(tmp_path, "val")] == [1]
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(ValueError, match=r"log\.jsonl is not readable: it is no regular file"):
        record.read_events(tmp_path, "val")


def test_a_file_appears_whole_with_its_folders_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a" / "b.json"
    record.write_json(path, {"x": [1, None]})
    record.write_json(path, {"x": [2]})
    assert record.read_json(path) == {"x": [2]}
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_a_write_that_fails_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    record.write_text(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        record.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_write_that_fails_names_the_file_and_not_the_one_beside_it(tmp_path, monkeypatch, name):
    def fail(*places):
        at = [str(place) for place in places if isinstance(place, Path)][:1]
        raise PermissionError(errno.EACCES, "Permission denied", *at)

    path = tmp_path / "figure.png"
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(PermissionError) as refusal:
        record.write_bytes(path, b"drawn")
    assert describe(refusal.value) == f"{path}: Permission denied"


def test_a_rename_that_fails_is_told_by_its_target(tmp_path):
    (tmp_path / "there").write_text("a file")
    (tmp_path / ".made.1").mkdir()
    with pytest.raises(NotADirectoryError) as refusal:
        os.replace(tmp_path / ".made.1", tmp_path / "there")
    assert describe(refusal.value) == f"{tmp_path / 'there'}: Not a directory"


def test_what_a_killed_process_had_not_finished_goes_with_the_next_that_writes_it(tmp_path):
    """Leftovers of other files, of living processes and of other machines' ones are not touched."""
    path = tmp_path / "data.csv"
    for place in (path, tmp_path / "b.csv"):
        killed_at(os, "replace", lambda place=place: record.write_text(place, "half"))
    name_beside(path).write_text("a living one's")
    (tmp_path / f".data.csv.{1:010}{2**30:010}{3:020}").write_text("another machine's")
    before = {p.name for p in tmp_path.iterdir()}
    record.write_text(path, "whole")
    [gone] = before - {p.name for p in tmp_path.iterdir()}
    assert gone.startswith(".data.csv.")
    assert path.read_text() == "whole"


def test_a_process_of_another_container_is_not_taken_for_a_dead_one(tmp_path, monkeypatch):
    """Two containers may both have their machine's name, yet not see each other's processes."""
    path = tmp_path / "data.csv"
    killed_at(os, "replace", lambda: record.write_text(path, "half"))
    monkeypatch.setattr(beside.os, "readlink", lambda place: "pid:[1]")
    record.write_text(path, "whole")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}"])
def test_unreadable_json_is_refused_by_its_path(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json"):
        record.read_json(tmp_path / "result.json")


def test_a_pipe_in_place_of_a_record_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(ValueError, match=r"result\.json.*no regular file"):
        record.read_json(tmp_path / "result.json")


NO_NUMBERS = ["1", None, True, [1], float("nan"), float("inf"), -float("inf"), 1e300, 10**400]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_a_value_that_is_no_number_of_a_size_that_can_be_is_refused_by_its_key(value):
    kinds = {"seconds": record.NUMBER}
    assert record.expect({"seconds": 1.5}, kinds, "a.json") == {"seconds": 1.5}
    with pytest.raises(ValueError, match=r"a\.json is damaged: seconds is"):
        record.expect({"seconds": value}, kinds, "a.json")


def test_only_a_key_that_may_be_infinite_is():
    best = {"best": float("inf")}
    assert record.expect(best, {"best": float}, "a.json", infinite=("best",)) == best


@pytest.mark.parametrize("slopes", ["0.25", 0.25, None, [], ["a"], [None], [float("nan")], [[1]]])
def test_slopes_that_are_none_are_refused_by_file_and_layer(tmp_path, slopes):
    record.save_slopes(tmp_path, {"conv1": np.array([0.25, 0.5])})
    assert record.load_slopes(tmp_path)["conv1"].tolist() == [0.25, 0.5]
    record.write_json(tmp_path / "slopes.json", {"conv1": [0.25], "conv2": slopes})
    with pytest.raises(ValueError, match=r"slopes\.json is damaged: conv2"):
        record.load_slopes(tmp_path)


# --- the log ---
def test_events_come_back_in_order_without_a_line_cut_off(tmp_path):
    assert record.read_events(tmp_path, "step") == []
    log = tmp_path / "log.jsonl"
    for step in (1, 2):
        record.append_event(log, {"event": "step", "step": step})
        record.append_event(log, {"event": "val", "step": step})
    with open(log, "a") as file:
        file.write('{"event": "step", "st')
    assert [e["step"] for e in record.read_events(tmp_path, "step")] == [1, 2]
    assert [e["event"] for e in record.read_events(tmp_path, "val")] == ["val", "val"]


def test_what_was_logged_after_the_checkpoint_is_taken_back(tmp_path):
    log = tmp_path / "log.jsonl"
    record.append_event(log, {"event": "step", "step": 1})
    size = log.stat().st_size
    record.append_event(log, {"event": "step", "step": 2})
    assert record.truncate_log(log, size) is None
    assert [e["step"] for e in record.read_events(tmp_path, "step")] == [1]


def test_a_log_that_lost_lines_says_so_and_goes_on_with_whole_ones(tmp_path):
    log = tmp_path / "log.jsonl"
    assert f"{log} lacks 10 bytes" in record.truncate_log(log, 10)
    for step in (1, 2):
        record.append_event(log, {"event": "step", "step": step})
    size = log.stat().st_size
    log.write_bytes(log.read_bytes()[:-5])
    assert f"{log} lacks 5 bytes" in record.truncate_log(log, size)
    record.append_event(log, {"event": "step", "step": 3})
    assert [e["step"] for e in record.read_events(tmp_path, "step")] == [1, 3]


@pytest.mark.parametrize("slope", [math.inf, -math.inf, math.nan])
def test_slopes_that_are_no_numbers_are_left_out_as_none_could_read_them(tmp_path, slope):
    record.save_slopes(tmp_path, {"conv1": np.array([0.25]), "conv2": np.array([0.5, slope])})
    assert record.load_slopes(tmp_path) == {}


# --- finding runs ---
def make_run(root, scale, name):
    folder = record.run_folder(str(root), scale, name)
    record.write_text(folder / "config.yaml", f"seed: 0\nscale: {scale}\n")
    return folder


def test_a_run_is_found_by_name_and_by_folder(tmp_path, monkeypatch):
    folder = make_run(tmp_path, "smoke", "small14-prelu-he-s0")
    assert folder == tmp_path / "smoke" / "runs" / "small14-prelu-he-s0"
    assert record.find_run("small14-prelu-he-s0", str(tmp_path)) == folder
    assert record.find_run(str(folder), "nowhere") == folder
    assert record.find_run(str(folder), "nowhere", folder.parents[1].name) == folder
    with pytest.raises(ValueError, match=r"is a run of scale=smoke, not of scale=paper"):
        record.find_run(str(folder), "nowhere", "paper")
    monkeypatch.chdir(folder.parent)
    assert record.find_run("../runs/small14-prelu-he-s0", "nowhere") == folder
    moved = folder.rename(tmp_path / "moved")
    assert record.find_run(str(moved), "nowhere", "smoke") == moved


def test_a_run_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"'b-s0'.*none"):
        record.find_run("b-s0", str(tmp_path))
    make_run(tmp_path, "smoke", "a-s0")
    with pytest.raises(ValueError, match=r"'b-s0'.*a-s0"):
        record.find_run("b-s0", str(tmp_path))


def test_a_run_is_found_from_a_working_directory_that_cannot_be_looked_at(tmp_path, monkeypatch):
    folder, real = make_run(tmp_path, "smoke", "a-s0"), os.stat

    def look(path, *arguments, **more):  # as for a user without rights, unlike root
        if not os.path.isabs(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", look)
    assert record.find_run("a-s0", str(tmp_path)) == folder


def test_a_name_at_two_scales_is_refused_with_both(tmp_path):
    for scale in ("smoke", "cpu"):
        make_run(tmp_path, scale, "a-s0")
    with pytest.raises(ValueError, match="ambiguous") as refusal:
        record.find_run("a-s0", str(tmp_path))
    assert "smoke/runs/a-s0" in str(refusal.value)
    assert "cpu/runs/a-s0" in str(refusal.value)


# --- scores ---
def test_scores_come_back_with_labels_and_names(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(7), 5).astype(np.float32)
    labels, names = np.array([0, 6, 2, 2, 1]), [f"val/ü/{i}.JPEG" for i in range(5)]
    record.save_scores(tmp_path, "dense@64", {"top1_err": 1.5}, probabilities=probabilities,
                       labels=labels, names=names)  # fmt: skip
    back, back_labels, back_names = record.load_scores(tmp_path, "dense@64")
    np.testing.assert_allclose(back, probabilities, rtol=5e-3, atol=1e-12)
    assert back.dtype == np.float32
    assert back_labels.tolist() == labels.tolist()
    assert back_names == names
    assert record.read_json(tmp_path / "eval" / "dense@64.json") == {"top1_err": 1.5}


LOGS = r"eval/center\.npz is no file of scores: log_probabilities: "


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_scores_with_a_pickle_inside_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = io.BytesIO()
    objects = np.empty(1, object)
    objects[0] = Bomb()
    np.savez(beside, log_probabilities=objects, labels=np.zeros(1, int), names=np.array(["a"]))
    record.write_bytes(tmp_path / "eval" / "center.npz", beside.getvalue())
    with pytest.raises(ValueError, match=f"{LOGS}it holds objects, not numbers or text$"):
        record.load_scores(tmp_path, "center")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("kind", ["a pickle", "an .npy file"])
def test_a_file_of_another_kind_is_refused_without_advice_to_unpickle_it(tmp_path, kind):
    beside = io.BytesIO()
    np.save(beside, np.empty(3))
    data = pickle.dumps([1]) if kind == "a pickle" else beside.getvalue()
    record.write_bytes(tmp_path / "eval" / "center.npz", data)
    with pytest.raises(ValueError, match=r"is no file of scores: File is not a zip file$"):
        record.load_scores(tmp_path, "center")


def scores_of(folder, method=zipfile.ZIP_DEFLATED, **header):
    """Scores that are an array of 100,000 zeros, or of what else its header says."""
    usual = {"descr": "<f4", "fortran_order": False, "shape": (100_000,)}
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, usual | header)
    beside = io.BytesIO()
    with zipfile.ZipFile(beside, "w", method) as file:
        file.writestr("log_probabilities.npy", array.getvalue() + bytes(400_000))
    record.write_bytes(folder / "eval" / "center.npz", beside.getvalue())


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        ({}, "400,128 bytes, more than 100,000"),
        ({"method": zipfile.ZIP_LZMA}, "neither stored nor deflated"),
        ({"descr": "<U0", "shape": (10**6,)}, "more items than bytes"),
    ],
)
def test_an_array_is_not_unpacked_without_bound(tmp_path, monkeypatch, made, fault):
    if not made:
        monkeypatch.setattr(arrays, "MOST", 100_000)
    scores_of(tmp_path, **made)
    with pytest.raises(ValueError, match=f"{LOGS}{fault}$"):
        record.load_scores(tmp_path, "center")


def test_scores_that_are_no_numbers_are_refused_with_their_file(tmp_path):
    probabilities = np.array([[0.5, 0.5], [np.nan, 0.5]], np.float32)
    record.save_scores(tmp_path, "center", {}, probabilities=probabilities,
                       labels=np.zeros(2, int), names=["a", "b"])  # fmt: skip
    with pytest.raises(ValueError, match=r"eval/center\.npz is no file of scores: .* \(NaN\)"):
        record.load_scores(tmp_path, "center")
