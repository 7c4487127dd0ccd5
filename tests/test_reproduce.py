"""`delving reproduce`: what is missing is trained, once; everything is drawn, even from the records
alone; what fails is named and stops nothing."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import pandas as pd
import pytest
from calling import call
from fabricate import make_planned, snapshot

import delving.run
from delving import config as configs
from delving import cost, record, work
from delving.asked import measured_of
from delving.cost import largest_gigabytes, reckon_memory
from delving.plan import make_plan
from delving.reference import copy_records
from delving.reproduce import Ledger, _count, count_jobs
from delving.signals import Interrupted
from delving.workers import Outcome, Task

WORDS = ["figure1", "table1", "scale=smoke"]
RUNS = ["small14-prelu-he-s0", "small14-prelu-he-s1", "small14-prelu_shared-he-s0"]
FILES = {
    "figure1": {"figure.png", "figure.svg", "data.csv", "verdict.json"},
    "table1": {"table.csv", "table.md", "figure.png", "figure.svg", "data.csv", "verdict.json"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working directory in which the command really reproduced two artefacts; no test may change
    it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        code, said, _ = call("reproduce", *WORDS, "--jobs", "1")
    assert code == 0
    (home / "said").write_text(said)
    return home


@pytest.fixture
def scale(home):
    return home / "outputs" / "smoke"


@pytest.fixture
def copied(home, tmp_path):
    """outputs/smoke below a directory that a test may spoil."""
    shutil.copytree(home / "outputs", tmp_path / "outputs")
    return tmp_path / "outputs" / "smoke"


@pytest.fixture
def reproduce(monkeypatch, delving):
    """`delving reproduce` in this process, at home in a folder: (exit code, stdout, stderr)."""

    def call(folder, *words):
        monkeypatch.chdir(folder)
        return delving("reproduce", *words)

    return call


@pytest.fixture
def no_pictures(monkeypatch):
    """Figures are drawn but not saved, which would take longest."""
    monkeypatch.setattr("delving.draw.save_figure", lambda figure, path: path)


# --- in earnest ---
def test_it_trains_every_run_and_says_so(home, scale):
    assert sorted(p.name for p in (scale / "runs").iterdir()) == RUNS
    assert all((scale / "runs" / run / "result.json").exists() for run in RUNS)
    said = (home / "said").read_text()
    assert "2 artefacts of 3 runs: 0 there, 3 to train, 0 refused." in said
    first, *_ = [line.split()[0] for line in said.splitlines() if " make " in line]
    assert first.startswith("shapes-")
    for number, task in enumerate([first, *RUNS], start=1):
        assert any(line.split()[:1] == [task] for line in said.splitlines())
        assert f"  {number}/4  " in said
    assert said.splitlines()[0].startswith("Trained on 96 generated drawings")
    assert "conv1's slope stands out" in said
    assert said.splitlines()[-1] == "outputs/smoke/report.html"


def test_a_worker_trains_its_second_run_as_the_command_does_its_only_one(
    scale, tmp_path, monkeypatch, delving
):
    monkeypatch.chdir(tmp_path)
    assert delving("train", "scale=smoke", "seed=1")[0] == 0
    ours, alone = (root / "runs" / RUNS[1] for root in (scale, tmp_path / "outputs" / "smoke"))
    for file in ("checkpoint/model.safetensors", "config.yaml"):
        assert (ours / file).read_bytes() == (alone / file).read_bytes()
    assert record.read_result(ours)["eval"] == record.read_result(alone)["eval"]


@pytest.mark.parametrize("artefact", FILES)
def test_an_artefacts_folder_holds_exactly_the_files_of_the_contract(scale, artefact):
    assert {p.name for p in (scale / artefact).iterdir()} == FILES[artefact]
    assert all(p.stat().st_size > 0 for p in (scale / artefact).iterdir())


@pytest.mark.parametrize("artefact", FILES)
def test_a_verdict_tells_what_the_contract_wants(scale, artefact):
    verdict = record.read_json(scale / artefact / "verdict.json")
    assert (verdict["artefact"], verdict["scale"]) == (artefact, "smoke")
    assert verdict["command"] == f"delving reproduce {artefact} scale=smoke"
    assert set(verdict["runs"]) <= set(RUNS)
    for claim in verdict["claims"]:
        assert list(claim) == ["claim", "rule", "delta", "verdict", "evidence", "trainings"]
        assert claim["verdict"] in ("reproduced", "not_reproduced", "inconclusive")
        assert claim["trainings"] == len(verdict["runs"]) or "fall" in claim["claim"]
    assert bool(verdict["claims"]) == (artefact == "table1")


def test_the_report_and_the_times_lie_beside_the_artefacts(scale):
    assert {p.name for p in scale.iterdir()} == {
        "runs",
        "report.html",
        "reproduce.json",
        "drawn.json",
        *FILES,
    }
    page = (scale / "report.html").read_text()
    assert "holds on generated images?" in page
    assert "Table 1" in page
    times = record.read_json(scale / "reproduce.json")
    assert times["jobs"] == 1
    assert times["seconds"]["used"]["small"] > 0


def test_a_second_call_trains_nothing_and_leaves_the_runs_as_they_are(
    reproduce, no_workers, copied, tmp_path
):
    before, drawn = snapshot(copied / "runs"), snapshot(copied / "table1")
    code, out, _ = reproduce(tmp_path, *WORDS)
    assert code == 0
    assert "3 there, 0 to train" in out
    assert snapshot(copied / "runs") == before
    assert {k: v for k, (v, _) in snapshot(copied / "table1").items()} == {
        k: v for k, (v, _) in drawn.items()
    }


def test_the_lock_of_one_killed_when_it_had_measured_all_goes_with_the_next_command(
    reproduce, no_workers, no_pictures, copied, tmp_path
):
    """Nothing is left to measure, which would remove the lock."""
    (copied / "table1" / "lock").write_text("")
    assert reproduce(tmp_path, *WORDS)[0] == 0
    assert not list(copied.rglob("lock"))


def test_a_plan_trains_nothing_and_writes_nothing(reproduce, no_workers, tmp_path):
    code, out, _ = reproduce(tmp_path, *WORDS, "--plan")
    assert code == 0
    assert "0 there, 3 to train" in out
    for run in RUNS:
        assert any(line.split()[:2] == [run, "train"] for line in out.splitlines())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("file", "data"),
    [("figure1/figure.png", None), ("table1/table.csv", b"\x80"), ("table1/verdict.json", b"{}"),
     ("drawn.json", b"{"), ("drawn.json", b"[1]"), ("drawn.json", None)],
)  # fmt: skip
def test_what_was_drawn_and_is_lost_or_damaged_is_drawn_anew(
    reproduce, no_workers, copied, tmp_path, file, data
):
    before = {path: seen[0] for path, seen in snapshot(copied).items()}
    (copied / file).unlink() if data is None else (copied / file).write_bytes(data)
    code, _, err = reproduce(tmp_path, *WORDS)
    assert (code, err) == (0, "")
    assert {path: seen[0] for path, seen in snapshot(copied).items()} == before


def test_a_damaged_verdict_that_is_not_drawn_anew_is_named_before_any_work(
    reproduce, no_workers, copied, tmp_path
):
    """The page could not be made in the end."""
    (copied / "table1" / "verdict.json").write_text("{")
    before = snapshot(copied)
    code, out, err = reproduce(tmp_path, "figure1", WORDS[-1])
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "table1/verdict.json is not readable JSON" in err
    assert "`delving reproduce table1` draws it anew" in err
    assert snapshot(copied) == before


# --- from the records alone ---
def test_it_redraws_from_the_committed_record_byte_for_byte(reproduce, no_workers, scale, tmp_path):
    reference, other = tmp_path / "reference", tmp_path / "other"
    copy_records(scale, reference)
    other.mkdir()
    before = snapshot(reference)
    code, out, _ = reproduce(other, *WORDS, "--from", reference)
    assert code == 0
    assert "0 to train" in out
    assert snapshot(reference) == before
    redrawn = other / "outputs" / "smoke"
    for artefact, files in FILES.items():
        assert {p.name for p in (redrawn / artefact).iterdir()} == files
        for name in files:
            ours, theirs = (root / artefact / name for root in (redrawn, scale))
            assert ours.read_bytes() == theirs.read_bytes(), ours
    assert (redrawn / "report.html").exists()
    assert not (redrawn / "runs").exists()


def test_the_committed_record_is_small_and_tells_nothing_of_this_machines_folders(
    scale, home, tmp_path
):
    copy_records(scale, tmp_path / "reference")
    files = [p for p in (tmp_path / "reference").rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".safetensors", ".npz") and ".hits" not in p.name]
    assert sum(p.stat().st_size for p in files if "runs" in p.parts) < 20_000 * len(RUNS)
    for path in files:
        assert str(home).encode() not in path.read_bytes()


def test_records_of_another_scale_are_refused_before_anything_is_drawn(
    reproduce, no_workers, scale, tmp_path
):
    copy_records(scale, tmp_path / "reference")
    code, out, err = reproduce(tmp_path, "figure1", "--from", tmp_path / "reference")
    assert (code, out) == (2, "")
    assert "reference: records of scale=smoke, not of scale=cpu; made with scale=smoke" in err
    assert not (tmp_path / "outputs").exists()


def test_records_without_one_of_the_runs_are_refused_and_tell_how_they_were_made(
    reproduce, no_workers, scale, tmp_path
):
    copy_records(scale, tmp_path / "reference")
    words = (WORDS[-1], "data.classes=3", "--from", tmp_path / "reference")
    code, out, err = reproduce(tmp_path, "figure1", *words)
    assert (code, out) == (2, "")
    assert re.search(r"none of \d runs is there, such as \S+-classes3-\S+; made with scale=", err)
    assert not (tmp_path / "outputs").exists()


def test_a_run_that_the_record_lacks_is_named(reproduce, no_workers, no_pictures, scale, tmp_path):
    copy_records(scale, tmp_path / "reference")
    shutil.rmtree(tmp_path / "reference" / "runs" / RUNS[1])
    code, out, _ = reproduce(tmp_path, "figure1", WORDS[-1], "--from", tmp_path / "reference")
    assert code == 1
    assert any(line.startswith(f"FAILED {RUNS[1]}: ") for line in out.splitlines())
    assert (tmp_path / "outputs" / "smoke" / "figure1" / "verdict.json").exists()


def test_processes_that_are_given_the_same_work_share_it(tmp_path):
    """As with one for each GPU of a machine: each takes what no other works on, all wait for the
    end, and they draw one result."""
    command = [sys.executable, "-m", "delving", "reproduce", *WORDS, "--jobs", "1"]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            for _ in range(2)]  # fmt: skip
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    folders = list((tmp_path / "outputs" / "smoke" / "runs").iterdir())
    assert len(folders) > 2
    for folder in folders:
        assert len(record.read_events(folder, "start")) == 1
        assert len(record.read_events(folder, "end")) == 1
    assert all("FAILED" not in out for out in said)
    assert not list((tmp_path / "outputs" / "smoke").rglob("lock"))


def test_times_are_added_while_the_folder_is_held_so_that_no_other_process_loses_its_own(
    reproduce, no_pictures, copied, tmp_path, monkeypatch
):
    held = []
    shutil.rmtree(copied / "runs" / RUNS[2])  # so that there is work, which is not done here
    monkeypatch.setattr("delving.reproduce.work", lambda *_, **__: Ledger(jobs=1))
    monkeypatch.setattr(
        "delving.reproduce.save_times", lambda plan, *_: held.append((plan.root / "lock").exists())
    )
    reproduce(tmp_path, *WORDS)
    assert held == [True, True]  # for the work, and for the drawing


# --- what fails ---
USED = {"planned": {}, "used": {"start": 1.0}}
DAMAGED = {  # {kind: (file of the record, what it holds, what is said of it)}
    "a word for the times": ("reproduce.json", {"seconds": "x"}, "seconds"),
    "a word for a time": ("reproduce.json", {"seconds": USED | {"planned": {"deep": "x"}}}, "deep"),
    "an infinite time": (
        "reproduce.json", {"seconds": USED | {"used": {"deep": float("inf")}}}, "deep"
    ),
    "a list of times": ("reproduce.json", [1], "table"),
    "a list of slopes": (f"runs/{RUNS[0]}/slopes.json", [1], "table"),
    "a word for slopes": (f"runs/{RUNS[0]}/slopes.json", {"conv1": "x"}, "conv1"),
    "a list for where it was": (f"runs/{RUNS[1]}/env.json", [1], "table"),
    "scores without a time": (f"runs/{RUNS[1]}/eval/ten_view.json", {}, "seconds"),
    "a log without a start": (f"runs/{RUNS[1]}/log.jsonl", {"event": "start"}, "no start"),
    "a list of results": (f"runs/{RUNS[1]}/result.json", [1], "table"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_refused_by_file_and_key_before_anything_is_drawn(
    reproduce, no_workers, copied, tmp_path, kind
):
    file, value, said = DAMAGED[kind]
    record.write_json(copied / file, value)
    words = [*WORDS, "--from", copied, f"output_root={tmp_path / 'other'}"]
    code, out, err = reproduce(tmp_path, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert str(copied / file) in err
    assert said in err
    assert not (tmp_path / "other").exists()


PART = {"asked": {"runs": {}}, "seconds": 1.0, "found": {}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1], "table"),
        ({}, "parts"),
        ({"parts": [3]}, "table"),
        ({"parts": [PART | {"found": 3}]}, "found"),
        ({"parts": [PART | {"asked": {}}]}, "runs"),
    ],
)
def test_a_damaged_measurement_is_refused_too(reproduce, copied, tmp_path, value, said):
    record.write_json(copied / "signal" / "measured.json", value)
    words = ["signal", "scale=smoke", "--from", copied, f"output_root={tmp_path / 'other'}"]
    code, out, err = reproduce(tmp_path, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert str(copied / "signal" / "measured.json") in err
    assert said in err


@pytest.mark.parametrize("value", [[1], {"conv1": ["x"]}])
def test_damaged_slopes_are_not_plotted_but_named(copied, value):
    record.write_json(copied / "runs" / RUNS[0] / "slopes.json", value)
    code, _, err = call("plot-slopes", RUNS[0], "--output-root", copied.parent)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{RUNS[0]}/slopes.json is damaged" in err


def test_of_runs_that_were_not_named_a_damaged_one_is_left_out(copied):
    record.write_json(copied / "runs" / RUNS[0] / "slopes.json", [1])
    (copied / "runs" / RUNS[1] / "result.json").unlink()
    code, out, _ = call("plot-slopes", "--output-root", copied.parent)
    assert code == 0
    assert f"left out: {copied}/runs/{RUNS[0]}/slopes.json is damaged" in out
    drawn = pd.read_csv(copied.parent / "slopes" / "data.csv")
    assert not drawn.empty
    assert not set(RUNS[:2]) & set(drawn.run)


def test_a_foreign_file_among_the_scores_fails_that_run_alone(copied, monkeypatch):
    monkeypatch.chdir(copied.parent.parent)
    plan = make_plan(["figure1"], ["scale=smoke"])
    record.write_json(copied / "runs" / RUNS[0] / "eval" / "mine.json", {"seconds": "x"})
    ledger = Ledger(jobs=1)
    for run in RUNS[:2]:
        _count(plan, ledger, Outcome(Task(run, {"kind": "train"}), None, 5.0))
    assert list(ledger.failed) == [RUNS[0]]
    assert "mine.json is damaged: seconds is 'x'" in ledger.failed[RUNS[0]]
    assert sum(ledger.seconds.values()) > 0


def test_the_time_of_a_run_that_was_interrupted_is_its_training_s(copied, monkeypatch):
    monkeypatch.chdir(copied.parent.parent)
    plan = make_plan(["figure1"], ["scale=smoke"])
    (copied / "runs" / RUNS[0] / "result.json").unlink()
    ledger = Ledger(jobs=2)
    _count(plan, ledger, Outcome(Task(RUNS[0], {"kind": "train"}), "interrupted", 5.0))
    assert ledger.seconds["small"] == pytest.approx(sum(ledger.seconds.values())) == 2.5


def test_where_no_artefact_can_be_drawn_the_page_says_so(
    reproduce, no_workers, no_pictures, scale, tmp_path, monkeypatch
):
    copy_records(scale, tmp_path / "reference")
    monkeypatch.setattr("delving.paper.figure1.show", lambda asked: 1 / 0)
    code, out, err = reproduce(tmp_path, "figure1", WORDS[-1], "--from", tmp_path / "reference")
    assert (code, err) == (1, "")
    assert "FAILED figure1: " in out
    drawn = tmp_path / "outputs" / "smoke"
    assert {p.name for p in drawn.iterdir()} == {"report.html"}


def test_a_folder_that_holds_another_run_is_named_and_the_others_are_drawn(
    reproduce, no_workers, no_pictures, copied, tmp_path
):
    path = copied / "runs" / RUNS[0] / "config.yaml"
    path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    spoiled = snapshot(copied / "runs")
    code, out, err = reproduce(tmp_path, *WORDS, "--plan")
    assert (code, err) == (1, "")  # as the work itself would end
    assert "1 refused" in out
    code, out, err = reproduce(tmp_path, *WORDS)
    assert (code, err) == (1, "")
    assert "1 refused" in out
    [line] = [line for line in out.splitlines() if line.startswith("FAILED ")]
    assert line.startswith(f"FAILED {RUNS[0]}: ")
    assert "train.momentum 0.9 asked for, 0.8 there" in line
    assert record.read_json(copied / "figure1" / "verdict.json")["runs"] == [RUNS[1]]
    assert record.read_json(copied / "table1" / "verdict.json")["runs"] == RUNS[1:]
    assert "train.momentum" in (copied / "report.html").read_text()
    assert snapshot(copied / "runs") == spoiled


def test_a_net_that_diverged_at_once_is_named_in_its_verdict_and_all_is_drawn(
    reproduce, no_workers, no_pictures, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    plan = make_plan(["figure2", "figure1"], ["scale=smoke"])
    nothing = {"errors": {}, "steps": 0, "status": "diverged"}
    make_planned(plan, "figure2", lambda arm, seed: nothing if arm == "xavier" else {})
    slopes = {"slopes": {"conv1": [0.5], "conv2": [0.2]}}
    make_planned(plan, "figure1", lambda arm, seed: slopes)
    code, out, err = reproduce(tmp_path, "figure1", "figure2", "scale=smoke")
    assert (code, err) == (0, "")
    assert "FAILED" not in out
    converge, earlier = record.read_json(plan.root / "figure2" / "verdict.json")["claims"]
    assert converge["verdict"] == "not_reproduced"
    assert earlier["verdict"] == "inconclusive"
    assert "b-relu-xavier-s0 diverged" in earlier["evidence"]


def test_in_no_time_nothing_is_begun_and_what_is_left_is_told(reproduce, no_workers, tmp_path):
    code, out, err = reproduce(tmp_path, "figure1", "scale=smoke", "--minutes", "0.01")
    assert (code, err) == (0, "")
    assert "images/s, " in out  # each net was probed, since no finished run tells its time
    assert "2 tasks not begun for lack of time, " in out
    assert not (tmp_path / "outputs" / "smoke" / "runs").exists()


def test_what_is_left_for_another_time_is_no_failure_of_what_would_show_it(
    reproduce, no_workers, no_pictures, monkeypatch, tmp_path
):
    """Four of an ensemble's six nets are there; the rest, and so the ensemble, comes later."""
    monkeypatch.chdir(tmp_path)
    make_planned(make_plan(["table5"], ["scale=smoke"]), "table5", lambda arm, seed: {})
    words = ["table7", "figure4", "scale=smoke", "--minutes", "0.01"]
    code, out, err = reproduce(tmp_path, *words)
    assert (code, err) == (0, "")
    assert "not begun for lack of time" in out
    assert "FAILED" not in out


def test_in_enough_time_finished_runs_are_drawn_as_ever(reproduce, no_workers, copied, tmp_path):
    code, out, err = reproduce(tmp_path, *WORDS, "--minutes", "9")
    assert (code, err) == (0, "")
    assert "Left for" not in out
    assert "images/s, " not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tabel1"], "did you mean table1"),
        (["all", "tabel1"], "did you mean table1"),
        (["table1", "seed=3"], "an artefact sets model, act, init, seed, model.depth, "),
        (["table1", "trian.lr=1"], "did you mean train.lr"),
        (["table1", "scale=smok"], "did you mean smoke"),
        (["table1", "scale=smoke", "--jobs", "0"], "jobs"),
        (["table1", "scale=smoke", "device=abacus"], "device=abacus"),
    ],
)
def test_bad_input_ends_with_two_and_a_line_and_writes_nothing(reproduce, tmp_path, words, said):
    code, out, err = reproduce(tmp_path, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_as_many_runs_side_by_side_as_wanted_or_as_there_are_cores_but_one():
    assert count_jobs("cpu", 3) == 3
    assert 1 <= count_jobs("cpu", None) <= os.cpu_count()


@pytest.mark.parametrize(
    ("models", "jobs"), [([], 8), (["small14"], 5), (["a"], 2), (["small14", "c"], 1)]
)
def test_as_many_runs_side_by_side_as_memory_holds_of_the_largest(monkeypatch, models, jobs):
    """Eight cores, 16 GB, and the quarter scale's full-width nets, of 3.2, 6.8, 11.6 GB in bf16."""
    monkeypatch.setattr("delving.tasks.count_cores", lambda: 8)
    monkeypatch.setattr("delving.tasks.free_memory", lambda: 16e9)
    words = ["scale=quarter", "data.cache_gb=0", "precision=bf16"]
    runs = [configs.compose([*words, f"model={model}"]) for model in models]
    assert count_jobs("cpu", None, runs) == jobs
    assert count_jobs("cpu", 4, runs) == 4


def test_images_that_are_kept_decoded_count_as_memory_up_to_their_limit():
    def gigabytes(*words):
        return largest_gigabytes([configs.compose(list(words))])

    quarter = ["scale=quarter", "data.train_images=50000", "data.val_images=10000"]
    none, all_of_them = (gigabytes(*quarter, f"data.cache_gb={gb}") for gb in (0, 4))
    assert all_of_them - none == pytest.approx(60_000 * 64 * 96 * 3 / 1e9)
    assert gigabytes(*quarter, "data.cache_gb=0.5") - none == pytest.approx(0.5)
    large = ["scale=paper", "data.root=somewhere"]
    assert gigabytes(*large) - gigabytes(*large, "data.cache_gb=0") == pytest.approx(4)


def test_fewer_images_at_once_take_less_memory():
    def gigabytes(*words):
        return largest_gigabytes([configs.compose(["scale=quarter", *words])])

    assert gigabytes("train.micro_batch=32") < gigabytes()
    assert gigabytes("train.micro_batch=32") == gigabytes("train.batch=32")
    assert gigabytes("train.micro_batch=1000") == gigabytes()


def test_responses_in_fp32_take_twice_the_memory(monkeypatch):
    def gigabytes(precision):
        words = ["scale=quarter", "data.cache_gb=0", f"precision={precision}"]
        return largest_gigabytes([configs.compose(words)])

    half, none = gigabytes("bf16"), reckon_memory(configs.compose(["scale=quarter"]))
    responses = reckon_memory(configs.compose(["scale=quarter", "precision=fp32"])) - none
    assert gigabytes("fp32") - half == pytest.approx(cost.TIMES * responses)
    assert 0 < responses < none
    for here in ("fp32", "bf16"):  # `auto` is what this machine has
        monkeypatch.setattr(cost, "pick_precision", lambda name, device, here=here: here)
        assert gigabytes("auto") == gigabytes(here)


@pytest.mark.long
def test_a_training_takes_no_more_memory_than_is_planned(tmp_path):
    words = ["scale=quarter", "data=shapes", "data.train_images=256", "data.val_images=50",
             "train.epochs=1", "eval.protocols=[center]"]  # fmt: skip
    command = [sys.executable, "-m", "delving", "train", *words, f"output_root={tmp_path}"]
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(training.pid, 0)
    training.returncode = code
    assert code == 0
    planned = largest_gigabytes([configs.compose(words)])
    assert planned / 2 < used.ru_maxrss / 1e6 < planned


def test_slopes_of_reproduced_runs_are_drawn(home, monkeypatch, delving):
    monkeypatch.chdir(home)
    code, out, _ = delving("plot-slopes", *RUNS[:2])
    assert code == 0
    figure = home / out.strip()
    assert figure.exists()
    assert (figure.parent / "data.csv").read_text().startswith("run,layer,slopes,mean,low,high")
    shutil.rmtree(figure.parent)


# --- a worker, seen from inside ---
def attempt(task):
    """Runs a task: (its last event, those before it)."""
    out = io.StringIO()
    last = work._attempt(task, out, {})
    return last, [json.loads(line) for line in out.getvalue().splitlines()]


def train_task(plan, run):
    return {"kind": "train", "name": run, "config": configs.to_yaml(plan.runs[run])}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_plan(["figure1"], ["scale=smoke"])


def test_a_worker_tells_a_runs_events_and_then_that_it_is_done(plan):
    make_planned(plan, "figure1", lambda arm, seed: {})
    last, before = attempt(train_task(plan, RUNS[0]))
    assert last["event"] == "done"
    assert last["wall"] >= 0
    assert [event["event"] for event in before] == ["finished"]


def test_a_worker_tells_of_an_error_and_goes_on(plan, monkeypatch):
    task = train_task(plan, RUNS[0])
    for error, text in (
        (ValueError("two\n  lines"), "two lines"),
        (RuntimeError(), "RuntimeError"),
        (MemoryError(), "out of memory"),
    ):
        monkeypatch.setattr(delving.run, "train_run", raising(error))
        last, _ = attempt(task)
        assert (last["event"], last["error"]) == ("failed", text)
    last, _ = attempt(task | {"config": "sede: 0"})
    assert last["event"] == "failed"
    assert RUNS[0] in last["error"]


def raising(error):
    def fail(*_):
        raise error

    return fail


def test_a_worker_tells_an_interruption_from_a_failure(plan, monkeypatch):
    interruption = Interrupted(signal.SIGTERM, "the folder")
    monkeypatch.setattr(delving.run, "train_run", raising(interruption))
    last, _ = attempt(train_task(plan, RUNS[0]))
    assert last["event"] == "interrupted"
    assert "saved in the folder" in last["error"]


def test_a_worker_measures_what_an_artefact_asks_for_and_saves_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["scale=smoke"]
    measuring = types.SimpleNamespace(measure=lambda asked: {"of": asked.artefact})
    monkeypatch.setitem(sys.modules, "delving.paper.signal", measuring)
    last, _ = attempt({"kind": "measure", "name": "signal", "words": words})
    assert last["event"] == "done"
    assert measured_of(make_plan(["signal"], words), "signal") == {(): {"of": "signal"}}


def test_what_a_library_prints_is_no_event():
    script = """
import os, sys, types
sys.modules["delving.plan"] = types.SimpleNamespace(make_plan=None)
sys.modules["delving.asked"] = types.SimpleNamespace(ask=None)
sys.modules["delving.measured"] = types.SimpleNamespace(measure_missing=None)
from delving import work
def chatter(task, out, shelf):
    print("a library says hello", flush=True)
    os.write(1, b"and another one, loudly")
    work._tell(out, {"event": "tick"})
    if task["bad"]:
        raise ValueError("bad")
work._work = chatter
work.main()
"""
    tasks = "".join(json.dumps({"bad": bad}) + "\n" for bad in (True, False))
    done = subprocess.run(
        [sys.executable, "-c", script], input=tasks, capture_output=True, text=True
    )
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert (done.returncode, events) == (0, ["tick", "failed", "tick", "done"])
    assert "hello" in done.stderr
    assert "loudly" in done.stderr
