"""A run folder may be a stranger's: its config.yaml constructs no objects and writes no files."""

import os
import time
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from delving.config import KEYS, amend, compose, from_yaml, load, to_yaml
from delving.foreign import BYTES, DEPTH, EVENTS, check_yaml
from delving.schema import NEUTRAL

some = settings(max_examples=40)
GOOD = to_yaml(compose(["scale=smoke"]))
LAUGHS = "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghi"))
SPAN = "seed: 0\n"


def instead(line, of=SPAN):
    """The good configuration with one part of it replaced."""
    assert GOOD.count(of) == 1
    return GOOD.replace(of, line)


LAYERS = GOOD[GOOD.index("  layers:\n") : GOOD.index("  depth:")]
NAMES = {"model": "  name: small14\n", "act": "  name: prelu\n", "init": "  name: he\n",
         "data": "  name: shapes\n", "scale": "scale: smoke\n"}  # fmt: skip


def layers(text):
    return instead(f"  layers: {text}\n", of=LAYERS)


# What a file tries, and the words that refuse it; CANARY is a file that it would create.
CRAFTED = {
    "runs a command by a tag": (
        instead("seed: !!python/object/apply:os.system ['touch CANARY']\n"), "line 2: a tag"),
    "opens a file by a tag": (
        instead("seed: !!python/object/apply:builtins.open ['CANARY', 'w']\n"), "a tag"),
    "names a module by a tag": (instead("seed: !!python/name:os.system\n"), "a tag"),
    "tags a plain text": (instead("seed: !!int 0\n"), "a tag"),
    "tags by an address": (instead("seed: !<tag:yaml.org,2002:int> 0\n"), "a tag"),
    "tags without a name": (instead("seed: ! 0\n"), "a tag"),
    "tags a section": (instead("train: !!map\n", of="train:\n"), "a tag"),
    "tags a key": (instead("!!str seed: 0\n"), "a tag"),
    "reads the environment": (instead("seed: ${oc.env:HOME}\n"), "an interpolation"),
    "decodes": (instead("seed: ${oc.decode:'1'}\n"), "an interpolation"),
    "creates": (instead("seed: ${oc.create:{a: 1}}\n"), "an interpolation"),
    "refers to another key": (instead("seed: ${train.batch}\n"), "an interpolation"),
    "escapes an interpolation": (instead("seed: '\\${train.batch}'\n"), "an interpolation"),
    "interpolates in quotes": (instead('  root: "a/$\\x7bscale}"\n', of="  root: null\n"),
                               "an interpolation"),
    "interpolates a key": (instead("${scale}: 0\n"), "an interpolation"),
    "interpolates a layer": (layers("[{conv1: '${oc.env:HOME}'}]"), "an interpolation"),
    "instantiates": (instead("seed: 0\n_target_: os.system\n"), "_target_"),
    "instantiates in a section": (
        instead("train:\n  _target_: os.system\n", of="train:\n"), "_target_"),
    "laughs a billion times": ("a: [x, x]\n" + LAUGHS, "an anchor, &b"),
    "has an anchor alone": (instead("seed: &a 0\n"), "an anchor, &a"),
    "has an alias alone": (instead("seed: *a\n"), "an alias, *a"),
    "contains itself": ("&a [*a]\n", "line 1"),
    "merges": (instead("<<: {seed: 0}\n"), "a merge"),
    "has two documents": (GOOD + "---\n" + GOOD, "a second document"),
    "has an empty second document": (GOOD + "---\n", "a second document"),
    "says it twice": (instead("seed: 0\nseed: 1\n"), "seed is given twice"),
    "says it twice in other words": (instead("seed: 0\n'seed': 1\n"), "seed is given twice"),
    "says it twice in a section": (
        instead("  momentum: 0.9\n  momentum: 0.8\n", of="  momentum: 0.9\n"), "momentum is given"),
    "is large": (GOOD + "#" * BYTES, "bytes"),
    "has many values": (layers("[" + "a," * EVENTS + "]"), "values"),
    "is nested": (instead("seed: " + "[" * 5000 + "]" * 5000 + "\n"), "nested deeper"),
    "is nested and not closed": ("[" * 60_000, "keys and values"),
    "is nested in mappings": (instead("seed: " + "{a: " * 5000 + "\n"), "nested deeper"),
    "is nested in lines": (layers("\n" + "".join("  " * i + "- \n" for i in range(2, 100))),
                           "line"),
    "has a list as key": (instead("? [seed]\n: 0\n"), "as key"),
    "is a list": ("- seed\n", "keys and values"),
    "is a word": ("seed\n", "keys and values"),
    "is empty": ("", "lacks scale"),
    "is a comment": ("# seed: 0\n", "lacks scale"),
    "is no YAML": ("seed: [\n", "line"),
    "has a tabulator": ("seed:\n\t- 0\n", "line"),
    "has an unknown directive": ("%YAML 9.9\n---\n" + GOOD, "line 1"),
    "has a control character": ("seed: \x00\n", "YAML"),
    "has an unknown key": (instead("seed: 0\nsede: 1\n"), "did you mean seed"),
    "has an unknown key in a section": (
        instead("  momentun: 0.9\n", of="  momentum: 0.9\n"), "train.momentum"),
    "lacks a key": (instead(""), "lacks seed"),
    "has a section that is none": (
        GOOD[: GOOD.index("act:")] + "act: 3\n" + GOOD[GOOD.index("init:") :], "Act"),
    "has no value": (instead("seed: null\n"), "seed"),
    "has a missing value": (instead("seed: ???\n"), "seed"),
    "has a word for a number": (instead("seed: many\n"), "seed"),
    "has a list for a number": (instead("seed: [0]\n"), "seed"),
    "has a mapping for a text": (instead("  root: {a: b}\n", of="  root: null\n"), "data.root"),
    "has a number without end": (instead("seed: " + "9" * 5000 + "\n"), "line 2: a value of 5,000"),
    "has a large number for a float": (
        instead("  momentum: " + "9" * 400 + "\n", of="  momentum: 0.9\n"), "int too large"),
    "has a number in base 60": (instead("seed: " + "1:" * 2000 + "1\n"), "seed"),
    "has a large number": (instead("seed: 1000000000000000000000\n"), "seed=1000"),
    "has infinite colours": (instead("  color: .inf\n", of="  color: 0.1\n"), "train.color=inf"),
    "has colours that are no number": (
        instead("  color: .nan\n", of="  color: 0.1\n"), "train.color=nan"),
    "has a list of lists": (
        instead("  ten_view_s: 8\n  dense_s: [[8]]\n",
                of="  ten_view_s: 8\n  dense_s:\n  - 8\n  - 12\n  - 15\n"), "eval.dense_s"),
    "wants huge batches": (
        instead("  micro_batch: 1000000000\n", of="  micro_batch: null\n"), "train.micro_batch"),
    "wants many workers": (instead("  workers: 99999\n", of="  workers: -1\n"), "data.workers"),
    "has a path with a line break": (
        instead('  root: "a\\nb"\n', of="  root: null\n"), "data.root=a\\nb: must be a path"),
    "has a device of its own": (
        instead("device: 'cuda; x'\n", of="device: auto\n"), "device=cuda;"),
    "has layers with a count": (layers("[{conv1: '3x3, 4, x999999999'}]"), "model.layers"),
    "has layers that are texts": (layers("[conv1, fc1]"), "/2; conv1 is not one"),
    "has layers that are numbers": (layers("[{conv1: a}, 7]"), "/2; 7 is not one"),
    "has layers in layers": (layers("[{conv1: {a: {b: c}}}, {fc1: classes}]"), "model.layers"),
    "has a layer with a line break": (
        layers('[{"conv1\\n": 3x3}, {fc1: classes}]'), "model.layers"),
    "has many layers": (
        layers("[" + ",".join(f"{{conv{i}: '1x1, 1'}}" for i in range(201)) + "]"), "model.layers"),
    **{f"has {bad!r} for a {key}": (instead(line.split(": ")[0] + f": {bad}\n", of=line), "a name")
       for key, line in NAMES.items()
       for bad in ("''", "../../CANARY", "a/b", "..", '"a\\0b"', '"a\\nb"', '"\\e[2J"', "a" * 65)},
}  # fmt: skip


@pytest.fixture(params=CRAFTED, ids=lambda name: ascii(name).replace(" ", "-"))
def crafted(request, tmp_path, monkeypatch):
    """A run folder in the working directory with a crafted config.yaml; words that refuse it."""
    monkeypatch.chdir(tmp_path)
    text, words = CRAFTED[request.param]
    folder = tmp_path / "outputs" / "smoke" / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text.replace("CANARY", str(tmp_path / "canary")))
    return folder, words


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_a_stranger_crafted_is_refused_before_anything_is_made_of_it(crafted, tmp_path):
    folder, words = crafted
    started = time.process_time()
    with pytest.raises(ValueError, match=r"config\.yaml: ") as refusal:
        load(folder / "config.yaml")
    assert time.process_time() - started < 1  # a guard against hanging; most take milliseconds
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
    assert files_in(tmp_path) == [folder / "config.yaml"]


@pytest.mark.parametrize(
    "crafted", [name for name in CRAFTED if "for a" not in name or "CANARY" in name], indirect=True
)
def test_the_command_line_refuses_it_with_2_and_in_one_line(crafted, tmp_path, delving):
    folder, words = crafted
    code, out, err = delving("eval", folder)
    assert (code, out) == (2, "")
    assert words in err
    assert "config.yaml" in err
    assert len(err.splitlines()) == 1
    assert files_in(tmp_path) == [folder / "config.yaml"]


def test_the_good_one_among_them_loads(tmp_path):
    assert from_yaml(GOOD, "here") == compose(["scale=smoke"])
    assert from_yaml("--- # as some editors begin\n" + GOOD + "...\n", "here").scale == "smoke"


# --- what is no file of a few KB ---
@pytest.mark.parametrize(
    ("kind", "words"),
    [("none", "there is no"), ("folder", "there is no"), ("pipe", "there is no"),
     ("latin", "no UTF-8"), ("huge", "more than"), ("accents", "more than")],
)  # fmt: skip
def test_what_is_no_text_of_a_few_kilobytes_is_refused_by_its_path(tmp_path, kind, words):
    path = tmp_path / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "latin":
        path.write_bytes(instead("  root: /mnt/é\n", of="  root: null\n").encode("latin-1"))
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(10**12)  # sparse
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "accents":
        path.write_text("é" * (BYTES - 1), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"config\.yaml: {words}"):
        load(path)


# --- any text at all ---
keys = st.sampled_from([*(key.split(".")[-1] for key in KEYS), "model", "train", "x", "<<", "a b"])
scalars = st.one_of(
    st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.none(),
    st.sampled_from(["${x}", "!!int 1", "&a", "*a", "???", "|", "- ", ".inf", "1:1", "2001-99-99",
                     "="]),
)  # fmt: skip
trees = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(keys, inner))
lines = st.lists(st.sampled_from(GOOD.splitlines(keepends=True)), max_size=60).map("".join)
spoilt = st.builds(
    lambda place, cut, text: GOOD[:place] + text + GOOD[place + cut :],
    st.integers(0, len(GOOD)), st.integers(0, 30), st.text(max_size=6) | scalars.map(str),
)  # fmt: skip
texts = st.one_of(st.text(), lines, trees.map(yaml.safe_dump), trees.map(str), spoilt)


def refusal_of(read, *arguments):
    """The message of the ValueError, '' where there is none; any other error is a failure."""
    try:
        read(*arguments)
    except ValueError as refusal:
        return str(refusal)
    return ""


def check_any_text(text):
    refusal = refusal_of(from_yaml, text, "that file")
    assert not refusal or refusal.startswith("that file: ")
    assert len(refusal.splitlines()) <= 1


@some
@given(texts)
def test_any_text_loads_or_is_refused_by_name_in_one_line(text):
    check_any_text(text)


@pytest.mark.long
@pytest.mark.tally("a random config.yaml: loads or is refused by name", 2000)
@settings(max_examples=2000)
@given(texts)
def test_any_of_many_texts_loads_or_is_refused_by_name_in_one_line(text):
    check_any_text(text)


@some
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"config\.yaml: "):
        load(path)


@some
@given(trees)
def test_plain_data_is_refused_for_nothing_but_what_its_text_shows(tree):
    text = yaml.safe_dump({"tree": tree})
    refusal = refusal_of(check_yaml, text)
    shown = {"interpolation": "${", "merge": "<<", "alias": "&id", "anchor": "&id", "nested": "-"}
    assert not refusal or any(word in refusal and sign in text for word, sign in shown.items())


# --- what is saved is read again ---
paths = st.text(
    st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("~,= '\"\\:#{}[]!&*%@-?|>"),
    min_size=1, max_size=40,
).filter(lambda text: "${" not in text and text not in ("null", "???"))  # fmt: skip


def check_paths(root, output):
    config = compose(["scale=smoke", f"data.root={root}", f"output_root={output}"])
    assert (config.data.root, config.output_root) == (root, output)
    assert from_yaml(to_yaml(config), "here") == config


@settings(max_examples=20)
@given(paths, paths)
def test_any_path_is_saved_and_read_again_as_it_was(root, output):
    check_paths(root, output)


@pytest.mark.long
@settings(max_examples=100)
@given(paths, paths)
def test_any_of_many_paths_is_saved_and_read_again_as_it_was(root, output):
    check_paths(root, output)


def test_a_long_path_is_saved_and_read_again():
    root = "[{(,'" * 800
    config = compose(["scale=smoke", f"data.root={root}"])
    assert from_yaml(to_yaml(config), "here").data.root == root


@pytest.mark.parametrize("key", NEUTRAL)
def test_a_knob_that_changes_no_result_may_lack(key):
    tree = yaml.safe_load(GOOD)
    section = tree
    for part in key.split(".")[:-1]:
        section = section[part]
    del section[key.split(".")[-1]]
    assert from_yaml(yaml.safe_dump(tree), "here") == compose(["scale=smoke"])


def test_the_depth_that_is_allowed_is_more_than_a_configuration_has():
    check_yaml("a: " + "[" * (DEPTH - 1) + "]" * (DEPTH - 1))
    with pytest.raises(ValueError, match="nested"):
        check_yaml("a: " + "[" * DEPTH + "]" * DEPTH)


# --- where a run that was passed on would write ---
@pytest.mark.parametrize(
    ("folder", "root"),
    [
        ("here/smoke/runs/x", "here"), ("a/b/smoke/runs/x", "a/b"), ("smoke/runs/x", "."),
        ("x", "outputs"), ("downloads/x", "outputs"), ("here/cpu/runs/x", "outputs"),
        ("here/smoke/old/x", "outputs"),
    ],
)  # fmt: skip
def test_output_root_is_where_the_folder_lies_whatever_it_says(tmp_path, monkeypatch, folder, root):
    monkeypatch.chdir(tmp_path)
    path = Path(folder) / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(instead("output_root: /CANARY\n", of="output_root: outputs\n"))
    assert load(path).output_root == root
    assert amend(path, []).output_root == root
    assert amend(path, ["output_root=there"]).output_root == "there"
    assert from_yaml(path.read_text(), "here").output_root == "/CANARY"


def test_inside_the_run_folder_it_is_found_too(tmp_path, monkeypatch):
    folder = tmp_path / "smoke" / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(GOOD)
    monkeypatch.chdir(folder)
    assert load(Path("config.yaml")).output_root == str(tmp_path)
