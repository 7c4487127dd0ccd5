"""C++ sources are compiled once on a machine, whatever is in the way, and faults are told."""

import ctypes
import errno
import os
import platform
import re
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from calling import killed_at

from delving.data import regions
from delving.doctor import examine
from delving.kernels import compiled, native
from delving.signals import Interrupted, leaving_at_once

COMPILER = shutil.which("c++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
TUNED = ((), ("-DNEXT",))
ANSWER = 'extern "C" int answer() { return 42; }\n'
KILLED = "c++: fatal error: Killed signal terminated program cc1plus"
FULL = "Fatal error: can't write 12 bytes to section .text of made.o: 'No space left on device'"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder of one small source, `answer.cpp`, and an empty cache."""
    monkeypatch.setattr(compiled, "FOLDER", tmp_path)
    monkeypatch.setattr(compiled, "FAULTS", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "answer.cpp").write_text(ANSWER)
    return tmp_path


@pytest.fixture
def stub(sources, monkeypatch):
    """Makes CXX a shell script that counts its calls; returns the count."""

    def put(script):
        path, calls = sources / "stub", sources / "calls"
        path.write_text(f"#!/bin/sh\necho >> '{calls}'\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))
        return lambda: len(calls.read_text()) if calls.exists() else 0

    return put


def load():
    return compiled.compile_and_load("answer.cpp", tuned=TUNED)


def fault():
    assert load() is None
    return compiled.FAULTS["answer.cpp"]


def cached(sources, suffix):
    return sorted((sources / "cache" / "delving").glob(f"*{suffix}"))


@needs_compiler
def test_what_was_compiled_serves_where_there_is_no_compiler(sources, monkeypatch):
    """As on a cluster's nodes, which share a home with the machine where it was compiled."""
    assert compiled.is_due("answer.cpp", tuned=TUNED)
    assert load().answer() == 42
    monkeypatch.setenv("PATH", "/empty")
    assert not compiled.is_due("answer.cpp", tuned=TUNED)
    assert load().answer() == 42
    assert [path.suffix for path in cached(sources, "")] == [".sha256", ".so"]


@needs_compiler
def test_what_needed_other_flags_serves_where_none_can_be_compiled(sources, stub, monkeypatch):
    """Even when the failure of the first flags was forgotten."""
    stub(f'case "$*" in *NEXT*|*shared*) exec {COMPILER} "$@";; esac; exit 1')
    assert load().answer() == 42
    compiled.forget_failures()
    (sources / "stub").unlink()
    assert load().answer() == 42


def test_without_a_compiler_nothing_is_due_or_remembered(sources, monkeypatch):
    monkeypatch.setenv("PATH", "/empty")
    assert fault() == "no C++ compiler (c++)"
    assert not compiled.is_due("answer.cpp", tuned=TUNED)
    assert not cached(sources, "")


def test_a_failed_build_is_tried_again_after_a_day_or_when_it_is_asked_for(sources, stub):
    calls = stub("exit 3")
    assert compiled.is_due("answer.cpp", tuned=TUNED)
    assert fault() == "exit status 3"
    assert calls() == len(TUNED) == len(cached(sources, ".failed"))
    assert not compiled.is_due("answer.cpp", tuned=TUNED)
    assert fault() == "exit status 3"
    assert calls() == len(TUNED)
    compiled.forget_failures()
    assert fault() == "exit status 3"
    for hours, more in ((23, 0), (25, 1)):
        for failed in cached(sources, ".failed"):
            os.utime(failed, (time.time() - hours * 3600,) * 2)
        assert fault() == "exit status 3"
        assert calls() == (2 + more) * len(TUNED)
    assert fault() == "exit status 3"
    assert calls() == 3 * len(TUNED)


def test_doctor_looks_anew_at_what_failed(sources, stub, monkeypatch):
    stub("exit 1")
    assert fault()
    assert cached(sources, ".failed")
    monkeypatch.setattr(native, "load", lambda: None)
    monkeypatch.setattr(regions, "agrees", lambda: True)
    monkeypatch.setitem(compiled.FAULTS, "kernels.cpp", "no compiler")
    assert dict(examine(str(sources)))["kernels"]
    assert not cached(sources, "")


@pytest.mark.parametrize("script", ["kill -KILL $$", *(f'echo "{said}" >&2; exit 1'
                                                       for said in (KILLED, FULL))])  # fmt: skip
def test_what_may_pass_is_not_remembered_and_no_other_flags_are_tried(sources, stub, script):
    calls = stub(script)
    assert re.match("exit status -9$|.*Killed|.*No space left", fault())
    assert calls() == 1
    assert not cached(sources, "")
    assert fault()
    assert calls() == 2


def test_a_compilers_own_words_are_told_in_english(sources, stub):
    stub('echo "In file included from here:" >&2; echo "x.h: error: $LC_ALL" >&2; exit 1')
    assert fault() == "x.h: error: C"


def test_a_compiler_that_makes_nothing_is_told(sources, stub):
    stub("exit 0")
    assert fault() == f"{sources / 'stub'} makes no file"


def test_a_cache_that_cannot_be_written_is_named(sources, stub, monkeypatch):
    calls = stub("exit 1")
    (sources / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(sources / "file"))
    told = fault()
    assert str(sources / "file" / "delving") in told
    assert "XDG_CACHE_HOME=" in told
    assert not calls()
    assert not compiled.is_due("answer.cpp", tuned=TUNED)


def no_library(text, names=""):
    """Stands for ctypes.CDLL where what is called `names` fails to load."""
    real = ctypes.CDLL

    def load(path):
        if names in path:
            raise OSError(f"{path}: {text}")
        return real(path)

    return load


@needs_compiler
def test_a_disk_of_no_programs_costs_nothing_and_destroys_nothing(sources, stub, monkeypatch):
    assert load()
    [kept] = cached(sources, ".so")
    monkeypatch.setattr(ctypes, "CDLL", no_library("failed to map segment from shared object"))
    noexec = SimpleNamespace(f_flag=getattr(os, "ST_NOEXEC", 0) or pytest.skip("no such flag"))
    monkeypatch.setattr(os, "statvfs", lambda path: noexec)
    told = fault()
    assert str(kept.parent) in told
    assert "noexec" in told
    assert "XDG_CACHE_HOME=" in told
    assert kept.exists()
    calls = stub("exit 1")
    assert "noexec" in fault()
    assert not calls()


@needs_compiler
@pytest.mark.parametrize(("text", "tries"), [("failed to map segment", 1), ("no symbol omp", 2)])
def test_what_does_not_load_is_not_compiled_again(sources, stub, monkeypatch, text, tries):
    """Other flags are tried where a symbol is missing, as OpenMP's may be."""
    calls = stub(f'exec {COMPILER} "$@"')
    monkeypatch.setattr(ctypes, "CDLL", no_library(text))
    told = text if tries > 1 else f"{compiled.UNLOADED}: {text}"
    assert fault() == told
    assert fault() == told
    assert calls() == 2 * tries  # compiled and linked
    assert not cached(sources, ".so")


@needs_compiler
def test_of_several_at_once_one_compiles(sources, stub):
    calls = stub(f'sleep 0.2; exec {COMPILER} "$@"')
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: load(), range(3)))
    assert all(found)
    assert calls() == 2  # compiled and linked
    assert not cached(sources, ".lock")


@needs_compiler
def test_who_is_killed_while_compiling_holds_nobody_up(sources):
    killed_at(compiled, "_compile", load)
    assert cached(sources, ".lock")
    assert load().answer() == 42
    assert not cached(sources, ".lock")


@needs_compiler
def test_who_is_suspended_while_compiling_is_not_waited_for(sources, monkeypatch):
    monkeypatch.setattr(compiled, "_is_taken", lambda file: True)
    hours = SimpleNamespace(time=time.time, sleep=time.sleep, monotonic=count(step=3600).__next__)
    monkeypatch.setattr(compiled, "time", hours)
    assert load().answer() == 42


@needs_compiler
def test_a_disk_without_locks_is_good_enough(sources, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert load().answer() == 42


SLEEPING = "sleep 60 & echo $! > {}; wait"


def test_a_compiler_that_takes_too_long_ends_with_all_that_it_started(sources, stub, monkeypatch):
    monkeypatch.setattr(compiled, "SECONDS", 2)
    calls = stub(SLEEPING.format(sources / "pid"))
    assert fault() == compiled.LATE
    assert_ended(sources)
    assert fault() == compiled.LATE
    assert calls() == 1
    assert not compiled.is_due("answer.cpp", tuned=TUNED)


def test_a_signal_leaves_at_once_and_ends_the_compiler(sources, stub, monkeypatch):
    stub(SLEEPING.format(sources / "pid"))
    started, communicate = threading.Event(), subprocess.Popen.communicate

    def tell(*about, **how):
        started.set()
        return communicate(*about, **how)

    monkeypatch.setattr(subprocess.Popen, "communicate", tell)

    def send():
        started.wait()
        time.sleep(0.5)  # by now it waits: a signal just before that would be heeded afterwards
        while not (sources / "pid").exists() or not (sources / "pid").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Interrupted), leaving_at_once():
        load()
    sender.join()
    assert_ended(sources)
    assert not cached(sources, "")


def assert_ended(sources):
    """What the compiler started is gone, or no longer runs."""
    pid = int((sources / "pid").read_text())
    latest = time.monotonic() + 5
    while runs(pid):
        assert time.monotonic() < latest
        time.sleep(0.01)


def runs(pid):
    """Nobody may have fetched the exit status of what has ended, so that its number lives on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_compiled_otherwise_is_another_library(sources, monkeypatch):
    """Else a machine would load what was compiled for another, or before its source changed."""

    def library(flags=("-O1",), links=()):
        return compiled.Build(sources / "answer.cpp", flags, links).library

    assert library() == library()
    names = [library(), library(flags=("-O2",)), library(links=("-lm",))]
    for change in (
        lambda: monkeypatch.setenv("CXX", "another"),
        lambda: monkeypatch.setattr(compiled, "_processor", lambda: "another"),
        lambda: (sources / "answer.cpp").write_text("// another"),
    ):
        change()
        names.append(library())
    assert len(set(names)) == len(names)


@needs_compiler
def test_the_compiler_may_be_named_from_where_one_is(sources, monkeypatch):
    monkeypatch.chdir(sources)
    (sources / "mycxx").symlink_to(COMPILER)
    (sources / "my cxx").symlink_to(COMPILER)
    for command in ("./mycxx", f"{shutil.which('env')} ./mycxx", "'./my cxx' -O1"):
        monkeypatch.setenv("CXX", command)
        assert load().answer() == 42
    assert len(cached(sources, ".so")) == 3


def test_libraries_are_linked_after_what_needs_them(sources, stub):
    """Before it, a linker may drop them."""
    told = sources / "told"
    stub(f'case "$*" in *-shared*) echo "$*" > \'{told}\'; exit 1;; esac')
    assert compiled.compile_and_load("answer.cpp", links=("-lm",), tuned=TUNED) is None
    words = told.read_text().split()
    assert words[words.index("-lm") - 1].endswith("made.o")


@needs_compiler
def test_a_damaged_hash_is_no_hash(sources):
    assert load()
    [kept] = cached(sources, ".sha256")
    before = kept.read_bytes()
    kept.write_bytes(b"\xff")
    assert load().answer() == 42
    assert kept.read_bytes() == before


def test_who_has_no_home_is_told(sources, monkeypatch):
    """As in a container, where the user's number has no name."""

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", fail)
    assert fault() == "no home"


def test_a_machine_that_tells_nothing_of_its_processor_has_a_name(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(Path, "read_text", fail)
    assert compiled._processor().startswith(platform.machine())


def test_builds_of_one_version_of_pytorch_are_told_apart(monkeypatch):
    flags = native._beside_torch()["tuned"]
    monkeypatch.setattr(torch.version, "git_version", "another")
    assert native._beside_torch()["tuned"] != flags


def test_two_threads_that_ask_for_the_operator_both_get_it(monkeypatch):
    """PyTorch knows its name before it knows what it does."""
    named, operators = threading.Event(), SimpleNamespace()

    def enlist(*_):
        if not named.is_set():
            named.set()
            time.sleep(0.2)
            operators.rectify = SimpleNamespace(default="the operator")

    monkeypatch.setattr(torch.ops, "delving_cpu", operators)
    monkeypatch.setattr(native, "OPERATOR", ())
    built = SimpleNamespace(enlist=enlist)
    monkeypatch.setattr(native, "compile_and_load", lambda *_, **__: built)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: native._operator.__wrapped__(), range(2)))
    assert found == ["the operator"] * 2


def test_where_nothing_compiles_the_operator_there_is_none(monkeypatch):
    monkeypatch.setattr(native, "compile_and_load", lambda *_, **__: None)
    assert native._operator.__wrapped__() is None


def test_without_kernels_there_is_no_operator_that_calls_them(monkeypatch):
    monkeypatch.setattr(native, "_operator", lambda: "the operator")
    assert native.operator() == ("the operator" if native.load() else None)
    monkeypatch.setattr(native, "load", lambda: None)
    assert native.operator() is None


@pytest.mark.parametrize("kernels", [True, False])
def test_the_operator_is_due_where_the_kernels_are_there(monkeypatch, kernels):
    monkeypatch.setattr(native, "is_due", lambda source, **_: source == "operator.cpp")
    monkeypatch.setattr(native, "load", lambda: kernels or None)
    assert native.is_to_be_compiled() is kernels


def test_kernels_that_are_due_are_not_compiled_to_find_out(monkeypatch):
    def never():
        raise AssertionError("compiled")

    monkeypatch.setattr(native, "is_due", lambda source, **_: source == "kernels.cpp")
    monkeypatch.setattr(native, "load", never)
    assert native.is_to_be_compiled()
