"""`launcher=slurm`: jobs by submitit. A preempted one continues and ends as if nothing had
happened; what is finished or in the queue is not submitted again."""

import json
import os
import signal
import sys
import threading
import time
import types
from functools import partial
from pathlib import Path

import fake_slurm
import pytest
from rich.console import Console
from smoke import WORDS, differences, outcome

from delving import config as configs
from delving import record, slurm_job
from delving.display import Overview
from delving.launcher import Slurm, read_settings, split_words
from delving.multirun import plan_sweep
from delving.naming import name_run
from delving.run import train_run
from delving.signals import Interrupted, heeding_signals
from delving.slurm import script_text, submit, train_there
from delving.slurm_queue import error_of, jobs_of, list_queue, wait_for

submitit = pytest.importorskip("submitit", reason="submitit is not here: pip install submitit")
ON_CPUS = ["launcher=slurm", "slurm.gpus=0"]
RUN = "small14-prelu-he-s0"


@pytest.fixture
def train(delving):
    """`delving train` in this process: (exit code, stdout, stderr)."""
    return partial(delving, "train")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory on a machine without SLURM; jobs compute on one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    package = str(Path(configs.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([package, *filter(None, sys.path)]))
    return tmp_path


@pytest.fixture
def cluster(home, monkeypatch):
    """Installs a fake SLURM; gives its folder."""
    folder = fake_slurm.install(home / "cluster")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    # Submitit remembers jobs for the whole process, while each fake cluster counts from 100.
    watcher = type(submitit.SlurmJob.watcher)(delay_s=600)
    monkeypatch.setattr(submitit.SlurmJob, "watcher", watcher)
    yield folder
    (folder / "lose").write_text("CANCELLED")
    (folder / "hold").unlink(missing_ok=True)
    for job in (folder / "jobs").iterdir():
        (job / "cancel").touch()
        fake_slurm_ends(folder, job.name)


def state(cluster, job):
    return (cluster / "jobs" / job / "state").read_text()


def fake_slurm_ends(cluster, job, seconds=60):
    """A job's state once it has ended."""
    until(lambda: state(cluster, job) not in ("PENDING", "RUNNING"), seconds)
    return state(cluster, job)


def until(there, seconds=60):
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def smoke_sweep(root, *words):
    return plan_sweep([*WORDS, f"output_root={root}", *words], several=False)


def the_plan(sweep):
    [plan] = sweep.plans.values()
    return plan


def overview(said=None):
    return Overview(Console(file=said or open(os.devnull, "w", encoding="utf-8"), width=300))


# --- settings ---
def test_the_settings_have_defaults_and_none_must_be_given():
    assert read_settings([]) == Slurm()
    assert Slurm().tasks == 1
    assert Slurm(gpus=0).tasks == 1
    assert Slurm(gpus=8).tasks == 8


def test_settings_are_read_in_their_kinds_the_last_one_counting():
    words = ["minutes=60", "memory_gb=1.5", "constraint=a100|h100", "minutes=90", "gpus=0"]
    settings = read_settings([f"slurm.{word}" for word in words])
    assert settings == Slurm(minutes=90, memory_gb=1.5, constraint="a100|h100", gpus=0)
    assert read_settings(["slurm.partition=null"]) == Slurm()


@pytest.mark.parametrize(
    ("word", "meant"),
    [("lancher=slurm", "launcher"), ("slrum.gpus=1", "slurm.gpus"), ("Slurm.gpus=1", "slurm.gpus")],
)
def test_a_slip_in_its_words_is_not_taken_for_a_runs(word, meant):
    with pytest.raises(ValueError, match=f"did you mean {meant}"):
        split_words([word])


@pytest.mark.parametrize("word", ["scale=smoke", "train.lr=1", "model=c", "data.root=slurm", "x"])
def test_other_words_are_left_to_the_runs(word):
    assert split_words([word]) == ([word], None)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("slurm.minute=3", "did you mean slurm.minutes"),
        ("slurm=3", "there is no 'slurm'"),
        ("slurm.minutes=0", "from 1 to"),
        ("slurm.minutes=-5", "from 1 to"),
        ("slurm.minutes=1.5", "an integer"),
        ("slurm.minutes=", "an integer"),
        ("slurm.minutes=null", "an integer"),
        ("slurm.gpus=65", "from 0 to 64"),
        ("slurm.nodes=" + "9" * 5000, "from 1 to"),
        ("slurm.memory_gb=nan", "a number above 0"),
        ("slurm.memory_gb=inf", "a number above 0"),
        ("slurm.memory_gb=0", "a number above 0"),
        ("slurm.partition=", "one line, not empty"),
        ("slurm.partition=a\n#SBATCH --uid=0", "one line, not empty"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_may_be(train, home, word, said):
    with pytest.raises(ValueError, match=said):
        read_settings([word])
    code, out, err = train("scale=smoke", "launcher=slurm", word)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert len(err) < 1000
    assert list(home.iterdir()) == []


def test_how_a_run_is_launched_is_no_part_of_it():
    words = ["scale=smoke", "launcher=slurm", "act=relu", "slurm.gpus=0", "seed=3"]
    rest, settings = split_words(words)
    assert rest == ["scale=smoke", "act=relu", "seed=3"]
    assert settings == Slurm(gpus=0)
    assert split_words(["launcher=local", "seed=1"]) == (["seed=1"], None)
    assert "slurm" not in configs.to_yaml(configs.compose(rest))
    assert name_run(configs.compose(rest)) == "small14-relu-he-s3"


# --- what is sent ---
def test_the_script_can_be_looked_at_where_there_is_no_slurm(train, home):
    words = ["slurm.partition=gpu", "slurm.account=me", "slurm.constraint=a100|h100",
             "slurm.minutes=90", "slurm.nodes=2", "slurm.gpus=4", "slurm.cpus=6",
             "slurm.memory_gb=100", "slurm.parallel=3"]  # fmt: skip
    code, out, err = train("-m", "scale=smoke", "seed=0..9", "launcher=slurm", *words,
                           "--print-sbatch")  # fmt: skip
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "#!/bin/bash"
    told = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert told >= {
        "partition=gpu", "account=me", "constraint='a100|h100'", "time=90", "nodes=2",
        "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=6", "mem=102400M", "array=0-9%3",
        "signal=USR2@300", "requeue", "open-mode=append",
    }  # fmt: skip
    [step] = [line for line in lines if line.startswith("srun ")]
    assert "--cpus-per-task=6" in step
    assert step.endswith(f"-m submitit.core._submit {home}/outputs/smoke/slurm")
    assert list(home.iterdir()) == []


def test_a_run_on_cpus_asks_for_no_gpu_and_a_short_one_saves_in_time():
    plan = the_plan(smoke_sweep("there"))
    text = script_text(plan, [RUN], Slurm(gpus=0, minutes=4))
    assert "gpus" not in text
    assert "array" not in text
    assert "--signal=USR2@120" in text
    assert "--ntasks-per-node=1" in text
    assert "--mem=16384M" in text


def test_another_submitit_without_the_hook_is_named(monkeypatch):
    monkeypatch.delattr(submitit.SlurmExecutor, "_make_submission_file_text")
    monkeypatch.setattr(submitit.core.core.PicklingExecutor, "_make_submission_file_text", None)
    plan = the_plan(smoke_sweep("there"))
    with pytest.raises(ValueError, match="--print-sbatch does not know submitit"):
        script_text(plan, [RUN], Slurm())


def test_without_submitit_it_says_how_to_get_it(train, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, _, err = train("scale=smoke", *ON_CPUS)
    assert code == 2
    assert "pip install 'delving[slurm]'" in err


def test_without_slurm_nothing_is_sent(train, home):
    code, _, err = train("scale=smoke", *ON_CPUS)
    assert code == 2
    assert "no sbatch and srun here" in err
    assert not (home / "outputs").exists()


def test_a_plan_with_a_run_that_is_refused_ends_as_the_sweep_would(train, cluster):
    folder = Path("outputs/smoke/runs") / RUN
    folder.mkdir(parents=True)
    text = configs.to_yaml(configs.compose(["scale=smoke"])).replace("momentum: 0.9", "momentum: 0")
    (folder / "config.yaml").write_text(text)
    code, out, _ = train("-m", "scale=smoke", "seed=0..1", *ON_CPUS, "--plan")
    assert (code, "1 refused" in out) == (1, True)
    assert train("-m", "scale=smoke", "seed=1..2", *ON_CPUS, "--plan")[0] == 0


def test_jobs_are_sent_as_one_array_and_told(train, cluster):
    (cluster / "hold").touch()
    code, out, err = train("-m", "scale=smoke", "seed=0..1", *ON_CPUS)
    assert (code, err) == (0, "")
    assert "Sent 2 jobs:\n  100_0  small14-prelu-he-s0\n  100_1  small14-prelu-he-s1\n" in out
    assert "squeue --job=100" in out
    assert "outputs/smoke/slurm/100_0_0_log.out" in out
    script = (cluster / "jobs" / "100_0" / "script").read_text()
    assert "#SBATCH --array=0-1%2" in script
    assert record.read_json(Path("outputs/smoke/slurm/jobs.json")) == {
        f"small14-prelu-he-s{n}": {"job": f"100_{n}", "tasks": 1} for n in (0, 1)
    }


def test_what_sbatch_refuses_is_told_in_a_line(train, cluster):
    code, _, err = train("scale=smoke", *ON_CPUS, "slurm.partition=nowhere")
    assert code == 1
    assert "sbatch refused: sbatch: error: invalid partition specified: nowhere" in err
    assert len(err.splitlines()) == 1


# --- the queue ---
@pytest.mark.parametrize("accounts", [True, False])
def test_what_is_in_the_queue_is_not_sent_again_until_it_is_gone(train, cluster, accounts):
    (cluster / "hold").touch()
    if not accounts:
        (cluster / "no_accounts").touch()
    words = ["scale=smoke", *ON_CPUS]
    assert "Sent 1 job:\n  100" in train(*words)[1]
    code, out, _ = train("-m", *words, "seed=0..1")
    assert code == 0
    assert f"{RUN}  new       in the queue as job 100\n" in out
    assert "Sent 1 job:\n  101  small14-prelu-he-s1" in out
    submitit.SlurmJob("outputs/smoke/slurm", "100").cancel()
    assert fake_slurm_ends(cluster, "100").startswith("CANCELLED")
    assert "Sent 1 job:\n  102" in train(*words)[1]


def test_the_lock_of_one_killed_when_it_had_sent_all_goes_with_the_next_command(train, cluster):
    (cluster / "hold").touch()
    train("scale=smoke", *ON_CPUS)
    lock = Path("outputs/smoke/slurm/lock")
    lock.write_text("")
    assert "in the queue as job 100" in train("scale=smoke", *ON_CPUS)[1]
    assert not lock.exists()


@pytest.mark.parametrize(
    ("said", "queued", "there"),
    [
        ("UNKNOWN", ["6", "7"], True),
        ("PENDING", ["6", "7_1"], False),
        ("PREEMPTED", [], False),
        ("PENDING", None, True),
        ("SUSPENDED", None, True),
        ("CANCELLED by 1000", None, False),
        ("OUT_OF_MEMORY", None, False),
        ("PREEMPTED", None, True),
        ("", None, True),
    ],
)
def test_whether_a_job_is_there(home, monkeypatch, said, queued, there):
    plan = the_plan(smoke_sweep("out"))
    record.write_json(plan.root / "slurm" / "jobs.json", {RUN: {"job": "7", "tasks": 2}})
    monkeypatch.setattr(submitit.SlurmJob, "state", said)
    monkeypatch.setattr("delving.slurm_queue.list_queue", lambda: queued)
    assert list(jobs_of(plan, [RUN])) == ([RUN] if there else [])
    assert jobs_of(plan, ["another"]) == {}


def test_where_the_cluster_gives_no_answer_a_job_counts_as_there(home):
    plan = the_plan(smoke_sweep("out"))
    record.write_json(plan.root / "slurm" / "jobs.json", {RUN: {"job": "7", "tasks": 1}})
    assert list(jobs_of(plan, [RUN])) == [RUN]


def test_a_queue_in_another_encoding_is_read(monkeypatch, tmp_path):
    squeue = tmp_path / "squeue"
    squeue.write_bytes(b"#!/bin/sh\nprintf '7_1\\n\\351\\n8\\n'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert list_queue() == ["7_1", "\ufffd", "8"]


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', '{"a": {"job": 3, "tasks": 1}}', "{", "\0"])
def test_a_spoilt_memory_of_jobs_is_named(train, home, text):
    path = home / "outputs" / "smoke" / "slurm" / "jobs.json"
    record.write_text(path, text)
    code, _, err = train("scale=smoke", *ON_CPUS)
    assert code == 2
    assert "jobs.json" in err
    assert path.read_text() == text


def test_a_job_that_ended_without_a_result_is_reported(train, cluster, monkeypatch):
    (cluster / "lose").write_text("OUT_OF_MEMORY")
    monkeypatch.setattr("delving.slurm_queue.POLL", 0.1)
    code, out, err = train("scale=smoke", *ON_CPUS, "--wait")
    assert (code, err) == (1, "")
    line = out.splitlines()[-1]
    assert line.startswith(f"FAILED {RUN}: job 100 ended without a result (OUT_OF_MEMORY)")
    assert line.endswith("100_0_log.err")


def test_who_waits_may_leave_and_the_jobs_stay(train, cluster, monkeypatch):
    (cluster / "hold").touch()

    def interrupt(jobs):
        os.kill(os.getpid(), signal.SIGTERM)
        return jobs

    monkeypatch.setattr("delving.slurm_queue.still_there", interrupt)
    code, _, err = train("scale=smoke", *ON_CPUS, "--wait")
    assert code == 143
    assert "the queue, where the jobs stay" in err
    assert state(cluster, "100") == "PENDING"


class Job(submitit.LocalJob):
    """A job that has ended."""

    def done(self, force_check=False):
        return True


def write_end(folder, job, task, end):
    submitit.core.utils.cloudpickle_dump(end, folder / f"{job}_{task}_result.pkl")


def test_the_error_of_a_job_is_its_last_line_whichever_task_had_it(tmp_path):
    job = Job(tmp_path, "5", tasks=[0, 1])
    assert "job 5 ended without a result" in error_of(job)
    write_end(tmp_path, 5, 0, ("success", "folder"))
    assert error_of(job).endswith("5_1_log.err")
    trace = "Traceback (most recent call last):\n  File\n    x\nValueError: no such image\n"
    write_end(tmp_path, 5, 1, ("error", trace))
    assert error_of(job) == "ValueError: no such image"
    write_end(tmp_path, 5, 1, ("success", "folder"))
    assert error_of(job) is None


def test_what_a_job_returns_is_waited_for_too(tmp_path, monkeypatch):
    """On a shared disk files may be seen late, and in another order than they were written."""
    told = []
    failed = wait_for({"run": Job(tmp_path, "5")}, lambda run: True,
                      tell=lambda *news: told.append(news), every=0.01)  # fmt: skip
    assert (failed, told) == ({}, [("run", None)])
    monkeypatch.setattr("delving.slurm_queue.LATE", 0.05)
    failed = wait_for({"run": Job(tmp_path, "5")}, lambda run: False,
                      tell=lambda *news: told.append(news), every=0.01)  # fmt: skip
    assert "job 5 ended without a result" in failed["run"]


def test_a_result_that_is_late_to_be_seen_is_waited_for(tmp_path, monkeypatch):
    write_end(tmp_path, 5, 0, ("success", "folder"))
    seen = iter([False, False, True])
    told = []
    failed = wait_for({"run": Job(tmp_path, "5")}, lambda run: next(seen),
                      tell=lambda *news: told.append(news), every=0.01)  # fmt: skip
    assert (failed, told) == ({}, [("run", None)])
    monkeypatch.setattr("delving.slurm_queue.LATE", 0.05)
    failed = wait_for({"run": Job(tmp_path, "5")}, lambda run: False,
                      tell=lambda *news: told.append(news), every=0.01)  # fmt: skip
    assert failed == {"run": "job 5 ended well, but left no result.json"}


# --- inside a job ---
@pytest.fixture
def environment(tmp_path):
    """The environment of a task in a job, as far as leaving it depends on it."""
    pickle = tmp_path / "5_submitted.pkl"
    pickle.write_bytes(b"job")
    paths = types.SimpleNamespace(submitted_pickle=pickle)
    return types.SimpleNamespace(USR_SIG="USR2", paths=paths, num_tasks=1)


@pytest.fixture
def handlers():
    """Restores the signal handlers that a test sets."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_are_overheard_whoever_handles_them(handlers):
    signal.signal(signal.SIGUSR2, lambda *_: None)
    with slurm_job.overhearing() as overheard:
        assert overheard() == []
        with heeding_signals() as heard:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR2)
        assert overheard() == [signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR2]
    assert heard == [signal.SIGTERM, signal.SIGUSR2]
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGUSR2], [signal.SIGTERM, signal.SIGUSR2], [signal.SIGUSR1], [signal.SIGUSR2] * 2],
)
def test_rank_0_gives_submitits_signal_to_its_handler_which_requeues(
    environment, handlers, numbers
):
    given = []

    def requeue(number, frame):
        given.append(number)
        sys.exit(-1)

    signal.signal(signal.SIGUSR2, requeue)
    with pytest.raises(SystemExit) as end:
        slurm_job.leave(environment, numbers, slurm_job._stamp(environment))
    assert (given, end.value.code) == ([signal.SIGUSR2], -1)


def test_the_other_ranks_stay_until_rank_0_has_requeued_the_job(environment, handlers, monkeypatch):
    monkeypatch.setattr(slurm_job, "ASKING", 1)  # between changing the file and asking SLURM
    signal.signal(signal.SIGUSR2, lambda *_: None)  # what submitit does there
    pickle = environment.paths.submitted_pickle
    untouched = slurm_job._stamp(environment)

    def requeue():
        beside = pickle.with_suffix(".new")
        beside.write_bytes(b"job")
        beside.replace(pickle)

    timer = threading.Timer(0.5, requeue)
    timer.start()
    started = time.monotonic()
    with pytest.raises(SystemExit) as end:
        slurm_job.leave(environment, [signal.SIGUSR2], untouched)
    timer.join()
    assert end.value.code == 0
    assert 1.4 < time.monotonic() - started < 6


def test_they_do_not_stay_for_ever(environment, handlers, monkeypatch):
    monkeypatch.setattr(slurm_job, "PATIENCE", 0.1)
    monkeypatch.setattr(slurm_job, "ASKING", 0.1)
    signal.signal(signal.SIGUSR2, lambda *_: None)
    with pytest.raises(SystemExit) as end:
        slurm_job.leave(environment, [signal.SIGUSR2], slurm_job._stamp(environment))
    assert end.value.code == 0


def test_after_term_alone_a_job_waits_for_slurm_to_end_it_and_requeues_nothing(
    environment, handlers, monkeypatch
):
    given = []
    signal.signal(signal.SIGUSR2, lambda *_: given.append(1))
    monkeypatch.setattr(slurm_job, "LINGER", 0.3)
    started = time.monotonic()
    with pytest.raises(SystemExit) as end:
        slurm_job.leave(environment, [signal.SIGTERM], slurm_job._stamp(environment))
    assert (end.value.code, given) == (143, [])
    assert time.monotonic() - started > 0.25


def test_the_signal_that_follows_term_ends_the_waiting(environment, handlers, monkeypatch):
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(-1))
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2))
    timer.start()
    with pytest.raises(SystemExit) as end:
        slurm_job.leave(environment, [signal.SIGTERM], slurm_job._stamp(environment))
    timer.join()
    assert end.value.code == -1


def as_in_job(monkeypatch, tmp_path):
    """The variables that submitit gives to a job of one task."""
    for name, value in {"FOLDER": tmp_path, "LOCAL_JOB_ID": "5", "EXECUTOR": "local"}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", str(value))


def test_a_job_trains_its_run_and_leaves_plain_lines(monkeypatch, tmp_path, handlers, capsys):
    as_in_job(monkeypatch, tmp_path)
    [(name, config)] = the_plan(smoke_sweep(tmp_path / "out", "seed=5")).runs.items()
    slurm_job.TrainingJob(name, configs.to_yaml(config))()
    said = capsys.readouterr().out
    assert record.read_result(tmp_path / "out" / "smoke" / "runs" / name)["seed"] == 5
    assert "small14 at width 1/16 on 96 generated images" in said
    assert "\x1b" not in said


def in_job(monkeypatch, tmp_path, error):
    """Calls a job whose train_run raises the error; returns what the job returns."""
    as_in_job(monkeypatch, tmp_path)

    def fail(config, watch):
        raise error

    monkeypatch.setattr("delving.run.train_run", fail)
    yaml = configs.to_yaml(configs.compose(["scale=smoke"]))
    return slurm_job.TrainingJob(RUN, yaml)()


def test_what_fails_in_a_job_is_its_error(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="no such image"):
        in_job(monkeypatch, tmp_path, ValueError("no such image"))


def test_an_interrupted_run_hands_its_job_back(monkeypatch, tmp_path, handlers):
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(-1))
    with pytest.raises(SystemExit) as end:
        in_job(monkeypatch, tmp_path, Interrupted(signal.SIGUSR2, "there"))
    assert end.value.code == -1


def test_the_job_that_comes_back_is_the_same_one():
    job = slurm_job.TrainingJob(RUN, "seed: 0\n")
    assert job.checkpoint().function == job


# --- in earnest ---
@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run made in this process, never interrupted."""
    config = the_plan(smoke_sweep(tmp_path_factory.mktemp("whole"), *LONG)).runs
    return train_run(next(iter(config.values())), lambda event: None)


LONG = ["train.epochs=30"]  # 90 steps, time enough for a signal in the middle


def steps(folder):
    path = folder / "log.jsonl"
    events = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    return [event["step"] for event in events if event["event"] == "step"]


def submitted(sweep, settings, cluster):
    """Submits a sweep of one run: (submitit's job, the run's folder)."""
    plan = the_plan(sweep)
    [name] = plan.runs
    return submit(plan, [name], settings, cluster)[name], plan.folder(name)


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.long
def test_a_job_trains_a_run_to_its_end_and_leaves_plain_lines(home, capsys):
    sweep = smoke_sweep(home / "out", "seed=5")
    failed = train_there(sweep, Slurm(gpus=0), wait=True, say=Overview(Console()),
                         cluster="local", every=0.1)  # fmt: skip
    plan = the_plan(sweep)
    [name] = plan.runs
    assert failed == {}
    said = capsys.readouterr().out
    assert record.read_result(plan.folder(name))["seed"] == 5
    assert f"{record.read_result(plan.folder(name))['eval']['ten_view']['top1_err']:.2f}" in said
    [log] = (plan.root / "slurm").glob("*_0_log.out")
    assert "small14 at width 1/16 on 96 generated images" in log.read_text()
    assert "\x1b" not in log.read_text()
    assert jobs_of(plan, [name], "local") == {}


@pytest.mark.long
def test_a_preempted_job_goes_on_and_ends_as_if_nothing_had_been(home, whole):
    job, folder = submitted(smoke_sweep(home / "out", *LONG), Slurm(gpus=0), "local")
    for step in (10, 40):  # twice
        until(lambda step=step: step <= max(steps(folder), default=0))
        [task] = children(job.job_id)
        os.kill(task, signal.SIGUSR2)
        until(lambda task=task: not Path(f"/proc/{task}").exists() or task not in
              children(job.job_id))  # fmt: skip
    until(job.done)
    assert job.exception() is None
    log = job.stdout()
    assert log.count("Requeued job") == 2
    assert log.count("Continues after step") == 2
    assert differences(folder, whole) == []


@pytest.mark.long
@pytest.mark.parametrize("timeout", [True, False])
def test_slurm_preempts_a_job_and_it_goes_on(cluster, whole, home, timeout):
    """By submitit's own imitation of SLURM: USR2, or TERM and USR2."""
    job, folder = submitted(smoke_sweep(home / "out", *LONG), Slurm(gpus=0), "slurm")
    until(lambda: max(steps(folder), default=0) >= 10)
    job._interrupt(timeout=timeout)
    assert fake_slurm_ends(cluster, job.job_id) == "COMPLETED"
    assert (cluster / "jobs" / job.job_id / "requeued").exists()
    assert job.exception() is None
    assert differences(folder, whole) == []


def heeds(pid):
    """Whether a process has a handler for USR2."""
    [line] = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in x]
    return int(line.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1


def next_task(cluster, job, last):
    """The process of a job of one task that follows `last`; None where the job has ended."""
    pids = cluster / "jobs" / job.job_id / "pids"
    until(lambda: has_ended(cluster, job) or fake_slurm.read(pids) not in ("", last))
    return None if has_ended(cluster, job) else fake_slurm.read(pids)


def has_ended(cluster, job):
    return state(cluster, job.job_id) not in ("PENDING", "RUNNING")


@pytest.mark.long
def test_a_job_may_be_preempted_at_any_moment(cluster, whole, home, tally):
    job, folder = submitted(smoke_sweep(home / "out", *LONG), Slurm(gpus=0), "slurm")
    task, tries = None, 0
    # Seconds after its start: while it imports, opens, trains or scores.
    for delay in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0):
        task = next_task(cluster, job, task)
        if task is None:
            break
        until(lambda pid=task: heeds(pid))
        time.sleep(delay)
        if fake_slurm.read(cluster / "jobs" / job.job_id / "pids") == task:
            job._interrupt(timeout=tries % 2 == 0)  # USR2, or TERM and USR2
            tries += 1
    ended = fake_slurm_ends(cluster, job.job_id)
    wrong = differences(folder, whole) if ended == "COMPLETED" else [ended]
    tally("a job preempted so often ends as if nothing had been", tries, len(wrong))
    assert wrong == [], job.stdout()
    assert tries >= 4


@pytest.mark.long
def test_of_several_tasks_each_is_a_rank_and_a_preemption_hurts_none(cluster, home):
    words = ["precision=fp64", "train.epochs=10"]
    alone = the_plan(smoke_sweep(home / "alone", *words)).runs
    whole = train_run(next(iter(alone.values())), lambda event: None)
    sweep = smoke_sweep(home / "out", *words)
    settings = Slurm(gpus=0, nodes=2)  # two tasks
    job, folder = submitted(sweep, settings, "slurm")
    until(lambda: max(steps(folder), default=0) >= 10)
    job._interrupt(timeout=False)
    assert fake_slurm_ends(cluster, job.job_id, 120) == "COMPLETED"
    assert job.num_tasks == 2
    assert job.exception() is None, job.stderr()
    assert (cluster / "jobs" / job.job_id / "requeued").exists()
    assert job.task(1).stdout().count("this job is preempted") == 1
    assert steps(folder) == steps(whole)
    ours, theirs = (outcome(one)["result"] for one in (folder, whole))
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-9)


@pytest.mark.long
def test_a_cancelled_job_is_saved_and_does_not_come_back(cluster, home):
    sweep = smoke_sweep(home / "out", *LONG)
    job, folder = submitted(sweep, Slurm(gpus=0), "slurm")
    until(lambda: max(steps(folder), default=0) >= 10)
    job.cancel()
    assert fake_slurm_ends(cluster, job.job_id).startswith("CANCELLED")
    assert jobs_of(the_plan(sweep), list(the_plan(sweep).runs)) == {}
    assert "saved in" in job.stdout()
    assert (folder / "checkpoint").is_dir()
    assert not (folder / "result.json").exists()


@pytest.mark.long
def test_a_run_that_fails_in_its_job_is_reported_by_its_error(train, cluster, monkeypatch):
    monkeypatch.setattr("delving.slurm_queue.POLL", 0.2)
    code, out, _ = train("scale=smoke", "data=folder", "data.root=nowhere", *ON_CPUS, "--wait")
    assert code == 1
    assert "no such file or folder" in out.splitlines()[-1]
    assert out.splitlines()[-1].startswith("FAILED small14")
