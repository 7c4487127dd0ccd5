"""`delving estimate`: its figures, worked out by hand, and a probe that really trains."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from calling import call

from delving import estimate as estimates
from delving.bench.training import build
from delving.build import build_model
from delving.config import compose, compose_detect
from delving.cost import DRAWN, FIXED, reckon_delivery
from delving.estimate import Cost, Rate, cost_of, cost_of_detection, estimate
from delving.net import describe
from delving.plan import make_plan


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


def test_a_net_that_is_faster_than_its_loader_waits_for_images():
    """In training and in testing, which decodes each image once per protocol."""
    config = compose(["scale=paper", "model=small14", "eval.protocols=[center,ten_view]"])
    waiting = cost_of(config, Rate(1e6, 1.0, "", delivered=1000.0))
    assert waiting.scoring == pytest.approx(2 * 50_000 / 1000 / 3600)
    assert waiting.hours == pytest.approx(75 * 1_281_167 / 1000 / 3600 + waiting.scoring)
    ahead = Rate(10.0, 1.0, "", delivered=1000.0)
    assert cost_of(config, ahead) == cost_of(config, dataclasses.replace(ahead, delivered=math.inf))


@pytest.mark.parametrize(
    ("words", "here", "delivered"),
    [
        (["model=a"], False, 16 * DRAWN),
        (["model=a", "data.workers=4"], False, 4 * DRAWN),
        (["model=small14"], False, 16 * FIXED),  # s = 256: less of an image is cropped away
        (["model=small14"], True, 6 * FIXED),
        (["model=small14", "data=tiny_imagenet"], True, math.inf),  # 64 pixels, or kept
    ],
)
def test_images_come_from_as_many_processes_as_there_will_be(words, here, delivered, monkeypatch):
    monkeypatch.setattr("delving.data.loader.count_cores", lambda: 8)
    assert reckon_delivery(compose(["scale=paper", *words]), here=here)[0] == delivered


def test_a_gpu_here_has_its_loader_processes_whatever_way_they_are_started(monkeypatch):
    """Where they are not forked, a training on a CPU starts none."""
    monkeypatch.setattr("delving.data.loader.count_cores", lambda: 8)
    monkeypatch.setattr("delving.data.loader.start_method", lambda: "spawn")
    for gpu, processes in ((True, 6), (False, 1)):
        monkeypatch.setattr("delving.cost.is_for_a_gpu", lambda device, gpu=gpu: gpu)
        assert reckon_delivery(compose(["scale=paper"]), here=True)[1] == processes


def test_a_net_that_waits_is_told_and_a_stated_loader_counts():
    said = []
    rows = estimate(["figure3"], ["scale=paper"], tflops=400.0, loader=1000.0, say=said.append)
    assert "small30: waits for images, 1,000 a second, as stated" in said
    training = 2 * 75 * 1_281_167 / 1000 / 3600
    assert rows[-1]["hours"] == pytest.approx(training + rows[-1]["scoring"], rel=1e-3)


def test_nets_side_by_side_that_see_the_same_images_wait_for_them_once():
    """figure3 has two arms of one seed, so that a third job would find no third net to run."""
    words, said = ["scale=paper"], []
    about = {"tflops": 400.0, "loader": 1000.0}
    [alone, _] = estimate(["figure3"], words, **about, say=said.append)
    assert not any("--jobs" in line for line in said)
    [both, _] = estimate(["figure3"], words, **about, jobs=3, say=said.append)
    assert said[-1] == "nets that wait: up to 2 at once share what is delivered (--jobs 3)"
    training = [row["hours"] - row["scoring"] for row in (alone, both)]
    assert training[0] / training[1] == pytest.approx(2, rel=1e-3)
    seeds = [*words, "reproduce.seeds.deep=2"]
    [more, _] = estimate(["figure3"], seeds, **about, jobs=4, say=said.append)
    assert more["hours"] == pytest.approx(2 * both["hours"], rel=1e-3)


def test_nets_that_keep_step_with_their_loader_share_the_device():
    rate = Rate(1500.0, 1.0, "", delivered=1000.0, together=2)
    config = compose(["scale=paper", "model=small14"])
    assert cost_of(config, rate).hours == pytest.approx(
        75 * 1_281_167 / 1500 / 3600 + cost_of(config, rate).scoring
    )


def test_in_training_no_more_images_are_looked_at_than_there_are():
    """100 validation images, looked at in every third of 75 epochs."""
    words = ["data.val_images=100", "eval.every=3", "eval.protocols=[center]"]
    cost = cost_of(compose(["scale=paper", "model=small14", *words]), Rate(1000.0, 1.0, ""))
    assert cost.scoring == pytest.approx((25 * 100 + 100) / 3000 / 3600)


def test_a_disk_holds_a_runs_last_checkpoint_and_every_protocols_probabilities():
    """Weights and momenta take four bytes each, a class's probability two."""
    words = ["eval.protocols=[ten_view,dense]", "eval.dense_s=[8,12]", "data.val_images=500"]
    config = compose(["scale=paper", "model=small14", *words])
    params = sum(p.numel() for p in estimates._measure_net(config)[0].parameters())
    scored = 4  # ten_view, dense@256, dense@384, and both averaged
    cost, checkpoint = cost_of(config, Rate(1.0, 1.0, "")), 2 * 4 * params
    assert cost.checkpoint == pytest.approx(checkpoint / 1e9)
    assert cost.disk == pytest.approx((checkpoint + scored * 500 * 1000 * 2) / 1e9)


def test_a_rate_that_is_reckoned_is_of_operations_and_its_memory_of_weights_and_responses():
    """A multiply-add is two operations; weights, gradients and momentum take four bytes each."""
    config = compose(["scale=smoke"])
    net, multiply_adds = estimates._measure_net(config)
    rate = estimates.find_rate(config, {}, 0.5)
    assert rate.images == pytest.approx(0.5e12 / (2 * 3 * multiply_adds))
    assert rate.source == "at 0.5 TFLOP/s"
    _, layers = build_model(config, net.classifier[-1].out_features)
    shapes = [row["output"].split("x") for row in describe(net, layers, config.data.crop)]
    responses = config.train.batch * sum(math.prod(map(int, shape)) for shape in shapes)
    weights = sum(p.numel() for p in net.parameters())
    assert rate.memory == pytest.approx((3 * 4 * weights + 2 * responses) / 1e9)


@pytest.mark.parametrize(("jobs", "memory", "disk"), [(1, 4, 19), (2, 7, 25), (3, 7, 25)])
def test_hours_and_disks_add_up_but_memory_is_taken_by_those_side_by_side(jobs, memory, disk):
    """So is the disk for two more checkpoints: the one before, and the one being written."""
    costs = {"a": Cost(1.0, 0.5, 3.0, 5.0, 3.0), "b": Cost(2.0, 0.25, 4.0, 6.0, 4.0)}
    assert estimates._row("table9", ["a", "b"], costs, jobs) == {
        "artefact": "table9", "runs": 2, "hours": 3.0, "scoring": 0.75, "memory": memory,
        "disk": disk,
    }  # fmt: skip


def test_dense_testing_costs_the_larger_map_and_every_windows_fc_layers():
    """At each scale for the image and its mirror image."""
    config = compose(["scale=paper", "model=a", "eval.protocols=[dense]", "eval.dense_s=[8,12]"])
    net, multiply_adds = estimates._measure_net(config)
    fc = sum(p.numel() for n, p in net.classifier.named_parameters() if n.endswith("weight"))
    expected = 0
    for side in (256, 384):
        windows = (estimates.map_side(net.features, side) - net.map_size + 1) ** 2
        assert windows > 1
        expected += 2 * ((multiply_adds - fc) * (side / 224) ** 2 + windows * fc) / multiply_adds
    assert estimates._forwards(net, config, multiply_adds) == {"dense": pytest.approx(expected)}


# --- detections ---
@pytest.mark.parametrize(
    ("words", "area", "images"),
    [
        ([], 600 * 800, 4952),  # VOC's images are 4 to 3
        (["detect.longest=700", "detect.test_images=100"], 600 * 700, 100),
    ],
)
def test_a_detection_costs_whole_images_convs_and_every_rois_fc_layers(words, area, images):
    """40,000 steps of two images with 64 RoIs each; then forward passes of 2,000 RoIs an image."""
    config = compose(["scale=paper", "model=small14"])
    net, multiply_adds = estimates._measure_net(config)
    fc = sum(p.numel() for n, p in net.classifier.named_parameters() if n.endswith("weight"))
    convs = (multiply_adds - fc) * area / 224**2
    training = 40_000 * 2 * (convs + 64 * fc) / multiply_adds
    testing = images * (convs + 2000 * fc) / multiply_adds / 3
    cost = cost_of_detection(config, compose_detect("paper", words), Rate(1000.0, 7.0, ""))
    assert cost.hours == pytest.approx((training + testing) / 1000 / 3600)
    assert cost.scoring == pytest.approx(testing / 1000 / 3600)
    assert cost.memory == 7


def test_an_artefact_of_detections_has_one_of_each_run():
    plan = make_plan(["detection", "figure1"], ["scale=smoke"], need_data=False)
    runs = [run for names in plan.arms["detection"].values() for run in names]
    wanted = [*runs, *(f"{run} detection" for run in runs)]
    assert list(estimates._runs_of(plan, "detection")) == wanted
    assert not [run for run in estimates._runs_of(plan, "figure1") if run.endswith("detection")]


def test_a_detection_here_is_reckoned_by_the_rate_of_its_runs_training():
    plan = make_plan(["detection"], ["scale=smoke"], need_data=False)
    run, config = next(iter(plan.runs.items()))
    rate = Rate(1000.0, 0.0, "")  # any rate, the same for both
    trained = cost_of(config, rate)
    detected = cost_of_detection(config, compose_detect("smoke", []), rate)
    expected = plan.estimate(run) * detected.hours / (trained.hours - trained.scoring)
    assert estimates.estimate_detection(plan, run) == pytest.approx(expected)


# --- of many runs ---
def test_all_artefacts_together_train_what_they_share_once():
    rows = rows_of("table6", "table7", "scale=paper", tflops=400)
    shared = rows["all of them"]
    assert rows["table6"]["runs"] < rows["table7"]["runs"] == shared["runs"]
    assert shared["hours"] == rows["table7"]["hours"]
    assert math.isclose(sum(r["runs"] for r in rows.values()), 4 + 6 + 6)


def test_a_detection_adds_its_hours_but_is_no_further_run():
    rows = rows_of("detection", "scale=paper", tflops=400)
    plan = make_plan(["detection"], ["scale=paper"], need_data=False)
    training = sum(cost_of(c, estimates.find_rate(c, {}, 400)).hours for c in plan.runs.values())
    for row in rows.values():
        assert row["runs"] == len(plan.runs)
        assert row["hours"] > training


def test_what_shows_anothers_measurement_costs_what_that_costs():
    rows = rows_of("figure4", "scale=paper", tflops=400)
    assert rows["figure4"]["hours"] > 0


def test_a_stated_rate_counts_before_operations():
    known = rows_of("table7", "scale=paper", tflops=400, stated={"a": 1.0})
    reckoned = rows_of("table7", "scale=paper", tflops=400)
    assert known["table7"]["hours"] > 100 * reckoned["table7"]["hours"]


def test_a_rate_may_be_stated_of_one_of_several_models(monkeypatch):
    runs = {model: compose(["scale=smoke", f"model={model}"]) for model in ("small14", "small16")}
    plan = SimpleNamespace(runs=runs, requests={}, left_out={}, detectors=list)
    monkeypatch.setattr(estimates, "make_plan", lambda *_, **__: plan)
    said = []
    estimate([], [], stated={"small16": 5.0}, tflops=100, say=said.append)
    assert said[-2].endswith(" images/s, at 100 TFLOP/s")
    assert said[-1] == "small16: 5.0 images/s, as stated"


def test_loaders_are_reckoned_here_for_the_models_that_are_timed_here(monkeypatch):
    runs = {model: compose(["scale=smoke", f"model={model}"]) for model in ("small14", "small16")}
    plan = SimpleNamespace(runs=runs, requests={}, left_out={}, detectors=list)
    monkeypatch.setattr(estimates, "make_plan", lambda *_, **__: plan)
    monkeypatch.setattr(estimates, "probe", lambda bench: Rate(1.0, 0.0, "timed"))
    asked = {}

    def reckon(config, here):
        asked[config.model.name] = here
        return math.inf, 0

    monkeypatch.setattr(estimates, "reckon_delivery", reckon)
    estimate([], [], stated={"small16": 5.0}, say=lambda line: None)
    assert asked == {"small14": True, "small16": False}


def test_a_probe_trains_the_net_here():
    config = compose(["scale=smoke"])
    before = [p.clone() for p in build(["scale=smoke"]).net.parameters()]
    rate = estimates.find_rate(config, {}, None)
    assert rate.images > 0
    assert 0 < rate.memory < 1
    assert "steps of" in rate.source
    assert all(p.isfinite().all() for p in before)


def test_a_probe_takes_as_many_steps_as_fit_and_reckons_the_whole_batchs_memory(monkeypatch):
    """Steps of 2 s: 15 fit into 30 s. Memory beyond that of the weights grows with the images."""
    seconds = iter([2.0, 45.0])
    monkeypatch.setattr(estimates, "seconds_each", lambda *_, **__: next(seconds))
    monkeypatch.setattr(estimates, "memory_of", lambda bench: 3e9)
    bench = SimpleNamespace(
        net=torch.nn.Linear(10, 25, bias=False), device=None,
        batch=SimpleNamespace(labels=[0] * 16), config=compose(["scale=smoke", "train.batch=64"]),
    )  # fmt: skip
    weights = 3 * 4 * 250
    wanted = Rate(16 / 3, (weights + (3e9 - weights) * 64 / 16) / 1e9, "15 steps of 16 here")
    assert estimates.probe(bench) == wanted


def test_a_step_longer_than_a_probe_is_taken_once(monkeypatch):
    seconds = iter([64.0])
    monkeypatch.setattr(estimates, "seconds_each", lambda *_, **__: next(seconds))
    monkeypatch.setattr(estimates, "memory_of", lambda bench: 3e9)
    bench = SimpleNamespace(
        net=torch.nn.Linear(10, 25, bias=False), device=None,
        batch=SimpleNamespace(labels=[0] * 16), config=compose(["scale=smoke"]),
    )  # fmt: skip
    rate = estimates.probe(bench)
    assert (rate.images, rate.source) == (0.25, "1 steps of 16 here")


def test_a_probe_of_a_plan_gives_each_runs_seconds_with_its_scoring(monkeypatch):
    plan, rate = make_plan(["figure1"], ["scale=smoke"], need_data=False), Rate(50.0, 1.0, "")
    monkeypatch.setattr(estimates, "find_rate", lambda *_: rate)
    assert estimates.probe_seconds(plan, lambda line: None) == {
        run: 3600 * cost_of(config, rate).hours for run, config in plan.runs.items()
    }


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
    ("hours", "told"),
    [(41_240.0, "41,240 h"), (1000.0, "1,000 h"), (920.7, "920.7 h"), (1.0, "1 h"),
     (0.25, "15 min"), (0.0008, "2.88 s"), (0.0, "0 s")],
)  # fmt: skip
def test_the_table_tells_times_in_a_fitting_unit_and_sizes_without_powers(hours, told, monkeypatch):
    row = {"artefact": "table9", "runs": 2, "hours": hours, "scoring": hours, "memory": 0.02,
           "disk": 12_340.0}  # fmt: skip
    monkeypatch.setattr(estimates, "estimate", lambda *_, **__: [row])
    code, out, _ = call("estimate", "table2", "scale=paper")
    assert code == 0
    assert out.splitlines()[-1].split(" GB")[0].split() == [
        "table9", "2", *told.split(), *told.split(), "0.02"]  # fmt: skip
    assert out.endswith(" 12,340 GB\n")


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
    """The number of images, and the artefacts that are left out."""
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
