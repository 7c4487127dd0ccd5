"""What all tests share: one thread, so that sums are alike everywhere and other cores stay free."""

import gc
import os
import shutil
import signal
from pathlib import Path

# Tests train in forked processes, which CUDA forbids, and compare bit for bit: all run on the CPU,
# except those that `make test` adds where there is a GPU. Set before torch looks for one.
if "DELVING_GPU_TESTS" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from calling import exit_code
from hypothesis import settings

torch.set_num_threads(1)
# The same examples everywhere, however long one takes: the first may import a library.
settings.register_profile("delving", deadline=None, derandomize=True)
settings.load_profile("delving")
# A shell starts background jobs with Ctrl-C ignored, and the tests' processes would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _keep_denormals():
    """A training flushes denormals to zero in the whole process; other tests rely on them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """One of smoke.py's runs, never interrupted; no test may change it."""
    import smoke  # not at the top: most tests do not need it

    return smoke.train(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def own_conf(tmp_path, monkeypatch):
    """A copy of conf/ that a test may spoil."""
    from delving import config, groups

    copy = tmp_path / "conf"
    shutil.copytree(groups.CONF, copy)
    monkeypatch.setattr(config, "CONF", copy)
    monkeypatch.setattr(groups, "CONF", copy)
    return copy


@pytest.fixture
def root(whole, tmp_path):
    """An output root with the generated images alone."""
    shutil.copytree(whole.parents[2] / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture
def delving(capsys):
    """Calls `delving` in this process: (exit code, stdout, stderr)."""

    def call(*words):
        code = exit_code(*words)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def no_workers(monkeypatch):
    """Fails where a worker is started: nothing may be trained."""

    def fail(self):
        raise AssertionError("a worker was started")

    monkeypatch.setattr("delving.workers.Worker._start", fail)


@pytest.fixture
def tally(record_property):
    """Counts tries of something that must never fail: tally(what, tries, failures). The counts are
    printed as a table at the end."""

    def count(what: str, tries: int, failures: int, note: str = "") -> None:
        record_property("tally", [what, tries, failures, note])

    return count


@pytest.fixture(autouse=True)
def _count_marked(request, record_property):
    """The same for a test marked `tally(what, tries)`, which passes or fails as a whole."""
    for mark in request.node.iter_markers("tally"):
        if mark.args:
            what, tries = (*mark.args, 1)[:2]
            record_property("tally", [what, tries, 0, ""])


def pytest_collection_finish():
    """What exists by now stays, so no later garbage collection has to look through it."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Marks the tests that count tries, so that `make test-long` runs their short forms too."""
    for item in items:
        if "tally" in item.fixturenames:
            item.add_marker("tally")


def pytest_addoption(parser):
    parser.addoption("--tally", metavar="FILE", help="write tries and failures as a Markdown table")


def pytest_terminal_summary(terminalreporter, config):
    rows = _add_up(terminalreporter)
    if rows:
        terminalreporter.section("tries and failures")
        terminalreporter.line(f"{'tries':>7} {'failures':>9}  what")
    for what, (tries, failures, note) in rows.items():
        terminalreporter.line(f"{tries:7} {failures:9}  {what}{note and ': ' + note}")
    if config.getoption("--tally"):
        lines = ["| what | tries | failures | |", "|---|---|---|---|"]
        lines += [f"| {what} | {tries:,} | {failures} | {note} |"
                  for what, (tries, failures, note) in rows.items()]  # fmt: skip
        Path(config.getoption("--tally")).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _add_up(terminalreporter):
    """{what: [tries, failures, note]} over all tests; a failed test is one failure at least. Where
    several tests tried the same, their notes are joined."""
    rows = {}
    for kind in ("passed", "failed"):
        for report in terminalreporter.stats.get(kind, ()):
            told = [value for name, value in report.user_properties if name == "tally"]
            for what, tries, failures, note in told:
                row = rows.setdefault(what, [0, 0, ""])
                row[0] += tries
                row[1] += max(failures, kind == "failed")
                row[2] = "; ".join(filter(None, (row[2], note)))
    return dict(sorted(rows.items()))
