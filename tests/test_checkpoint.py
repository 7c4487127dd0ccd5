"""Checkpoints: at every moment a whole one exists; any damage is found and its file named."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from calling import Crash, killed_at
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from delving import checkpoint, record
from delving.build import load_momentum, load_weights
from delving.checkpoint import (
    check_room,
    drop_previous,
    load_checkpoint,
    save_checkpoint,
    settle,
)

FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


class Bomb:
    """Unpickled, it writes a file."""

    def __reduce__(self):
        return open, ("unpickled", "w")


def make_tensors(value):
    return {
        "model": {"net.w": torch.full((2, 3), float(value)), "net.n": torch.tensor(value)},
        "optimizer": {"w": torch.full((2, 3), value / 2)},
    }


def save(folder, value):
    save_checkpoint(folder, make_tensors(value), {"step": value})


def value_of(loaded):
    """The value that a loaded checkpoint was made of, after checking that every part has it."""
    tensors, state = loaded
    wanted = make_tensors(state["step"])
    assert {k: set(v) for k, v in tensors.items()} == {k: set(v) for k, v in wanted.items()}
    for part, entries in wanted.items():
        for name, tensor in entries.items():
            assert torch.equal(tensors[part][name], tensor)
            assert tensors[part][name].dtype == tensor.dtype
    return state["step"]


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    assert load_checkpoint(tmp_path) is None
    save(tmp_path, 1)
    assert value_of(load_checkpoint(tmp_path)) == 1
    save(tmp_path, 2)
    save(tmp_path, 3)
    assert value_of(load_checkpoint(tmp_path)) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "checkpoint.previous"]


def test_a_checkpoint_is_safetensors_json_and_a_manifest_of_all(tmp_path):
    save(tmp_path, 1)
    names = {p.name for p in (tmp_path / "checkpoint").iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    manifest = record.read_json(tmp_path / "checkpoint" / "manifest.json")
    assert set(manifest) == names - {"manifest.json"}


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.tally("a bit flipped in a checkpoint's file: found, named, the one before used", 100)
@settings(max_examples=100)
@given(file=st.sampled_from(FILES), bit=st.integers(0, 80_000))
def test_a_flipped_bit_is_found_and_named_and_the_checkpoint_before_is_used(
    tmp_path_factory, file, bit
):
    folder = tmp_path_factory.mktemp("run")
    save(folder, 1)
    save(folder, 2)
    flip(folder / "checkpoint" / file, bit)
    assert value_of(load_checkpoint(folder)) == 1
    [fault] = settle(folder)
    assert str(folder / "checkpoint") in fault
    assert "manifest" in fault or file in fault
    assert value_of(load_checkpoint(folder)) == 1


def test_a_damaged_checkpoint_is_set_aside_and_never_pushes_out_the_good_one(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    flip(tmp_path / "checkpoint" / "model.safetensors", 999)
    settle(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", "checkpoint.damaged"}
    save(tmp_path, 3)
    shutil.rmtree(tmp_path / "checkpoint")
    assert value_of(load_checkpoint(tmp_path)) == 1
    drop_previous(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_one_is_set_aside_though_a_newer_is_whole(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    flip(tmp_path / "checkpoint.previous" / "model.safetensors", 999)
    [fault] = settle(tmp_path)
    assert "checkpoint.previous" in fault
    assert fault.endswith("the newest is whole")
    assert value_of(load_checkpoint(tmp_path)) == 2


def test_a_new_one_takes_the_place_of_a_damaged_one_and_not_of_the_good_one_before(tmp_path):
    """The process was killed once the third was written, and the disk spoiled the second."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    save(tmp_path / "elsewhere", 3)
    os.replace(tmp_path / "elsewhere" / "checkpoint", tmp_path / "checkpoint.new")
    flip(tmp_path / "checkpoint" / "model.safetensors", 999)
    assert len(settle(tmp_path)) == 1
    assert value_of(load_checkpoint(tmp_path)) == 3
    shutil.rmtree(tmp_path / "checkpoint")
    assert value_of(load_checkpoint(tmp_path)) == 1


def test_of_what_was_set_aside_the_last_is_kept(tmp_path):
    save(tmp_path, 1)
    for value in (2, 3):
        save(tmp_path, value)
        flip(tmp_path / "checkpoint" / "model.safetensors", 999)
        assert len(settle(tmp_path)) == 1
    aside = record.read_json(tmp_path / "checkpoint.damaged" / "state.json")
    assert aside["step"] == 3
    assert value_of(load_checkpoint(tmp_path)) == 1


def test_a_checkpoint_that_the_disk_cannot_read_is_named_and_the_one_before_used(
    tmp_path, monkeypatch
):
    def unreadable(self):
        if self == tmp_path / "checkpoint" / "model.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return real(self)

    save(tmp_path, 1)
    save(tmp_path, 2)
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", unreadable)
    assert value_of(load_checkpoint(tmp_path)) == 1
    shutil.rmtree(tmp_path / "checkpoint.previous")
    with pytest.raises(ValueError, match="checkpoint cannot be read: Input/output error"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("number", "aside"), [(errno.EIO, True), (errno.EMFILE, False)])
def test_what_a_bad_disk_cannot_read_is_set_aside_and_what_passes_is_not(
    tmp_path, monkeypatch, number, aside
):
    def failing(path, *args):
        if path == tmp_path / "checkpoint" / "model.safetensors":
            raise OSError(number, os.strerror(number))
        return open(path, *args)

    save(tmp_path, 1)
    save(tmp_path, 2)
    monkeypatch.setattr(checkpoint, "open", failing, raising=False)
    with nullcontext() if aside else pytest.raises(OSError, match="Too many"):
        settle(tmp_path)
    assert (tmp_path / "checkpoint.damaged").exists() == aside


def test_where_nothing_is_whole_nothing_is_moved(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    for name in ("checkpoint", "checkpoint.previous"):
        flip(tmp_path / name / "state.json", 3)
    assert settle(tmp_path) == []
    with pytest.raises(ValueError, match=r"no whole checkpoint: .*Move .* away to begin anew"):
        load_checkpoint(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", "checkpoint.previous"}


def test_settling_a_sound_folder_changes_nothing(tmp_path):
    for value in (1, 2, 3):
        assert settle(tmp_path) == []
        save(tmp_path, value)
    assert settle(tmp_path) == []
    assert value_of(load_checkpoint(tmp_path)) == 3


def test_the_state_tells_which_weights_it_belongs_to(tmp_path):
    told = []
    for value in (1, 2, 1):
        save(tmp_path, value)
        told.append(load_checkpoint(tmp_path)[1]["weights"])
    assert told[0] == told[2] != told[1]


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_a_lost_file_is_found_and_the_checkpoint_before_is_used(tmp_path, file):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "checkpoint" / file).unlink()
    assert value_of(load_checkpoint(tmp_path)) == 1


def test_where_every_checkpoint_is_damaged_each_fault_is_named(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "checkpoint" / "state.json").write_text("{}")
    (tmp_path / "checkpoint.previous" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint") as refusal:
        load_checkpoint(tmp_path)
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


CALLS = [(os, "replace", n) for n in range(1, 8)] + [(os, "fsync", n) for n in range(1, 5)]
CALLS += [(checkpoint.shutil, "rmtree", n) for n in (1, 2, 3)]


@pytest.mark.parametrize(("owner", "name", "call"), CALLS, ids=[f"{c[1]}{c[2]}" for c in CALLS])
def test_a_crash_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path, owner, name, call):
    save(tmp_path, 1)
    save(tmp_path, 2)
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, owner, name, call)
        with pytest.raises(Crash):
            save(tmp_path, 3)
    assert value_of(load_checkpoint(tmp_path)) in (2, 3)
    settle(tmp_path)
    assert sum(p.name in ("checkpoint", "checkpoint.previous") for p in tmp_path.iterdir()) == 2
    save(tmp_path, 4)
    assert value_of(load_checkpoint(tmp_path)) == 4


def test_saving_makes_no_more_renames_than_are_tried_above(tmp_path, monkeypatch):
    save(tmp_path, 1)
    save(tmp_path, 2)
    renames = crash_at(monkeypatch, os, "replace", -1)
    save(tmp_path, 3)
    assert len(renames) == max(call for _, name, call in CALLS if name == "replace")


@pytest.mark.parametrize("call", range(1, 6))
def test_a_crash_in_the_very_first_saving_means_to_start_anew(tmp_path, monkeypatch, call):
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, os, "replace", call)
        with pytest.raises(Crash):
            save(tmp_path, 1)
    loaded = load_checkpoint(tmp_path)
    assert loaded is None or value_of(loaded) == 1
    save(tmp_path, 2)
    assert value_of(load_checkpoint(tmp_path)) == 2


def test_a_checkpoint_that_is_a_pickle_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, 1)
    data = pickle.dumps(Bomb())
    (tmp_path / "checkpoint" / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "unpickled").exists()


def kill_while_saving(folder, delay):
    """Saves 1, 2, 3, ... in a child process until that is killed; returns the last number that it
    reported as saved."""
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        for value in range(1, 10_000):
            save(folder, value)
            os.write(tell, struct.pack("i", value))
    os.close(tell)
    last = struct.unpack("i", os.read(told, 4))[0]  # the first is saved: the delay starts here
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while said := os.read(told, 4):
        last = struct.unpack("i", said)[0]
    os.close(told)
    return last


@pytest.mark.parametrize("times", [25, pytest.param(100, marks=pytest.mark.long)])
def test_killed_while_saving_there_is_always_a_checkpoint_to_load(tmp_path, tally, times):
    rng, values = random.Random(times), []
    for number in range(times):
        folder = tmp_path / str(number)
        last = kill_while_saving(folder, rng.uniform(0, 0.05))
        values.append(value_of(load_checkpoint(folder)) - last)
        settle(folder)
        assert value_of(load_checkpoint(folder)) - last == values[-1]
    tally("kill -9 while saving: a checkpoint loads", times, sum(v not in (0, 1) for v in values))
    assert set(values) <= {0, 1}  # the one reported, or the one being promoted


@pytest.mark.parametrize("work", [lambda folder: save(folder, 3), drop_previous])
def test_one_killed_while_an_old_checkpoint_went_leaves_nothing_that_passes_for_damage(
    tmp_path, work
):
    gone = []

    def second(path, *_):
        gone.extend([path] if path in FILES else [])
        return len(gone) == 2

    save(tmp_path, 1)
    save(tmp_path, 2)
    killed_at(os, "unlink", lambda: work(tmp_path), second)
    assert settle(tmp_path) == []
    assert {p.name for p in tmp_path.iterdir()} <= {"checkpoint", "checkpoint.previous"}
    assert value_of(load_checkpoint(tmp_path)) == (2 if work is drop_previous else 3)


# --- the disk ---
def test_a_disk_that_gives_back_something_else_is_noticed_at_once(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = checkpoint.write_bytes

    def lossy(path, data):
        real(path, data[:-1] if path.name == "model.safetensors" else data)

    monkeypatch.setattr(checkpoint, "write_bytes", lossy)
    with pytest.raises(OSError, match="is the disk sound"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert value_of(load_checkpoint(tmp_path)) == 1
    save(tmp_path, 3)
    assert value_of(load_checkpoint(tmp_path)) == 3


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte; skips where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no right to mount a small disk here")
    except FileNotFoundError:
        pytest.skip("no mount here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_full_disk_the_old_checkpoint_stays_and_the_missing_bytes_are_named(small_disk):
    save(small_disk, 1)
    large = {"model": {"net.w": torch.zeros(500_000)}, "optimizer": {}}
    with pytest.raises(record.DiskFullError) as refusal:
        save_checkpoint(small_disk, large, {"step": 2})
    free = shutil.disk_usage(small_disk).free
    [need, lack] = [int(word.replace(",", "")) for word in str(refusal.value).split()
                    if word.replace(",", "").isdigit()]  # fmt: skip
    assert need > 2_000_000
    assert lack == need - free
    assert {p.name for p in small_disk.iterdir()} == {"checkpoint"}
    assert value_of(load_checkpoint(small_disk)) == 1
    save(small_disk, 3)


def test_a_full_disk_is_seen_before_anything_starts(small_disk):
    check_room(small_disk, 100_000, 1000)
    with pytest.raises(record.DiskFullError, match="nothing was started"):
        check_room(small_disk, 500_000, 0)
    save(small_disk, 1)
    save(small_disk, 2)  # existing checkpoints need no more room
    check_room(small_disk, 500_000, 0)


def test_room_is_asked_of_what_is_free_for_three_checkpoints_and_all_else(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=10_000, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check_room(tmp_path, 300, 100)
    for tensors, beside in ((334, 0), (300, 101)):
        with pytest.raises(record.DiskFullError, match="nothing was started"):
            check_room(tmp_path, tensors, beside)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota_is_a_full_disk_too(tmp_path, monkeypatch, number):
    save(tmp_path, 1)

    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(record.DiskFullError, match="quota or limit"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert value_of(load_checkpoint(tmp_path)) == 1


# --- strangers' checkpoints ---
def forge(folder, **files):
    """A checkpoint whose manifest agrees with whatever is in its files."""
    import hashlib

    save(folder, 1)
    for path in (folder / "checkpoint").iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / "checkpoint" / name.replace("_", ".")).write_bytes(data)
    hashes = {name.replace("_", "."): hashlib.sha256(data).hexdigest()
              for name, data in files.items()}  # fmt: skip
    record.write_json(folder / "checkpoint" / "manifest.json", hashes)


def header(text, length=None):
    return struct.pack("<Q", len(text) if length is None else length) + text


HEADERS = {
    "a length of 2^64 - 1": header(b"{}", 2**64 - 1),
    "a length of 2^40": header(b"{}", 2**40),
    "no header": b"",
    "cut off": b"\x08\x00",
    "no JSON": header(b"not json"),
    "deep JSON": header(b"[" * 100_000),
    "a tensor beyond the file": header(
        b'{"x":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    ),
    "a negative shape": header(b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}1234'),
    "overlapping tensors": header(
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    ) + b"1234",
    "an unknown type": header(b'{"x":{"dtype":"Q7","shape":[1],"data_offsets":[0,4]}}') + b"1234",
    "a pickle": pickle.dumps(Bomb()),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_an_absurd_file_of_tensors_is_refused_by_its_name(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    forge(tmp_path / "run", model_safetensors=HEADERS[kind], state_json=b"{}")
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"model\.safetensors is no file of tensors"):
        load_checkpoint(tmp_path / "run")
    assert time.perf_counter() - started < 10  # it did not allocate what the header claims
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "model.pt", "", "a/b", "a.safetensors/../../b"],
)
def test_a_manifest_names_nothing_outside_of_its_folder(tmp_path, name):
    save(tmp_path, 1)
    path = tmp_path / "checkpoint" / "manifest.json"
    record.write_json(path, record.read_json(path) | {name: "0" * 64})
    with pytest.raises(ValueError, match="it lists"):
        load_checkpoint(tmp_path)


def test_a_manifest_without_a_state_is_damaged(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "checkpoint" / "manifest.json"
    hashes = record.read_json(path)
    record.write_json(path, {name: hashes[name] for name in hashes if name != "state.json"})
    with pytest.raises(ValueError, match=r"it does not list state\.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("state", [b"[" * 100_000, b"{", b"\xff", b'{"a":' * 50_000])
def test_a_state_that_is_no_json_is_refused_by_its_name(tmp_path, state):
    forge(tmp_path, state_json=state)
    with pytest.raises(ValueError, match=r"state\.json is not readable JSON"):
        load_checkpoint(tmp_path)


def test_state_is_plain_json(tmp_path):
    save_checkpoint(tmp_path, {}, {"best": float("inf"), "pending": [[1.0, 2.0]]})
    _, state = load_checkpoint(tmp_path)
    assert state.pop("weights") is None  # added by loading; there are no weights here
    assert state == {"best": float("inf"), "pending": [[1.0, 2.0]]}
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text()) == state


def test_tensors_of_another_shape_are_refused_by_name_though_they_hold_as_many_numbers():
    net, input = nn.Sequential(nn.Linear(3, 4)), nn.Module()
    tensors = {f"net.{name}": p.detach() for name, p in net.named_parameters()}
    turned = tensors | {"net.0.weight": tensors["net.0.weight"].T}
    with torch.no_grad():
        load_weights(net, input, tensors, Path("run"))
        with pytest.raises(ValueError, match=r"net\.0\.weight is \[3, 4\], here \[4, 3\]"):
            load_weights(net, input, turned, Path("run"))
    with pytest.raises(ValueError, match=r"momentum of 0\.weight"):
        load_momentum(
            net, SimpleNamespace(velocity={}), {"0.weight": torch.ones(3, 4)}, Path("run")
        )


def test_momentum_lies_as_its_parameter_does():
    """The step adds one to the other; a file keeps rows."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    optimizer, [weight, bias] = SimpleNamespace(velocity={}), net.parameters()
    saved = torch.arange(108.0).view(4, 3, 3, 3)
    load_momentum(net, optimizer, {"0.weight": saved}, Path("run"))
    assert torch.equal(optimizer.velocity[weight], saved)
    assert optimizer.velocity[weight].stride() == weight.stride()
    assert bias not in optimizer.velocity
