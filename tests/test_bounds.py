"""Values and nets beyond any honest use are refused at once, and what is allowed is told."""

import time
from contextlib import nullcontext

import pytest
import torch
import yaml

from delving import build, device
from delving.build import build_model, describe_model, materialise
from delving.config import KEYS, KNOBS, WORDS, compose
from delving.notation import read_layers
from delving.schema import NEUTRAL

HUGE = ["1000000000000", "1e30", "1e400", "-1000000000000", "9" * 400]
# These may be as large as they like: they change results, but neither time nor memory.
FREE = ("train.lr", "train.weight_decay", "train.color", "family.small.lr", "family.large.lr")


def refuse(words, start=None):
    """The message that refuses the words, in compose or in building their net, within 2 s."""
    started = time.process_time()
    with pytest.raises(ValueError, match=r"\S") as refusal:
        describe_model(compose(["scale=smoke", *words]))
    assert time.process_time() - started < 2  # a guard against hanging
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


@pytest.fixture(scope="module", autouse=True)
def warm():
    describe_model(compose(["scale=smoke"]))


NUMBERS = [key for key, f in WORDS.items() if any(t in str(f.type) for t in ("int", "float"))]


@pytest.mark.parametrize("key", [key for key in NUMBERS if key not in (*FREE, "seed")])
def test_no_number_may_be_without_bounds(key):
    for value in HUGE:
        assert key in refuse([f"{key}={value}"])


@pytest.mark.parametrize("key", FREE)
def test_what_changes_only_numbers_has_no_upper_bound_but_is_finite(key):
    assert compose([f"{key}=1e30"])
    assert key in refuse([f"{key}=1e400"])


@pytest.mark.parametrize("key", NUMBERS)
def test_a_refused_number_is_told_what_it_may_be(key):
    value = "-1e30"
    check = KNOBS[key].metadata["check"]
    message = refuse([f"{key}={value}"])
    assert check[0] in message or "Integer" in message


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("train.batch=1000000000000", "from 1 to 65,536"), ("data.crop=7000000", "from 7 to 7,000"),
        ("data.classes=1000000000", "from 2 to 100,000"), ("model.width=1e9", "at most 100"),
        ("model=small100000", "at most 1,000"), ("model=small1001", "at most 1,000"),
        ("model=small" + "9" * 5000, "at most 1,000"), ("model.depth=100000", "1 to 1,000"),
        ("eval.dense_s=1000000000", "from 7 to 70"), ("eval.dense_s=" + "8," * 30 + "8", "1 to 20"),
        ("train.s=8,1000000", "to <= 70"), ("train.switch=" + ",".join(["0.5"] * 30), "at most 20"),
        ("eval.protocols=" + ",".join(["center"] * 30), "one or more"),
        ("data.workers=100000", "to 1,024"), ("train.epochs=1e9", "at most 100,000"),
        ("train.log_every=1000000000", "to 1,000,000"), ("device=cuda:9999", "cuda:N"),
        ("device=a\nb", r"device=a\nb"), ("data.root=a\nb", r"a\nb: must be a path"),
        ("data.root=a\x00b", r"a\x00b: must be a path"), ("output_root=\udcff", "in UTF-8"),
        ("data.root=" + "a" * 5000, "4,096"), ("data.root=???", "data.root"),
    ],
)  # fmt: skip
def test_a_value_beyond_use_is_refused_with_its_range(word, words):
    message = refuse([word])
    assert words in message
    assert word.partition("=")[0] in message
    assert len(message) < 500


def test_honest_values_pass():
    for word in ("model=small100", "model.width=4", "data.crop=448", "train.batch=32768",
                 "data.classes=21841", "train.epochs=1000", "data.workers=256", "eval.dense_s=24",
                 "data.train_images=14000000", "data.root=/mnt/a b/ä~,=x"):  # fmt: skip
        assert compose(["scale=paper", word])


# --- nets ---
def layers(*lines):
    return "model.layers=[" + ",".join("{" + line + "}" for line in lines) + "]"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["conv1: '3x3, 4, x999999999'", "fc1: classes"], "conv1"),
        (["conv1: '3x3, 999999999'", "fc1: classes"], "conv1"),
        (["conv1: '99999x99999, 4'", "fc1: classes"], "conv1"),
        (["conv1: '3x3, 999999'", "fc1: classes"], "conv1"),
        (["conv1: '3x3, 4'", "spp: '{9999}'", "fc1: classes"], "spp"),
        (["conv1: '3x3, 4'", "fc1: 999999", "fc2: classes"], "fc1"),
        ([*(f"conv{i}: '1x1, 1, x999'" for i in range(40)), "fc1: classes"], "at most 1,000"),
        (["conv1: '1x1, 9999, x99'", "fc1: classes"], "9,831,406,765 parameters"),
        (["conv1: '1x1, 99999'", "fc1: 99999", "fc2: classes"], "parameters"),
        (["conv1: '3x3, 4'", "fc1: classes", "fc2: classes"], "the last `classes`"),
        (["conv1: '3x3, 4'", "fc1: 5"], "the last `classes`"),
        (["conv1: '3x3, 4'", "fc1: classes", "conv2: '3x3, 4'", "fc2: classes"], "conv and pool"),
        (["conv1: '3x3, 4'", "spp: '{1}'", "spp2: '{1}'", "fc1: classes"], "conv and pool"),
        (["conv1: '3x3, 4'", "conv1: '3x3, 4'", "fc1: classes"], "model.layers"),
        (["fc1: classes"], "model.layers"), (["pool1: '2x2, /2'", "fc1: classes"], "model.layers"),
        (["conv1: {a: {b: c}}", "fc1: classes"], "model.layers"), (["a: b, c: d"], "model.layers"),
        (["conv1: null", "fc1: classes"], "model.layers"), (["'conv1\n': a"], "model.layers"),
        (["conv1: 'a\nb'", "fc1: classes"], r"layer conv1: 'a\nb'"), ([""], "model.layers"),
        ([f"conv{i}: '1x1, 1'" for i in range(250)], "model.layers"),
    ],
)  # fmt: skip
def test_layers_that_are_no_net_or_too_large_a_one_are_refused(lines, words, monkeypatch):
    monkeypatch.setattr(device, "memory", lambda: 8 * 10**9)
    assert words in refuse([layers(*lines), "model.width=1"])


@pytest.mark.parametrize(
    ("line", "most"),
    [("conv1: '3x3, {}'", build.WIDEST), ("conv1: '{0}x{0}, 4'", build.LARGEST),
     ("spp: '{{{},1}}'", build.FINEST), ("fc0: '{}'", build.WIDEST)],
)  # fmt: skip
@pytest.mark.parametrize("more", [0, 1])
def test_the_largest_layer_within_bounds_passes(line, most, more):
    name, told = yaml.safe_load(line.format(most + more)).popitem()
    lines = {"conv1": "3x3, 4"} | {name: told} | {"fc1": "classes"}
    refusal = (
        pytest.raises(ValueError, match=rf"layer {name}: .* is beyond") if more else nullcontext()
    )
    with refusal:
        build.check_layers(read_layers([{key: value} for key, value in lines.items()]))


def test_a_net_of_a_thousand_layers_is_shown():
    assert describe_model(compose(["scale=smoke", "model=small1000"]))["depth"] == 1000


def test_a_net_is_refused_by_what_this_machine_can_hold(monkeypatch):
    config = compose(["scale=smoke"])
    net, _ = build_model(config, 10)
    needed = 4 * sum(p.numel() for p in net.parameters())
    monkeypatch.setattr(device, "memory", lambda: needed)
    materialise(net, config, torch.device("cpu"))
    monkeypatch.setattr(device, "memory", lambda: needed - 1)
    net, _ = build_model(config, 10)  # building on the meta device is allowed
    with pytest.raises(ValueError, match=rf"{needed // 4:,} parameters"):
        materialise(net, config, torch.device("cpu"))
    monkeypatch.setattr(device, "memory", lambda: needed // build.SPARE - 1)
    with pytest.raises(ValueError, match=rf"{needed // 4:,} parameters"):
        build_model(config, 10)


def test_every_knob_but_switches_has_a_check():
    unchecked = {key for key, f in KNOBS.items() if not f.metadata.get("check")}
    assert unchecked == {key for key, f in KEYS.items() if f.type in (bool, "bool")}
    assert set(NEUTRAL) <= set(KNOBS)
