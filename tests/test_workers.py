"""Tasks side by side: each one is done or fails by name, and no process is left behind."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delving import workers
from delving.signals import HEEDED, Interrupted
from delving.workers import Task, work_through

# What a worker does in these tests instead of delving.work: the same protocol, with misfortunes.
WORK = """
import json, os, signal, sys, time
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append("TERM"))
signal.signal(signal.SIGUSR1, lambda *_: heard.append("USR1"))
def tell(**event):
    print(json.dumps(event), flush=True)
def wait(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
for line in iter(sys.stdin.readline, ""):
    task = json.loads(line)
    tell(event="begin", pid=os.getpid(), at=time.monotonic(), session=os.getsid(0),
         threads=os.environ["OMP_NUM_THREADS"], sharing=os.environ["DELVING_SHARING"])
    do = task.get("do")
    if do == "sleep":
        time.sleep(task["seconds"])
    elif do == "fail":
        tell(event="failed", error="no such image", wall=0.5)
        continue
    elif do == "die":
        os.write(2, task["words"].encode("latin-1"))
        os._exit(3)
    elif do == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "starting":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    elif do == "unlucky":
        if not os.path.exists(task["mark"]):
            open(task["mark"], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    elif do == "held":
        if not os.path.exists(task["mark"]):
            open(task["mark"], "w").close()
            tell(event="held", error="held by process 7", wall=0.0)
            continue
    elif do == "heed_and_die":
        tell(event="ready")
        while not heard:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "babble":
        print('{"event": "st', flush=True)
    elif do == "deaf":
        os.close(0)
        tell(event="done", wall=0.0)
        time.sleep(0.6)
        os._exit(0)
    elif do == "heed":
        tell(event="ready")
        while not heard:
            time.sleep(0.01)
        wait(0.5)
        tell(event="interrupted", error=" ".join(heard) + ": saved", wall=0.0)
        continue
    elif do == "ignore":
        tell(event="ready")
        while not heard:
            time.sleep(0.01)
        wait(0.3)
    tell(event="end", at=time.monotonic())
    tell(event="done", wall=0.25)
"""


@pytest.fixture(autouse=True)
def _fake_worker(tmp_path_factory, monkeypatch):
    """Makes `python -m delving.work` find the script above."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "delving").mkdir()
    (folder / "delving" / "__init__.py").write_text("")
    (folder / "delving" / "work.py").write_text(WORK)
    monkeypatch.setattr("delving.launched.PACKAGE", folder)
    monkeypatch.chdir(folder)


class Watched:
    """Collects everything that is told of the tasks, and the processes that did them."""

    def __init__(self, also=lambda name, event: None):
        self.told, self.also, self.inside = [], also, threading.Lock()

    def __call__(self, name, event):
        assert self.inside.acquire(blocking=False), "two told at once"
        self.told.append((name, event))
        self.also(name, event)
        self.inside.release()

    def of(self, kind):
        """{task: its event of that kind}"""
        return {name: event for name, event in self.told if event["event"] == kind}

    def order(self, kind="begin"):
        return [name for name, event in self.told if event["event"] == kind]

    @property
    def pids(self):
        return {name: event["pid"] for name, event in self.of("begin").items()}


def task(name, do="nothing", *, after=(), alone=False, **message):
    return Task(name, {"do": do, **message}, frozenset(after), alone)


def sleeping(name, seconds=0.15, **rest):
    return task(name, "sleep", seconds=seconds, **rest)


def lasting(seconds, planned):
    """A task that is planned to take these seconds."""
    return replace(planned, seconds=seconds)


def work(*tasks, jobs=1, watch=None):
    """Does the tasks: ({name: error}, what was told), after checking that no process is left."""
    watch = watch or Watched()
    outcomes = work_through(tasks, jobs=jobs, watch=watch)
    assert sorted(o.task.name for o in outcomes) == sorted(t.name for t in tasks)
    check_nobody_is_left(watch)
    return {o.task.name: o.error for o in outcomes}, watch


def check_nobody_is_left(watch):
    for pid in watch.pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# --- what becomes of a task ---
def test_every_task_is_done_and_told_from_its_first_event_to_its_outcome():
    errors, watch = work(task("a"), task("b"), task("c"), jobs=2)
    assert errors == {"a": None, "b": None, "c": None}
    for name in "abc":
        mine = [event["event"] for of, event in watch.told if of == name]
        assert mine == ["begin", "end", "outcome"]
    outcome = watch.of("outcome")["a"]["outcome"]
    assert (outcome.task.name, outcome.error, outcome.wall) == ("a", None, 0.25)


def test_nothing_to_do_starts_nobody():
    errors, watch = work()
    assert (errors, watch.told) == ({}, [])


def test_a_task_that_fails_stops_no_other():
    errors, _ = work(task("a", "fail"), task("b"), task("c", "fail"), task("d"), jobs=2)
    assert errors == {"a": "no such image", "b": None, "c": "no such image", "d": None}


def test_one_worker_does_one_task_after_the_other_in_their_order():
    _, watch = work(*map(task, "dbca"))
    assert watch.order() == list("dbca")
    assert len(set(watch.pids.values())) == 1


def test_several_workers_work_side_by_side_on_a_core_each():
    _, watch = work(sleeping("a", 0.4), sleeping("b", 0.4), jobs=2)
    begun, ended = (watch.of(kind) for kind in ("begin", "end"))
    assert max(e["at"] for e in begun.values()) < min(e["at"] for e in ended.values())
    assert len(set(watch.pids.values())) == 2
    assert {e["threads"] for e in begun.values()} == {"1"}
    assert {e["sharing"] for e in begun.values()} == {"2"}  # so that they share the spare cores


# --- workers that die ---
def test_a_worker_that_dies_has_failed_its_task_with_its_last_words_and_is_replaced():
    errors, watch = work(task("a", "die", words="Traceback\nMemoryError: too large\n"), task("b"))
    assert errors == {"a": "the worker died (exit 3): MemoryError: too large", "b": None}
    assert watch.pids["a"] != watch.pids["b"]


def test_last_words_in_another_encoding_are_told_as_far_as_they_can_be_read():
    errors, _ = work(task("a", "die", words="caf\xe9: too large"), task("b"))
    assert errors == {"a": "the worker died (exit 3): caf\ufffd: too large", "b": None}


def test_a_worker_killed_from_outside_is_told_by_the_signal_alone():
    died = task("a", "die", words="MemoryError")
    errors, _ = work(died, task("b", "killed"), task("c"))
    assert errors["b"] == "the worker was killed (exit -9), as where memory runs out"
    assert errors["c"] is None


def test_one_that_a_signal_ends_before_it_heeds_them_is_told_by_the_signal():
    """Its last words, KeyboardInterrupt, would look like a fault in the program."""
    errors, _ = work(task("a", "starting"))
    assert errors == {"a": "the worker was ended by SIGINT"}


def test_every_task_may_kill_its_worker():
    errors, _ = work(*(task(name, "killed") for name in "abc"), jobs=2)
    assert set(errors) == set("abc")
    assert all("killed" in error for error in errors.values())


def test_what_a_killed_worker_did_is_done_once_more_after_all_that_waits(tmp_path):
    unlucky = task("a", "unlucky", mark=str(tmp_path / "mark"))
    errors, watch = work(unlucky, task("b"), task("c"))
    assert errors == {"a": None, "b": None, "c": None}
    assert watch.order() == ["a", "b", "c", "a"]
    assert watch.order("outcome") == ["b", "c", "a"]
    assert "killed (exit -9)" in watch.of("again")["a"]["error"]


# --- what another process is at ---
def held(name, tmp_path, **rest):
    """A task that is once found to be held by another process."""
    return task(name, "held", mark=str(tmp_path / name), **rest)


def test_what_another_process_is_at_is_looked_at_again_after_a_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "REST", 0.3)
    late = task("late", after=["a"])
    errors, watch = work(held("a", tmp_path), held("b", tmp_path), late, task("c"))
    assert errors == dict.fromkeys(["a", "b", "c", "late"])
    assert watch.order()[:3] == ["a", "b", "c"]  # the others are done meanwhile
    assert watch.order("held") == ["a", "b"]  # told once each
    assert watch.order().count("a") == 2
    first, again = (event["at"] for name, event in watch.told
                    if (name, event["event"]) == ("a", "begin"))  # fmt: skip
    assert again - first >= 0.3
    names = [(name, event["event"]) for name, event in watch.told]
    assert names.index(("a", "outcome")) < names.index(("late", "begin"))


def test_what_is_held_is_not_waited_for_beyond_the_time_there_is(tmp_path):
    waiting = lasting(9.0, held("a", tmp_path))
    done = work_through([waiting, task("b")], jobs=1, watch=Watched(), until=time.monotonic() + 9.5)
    assert [outcome.task.name for outcome in done] == ["b"]


def test_it_is_done_once_more_only_once():
    errors, watch = work(task("a", "killed"), task("b"))
    assert watch.order() == ["a", "b", "a"]
    assert watch.order("again") == ["a"]
    assert watch.order("outcome") == ["b", "a"]
    assert "killed" in errors["a"]


def test_what_fails_or_dies_by_itself_is_not_done_again():
    _, watch = work(task("a", "fail"), task("b", "die", words="MemoryError"))
    assert watch.order() == ["a", "b"]


def test_who_waits_for_a_task_waits_for_its_second_try(tmp_path):
    unlucky = task("a", "unlucky", mark=str(tmp_path / "mark"))
    _, watch = work(unlucky, task("late", after=["a"]), task("b"), jobs=2)
    assert watch.order().count("a") == 2
    names = [(name, event["event"]) for name, event in watch.told]
    assert names.index(("a", "outcome")) < names.index(("late", "begin"))


def test_after_a_signal_nothing_is_done_again():
    watch = send(signal.SIGTERM)
    with pytest.raises(Interrupted):
        work_through([task("a", "heed_and_die"), task("b")], jobs=1, watch=watch)
    assert watch.order() == ["a"]
    assert "killed" in watch.of("outcome")["a"]["outcome"].error
    check_nobody_is_left(watch)


def test_a_worker_cut_off_in_the_middle_of_a_line_fails_its_task_alone():
    errors, watch = work(task("a", "babble"), task("b"))
    assert "the worker is gone" in errors["a"]
    assert watch.pids["a"] != watch.pids["b"]
    assert errors["b"] is None


@pytest.mark.parametrize("last", [True, False])
def test_a_worker_that_no_longer_listens_fails_the_next_task_alone(last):
    tasks = [task("a", "deaf"), task("b"), *([] if last else [sleeping("c")])]
    errors, _ = work(*tasks, watch=Watched(lambda name, event: time.sleep(0.05)))
    assert errors["a"] is None
    assert "the worker is gone" in errors["b"]


# --- who waits for whom ---
@pytest.mark.parametrize("fate", ["sleep", "fail", "killed"])
def test_a_task_begins_once_those_it_waits_for_have_ended_however_they_did(fate):
    first = task("first", fate, seconds=0.2)
    errors, watch = work(task("late", after=["first", "unknown"]), first, task("other"), jobs=2)
    names = [(name, event["event"]) for name, event in watch.told]
    assert names.index(("first", "outcome")) < names.index(("late", "begin"))
    assert errors["late"] is None
    assert (errors["first"] is None) == (fate == "sleep")


@settings(max_examples=6)
@given(
    waits=st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=2, max_size=5),
    fates=st.lists(st.sampled_from(["nothing", "fail", "killed"]), min_size=5, max_size=5),
    jobs=st.integers(1, 3),
)
def test_whoever_waits_for_whom_every_task_comes_to_an_end_in_order(waits, fates, jobs):
    after = {f"t{n}": {f"t{m}" for m in some if m < n} for n, some in enumerate(waits)}
    tasks = [task(name, fates[n], after=some) for n, (name, some) in enumerate(after.items())]
    errors, watch = work(*reversed(tasks), jobs=jobs)
    assert {name: error is None for name, error in errors.items()} == {
        name: fate == "nothing" for name, fate in zip(after, fates, strict=False)
    }
    told = [(name, event["event"]) for name, event in watch.told]
    for name, some in after.items():
        for other in some:
            assert told.index((other, "outcome")) < told.index((name, "begin"))


def test_tasks_that_want_to_be_alone_come_last_one_by_one_with_all_cores():
    alone = [sleeping(name, 0.05, alone=True) for name in ("x", "y")]
    _, watch = work(alone[0], sleeping("a"), alone[1], sleeping("b"), jobs=2)
    assert watch.order()[2:] == ["x", "y"]
    begun, ended = (watch.of(kind) for kind in ("begin", "end"))
    assert max(ended[name]["at"] for name in "ab") < begun["x"]["at"]
    assert ended["x"]["at"] < begun["y"]["at"]
    assert {name: begun[name]["threads"] for name in "abxy"} == {
        "a": "1", "b": "1", "x": str(os.cpu_count()), "y": str(os.cpu_count())
    }  # fmt: skip
    assert [begun[name]["sharing"] for name in "abxy"] == ["2", "2", "1", "1"]


# --- signals ---
def send(number, times=1):
    """A watcher that sends this process a signal, `times` over, as soon as a task is ready."""

    def watch(name, event):
        if event["event"] == "ready":
            os.kill(os.getpid(), number)
            for _ in range(times - 1):
                threading.Timer(0.1, os.kill, (os.getpid(), number)).start()

    return Watched(watch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_once_and_nothing_more_is_begun(number):
    watch = send(number, times=2)
    before = {n: signal.getsignal(n) for n in HEEDED}
    tasks = [task("a", "heed"), task("b"), task("c", alone=True)]
    with pytest.raises(Interrupted) as interruption:
        work_through(tasks, jobs=1, watch=watch)
    assert interruption.value.signal == number
    assert watch.order() == ["a"]
    told = number.name.removeprefix("SIG")
    assert watch.of("outcome")["a"]["outcome"].error == f"{told}: saved"
    assert {n: signal.getsignal(n) for n in HEEDED} == before
    check_nobody_is_left(watch)


def test_every_worker_at_work_is_told_and_one_that_ignores_it_is_waited_for():
    ready = []

    def interrupt(name, event):
        if event["event"] == "ready":
            ready.append(name)
            if len(ready) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    watch = Watched(interrupt)
    with pytest.raises(Interrupted):
        work_through([task("a", "heed"), task("b", "ignore")], jobs=2, watch=watch)
    outcomes = {name: event["outcome"].error for name, event in watch.of("outcome").items()}
    assert outcomes == {"a": "TERM: saved", "b": None}
    check_nobody_is_left(watch)


def test_a_worker_hears_nothing_of_the_terminals_interruption():
    _, watch = work(task("a"))
    assert watch.of("begin")["a"]["session"] == watch.pids["a"] != os.getsid(0)


def test_an_error_of_the_watcher_leaves_nobody_behind():
    class Broken(Exception):
        pass

    def fail(name, event):
        if event["event"] == "outcome":
            raise Broken

    watch = Watched(fail)
    with pytest.raises(Broken):
        work_through([task("a"), task("b")], jobs=1, watch=watch)
    check_nobody_is_left(watch)


# --- a time limit ---
def test_what_would_end_too_late_is_not_begun_nor_what_comes_after_it():
    watch = Watched()
    tasks = [lasting(1000, task("long")), task("after", after=["long"]), task("short"),
             lasting(1, task("fits", after=["short"])), task("alone", after=["after"], alone=True),
             task("last", after=["fits"], alone=True)]  # fmt: skip
    outcomes = work_through(tasks, jobs=2, watch=watch, until=time.monotonic() + 100)
    assert sorted(o.task.name for o in outcomes) == ["fits", "last", "short"]
    assert sorted(watch.order()) == ["fits", "last", "short"]
    check_nobody_is_left(watch)


def test_what_serves_others_alone_is_begun_where_one_of_them_may_be():
    for seconds, begun in ((1000, []), (1, ["images", "run"])):
        watch = Watched()
        tasks = [
            replace(task("images"), serves=True),
            lasting(seconds, task("run", after=["images"])),
            lasting(1000, task("other", after=["images"])),
        ]
        work_through(tasks, jobs=1, watch=watch, until=time.monotonic() + 100)
        assert watch.order() == begun


def test_time_that_others_take_counts():
    watch = Watched()
    tasks = [sleeping("first", 0.5), lasting(0.2, task("second")), task("third")]
    outcomes = work_through(tasks, jobs=1, watch=watch, until=time.monotonic() + 0.6)
    assert "second" not in watch.order()
    assert [o.error for o in outcomes] == [None] * len(outcomes)


def test_without_time_nothing_is_begun():
    watch = Watched()
    assert work_through([task("a")], jobs=1, watch=watch, until=time.monotonic() - 1) == []
    assert watch.told == []
