"""Probabilities are averaged image by image, and never over different images."""

from pathlib import Path

import numpy as np
import pytest
from fabricate import make_run, save_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from delving import record
from delving.ensemble import average, name_ensemble, pick_protocol, save_ensemble, summarise
from delving.evaluate import error_rates

CLASSES, IMAGES = 7, 40
LABELS = np.random.default_rng(0).integers(0, CLASSES, IMAGES)


def draw(seed, images=IMAGES, classes=CLASSES):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), images).astype(np.float32)


@pytest.fixture
def runs(tmp_path):
    """Three scored runs of the same images."""
    return [save_scores(tmp_path / "smoke" / "runs" / f"{model}-relu-he-s0", draw(seed), LABELS)
            for seed, model in enumerate("abc", start=1)]  # fmt: skip


# --- the mean ---
@settings(max_examples=15)
@given(seeds=st.lists(st.integers(0, 99), min_size=2, max_size=6), images=st.integers(1, 9))
def test_probabilities_are_averaged_image_by_image(tmp_path_factory, seeds, images):
    root, labels = tmp_path_factory.mktemp("runs"), np.zeros(images, int)
    folders = [save_scores(root / str(n), draw(seed, images), labels)
               for n, seed in enumerate(seeds)]  # fmt: skip
    saved = [record.load_scores(folder, "dense")[0].astype(np.float64) for folder in folders]
    found, its_labels, names = average(folders, "dense")
    np.testing.assert_allclose(found, np.mean(saved, axis=0), rtol=6e-3, atol=1e-12)
    assert its_labels.tolist() == labels.tolist()
    assert names == [f"val/{n}.jpg" for n in range(images)]


def test_the_order_of_the_runs_changes_nothing(runs):
    forward, backward = average(runs, "dense")[0], average(runs[::-1], "dense")[0]
    np.testing.assert_allclose(forward, backward, rtol=2e-3)


def test_a_net_with_itself_is_that_net(runs):
    alone = record.load_scores(runs[0], "dense")[0]
    for times in (2, 4):
        np.testing.assert_array_equal(average([runs[0]] * times, "dense")[0], alone)
    summary = summarise([runs[0], runs[0]], "dense")
    [(name, member)] = summary["members"].items()
    assert name == runs[0].name
    assert {key: summary[key] for key in member} == member == error_rates(alone, LABELS)


def test_two_unsure_nets_may_be_right_where_each_is_wrong(tmp_path):
    one = save_scores(tmp_path / "one", [[0.4, 0.6, 0.0], [0.4, 0.6, 0.0]], [0, 0])
    two = save_scores(tmp_path / "two", [[0.4, 0.0, 0.6], [0.4, 0.0, 0.6]], [0, 0])
    summary = summarise([one, two], "dense")
    assert summary["top1_err"] == 0
    assert [member["top1_err"] for member in summary["members"].values()] == [100, 100]


# --- what is refused ---
@pytest.mark.parametrize(("count", "said"), [(0, "not 0"), (1, "not 1")])
def test_one_run_is_no_ensemble(runs, count, said):
    with pytest.raises(ValueError, match=f"two runs or more, {said}"):
        average(runs[:count], "dense")


def test_runs_scored_on_other_images_are_refused_by_their_folders(runs, tmp_path):
    others = {
        "other names": (draw(9), LABELS, [f"test/{n}.jpg" for n in range(IMAGES)]),
        "other labels": (draw(9), (LABELS + 1) % CLASSES, None),
        "fewer images": (draw(9, IMAGES - 1), LABELS[:-1], None),
        "fewer classes": (draw(9, classes=CLASSES - 1), LABELS, None),
    }
    for why, scores in others.items():
        other = save_scores(tmp_path / why, *scores)
        for pair in ([runs[0], other], [other, runs[0]]):
            with pytest.raises(ValueError, match="was scored on other images") as refusal:
                average(pair, "dense")
            assert all(str(folder) in str(refusal.value) for folder in pair)


def test_a_run_that_was_not_scored_so_is_told_the_command_that_scores_it(runs):
    (runs[0] / "checkpoint").mkdir()
    told = r"no scores of each image by center, there is dense: delving eval .*protocol=center"
    with pytest.raises(ValueError, match=told):
        average(runs, "center")


def test_a_run_that_came_without_weights_is_told_no_command_that_cannot_score_it(runs):
    with pytest.raises(ValueError, match="its weights, by which they are made, are where"):
        average(runs, "center")


# --- what is written ---
def test_the_summary_has_exactly_the_contracts_keys(runs, tmp_path):
    summary = save_ensemble(runs, "dense", tmp_path / "ensemble")
    assert list(summary) == ["runs", "protocol", "top1_err", "top5_err", "images", "members"]
    assert summary["runs"] == list(summary["members"]) == [folder.name for folder in runs]
    assert (summary["protocol"], summary["images"]) == ("dense", IMAGES)
    for folder in runs:
        saved = record.load_scores(folder, "dense")[0]
        assert summary["members"][folder.name] == error_rates(saved, LABELS)
    assert record.read_json(tmp_path / "ensemble" / "ensemble.json") == summary


def test_the_saved_probabilities_give_the_errors_told(runs, tmp_path):
    summary = save_ensemble(runs, "dense", tmp_path / "ensemble")
    probabilities, labels, names = record.load_scores(tmp_path / "ensemble", "dense")
    np.testing.assert_array_equal(probabilities, average(runs, "dense")[0])
    assert error_rates(probabilities, labels).items() <= summary.items()
    assert len(names) == IMAGES


# --- the command ---
@pytest.fixture
def ensemble(delving, tmp_path):
    """`delving ensemble` in this process: (exit code, stdout, stderr)."""
    return lambda *words: delving("ensemble", *words, "--output-root", tmp_path)


def test_two_runs_of_the_same_name_are_told_from_one_named_twice(ensemble, runs, tmp_path):
    other = save_scores(tmp_path / "other" / runs[0].name, draw(9), LABELS)
    for words, said in ((runs[:1] * 2, "is named twice"), ([runs[0], other], "the same name")):
        code, _, err = ensemble(*words)
        assert (code, said in err) == (2, True)


def test_the_command_takes_names_and_prints_every_members_errors(ensemble, runs, tmp_path):
    code, out, _ = ensemble(*(folder.name for folder in runs))
    lines = out.splitlines()
    assert code == 0
    assert [line.split(":")[0] for line in lines[:3]] == [folder.name for folder in runs]
    summary = summarise(runs, "dense")
    assert lines[3] == (f"ensemble of 3: top-1 {summary['top1_err']:.2f} %, "
                        f"top-5 {summary['top5_err']:.2f} %")  # fmt: skip
    to = next((tmp_path / "smoke" / "ensembles").iterdir())
    assert lines[4] == f"dense, saved in {to}"
    assert record.read_json(to / "ensemble.json") == summary


def test_two_ensembles_of_other_nets_lie_in_folders_of_their_own(ensemble, runs, tmp_path):
    folder = tmp_path / "smoke" / "runs"
    more = [save_scores(folder / name, draw(n), LABELS)
            for n, name in enumerate(("a-prelu-he-s0", "b-prelu-he-s0"))]  # fmt: skip
    assert ensemble(*runs[:2])[0] == ensemble(*more)[0] == 0
    files = sorted((tmp_path / "smoke" / "ensembles").glob("*/ensemble.json"))
    told = sorted(record.read_json(path)["runs"] for path in files)
    assert told == [[f.name for f in more], [f.name for f in runs[:2]]]


def test_an_ensemble_of_many_has_a_name_that_a_file_system_takes():
    folders = [Path(f"{model}-{act}-he-epochs12-lr0.003-s{seed}")
               for model in "abc" for act in ("relu", "prelu") for seed in range(9)]  # fmt: skip
    names = [name_ensemble(folders[:n]) for n in range(2, 55)]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 80


def test_the_command_takes_folders_and_a_protocol(ensemble, runs):
    for seed, folder in enumerate(runs):
        save_scores(folder, draw(seed), LABELS, protocol="ten_view")
    code, out, _ = ensemble(*runs, "protocol=ten_view")
    assert code == 0
    assert "ten_view, saved in" in out


def test_without_a_protocol_the_last_one_that_all_share_is_taken(runs):
    for folder, protocols in zip(runs, ("xyz", "zyx", "yx"), strict=True):
        make_run(folder, errors=dict.fromkeys(protocols, 1.0))
    assert pick_protocol(runs[:2]) == "z"
    assert pick_protocol(runs) == "y"
    for folder in runs:
        make_run(folder, errors={"dense": 1.0, "center": 1.0})
    assert pick_protocol(runs) == "dense"  # the paper's, wherever it stands
    make_run(runs[2], errors={})
    with pytest.raises(ValueError, match="share no protocol"):
        pick_protocol(runs)


def test_the_command_refuses_with_two(ensemble, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs[0])
    (tmp_path / "cpu" / "runs").mkdir(parents=True)
    twin = save_scores(tmp_path / "cpu" / "runs" / runs[0].name, draw(9), LABELS)
    for words in (
        [runs[0]], [runs[0], "no-such-run"], [*runs, "protocol=center"], [runs[0], runs[0]],
        [runs[0], "."], [runs[0], twin],
    ):  # fmt: skip
        code, out, err = ensemble(*words)
        assert (code, out, len(err.splitlines())) == (2, "", 1)


@pytest.mark.parametrize("protocol", [[], ["protocol=dense"]])
def test_a_run_that_is_not_finished_or_of_other_images_is_no_member(ensemble, runs, protocol):
    """Images may have the same names and labels and yet be other images."""
    for number, folder in enumerate(runs):
        record.write_json(folder / "env.json", {"data": str(number // 2)})
    assert ensemble(*runs[:2], *protocol)[0] == 0
    code, _, err = ensemble(*runs, *protocol)
    assert (code, "is of other images" in err) == (2, True)
    (runs[1] / "result.json").unlink()
    code, _, err = ensemble(*runs[:2], *protocol)
    assert (code, f"{runs[1]} is not finished" in err) == (2, True)
