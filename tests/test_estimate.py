"""`delving estimate`: what it reckons from, by hand; and a probe that really trains."""

import json
import math

import pytest
from calling import call

from delving import estimate as estimates
from delving.bench.training import build
from delving.config import compose
from delving.estimate import Rate, cost_of, estimate


def rows_of(*words, **stated):
    rows = estimate([w for w in words if "=" not in w], [w for w in words if "=" in w],
                    say=lambda line: None, **stated)  # fmt: skip
    return {row["artefact"]: row for row in rows}


def test_hours_are_images_over_the_stated_rate():
    """75 epochs of ImageNet, ten views of 50,000 images at a third of a step's work each."""
    config = compose(["scale=paper", "model=small14"])
    cost = cost_of(config, Rate(1000.0, 1.0, "as stated"))
    training = 75 * 1_281_167 / 1000
    looks = 75 * 3000 / 3000  # a forward pass of 3,000 images an epoch, at three times the rate
    views = 10 * 50_000 / 3000
    assert cost.scoring == pytest.approx((looks + views) / 3600)
    assert cost.hours == pytest.approx((training + looks + views) / 3600)


def test_dense_testing_costs_the_larger_map_and_every_windows_fc_layers():
    config = compose(["scale=paper", "model=a", "eval.protocols=[dense]", "eval.dense_s=[8]"])
    net, multiply_adds = estimates._measure_net(config)
    maps = estimates.map_side(net.features, 256)
    fc = sum(p.numel() for n, p in net.classifier.named_parameters() if n.endswith("weight"))
    windows = (maps - net.map_size + 1) ** 2
    expected = 2 * ((multiply_adds - fc) * (256 / 224) ** 2 + windows * fc) / multiply_adds
    assert windows > 1
    assert estimates._forwards(net, config, multiply_adds) == {"dense": pytest.approx(expected)}


def test_all_artefacts_together_train_what_they_share_once():
    rows = rows_of("table6", "table7", "scale=paper", tflops=400)
    shared = rows["all of them"]
    assert rows["table6"]["runs"] < rows["table7"]["runs"] == shared["runs"]
    assert shared["hours"] == rows["table7"]["hours"]
    assert math.isclose(sum(r["runs"] for r in rows.values()), 4 + 6 + 6)


def test_what_shows_anothers_measurement_costs_what_that_costs():
    rows = rows_of("figure4", "scale=paper", tflops=400)
    assert rows["figure4"]["hours"] > 0


def test_a_stated_rate_counts_before_operations():
    known = rows_of("table7", "scale=paper", tflops=400, stated={"a": 1.0})
    reckoned = rows_of("table7", "scale=paper", tflops=400)
    assert known["table7"]["hours"] > 100 * reckoned["table7"]["hours"]


def test_a_probe_trains_the_net_here():
    config = compose(["scale=smoke"])
    before = [p.clone() for p in build(["scale=smoke"]).net.parameters()]
    rate = estimates.find_rate(config, {}, None)
    assert rate.images > 0
    assert 0 < rate.memory < 1
    assert "steps of" in rate.source
    assert all(p.isfinite().all() for p in before)


def test_the_command_tells_and_writes_the_same_rows():
    words = ("estimate", "table6", "scale=paper", "--tflops", "400")
    code, out, err = call(*words, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["artefact"] for row in rows] == ["table6", "all of them"]
    assert set(rows[0]) == {"artefact", "runs", "hours", "scoring", "memory", "disk"}
    code, out, _ = call(*words)
    assert code == 0
    assert f"{rows[0]['hours']:.4g}" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scale=paper"], "imagenet: 1,281,167 training and 50,000 test images\n"),
        (["scale=quarter", "data.classes=50"],
         "tiny_imagenet: 25,000 training and 2,500 test images\n"),
        (["data=folder", "data.root=x"],
         "folder: 100,000 (assumed) training and 10,000 (assumed) test images\n"),
        (["reproduce.seeds.large=0"], "left out: figure4; it shows what table7 measures"),
    ],
)  # fmt: skip
def test_what_hours_are_of_is_told(words, said):
    """The images, and the artefacts that are left out."""
    code, out, _ = call("estimate", "all", *words, "--tflops", "400")
    assert code == 0
    assert said in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "a"], "--rate a: must be"),
        (["--rate", "a=-1"], "--rate a=-1: must be"),
        (["--rate", "a=nan"], "--rate a=nan: must be"),
        (["--rate", "vgg=10"], "choose from a, b, c"),
        (["tabel7"], "table7"),
    ],
)
def test_bad_words_are_refused_by_name(words, said):
    code, _, err = call("estimate", "table7", "scale=paper", "--tflops", "400", *words)
    assert code == 2
    assert said in err
