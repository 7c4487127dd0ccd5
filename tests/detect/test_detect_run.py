"""`delving detect`: a run folder like any other, whatever ends it; the artefact made of several."""

import dataclasses
import json
import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import yaml
from calling import silent

from delving import config as configs
from delving import record
from delving.checkpoint import load_checkpoint
from delving.detect.job import load_splits
from delving.detect.naming import detection_folder, load_about
from delving.detect.record import read_detection, read_pictures
from delving.detect.run import detect_run
from delving.kernels import native
from delving.reference import copy_records
from delving.signals import Interrupted
from delving.transfer import export_runs, import_runs

WORDS = ["detect.train_images=4", "detect.test_images=3", "detect.steps=6", "detect.log_every=2",
         "detect.proposals=grid", "detect.rois=32"]  # fmt: skip
PICTURE = {"image": "a", "jpeg": "", "size": [4, 3], "found": [["cat", 0.5, [0, 0, 2, 2.5]]],
           "objects": [["dog", [1, 1, 2, 2], False]]}  # fmt: skip
VOLATILE = ("seconds", "images_per_second", "wait", "testing")


@pytest.mark.parametrize(
    "damage",
    [{"size": [1]}, {"size": [4, None]}, {"found": [5]}, {"found": [["cat", "x", [0, 0, 2, 2]]]},
     {"found": [["cat", 0.5, [0, 0, 2]]]}, {"objects": [["dog", [0, 0, 1, "1"], False]]},
     {"objects": [[]]}],
)  # fmt: skip
def test_pictures_that_cannot_be_drawn_are_refused_by_the_files_name(tmp_path, damage):
    record.write_json(tmp_path / "pictures.json", [PICTURE])
    assert read_pictures(tmp_path) == [PICTURE]
    record.write_json(tmp_path / "pictures.json", [PICTURE, PICTURE | damage])
    with pytest.raises(ValueError, match=r"pictures\.json is damaged"):
        read_pictures(tmp_path)


def detect(run, watch=silent, words=()):
    config = configs.amend(run / "config.yaml", ["device=cpu"])
    return detect_run(run, config, configs.compose_detect("smoke", [*WORDS, *words]), watch)


@pytest.fixture(scope="module")
def trunk(whole, tmp_path_factory):
    """A trained run in a separate output root."""
    folder = tmp_path_factory.mktemp("trunk") / "smoke" / "runs" / whole.name
    shutil.copytree(whole, folder)
    return folder


@pytest.fixture(scope="module")
def detected(trunk):
    """A detection that nothing interrupted; no test may change it."""
    return detect(trunk)


@pytest.fixture
def copied(trunk, detected, tmp_path):
    """The trunk with its generated scenes and proposals, and no detection."""
    for name in ("data", "proposals", "smoke/runs"):
        shutil.copytree(trunk.parents[2] / name, tmp_path / name)
    return tmp_path / "smoke" / "runs" / trunk.name


def outcome(folder):
    """All that makes up a detection."""
    tensors, _ = load_checkpoint(folder)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "tensors": {f"{part}/{name}": t.numpy().tobytes()
                    for part, named in tensors.items() for name, t in named.items()},
        "log": [_timeless(e) for e in events if e["event"] != "resume"],
        "result": _timeless(read_detection(folder)),
        "pictures": read_pictures(folder),
        "found": dict(np.load(folder / "detections.npz").items())["boxes"].tobytes(),
        "files": sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")),
    }  # fmt: skip


def _timeless(event):
    return {k: v for k, v in event.items() if k not in VOLATILE}


# --- what it leaves ---
def test_a_detection_lies_beside_the_runs_and_tells_what_it_is(trunk, detected):
    assert detected.parent == trunk.parents[1] / "detections"
    assert detected.name.startswith(f"{trunk.name}-shapes_voc-")
    about = load_about(detected / "config.yaml")
    assert (about.run, about.scale, about.seed) == (trunk.name, "smoke", 0)
    assert about.weights == load_checkpoint(trunk)[1]["weights"]
    result = read_detection(detected)
    assert result["steps"] == 6
    assert result["test_images"] == 3
    assert set(result["eval"]) == {"voc07", "all_points"}
    assert 0 <= result["eval"]["voc07"]["map"] <= 100
    assert result["proposals"]["recall"] > 50
    assert 0 <= result["chance"] < 10


def test_the_log_tells_the_loss_of_classes_and_of_boxes(detected):
    steps = record.read_events(detected, "step")
    assert [event["step"] for event in steps] == [2, 4, 6]
    for event in steps:
        assert event["loss"] == pytest.approx(event["class_loss"] + event["box_loss"])


def test_an_epoch_is_of_the_images_that_are_trained_on(copied, monkeypatch):
    """Two of the four: the others have no object, and no proposal near one."""
    monkeypatch.setattr("delving.detect.job.useful_images", lambda candidates: np.array([0, 2]))
    steps = record.read_events(detect(copied), "step")
    assert [event["epoch"] for event in steps] == [2, 4, 6]  # of two images a step


def test_first_conv_layers_stay_and_the_others_learn(trunk, detected):
    before, after = (load_checkpoint(folder)[0]["model"] for folder in (trunk, detected))
    assert np.array_equal(before["net.features.conv1.weight"], after["net.features.conv1.weight"])
    moved = before["net.features.conv2_1.weight"] - after["net.features.conv2_1.weight"]
    assert moved.abs().max() > 0


def test_the_trunk_is_left_as_it_was(whole, trunk, detected):
    names = [p.relative_to(whole) for p in whole.rglob("*") if p.is_file()]
    assert all((whole / n).read_bytes() == (trunk / n).read_bytes() for n in names)


# --- again ---
def test_the_same_detection_is_the_same(copied, detected):
    assert outcome(detect(copied)) == outcome(detected)


def test_a_finished_one_is_not_trained_again_and_a_dead_ones_lock_goes(trunk, detected):
    events = []
    (detected / "lock").write_text("")
    assert detect(trunk, events.append) == detected
    assert events == [{"event": "finished"}]
    assert not (detected / "lock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("step", [1, 5])
def test_interrupted_it_goes_on_as_if_nothing_had_happened(copied, detected, number, step):
    def stop(event):
        if event["event"] == "tick" and event["step"] == step:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="saved in"):
        detect(copied, stop)
    assert outcome(detect(copied)) == outcome(detected)


def test_what_an_interrupted_one_lost_is_written_anew(copied, detected):
    """These files are for finding the run again; the losses logged before are lost."""

    def stop(event):
        if event["event"] == "tick" and event["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        detect(copied, stop)
    [folder] = (copied.parents[1] / "detections").iterdir()
    for name in ("config.yaml", "env.json", "log.jsonl"):
        (folder / name).unlink()
    assert outcome(detect(copied))["files"] == outcome(detected)["files"]
    for name in ("config.yaml", "env.json"):
        assert (folder / name).read_bytes() == (detected / name).read_bytes()
    starts = [record.read_events(place, "start") for place in (folder, detected)]
    assert starts[0] == starts[1] != []


def test_interrupted_while_it_is_scored_it_is_scored_again(copied, detected, monkeypatch):
    find = "delving.detect.score.Judge.find"
    from delving.detect.score import Judge

    def stopping(self, split, number, proposals, whole=Judge.find):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, split, number, proposals)

    with monkeypatch.context() as patch:
        patch.setattr(find, stopping)
        with pytest.raises(Interrupted):
            detect(copied)
    assert outcome(detect(copied)) == outcome(detected)


def test_a_net_that_diverges_is_recorded_as_such(copied):
    result = read_detection(detect(copied, words=["detect.lr=1e30"]))
    assert result["status"] == "diverged"
    assert result["eval"] == {}


def test_a_diverged_one_goes_to_other_machines_as_any_other(copied, tmp_path):
    folder = detect(copied, words=["detect.lr=1e30"])
    export_runs(copied.parents[1], [copied.name], tmp_path / "runs.zip")
    import_runs(tmp_path / "runs.zip", str(tmp_path / "there"))
    came = tmp_path / "there" / "smoke" / "detections" / folder.name
    assert read_detection(came) == read_detection(folder)


def test_what_came_from_another_machine_is_reported(copied, tmp_path):
    words = [*WORDS, "detect.proposals=auto"]
    folder = detect(copied, words=words)
    export_runs(copied.parents[1], [copied.name], tmp_path / "runs.zip")
    import_runs(tmp_path / "runs.zip", str(tmp_path / "there"))
    run = tmp_path / "there" / "smoke" / "runs" / copied.name
    came = run.parents[1] / "detections" / folder.name
    # There `auto` meant bf16, and another method of proposals.
    about = (came / "config.yaml").read_text().replace("precision: fp32", "precision: bf16")
    (came / "config.yaml").write_text(
        about.replace("proposals: grid", "proposals: selective_search")
    )
    config = dataclasses.replace(configs.amend(run / "config.yaml", ["device=cpu"]),
                                 precision="auto")  # fmt: skip
    told = []
    assert detect_run(run, config, configs.compose_detect("smoke", words), told.append) == came
    assert [event["event"] for event in told] == ["finished"]
    with pytest.raises(ValueError, match="no checkpoint"):
        detect(run, words=["detect.lr=0.5"])


def test_kernels_are_compiled_before_the_fine_tuning_is_timed(copied, monkeypatch):
    heard, operator = [], native.operator
    monkeypatch.setattr(native, "is_to_be_compiled", lambda: True)
    monkeypatch.setattr(native, "operator", lambda: heard.append("compiled") or operator())
    detect(copied, lambda event: heard.append(event["event"]), ["detect.steps=1"])
    assert heard[heard.index("compiling") :][:4] == ["compiling", "compiled", "opening", "start"]


# --- refused ---
def test_fewer_classes_than_the_scenes_show_are_refused_by_their_key(scenes, tmp_path):
    def load(classes):
        words = [f"detect.root={scenes}", f"detect.classes={classes}"]
        return load_splits(configs.compose_detect("smoke", words), str(tmp_path))

    assert len(load(4)[0].classes) == 4
    with pytest.raises(ValueError, match=r"^detect\.classes=2: the scenes at detect\.root show"):
        load(2)


def test_another_file_of_proposals_by_the_same_name_is_another_detection(copied, tmp_path):
    splits = load_splits(configs.compose_detect("smoke", WORDS), str(copied.parents[2]))

    def write(width):
        names = [number for split in splits for number in split.ids]
        boxes = np.tile(np.array([[0.0, 0.0, width, 20.0]]), (len(names), 1))
        counts = np.ones(len(names), np.int64)
        np.savez(tmp_path / "boxes.npz", names=names, counts=counts, boxes=boxes)

    words = [f"detect.proposals={tmp_path}/boxes.npz"]
    write(20.0)
    folder = detect(copied, words=words)
    assert detect(copied, words=words) == folder
    write(30.0)
    with pytest.raises(ValueError, match=r"made of other proposals than .*boxes\.npz"):
        detect(copied, words=words)


def test_a_folder_with_another_detection_is_refused_by_its_keys(copied):
    folder = detect(copied)
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["detect"]["lr"] = 0.5
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(
        ValueError, match=r"holds another detection: detect.lr 0.001 asked for, 0.5"
    ):
        detect(copied)


def test_in_another_precision_than_its_runs_it_is_another(copied, monkeypatch):
    """Else a reproduction would take it for the one it asks for."""
    seen = []

    def stop(run, config):
        seen.append(config.precision)
        raise InterruptedError

    names = []
    monkeypatch.setattr("delving.detect.run.open_trunk", stop)
    real = detection_folder
    monkeypatch.setattr("delving.detect.run.detection_folder",
                        lambda *given: names.append(real(*given).name) or real(*given))  # fmt: skip
    for words in ([], ["precision=fp32"], ["precision=fp64"]):
        config = configs.amend(copied / "config.yaml", ["device=cpu", *words])
        with pytest.raises(InterruptedError):
            detect_run(copied, config, configs.compose_detect("smoke", WORDS), silent)
    assert seen == ["fp32", "fp32", "fp64"]
    assert names[0] == names[1] != names[2]


def test_a_trunk_trained_anew_is_another(copied):
    folder = detect(copied)
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(tree | {"weights": "0" * 64}))
    with pytest.raises(ValueError, match=r"weights .* asked for, 0000"):
        detect(copied)


def test_a_run_without_a_checkpoint_is_refused(copied):
    shutil.rmtree(copied / "checkpoint")
    with pytest.raises(ValueError, match="no checkpoint to start from"):
        detect(copied)


def test_more_frozen_layers_than_there_are_are_refused(copied):
    with pytest.raises(ValueError, match=r"detect.frozen=99: the net has \d+ conv layers"):
        detect(copied, words=["detect.frozen=99"])


@pytest.mark.parametrize("damage", [{"proposals": 5}, {"steps": "x"}, {"lr": -1}, {"root": 3}])
def test_settings_that_are_none_are_refused_by_the_files_name(detected, tmp_path, damage):
    tree = yaml.safe_load((detected / "config.yaml").read_text())
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree | {"detect": tree["detect"] | damage}))
    with pytest.raises(ValueError, match=r"config\.yaml: no configuration of a detection: "):
        load_about(path)


# --- the command ---
@pytest.mark.parametrize("path", ["a,b", "some(thing)", "0..4", "[a],[b]", "choice(a,b)"])
def test_a_path_with_commas_or_brackets_is_one_value(path):
    words = [f"detect.root={path}", f"detect.proposals={path}"]
    settings = configs.compose_detect("smoke", words)
    assert (settings.root, settings.proposals) == (path, path)


def test_the_command_takes_a_runs_name_or_its_words(delving, copied, detected):
    root = f"output_root={copied.parents[2]}"
    code, out, _ = delving("detect", copied.name, root, "device=cpu", *WORDS)
    assert code == 0
    assert "voc07: mAP" in out  # as it is scored
    assert "at random mAP is" in out
    code, out, _ = delving("detect", "scale=smoke", "act=prelu", "precision=fp32", root,
                           "eval.protocols=center,ten_view", *WORDS)  # fmt: skip
    assert code == 0
    assert "Finished earlier" in out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["detect.stepz=3"], "did you mean detect.steps"),
        (["detect.steps=0"], "detect.steps=0: must be an integer from 1"),
        (["detect.data=coco"], "one of voc2007, shapes_voc"),
        (["detect.data=voc2007"], "needs detect.root="),
        (["detect.data=voc2007", "detect.classes=3"], "detect.classes=3: of generated scenes"),
        (["detect.data=voc2007", "detect.root=."], "neither VOCdevkit"),
        (["detect.proposals=boxes.npz"], "choose from auto, selective_search, grid, or a file"),
        (["detect.root=~no.such/x"], "detect.root=~no.such/x: "),
        (["detect.proposals=~no.such/x"], "detect.proposals=~no.such/x: "),
        (["data.classes=3"], "data.classes=3: the run is trained; did you mean detect.classes?"),
        (["model=small14", "model=c"], "of a run's words detect takes precision, device"),
        (["protocol=center"], "of a run's words detect takes precision, device"),
        (["nosuchrun"], "one run at a time"),
    ],
)
def test_bad_words_are_refused_with_the_choices(delving, copied, words, named):
    code, _, err = delving("detect", copied.name, f"output_root={copied.parents[2]}", *words)
    assert code == 2
    assert named in err
    assert not (copied.parents[1] / "detections").exists()


def test_a_run_that_is_not_trained_is_named_with_the_command(delving, tmp_path):
    code, _, err = delving("detect", "scale=smoke", "act=relu", f"output_root={tmp_path}")
    assert code == 2
    assert "is not trained yet: delving train scale=smoke act=relu" in err


def test_a_run_that_is_not_finished_is_named_with_what_finishes_it(delving, copied):
    (copied / "result.json").unlink()
    code, _, err = delving("detect", copied.name, f"output_root={copied.parents[2]}")
    assert code == 2
    assert f"{copied} is not finished: the command that began it goes on" in err
    assert f"{copied / 'config.yaml'}" in err


@pytest.mark.parametrize("key", ["detect.train_images", "detect.test_images"])
def test_more_images_than_there_are_are_refused_by_the_setting(copied, key):
    [root] = (copied.parents[2] / "data").glob("shapes_voc-*")
    said = rf"{key}: 50 images asked for, but there are \d; {key}=null takes all"
    with pytest.raises(ValueError, match=said):
        detect(copied, words=[f"detect.root={root}", f"{key}=50"])


def test_a_training_refuses_settings_of_detect(delving, tmp_path):
    code, _, err = delving("train", "scale=smoke", "detect.lr=1", f"output_root={tmp_path}")
    assert code == 2
    assert "detect.lr: a setting of `delving detect`" in err


# --- the artefact ---
def test_the_artefact_trains_what_is_missing_and_is_redrawn_from_its_record(delving, tmp_path):
    small = [word for word in WORDS if not word.startswith("detect.proposals")]
    words = ["detection", "scale=smoke", f"output_root={tmp_path}", "device=cpu", *small]
    code, out, err = delving("reproduce", *words)
    assert code == 0, err
    assert out.count("detection  ") >= 2
    made = tmp_path / "smoke" / "detection"
    verdict = record.read_json(made / "verdict.json")
    assert len(verdict["detections"]) == 2
    assert verdict["claims"][0]["verdict"] in ("inconclusive", "not_reproduced", "reproduced")
    table = pd.read_csv(made / "table.csv")
    assert list(table.columns[1:]) == ["ReLU", "PReLU"]
    assert "mean, 11 points (2007)" in table.iloc[:, 0].tolist()
    copy_records(tmp_path / "smoke", tmp_path / "kept")
    assert not list((tmp_path / "kept").rglob("*.safetensors"))
    assert str(tmp_path) not in (tmp_path / "kept" / "detections" / verdict["detections"][0]
                                 / "config.yaml").read_text()  # fmt: skip
    again = tmp_path / "again"
    code, _, err = delving("reproduce", "detection", "scale=smoke", "--from", tmp_path / "kept",
                           f"output_root={again}", *small)  # fmt: skip
    assert code == 0, err
    for name in ("table.csv", "data.csv", "figure.png"):
        assert (again / "smoke" / "detection" / name).read_bytes() == (made / name).read_bytes()


def test_without_voc_the_whole_paper_leaves_it_out_and_says_so(delving, tmp_path):
    root = f"output_root={tmp_path}"
    code, out, _ = delving("reproduce", "all", "scale=smoke", "--plan", root,
                           "detect.data=voc2007")  # fmt: skip
    assert code == 0
    assert "left out: detection; detect.root=... tells where VOC 2007 lies" in out
    code, _, err = delving("reproduce", "detection", "scale=smoke", "--plan", root,
                           "detect.data=voc2007")  # fmt: skip
    assert code == 2
    assert "detect.root=" in err
