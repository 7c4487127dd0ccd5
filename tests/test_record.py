"""The run folder: whole files or none, damage found by its name, nothing unpickled."""

import io
import json
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delving import record


class Crash(BaseException):
    """The process ends here: not an Exception, so that nothing may swallow it."""


def make_tensors(value):
    return {
        "model": {"net.w": torch.full((2, 3), float(value)), "net.n": torch.tensor(value)},
        "optimizer": {"w": torch.full((2, 3), value / 2)},
    }


def save(folder, value):
    record.save_checkpoint(folder, make_tensors(value), {"step": value})


def value_of(loaded):
    """The value that a loaded checkpoint was made of, after checking that it is all of one kind."""
    tensors, state = loaded
    wanted = make_tensors(state["step"])
    assert {k: set(v) for k, v in tensors.items()} == {k: set(v) for k, v in wanted.items()}
    for part, entries in wanted.items():
        for name, tensor in entries.items():
            assert torch.equal(tensors[part][name], tensor)
            assert tensors[part][name].dtype == tensor.dtype
    return state["step"]


# --- files ---
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


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}"])
def test_unreadable_json_is_refused_by_its_path(tmp_path, content):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"result\.json"):
        record.read_json(tmp_path / "result.json")


# --- checkpoints ---
def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    assert record.load_checkpoint(tmp_path) is None
    save(tmp_path, 1)
    assert value_of(record.load_checkpoint(tmp_path)) == 1
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert value_of(record.load_checkpoint(tmp_path)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "checkpoint.previous"]


def test_a_checkpoint_is_safetensors_json_and_a_manifest_of_all(tmp_path):
    save(tmp_path, 1)
    names = {p.name for p in (tmp_path / "checkpoint").iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    manifest = record.read_json(tmp_path / "checkpoint" / "manifest.json")
    assert set(manifest) == names - {"manifest.json"}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(file=st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json"]),
       place=st.integers(0, 10_000), mask=st.integers(1, 255))  # fmt: skip
def test_a_flipped_byte_is_found_and_the_checkpoint_before_is_used(
    tmp_path_factory, file, place, mask
):
    folder = tmp_path_factory.mktemp("run")
    save(folder, 1)
    save(folder, 2)
    path = folder / "checkpoint" / file
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= mask
    path.write_bytes(data)
    assert value_of(record.load_checkpoint(folder)) == 1


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_a_lost_file_is_found_and_the_checkpoint_before_is_used(tmp_path, file):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "checkpoint" / file).unlink()
    assert value_of(record.load_checkpoint(tmp_path)) == 1


def test_where_every_checkpoint_is_damaged_each_fault_is_named(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "checkpoint" / "state.json").write_text("{}")
    (tmp_path / "checkpoint.previous" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint") as refusal:
        record.load_checkpoint(tmp_path)
    for named in ("checkpoint/state.json", "checkpoint.previous/model.safetensors"):
        assert named in str(refusal.value)


def crash_at(monkeypatch, owner, name, call):
    """The `call`-th call of owner.name ends the process before it does anything."""
    real, calls = getattr(owner, name), []

    def crashing(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == call:
            raise Crash
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, crashing)
    return calls


CALLS = [(os, "replace", n) for n in range(1, 7)] + [(os, "fsync", n) for n in range(1, 5)]
CALLS += [(record.shutil, "rmtree", n) for n in (1, 2)]


@pytest.mark.parametrize(("owner", "name", "call"), CALLS, ids=[f"{c[1]}{c[2]}" for c in CALLS])
def test_a_crash_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path, owner, name, call):
    save(tmp_path, 1)
    save(tmp_path, 2)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, owner, name, call)
        with pytest.raises(Crash):
            save(tmp_path, 3)
    assert value_of(record.load_checkpoint(tmp_path)) in (2, 3)
    save(tmp_path, 4)
    assert value_of(record.load_checkpoint(tmp_path)) == 4


def test_saving_makes_no_more_renames_than_are_tried_above(tmp_path, monkeypatch):
    save(tmp_path, 1)
    renames = crash_at(monkeypatch, os, "replace", -1)
    save(tmp_path, 2)
    assert len(renames) == max(call for _, name, call in CALLS if name == "replace")


@pytest.mark.parametrize("call", range(1, 6))
def test_a_crash_in_the_very_first_saving_means_to_start_anew(tmp_path, monkeypatch, call):
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, os, "replace", call)
        with pytest.raises(Crash):
            save(tmp_path, 1)
    loaded = record.load_checkpoint(tmp_path)
    assert loaded is None or value_of(loaded) == 1
    save(tmp_path, 2)
    assert value_of(record.load_checkpoint(tmp_path)) == 2


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
    record.truncate_log(log, 10)
    record.append_event(log, {"event": "step", "step": 1})
    size = log.stat().st_size
    record.append_event(log, {"event": "step", "step": 2})
    record.truncate_log(log, size)
    assert [e["step"] for e in record.read_events(tmp_path, "step")] == [1]
    record.truncate_log(log, 10 * size)
    assert log.stat().st_size == size


# --- finding runs ---
def make_run(root, scale, name):
    folder = record.run_folder(str(root), scale, name)
    record.write_text(folder / "config.yaml", "seed: 0\n")
    return folder


def test_a_run_is_found_by_name_and_by_folder(tmp_path):
    folder = make_run(tmp_path, "smoke", "small14-prelu-he-s0")
    assert folder == tmp_path / "smoke" / "runs" / "small14-prelu-he-s0"
    assert record.find_run("small14-prelu-he-s0", str(tmp_path)) == folder
    assert record.find_run(str(folder), "nowhere") == folder


def test_a_run_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"'b-s0'.*none"):
        record.find_run("b-s0", str(tmp_path))
    make_run(tmp_path, "smoke", "a-s0")
    with pytest.raises(ValueError, match=r"'b-s0'.*a-s0"):
        record.find_run("b-s0", str(tmp_path))


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


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_scores_with_a_pickle_inside_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = io.BytesIO()
    objects = np.empty(1, object)
    objects[0] = Bomb()
    np.savez(beside, probabilities=objects, labels=np.zeros(1, int), names=np.array(["a"]))
    record.write_bytes(tmp_path / "eval" / "center.npz", beside.getvalue())
    with pytest.raises(ValueError, match="pickle"):
        record.load_scores(tmp_path, "center")
    assert not (tmp_path / "unpickled").exists()


def test_a_checkpoint_that_is_a_pickle_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, 1)
    data = pickle.dumps(Bomb())
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        record.load_checkpoint(tmp_path)
    assert not (tmp_path / "unpickled").exists()


def test_state_is_plain_json(tmp_path):
    record.save_checkpoint(tmp_path, {}, {"best": float("inf"), "pending": [[1.0, 2.0]]})
    _, state = record.load_checkpoint(tmp_path)
    assert state == {"best": float("inf"), "pending": [[1.0, 2.0]]}
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text()) == state
