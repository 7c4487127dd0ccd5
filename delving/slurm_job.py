"""What runs inside a job of a cluster: one training, as one rank or several, handed back when the
cluster wants its machine.

SLURM tells every task of a job of its time limit, and if so set up of a preemption, by submitit's
signal, USR2. `train_run` heeds it and saves after the current step; then the signal is given to
submitit's own handler, which on rank 0 puts the same job back into the queue. TERM alone means a
cancelled job, or a preempted one that SLURM requeues by itself.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from delving import config as configs
from delving import exits
from delving.display import Display, make_console
from delving.signals import REQUEUE, Interrupted

EVERY = 30.0  # seconds between two lines of the job's log
# Seconds after TERM in which USR2 may follow, or SLURM may end the job. A job that ended by itself
# in the time of grace before a preemption would count as failed, and would not be requeued.
LINGER = 120.0
PATIENCE = 60.0  # seconds that the other ranks wait for rank 0 to hand the job back
ASKING = 30.0  # seconds that SLURM may then take to requeue it, which ends them


@dataclass(frozen=True)
class TrainingJob:
    """A run as submitit wants it: called in each task of the job, and able to be requeued."""

    name: str
    config: str  # as to_yaml writes it

    def __call__(self) -> str:
        """Trains the run to its end and returns its folder.

        Raises:
            SystemExit: told to leave; the state is saved. A rank still joined to others ends its
                process instead.
        """
        from submitit import JobEnvironment

        environment = JobEnvironment()
        untouched = _stamp(environment)
        set_ranks(environment)
        with overhearing() as overheard:
            try:
                return self._train()
            except (Exception, Interrupted) as error:
                numbers = overheard()
                if isinstance(error, Interrupted):
                    numbers.append(error.signal)
                elif not _wants_back(environment, numbers):
                    raise
                print(f"{error}", flush=True)
        leave(environment, numbers, untouched)

    def _train(self) -> str:
        from delving.run import train_run

        config = configs.from_yaml(self.config, self.name)
        with Display(make_console(), every=EVERY) as display:
            return str(train_run(config, display))

    def checkpoint(self):
        """The same job: it goes on from the run's own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def set_ranks(environment) -> None:
    """Tells torch of the job's tasks, one rank each; a job of one task is a run like any other."""
    from submitit.helpers import TorchDistributedEnvironment

    if environment.num_tasks > 1:
        # As under torchrun: every rank sees all GPUs of its node and takes the one with its number.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


@contextlib.contextmanager
def overhearing() -> Iterator[Callable[[], list[int]]]:
    """Yields a function that tells which signals came, whoever handled them: a run that heard TERM
    says nothing of a USR2 that came after it."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def overheard() -> list[int]:
        with contextlib.suppress(BlockingIOError):
            return list(os.read(read, 65536))
        return []

    try:
        yield overheard
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


def _preemption(environment) -> signal.Signals:
    return signal.Signals[f"SIG{environment.USR_SIG}"]


def _wants_back(environment, numbers: list[int]) -> bool:
    return any(number in (*REQUEUE, _preemption(environment)) for number in numbers)


def _stamp(environment) -> tuple[int, int]:
    """Identifies the file that rank 0 rewrites when it hands the job back: it changes then."""
    with contextlib.suppress(FileNotFoundError):
        found = environment.paths.submitted_pickle.stat()
        return found.st_ino, found.st_mtime_ns
    return 0, 0


def leave(environment, numbers: list[int], untouched: tuple[int, int]) -> None:
    """Ends this task of a job, so that the job goes on later if it is to.

    Rank 0 requeues the job, and the others stay until it has: a task that ends may end all others.
    None of them leaves a result, which would be taken for the job's.

    Raises:
        SystemExit: always, but where exits.end ends the process at once.
        RuntimeError: on rank 0, if submitit does not requeue the job.
    """
    if not _wants_back(environment, numbers):
        if signal.SIGTERM in numbers:
            time.sleep(LINGER)  # if USR2 follows, submitit's handler ends this
        exits.end(128 + numbers[-1])
    signal.raise_signal(_preemption(environment))
    until = time.monotonic() + PATIENCE  # rank 0 never gets here
    while _stamp(environment) == untouched and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(ASKING)  # submitit writes the file before it asks SLURM
    exits.end(0)
