"""outputs/reference/<scale> is what the README shows: all of it is redrawn from its records
alone."""

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from delving.display import Overview
from delving.groups import choices
from delving.readme import PICTURES
from delving.record import read_json
from delving.reproduce import reproduce_artefacts

REFERENCE = Path(__file__).parent.parent / "outputs" / "reference"
SCALES = ("cpu", "quarter")
COMPARED = ("table.csv", "table.md", "data.csv", "verdict.json")
PICTURE = "figure.png"
NEAR = 2.0  # grey levels on average: another FreeType may draw a letter's edge differently
LARGEST = 6_300_000  # bytes of a scale's records; 10 MB in all


def shown(scale):
    """The artefacts that are committed."""
    return [name for name in choices("paper") if (REFERENCE / scale / name).is_dir()]


def words_of(scale):
    """The words of the command that the artefacts were made by, the same for each."""
    commands = {
        tuple(word for word in read_json(path)["command"].split() if "=" in word)
        for path in (REFERENCE / scale).glob("*/verdict.json")
    }
    assert len(commands) == 1
    return list(commands.pop())


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    @cache
    def draw(scale):
        root = tmp_path_factory.mktemp("redrawn")
        words, say = words_of(scale), Overview(Console(file=io.StringIO()))
        source = REFERENCE / scale
        failed = reproduce_artefacts(
            shown(scale), [*words, f"output_root={root}"], source=source, say=say
        )
        return root / scale, failed

    return draw


def test_at_scale_cpu_all_of_the_papers_artefacts_are_there():
    assert len(shown("cpu")) >= 18


@pytest.mark.parametrize("scale", SCALES)
def test_every_artefact_is_redrawn_from_the_records_alone(redrawn, scale):
    folder, failed = redrawn(scale)
    assert failed == {}
    assert all((folder / name / "verdict.json").exists() for name in shown(scale))
    assert (folder / "report.html").stat().st_size > 100_000
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("scale", "name"), [(s, name) for s in SCALES for name in shown(s)])
def test_tables_data_and_verdicts_are_the_committed_ones_byte_for_byte(redrawn, scale, name):
    folder, _ = redrawn(scale)
    for file in COMPARED:
        committed = REFERENCE / scale / name / file
        assert committed.exists() == (folder / name / file).exists(), file
        if committed.exists():
            assert (folder / name / file).read_bytes() == committed.read_bytes(), file


@pytest.mark.parametrize(
    ("scale", "name"),
    [(s, name) for s in SCALES for name in shown(s) if (REFERENCE / s / name / PICTURE).exists()],
)
def test_pictures_are_the_committed_ones(redrawn, scale, name):
    folder, _ = redrawn(scale)
    files = [where / name / PICTURE for where in (folder, REFERENCE / scale)]
    new, old = (np.asarray(Image.open(file).convert("RGB"), dtype=float) for file in files)
    assert new.shape == old.shape
    assert np.abs(new - old).mean() < NEAR


def test_the_pictures_that_the_readme_shows_are_among_them():
    shown_there = [(s, name) for s, names in PICTURES.items() for name in names]
    assert all((REFERENCE / s / name / PICTURE).exists() for s, name in shown_there)


@pytest.mark.parametrize("scale", SCALES)
def test_the_records_are_small_and_hold_no_weights_and_no_places(scale):
    files = [path for path in (REFERENCE / scale).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert not [path for path in files if path.suffix in (".safetensors", ".pt")]
    configs = [path.read_text(encoding="utf-8") for path in files if path.name == "config.yaml"]
    assert all("  root: null" in text for text in configs)
