"""`delving train -m`: each run is planned once; a failure stops no other, what was cut resumes."""

import json
import os
import re
import signal
import threading

import pytest
from calling import call
from fabricate import snapshot
from smoke import WORDS, differences
from smoke import train as train_one

from delving import config as configs
from delving import record
from delving.multirun import _add, align, plan_sweep, state_of
from delving.naming import name_run

SMOKE = ["scale=smoke", "device=cpu"]
NAMES = ["small14-relu-he-s0", "small14-relu-he-s1", "small14-prelu-he-s0", "small14-prelu-he-s1"]

# What a worker does in most of these tests instead of delving.work: it finishes a run at once. Seed
# 13 fails, 9 is killed once, 99 is killed always, 7 waits to be interrupted.
WORK = """
import json, os, signal, sys, time
from pathlib import Path
import yaml
heard = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: heard.append(1))
def tell(**event):
    print(json.dumps(event), flush=True)
for line in iter(sys.stdin.readline, ""):
    task = json.loads(line)
    config = yaml.safe_load(task["config"])
    folder = Path(config["output_root"]) / config["scale"] / "runs" / Path(task["name"]).name
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(task["config"])
    seed = config["seed"]
    with open(folder / "pids", "a") as file:
        file.write(f"{os.getpid()}\\n")
    if seed == 13:
        tell(event="failed", error="no such image", wall=0.0)
        continue
    if seed == 99 or seed == 9 and len((folder / "pids").read_text().split()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 7:
        tell(event="start", steps=1)
        while not heard:
            time.sleep(0.01)
        tell(event="interrupted", error="SIGTERM: saved", wall=0.0)
        continue
    scores = {"top1_err": 40.0 + 10 * seed, "top5_err": 4.0, "images": 24}
    result = {
        "run": folder.name, "scale": config["scale"], "model": config["model"]["name"],
        "act": config["act"]["name"], "init": "he", "seed": seed, "epochs": 1.0,
        "images_seen": 96, "params": 1, "multiply_adds": 1, "train_loss": 1.0,
        "status": "converged", "seconds": 1.0, "images_per_second": 1.0, "device": "cpu",
        "eval": {"ten_view": scores}, "deviations": [],
    }
    (folder / "result.json").write_text(json.dumps(result))
    tell(event="done", wall=0.1)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory, with the workers above."""
    (tmp_path / "delving").mkdir()
    (tmp_path / "delving" / "__init__.py").write_text("")
    (tmp_path / "delving" / "work.py").write_text(WORK)
    monkeypatch.setattr("delving.launched.PACKAGE", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("delving.multirun.with_images", lambda tasks, runs: tasks)
    return tmp_path


@pytest.fixture
def train(delving):
    """`delving train` in this process: (exit code, lines of stdout, stderr)."""

    def call(*words):
        code, out, err = delving("train", *words)
        return code, out.splitlines(), err

    return call


def runs(home):
    return home / "outputs" / "smoke" / "runs"


def states(lines):
    """{run: its state} as the plan tells it."""
    told = [line.split("  ") for line in lines if line.startswith("  small14")]
    return {parts[1].strip(): next(p.strip() for p in parts[2:] if p) for parts in told}


def table(lines):
    """{run: cells} of the table at the end."""
    first = next(n for n, line in enumerate(lines) if line.startswith("run  "))
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[first:]]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("FAILED")}


# --- what is asked for ---
def test_every_combination_is_a_run_named_by_its_meaning(train, no_workers, home):
    code, lines, err = train("-m", *SMOKE, "act=relu,prelu", "seed=0..1", "--plan")
    assert (code, err) == (0, "")
    assert lines[0] == "4 runs: 0 finished, 0 to go on, 4 new, 0 refused."
    assert states(lines) == dict.fromkeys(NAMES, "new")
    assert "side by side" in lines[-1]
    assert not (home / "outputs").exists()


def test_a_plan_tells_the_hours_of_a_long_run(train, no_workers, home):
    _, lines, _ = train("-m", *SMOKE, "act=relu", "seed=0,1", "train.epochs=100000", "--plan")
    told = [line.partition("about ")[2] for line in lines if "-s0" in line or "-s1" in line]
    assert len(told) == 2
    assert all(re.fullmatch(r"\d+ h \d\d min", line) for line in told)


def test_a_sweep_takes_no_less_than_its_longest_run(train, no_workers, home):
    words = [*SMOKE, "act=relu", "train.epochs=2,100000", "--jobs", "2", "--plan"]
    _, lines, _ = train("-m", *words)
    [longest] = [line.partition("about ")[2] for line in lines if "epochs100000" in line]
    assert lines[-1] == f"About {longest}, 2 side by side."


def test_the_long_option_and_the_short_one_are_the_same(train, no_workers, home):
    words = [*SMOKE, "act=relu,prelu", "--plan"]
    assert train("--multirun", *words) == train("-m", *words)


def test_a_run_alone_can_be_planned_too(train, no_workers, home):
    code, lines, _ = train(*SMOKE, "act=relu", "--plan")
    assert (code, states(lines)) == (0, {NAMES[0]: "new"})
    assert lines[0] == "1 run: 0 finished, 0 to go on, 1 new, 0 refused."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=folder"], "data=folder needs data.root="),
        (["data=folder", "data.root=nowhere"], "data.root=nowhere: there is no such"),
    ],
)
def test_a_plan_refuses_runs_whose_images_are_not_there(train, no_workers, home, words, said):
    code, lines, _ = train("-m", *SMOKE, *words, "act=relu", "seed=0,1", "--plan")
    assert (code, set(states(lines).values())) == (1, {"refused"})  # as the run itself would
    assert sum(said in line for line in lines) == 1  # once, as it is the same for both


def test_of_a_key_given_twice_the_last_sweep_counts(train, no_workers, home):
    _, lines, _ = train("-m", *SMOKE, "act=relu", "seed=3,4", "seed=0,1", "--plan")
    assert list(states(lines)) == NAMES[:2]
    assert not [line for line in lines if "dropped" in line]


def test_a_run_asked_for_twice_is_trained_once_and_the_plan_says_so(train, no_workers, home):
    _, lines, _ = train("-m", *SMOKE, "act=relu", "seed=0,1,0", "eval.every=1,2", "--plan")
    assert list(states(lines)) == NAMES[:2]
    dropped = [line for line in lines if line.startswith("  dropped, asked for already: ")]
    assert len(dropped) == 4
    assert dropped[-1].endswith("seed=0 eval.every=2")


def test_two_sources_of_images_do_not_share_a_folder():
    words = [*SMOKE, "data=folder", "data.root=/a/pictures"]
    sweep = plan_sweep(words, several=False)
    [plan] = sweep.plans.values()
    [name] = plan.runs
    other = configs.compose([*words[:-1], "data.root=/b/pictures"])
    assert name_run(other) == name
    asked = {(next(iter(sweep.plans)), name): "data.root=/a/pictures"}
    with pytest.raises(ValueError, match=f"would be {name}, as that of data.root=/a/pictures"):
        _add(sweep, asked, other, "data.root=/b/pictures")


def test_over_scales_runs_are_told_apart_by_their_folders(train, no_workers, home):
    code, lines, _ = train("-m", "scale=smoke,cpu", "act=relu", "--plan")
    assert code == 0
    folders = [f"outputs/{scale}/runs/{NAMES[0]}" for scale in ("smoke", "cpu")]
    assert [line.split()[:2] for line in lines[1:3]] == [[folder, "new"] for folder in folders]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=0..100"], "make 101 runs; at most 100; --cap N takes more"),
        (["seed=0..4", "act=relu,prelu", "--cap", "9"], "make 10 runs; at most 9"),
        (["seed=0..999999999999"], "1,000,000,000,000 runs"),
        (["act=relu,prelo"], "did you mean prelu"),
        (["atc=relu,prelu"], "did you mean act"),
        (["family.large.epochs=2"], "small14 is a small one: family.small.epochs sets it"),
        (["act=relu", "data.crop=28,7"], "act=relu data.crop=7"),
        (["act=prelu,relu", "act.slope=0.3"], "act=relu act.slope=0.3: act.slope=0.3: relu's is 0"),
        (["model.depth=14,15,99999"], "99999"),
        (["--cap", "0"], "cap"),
        (["device=abacus"], "abacus"),
        (["--wait"], "--wait: only with launcher=slurm"),
        (["--print-sbatch"], "--print-sbatch: only with launcher=slurm"),
        (["slurm.minutes=3"], "slurm.minutes=3: only with launcher=slurm"),
        (["launcher=slrum"], "did you mean slurm"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(train, no_workers, home, words, said):
    code, lines, err = train("-m", *SMOKE, *words)
    assert (code, lines) == (2, [])
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (home / "outputs").exists()


@pytest.mark.parametrize("option", ["--jobs", "--cap"])
def test_what_is_for_many_runs_is_refused_of_one(train, no_workers, home, option):
    code, _, err = train(*SMOKE, option, "2")
    assert code == 2
    assert f"{option}: only with -m" in err


def test_it_is_not_for_torchrun(train, no_workers, home, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = train("-m", *SMOKE, "seed=0..1")
    assert code == 2
    assert "torchrun" in err


# --- what is done ---
def test_runs_are_trained_scored_and_told_with_means_over_seeds(train, home):
    code, lines, err = train("-m", *SMOKE, "act=relu,prelu", "seed=0..1")
    assert (code, err) == (0, "")
    assert sorted(p.name for p in runs(home).iterdir()) == sorted(NAMES)
    assert table(lines) == {
        "run": ["status", "ten_view top-1 %", "ten_view top-5 %"],
        **{name: ["converged", f"{40 + 10 * int(name[-1])}.00", "4.00"] for name in NAMES},
        **{f"{name}, 2 seeds": ["converged", "45.00 ± 7.07 (2)", "4.00 ± 0.00 (2)"]
           for name in ("small14-relu-he", "small14-prelu-he")},
    }  # fmt: skip


def test_what_is_finished_is_skipped_and_left_as_it_is(train, home, monkeypatch):
    train("-m", *SMOKE, "act=relu", "seed=0..1")
    before = snapshot(runs(home))
    code, lines, _ = train("-m", *SMOKE, "act=relu", "seed=0..2")
    assert (code, lines[0]) == (0, "3 runs: 2 finished, 0 to go on, 1 new, 0 refused.")
    assert before.items() <= snapshot(runs(home)).items()
    assert table(lines)["small14-relu-he, 3 seeds"][1] == "50.00 ± 10.00 (3)"
    monkeypatch.setattr("delving.workers.Worker._start", lambda self: 1 / 0)
    assert train("-m", *SMOKE, "act=relu", "seed=0..2")[0] == 0


def test_a_run_that_fails_is_named_and_stops_no_other(train, home):
    code, lines, err = train("-m", *SMOKE, "act=relu", "seed=13,0,1", "--jobs", "1")
    assert (code, err) == (1, "")
    assert lines[-1] == "FAILED small14-relu-he-s13: no such image"
    told = table(lines)
    assert told["small14-relu-he-s13"] == ["FAILED", "-", "-"]
    assert told["small14-relu-he, 2 seeds"][0] == "converged"


def test_a_folder_that_holds_another_run_is_refused_and_the_others_are_trained(train, home):
    train("-m", *SMOKE, "act=relu", "seed=0..1")
    path = runs(home) / NAMES[0] / "config.yaml"
    path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    spoiled = snapshot(runs(home) / NAMES[0])
    code, lines, _ = train("-m", *SMOKE, "act=relu,prelu", "seed=0..1")
    assert (code, lines[0]) == (1, "4 runs: 1 finished, 0 to go on, 2 new, 1 refused.")
    assert states(lines)[NAMES[0]] == "refused"
    assert any("train.momentum 0.9 asked for, 0.8 there" in line for line in lines)
    assert table(lines)[NAMES[0]] == ["refused", "-", "-"]
    assert snapshot(runs(home) / NAMES[0]) == spoiled
    assert (runs(home) / NAMES[3] / "result.json").exists()


def test_a_result_that_somebody_spoilt_is_named(train, home):
    train("-m", *SMOKE, "act=relu", "seed=0..1")
    path = runs(home) / NAMES[0] / "result.json"
    path.write_text(json.dumps(record.read_json(path) | {"status": "famous"}))
    code, lines, _ = train("-m", *SMOKE, "act=relu", "seed=0..1")
    assert code == 1
    assert lines[-1].startswith(f"FAILED {NAMES[0]}: ")
    assert "famous" in lines[-1]


def test_a_killed_worker_is_named_and_its_run_goes_on(train, home):
    code, lines, _ = train("-m", *SMOKE, "act=relu", "seed=9,0", "--jobs", "1")
    assert code == 0
    [line] = [line for line in lines if "killed" in line]
    assert line == ("small14-relu-he-s9: the worker was killed (exit -9), as where memory runs out;"
                    " it is tried once more")  # fmt: skip
    assert (runs(home) / "small14-relu-he-s9" / "result.json").exists()


def test_a_run_whose_worker_is_killed_again_has_failed(train, home):
    code, lines, _ = train("-m", *SMOKE, "act=relu", "seed=99,0", "--jobs", "1")
    assert code == 1
    assert lines[-1].startswith("FAILED small14-relu-he-s99: the worker was killed (exit -9)")
    assert len((runs(home) / "small14-relu-he-s99" / "pids").read_text().split()) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75)])
def test_an_interrupted_sweep_ends_with_the_code_and_the_same_command_goes_on(
    train, home, number, code
):
    def interrupt():
        while not (runs(home) / "small14-relu-he-s7" / "config.yaml").exists():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), number)

    words = ["-m", *SMOKE, "act=relu", "seed=0,7", "--jobs", "1"]
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    found, _, err = train(*words)
    interrupter.join()
    assert found == code
    assert "the same command goes on" in err
    _, lines, _ = train(*words, "--plan")
    assert states(lines) == {"small14-relu-he-s0": "finished", "small14-relu-he-s7": "goes on"}


def test_how_a_run_stands(home):
    [plan] = plan_sweep([*SMOKE, "act=relu"], several=False).plans.values()
    folder = runs(home) / NAMES[0]
    assert state_of(plan, NAMES[0]) == "new"
    (folder / "checkpoint.previous").mkdir(parents=True)
    assert state_of(plan, NAMES[0]) == "goes on"
    (folder / "result.json").touch()
    assert state_of(plan, NAMES[0]) == "finished"
    plan.refused[NAMES[0]] = "another run"
    assert state_of(plan, NAMES[0]) == "refused"


def test_columns_are_as_wide_as_their_widest_cell():
    assert align([["a", "bbb", "c"], ["aa", "b", ""]]) == ["a   bbb  c", "aa  b"]


# --- in earnest: with the real worker, as in test_reproduce ---
@pytest.fixture(scope="module")
def earnest(tmp_path_factory):
    """Two runs trained by the command with its real workers: the folder, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    words = ["-m", *SMOKE, "act=relu", "seed=0..1", "train.epochs=1", "--jobs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        code, said, _ = call("train", *words)
    assert code == 0, said
    return home, said.splitlines()


@pytest.mark.long
def test_a_sweep_trains_what_single_runs_would(earnest, tmp_path, monkeypatch, train):
    home, lines = earnest
    name = "small14-relu-he-epochs1-s1"
    monkeypatch.chdir(tmp_path)
    assert train(*SMOKE, "act=relu", "seed=1", "train.epochs=1")[0] == 0
    alone, ours = (root / "outputs" / "smoke" / "runs" / name for root in (tmp_path, home))
    for file in ("checkpoint/model.safetensors", "config.yaml"):
        assert (alone / file).read_bytes() == (ours / file).read_bytes()
    scores = record.read_result(ours)["eval"]
    assert scores == record.read_result(alone)["eval"]
    assert table(lines)[name][1:] == [f"{scores['ten_view'][f'top{k}_err']:.2f}" for k in (1, 5)]


@pytest.mark.long
def test_a_run_whose_worker_the_system_kills_ends_as_if_nothing_had_been(
    tmp_path, monkeypatch, train, tally
):
    words = ["train.epochs=30"]
    whole = train_one(tmp_path / "whole", lambda event: None, *words)
    folder = tmp_path / "out" / "smoke" / "runs" / whole.name

    def kill():
        while (
            not (folder / "log.jsonl").exists()
            or '"step": 20' not in (folder / "log.jsonl").read_text()
        ):
            threading.Event().wait(0.02)
        os.kill(record.read_json(folder / "lock")["pid"], signal.SIGKILL)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    killer = threading.Thread(target=kill)
    killer.start()
    code, lines, _ = train("-m", *WORDS, *words, f"output_root={tmp_path / 'out'}", "--jobs", "1")
    killer.join()
    wrong = differences(folder, whole)
    tally("a worker of a sweep is killed by the system", 1, len(wrong))
    assert code == 0, lines
    assert any("it is tried once more" in line for line in lines)
    assert wrong == []
