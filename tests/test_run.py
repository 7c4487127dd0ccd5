"""End to end at scale=smoke: a run is written, interrupted, continued, refused, scored."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from calling import silent
from fabricate import snapshot
from PIL import Image

from delving import record, same
from delving.artefact import Asked, Run
from delving.checkpoint import load_checkpoint
from delving.config import amend, compose, load
from delving.data.images import UndecodableImageError
from delving.data.loader import Cache
from delving.evaluate import error_rates
from delving.groups import choices
from delving.kernels import native
from delving.paper import fisher
from delving.probe import open_images
from delving.request import load_request
from delving.run import opening_line, train_run
from delving.score import eval_run
from delving.session import open_session
from delving.signals import Interrupted

BASE = ["scale=smoke", "device=cpu", "precision=fp32", "train.log_every=2", "data.workers=0"]
RESULT = [
    "run", "scale", "model", "act", "init", "seed", "epochs", "images_seen", "params",
    "multiply_adds", "train_loss", "status", "seconds", "images_per_second", "device", "eval",
    "deviations",
]  # fmt: skip
VOLATILE = ("seconds", "images_per_second", "wait")


def smoke(root, *words):
    return compose([*BASE, f"output_root={root}", *words])


def train(root, *words, watch=silent):
    return train_run(smoke(root, *words), watch)


def interrupt_at(step, number=signal.SIGTERM):
    """A watcher that sends this process a signal after a step."""

    def watch(event):
        if event["event"] == "tick" and event["step"] == step:
            os.kill(os.getpid(), number)

    return watch


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def meaning(folder):
    """The log without clock times and without the note that a run was taken up."""
    return [{k: v for k, v in event.items() if k not in VOLATILE}
            for event in read_log(folder) if event["event"] != "resume"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An output root with the generated images and one finished run, which no test may change."""
    root = tmp_path_factory.mktemp("outputs")
    train(root)
    return root


@pytest.fixture
def done(root):
    return record.find_run("small14-prelu-he-precisionfp32-s0", str(root))


@pytest.fixture
def fresh(root, tmp_path):
    """An output root for one test, with the generated images but no run."""
    shutil.copytree(root / "data", tmp_path / "out" / "data")
    return tmp_path / "out"


@pytest.fixture
def copied(root, done, fresh):
    """A copy of the finished run that a test may spoil."""
    folder = fresh / done.relative_to(root)
    shutil.copytree(done, folder)
    return folder


# --- what a run writes ---
def test_a_run_folder_holds_every_file_of_the_contract(done):
    files = set(snapshot(done))
    assert files == {
        "config.yaml", "env.json", "log.jsonl", "result.json", "slopes.json",
        *(f"eval/ten_view.{end}" for end in ("json", "npz", "hits.npz")),
        *(f"checkpoint/{name}.safetensors" for name in ("model", "optimizer")),
        "checkpoint/state.json", "checkpoint/manifest.json",
    }  # fmt: skip
    assert {p.name for p in done.iterdir()} == {f.split("/")[0] for f in files}


def test_result_has_exactly_the_contracts_keys_and_honest_values(done):
    result = record.read_json(done / "result.json")
    assert list(result) == RESULT
    assert result["run"] == done.name
    assert [result[k] for k in ("scale", "model", "act", "init", "seed")] == [
        "smoke", "small14", "prelu", "he", 0,
    ]  # fmt: skip
    assert (result["epochs"], result["images_seen"]) == (2, 192)
    assert set(result["eval"]) == {"ten_view"}
    assert list(result["eval"]["ten_view"]) == ["top1_err", "top5_err", "images"]
    assert result["eval"]["ten_view"]["images"] == 24
    assert result["eval"]["ten_view"]["top5_err"] == 0  # of four classes five are always right
    assert result["status"] in ("converged", "stalled")
    assert result["seconds"] > 0
    assert any(line.startswith("data.crop 28 (paper: 224)") for line in result["deviations"])
    assert any("SPP level" in line for line in result["deviations"])


def test_result_counts_the_parameters_that_the_checkpoint_holds(done):
    tensors, _ = load_checkpoint(done)
    held = sum(t.numel() for name, t in tensors["model"].items() if name.startswith("net."))
    assert record.read_json(done / "result.json")["params"] == held


def test_the_log_tells_the_training_in_order(done):
    events = read_log(done)
    assert [e["event"] for e in events] == ["start", "step", "val", "step", "step", "val", "end"]
    assert [e["step"] for e in events if "step" in e] == [2, 3, 4, 6, 6]
    steps = record.read_events(done, "step")
    assert steps[-1]["loss"] == record.read_json(done / "result.json")["train_loss"]
    for event in steps:
        assert 0 <= event["wait"] <= 1
        assert event["images_per_second"] > 0
    assert [e["lr"] for e in steps] == pytest.approx([0.005, 0.005, 0.0005])


@pytest.mark.parametrize("due", [True, False])
def test_kernels_are_compiled_before_training_is_timed(fresh, monkeypatch, due):
    """And told only where that takes a while."""
    heard, operator = [], native.operator
    monkeypatch.setattr(native, "is_to_be_compiled", lambda: due)
    monkeypatch.setattr(native, "operator", lambda: heard.append("compiled") or operator())
    train(fresh, "train.epochs=0.1", watch=lambda event: heard.append(event["event"]))
    expected = ["opening", "compiling", "compiled", "start"]
    assert heard[: 3 + due] == [word for word in expected if due or word != "compiling"]


def test_the_saved_configuration_is_the_one_asked_for(root, done):
    assert load(done / "config.yaml") == smoke(root)
    env = record.read_json(done / "env.json")
    assert env["torch"] == torch.__version__
    assert env["precision"] == "fp32"


def test_saved_scores_are_those_of_the_result(done):
    probabilities, labels, names = record.load_scores(done, "ten_view")
    assert probabilities.shape == (24, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=5e-3)
    assert len(set(names)) == 24
    assert [name.split("/")[0] for name in names] == ["val"] * 24
    assert np.bincount(labels).tolist() == [6] * 4
    result = record.read_json(done / "result.json")["eval"]["ten_view"]
    saved = record.read_json(done / "eval" / "ten_view.json")
    assert result.items() <= saved.items()
    assert error_rates(probabilities, labels)["top1_err"] == pytest.approx(
        result["top1_err"], abs=5
    )


def test_a_large_model_is_scored_by_every_protocol_of_the_paper(fresh):
    folder = train(fresh, "model=a", "train.epochs=0.4")
    scores = record.read_json(folder / "result.json")["eval"]
    assert list(scores) == ["ten_view", "dense@32", "dense@48", "dense@60", "dense"]
    each = [record.load_scores(folder, f"dense@{s}")[0] for s in (32, 48, 60)]
    averaged = record.load_scores(folder, "dense")[0]
    np.testing.assert_allclose(averaged, np.mean(each, axis=0), atol=2e-3)


def test_training_learns_what_it_can_learn(fresh):
    """Two flat colours are told apart within a few steps: the loop as a whole goes downhill."""
    for split, count in (("train", 24), ("val", 8)):
        for name, shade in (("dark", 30), ("light", 220)):
            folder = fresh / "shades" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                Image.new("RGB", (32, 36), (shade, shade, shade - n)).save(folder / f"{n}.png")
    folder = train(fresh, "data=folder", f"data.root={fresh / 'shades'}", "data.classes=2",
                   "data.train_images=null", "data.val_images=null", "train.epochs=12",
                   "train.dropout=0", "act=prelu")  # fmt: skip
    result = record.read_json(folder / "result.json")
    assert result["status"] == "converged"
    assert result["eval"]["ten_view"]["top1_err"] == 0


# --- finished, interrupted, continued ---
def test_a_finished_run_is_reported_and_nothing_is_touched(root, done):
    before, events = snapshot(done), []
    assert train(root, watch=events.append) == done
    assert [e["event"] for e in events] == ["finished"]
    assert snapshot(done) == before


@pytest.mark.parametrize("step", [1, 3, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 5))])
def test_an_interrupted_run_goes_on_to_the_same_weights_and_log(done, fresh, step):
    with pytest.raises(Interrupted) as interruption:
        train(fresh, watch=interrupt_at(step))
    assert interruption.value.signal == signal.SIGTERM
    assert done.name in str(interruption.value)
    [folder] = record.list_runs(str(fresh))
    assert not (folder / "result.json").exists()
    assert load_checkpoint(folder)[1]["progress"]["step"] == step
    events = []
    assert train(fresh, watch=events.append) == folder
    assert [e["step"] for e in events if e["event"] == "resume"] == [step]
    ours, theirs = load_checkpoint(folder)[0], load_checkpoint(done)[0]
    for part in ("model", "optimizer"):
        assert set(ours[part]) == set(theirs[part])
        assert all(torch.equal(ours[part][name], theirs[part][name]) for name in theirs[part])
    assert meaning(folder) == meaning(done)
    for kind in ("eval", "train_loss", "status", "images_seen"):
        results = [record.read_json(f / "result.json")[kind] for f in (folder, done)]
        assert results[0] == results[1]


def test_a_run_killed_without_warning_goes_on_from_its_last_checkpoint(done, fresh):
    class Killed(BaseException):
        pass

    def kill_at_five(event):
        if event["event"] == "tick" and event["step"] == 5:
            raise Killed

    with pytest.raises(Interrupted):
        train(fresh, watch=interrupt_at(2))
    with pytest.raises(Killed):
        train(fresh, watch=kill_at_five)
    events = []
    folder = train(fresh, watch=events.append)
    assert [e["step"] for e in events if e["event"] == "resume"] == [2]
    assert meaning(folder) == meaning(done)


def test_an_interruption_while_scoring_keeps_the_training(fresh):
    def watch(event):
        if event["event"] == "score":
            os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(Interrupted) as interruption:
        train(fresh, watch=watch)
    assert interruption.value.signal == signal.SIGUSR1
    ticks = []
    folder = train(fresh, watch=lambda e: ticks.append(e) if e["event"] == "tick" else None)
    assert ticks == []
    assert (folder / "result.json").exists()


def test_the_old_signal_handlers_are_back_after_a_run(fresh):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with pytest.raises(Interrupted):
        train(fresh, watch=interrupt_at(1))
    assert {n: signal.getsignal(n) for n in before} == before


def test_micro_batches_and_loader_processes_are_the_same_run(done, fresh):
    folder = train(fresh, "data.workers=1", "train.micro_batch=16", "data.cache_gb=0")
    assert folder.name == done.name
    ours, theirs = (load_checkpoint(f)[0]["model"] for f in (folder, done))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


# --- refused, nothing overwritten ---
def test_images_of_one_class_are_refused_before_anything_is_written(fresh, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / split / "cat" / "0.png")
    words = ["data=folder", f"data.root={tmp_path}", "data.classes=null"]
    with pytest.raises(ValueError, match="all images are of one class, cat"):
        train(fresh, *words, "data.train_images=null", "data.val_images=null")
    assert not list(fresh.glob("smoke/runs/*"))


def test_images_that_changed_in_their_place_are_refused(fresh):
    images = fresh / "images"
    shutil.copytree(next((fresh / "data").iterdir()), images)
    with pytest.raises(Interrupted):
        train(fresh, f"data.root={images}", watch=interrupt_at(1))
    [folder] = record.list_runs(str(fresh))
    before = snapshot(folder)
    image = next((images / "train").rglob("*.jpg"))
    image.rename(image.with_name("renamed.jpg"))
    with pytest.raises(ValueError, match=r"trained on other data .*data\.root"):
        train(fresh, f"data.root={images}")
    assert snapshot(folder) == before


@pytest.fixture
def trained_elsewhere(copied, fresh):
    """A copy of the finished run that names the folder its images were moved to; that folder."""
    place = fresh / "elsewhere"
    (fresh / "data").rename(place)
    [images] = place.iterdir()
    path = copied / "config.yaml"
    path.write_text(path.read_text().replace("root: null", f"root: {images}"))
    return copied, images


def test_what_measures_a_run_takes_its_images_from_where_they_are_now(trained_elsewhere, tmp_path):
    folder, images = trained_elsewhere
    moved = images.rename(tmp_path / "moved")
    usual = Asked("fisher", "smoke", {}, load_request("fisher").settings, {}, [], tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        fisher.measure(usual, Run(folder))
    words = [f"data.root={moved}", "device=cpu", "train.epochs=2"]
    found = fisher.measure(dataclasses.replace(usual, overrides=words), Run(folder))
    assert found["responses"]
    with pytest.raises(ValueError, match="no such file"):
        open_images(folder)
    assert len(open_images(folder, words[0])) == 24


def test_images_may_move_once_a_run_is_finished(trained_elsewhere, fresh, tmp_path):
    folder, images = trained_elsewhere
    before = snapshot(folder)
    moved, events = images.rename(tmp_path / "moved"), []
    train(fresh, f"data.root={moved}", watch=events.append)
    assert events == [{"event": "finished"}]
    assert snapshot(folder) == before


def test_a_finished_run_on_other_images_is_not_taken_for_the_one_asked_for(
    trained_elsewhere, fresh, tmp_path
):
    folder, images = trained_elsewhere
    before, other = snapshot(folder), tmp_path / "other"
    shutil.copytree(images, other)
    image = next((other / "train").rglob("*.jpg"))
    image.rename(image.with_name("renamed.jpg"))
    with pytest.raises(ValueError, match="other images") as refusal:
        train(fresh, f"data.root={other}")
    assert f"data.root {other} asked for, {images} there" in str(refusal.value)
    assert "or write elsewhere with output_root=..." in str(refusal.value)
    assert snapshot(folder) == before


def test_a_relative_root_means_the_images_where_the_run_was_trained(
    trained_elsewhere, fresh, tmp_path, monkeypatch
):
    _, images = trained_elsewhere
    for place in ("here", "there"):
        shutil.copytree(images, tmp_path / place / "pics")
    image = next((tmp_path / "there" / "pics" / "train").rglob("*.jpg"))
    image.rename(image.with_name("renamed.jpg"))
    shutil.rmtree(fresh / "smoke")
    monkeypatch.chdir(tmp_path / "here")
    folder = train(fresh, "data.root=pics")
    assert f"root: {tmp_path}/here/pics" in (folder / "config.yaml").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(ValueError, match="other images"):
        train(fresh, "data.root=pics")


def test_a_finished_run_on_generated_images_is_not_taken_for_one_on_others(copied, fresh, tmp_path):
    before = snapshot(copied)
    with pytest.raises(ValueError, match="no generated images"):
        train(fresh, f"data.root={tmp_path}")
    other = tmp_path / "other"
    shutil.copytree(next((fresh / "data").glob("shapes-*")), other)
    train(fresh, f"data.root={other}")  # the same images, in another place
    image = next((other / "train").rglob("*.jpg"))
    image.rename(image.with_name("renamed.jpg"))
    again = tmp_path / "again"
    other.rename(again)  # what is known of a folder is kept by its path
    with pytest.raises(ValueError, match=f"data.root {again} asked for, generated ones there"):
        train(fresh, f"data.root={again}")
    assert snapshot(copied) == before


def test_a_folder_whose_configuration_was_changed_is_refused_naming_the_keys(copied, fresh):
    path = copied / "config.yaml"
    text = (
        path.read_text()
        .replace("momentum: 0.9", "momentum: 0.8")
        .replace("flip: true", "flip: false")
    )
    path.write_text(text)
    before = snapshot(copied)
    with pytest.raises(ValueError, match="holds another run") as refusal:
        train(fresh)
    assert "train.momentum 0.9 asked for, 0.8 there" in str(refusal.value)
    assert "train.flip" in str(refusal.value)
    assert snapshot(copied) == before


def test_a_folder_whose_configuration_cannot_be_read_is_not_taken_for_the_run(tmp_path):
    (tmp_path / "config.yaml").write_text("model: [")
    told = same.find_other(smoke(tmp_path), tmp_path)
    assert told.endswith(f"Move {tmp_path} away")


def test_a_device_that_is_not_here_is_refused_with_those_that_are(fresh):
    with pytest.raises(ValueError, match=r"device=cuda:77: here there is .*cpu"):
        train(fresh, "device=cuda:77")
    assert record.list_runs(str(fresh)) == []


# --- what may go wrong in training ---
def test_a_diverged_run_is_a_result_not_an_error(fresh):
    events = []
    folder = train(fresh, "train.lr=1e30", watch=events.append)
    result = record.read_json(folder / "result.json")
    assert list(result) == RESULT
    assert (result["status"], result["eval"]) == ("diverged", {})
    assert result["epochs"] < 2
    assert "diverged" in [e["event"] for e in read_log(folder)]
    assert not (folder / "eval").exists()
    again = []
    train(fresh, "train.lr=1e30", watch=again.append)
    assert [e["event"] for e in again] == ["finished"]


def cut_images(root, count):
    """Cuts off `count` training images after 200 bytes; their names below the data root."""
    [data] = (root / "data").iterdir()
    paths = sorted((data / "train").rglob("*.jpg"))[5 : 5 + count]
    for path in paths:
        path.write_bytes(path.read_bytes()[:200])
    return [path.relative_to(data).as_posix() for path in paths]


def test_one_undecodable_training_image_is_borne_and_named(fresh):
    [name] = cut_images(fresh, 1)
    folder = train(fresh)
    assert [e["name"] for e in record.read_events(folder, "bad_image")] == [name]
    assert (folder / "result.json").exists()


def test_more_undecodable_training_images_end_the_run_by_name(fresh):
    names = cut_images(fresh, 2)
    with pytest.raises(
        ValueError, match=r"cannot be decoded \(at most 1 is tolerated\)"
    ) as refusal:
        train(fresh)
    assert all(name in str(refusal.value) for name in names)


def test_an_undecodable_validation_image_ends_the_evaluation_by_name(fresh):
    [data] = (fresh / "data").iterdir()
    path = sorted((data / "val").rglob("*.jpg"))[3]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=path.name):
        train(fresh)


def test_one_that_only_the_scores_need_ends_a_net_that_is_trained_and_scored_once_it_is_mended(
    fresh, monkeypatch
):
    def score(session):
        raise UndecodableImageError("val/x.jpg cannot be decoded")

    with monkeypatch.context() as patch:
        patch.setattr("delving.run.score_trained", score)
        with pytest.raises(ValueError, match=r"x\.jpg .* is trained: .* same command scores it"):
            train(fresh)
    seen = []
    folder = train(fresh, watch=seen.append)
    assert (folder / "result.json").exists()
    assert "tick" not in {event["event"] for event in seen}  # no step was repeated


# --- scoring a run again ---
def test_evaluation_after_loading_equals_evaluation_in_training(copied, fresh):
    before = record.load_scores(copied, "ten_view")[0]
    shutil.rmtree(copied / "eval")
    config = amend(copied / "config.yaml", [f"output_root={fresh}"])
    scores = eval_run(copied, config, silent)
    assert scores == record.read_json(copied / "result.json")["eval"]
    assert (record.load_scores(copied, "ten_view")[0] == before).all()


def test_other_protocols_are_scored_beside_the_runs_own(copied, fresh):
    trained = snapshot(copied)
    words = ["protocol=center,dense", "eval.dense_s=8", "eval.batch=5", f"output_root={fresh}"]
    scores = eval_run(copied, amend(copied / "config.yaml", words), silent)
    assert list(scores) == ["center", "dense@32"]  # one scale has no mean besides itself
    assert {p.stem for p in (copied / "eval").glob("*.json")} == {"ten_view", *scores}
    assert trained.items() <= snapshot(copied).items()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["eval.ten_view_s=10"], ["ten_view@40"]),
        (["precision=fp64"], ["ten_view-fp64"]),
        (["protocol=dense", "eval.dense_s=8,10"], ["dense@32", "dense@40", "dense@32+40"]),
        (["protocol=dense"], ["dense@32", "dense@48", "dense@60", "dense"]),
        (["protocol=center", "eval.ten_view_s=10", "precision=fp64"], ["center@40-fp64"]),
    ],
)
def test_by_other_settings_a_protocols_scores_have_a_name_that_tells_them(
    copied, fresh, words, names
):
    own = snapshot(copied)
    scores = eval_run(
        copied, amend(copied / "config.yaml", [*words, f"output_root={fresh}"]), silent
    )
    assert list(scores) == names
    assert own.items() <= snapshot(copied).items()


def test_where_auto_comes_to_another_precision_the_runs_own_scores_stay(copied, fresh, monkeypatch):
    """As where a run that was trained in bf16 is scored on a machine without it."""
    own = snapshot(copied)
    monkeypatch.setattr("delving.device.pick_precision", lambda wanted, device: "bf16")
    config = amend(copied / "config.yaml", [f"output_root={fresh}"])
    assert list(eval_run(copied, config, silent)) == ["ten_view-bf16"]
    assert own.items() <= snapshot(copied).items()


def test_the_batch_changes_no_score(copied, fresh):
    before = record.load_scores(copied, "ten_view")[0]
    words = ["eval.batch=10", f"output_root={fresh}", "data.workers=1"]
    eval_run(copied, amend(copied / "config.yaml", words), silent)
    np.testing.assert_allclose(record.load_scores(copied, "ten_view")[0], before, atol=2e-3)


@pytest.mark.parametrize(
    ("words", "named"),
    [(["model=small22"], "differs in"), (["act=relu"], "slope"), (["model.width=0.125"], "here")],
)
def test_a_checkpoint_of_another_model_is_refused(copied, fresh, words, named):
    before = snapshot(copied)
    with pytest.raises(ValueError, match="checkpoint is of another model") as refusal:
        eval_run(copied, smoke(fresh, *words), silent)
    assert named in str(refusal.value)
    assert snapshot(copied) == before


def test_a_run_without_a_checkpoint_has_nothing_to_score(copied, fresh):
    shutil.rmtree(copied / "checkpoint")
    with pytest.raises(ValueError, match="no checkpoint to score"):
        eval_run(copied, smoke(fresh), silent)


def test_a_damaged_checkpoint_is_refused_by_its_file(copied, fresh):
    path = copied / "checkpoint" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        eval_run(copied, smoke(fresh), silent)


# --- the opening line ---
@pytest.fixture
def session(root):
    return open_session(smoke(root), root, silent)


@pytest.mark.parametrize("scale", choices("scale"))
def test_the_opening_line_says_what_it_really_is(session, scale):
    config = compose([f"scale={scale}", "model=c"])
    line = opening_line(dataclasses.replace(session, config=config))
    kind = "generated" if config.data.name == "shapes" else config.data.name
    assert line.startswith("C ")
    assert f"on 96 {kind} images (scale {scale})." in line
    assert ("The paper's own: scale=paper data.root=" in line) == (scale != "paper")
    assert "\n" not in line


def test_the_opening_line_gives_the_width_as_a_fraction(session):
    assert "small14 at width 1/16 on 96 generated images" in opening_line(session)


@pytest.mark.parametrize(("scale", "hint"), [("cpu", True), ("quarter", False), ("paper", False)])
def test_on_a_gpu_the_opening_line_names_the_scale_that_fits(session, scale, hint):
    config = compose([f"scale={scale}"])
    there = dataclasses.replace(session, config=config, device=torch.device("cuda"))
    assert ("scale=quarter" in opening_line(there)) == hint


def test_the_first_event_of_a_training_is_its_opening_line(fresh):
    events = []
    with pytest.raises(Interrupted):
        train(fresh, watch=lambda e: (events.append(e), interrupt_at(1)(e)))
    assert events[0]["event"] == "opening"
    assert events[0]["line"].startswith("small14 at width 1/16 on 96 generated images")


def test_a_session_keeps_its_images_in_memory(session):
    assert isinstance(session.train_images, Cache)
    assert (len(session.train_images.images), len(session.val_images.images)) == (96, 24)
