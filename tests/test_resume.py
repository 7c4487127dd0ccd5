"""Whatever stops a run, the same command finishes it as if nothing had happened, bit for bit."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from smoke import WORDS, differences, silent, train

from delving import checkpoint, evaluate, record, run, score, signals, state
from delving import config as configs
from delving.checkpoint import load_checkpoint
from delving.config import load
from delving.data.images import FolderReader
from delving.data.input import Input
from delving.data.processes import LoaderError
from delving.lock import clear_up, holding
from delving.score import eval_run
from delving.signals import Interrupted


def stops_at(step, number):
    def watch(event):
        if event["event"] == "tick" and event["step"] == step:
            os.kill(os.getpid(), number)

    return watch


# --- kill -9 ---
def die():
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(number, function, half=None):
    """`function`, but its number-th call does only `half`, if given, and ends the process."""
    calls = []

    def mortal(*arguments, **keywords):
        calls.append(1)
        if len(calls) == number:
            if half:
                half(*arguments, **keywords)
            die()
        return function(*arguments, **keywords)

    return mortal


def half_a_line(path, event):
    with open(path, "a") as file:
        file.write(json.dumps(event)[: len(json.dumps(event)) // 2])


def half_a_file(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f".{path.name}.{os.getpid()}").write_bytes(data[: len(data) // 2])


def dies_scoring(real, number):
    """`iterate`, but the process dies at the number-th group of test views."""
    groups = []

    def items(dataset, *arguments, **keywords):
        for item in real(dataset, *arguments, **keywords):
            groups.append(isinstance(dataset, evaluate.Views))
            if sum(groups) == number:
                die()
            yield item

    return items


MOMENTS = {  # the moments of a run, and how many of each there are, or fewer
    "after a step": 6,
    "inside a log write": 7,
    "inside a checkpoint's file": 20,
    "before a rename": 51,
    "while old checkpoints go": 5,
    "before a file goes": 41,
    "before the disk has it": 30,
    "inside evaluation": 9,
    "any time": 25,
}


def arm(moment, number, patch):
    """Arranges for this process to be killed at a moment; returns the watcher for the training."""
    if moment == "inside a log write":
        patch.setattr(record, "append_event", dies_at(number, record.append_event, half_a_line))
    elif moment == "inside a checkpoint's file":
        patch.setattr(checkpoint, "write_bytes",
                      dies_at(number, checkpoint.write_bytes, half_a_file))  # fmt: skip
    elif moment == "before a rename":
        patch.setattr(os, "replace", dies_at(number, os.replace))
    elif moment == "while old checkpoints go":
        patch.setattr(checkpoint.shutil, "rmtree", dies_at(number, shutil.rmtree))
    elif moment == "before a file goes":
        patch.setattr(Path, "unlink", dies_at(number, Path.unlink))
    elif moment == "before the disk has it":
        patch.setattr(os, "fsync", dies_at(number, os.fsync))
    elif moment == "inside evaluation":
        patch.setattr(evaluate, "iterate", dies_scoring(evaluate.iterate, number))
    elif moment == "any time":
        signal.setitimer(signal.ITIMER_REAL, 0.03 * number)  # ALRM ends a process as KILL does
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    ticks = dies_at(number, silent)
    return lambda event: ticks(event) if (moment, event["event"]) == ("after a step", "tick") else 0


def killed_training(root, moment, number):
    """Trains in a child process that is to be killed; whether it was, before it ended by itself."""
    child = os.fork()
    if not child:
        try:
            with pytest.MonkeyPatch.context() as patch:
                watch = arm(moment, number, patch)
                train(root, watch)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("tries", [9, pytest.param(30, marks=pytest.mark.long)])
def test_killed_at_any_moment_the_same_command_ends_it_bit_for_bit(
    whole, root, tmp_path_factory, tally, tries
):
    rng, failures, kills = random.Random(tries), [], []
    while len(kills) < tries:
        moment = list(MOMENTS)[len(kills) % len(MOMENTS)]
        number = rng.randint(1, MOMENTS[moment])
        if not killed_training(root, moment, number):
            shutil.rmtree(root / "smoke")  # it had ended before
            continue
        kills.append((moment, number))
        folder = train(root)
        if found := differences(folder, whole):
            failures.append((moment, number, found))
        shutil.rmtree(root / "smoke")
    tally("kill -9 at random moments, then the same command: bit for bit", tries, len(failures))
    assert failures == []


def test_killed_again_and_again_it_ends_bit_for_bit(whole, root):
    """Each attempt gets a little further: the second kill may hit what the first one left."""
    rng = random.Random(1)
    lives = 0
    while not list(root.glob("smoke/runs/*/result.json")):
        lives += 1
        killed_training(root, rng.choice(list(MOMENTS)), lives)
    assert lives > 3
    assert differences(train(root), whole) == []


def test_the_lock_of_one_killed_when_all_was_done_goes_with_the_next_command(whole, root):
    """No work is left that would remove the lock."""
    child = os.fork()
    if not child:
        try:
            with pytest.MonkeyPatch.context() as patch:
                real = Path.unlink
                patch.setattr(Path, "unlink", lambda path, **k: die() if path.name == "lock"
                              else real(path, **k))  # fmt: skip
                train(root)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    [folder] = record.list_runs(str(root))
    assert (folder / "lock").exists()
    events = []
    train(root, events.append)
    assert [event["event"] for event in events] == ["finished"]
    assert differences(folder, whole) == []


def test_the_lock_of_another_that_is_about_to_end_stays(root):
    folder = train(root)
    with holding(folder):
        child = os.fork()
        if not child:
            try:
                assert train(root) == folder
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (folder / "lock").exists()


@pytest.mark.long
def test_the_command_itself_killed_at_any_time_ends_bit_for_bit(whole, root, tally):
    """The same with the whole command, which has two loader processes."""
    command = [sys.executable, "-m", "delving", "train", *WORDS, f"output_root={root}"]
    command[command.index("data.workers=0")] = "data.workers=2"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    rng, failures, kills = random.Random(7), 0, 0
    while kills < 10:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(2, 8))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        [folder] = record.list_runs(str(root))
        failures += bool(differences(folder, whole))
        shutil.rmtree(root / "smoke")
    tally("kill -9 of the command at random times: bit for bit", kills, failures)
    assert failures == 0


# --- damage ---
@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """An output root with a run that was stopped after its fourth step."""
    root = tmp_path_factory.mktemp("stopped")
    shutil.copytree(whole.parents[2] / "data", root / "data")
    with pytest.raises(Interrupted):
        train(root, stops_at(4, signal.SIGTERM))
    return root


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(
    whole, stopped, root, file
):
    shutil.copytree(stopped / "smoke", root / "smoke")
    [folder] = record.list_runs(str(root))
    path = folder / "checkpoint" / file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    events = []
    train(root, events.append)
    [damaged] = [e for e in events if e["event"] == "damaged"]
    assert str(path) in damaged["fault"]
    [resumed] = [e for e in events if e["event"] == "resume"]
    assert resumed["step"] == 3  # the checkpoint before
    assert differences(folder, whole) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("name", ["lock", "log.jsonl", "checkpoint", "eval"])
def test_a_link_in_a_run_folder_is_refused_and_what_it_leads_to_stays(
    stopped, root, tmp_path, name, kind
):
    shutil.copytree(stopped / "smoke", root / "smoke")
    [folder] = record.list_runs(str(root))
    elsewhere = tmp_path / "elsewhere"
    if kind == "folder":
        elsewhere.mkdir()
    inside = elsewhere / "ten_view.json" if kind == "folder" else elsewhere
    inside.write_text("precious")
    moved = folder / name
    shutil.rmtree(moved) if moved.is_dir() else moved.unlink(missing_ok=True)
    moved.symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"{name} is a link"):
        train(root)
    with pytest.raises(ValueError, match=f"{name} is a link"):
        eval_run(folder, load(folder / "config.yaml"), lambda event: None)
    clear_up(folder)
    assert inside.read_text() == "precious"


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_hits_that_a_scoring_before_left_damaged_are_made_anew(whole, root, damage):
    shutil.copytree(whole.parents[2], root, dirs_exist_ok=True)
    [folder] = record.list_runs(str(root))
    (folder / "result.json").unlink()
    hits = folder / "eval" / "ten_view.hits.npz"
    data = bytearray(hits.read_bytes())
    data[len(data) // 3] ^= 255
    hits.write_bytes(data) if damage == "flipped" else hits.unlink()
    train(root)
    assert differences(folder, whole) == []
    assert hits.read_bytes() == (whole / "eval" / "ten_view.hits.npz").read_bytes()


def test_scores_of_a_checkpoint_that_is_no_more_replace_none(stopped, root, monkeypatch):
    shutil.copytree(stopped, root, dirs_exist_ok=True)
    [folder] = record.list_runs(str(root))
    usual = score._score_one

    def slowly(session, name, scored):
        """Scores images while a training of the run ends."""
        monkeypatch.setattr(score, "_score_one", usual)
        train(root)
        return usual(session, name, scored)

    monkeypatch.setattr(score, "_score_one", slowly)
    with pytest.raises(ValueError, match="was trained on meanwhile"):
        eval_run(folder, load(folder / "config.yaml"), lambda event: None)
    final = record.read_json(folder / "eval" / "ten_view.json")
    assert final["weights"] == checkpoint.weights_hash(folder)
    assert final["top1_err"] == record.read_result(folder)["eval"]["ten_view"]["top1_err"]


@pytest.mark.parametrize("file", ["config.yaml", "env.json", "log.jsonl"])
def test_what_an_interrupted_run_lost_is_written_anew_or_said(whole, stopped, root, file):
    """The checkpoint is all that training needs; the other files are for finding the run."""
    shutil.copytree(stopped / "smoke", root / "smoke")
    [folder] = record.list_runs(str(root))
    (folder / file).unlink()
    events = []
    train(root, events.append)
    told = [e["fault"] for e in events if e["event"] == "damaged"]
    if file == "log.jsonl":
        assert f"{folder / file} lacks" in told[0]
        starts = [record.read_events(place, "start") for place in (folder, whole)]
        assert starts[0] == starts[1]
        return
    assert told == []
    assert differences(folder, whole) == []


def test_a_run_without_any_whole_checkpoint_is_refused_and_left_as_it_is(stopped, root):
    shutil.copytree(stopped / "smoke", root / "smoke")
    [folder] = record.list_runs(str(root))
    for name in ("checkpoint", "checkpoint.previous"):
        (folder / name / "state.json").write_text("{}")
    before = {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    with pytest.raises(ValueError, match="no whole checkpoint"):
        train(root)
    assert {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()} == before


FORGED = {
    "progress": [1, {}, {"step": -1}, {"step": "1"}, {"steps": 1}, {"status": None},
                 {"pending": [[1]]}, {"pending": "x"}, {"bad": [1]}, {"best_error": float("nan")}],
    "seconds": ["1", None, -1],
    "precision": [1],
    "data": [None, {}],
    "log_bytes": [-1, 1.5, True],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in FORGED.items() for v in vs])
def test_a_forged_state_is_refused_by_its_key(whole, key, value):
    good = json.loads((whole / "checkpoint" / "state.json").read_text())
    if key == "progress" and isinstance(value, dict) and value:
        value = good["progress"] | value
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        state.read_state(good | {key: value}, whole)
    assert state.read_state(good, whole) == good


# --- signals ---
@pytest.fixture
def hangup():
    """Sets the action of HUP, which may be ignored here, until the test is over."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield lambda action: signal.signal(signal.SIGHUP, action)
    signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_run_goes_on_when_its_terminal_is_closed(whole, root, hangup):
    hangup(signal.SIG_IGN)
    train(root, stops_at(2, signal.SIGHUP))
    [folder] = record.list_runs(str(root))
    assert differences(folder, whole) == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("hangup")
def test_a_signal_ends_the_step_saves_and_the_same_command_goes_on(whole, root):
    for step, name in enumerate(("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"), start=1):
        number = getattr(signal, name)
        with pytest.raises(Interrupted, match=name.removeprefix("SIG")) as cut:
            train(root, stops_at(step, number))
        assert cut.value.signal == number
        [folder] = record.list_runs(str(root))
        assert load_checkpoint(folder)[1]["progress"]["step"] == step
        assert not (folder / "lock").exists()
    train(root)
    assert differences(folder, whole) == []


def test_a_second_interruption_leaves_at_once(whole, root):
    def watch(event):
        if event["event"] == "tick" and event["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(root, watch)
    [folder] = record.list_runs(str(root))
    assert load_checkpoint(folder)[1]["progress"]["step"] == 1  # the second step was not saved
    train(root)
    assert differences(folder, whole) == []


@pytest.mark.parametrize(
    ("heard", "counts"),
    [
        ([], 0),
        ([signal.SIGINT, signal.SIGTERM], signal.SIGINT),
        ([signal.SIGUSR1, signal.SIGTERM], signal.SIGUSR1),
        ([signal.SIGTERM, signal.SIGUSR2], signal.SIGUSR2),
    ],
)
def test_a_cluster_that_wants_its_job_again_is_heard_before_the_term_that_follows(heard, counts):
    assert signals.counted(heard) == counts
    assert signals.rank_of(counts) % signals.ABOVE == counts
    assert signals.rank_of(signal.SIGUSR1) > signals.rank_of(signal.SIGTERM)


def test_a_signal_while_nothing_has_begun_leaves_nothing(root, monkeypatch):
    def opens(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("delving.run.open_session", opens)
    with pytest.raises(Interrupted, match="nothing had begun"):
        train(root)
    assert not list(root.glob("smoke/runs/*"))


@pytest.fixture
def stopped_in_ten_view(root, monkeypatch):
    """The folder of a run that a signal ended in its second protocol."""
    real = evaluate.Tester.ten_view

    def ten_view(tester, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(tester, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.Tester, "ten_view", ten_view)
        with pytest.raises(Interrupted, match="saved in"):
            train(root)
    [folder] = record.list_runs(str(root))
    return folder


def test_a_signal_inside_a_protocol_ends_it_and_what_was_scored_is_not_scored_again(
    whole, root, stopped_in_ten_view, monkeypatch
):
    assert {p.name for p in (stopped_in_ten_view / "eval").glob("*.json")} == {"center.json"}
    scored = []
    monkeypatch.setattr(evaluate.Tester, "center", lambda *a: scored.append("center"))
    train(root)
    assert scored == []
    assert differences(stopped_in_ten_view, whole) == []


def test_scores_of_other_weights_are_not_taken_for_this_runs(whole, root):
    with pytest.raises(Interrupted):
        train(root, stops_at(5, signal.SIGTERM))
    [folder] = record.list_runs(str(root))
    shutil.copytree(whole / "eval", folder / "eval")
    for path in (folder / "eval").glob("*.json"):
        record.write_json(path, record.read_json(path) | {"weights": "0" * 64, "top1_err": 0.0})
    train(root)
    assert differences(folder, whole) == []


def test_scores_of_an_unfinished_run_go_when_it_is_finished(whole, root):
    """An ensemble would take them for scores of the trained net."""
    with pytest.raises(Interrupted):
        train(root, stops_at(5, signal.SIGTERM))
    [folder] = record.list_runs(str(root))
    config = configs.amend(folder / "config.yaml", ["eval.protocols=dense"])
    eval_run(folder, config, silent)
    before = {path.name for path in (folder / "eval").iterdir()}
    assert "dense.json" in before
    train(root)
    assert not before & {path.name for path in (folder / "eval").iterdir()}
    assert differences(folder, whole) == []


@pytest.mark.parametrize("told", [{"s": [40]}, {"precision": "fp64"}])
def test_scores_by_other_settings_are_not_taken_for_this_runs(
    whole, root, stopped_in_ten_view, told
):
    path = stopped_in_ten_view / "eval" / "center.json"
    record.write_json(path, record.read_json(path) | {"top1_err": 0.0} | told)
    train(root)
    assert differences(stopped_in_ten_view, whole) == []


# --- loader processes ---
def children():
    return [p.pid for p in multiprocessing.active_children()]


def test_a_killed_loader_process_is_named_and_loses_nothing(whole, root):
    def watch(event):
        if event["event"] == "tick" and event["step"] == 3:
            os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(LoaderError, match="was killed by SIGKILL"):
        train(root, watch, "data.workers=1", "train.checkpoint_minutes=60")
    assert children() == []
    [folder] = record.list_runs(str(root))
    assert load_checkpoint(folder)[1]["progress"]["step"] >= 3
    train(root)
    assert differences(folder, whole) == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_validation_that_ends_with_a_loader_process_is_made_up_for(
    whole, root, monkeypatch, number
):
    """The weights of its step are saved, though the log lacks what it would have found."""
    real, calls = run.validate, itertools.count()

    def failing(session):
        if next(calls) == number:
            raise LoaderError("a loader process was killed")
        return real(session)

    monkeypatch.setattr(run, "validate", failing)
    with pytest.raises(LoaderError):
        train(root, silent, "train.checkpoint_minutes=60")
    [folder] = record.list_runs(str(root))
    assert load_checkpoint(folder)[1]["progress"]["step"] > 0
    train(root)
    assert differences(folder, whole) == []


def test_a_loader_process_that_hangs_is_noticed_in_time_and_loses_nothing(whole, root, monkeypatch):
    real = FolderReader.__call__

    def slow(reader, name):
        if multiprocessing.parent_process():
            time.sleep(60)
        return real(reader, name)

    started = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(FolderReader, "__call__", slow)
        with pytest.raises(LoaderError, match=r"gave nothing for 1 s \(data.timeout\)"):
            train(root, silent, "data.workers=1", "data.timeout=1")
    assert time.monotonic() - started < 30
    assert children() == []
    train(root)
    [folder] = record.list_runs(str(root))
    assert differences(folder, whole) == []


@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 4))])
def test_loader_processes_change_nothing(whole, root, workers):
    folder = train(root, silent, f"data.workers={workers}")
    assert differences(folder, whole) == []


def test_weights_that_are_no_numbers_end_a_run_as_diverged_at_that_step(root, monkeypatch):
    """Images are bytes and cannot be NaN: NaN comes from weights, or from a broken device."""
    real = Input.forward

    def poisoned(module, pixels, shift=None):
        x = real(module, pixels, shift)
        return x * float("nan") if shift is not None and next(batches) == 3 else x

    batches = iter(range(1, 100))
    monkeypatch.setattr(Input, "forward", poisoned)
    events = []
    folder = train(root, events.append)
    [diverged] = [e for e in events if e["event"] == "diverged"]
    assert (diverged["step"], diverged["loss"]) == (2, "nan")  # the step after the second
    assert record.read_result(folder)["status"] == "diverged"
    tensors, _ = load_checkpoint(folder)
    assert all(t.isfinite().all() for part in tensors.values() for t in part.values())


# --- the disk ---
def test_training_on_a_full_disk_stops_with_its_checkpoint_and_goes_on_after(
    whole, root, monkeypatch
):
    real = checkpoint.write_bytes
    writes = []

    def full(path, data):
        writes.append(path)
        if len(writes) > 10:
            raise record.disk_full(path.parent, len(data))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_bytes", full)
        with pytest.raises(record.DiskFullError, match="checkpoints before it are intact"):
            train(root)
    [folder] = record.list_runs(str(root))
    assert load_checkpoint(folder)[1]["progress"]["step"] == 3
    train(root)
    assert differences(folder, whole) == []


def test_a_full_disk_is_told_before_anything_starts(root, monkeypatch):
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(record.DiskFullError, match="bytes are missing; nothing was started"):
        train(root)
    assert not list(root.glob("smoke/runs/*"))


# --- two at once ---
def test_a_second_process_on_the_same_run_is_refused_and_disturbs_nothing(whole, root):
    code = []

    def watch(event):
        if event["event"] == "tick" and event["step"] == 3:
            child = os.fork()
            if not child:
                try:
                    train(root)
                except ValueError as error:
                    os._exit(2 if str(os.getppid()) in str(error) else 3)
                os._exit(0)
            code.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    folder = train(root, watch)
    assert code == [2]
    assert differences(folder, whole) == []
