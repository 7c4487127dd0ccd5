"""Training curves: what the log says is what is drawn."""

from pathlib import Path

import pandas as pd
import pytest
from fabricate import make_run

from delving.curves import check_end, count_classes, load_curves, read_counts, tell_looked
from delving.plot import draw_curves, smooth
from delving.record import append_event
from delving.words import name_apart, shortest_labels


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "small14-relu-he-s0"
    folder.mkdir()
    log = folder / "log.jsonl"
    append_event(log, {"event": "start", "classes": 10})
    for step in range(1, 5):
        append_event(log, {"event": "step", "epoch": step / 2, "loss": 3.0 - step / 2, "err": 90.0})
    append_event(log, {"event": "val", "epoch": 2.0, "top1_err": 70.0})
    return folder


def test_curves_hold_every_logged_value_once(run):
    curves = load_curves(run)
    assert set(curves.run) == {"small14-relu-he-s0"}
    loss = curves[curves.curve == "training loss"]
    assert loss.epoch.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert loss.value.tolist() == [2.5, 2.0, 1.5, 1.0]
    assert curves[curves.curve == "validation error"].value.tolist() == [70.0]
    assert len(curves) == 9


def test_a_run_without_steps_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing logged"):
        load_curves(tmp_path)


@pytest.mark.parametrize("value", ["x", None, True, float("nan"), float("inf"), 10**400])
@pytest.mark.parametrize(("kind", "key"), [("step", "loss"), ("val", "top1_err")])
def test_a_logged_value_that_is_no_number_is_refused_by_file_and_key(run, kind, key, value):
    append_event(run / "log.jsonl", {"event": kind, "epoch": 1, "loss": 1, "err": 1, key: value})
    with pytest.raises(ValueError, match=rf"log\.jsonl: {kind} is damaged: {key} is"):
        load_curves(run)


def test_a_log_that_tells_no_classes_is_refused_by_its_name(run, tmp_path):
    assert count_classes(run) == 10
    with pytest.raises(ValueError, match=r"log\.jsonl is damaged"):
        count_classes(tmp_path)


def test_picture_and_csv_each_go_where_their_own_link_leads(run, delving):
    (run / "config.yaml").write_text("scale: smoke\n")
    place = run.parent / "drawn"
    (place / "kept").mkdir(parents=True)
    for name in ("kept/a.png", "kept/b.csv"):
        (place / f"curves{name[-4:]}").symlink_to(name)
    code, _, err = delving("plot-curves", run, "--to", place / "curves.png")
    assert (code, err) == (0, "")
    assert {p.name for p in place.iterdir() if p.is_symlink()} == {"curves.png", "curves.csv"}
    assert {p.name for p in (place / "kept").iterdir()} == {"a.png", "b.csv"}
    (place / "curves.csv").unlink()
    assert delving("plot-curves", run, "--to", place / "curves.png")[0] == 0
    assert (place / "curves.csv").is_file()  # beside the picture that was asked for
    assert {p.name for p in (place / "kept").iterdir()} == {"a.png", "b.csv"}


def test_a_folder_in_the_place_of_the_csv_is_refused_before_anything_is_drawn(run, delving):
    (run / "config.yaml").write_text("scale: smoke\n")
    (run / "curves.csv").mkdir()
    code, _, err = delving("plot-curves", run, "--to", run / "curves.png")
    assert (code, err) == (2, f"delving: {run / 'curves.csv'} is no plain file\n")
    assert not (run / "curves.png").exists()


def test_the_figure_labels_each_run_at_its_line(run):
    curves = load_curves(run)
    curves = pd.concat([curves, curves.assign(run="other")])
    figure = draw_curves(curves, labels={run.name: "ReLU", "other": "PReLU"}, classes=[10])
    left, right = figure.axes
    assert [t.get_text() for t in left.texts] == ["ReLU", "PReLU"]
    assert [t.get_text() for t in right.texts] == ["ReLU", "PReLU"]
    assert left.lines[0].get_ydata().tolist() == [2.5, 2.0, 1.5, 1.0]


def test_a_single_runs_name_is_the_title_and_leaves_its_lines_the_room(run):
    name = "small14-prelu-he-epochs300-width0.25-s30"
    figure = draw_curves(load_curves(run), labels={run.name: name}, classes=[10])
    assert figure.get_suptitle() == name
    assert not any(axes.texts for axes in figure.axes)
    assert all(axes.get_xlim()[1] < 1.05 * 2.0 for axes in figure.axes)


def test_smoothing_keeps_a_short_run_as_it_is_and_the_mean_of_a_constant(run):
    curves = load_curves(run)
    values = curves[curves.curve == "training loss"].value
    assert smooth(values).equals(values)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["small14-prelu-he-s0", "small14-relu-he-s0"], ["prelu", "relu"]),
        (["small30-relu-he-s0", "small30-relu-xavier-s0"], ["he", "xavier"]),
        (["a-relu-he-s0"], ["a-relu-he-s0"]),
        (["a-relu-he-s0", "a-relu-he-s0"], ["a-relu-he-s0"]),
    ],
)
def test_labels_are_what_tells_runs_apart(names, labels):
    assert list(shortest_labels(names).values()) == labels


def test_runs_of_the_same_name_are_told_apart_by_scale_or_place():
    one, other, third = (Path(f"/{root}/runs/a-s0") for root in ("x/cpu", "x/smoke", "y/cpu"))
    assert name_apart([one, other]) == {"cpu/a-s0": one, "smoke/a-s0": other}
    assert name_apart([one, third]) == {str(one): one, str(third): third}
    assert name_apart([one, one]) == {"a-s0": one}


@pytest.mark.parametrize("status", ["converged", "stalled", "diverged"])
@pytest.mark.parametrize("logged", [0, 20, 40])
def test_the_log_of_a_finished_run_reaches_its_end_unless_it_diverged(tmp_path, status, logged):
    log = make_run(tmp_path / "run", status=status) / "log.jsonl"
    log.unlink()
    append_event(log, {"event": "start", "steps": 40})
    for step in range(20, logged + 1, 20):
        append_event(log, {"event": "step", "step": step})
    if logged == 40 or status == "diverged":
        check_end(log.parent)
        return
    with pytest.raises(ValueError, match=rf"run/log\.jsonl is damaged: .* step {logged} of 40"):
        check_end(log.parent)


def test_a_start_tells_classes_and_images(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"log\.jsonl is damaged: it has no start"):
        read_counts(folder)
    started = {"event": "start", "classes": 10, "train_images": 96, "val_images": 24}
    append_event(folder / "log.jsonl", started)
    assert read_counts(folder) == (10, 96, 24)


@pytest.mark.parametrize(
    ("count", "told"),
    [(24, "all 24 validation images"), (20, "20 of 24 validation images, always the same ones")],
)
def test_it_is_told_how_many_images_a_curve_rests_on(tmp_path, count, told):
    start = {"event": "start", "classes": 10, "train_images": 96, "val_images": 24}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        append_event(tmp_path / name / "log.jsonl", start)
        append_event(tmp_path / name / "log.jsonl", {"event": "val", "images": count})
    assert tell_looked([tmp_path / "one", tmp_path / "two"]) == told
    assert tell_looked([]) == "validation images"
