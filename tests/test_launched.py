"""Processes of the same program, whatever folder they start in and whichever others may join."""

import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from delving import launched
from delving.cli_words import asked_root, found_once, refuse_ranks, speaks
from delving.config import compose
from delving.display import make_console
from delving.launched import child
from delving.ranks import LostRankError, Ranks, _meet
from delving.state import git_revision


# --- children ---
@pytest.mark.parametrize("theirs", ["delving/__init__.py", "json.py"])
def test_a_child_imports_nothing_of_the_folder_it_is_started_from(tmp_path, theirs):
    """A user's own files there may have any name."""
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("raise SystemExit('mine')")
    command = child("delving", "--help")
    done = subprocess.run(**command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "reproduce" in done.stdout


def test_a_child_is_of_this_very_package_before_any_other_that_is_known(monkeypatch):
    here = str(Path(launched.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    variables = child("delving", MORE="1")["env"]
    assert variables["PYTHONPATH"].split(os.pathsep) == [here, "/theirs"]
    assert variables["MORE"] == "1"
    monkeypatch.delenv("PYTHONPATH")
    assert child("delving")["env"]["PYTHONPATH"] == here


def test_of_an_installed_package_a_child_knows_by_itself(monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(launched, "PACKAGE", Path(launched.sysconfig.get_path("purelib")))
    assert "PYTHONPATH" not in child("delving")["env"]


# --- several of a run ---
@pytest.mark.parametrize("variables", [{}, {"RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_what_is_set_for_one_process_alone_changes_nothing(monkeypatch, variables):
    """As some platforms set them in every container."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    refuse_ranks("train -m")
    assert speaks()
    with found_once(lambda: [3]) as found:
        assert found == [3]


def test_one_of_several_is_told_from_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert speaks()
    monkeypatch.setenv("RANK", "1")
    assert not speaks()
    with pytest.raises(ValueError, match="RANK and WORLD_SIZE are set"):
        refuse_ranks("bench")


def test_rank_0_says_once_that_it_waits(monkeypatch):
    import torch.distributed as dist

    monkeypatch.setattr("delving.ranks.MEETING", 0.2)
    monkeypatch.setattr("delving.ranks.LATE", 0.0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(LostRankError):
            _meet(dist.HashStore(), Ranks(0, 2))
    assert [str(one.message) for one in told] == ["waiting for 2 ranks (WORLD_SIZE)"]


WAITING = """
from delving.ranks import joined
print("joining", flush=True)
with joined():
    print("joined", flush=True)
"""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_who_waits_for_ranks_that_never_come_hears_signals(rank):
    """Such as with an earlier torchrun's variables, or a missing node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], env=child("", **variables)["env"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "joining\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- surroundings ---
def test_the_revision_is_this_checkouts_also_in_a_git_hook(monkeypatch, tmp_path):
    wanted = git_revision()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert git_revision() == wanted


def test_a_file_is_no_terminal_though_colours_are_forced(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not make_console().is_terminal
    assert not make_console(stderr=True).is_terminal


def test_outputs_may_lie_at_home(monkeypatch, tmp_path):
    """zsh does not expand a ~ after an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert asked_root(["output_root=~/x"]) == asked_root([], "~/x") == f"{tmp_path}/x"
    assert compose(["output_root=~/x"]).output_root == f"{tmp_path}/x"
    assert compose(["output_root=./~"]).output_root == "./~"
