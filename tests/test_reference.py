"""Which outputs are committed: everything that drawing needs, and nothing more."""

import numpy as np
import pytest
from fabricate import make_planned, save_scores, snapshot

from delving import config as configs
from delving import record
from delving.asked import ask, measured_of
from delving.measured import save_measured
from delving.plan import make_plan
from delving.reference import copy_records
from delving.schema import differences

WORDS = ["scale=smoke"]
SLOPES = {"conv1": [0.5, 0.25], "fc1": [0.125]}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """outputs/smoke with everything that trainings leave behind and one artefact's verdict."""
    monkeypatch.chdir(tmp_path)
    plan = make_plan(["fisher", "figure1"], WORDS)
    for artefact in ("fisher", "figure1"):
        make_planned(plan, artefact, lambda arm, seed: {"slopes": SLOPES})
    for run in plan.runs:
        folder = plan.folder(run)
        result = record.read_json(folder / "result.json")
        save_scores(folder, np.full((3, 4), 0.25), [0, 1, 2], protocol="ten_view")
        text = configs.to_yaml(plan.runs[run]).replace("  root: null", "  root: /secret/place")
        record.write_text(folder / "config.yaml", text)
        record.write_json(folder / "result.json", result)
        record.write_bytes(folder / "checkpoint" / "model.safetensors", bytes(100_000))
        record.write_bytes(folder / "checkpoint.previous" / "state.json", b"{}")
    for run in plan.runs:
        save_measured(plan, "fisher", [run], {"of": run}, 1.0)
    for name in ("table.csv", "table.md", "data.csv", "figure.png", "figure.svg", "notes.txt"):
        record.write_text(plan.root / "fisher" / name, name)
    verdict = {"artefact": "fisher", "runs": list(plan.arms["fisher"]["prelu"]), "claims": []}
    record.write_json(plan.root / "fisher" / "verdict.json", verdict)
    record.write_json(plan.root / "reproduce.json", {"seconds": {"planned": {}, "used": {}}})
    return plan.root


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_of_a_run_there_are_its_records_without_weights_and_probabilities(source, tmp_path):
    copy_records(source, tmp_path / "kept")
    [run] = (tmp_path / "kept" / "runs").iterdir()
    assert files_of(run) == {
        "config.yaml", "env.json", "log.jsonl", "result.json", "slopes.json",
        "eval/ten_view.json", "eval/ten_view.hits.npz",
    }  # fmt: skip
    assert sum(path.stat().st_size for path in run.rglob("*")) < 20_000


def test_only_the_runs_that_an_artefact_shows_are_kept(source, tmp_path):
    copy_records(source, tmp_path / "kept")
    assert len(list((source / "runs").iterdir())) > 1
    shown = record.read_json(source / "fisher" / "verdict.json")["runs"]
    assert [run.name for run in (tmp_path / "kept" / "runs").iterdir()] == shown


def test_no_path_of_the_place_where_the_runs_lay_is_kept(source, tmp_path):
    copy_records(source, tmp_path / "kept")
    [run] = (tmp_path / "kept" / "runs").iterdir()
    config = configs.load(run / "config.yaml")
    assert (config.data.root, config.output_root) == (None, "outputs")
    theirs = configs.load(source / "runs" / run.name / "config.yaml")
    assert theirs.data.root == "/secret/place"
    assert differences(config, theirs) == {}
    for path in (tmp_path / "kept").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


def test_of_an_artefact_there_are_tables_numbers_and_one_picture(source, tmp_path):
    copy_records(source, tmp_path / "kept")
    assert files_of(tmp_path / "kept" / "fisher") == {
        "table.csv", "table.md", "data.csv", "verdict.json", "measured.json", "figure.png",
    }  # fmt: skip
    assert (tmp_path / "kept" / "reproduce.json").exists()


def test_what_was_kept_byte_for_byte_is_as_good_to_draw_from(source, tmp_path):
    plan = make_plan(["fisher"], WORDS)
    shown = {"artefact": "fisher", "claims": [], "runs": list(plan.runs)}
    record.write_json(source / "fisher" / "verdict.json", shown)
    copy_records(source, tmp_path / "kept")
    again = make_plan(["fisher"], WORDS, tmp_path / "kept")
    assert (again.missing(), again.refused) == ([], {})
    assert measured_of(again, "fisher") == {(run,): {"of": run} for run in again.runs}
    ours, theirs = (ask(p, "fisher").arms["prelu"][0] for p in (again, plan))
    assert ours.result == theirs.result
    assert ours.steps.equals(theirs.steps)
    assert {k: v.tolist() for k, v in ours.slopes.items()} == SLOPES
    assert ours.hits("ten_view").tolist() == theirs.hits("ten_view").tolist()


def test_a_new_record_replaces_the_old_one_and_leaves_its_source_alone(source, tmp_path):
    record.write_text(tmp_path / "kept" / "runs" / "stale-s0" / "result.json", "{}")
    before = snapshot(source)
    copy_records(source, tmp_path / "kept")
    assert not (tmp_path / "kept" / "runs" / "stale-s0").exists()
    assert snapshot(source) == before


def test_where_nothing_was_reproduced_nothing_is_replaced(tmp_path):
    record.write_text(tmp_path / "kept" / "table2" / "verdict.json", "{}")
    with pytest.raises(ValueError, match="no artefact there; delving reproduce all makes them"):
        copy_records(tmp_path / "empty", tmp_path / "kept")
    assert (tmp_path / "kept" / "table2" / "verdict.json").exists()
