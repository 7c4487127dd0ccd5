"""Jobs that were sent: remembered by run, looked up in the queue, waited for."""

import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from delving import record
from delving.lock import holding_when_free
from delving.plan import Plan
from delving.signals import Interrupted, counted, heeding_signals
from delving.words import shown

POLL = 30.0  # seconds between two questions to the cluster
LATE = 120.0  # seconds that a shared disk may take to show a result to this machine
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "REVOKED", "TIMEOUT",
)  # fmt: skip


def open_submitit():
    """The library; ValueError says how to get it."""
    try:
        import submitit
    except ImportError:
        raise ValueError("launcher=slurm needs submitit: pip install 'delving[slurm]'") from None
    # It warns in many lines of a cluster without accounting, which is no fault.
    logging.getLogger("submitit").setLevel(logging.ERROR)
    return submitit


def folder_of(plan: Plan) -> Path:
    """Where jobs and their logs lie."""
    return plan.root / "slurm"


def remember(plan: Plan, jobs: dict) -> None:
    """Adds {run: submitit's job} to jobs.json."""
    entries = {run: {"job": job.job_id, "tasks": job.num_tasks} for run, job in jobs.items()}
    with holding_when_free(folder_of(plan), lambda told: None):  # other commands send jobs too
        record.write_json(folder_of(plan) / "jobs.json", _remembered(plan) | entries)


def _remembered(plan: Plan) -> dict[str, dict]:
    """{run: {job, tasks}} of what was sent; ValueError if the file is damaged."""
    path = folder_of(plan) / "jobs.json"
    found = record.read_keys(path) if path.exists() else {}
    for run, entry in found.items():
        record.expect(entry, {"job": str, "tasks": int}, f"{path}: {shown(run)}")
    return found


def jobs_of(plan: Plan, runs: Sequence[str], cluster: str = "slurm") -> dict:
    """{run: submitit's job} of those among `runs` whose job waits or runs."""
    entries = {run: entry for run, entry in _remembered(plan).items() if run in runs}
    if not entries:
        return {}
    submitit = open_submitit()
    kind = submitit.LocalJob if cluster == "local" else submitit.SlurmJob
    return still_there({
        run: kind(folder_of(plan), entry["job"], tasks=list(range(entry["tasks"])))
        for run, entry in entries.items()
    })  # fmt: skip


def still_there(jobs: dict) -> dict:
    """The jobs that have not ended for good, by their results or SLURM's queue. SLURM's accounting,
    which submitit asks, is asked only if the queue gives no answer: it knows of a job some seconds
    late, not every cluster has it, and a job preempted there may come back or not."""
    open_jobs = {run: job for run, job in jobs.items()
                 if not all(path.exists() for path in _results(job))}  # fmt: skip
    slurm = any(isinstance(job, open_submitit().SlurmJob) for job in open_jobs.values())
    queue = list_queue() if slurm else None
    return {run: job for run, job in open_jobs.items()
            if (_unfinished(job) if queue is None else job.job_id in queue)}  # fmt: skip


def _unfinished(job) -> bool:
    """Whether a job goes on, as submitit knows; one that it knows nothing of does."""
    if isinstance(job, open_submitit().SlurmJob):
        return (job.state.split() or ["UNKNOWN"])[0] not in ENDED
    return not job.done()


def _results(job) -> list[Path]:
    return [job.task(number).paths.result_pickle for number in range(job.num_tasks)]


def list_queue() -> list[str] | None:
    """The ids of all jobs of this user; None if the cluster gives no answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").split()


def wait_for(
    jobs: dict,
    finished: Callable[[str], bool],
    *,
    tell: Callable[[str, str | None], None],
    every: float | None = None,
) -> dict[str, str]:
    """Waits until no job is there any more; {run: error} of those that failed.

    Args:
        finished: says whether a run's result can be seen.
        tell: called with (run, error or None) as soon as a job is over.
        every: seconds between two looks; None for POLL.

    Raises:
        Interrupted: the jobs go on without us.
    """
    left, failed, since = dict(jobs), {}, {}
    with heeding_signals() as heard:
        while left:
            there = still_there(left)
            for run in [run for run in left if run not in there]:
                since.setdefault(run, time.monotonic())
                error = None
                if not finished(run):
                    told = all(path.exists() for path in _results(left[run]))
                    error = error_of(left[run])
                    if (error is None or not told) and time.monotonic() - since[run] < LATE:
                        continue
                    error = error or f"job {left[run].job_id} ended well, but left no result.json"
                failed |= {run: error} if error else {}
                tell(run, error)
                del left[run]
            _sleep((every or POLL) if left else 0, heard)
            if heard:
                raise Interrupted(counted(heard), "the queue, where the jobs stay")
    return failed


def _sleep(seconds: float, heard: list[int]) -> None:
    until = time.monotonic() + seconds
    while not heard and time.monotonic() < until:
        time.sleep(min(0.2, seconds))


def error_of(job) -> str | None:
    """Why a job that is over failed, in a line; None if each of its tasks ended well."""
    lost = None
    for number, path in enumerate(_results(job)):
        if not path.exists():
            lost = lost or job.task(number).paths.stderr
            continue
        error = job.task(number).exception()
        if error:
            return _last_line(str(error))
    if lost:
        return f"job {job.job_id} ended without a result ({job.state}); its log: {lost}"
    return None


def _last_line(text: str) -> str:
    """The last line of a traceback, which submitit returns between two rules."""
    lines = [line for line in text.splitlines() if line.strip()]
    rules = [number for number, line in enumerate(lines) if set(line) == {"-"}]
    return lines[rules[-1] - 1] if len(rules) > 1 else lines[0]
