"""One process at a time works on a run folder; a dead one's lock holds nobody up."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from calling import killed_at

from delving import lock, record
from delving.beside import name_beside
from delving.lock import clear_up, holding, holding_when_free
from delving.record import DiskFullError

HOLD = """
import sys, time
from pathlib import Path
from delving.lock import holding
with holding(Path(sys.argv[1]), beat=float(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts another process that holds the folder until its input is closed."""
    started = []

    def start(beat=lock.BEAT):
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), str(beat)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(command, **pipes, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def sign(folder, **owner):
    folder.mkdir(exist_ok=True)
    owner = {"pid": 1, "host": socket.gethostname(), "since": "yesterday", "key": "theirs"} | owner
    (folder / "lock").write_text(json.dumps(owner))


def test_a_second_process_is_refused_with_pid_host_and_time(holder, tmp_path):
    process = holder()
    with pytest.raises(ValueError, match="one process at a time") as refusal, \
            holding(tmp_path / "run"):  # fmt: skip
        pass
    for named in (str(tmp_path / "run"), str(process.pid), socket.gethostname(), "since '20"):
        assert named in str(refusal.value)
    process.communicate()
    with holding(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_taken_over_at_once(holder, tmp_path, number):
    process = holder()
    process.send_signal(number)
    process.wait()
    assert (tmp_path / "run" / "lock").exists()  # it had no time to tidy up
    started = time.monotonic()
    with holding(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
        assert time.monotonic() - started < 2
    assert not (tmp_path / "run").exists()


def test_what_a_killed_process_had_not_finished_goes_with_the_next_that_holds_the_folder(tmp_path):
    """Even of a file that is not written again, as times once everything is computed."""
    killed_at(os, "replace", lambda: record.write_text(tmp_path / "times.json", "half"))
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "runs").mkdir()
    with holding(tmp_path):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_what_was_left_of_a_lock_that_was_being_made_goes_with_the_next(tmp_path):
    def work():
        with holding(tmp_path / "run"):
            pass

    killed_at(os, "link", work)
    assert len(list((tmp_path / "run").glob(".lock.*"))) == 1
    (tmp_path / "run" / "table.csv").write_text("what else there is")
    work()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["table.csv"]


def test_a_killed_parents_children_do_not_keep_its_lock(tmp_path):
    """As loader processes do not, which are forked and outlive their parent for a while."""
    script = HOLD.replace("print(", "import os\n    os.fork() or time.sleep(60)\n    print(")
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run"), "5"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    try:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with holding(tmp_path / "run"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()


def test_what_stays_empty_is_removed_and_what_does_not_is_kept(tmp_path):
    with holding(tmp_path / "a" / "b"):
        assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["lock"]
    assert not (tmp_path / "a").exists()  # it was made too
    with holding(tmp_path / "run"):
        (tmp_path / "run" / "config.yaml").write_text("")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_who_waits_comes_in_once_the_other_has_ended(holder, tmp_path):
    process = holder()
    threading.Timer(0.3, process.kill).start()
    started, said = time.monotonic(), []
    with holding_when_free(tmp_path / "run", said.append, pause=0.05):
        [told] = said
        assert str(process.pid) in told
        assert told.endswith("its end is waited for")
        assert time.monotonic() - started >= 0.3
        assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("left_by", ["nobody", "a dead one"])
def test_a_full_disk_is_told_in_bytes_and_leaves_no_lock(tmp_path, monkeypatch, left_by):
    if left_by == "a dead one":
        sign(tmp_path / "run")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("delving.lock.os.pwrite", full)
    told = pytest.raises(DiskFullError, match=f"the disk of {tmp_path}/run is full")
    with told, holding(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_another_fault_of_the_disk_is_not_called_a_full_one(tmp_path, monkeypatch):
    def faulty(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("delving.lock.os.pwrite", faulty)
    with pytest.raises(OSError, match="Input/output error"), holding(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


def test_no_sign_of_life_comes_after_the_end(tmp_path, monkeypatch):
    """By then the lock may belong to another process."""
    ended = []

    def slow(handle, path, over, *_):
        over.wait()
        time.sleep(0.05)
        ended.append(path)

    monkeypatch.setattr(lock, "_show_life", slow)
    with holding(tmp_path):
        pass
    assert ended == [tmp_path / "lock"]


def test_of_a_dead_ones_longer_name_nothing_stays_in_the_lock(tmp_path):
    sign(tmp_path, since="long ago, " * 40)
    with holding(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_what_one_left_that_died_when_all_was_done_is_cleared_up(tmp_path):
    """Its lock and a file that it had not finished go; finished files stay."""
    (tmp_path / "result.json").write_text("{}")
    name_beside(tmp_path / "log.jsonl").write_text("")
    clear_up(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # without a lock nobody died here
    sign(tmp_path)
    clear_up(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_where_somebody_works_nothing_is_cleared_up(holder, tmp_path):
    holder()
    name_beside(tmp_path / "run" / "log.jsonl").write_text("")
    clear_up(tmp_path / "run")
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_an_error_inside_releases_it(tmp_path):
    with pytest.raises(KeyError), holding(tmp_path / "run"):
        raise KeyError
    with holding(tmp_path / "run"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}', "[" * 4000, "\x00" * 100,
                                     '{"pid": -1, "host": "h", "since": "s"}'])  # fmt: skip
def test_a_lock_file_of_nobody_is_taken(tmp_path, content):
    (tmp_path / "lock").write_text(content)
    with holding(tmp_path, beat=60):
        pass


# --- where the system's lock says nothing of other machines ---
@contextlib.contextmanager
def showing_life(folder):
    """Touches the folder's lock meanwhile, as its holder does."""
    over = threading.Event()
    handle = os.open(folder / "lock", os.O_RDONLY)
    args = (handle, folder / "lock", over, 0.05, "theirs")
    alive = threading.Thread(target=lock._show_life, args=args)
    alive.start()
    try:
        yield
    finally:
        over.set()
        alive.join()
        os.close(handle)


def refused(folder, said):
    with pytest.raises(ValueError, match=said), holding(folder, beat=0.2):
        pass


def test_another_machines_process_that_shows_life_keeps_the_folder(tmp_path):
    sign(tmp_path, host="elsewhere", pid=7)
    with showing_life(tmp_path):
        refused(tmp_path, r"process 7 on 'elsewhere'")


def test_another_machines_process_that_shows_none_is_forgotten(tmp_path):
    sign(tmp_path, host="elsewhere")
    started = time.monotonic()
    with holding(tmp_path, beat=0.05):
        assert time.monotonic() - started >= 0.15  # the time of three signs was waited


@pytest.fixture
def no_locks(monkeypatch):
    """A disk without support for locks."""
    import errno

    def refuse(handle, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)


def test_without_locks_a_living_process_of_this_machine_keeps_it_while_it_shows_life(
    tmp_path, no_locks
):
    sign(tmp_path, pid=os.getppid())
    with showing_life(tmp_path):
        refused(tmp_path, f"process {os.getppid()}")


@pytest.fixture
def waits(monkeypatch):
    """The seconds of every wait, none of which is really waited."""
    found = []
    monkeypatch.setattr(lock.time, "sleep", found.append)
    return found


def test_without_locks_another_users_living_process_keeps_it_too(tmp_path, no_locks, monkeypatch):
    def refuse(pid, number):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    sign(tmp_path, pid=os.getppid())
    monkeypatch.setattr(lock.os, "kill", refuse)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.utime(tmp_path / "lock"))
    refused(tmp_path, f"process {os.getppid()}")


def test_without_locks_a_dead_process_of_this_machine_is_forgotten_at_once(
    tmp_path, no_locks, waits
):
    """Except for half a beat, in which another latecomer may sign the lock too."""
    child = subprocess.Popen(["true"])
    child.wait()
    sign(tmp_path, pid=child.pid)
    with holding(tmp_path, beat=60):
        assert waits == [30]


def test_without_locks_a_dead_one_of_our_own_number_is_forgotten_at_once(tmp_path, no_locks, waits):
    """As in a container, whose processes get the same ids each time it is started."""
    sign(tmp_path, pid=os.getpid())
    with holding(tmp_path, beat=60):
        assert waits == []


def test_who_waits_for_a_sign_of_life_comes_in_once_the_other_has_left(tmp_path, monkeypatch):
    sign(tmp_path, host="elsewhere")
    waits = []

    def leave(seconds):
        waits.append(seconds)
        (tmp_path / "lock").unlink(missing_ok=True)

    monkeypatch.setattr(lock.time, "sleep", leave)
    with holding(tmp_path, beat=60):
        assert waits == [15]  # a quarter of a beat; the rule is twelve quarters


def test_of_two_that_take_a_dead_ones_folder_at_once_the_later_keeps_it(tmp_path, monkeypatch):
    """As on two machines whose shared disk tells neither of the other's lock."""
    sign(tmp_path, host="elsewhere", key="of the dead")
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: seconds == 0.1 and sign(
        tmp_path, host="third", pid=9))  # fmt: skip
    refused(tmp_path, "process 9 on 'third'")
    assert json.loads((tmp_path / "lock").read_text())["host"] == "third"


def test_of_two_that_make_the_lock_at_once_the_first_has_it(tmp_path, no_locks, monkeypatch):
    real = os.link

    def after_another(beside, path):
        if not path.exists():
            sign(tmp_path, pid=os.getppid())
        real(beside, path)

    monkeypatch.setattr(os, "link", after_another)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.utime(tmp_path / "lock"))
    refused(tmp_path, f"process {os.getppid()}")
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_disk_without_links_has_locks_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with holding(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    assert not (tmp_path / "run").exists()


def test_who_was_taken_for_dead_ends_and_leaves_the_lock_to_the_other(holder, tmp_path):
    process = holder(beat=0.05)
    sign(tmp_path / "run", host="third", pid=9)
    assert process.wait(10) == 1
    assert "is held by process 9 on 'third'" in process.stderr.read()
    assert json.loads((tmp_path / "run" / "lock").read_text())["host"] == "third"


def test_a_lock_that_another_has_taken_over_is_not_removed(tmp_path):
    with holding(tmp_path / "run"):
        sign(tmp_path / "run", host="third")
    assert (tmp_path / "run" / "lock").exists()


def test_the_holder_shows_life(tmp_path):
    with holding(tmp_path, beat=0.02):
        before = (tmp_path / "lock").stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


class TestTheFolderIsRemovedWhileItIsTaken:
    """By its holder, which tidies up, between any two of this process's system calls."""

    def test_between_finding_and_looking_at_it(self, tmp_path, monkeypatch):
        mkdir, calls = os.mkdir, []

        def found_first(path, *args):
            calls.append(path)
            if len(calls) == 1:
                raise FileExistsError(path)  # yet when it is looked at, it is gone
            mkdir(path, *args)

        monkeypatch.setattr(os, "mkdir", found_first)
        with holding(tmp_path / "run"):
            assert (tmp_path / "run" / "lock").exists()
        assert len(calls) > 1

    @pytest.mark.parametrize("times", [1, 20])
    def test_between_making_it_and_the_file(self, tmp_path, monkeypatch, times):
        real, gone = os.open, []

        def gone_first(path, *args, **kwargs):
            if len(gone) < times and path.parent.exists():
                path.parent.rmdir()
                gone.append(path)
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", gone_first)
        with holding(tmp_path / "run"):
            assert (tmp_path / "run" / "lock").exists()
        assert len(gone) == times

    def test_between_opening_and_locking_the_file(self, tmp_path, monkeypatch):
        real, calls = lock._lock, []

        def gone_first(handle, path):
            calls.append(path)
            if len(calls) == 2:  # the first call makes it
                path.unlink()
                path.parent.rmdir()
            return real(handle, path)

        monkeypatch.setattr(lock, "_lock", gone_first)
        with holding(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
        assert len(calls) == 4


@pytest.mark.parametrize("in_the_way", ["a file", "a link to nowhere"])
def test_what_is_no_folder_is_named_at_once(tmp_path, in_the_way):
    place = tmp_path / "runs"
    place.write_text("") if in_the_way == "a file" else place.symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match="runs"), holding(place / "run"):
        pass


@pytest.mark.parametrize("rivals", [6])
def test_of_many_at_once_one_holds_it_at_a_time(tmp_path, rivals):
    script = """
import sys, time
from pathlib import Path
from delving.lock import holding
folder, mark = Path(sys.argv[1]), Path(sys.argv[1]) / "inside"
done = 0
while done < 5:
    try:
        with holding(folder):
            mark.touch(exist_ok=False)
            time.sleep(0.002)
            mark.unlink()
            done += 1
    except ValueError:
        time.sleep(0.001)
"""
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")])
                 for _ in range(rivals)]  # fmt: skip
    assert [process.wait(timeout=60) for process in processes] == [0] * rivals
