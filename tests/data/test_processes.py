"""Loader processes that die, hang or fail are reported in a line, and none is left behind."""

import faulthandler
import gc
import multiprocessing
import os
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from delving.data import parcel, processes
from delving.data.images import UndecodableImageError
from delving.data.loader import iterate
from delving.data.processes import LoaderError

KEYS = range(100, 112)
ODD = 104  # the key at which something happens
GRACE = 0.5  # seconds instead of 2, all of which most of these tests would wait
SLACK = 3.0  # seconds, for a busy machine


@dataclass(frozen=True)
class Numbers:
    """Items that are tensors of their key; `act` is called before the one `at` a key."""

    act: object = None
    at: int = ODD

    def __getitem__(self, key):
        if self.act and key == self.at:
            self.act()
        return torch.full((3,), key), os.getpid()

    def describe(self, key):
        return f"step {key} (a.jpg, b.jpg)"


def take(dataset, workers=2, **limits):
    return [item for item, _ in iterate(dataset, KEYS, workers=workers, pin=False, **limits)]


def children():
    """The ids of this process's children, zombies too, from the kernel."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name_less = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(name_less[1]) == os.getpid():
            found.append(int(path.parent.name))
    return found


@pytest.fixture(autouse=True)
def _less_grace(monkeypatch):
    monkeypatch.setattr(processes, "GRACE", GRACE)


@pytest.fixture(autouse=True)
def _no_process_is_left():
    before = set(children())
    yield
    gc.collect()  # a discarded iterator ends its processes
    assert multiprocessing.active_children() == []
    assert set(children()) <= before


# --- what may happen in a loader process ---
def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def crash():
    faulthandler.disable()  # pytest's own would print a traceback
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def hang():
    time.sleep(600)


def stop_self():
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_within_an_item():
    """Its message is sent whole, but its tensors are not."""
    parcel._send_file = lambda *_: stop_self()


def stop_within_a_message():
    def begin(pipe, _):
        os.write(pipe.fileno(), struct.pack("!i", 99))
        stop_self()

    Connection.send = begin


def run_out_of_memory():
    raise MemoryError


def fail_to_read():
    raise OSError(5, "Input/output error", "a.jpg")


class TwoArgumentsError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raise_odd():
    raise TwoArgumentsError(1, 2)


def refuse():
    raise ValueError("no training image can be decoded")


def refuse_an_image():
    raise UndecodableImageError("a.jpg cannot be decoded")


def refuse_a_text():
    b"\xff".decode()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_items_come_in_order_and_come_all(workers):
    assert [int(item[0]) for item in take(Numbers(), workers)] == list(KEYS)


@dataclass(frozen=True)
class Large(Numbers):
    """Items too large for a pipe's buffer: sending waits for a reader."""

    def __getitem__(self, key):
        return torch.full((2**20,), float(key)), (torch.tensor([key]), f"key {key}")


@pytest.fixture
def elsewhere(monkeypatch):
    """A system on which processes cannot hand on shared memory, such as macOS."""
    monkeypatch.setattr(parcel, "SHARED", False)


@pytest.mark.parametrize("workers", [1, 3])
def test_items_come_as_bytes_where_memory_cannot_be_handed_on(elsewhere, workers):
    found = list(iterate(Large(), KEYS, workers=workers, pin=False))
    for key, (many, (number, name)) in zip(KEYS, found, strict=True):
        assert torch.equal(many, torch.full((2**20,), float(key)))
        assert (number.tolist(), name) == ([key], f"key {key}")
        number += 1  # the memory can be written to
        assert number.tolist() == [key + 1]


def test_a_reader_that_leaves_amid_the_bytes_is_told_as_such(elsewhere):
    """A loader process then ends quietly. A view of the bytes that the error keeps alive would
    forbid closing them, with an error of its own that nobody expects."""
    ours, theirs = multiprocessing.Pipe()

    def leave():
        ours.recv()
        ours.close()

    reader = threading.Thread(target=leave)
    reader.start()
    with theirs, pytest.raises(ConnectionError):
        parcel.send(theirs, True, torch.zeros(2**23))
    reader.join()


def test_a_closed_iterator_ends_processes_that_are_at_sending(elsewhere):
    items = iterate(Large(), KEYS, workers=2, pin=False)
    next(items)
    items.close()
    assert children() == []


def test_the_processes_take_turns():
    pids = [pid for _, pid in iterate(Numbers(), KEYS, workers=3, pin=False)]
    assert len(set(pids)) == 3
    assert pids == pids[:3] * 4
    assert os.getpid() not in pids


def test_nothing_is_asked_for_nothing_comes():
    assert list(iterate(Numbers(), range(0), workers=2, pin=False)) == []


@pytest.mark.parametrize(
    ("act", "said", "workers"),
    [
        (kill_self, r"was killed by SIGKILL \(was memory short\?\)", 1),
        (kill_self, r"was killed by SIGKILL \(was memory short\?\)", 4),
        (crash, r"was killed by SIGSEGV", 2),
        (leave, r"ended, exit code 3", 2),
    ],
)
def test_a_process_that_dies_is_told_at_once_with_what_it_was_at(act, said, workers):
    before = time.monotonic()
    with pytest.raises(LoaderError, match=said) as found:
        take(Numbers(act), workers, timeout=60)
    assert time.monotonic() - before < GRACE + SLACK
    assert re.search(r"\(pid \d+\) .* at step 104 \(a\.jpg, b\.jpg\)$", str(found.value))


@pytest.mark.parametrize(
    ("act", "workers"),
    [(hang, 1), (stop_self, 3), (stop_within_an_item, 2), (stop_within_a_message, 1)],
)
def test_a_process_that_hangs_is_told_after_the_timeout_and_killed(act, workers):
    before = time.monotonic()
    with pytest.raises(LoaderError, match=r"gave nothing for 1 s \(data\.timeout\) at step 104"):
        take(Numbers(act), workers, timeout=1)
    assert 1 <= time.monotonic() - before < 1 + GRACE + SLACK


def test_a_slow_process_is_borne_where_no_timeout_is_given():
    assert len(take(Numbers(lambda: time.sleep(1.5)))) == len(KEYS)


def test_a_process_killed_between_two_items_is_missed():
    items = iterate(Numbers(), KEYS, workers=2, pin=False, timeout=60)
    next(items)
    time.sleep(0.3)  # by now they have made their items
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with pytest.raises(LoaderError, match=rf"\(pid {victim.pid}\) was killed by SIGKILL"):
        list(items)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (run_out_of_memory, "MemoryError (in a loader process, at step 104 (a.jpg, b.jpg))"),
        (
            fail_to_read,
            "OSError: [Errno 5] Input/output error: 'a.jpg' (in a loader process, "
            "at step 104 (a.jpg, b.jpg))",
        ),
        (
            raise_odd,
            "TwoArgumentsError: 1 and 2 (in a loader process, at step 104 (a.jpg, b.jpg))",
        ),
    ],
)
def test_an_error_in_a_process_is_told_by_kind_without_a_traceback(act, said):
    with pytest.raises(LoaderError) as found:
        take(Numbers(act))
    assert str(found.value) == said


@pytest.mark.parametrize("act", [refuse, refuse_an_image, refuse_a_text])
def test_bad_data_is_told_as_without_processes(act):
    with pytest.raises(ValueError, match=r".") as here:
        act()
    with pytest.raises(ValueError, match=r".") as there:
        take(Numbers(act))
    assert str(there.value) == str(here.value)
    assert isinstance(there.value, UndecodableImageError) == (act is refuse_an_image)


class Unsendable(Numbers):
    def __getitem__(self, key):
        return (lambda: key), key


def test_an_item_that_cannot_be_sent_is_told_too():
    with pytest.raises(LoaderError, match=r"in a loader process, at step 100"):
        take(Unsendable())


# --- who stops before the end ---
class Ours:
    """Like what lies on a GPU: only the process that made it may free it."""

    def __init__(self):
        self.ring, self.owner = self, os.getpid()

    def __del__(self):
        if os.getpid() != self.owner:
            os.abort()


def test_garbage_of_the_parent_is_not_collected_in_the_processes():
    Ours()
    assert len(take(Numbers(gc.collect), workers=1)) == len(KEYS)
    assert gc.isenabled()
    gc.collect()


def test_a_closed_iterator_ends_its_processes():
    with closing(iterate(Numbers(), KEYS, workers=3, pin=False)) as items:
        next(items)
        assert len(multiprocessing.active_children()) == 3
    assert multiprocessing.active_children() == []


def test_an_iterator_that_is_let_go_ends_its_processes():
    for item, _ in iterate(Numbers(), KEYS, workers=2, pin=False):
        if item[0] == KEYS[3]:
            break
    assert multiprocessing.active_children() == []


def test_an_error_of_the_consumer_ends_them():
    def consume():
        for item, _ in iterate(Numbers(), KEYS, workers=2, pin=False):
            if item[0] == KEYS[3]:
                raise KeyError("mine")

    with pytest.raises(KeyError) as found:
        consume()
    del found  # its traceback holds the iterator


def test_one_that_hangs_is_killed_where_the_consumer_stops():
    items = iterate(Numbers(hang, at=KEYS[2]), KEYS, workers=2, pin=False)
    next(items)
    before = time.monotonic()
    items.close()
    assert time.monotonic() - before < GRACE + SLACK


def test_an_iterator_never_begun_starts_no_process():
    items = iterate(Numbers(), KEYS, workers=2, pin=False)
    assert multiprocessing.active_children() == []
    items.close()


def test_validation_in_the_midst_of_training_disturbs_neither():
    seen = []
    for item, _ in iterate(Numbers(), KEYS, workers=2, pin=False, timeout=60):
        seen.append(int(item[0]))
        if item[0] % 5 == 0:
            assert len(take(Numbers())) == len(KEYS)
    assert seen == list(KEYS)


def test_one_that_dies_while_training_computes_is_no_trouble_until_it_is_waited_for():
    """The error must not interrupt a checkpoint that is being written."""
    items = iterate(Numbers(), KEYS, workers=2, pin=False)
    next(items)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    for _ in range(20):
        time.sleep(0.01)
    with pytest.raises(LoaderError, match="SIGKILL"):
        list(items)


# --- at any time ---
@dataclass(frozen=True)
class Uneven(Numbers):
    """Items that take from 0 to 4 ms, with up to some hundred names."""

    def __getitem__(self, key):
        time.sleep(key * 7919 % 5 / 1000)
        return torch.full((64, 64), key), [f"{n}.jpg" for n in range(key * 31 % 400)]


def leave_alone(children, rng):
    pass


def kill_one(children, rng):
    os.kill(rng.choice(children).pid, signal.SIGKILL)


def kill_all(children, rng):
    for child in children:
        os.kill(child.pid, signal.SIGKILL)


def stop_one(children, rng):
    os.kill(rng.choice(children).pid, signal.SIGSTOP)


def tell_all_to_end(children, rng):
    for child in children:  # as a terminal or a scheduler does
        os.kill(child.pid, signal.SIGTERM)


def count_wrong(act, seed):
    """The number of wrong items in a run that is disturbed somewhere, and whether it came to its
    end."""
    rng, got, wrong = random.Random(seed), 0, 0
    at, workers = rng.randrange(40), rng.choice([1, 2, 3])
    with closing(iterate(Uneven(), range(50), workers=workers, pin=False, timeout=1)) as items:
        try:
            for tensor, names in items:
                wrong += not (tensor == got).all() or len(names) != got * 31 % 400
                got += 1
                if got == at:
                    time.sleep(rng.random() / 100)
                    act(multiprocessing.active_children(), rng)
        except LoaderError:
            return wrong, False
    return wrong, got == 50


@pytest.mark.parametrize(
    "tries", [3, pytest.param(60, marks=pytest.mark.long)], ids=["few", "many"]
)
@pytest.mark.parametrize("act", [leave_alone, kill_one, kill_all, stop_one, tell_all_to_end])
def test_whenever_it_happens_no_item_is_wrong_and_no_process_left(act, tries, tally):
    failures, ends = 0, 0
    for seed in range(tries):
        wrong, end = count_wrong(act, seed)
        left = multiprocessing.active_children() + sorted(set(children()) - BEFORE)
        failures += bool(wrong or left)
        ends += end
    what = act.__name__.replace("_", " ")
    tally(f"loader processes, {what} at any time: no wrong item, no process left", tries, failures)
    assert failures == 0
    if act in (leave_alone, tell_all_to_end):
        assert ends == tries
    else:
        assert ends < tries


BEFORE = set(children())


# --- page-locked memory ---
@pytest.fixture
def pinned(monkeypatch):
    """The tensors pinned so far, with a stand-in for a GPU's page-locked memory."""
    found = []

    def pin(tensor):
        found.append(tensor.clone())
        return found[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 5)
    monkeypatch.setattr(torch.accelerator, "set_device_index", devices.append)
    devices.clear()
    return found


devices = []  # those that a thread was told to work on


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_tensor_is_pinned_once_and_their_order_stays(pinned, workers):
    items = [item for item, _ in iterate(Numbers(), KEYS, workers=workers, pin=True)]
    assert [int(item[0]) for item in items] == list(KEYS)
    assert all(a is b for a, b in zip(items, pinned, strict=True))
    assert devices == ([5] if workers else [])  # the thread's GPU is the caller's


def test_pinning_is_one_item_ahead(pinned):
    items = iterate(Numbers(), KEYS, workers=1, pin=True)
    next(items)
    latest = time.monotonic() + SLACK
    while len(pinned) < 2 and time.monotonic() < latest:
        time.sleep(0.01)
    assert len(pinned) == 2
    items.close()


@pytest.mark.parametrize(
    ("act", "said"),
    [(kill_self, "SIGKILL"), (hang, "gave nothing for 1 s"), (raise_odd, "1 and 2")],
)
def test_what_goes_wrong_is_told_through_the_pinning_thread_too(pinned, act, said):
    with pytest.raises(LoaderError, match=said):
        list(iterate(Numbers(act), KEYS, workers=2, pin=True, timeout=1))


def test_a_closed_iterator_does_not_wait_for_the_pinning_thread(pinned):
    items = iterate(Numbers(hang, at=KEYS[1]), KEYS, workers=1, pin=True)
    next(items)
    before = time.monotonic()
    items.close()
    assert time.monotonic() - before < GRACE + SLACK


# --- the program's own end ---
@dataclass(frozen=True)
class Slow:
    """The first item comes at once, the others take `seconds`."""

    seconds: float

    def __getitem__(self, key):
        time.sleep(self.seconds if key else 0)
        return torch.tensor([key])

    def describe(self, key):
        return str(key)


def begin_and_wait(seconds, pipe):
    """Starts loader processes, sends their ids and takes one item only."""
    items = iterate(Slow(seconds), range(9), workers=3, pin=False)
    next(items)
    pipe.send([child.pid for child in multiprocessing.active_children()])
    time.sleep(600)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for_the_end_of(pids, seconds):
    latest = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < latest:
        time.sleep(0.05)
    return not any(map(is_running, pids))


@pytest.mark.parametrize("seconds", [0, 600], ids=["idle", "hanging"])
def test_loader_processes_end_with_a_parent_that_was_killed(seconds):
    ours, theirs = multiprocessing.Pipe()
    parent = multiprocessing.get_context("fork").Process(
        target=begin_and_wait, args=(seconds, theirs)
    )
    parent.start()
    pids = ours.recv()
    assert len(pids) == 3
    assert all(map(is_running, pids))
    parent.kill()
    parent.join()
    assert wait_for_the_end_of(pids, 2 + SLACK)


PROGRAM = """
import sys
sys.path[:0] = {path!r}
from delving.data.loader import iterate
from test_processes import Slow, multiprocessing

multiprocessing.set_start_method({method!r})
items = iterate(Slow({seconds}), range(9), workers=3, pin=False, timeout={timeout})
next(items)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
{then}
"""


def start_program(folder, *, seconds, then, method="fork", timeout=2):
    """Starts a program with three loader processes; returns it and their ids."""
    path = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    program = PROGRAM.format(path=path, seconds=seconds, then=then, method=method, timeout=timeout)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    return process, [int(pid) for pid in process.stdout.readline().split()]


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("seconds", "then", "code"),
    [
        (600, "raise KeyError('x')", 1),
        pytest.param(0, "raise KeyError('x')", 1, marks=LONG),
        pytest.param(600, "sys.exit(7)", 7, marks=LONG),
        pytest.param(0, "sys.exit(7)", 7, marks=LONG),
        pytest.param(600, "", 0, marks=LONG),
        pytest.param(0, "", 0, marks=LONG),
    ],
)
def test_a_program_that_ends_with_an_iterator_in_its_hand_ends(tmp_path, seconds, then, code):
    process, pids = start_program(tmp_path, seconds=seconds, then=then)
    with process:
        assert len(pids) == 3
        assert process.wait(60) == code
        assert not any(map(is_running, pids))
        assert process.stderr.read().count("Traceback") == (code == 1)
    assert list(tmp_path.iterdir()) == []  # nor does it leave files behind


@LONG
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_may_be_started_as_elsewhere(tmp_path, method):
    """By `spawn` as on macOS, by `forkserver` if a program chooses so before Python 3.14."""
    then = "print(*[int(item[0]) for item in items], flush=True)"
    process, pids = start_program(tmp_path, seconds=0, then=then, method=method, timeout=60)
    with process:
        assert len(pids) == 3
        assert process.stdout.read().split() == [str(key) for key in range(1, 9)]
        assert process.wait(60) == 0
        assert wait_for_the_end_of(pids, SLACK)
        assert process.stderr.read() == ""


def work_a_second():
    before = time.process_time()
    while time.process_time() - before < 1:
        pass


def work_in_a_group(pipe):
    os.setsid()
    items = iterate(Numbers(work_a_second), KEYS, workers=1, pin=False, timeout=4)
    next(items)
    pipe.send(None)
    os._exit(0 if len(list(items)) == len(KEYS) - 1 else 1)


@LONG
def test_the_time_for_which_a_program_is_stopped_does_not_count():
    ours, theirs = multiprocessing.Pipe()
    program = multiprocessing.get_context("fork").Process(target=work_in_a_group, args=(theirs,))
    program.start()
    ours.recv()
    time.sleep(0.2)
    os.killpg(program.pid, signal.SIGSTOP)
    time.sleep(6)
    os.killpg(program.pid, signal.SIGCONT)
    program.join()
    assert program.exitcode == 0
