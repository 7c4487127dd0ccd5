"""Any terminal, any machine: streams, encodings, widths, homes, disks, and crafted records."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from calling import python_path
from rich.console import Console

from delving import disk, exits, record, terminal
from delving.display import Display, Overview
from delving.plot import draw_sheet, new_figure, save_figure

ENTRY = "from delving.cli import main\nmain()"
ROOT = Path(__file__).parent.parent
RESULT = {
    "run": "x-s0", "scale": "smoke", "model": "small14", "act": "prelu", "init": "he", "seed": 0,
    "epochs": 1.0, "images_seen": 96, "params": 9, "multiply_adds": 9, "train_loss": 1.0,
    "status": "converged", "seconds": 1.0, "images_per_second": 96.0, "device": "cpu",
    "eval": {"center": {"top1_err": 12.5, "top5_err": 0.0, "images": 24}}, "deviations": [],
}  # fmt: skip


def run(*words, code=ENTRY, shell="", cwd=None, **settings):
    """Runs a command in a process of its own, with redirections and variables; None unsets one."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path(ROOT), **settings}
    variables = {key: value for key, value in variables.items() if value is not None}
    command = [sys.executable, "-c", code, *map(str, words)]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    done = subprocess.run(command, capture_output=True, cwd=cwd, env=variables, timeout=300)
    return done.returncode, done.stdout, done.stderr


def one_line(err):
    return err.startswith("delving: ") and len(err.splitlines()) == 1


def make_run(root, name, result):
    """A run folder whose result.json has these bytes."""
    folder = root / "smoke" / "runs" / name
    record.write_text(folder / "config.yaml", "")
    record.write_bytes(folder / "result.json", result)
    return folder


# --- foreign text ---
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("small14-prelu-he-s0", "small14-prelu-he-s0"),
        ("caf\u00e9 \u72ac", "caf\u00e9 \u72ac"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202eexe.gpj", r"\u202eexe.gpj"),
        ("\udcff", r"\udcff"),
        ("\0", r"\x00"),
        (Path("a/b"), "a/b"),
    ],
)
def test_foreign_text_is_shown_plainly(text, shown):
    assert terminal.plain(text) == shown


def test_long_text_is_shown_by_its_ends():
    shown = terminal.plain("a" * 10**6 + "z", longest=20)
    assert shown == "a" * 10 + " ... " + "a" * 9 + "z"


def test_events_of_a_run_reach_the_terminal_plainly():
    screen = io.StringIO()
    display = Display(Console(file=screen, width=80))
    display({"event": "bad_image", "name": "a\x1b]0;x\x07\nb.png"})
    display({"event": "opening", "line": "[red]not a style[/red]"})
    overview = Overview(Console(file=screen, width=80))
    overview.say("\nFAILED \x1b[2J: \nx")
    assert screen.getvalue().splitlines() == [
        r"cannot be decoded, the next one took its place: a\x1b]0;x\x07\nb.png",
        "[red]not a style[/red]",
        "",
        r"FAILED \x1b[2J: \nx",
    ]


def changed(**values):
    return json.dumps(RESULT | values).encode()


HUGE = {"top1_err": 10**400, "top5_err": 0, "images": 1}
CRAFTED = {
    "a list": b"[1]",
    "null": b"null",
    "a cut one": changed()[:150],
    "nothing": b"",
    "no text": b"\xff\xfe\0",
    "deep brackets": b"[" * 100_000,
    "deep keys": b'{"a":' * 100_000,
    "too many bytes": b" " * (100 * 2**20),
    "too many digits": b"9" * 5000,
    "a key left out": b'{"run": "x-s0"}',
    "a list for eval": changed(eval=[1]),
    "no scores": changed(eval={"center": None}),
    "a word for a number": changed(seconds="x"),
    "not a number": changed(seconds=float("nan")),
    "a number beyond all": changed(eval={"center": HUGE}),
    "a status of its own": changed(status="\x1b[31m"),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_list_runs_lists_the_sound_ones_and_names_the_broken_one(delving, tmp_path, kind):
    for name in ("a-s0", "c-s0"):
        make_run(tmp_path, name, changed())
    make_run(tmp_path, "b\x1b[2J\nb-s0", CRAFTED[kind])
    code, out, err = delving("list", "runs", "--output-root", tmp_path)
    first, broken, last = out.splitlines()
    assert (code, err) == (0, "")
    assert first.endswith("a-s0  converged  center 12.5/0.0")
    assert last.endswith("c-s0  converged  center 12.5/0.0")
    assert r"b\x1b[2J\nb-s0  BROKEN: " in broken
    assert "\x1b" not in broken


def test_a_crafted_protocol_is_printed_plainly(delving, tmp_path):
    scores = {"\x1b]0;owned\x07": RESULT["eval"]["center"]}
    make_run(tmp_path, "a-s0", changed(eval=scores))
    code, out, _ = delving("list", "runs", "--output-root", tmp_path)
    assert code == 0
    assert out.endswith("a-s0  converged  \\x1b]0;owned\\x07 12.5/0.0\n")


def test_names_in_a_picture_are_no_formulas_and_warn_of_nothing(tmp_path):
    image = [np.zeros((4, 4, 3), np.uint8)]
    rows = [(name, image) for name in (r"$\bad{", "US$5 $x$", "\u72ac", "\x1b[2J")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = save_figure(draw_sheet(rows, title=r"$\worse$ <script>"), tmp_path / "sheet.svg")
    drawn = path.read_text(encoding="utf-8")
    assert r"$\bad{" in drawn
    assert r"\x1b[2J" in drawn
    assert "<script>" not in drawn
    assert "&lt;script&gt;" in drawn


# --- streams ---
@pytest.mark.parametrize("words", [["list"], ["list", "--help"], ["show", "scale=smoke", "--json"]])
def test_a_reader_that_goes_away_ends_a_command_quietly(delving, monkeypatch, words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        code, _, err = delving(*words)
    assert (code, err) == (0, "")


@pytest.mark.parametrize("words", [["list"], ["list", "--help"], ["show", "scale=smoke", "--json"]])
def test_a_full_disk_under_the_output_is_a_failure_in_a_line(delving, monkeypatch, words):
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    code, _, err = delving(*words)
    assert code == 1
    assert one_line(err)
    assert "No space left on device" in err
    full.close()  # no unwritten text is left to fail here


def test_a_full_disk_under_the_errors_leaves_the_code(delving, monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert delving("list", "modles")[0] == 2
        terminal.silence(full)


class Lost(io.StringIO):
    """A screen that can no longer be written to."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def fileno(self):
        raise io.UnsupportedOperation


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_training_goes_on_where_nothing_can_be_shown(number, on_terminal):
    screen = Lost(OSError(number, os.strerror(number)))
    console = Console(file=screen, force_terminal=on_terminal, width=80)
    step = {"event": "step", "step": 1, "loss": 1.0, "err": 50.0, "images_per_second": 9.0,
            "wait": 0.0, "seconds": 9.0, "epoch": 0.1}  # fmt: skip
    with Display(console, every=0) as display:
        display({"event": "start", "run": "x-s0", "steps": 2})
        for event in (step, {"event": "tick", "step": 2}, {"event": "bad_image", "name": "x"}):
            display(event)
    assert display.steps == 2


def test_a_plan_that_cannot_be_shown_is_not_begun_and_begun_work_goes_on(capsys):
    """The standard output, silenced from then on, is capsys's and not a file of pytest's own."""
    overview = Overview(Console(file=Lost(OSError(errno.ENOSPC, "No space left")), width=80))
    with pytest.raises(OSError, match="No space left"):
        overview.say("About 0:09 minutes")
    with overview.showing({"x-s0": 1.0}):
        overview.say("1/1 x-s0")
    with pytest.raises(OSError, match="No space left"):
        overview.say("report.html")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error_and_no_files_numbers(closed, tmp_path):
    """Descriptors 0 to 2 are taken before delving opens anything."""
    code = (
        "import os, sys\nfrom delving import terminal\nterminal.settle_streams()\n"
        f"file = open({str(tmp_path / 'taken')!r}, 'w'); file.write(str(file.fileno()))\n"
        "print('heard'); print('heard', file=sys.stderr); sys.stdin.read()\n"
    )
    assert run(code=code, shell=f"< /dev/null {closed}")[0] == 0
    assert int((tmp_path / "taken").read_text()) > 2


def test_a_listing_to_a_closed_stream_is_done(tmp_path):
    assert run("list", shell=">&-", PYTHONDEVMODE="1") == (0, b"", b"")


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None},
    ],
)
def test_what_an_encoding_lacks_is_printed_as_an_escape(tmp_path, locale):
    if "LC_ALL" in locale and not str(ROOT).isascii():
        pytest.skip("in that locale Python itself cannot name this folder")
    make_run(tmp_path, "caf\u00e9-\u72ac-s0", changed())
    code, out, err = run("list", "runs", "--output-root", tmp_path, **locale)
    assert (code, err) == (0, b"")
    assert out.isascii()
    assert b"-s0  converged  center 12.5/0.0" in out
    code, out, err = run("list", "n\u00f6\u72ac", **locale)
    assert (code, out) == (2, b"")
    assert err.startswith(b"delving: list n")
    assert err.isascii()


# --- widths ---
@pytest.mark.parametrize("columns", ["0", "-1", "1e3", "abc", "\u00b2", "9" * 11])
def test_a_width_that_is_none_is_not_believed(delving, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = delving("list", "--help")
    assert (code, err) == (0, "")
    assert "Usage: delving list" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("columns", [1, 20, 300])
def test_help_fits_any_width(delving, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, err = delving("train", "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= max(columns, 50)  # narrower help would be unreadable


@pytest.mark.parametrize(
    ("width", "notes"),
    [
        (12, []), (20, ["79/80"]), (59, ["79/80", "loss 1.234", "err 56.7 %"]), (60, ["79/80"]),
        (80, ["79/80", "loss 1.234"]), (100, ["err 56.7 %"]), (200, ["data wait 3 %"]),
    ],
)  # fmt: skip
def test_a_bar_fits_its_line_and_says_what_there_is_room_for(width, notes):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    with Display(console) as display:
        display({"event": "start", "run": "small14-prelu-he-epochs20-s0", "steps": 80})
        display({"event": "step", "step": 79, "loss": 1.234, "err": 56.7, "wait": 0.03,
                 "images_per_second": 12345.0, "seconds": 9.0, "epoch": 0.1})  # fmt: skip
        display({"event": "tick", "step": 79})
    shown = re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    assert all(len(line) <= width for line in shown)
    assert ("\u2501" in shown[-1]) == (width > 12)
    assert shown[-1].startswith("small14") == (width >= 60)
    assert all(note in shown[-1] for note in notes)


def test_where_a_line_cannot_be_redrawn_there_is_no_bar(monkeypatch):
    for term, width in (("dumb", 80), ("unknown", 80), ("xterm", 11)):
        monkeypatch.setenv("TERM", term)
        console = Console(file=io.StringIO(), force_terminal=True, width=width)
        with Display(console) as display:
            display({"event": "start", "run": "x-s0", "steps": 2})
        overview = Overview(console)
        with overview.showing({"x-s0": 1.0}):
            assert (display.bar, overview.bar) == (None, None)


# --- homes and caches ---
@pytest.mark.parametrize(
    ("changed", "moved"),
    [
        ({"HOME": "/proc/none"}, True), ({"HOME": "/dev/null"}, True),
        ({"MPLCONFIGDIR": "/proc/none"}, True), ({"XDG_CACHE_HOME": "/proc/none"}, True),
        ({"XDG_CONFIG_HOME": "/dev/null/x"}, True), ({"HOME": "/proc", "TMPDIR": "/proc"}, True),
        ({}, False), ({"TMPDIR": "/nonexistent"}, False),
    ],
)  # fmt: skip
def test_matplotlib_gets_a_folder_where_its_own_cannot_be_written(
    monkeypatch, tmp_path, changed, moved
):
    for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    disk.settle_caches()
    folder = os.environ.get("MPLCONFIGDIR")
    assert (folder != changed.get("MPLCONFIGDIR")) == moved
    if moved:
        (Path(folder) / "fontlist.json").touch()
        shutil.rmtree(folder)
    assert list(tmp_path.iterdir()) == []


def test_matplotlib_that_is_long_about_its_fonts_does_not_tell_so(tmp_path):
    slow = """
    import threading
    from delving import disk
    timer = threading.Timer
    threading.Timer = lambda seconds, tell: timer(0, tell)
    disk.settle_caches()
    import matplotlib.font_manager
    """
    command = [sys.executable, "-c", textwrap.dedent(slow)]
    env = os.environ | {"MPLCONFIGDIR": str(tmp_path), "PYTHONPATH": python_path(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert list(tmp_path.glob("fontlist*"))  # it did look for them


def test_settings_of_a_machine_change_no_figure(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.grid: False\nlines.linewidth: 9\n")
    here, there = tmp_path / "here.svg", tmp_path / "there.svg"
    code = (
        "import sys\nfrom pathlib import Path\nfrom delving.plot import new_figure, save_figure\n"
        "figure, axes = new_figure(1, 1, size=(2, 2)); axes[0, 0].plot([1, 2])\n"
        "save_figure(figure, Path(sys.argv[1]))\n"
    )
    assert run(there, code=code, cwd=tmp_path, HOME="/proc")[2].count(b"Traceback") == 0
    figure, axes = new_figure(1, 1, size=(2, 2))
    axes[0, 0].plot([1, 2])
    assert save_figure(figure, here).read_bytes() == there.read_bytes()


# --- places that cannot be written ---
@pytest.fixture(params=["below a file", "of the system", "a link to nothing", "a long name"])
def bad_root(request, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    names = {
        "below a file": tmp_path / "file" / "x",
        "of the system": Path("/proc/delving"),
        "a link to nothing": tmp_path / "link",
        "a long name": tmp_path / ("n" * 300),
    }
    return names[request.param]


def test_a_place_that_cannot_be_written_is_named_before_anything_is_begun(bad_root, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="cannot be written: ") as refused:
        disk.check_writable(bad_root)
    assert str(bad_root) in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["a\0b", "x/" * 3000])
def test_a_path_that_is_none_cannot_be_written(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be written: "):
        disk.check_writable(tmp_path / name)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    disk.check_writable(tmp_path / "new" / "newer")
    disk.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "link to itself"])
def test_a_file_replaces_nothing_but_a_file(delving, tmp_path, kind):
    """Otherwise root would replace /dev/null for everyone."""
    place = tmp_path / "there"
    if kind == "device" and os.getuid():
        place = Path("/dev/null")  # who may make a device could harm this one if the test fails
    elif kind == "device":
        os.mknod(place, stat.S_IFCHR | 0o600, os.stat("/dev/null").st_rdev)
    if kind == "pipe":
        os.mkfifo(place)
    if kind == "folder":
        place.mkdir()
    if kind == "link to itself":
        place.symlink_to(place)
    before = os.lstat(place)
    with pytest.raises(ValueError, match=f"{place} "):
        disk.find_target(place)
    code, _, err = delving("runs", "export", "--to", place, "--output-root", tmp_path)
    assert (code, one_line(err), str(place) in err) == (2, True, True)
    assert (os.lstat(place).st_mode, os.lstat(place).st_ino) == (before.st_mode, before.st_ino)


def test_through_a_link_its_own_file_is_written(tmp_path):
    (tmp_path / "link").symlink_to("file")
    assert disk.find_target(tmp_path / "link") == tmp_path / "file"
    (tmp_path / "file").write_text("there")
    assert disk.find_target(tmp_path / "link") == tmp_path / "file"


def test_a_link_makes_no_picture_of_another_file(delving, tmp_path):
    (tmp_path / "link.png").symlink_to("notes.txt")
    code, _, err = delving("plot-curves", "some-run", "--to", tmp_path / "link.png")
    assert code == 2
    assert "notes.txt: a picture ends in .png or .svg" in err


WRITING = {
    "train": ["train", "scale=smoke", "output_root={}"],
    "train -m": ["train", "-m", "scale=smoke", "act=relu,prelu", "output_root={}"],
    "prepare": ["data", "prepare", "scale=smoke", "output_root={}"],
    "preview": ["data", "preview", "scale=smoke", "output_root={}"],
    "reproduce": ["reproduce", "table1", "scale=smoke", "output_root={}"],
    "from": ["reproduce", "table1", "--from", ROOT / "outputs/reference/cpu", "output_root={}"],
    "compare-init": ["compare-init", "scale=smoke", "output_root={}"],
    "plot-slopes": ["plot-slopes", "--output-root", "{}"],
    "plot-curves": ["plot-curves", "{runs}/a-s0", "--to", "{}/curves.png"],
}


@pytest.mark.parametrize("command", WRITING)
def test_a_command_refuses_a_place_that_cannot_be_written(delving, bad_root, tmp_path, command):
    runs = make_run(tmp_path, "a-s0", changed()).parent
    before = sorted(tmp_path.rglob("*"))
    words = [str(word).format(bad_root, runs=runs) for word in WRITING[command]]
    code, out, err = delving(*words)
    assert (code, out) == (2, "")
    assert one_line(err)
    assert str(bad_root) in err
    assert sorted(tmp_path.rglob("*")) == before


def test_commands_that_write_nothing_mind_no_place(delving, bad_root):
    words = ["reproduce", "table1", "scale=smoke", "--plan", f"output_root={bad_root}"]
    code, out, err = delving(*words)
    if len(bad_root.name) > 255 and sys.version_info < (3, 14):  # not even looked up
        assert code == 2
        assert one_line(err)
        assert str(bad_root) in err
    else:
        assert (code, err) == (0, "")
        assert "to train" in out
    code, out, err = delving("doctor", "--output-root", bad_root)
    assert (code, err) == (0, "")
    assert f"disk           {bad_root} cannot be written: " in out


def test_a_deleted_working_directory_is_named(delving, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, out, err = delving("show", "scale=smoke")
    assert (code, out) == (2, "")
    assert err == "delving: the working directory was deleted: go to one that is there\n"


# --- errors and interruptions ---
@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (MemoryError(), "out of memory", 1),
        (RuntimeError("CUDA error\nCompile\n  with"), "CUDA error Compile with", 1),
        (RuntimeError(), "RuntimeError", 1),
        (KeyError("eval"), "KeyError: 'eval'", 1),
        (AssertionError(), "AssertionError", 1),
        (ValueError("  "), "ValueError", 2),
        (ValueError("a\x1b[2Jb"), r"a\x1b[2Jb", 2),
        (OSError(errno.ENOSPC, "No space left", "a/b"), "a/b: No space left", 1),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only file system", 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a"), "a: File name too long", 2),
        (FileExistsError(errno.EEXIST, "File exists", Path("a")), "a: File exists", 2),
        (PermissionError(errno.EACCES, "Permission denied", b"a"), "a: Permission denied", 2),
        (BlockingIOError(), "BlockingIOError", 1),
        (ExceptionGroup("two", [ValueError()]), "ExceptionGroup: two (1 sub-exception)", 1),
    ],
)  # fmt: skip
def test_every_error_is_a_line_that_says_something(capsys, error, said, code):
    def fail():
        raise error

    assert exits.exit_code(fail) == code
    assert capsys.readouterr().err == f"delving: {said}\n"


def test_no_error_is_longer_than_a_screen(capsys):
    def fail():
        raise RuntimeError("frame #0\n" * 10_000)

    assert exits.exit_code(fail) == 1
    assert len(capsys.readouterr().err) < 2100


def test_a_command_is_missing_and_the_help_says_which_there_are(delving):
    code, out, err = delving()
    assert (code, err) == (2, "")
    assert "reproduce" in out


def test_an_import_that_makes_another_error_of_an_interruption_hides_nothing(capsys):
    def import_torch():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("numpy's core cannot be imported") from error

    before = signal.getsignal(signal.SIGINT)
    assert exits.exit_code(import_torch) == 130
    assert capsys.readouterr().err == "delving: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interruption_that_was_to_be_ignored_is_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert exits.exit_code(lambda: os.kill(os.getpid(), signal.SIGINT) or 7) == 7
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["list"], "typer"),
        (["list"], "delving.groups"),
        (["show"], "hydra"),
        (["train", "scale=smoke"], "rich"),
    ],
)
def test_an_interruption_while_starting_leaves_no_traceback(words, module):
    code = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n" + ENTRY
    )
    found, out, err = run(*words, code=code)
    assert found == 130
    assert b"Traceback" not in err
    assert out == b""


def test_a_listing_leaves_no_file_open():
    assert run("list", "runs", PYTHONDEVMODE="1")[::2] == (0, b"")


def test_a_librarys_warning_is_one_plain_line(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    terminal.settle_warnings()
    sys.stderr.write(warnings.formatwarning("no\x1b[2J\n driver", UserWarning, "x.py", 3))
    assert capsys.readouterr().err == "delving: warning: no\\x1b[2J driver\n"


# --- every command, everywhere ---
SMOKE = ["scale=smoke", "device=cpu", "precision=fp32", "data.workers=0", "train.epochs=0.4"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An output root with two finished runs."""
    root = tmp_path_factory.mktemp("outputs")
    for seed in (0, 1):
        words = [*SMOKE, "eval.protocols=center", f"seed={seed}", f"output_root={root}"]
        assert run("train", *words)[0] == 0
    return root


ONE, OTHER = (f"small14-prelu-he-epochs0.4-precisionfp32-protocolscenter-s{n}" for n in (0, 1))
COMMANDS = {
    "help": ["--help"],
    "train": ["train", *SMOKE, "eval.protocols=center", "output_root={root}"],
    "train -m": ["train", "-m", *SMOKE, "seed=0,1", "eval.protocols=center", "output_root={root}"],
    "eval": ["eval", ONE, "protocol=center", "output_root={root}"],
    "show": ["show", "scale=smoke"],
    "list": ["list"],
    "list runs": ["list", "runs", "--output-root", "{root}"],
    "prepare": ["data", "prepare", "scale=smoke", "output_root={root}"],
    "verify": ["data", "verify", "scale=smoke", "output_root={root}"],
    "preview": ["data", "preview", "scale=smoke", "output_root={root}"],
    "plan": ["reproduce", "table1", "scale=smoke", "--plan", "output_root={root}"],
    "from": ["reproduce", "table1", "--from", f"{ROOT}/outputs/reference/cpu",
             "output_root={root}/redrawn"],
    "compare-init": ["compare-init", "depth=14", *SMOKE, "output_root={root}/compared"],
    "plot-slopes": ["plot-slopes", ONE, "--output-root", "{root}"],
    "plot-curves": ["plot-curves", ONE, OTHER, "--output-root", "{root}", "--to", "{root}/c.png"],
    "ensemble": ["ensemble", ONE, OTHER, "--output-root", "{root}"],
    "doctor": ["doctor", "--output-root", "{root}"],
}  # fmt: skip
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": None}
SURROUNDINGS = {
    "closed": {"shell": "<&- >&- 2>&-"},
    "a file": {"shell": "> /dev/null"},
    "bare": BARE | {"COLUMNS": "1", "TERM": "dumb"},
    "homeless": {"HOME": None, "TMPDIR": "/nonexistent", "COLUMNS": "0"},
    "read-only home": {"HOME": "/proc", "XDG_CACHE_HOME": "/proc/x", "COLUMNS": "abc"},
    "development": {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error::ResourceWarning"},
}


@pytest.mark.long
@pytest.mark.tally(
    "a command in odd surroundings (no terminal, no home, LC_ALL=C, 20 columns, ...)"
)
@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works_in_all_surroundings(trained, tmp_path, command, surroundings):
    words = [word.format(root=trained) for word in COMMANDS[command]]
    code, out, err = run(*words, cwd=tmp_path, **SURROUNDINGS[surroundings])
    assert code == 0, err
    if surroundings != "development":  # which warns about other libraries too
        assert err == b""
    assert b"unclosed" not in err
    assert b"\x1b" not in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.tally("a command that cannot print: one line and exit 1")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_fails_in_a_line_where_nothing_can_be_printed(trained, command):
    words = [word.format(root=trained) for word in COMMANDS[command]]
    code, _, err = run(*words, shell="> /dev/full")
    assert code == 1
    assert one_line(err.decode())
    assert "No space left on device" in err.decode()
    assert command == "help" or "standard output: " in err.decode()  # help is typer's


@pytest.mark.long
def test_a_training_on_a_terminal_of_twenty_columns_stays_in_them(tmp_path):
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    variables = os.environ | {"TERM": "xterm", "OMP_NUM_THREADS": "1"}
    variables["PYTHONPATH"] = python_path(ROOT)
    variables.pop("COLUMNS", None)
    words = ["train", "scale=smoke", "train.epochs=9", f"output_root={tmp_path}"]
    command = [sys.executable, "-c", ENTRY, *words]
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=variables) as process:
        os.close(side)
        seen = b""
        with contextlib.suppress(OSError):  # raised when the terminal's other side ends
            while data := os.read(main, 4096):
                seen += data
    os.close(main)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", seen.decode())
    bars = [line for line in re.split("[\r\n]+", text) if "\u2501" in line]
    assert len(bars) > 2
    assert max(map(len, bars)) <= 20
    assert "converged after" in text or "stalled after" in text
