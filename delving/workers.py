"""Worker processes that work through tasks side by side, each with its own threads."""

import contextlib
import json
import math
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TextIO

from delving.data.loader import SHARING, count_cores
from delving.launched import child
from delving.signals import HEEDED, Interrupted, counted, heeding_signals

REST = 3.0  # seconds until a task that another process is doing is tried again
PAUSE = 0.2  # between looks at what goes on
TEXT = {"encoding": "utf-8", "errors": "replace"}  # whatever the locale; a library may say anything


@dataclass(frozen=True)
class Task:
    """A line of JSON for a worker; to be begun once the tasks named in `after` have ended."""

    name: str
    message: dict
    after: frozenset[str] = frozenset()
    alone: bool = False  # nothing runs beside it, and it has all cores
    seconds: float = 0.0  # that it may take
    serves: bool = False  # only those after it: without any of them it need not be done


@dataclass
class Outcome:
    """What became of a task: `error` is None if it was done; `wall` is its seconds."""

    task: Task
    error: str | None
    wall: float
    interrupted: bool = False
    killed: bool = False  # by the system, as when memory runs out
    held: bool = False  # by another process, which is doing it


@dataclass
class Worker:
    """A process that does one task at a time."""

    threads: int
    sharing: int  # workers that share the cores, itself among them
    process: subprocess.Popen | None = None
    said: TextIO | None = None  # its standard error

    def do(self, task: Task, watch: Callable[[str, dict], None]) -> Outcome:
        """Does a task, telling its events. A worker that dies fails the task, and is replaced."""
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = self._start()
        try:
            self.process.stdin.write(json.dumps(task.message) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                event = json.loads(line)
                if event["event"] in ("done", "failed", "interrupted", "held"):
                    cut, held = (event["event"] == kind for kind in ("interrupted", "held"))
                    return Outcome(task, event.get("error"), event["wall"], cut, held=held)
                watch(task.name, event)
        except (OSError, ValueError) as error:  # it listens no longer, or was cut off in a line
            self.process.kill()
            self.process.wait()
            return Outcome(task, f"the worker is gone: {error}", 0.0)
        code = self.process.wait()
        error = f"the worker died (exit {code}){self._last_words()}"
        killed = -code == signal.SIGKILL
        if killed:
            error = f"the worker was killed (exit {code}), as where memory runs out"
        elif -code in HEEDED:  # a training heeds them, once it runs
            error = f"the worker was ended by {signal.Signals(-code).name}"
        return Outcome(task, error, 0.0, interrupted=-code in HEEDED, killed=killed)

    def _start(self) -> subprocess.Popen:
        count, self.said = str(self.threads), tempfile.TemporaryFile("w+", **TEXT)  # noqa: SIM115
        return subprocess.Popen(
            **child(
                "delving.work",
                OMP_NUM_THREADS=count,
                MKL_NUM_THREADS=count,
                **{SHARING: str(self.sharing)},
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            **TEXT,
            start_new_session=True,  # a terminal's Ctrl-C comes to us alone; we pass it on, once
        )

    def _last_words(self) -> str:
        self.said.seek(0)
        lines = [line.strip() for line in self.said.read().splitlines() if line.strip()]
        return f": {lines[-1]}" if lines else ""

    def signal(self, number: int) -> bool:
        """Passes a signal on; False if the process is not running."""
        alive = self.process is not None and self.process.poll() is None
        if alive:
            self.process.send_signal(number)
        return alive

    def close(self) -> None:
        """Ends the process after its current task."""
        if self.process:
            with contextlib.suppress(OSError):  # the worker may listen no longer
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
            self.said.close()


def reckon_wall(tasks: Sequence[Task], jobs: int) -> float:
    """Seconds until all tasks have ended, by the seconds of each: what the workers share, but no
    less than the longest chain of tasks that wait for one another; then those that are alone."""
    ends: dict[str, float] = {}
    for task in tasks:  # each stands behind those that it waits for
        begins = max((ends.get(name, 0.0) for name in task.after), default=0.0)
        ends[task.name] = begins + task.seconds
    shared = [task for task in tasks if not task.alone]
    last = max((ends[task.name] for task in shared), default=0.0)
    alone = sum(task.seconds for task in tasks if task.alone)
    return max(last, sum(task.seconds for task in shared) / jobs) + alone


def work_through(
    tasks: Sequence[Task],
    *,
    jobs: int,
    watch: Callable[[str, dict], None],
    until: float = math.inf,
    threads: int = 1,
) -> list[Outcome]:
    """Does all tasks in their order, `jobs` at a time; then those that want to be alone.

    A task whose worker was killed by the system is done once more, after all that wait: a training
    goes on from its checkpoint. One that another process is doing is tried again until that process
    has done it or left it: several processes may work through the same tasks.

    Args:
        watch: called with (task name, event), never twice at once. A task's end is the event
            `outcome`, with the Outcome as its `outcome`; `again` has the `error` of a task that is
            done once more, `held` that of a task which another process is doing.
        until: a time.monotonic(); a task that would end later is not begun, nor one after it; they
            have no outcome.
        threads: of each worker; a task that is alone has all cores.

    Raises:
        Interrupted: TERM, INT, HUP, USR1 or USR2 came; the running tasks were told, and have ended.
    """
    lock, outcomes = threading.Lock(), []

    def tell(name: str, event: dict) -> None:
        with lock:
            watch(name, event)

    with heeding_signals() as heard:
        late: set[str] = set()
        for alone in (False, True):
            group = [task for task in tasks if task.alone == alone and not task.after & late]
            workers = 1 if alone else min(jobs, len(group))
            own = count_cores() if alone else threads
            crew = [Worker(own, workers) for _ in range(workers)]
            outcomes += _work_group(group, crew, watch=tell, heard=heard, until=until)
            late |= {task.name for task in group} - {outcome.task.name for outcome in outcomes}
            if heard:
                raise Interrupted(counted(heard), "the run folders")
    return outcomes


def _work_group(
    tasks: Sequence[Task],
    workers: list[Worker],
    *,
    watch: Callable,
    heard: list[int],
    until: float,
) -> list[Outcome]:
    waiting, outcomes, free = list(tasks), [], list(workers)
    running: dict[Future, Worker] = {}
    told: set[Future] = set()
    again: set[str] = set()
    resting: dict[str, float] = {}  # until when
    with ThreadPoolExecutor(max(1, len(workers))) as pool:
        try:
            while running or (waiting and not heard):
                _drop_late(waiting, until)
                while free and not heard and (task := _next(waiting, running, resting)):
                    worker = free.pop()
                    future = pool.submit(worker.do, task, watch)
                    future.task = task
                    running[future] = worker
                if not running:
                    time.sleep(PAUSE)
                done, _ = wait(running, timeout=PAUSE, return_when=FIRST_COMPLETED)
                for future in done:
                    free.append(running.pop(future))
                    outcome, name = future.result(), future.task.name
                    if outcome.killed and not heard and name not in again:
                        again.add(name)
                        waiting.append(outcome.task)  # last, with the least beside it
                        watch(name, {"event": "again", "error": outcome.error})
                        continue
                    if outcome.held and not heard:
                        if name not in resting:
                            watch(name, {"event": "held", "error": outcome.error})
                        resting[name] = time.monotonic() + REST
                        waiting.append(outcome.task)
                        continue
                    outcomes.append(outcome)
                    watch(name, {"event": "outcome", "outcome": outcome})
                for future in set(running) - told if heard else ():
                    if running[future].signal(counted(heard)):
                        told.add(future)
        except KeyboardInterrupt:  # Ctrl-C after a signal: at once
            for worker in workers:
                worker.signal(signal.SIGKILL)
            raise
        finally:
            for worker in workers:
                worker.close()
    return outcomes


def _drop_late(waiting: list[Task], until: float) -> None:
    """Takes out tasks that would end too late, those that come after them, and those that then
    serve no other."""
    late = {task.name for task in waiting if time.monotonic() + task.seconds > until}
    while more := {task.name for task in waiting if task.after & late} - late:
        late |= more
    served = {name for task in waiting if task.name not in late for name in task.after}
    late |= {task.name for task in waiting if task.serves and task.name not in served}
    waiting[:] = [task for task in waiting if task.name not in late]


def _next(waiting: list[Task], running: dict, resting: dict[str, float]) -> Task | None:
    """Takes the first task that waits for no unfinished one and does not rest."""
    unfinished = {task.name for task in waiting} | {future.task.name for future in running}
    for task in waiting:
        if not task.after & unfinished and resting.get(task.name, 0) <= time.monotonic():
            waiting.remove(task)
            return task
    return None
