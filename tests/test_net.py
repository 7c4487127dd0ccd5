"""Section 2.3: the networks of Tables 1 and 3, counted, layer by layer."""

from collections import OrderedDict
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from composed import mix
from PIL import Image
from torch import nn

import delving
from delving.bench.training import build as ready
from delving.build import build_model, count_classes, materialise
from delving.config import compose
from delving.device import free_memory, memory
from delving.groups import choices
from delving.net import (
    Dropout,
    Features,
    _side_of_pooling,
    build_net,
    crowded_levels,
    describe,
    map_side,
)
from delving.notation import Layer, count_depth, read_layers
from delving.rectifier import RECTIFIERS, PReLU

PUBLISHED = Path(delving.__file__).parent / "paper" / "published.yaml"
DEPTHS = {"small14": 14, "small22": 22, "small30": 30, "vgg19": 19, "a": 19, "b": 22, "c": 22}
TINY = [{"conv1": "3x3, 4"}, {"spp": "{2,1}"}, {"fc1": "6"}, {"fc2": "classes"}]


@lru_cache
def build(*words, classes=1000):
    """A full-size net on the meta device: shapes without storage."""
    return build_model(compose(["scale=paper", *words]), classes)


def rows(*words, crop=224):
    return describe(*build(*words), crop)


def count(*words, what):
    return sum(row[what] for row in rows(*words))


@pytest.fixture(scope="module")
def published():
    return yaml.safe_load(PUBLISHED.read_text())


# Depth, cost and parameters


@pytest.mark.parametrize("model", DEPTHS)
def test_depth_counts_conv_and_fc_layers(model):
    net, layers = build(f"model={model}")
    assert count_depth(layers) == DEPTHS[model]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == DEPTHS[model]


@pytest.mark.parametrize("model", ["vgg19", "a", "b", "c"])
def test_depth_and_multiply_adds_are_table_3s(model, published):
    table = published["table3"]
    assert count_depth(build(f"model={model}")[1]) == table["depth"][model]
    adds = count(f"model={model}", "act=relu", what="multiply_adds")
    assert adds / 1e10 == pytest.approx(table["complexity_1e10"][model], rel=0.01)


@pytest.mark.parametrize(("model", "millions"), [("a", 178.0), ("b", 183.3), ("c", 330.6),
                                                 ("vgg19", 143.7)])  # fmt: skip
def test_parameters_with_relu_and_1000_classes(model, millions):
    net, _ = build(f"model={model}", "act=relu")
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert count(f"model={model}", "act=relu", what="params") / 1e6 == pytest.approx(
        millions, abs=0.05
    )


@pytest.mark.parametrize("act", choices("act"))
@pytest.mark.parametrize("model", choices("model"))
def test_the_layer_table_leaves_no_parameter_out(model, act):
    net, layers = build_model(mix("scale=paper", model=model, act=act), 1000)
    listed = sum(row["params"] for row in describe(net, layers, 224))
    assert listed == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("crop", [35, 56, 70])
@pytest.mark.parametrize("model", choices("model"))
def test_the_layer_table_has_the_outputs_of_a_forward_pass(model, crop):
    config = compose(["scale=cpu", f"model={model}", f"data.crop={crop}"])
    net, layers = build_model(config, 12)
    net, seen = net.to_empty(device="cpu").eval(), {}

    def note(name, module, inputs, output):
        seen[name.split(".")[-1]] = output.shape[1:]

    for name, module in net.named_modules():
        module.register_forward_hook(partial(note, name))
    with torch.no_grad():
        net(torch.zeros(1, 3, crop, crop))
    told = {row["name"]: row["output"] for row in describe(net, layers, crop)}
    assert told == {name: "x".join(map(str, seen[name])) for name in told}


def test_multiply_adds_of_a_layer_are_its_weights_times_its_outputs_positions():
    """conv1 of A by hand: 7 x 7 x 3 weights a filter, 96 filters, 112 x 112 positions."""
    first, *_, last = rows("model=a", "act=relu")
    assert first["multiply_adds"] == 7 * 7 * 3 * 96 * 112 * 112
    assert first["params"] == 7 * 7 * 3 * 96 + 96
    assert last["multiply_adds"] == 4096 * 1000


# Slopes


def test_small14_shared_has_the_13_extra_parameters_of_section_2_1():
    slopes = build("model=small14", "act=prelu_shared")[0].slopes()
    convs = ["conv1", *[f"conv2_{i}" for i in range(1, 5)], *[f"conv3_{i}" for i in range(1, 7)]]
    assert list(slopes) == [*convs, "fc1", "fc2"]
    assert sum(s.numel() for s in slopes.values()) == 13
    with_relu = count("model=small14", "act=relu", what="params")
    assert count("model=small14", "act=prelu_shared", what="params") == with_relu + 13


def test_slopes_are_named_as_the_rows_of_table_1(published):
    assert list(build("model=small14", "act=prelu")[0].slopes()) == list(published["table1"])


def slopes_with(monkeypatch, rectifier):
    """The slopes of small14 with a rectifier of the user's own."""
    monkeypatch.setitem(RECTIFIERS, "prelu", rectifier)
    return build.__wrapped__("model=small14", "act=prelu")[0].slopes()


def test_a_slope_within_a_rectifier_of_several_modules_is_its_layers(monkeypatch):
    def capped(channels, slope):
        return nn.Sequential(PReLU(channels, slope), nn.Hardtanh(-6, 6))

    assert list(slopes_with(monkeypatch, capped)) == list(slopes_with(monkeypatch, PReLU))


def test_slopes_are_those_of_prelu_and_of_classes_derived_from_it(monkeypatch):
    class Ours(PReLU):
        pass

    assert list(slopes_with(monkeypatch, Ours)) == list(slopes_with(monkeypatch, PReLU))
    assert slopes_with(monkeypatch, lambda channels, slope: nn.PReLU(channels)) == {}


@pytest.mark.parametrize("act", ["relu", "lrelu"])
def test_a_slope_that_is_not_learned_is_none_of_the_nets_slopes(act):
    assert build("model=small14", f"act={act}")[0].slopes() == {}


@pytest.mark.parametrize("model", choices("model"))
def test_channel_wise_every_layer_has_a_slope_a_channel(model):
    net, layers = build(f"model={model}", "act=prelu")
    widths = {x.name: x.filters for x in layers if x.kind in ("conv", "fc") and x.filters}
    assert {name: s.numel() for name, s in net.slopes().items()} == widths


# Shapes layer by layer

SMALL14_AT_224 = (
    "conv1 64x112x112, pool1 64x37x37, "
    "conv2_1 128x36x36, conv2_2 128x37x37, conv2_3 128x36x36, conv2_4 128x37x37, pool2 128x18x18, "
    "conv3_1 256x17x17, conv3_2 256x18x18, conv3_3 256x17x17, conv3_4 256x18x18, "
    "conv3_5 256x17x17, conv3_6 256x18x18, spp 12800, fc1 4096, fc2 4096, fc3 1000"
)
SMALL14_AT_56 = (
    "conv1 64x56x56, pool1 64x18x18, "
    "conv2_1 128x17x17, conv2_2 128x18x18, conv2_3 128x17x17, conv2_4 128x18x18, pool2 128x9x9, "
    "conv3_1 256x8x8, conv3_2 256x9x9, conv3_3 256x8x8, conv3_4 256x9x9, "
    "conv3_5 256x8x8, conv3_6 256x9x9, spp 12800, fc1 4096, fc2 4096, fc3 1000"
)
A_AT_224 = ", ".join(
    [
        "conv1 96x112x112, pool1 96x56x56",
        *[f"conv2_{i} 256x56x56" for i in range(1, 6)],
        "pool2 256x28x28",
        *[f"conv3_{i} 512x28x28" for i in range(1, 6)],
        "pool3 512x14x14",
        *[f"conv4_{i} 512x14x14" for i in range(1, 6)],
        "spp 32256, fc1 4096, fc2 4096, fc3 1000",
    ]
)


@pytest.mark.parametrize(
    ("words", "crop", "expected"),
    [
        (("model=small14",), 224, SMALL14_AT_224),
        (("model=small14", "model.stem_stride=1", "data.crop=56"), 56, SMALL14_AT_56),
        (("model=a",), 224, A_AT_224),
    ],
)
def test_shapes_layer_by_layer(words, crop, expected):
    found = ", ".join(f"{row['name']} {row['output']}" for row in rows(*words, crop=crop))
    assert found == expected


@pytest.mark.parametrize(
    ("model", "size"),
    [("small14", 18), ("small30", 18), ("a", 14), ("b", 14), ("c", 14), ("vgg19", 7), ("vgg_b", 7)],
)
def test_the_last_map_is_as_large_as_the_paper_says(model, size):
    """He & Sun: stage 3 is 18x18, which {6,3,2,1} divides; Table 3: 14x14 windows."""
    assert build(f"model={model}")[0].map_size == size


def test_an_spp_level_with_as_many_bins_as_cells_is_told():
    assert crowded_levels(build("model=a")[0]) == []
    assert crowded_levels(build("model=a", "data.crop=56", "model.stem_stride=1")[0]) == [7]
    assert crowded_levels(build("model=vgg19")[0]) == []  # reads its map cell by cell by design


@pytest.mark.parametrize(
    ("convs", "sides"),
    [
        ("2x2, 4, x2", [13, 14, 7, 6, 7]),  # the first shrinks the map, the second restores it
        ("2x2, 4, x3", [13, 14, 13, 6, 5, 6]),  # the count starts anew after pooling
    ],
)
def test_of_even_filters_every_second_of_a_stage_is_padded(convs, sides):
    layers = read_layers([{"conv1": convs}, {"pool1": "2x2, /2"}, {"conv2": "2x2, 4, x2"},
                          {"spp": "{1}"}, {"fc1": "classes"}])  # fmt: skip
    net = build_net(layers, partial(RECTIFIERS["relu"], slope=0), classes=2, crop=14)
    maps = [row["output"] for row in describe(net, layers, 14) if row["name"] not in ("spp", "fc1")]
    assert maps == [f"4x{side}x{side}" for side in sides]


def test_padding_counts_where_a_filter_is_larger_than_its_map():
    """A 7x7 filter, with three cells of padding, fits a map of a single cell."""
    seven, window = nn.Conv2d(3, 4, 7, 1, 3), nn.MaxPool2d(3, 2)
    assert map_side([seven], 1) == 1
    assert map_side([seven, window], 2) == 0  # a pooling window has no padding


def test_classes_that_nothing_else_tells_are_counted_where_the_images_lie(tmp_path):
    words = ["scale=smoke", "data=folder", "data.classes=null"]
    assert count_classes(compose(words)) == 1000  # ImageNet's
    for split in ("train", "val"):
        for name in "abc":
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / split / name / "x.png")
    assert count_classes(compose([*words, f"data.root={tmp_path}"])) == 3
    assert count_classes(compose([*words, f"data.root={tmp_path}", "data.classes=2"])) == 2


@pytest.mark.parametrize(("name", "whole"), [("tiny_imagenet", 200), ("imagenet", 1000)])
def test_a_part_of_a_known_data_set_has_the_classes_that_lie_there(tmp_path, name, whole):
    words = ["scale=smoke", f"data={name}", "data.classes=null"]
    assert count_classes(compose(words)) == whole
    nowhere = tmp_path / "nowhere"  # reported once the images are needed
    assert count_classes(compose([*words, f"data.root={nowhere}"])) == whole
    pictures = ["train/n01/images/a.JPEG", "train/n02/images/b.JPEG", "val/images/c.JPEG"]
    for path in (tmp_path / name for name in pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "val/val_annotations.txt").write_text("c.JPEG\tn02\t0\t0\t9\t9\n")
    assert count_classes(compose([*words, f"data.root={tmp_path}"])) == 2


def test_the_layer_table_leaves_the_net_as_it_was():
    layers = read_layers(TINY)
    net = build_net(layers, partial(RECTIFIERS["relu"], slope=0), classes=2, crop=7)
    for training in (True, False):
        describe(net.train(training), layers, 7)
        assert all(m.training == training for m in net.modules())
    assert not any(m._forward_hooks for m in net.modules())


# A layer's bias


@pytest.mark.parametrize("hooked", [0, 1])
def test_who_looks_at_a_conv_layer_or_its_rectifier_alone_sees_its_own_input_and_output(hooked):
    """The rectifier adds the conv layer's bias in its own pass, unless a hook watches either."""
    conv, act = nn.Conv2d(3, 4, 3), RECTIFIERS["relu"](4, slope=0)
    y = conv(x := torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
    seen = []
    [conv, act][hooked].register_forward_hook(lambda module, x, y: seen.append((*x, y)))
    Features(OrderedDict(conv1=conv, conv1_act=act))(x)
    [found] = seen  # (input, output)
    torch.testing.assert_close(found, [(x, y), (y, y.relu())][hooked])


def test_a_class_derived_of_prelu_may_have_a_forward_of_its_own():
    class Capped(PReLU):
        def forward(self, y):
            return super().forward(y).clamp(max=1)

    conv, act = nn.Conv2d(3, 4, 3), Capped(4, 0.25)
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    found = Features(OrderedDict(conv1=conv, conv1_act=act, pool1=nn.MaxPool2d(2, 2)))(x)
    torch.testing.assert_close(found, F.max_pool2d(act(conv(x)), 2))


def test_without_a_key_dropout_is_torchs():
    """As when someone trains a run's net further in a loop of their own."""
    x = torch.ones(1, 10_000)
    out = Dropout(0.5).train()(x)
    assert sorted(set(out.unique().tolist())) == [0.0, 2.0]
    assert abs(out.mean().item() - 1) < 0.05
    assert torch.equal(Dropout(0.5).eval()(x), x)


# Small-N


def test_small_n_lengthens_the_last_stage_and_is_small30_at_30():
    assert rows("model=small14", "model.depth=30") == rows("model=small30")


def test_small_n_differs_from_small14_by_convs_of_256_filters_alone():
    small14, small16 = rows("model=small14"), rows("model=small16")
    more = [row for row in small16 if row["name"] not in {r["name"] for r in small14}]
    assert [row["name"] for row in more] == ["conv3_7", "conv3_8"]
    assert {row["notation"] for row in more} == {"2x2, 256"}
    assert [row for row in small16 if row not in more] == small14


def test_a_depth_below_the_list_is_refused():
    with pytest.raises(ValueError, match=r"depth=13.*at least 14"):
        build("model=small14", "model.depth=13")


# Rectifiers: after each conv and hidden fc layer, never on the logits


@pytest.mark.parametrize("act", RECTIFIERS)
@pytest.mark.parametrize("model", choices("model"))
def test_a_rectifier_follows_every_layer_but_the_classifier(model, act):
    net, _ = build_model(mix("scale=paper", model=model, act=act), 1000)
    kind = type(RECTIFIERS[act](1, 0.25))
    chain = [*net.features, *net.classifier]
    weighted = [i for i, m in enumerate(chain) if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(isinstance(chain[i + 1], kind) for i in weighted[:-1])
    assert weighted[-1] == len(chain) - 1
    assert sum(isinstance(m, kind) for m in net.modules()) == len(weighted) - 1


@pytest.mark.parametrize("model", choices("model"))
def test_logits_are_linear_in_the_classifiers_weights(model):
    """They have either sign, with ReLU too, and change it when the weights do."""
    config = compose(["scale=smoke", "data.crop=56", f"model={model}", "act=relu"])
    net = materialise(build_model(config, 10)[0], config, torch.device("cpu")).eval()
    x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = net(x)
        net.classifier[-1].weight.neg_()
        assert logits.min() < 0 < logits.max()
        torch.testing.assert_close(net(x), -logits)


def test_dropout_is_on_the_first_two_fc_layers():
    layers = build("model=c", "train.dropout=0.3")[0].classifier.named_children()
    assert {name: m.p for name, m in layers if hasattr(m, "p")} == {
        "fc1_drop": 0.3,
        "fc2_drop": 0.3,
    }


# The notation, and the knobs


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conv1", "7x5, 64"),
        ("conv1", "7x7"),
        ("conv1", "7x7,64"),
        ("conv1", "7x7, 64, x"),
        ("pool1", "3x3"),
        ("pool1", "3x2, /2"),
        ("spp", "7,3,2,1"),
        ("spp", "{}"),
        ("fc1", "many"),
        ("fc1", "-3"),
    ],
)
def test_what_is_not_in_the_papers_notation_is_refused_by_name(name, text):
    with pytest.raises(ValueError, match="paper's notation") as refusal:
        read_layers([{name: text}])
    assert name in str(refusal.value)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("name", ["norm1", "res2", "stem", "1"])
def test_a_layer_of_a_name_that_tells_no_kind_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=f"layer {name}: .* one of conv, pool, spp, fc, and a num"):
        read_layers([{name: "3x3, 64"}])


@pytest.mark.parametrize("model", choices("model"))
def test_the_layer_table_prints_the_notation_it_was_read_from(model):
    layers = build(f"model={model}")[1]
    assert read_layers([{x.name: x.notation} for x in layers]) == layers


def test_a_repeated_layer_is_numbered_from_one():
    layers = read_layers([{"conv2": "2x2, 128, /2, x3"}])
    assert layers == [Layer(f"conv2_{i}", "conv", 2, 128, 2) for i in (1, 2, 3)]


def test_width_multiplies_conv_filters_and_fc_units_but_not_the_classes():
    layers = build("model=small14", "model.width=0.25", classes=10)[1]
    assert [x.filters for x in layers if x.kind in ("conv", "fc")] == [
        *[16, 32, 32, 32, 32], *[64] * 6, 1024, 1024, 0,
    ]  # fmt: skip
    assert rows("model=small14", "model.width=0.25")[-1]["output"] == "1000"


def test_width_never_leaves_a_layer_without_filters():
    layers = read_layers(TINY, width=0.001)
    assert [x.filters for x in layers] == [1, 0, 1, 0]


def test_stem_stride_changes_the_first_layer_alone():
    usual, ours = build("model=a")[1], build("model=a", "model.stem_stride=1")[1]
    assert (usual[0].stride, ours[0].stride) == (2, 1)
    assert usual[1:] == ours[1:]


@pytest.mark.parametrize("classes", [2, 200])
def test_the_number_of_classes_is_a_knob(classes):
    net = build_net(
        read_layers(TINY), partial(RECTIFIERS["relu"], slope=0), classes=classes, crop=7
    )
    assert net.eval()(torch.empty(3, 3, 7, 7, device="meta")).shape == (3, classes)


def test_a_crop_too_small_for_the_layers_is_refused_with_the_smallest_that_fits():
    with pytest.raises(ValueError, match=r"data\.crop=28 .* at least 35"):
        build_model(compose(["scale=cpu", "model=vgg19"]), 12)
    net, _ = build_model(compose(["scale=cpu", "model=vgg19", "data.crop=35"]), 12)
    assert net.map_size == 1


def test_layers_that_no_crop_is_large_enough_for_are_refused():
    layers = read_layers([{"conv1": "3x3, 4"}, *({f"pool{i}": "3x3, /3"} for i in range(7)),
                          {"fc1": "classes"}])  # fmt: skip
    with pytest.raises(ValueError, match=r"data\.crop=224 is too small for these layers$"):
        build_net(layers, partial(RECTIFIERS["relu"], slope=0), classes=10, crop=224)


# What fits


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/job_7/step_0", "job_7/memory.max"),
        ("4:cpu,memory:/job_7/step_0", "memory/job_7/memory.limit_in_bytes"),
    ],
)
def test_a_jobs_limit_counts_where_it_is_less_than_the_machines_memory(tmp_path, line, file):
    (tmp_path / "cgroup").write_text(f"3:cpuset:/\n{line}\n")
    (tmp_path / file).parent.mkdir(parents=True)
    whole = memory(tmp_path / "nowhere", tmp_path)
    assert whole > 2**28
    for limit, usable in (("max\n", whole), (f"{2**60}\n", whole), (f"{2**28}\n", 2**28)):
        (tmp_path / file).write_text(limit)
        assert memory(tmp_path / "cgroup", tmp_path) == usable


def test_free_memory_is_what_the_system_tells_and_never_more_than_there_is(tmp_path):
    told, alone = tmp_path / "meminfo", tmp_path / "no groups"
    assert free_memory(told, alone) == memory(alone) * 3 // 4
    told.write_text("MemTotal: 8000000 kB\nMemFree: 5 kB\nMemAvailable:   262144 kB\n")
    assert free_memory(told, alone) == 2**28
    told.write_text(f"MemAvailable: {2**60} kB\n")
    assert free_memory(told, alone) == memory(alone)
    assert 0 <= free_memory() <= memory()


V1 = ("4:memory:/job", "memory/job", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = ("0::/job", "job", "memory.max", "memory.current", "")


@pytest.mark.parametrize(("line", "place", "limit", "used", "all_of"), [V1, V2])
def test_what_a_container_uses_is_not_free_but_the_files_it_has_read_are(
    tmp_path, line, place, limit, used, all_of
):
    """Of a limit of 128 MB 96 are used, 16 of those by files that were read."""
    (tmp_path / "cgroup").write_text(line)
    (tmp_path / place).mkdir(parents=True)
    own = "".join(f"{kind}active_file {2**20}\n" for kind in ("", "in")) if all_of else ""
    files = "".join(f"{all_of}{kind}active_file {2**23}\n" for kind in ("", "in"))
    for name, text in ((limit, 2**27), (used, 3 * 2**25), ("memory.stat", own + files)):
        (tmp_path / place / name).write_text(f"{text}\n")
    told = tmp_path / "meminfo"
    told.write_text(f"MemAvailable: {2**50} kB\n")
    assert free_memory(told, tmp_path / "cgroup", tmp_path) == 3 * 2**24
    (tmp_path / place / used).write_text(f"{2**28}\n")  # a limit that was lowered
    assert free_memory(told, tmp_path / "cgroup", tmp_path) == 0


def test_numbers_of_fp64_take_twice_the_memory(monkeypatch):
    words, device = ["scale=smoke", "device=cpu"], torch.device("cpu")
    net, _ = build_model(compose(words), 12)
    need = sum(p.numel() for p in net.parameters())
    monkeypatch.setattr("delving.device.memory", lambda: 6 * need)
    materialise(net, compose(words), device)
    wide = compose([*words, "precision=fp64"])
    net, _ = build_model(wide, 12)  # it is only looked at
    with pytest.raises(ValueError, match="in fp64; this machine has"):
        materialise(net, wide, device)
    monkeypatch.setattr("delving.device.memory", lambda: 1.5 * need)
    build_model(compose(words), 12)
    with pytest.raises(ValueError, match="in fp64; this machine has"):
        build_model(wide, 12)


HOOKS = ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
         "register_full_backward_pre_hook")  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
def test_every_layer_that_is_hooked_is_called(hook):
    """Conv layers hand their biases on, and rectifiers pool, only where no hook is watching."""
    net = ready(["scale=smoke", "model=small14", "device=cpu"]).net.eval()
    seen = []
    for name, layer in net.features.named_children():
        getattr(layer, hook)(lambda *_, name=name: seen.append(name))
    net(torch.randn(2, 3, 28, 28, requires_grad=True)).sum().backward()
    assert set(seen) == {name for name, _ in net.features.named_children()}


@pytest.mark.parametrize("name", ["conv1", "conv1_act", "pool1"])
def test_a_layer_with_a_forward_of_its_own_is_called_by_it(name):
    net = ready(["scale=smoke", "model=small14", "device=cpu"]).net.eval()
    layer, seen = getattr(net.features, name), []
    usual = layer.forward
    layer.forward = lambda *x: seen.append(name) or usual(*x)
    net(torch.randn(2, 3, 28, 28))
    assert seen == [name]


def test_only_small_square_windows_side_by_side_are_pooled_with_the_rectifier():
    assert _side_of_pooling(nn.MaxPool2d(3)) == 3
    others = (nn.MaxPool2d((2, 2), (2, 2)), nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 2, 1),
              nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(17),
              nn.AvgPool2d(2), None)  # fmt: skip
    assert {_side_of_pooling(other) for other in others} == {None}
