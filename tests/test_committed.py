"""outputs/reference/cpu is what the README shows: from its records alone everything is redrawn."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from delving.display import Overview
from delving.groups import choices
from delving.reproduce import reproduce_artefacts

REFERENCE = Path(__file__).parent.parent / "outputs" / "reference" / "cpu"
COMPARED = ("table.csv", "table.md", "verdict.json")


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("redrawn")
    say = Overview(Console(file=io.StringIO()))
    words = ["scale=cpu", f"output_root={root}"]
    failed = reproduce_artefacts([], words, source=REFERENCE, say=say)
    return root / "cpu", failed


def test_every_artefact_is_redrawn_from_the_records_alone(redrawn):
    folder, failed = redrawn
    assert failed == {}
    assert all((folder / name / "verdict.json").exists() for name in choices("paper"))
    assert (folder / "report.html").stat().st_size > 100_000
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("name", choices("paper"))
def test_tables_and_verdicts_are_the_committed_ones_byte_for_byte(redrawn, name):
    folder, _ = redrawn
    for file in COMPARED:
        committed = REFERENCE / name / file
        assert committed.exists() == (folder / name / file).exists(), file
        if committed.exists():
            assert (folder / name / file).read_bytes() == committed.read_bytes(), file


def test_the_records_are_small_and_hold_no_weights():
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert not [path for path in files if path.suffix in (".safetensors", ".pt")]
