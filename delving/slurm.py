"""`launcher=slurm`: each run is a job of a SLURM cluster, sent by submitit.

submitit (the extra `slurm`) passes jobs and their results as pickles of its own, which lie with the
jobs' logs in <output_root>/<scale>/slurm/; delving itself writes and reads no pickles. Anyone who
can write to that folder can run code in your name, as with any job script.
"""

import io
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

from delving import config as configs
from delving.display import Overview
from delving.launcher import Slurm
from delving.lock import clear_up
from delving.multirun import Sweep, tell_results, tell_sweep
from delving.plan import Plan
from delving.slurm_job import TrainingJob
from delving.slurm_queue import folder_of, jobs_of, open_submitit, remember, wait_for
from delving.words import count
from delving.workers import Outcome, Task

REQUEUES = 1000  # times that a job may reach its time limit
SAVING = 300  # seconds before its time limit in which a job is told to save


def build_executor(folder: Path, settings: Slurm, cluster: str):
    """submitit's executor with the settings; cluster="local" is for tests, without SLURM.

    Raises:
        ValueError: there is no SLURM here.
    """
    submitit = open_submitit()
    if cluster == "local":
        executor = submitit.LocalExecutor(folder, max_num_timeout=REQUEUES)
        executor.update_parameters(timeout_min=settings.minutes, tasks_per_node=settings.tasks)
        return executor
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise ValueError("launcher=slurm: no sbatch and srun here; send jobs from a machine of the "
                         "cluster, or look at the script by --print-sbatch")  # fmt: skip
    executor = submitit.SlurmExecutor(folder, max_num_timeout=REQUEUES)
    executor.update_parameters(**parameters(settings))
    return executor


def parameters(settings: Slurm) -> dict[str, Any]:
    """The settings in sbatch's words."""
    memory = 16 * settings.tasks if settings.memory_gb is None else settings.memory_gb
    return {
        "job_name": "delving",
        "partition": settings.partition,
        "account": settings.account,
        "constraint": settings.constraint,
        "time": settings.minutes,
        "nodes": settings.nodes,
        "ntasks_per_node": settings.tasks,
        "gpus_per_node": settings.gpus or None,
        "cpus_per_task": settings.cpus,
        # srun does not always inherit the CPUs; a rank that fails must not leave others waiting.
        "srun_args": [f"--cpus-per-task={settings.cpus}", "--kill-on-bad-exit=1"],
        "mem": f"{math.ceil(memory * 1024)}M",
        "array_parallelism": settings.parallel,
        "signal_delay_s": min(SAVING, settings.minutes * 60 // 2),
        "additional_parameters": {"requeue": True},  # even if the cluster's default is not to
    }


def script_text(plan: Plan, names: Sequence[str], settings: Slurm) -> str:
    """The sbatch script that `submit` would send, written by submitit; SLURM need not be here.

    Raises:
        ValueError: a submitit that no longer has the method for it.
    """
    submitit = open_submitit()

    class Printer(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:  # it would ask for srun
            return 1

    try:
        executor = Printer(folder_of(plan))
        executor.update_parameters(**parameters(settings))
        if len(names) > 1:
            executor.parameters["map_count"] = len(names)
        # The method that submitit's plug-ins override; there is no public one that gives the text.
        return executor._make_submission_file_text(executor._submitit_command_str, "")
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"--print-sbatch does not know submitit {submitit.__version__}: {error}"
        ) from error


def submit(plan: Plan, names: Sequence[str], settings: Slurm, cluster: str = "slurm") -> dict:
    """Sends runs, several of them as one array; {run: submitit's job}, remembered in jobs.json.

    Raises:
        ValueError: no submitit, or no SLURM here.
        RuntimeError: sbatch refused.
    """
    executor = build_executor(folder_of(plan), settings, cluster)
    work = [TrainingJob(name, configs.to_yaml(plan.runs[name])) for name in names]
    with _outside_of_jobs(), redirect_stderr(io.StringIO()):  # submitit prints what it raises
        try:
            jobs = dict(zip(names, executor.submit_array(work), strict=True))
        except open_submitit().core.utils.FailedJobError as error:
            raise RuntimeError(f"sbatch refused: {' '.join(str(error).split())}") from error
    remember(plan, jobs)
    return jobs


def _outside_of_jobs() -> AbstractContextManager:
    """Keeps a job that is sent from inside another from inheriting its SLURM variables."""
    helpers = open_submitit().helpers
    return helpers.clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext()


def train_there(
    sweep: Sweep,
    settings: Slurm,
    *,
    wait: bool = False,
    dry: bool = False,
    say: Overview,
    cluster: str = "slurm",
    every: float | None = None,
) -> dict[str, str]:
    """Sends what is missing and not in the queue; {run: error} of what is refused or has failed.

    Args:
        wait: wait until every job has ended, then tell the results.
        dry: only plan.
        every: seconds between two looks at the queue; None for slurm_queue.POLL.

    Raises:
        ValueError, RuntimeError: see submit.
        Interrupted: while it waited; the jobs stay.
    """
    queued, fresh = {}, []
    for plan in sweep.plans.values():
        missing = {name: label for label, of, name in sweep.missing() if of is plan}
        there = jobs_of(plan, list(missing), cluster)
        queued |= {missing[name]: job for name, job in there.items()}
        fresh.append((plan, {name: label for name, label in missing.items() if name not in there}))
    notes = {label: f"in the queue as job {job.job_id}" for label, job in queued.items()}
    tell_sweep(sweep, say, lambda label, plan, name: notes.get(label, ""))
    if dry:
        return sweep.refused()
    for plan, labels in fresh:
        clear_up(folder_of(plan))
        sent = submit(plan, list(labels), settings, cluster) if labels else {}
        queued |= {labels[name]: job for name, job in sent.items()}
        _tell_sent({labels[name]: job for name, job in sent.items()}, say)
    return _await(sweep, queued, every, say) if wait else sweep.refused()


def _tell_sent(jobs: dict, say: Overview) -> None:
    if not jobs:
        return
    first = next(iter(jobs.values()))
    number = first.job_id.partition("_")[0]
    say.say(f"Sent {count(len(jobs), 'job')}:")
    for label, job in jobs.items():
        say.say(f"  {job.job_id}  {label}")
    say.say(f"Look: squeue --job={number}, and {first.task(0).paths.stdout}. Stop: scancel "
            f"{number}. The same command sends what is missing by then.")  # fmt: skip


def _await(sweep: Sweep, jobs: dict, every: float | None, say: Overview) -> dict[str, str]:
    where = {label: (plan, name) for label, plan, name in sweep.members()}
    started = time.monotonic()

    def finished(label: str) -> bool:
        plan, name = where[label]
        return plan.finished(name)

    def tell(label: str, error: str | None) -> None:
        outcome = Outcome(Task(label, {}), error, time.monotonic() - started)
        say(label, {"event": "outcome", "outcome": outcome})

    with say.showing(dict.fromkeys(jobs, 1.0)):
        failed = wait_for(jobs, finished, tell=tell, every=every)
    failed = sweep.refused() | failed
    tell_results(sweep, failed, say)
    return failed
