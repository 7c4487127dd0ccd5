"""The project's own rules, checked in the source: sizes, imports, leftovers."""

import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

from delving.groups import CONF

PACKAGE = Path(__file__).parent.parent / "delving"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]
every_file = pytest.mark.parametrize("path", FILES, ids=NAMES)

# From the leaves upwards: a file imports from floors below its own, or from its own.
FLOORS = [
    [
        "words",
        "bounds",
        "schema",
        "foreign",
        "sweep",
        "terminal",
        "disk",
        "arrays",
        "beside",
        "launched",
    ],
    ["signals"],
    ["kernels"],
    ["fused"],
    [
        "launcher",
        "notation",
        "momentum",
        "groups",
        "meter",
        "record",
        "spp",
        "stem",
        "rectifier",
        "device",
        "judge",
        "exits",
    ],
    ["checkpoint", "lock", "ranks"],
    ["config", "request", "initializer", "display", "plot", "curves", "report"],
    ["naming"],
    ["net", "data", "same", "workers"],
    ["build", "step", "evaluate", "signal"],
    ["replay"],
    ["train"],
    ["session", "fisher", "ensemble", "artefact"],
    ["state"],
    ["probe", "detect", "cost", "readme"],
    ["score", "doctor", "draws"],
    ["run"],
    ["plan"],
    ["measured"],
    ["paper", "asked"],
    ["draw", "work", "reference", "slurm_job", "slurm_queue"],
    ["announce"],
    ["bench"],
    ["estimate"],
    ["tasks"],
    ["reproduce", "multirun", "transfer"],
    ["compare", "slurm"],
    ["cli_words"],
    ["cli_data", "cli_paper", "cli_train", "cli_bench", "cli_detect", "cli_runs"],
    ["cli", "__main__"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


@lru_cache
def text_of(path):
    return path.read_text(encoding="utf-8")


@lru_cache
def tree_of(path):
    return ast.parse(text_of(path))


@lru_cache
def imports_of(path):
    """The dotted names that a file imports anywhere, inside functions too."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def own_imports(path):
    """The top-level names of delving that a file imports."""
    parts = [name.split(".") for name in imports_of(path)]
    return {p[1] for p in parts if p[0] == "delving" and len(p) > 1} & set(FLOOR)


def top_name(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@every_file
def test_no_file_is_too_long_to_read(path):
    assert len(text_of(path).splitlines()) <= 300


@every_file
def test_every_file_opens_with_what_it_is_for(path):
    text = text_of(path)
    if len(text.splitlines()) > 5:
        assert ast.get_docstring(tree_of(path))


@every_file
def test_nothing_is_left_to_be_done(path):
    text = text_of(path)
    for leftover in ("TODO", "FIXME", "XXX", "breakpoint(", "/home/", "/Users/"):
        assert leftover not in text


@every_file
def test_hydra_stays_inside_config(path):
    outside = {name.split(".")[0] for name in imports_of(path)} & {"hydra", "omegaconf"}
    assert not outside or path.name in ("config.py", "request.py")


@every_file
def test_nothing_is_pickled(path):
    assert not {"pickle", "torch.save", "torch.load", "joblib"} & set(imports_of(path))
    tree = ast.walk(tree_of(path))
    used = [n for n in tree if isinstance(n, ast.Attribute) and n.attr in ("save", "load")]
    owners = {n.value.id for n in used if isinstance(n.value, ast.Name)}
    assert "torch" not in owners


@every_file
def test_imports_point_one_way(path):
    name = top_name(path)
    if name == "__init__":
        assert not own_imports(path)
        return
    assert name in FLOOR, f"{path.name} has no floor in this test: give it one"
    upwards = {other for other in own_imports(path) if FLOOR[other] > FLOOR[name]}
    assert not upwards


def test_records_are_a_leaf():
    assert own_imports(PACKAGE / "record.py") == {"arrays", "beside", "words"}
    assert own_imports(PACKAGE / "arrays.py") == {"words"}


@pytest.mark.parametrize(
    "name",
    [
        "cli.py",
        "cli_words.py",
        "cli_data.py",
        "cli_paper.py",
        "cli_train.py",
        "cli_bench.py",
        "cli_detect.py",
        "cli_runs.py",
    ],
)
def test_the_command_line_imports_nothing_heavy_at_its_top(name):
    tree = tree_of(PACKAGE / name)
    body = [n for top in tree.body for n in (top.body if isinstance(top, ast.Try) else [top])]
    tops = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {n.names[0].name if isinstance(n, ast.Import) else n.module for n in tops}
    assert modules <= {
        "json", "math", "os", "sys", "pathlib", "typing", "typer", "delving", "delving.cli_data",
        "delving.cli_runs", "delving.cli_words", "delving.launched", "collections.abc",
        "contextlib",
    }  # fmt: skip


def test_no_file_of_all_sorts():
    assert not {"utils.py", "common.py", "misc.py", "helpers.py"} & {path.name for path in FILES}


def test_published_numbers_in_the_papers_model_files_are_its_own():
    text = (PACKAGE / "paper" / "published.yaml").read_text(encoding="utf-8")
    published = set(re.findall(r"\d+\.\d+", text))
    for model in ("small14", "small30", "vgg19", "vgg_b", "a", "b", "c"):
        path = CONF / "model" / f"{model}.yaml"
        header = [x for x in path.read_text(encoding="utf-8").splitlines() if x.startswith("#")]
        told = set(re.findall(r"\d+\.\d\d+", " ".join(header)))
        assert told - {"0.01"} <= published, path  # 0.01 is a knob, init.std
