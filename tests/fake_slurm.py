"""A SLURM made of scripts in a folder: sbatch, srun, scontrol, scancel, squeue and sacct, which
really run their jobs, in the background. A copy of this file acts as each of these commands.

Below the folder, `jobs/<id>/` holds each job: its `state`, and the `pids` of its tasks. A file
`hold` keeps jobs pending, `lose` makes them end without having run, in the state that it names, and
with `no_accounts` sacct fails.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scontrol", "scancel", "squeue", "sacct")
HOME = Path(__file__).resolve().parent


def install(folder):
    """Puts the commands into folder/bin; returns the folder."""
    (folder / "bin").mkdir(parents=True)
    (folder / "jobs").mkdir()
    (folder / "slurm.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    for name in COMMANDS:
        script = folder / "bin" / name
        call = f'"{sys.executable}" -IS "{folder}/slurm.py" {name} "$@"'
        script.write_text(f"#!/bin/sh\nexec {call}\n", encoding="utf-8")
        script.chmod(0o755)
    return folder


def job_of(number):
    return HOME / "jobs" / number


def read(path):
    with contextlib.suppress(FileNotFoundError):  # another process may have removed it
        return path.read_text()
    return ""


def write(path, text):
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)


def options_of(script):
    """{option: value} of the script's #SBATCH lines."""
    lines = [x[len("#SBATCH --") :] for x in script.splitlines() if x.startswith("#SBATCH --")]
    return {key: value.strip("'") for key, _, value in (line.partition("=") for line in lines)}


def sbatch(path):
    script = Path(path).read_text()
    options = options_of(script)
    if options.get("partition") == "nowhere":
        sys.exit("sbatch: error: invalid partition specified: nowhere")
    number = str(100 + len(list((HOME / "jobs").iterdir())))
    _, _, last = options.get("array", "").partition("%")[0].partition("-")
    for job in [f"{number}_{n}" for n in range(int(last) + 1)] if last else [number]:
        job_of(job).mkdir()
        (job_of(job) / "script").write_text(script)
        write(job_of(job) / "state", "PENDING")
        subprocess.Popen([sys.executable, "-IS", __file__, "run", job], start_new_session=True,
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)  # fmt: skip
    print(f"Submitted batch job {number}")


def run(job):
    """What the cluster does with a job until it ends."""
    folder = job_of(job)
    while (HOME / "hold").exists() and not (folder / "cancel").exists():
        time.sleep(0.02)
    if (HOME / "lose").exists() or (folder / "cancel").exists():
        write(folder / "state", read(HOME / "lose") or "CANCELLED by 0")
        return
    options = options_of(read(folder / "script"))
    number, _, task = job.partition("_")
    variables = {
        "SLURM_JOB_ID": f"9{number}" if task else number,
        "SLURM_NTASKS": str(int(options["ntasks-per-node"]) * int(options["nodes"])),
        "SLURM_JOB_NUM_NODES": options["nodes"],
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "FAKE_JOB": job,
        "FAKE_TASKS": options["ntasks-per-node"],
    } | ({"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task} if task else {})
    while True:
        write(folder / "state", "RUNNING")
        code = subprocess.run(["bash", str(folder / "script")], env=os.environ | variables,
                              stdin=subprocess.DEVNULL).returncode  # fmt: skip
        if not (folder / "requeue").exists():
            break
        (folder / "requeue").rename(folder / "requeued")
    cancelled = (folder / "cancel").exists()
    write(folder / "state", "CANCELLED by 0" if cancelled else "FAILED" if code else "COMPLETED")


def srun(*words):
    """Runs one process a task, each with its output; kills a requeued job's after a while."""
    folder, tasks, rest = job_of(os.environ["FAKE_JOB"]), [], list(words)
    outputs = {}
    while rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("--output", "--error"):
            outputs[option] = rest.pop(0)
    for number in range(int(os.environ["SLURM_NTASKS"])):
        files = [os.open(_named(outputs[name], number), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
                 for name in ("--output", "--error")]  # fmt: skip
        node, local = divmod(number, int(os.environ["FAKE_TASKS"]))
        variables = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(local),
                     "SLURM_NODEID": str(node)}  # fmt: skip
        tasks.append(subprocess.Popen(rest, env=os.environ | variables, stdin=subprocess.DEVNULL,
                                      stdout=files[0], stderr=files[1]))  # fmt: skip
    write(folder / "pids", " ".join(str(task.pid) for task in tasks))
    patience = None
    while any(task.poll() is None for task in tasks):
        time.sleep(0.02)
        if patience is None and any((folder / x).exists() for x in ("requeue", "cancel")):
            patience = time.monotonic() + 5
        if patience and time.monotonic() > patience:
            for task in tasks:
                task.kill()
    (folder / "pids").unlink()
    codes = [task.wait() for task in tasks]
    write(folder / "codes", " ".join(map(str, codes)))
    sys.exit(max(abs(code) for code in codes))


def _named(pattern, task):
    number, _, element = os.environ["FAKE_JOB"].partition("_")
    signs = {"%j": os.environ["FAKE_JOB"], "%A": number, "%a": element, "%t": str(task)}
    for sign, text in signs.items():
        pattern = pattern.replace(sign, text)
    return pattern


def scontrol(what, job):
    if what != "requeue" or not job_of(job).is_dir():
        sys.exit(f"scontrol: error: no job {job}")
    (job_of(job) / "requeue").touch()


def scancel(job, *words):
    number = signal.Signals[f"SIG{words[-1].removeprefix('SIG')}"] if words else signal.SIGTERM
    if not words:
        (job_of(job) / "cancel").touch()
    for pid in read(job_of(job) / "pids").split():
        os.kill(int(pid), number)


def squeue(*words):
    for folder in sorted((HOME / "jobs").iterdir()):
        if read(folder / "state") in ("PENDING", "RUNNING"):
            print(folder.name)


def sacct(*words):
    if (HOME / "no_accounts").exists():
        sys.exit("sacct: error: Slurm accounting storage is disabled")
    print("JobID|State|NodeList")
    for folder in sorted((HOME / "jobs").iterdir()):
        print(f"{folder.name}|{read(folder / 'state')}|here")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
