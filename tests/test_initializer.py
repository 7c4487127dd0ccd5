"""Section 2.2: the stds of Eq. 10, 14 and 15, and what they are for: the signal keeps its size."""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from composed import build_act, mix, slope_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import gain
from torch import nn

import delving
from delving.build import build_model, materialise
from delving.config import compose
from delving.groups import choices
from delving.initializer import (
    INITIALIZERS,
    RANGES,
    fans,
    gaussian,
    give_storage,
    he,
    he_backward,
    initialize,
    layer_stds,
    start,
    xavier,
)  # fmt: skip
from delving.notation import read_layers
from delving.rectifier import RECTIFIERS

PUBLISHED = Path(delving.__file__).parent / "paper" / "published.yaml"
CPU = torch.device("cpu")
few = settings(max_examples=30)
counts, slopes = st.integers(1, 10_000), st.floats(-2, 2, allow_subnormal=False)


def rule_of(config):
    return (INITIALIZERS | {"gaussian": gaussian(config.init.std)})[config.init.name]


@lru_cache
def read_config(*words):
    return compose(["scale=smoke", "data.crop=56", *words])


def build(*words, classes=10):
    """A tiny net of the given model, rectifier and initialiser, on the meta device."""
    return build_model(read_config(*words), classes)[0]


def weight_layers(net):
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.fixture(scope="module")
def text():
    return yaml.safe_load(PUBLISHED.read_text())["text"]


# The formulas


@few
@given(n=counts, other=counts, a=slopes)
def test_he_solves_equation_10_with_equation_15s_factor(n, other, a):
    assert gain(a) * n * he(n, other, a) ** 2 == pytest.approx(1)


@few
@given(nhat=counts, other=counts, a=slopes)
def test_he_backward_solves_equation_14_with_equation_15s_factor(nhat, other, a):
    assert gain(a) * nhat * he_backward(other, nhat, a) ** 2 == pytest.approx(1)


@few
@given(n=counts, nhat=counts, a=slopes)
def test_xavier_ignores_the_rectifier_and_is_the_linear_case_of_he(n, nhat, a):
    assert n * xavier(n, nhat, a) ** 2 == pytest.approx(1)
    assert xavier(n, nhat, a) == pytest.approx(he(n, nhat, 1.0))


@few
@given(n=counts, nhat=counts, a=slopes)
def test_gaussian_is_one_std_for_every_layer(n, nhat, a):
    assert gaussian(0.01)(n, nhat, a) == 0.01


def test_fans_are_k_squared_times_the_channels_of_either_side():
    assert fans(nn.Conv2d(64, 96, 7)) == (49 * 64, 49 * 96)
    assert fans(nn.Linear(512, 10)) == (512, 10)


# The text's example: VGG's model B, ten 3x3 conv layers


def vgg_b_stds():
    convs = [x for x in read_layers(compose(["scale=paper", "model=vgg_b"]).model.layers)
             if x.kind == "conv"]  # fmt: skip
    inputs = [3, *[x.filters for x in convs]]
    pairs = zip(convs, inputs, strict=False)
    return [(x.filters, he_backward(x.kernel**2 * c, x.kernel**2 * x.filters, 0)) for x, c in pairs]


def test_equation_14_gives_the_stds_of_the_text(text):
    stds = vgg_b_stds()
    assert len(stds) == 10
    for filters, std in stds:
        assert std == pytest.approx(text["vgg_b_eq14_std"][filters], abs=5e-4)


def test_with_std_001_the_gradient_shrinks_by_the_texts_17000_from_conv10_to_conv2(text):
    """5.9 x 4.2^2 x 2.9^2 x 2.1^4: each of conv2 to conv10 scales it by 0.01 / std of Eq. 14."""
    ratio = math.prod(std / 0.01 for _, std in vgg_b_stds()[1:])
    assert ratio == pytest.approx(text["vgg_b_gradient_ratio_std001"], rel=0.03)


# The range of the input: three options


@pytest.mark.parametrize("name", INITIALIZERS)
def test_raw_leaves_the_convs_to_the_rule_and_gives_the_fc_layers_the_papers_stds(name):
    layers = weight_layers(build("model=small14"))
    stds = layer_stds(layers, INITIALIZERS[name], slope=0.25, range="raw")
    assert stds[:11] == [INITIALIZERS[name](*fans(x), 0.25) for x in layers[:11]]
    assert stds[11:] == [0.01, 0.01, 0.001]


@pytest.mark.parametrize("name", INITIALIZERS)
def test_scaled_divides_the_output_by_128_a_share_in_each_of_l_layers(name):
    layers = weight_layers(build("model=small14"))
    stds = layer_stds(layers, INITIALIZERS[name], slope=0, range="scaled")
    shares = [s / INITIALIZERS[name](*fans(x), 0) for s, x in zip(stds, layers, strict=True)]
    assert shares == pytest.approx([shares[0]] * 14)
    assert math.prod(shares) == pytest.approx(1 / 128)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_normalised_input_needs_no_exception_the_rule_holds_everywhere(name):
    layers = weight_layers(build("model=small14"))
    stds = layer_stds(layers, INITIALIZERS[name], slope=0.25, range="normalised")
    assert stds == [INITIALIZERS[name](*fans(x), 0.25) for x in layers]


@pytest.mark.parametrize("range", RANGES)
def test_the_classifiers_factor_is_on_the_last_layer_alone(range):
    layers = weight_layers(build("model=small14"))
    whole = layer_stds(layers, he, slope=0, range=range)
    tenth = layer_stds(layers, he, slope=0, range=range, classifier=0.1)
    assert tenth[:-1] == whole[:-1]
    assert tenth[-1] == pytest.approx(whole[-1] * 0.1)


def test_another_range_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'rwa'.*raw, scaled, normalised"):
        layer_stds([nn.Linear(2, 2)], he, slope=0, range="rwa")


# Every layer of every net is drawn


def assert_drawn_by_the_rule(net, config):
    """Each layer's weights are Gaussian with its rule's std, to sampling error; its bias is 0."""
    layers = weight_layers(net)
    stds = layer_stds(
        layers, rule_of(config), slope=config.act.slope, range=config.init.range,
        classifier=config.init.classifier,
    )  # fmt: skip
    for layer, std in zip(layers, stds, strict=True):
        w = layer.weight.double()
        error = 1 / math.sqrt(w.numel())  # of a standard normal's mean; its std's is / sqrt(2)
        assert w.mean().item() / std == pytest.approx(0, abs=5 * error)
        assert w.std(correction=0).item() / std == pytest.approx(1, abs=5 * error / math.sqrt(2))
        assert not layer.bias.any()
        if w.numel() > 10_000:  # torch's own default is uniform, with a fourth moment of 1.8
            assert (w**4).mean().item() / std**4 == pytest.approx(3, abs=5 * error * math.sqrt(96))


@pytest.mark.parametrize("model", choices("model"))
@pytest.mark.parametrize("act", choices("act"))
def test_no_parameter_of_any_net_is_left_as_it_was_found(model, act):
    """The storage holds NaN, so what is not drawn stays NaN; nothing keeps PyTorch's default."""
    config = mix("scale=smoke", "data.crop=56", model=model, act=act)
    net = build_model(config, 10)[0].to_empty(device=CPU)
    for p in net.parameters():
        p.data.fill_(math.nan)
    by_the_rule = partial(
        layer_stds, rule=he, slope=config.act.slope, range="normalised", classifier=0.1
    )
    initialize(net, by_the_rule, seed=0)
    assert not [name for name, p in net.named_parameters() if not p.isfinite().all()]
    assert all((slope == config.act.slope).all() for slope in net.slopes().values())
    assert_drawn_by_the_rule(net, config)


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("init", choices("init"))
@pytest.mark.parametrize("model", ["small14", "a", "vgg_b"])
def test_materialise_draws_by_the_initialiser_and_range_of_the_configuration(model, init, range):
    config = mix("scale=smoke", "data.crop=56", "seed=3", model=model, init=init)
    config = replace(config, init=replace(config.init, range=range))
    assert_drawn_by_the_rule(materialise(build_model(config, 10)[0], config, CPU), config)


def test_every_initialiser_of_the_dict_has_its_file_in_conf():
    assert sorted([*INITIALIZERS, "gaussian"]) == choices("init")


def test_weights_depend_on_the_seed_alone():
    def draw(seed):
        config = read_config("model=small14", f"seed={seed}")
        return materialise(build("model=small14"), config, CPU).classifier[0].weight

    torch.manual_seed(0)
    first = draw(0)
    torch.manual_seed(1)  # the global generator has no say
    assert torch.equal(first, draw(0))
    assert not torch.equal(first, draw(1))
    assert abs(torch.corrcoef(torch.stack([first.flatten(), draw(1).flatten()]))[0, 1]) < 0.02


def test_layers_of_one_net_are_drawn_independently():
    convs = weight_layers(materialise(build("model=small14"), read_config("model=small14"), CPU))
    pair = torch.stack([convs[6].weight.flatten(), convs[7].weight.flatten()])
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / math.sqrt(pair.shape[1])


# The two arms of a comparison


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("other", INITIALIZERS)
def test_two_initialisers_draw_the_same_numbers_and_differ_by_one_factor_a_layer(other, range):
    nets = []
    for init in ("he", other):
        words = ("model=small14", f"init={init}", f"init.range={range}")
        nets.append(materialise(build(*words), read_config(*words), CPU))
    for ours, theirs in zip(*map(weight_layers, nets), strict=True):
        ratio = (theirs.weight / ours.weight).flatten()
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize(("range", "layers"), [("normalised", 22), ("scaled", 22), ("raw", 19)])
def test_after_l_layers_xaviers_signal_is_2_to_the_minus_l_half_of_ours(range, layers):
    """With ReLU and biases of 0 this is exact: 2^-11 for B's 22 layers, 2^-9.5 for its 19 convs."""
    logits = []
    for init in ("he", "xavier"):
        words = ("model=b", "act=relu", f"init={init}", f"init.range={range}")
        net = materialise(build(*words), read_config(*words), CPU).double().eval()
        x = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)).double()
        logits.append(net(x).detach())
    torch.testing.assert_close(logits[1], logits[0] * 2 ** (-layers / 2), rtol=1e-4, atol=0)


# What it is for


def build_tower(kind, widths, act):
    """Layers and rectifiers alone, without borders, as in Eq. 5 to 15."""
    modules = []
    for c, d in pairwise(widths):
        conv = nn.Conv2d(c, d, 3, padding=1, padding_mode="circular")
        modules += [conv if kind == "conv" else nn.Linear(c, d), act(d)]
    return nn.Sequential(*modules[:-1])  # it ends with a response


def measure(tower, kind):
    """Second moments of each layer's responses, and of the gradient at each layer's input."""
    c = next(tower.parameters()).shape[1]
    shape = (8, c, 8, 8) if kind == "conv" else (512, c)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5)).requires_grad_()
    responses, inputs = [], []
    for module in tower:
        if isinstance(module, nn.Conv2d | nn.Linear):
            x.retain_grad()
            inputs.append(x)
        x = module(x)
        if isinstance(module, nn.Conv2d | nn.Linear):
            responses.append(x)
    x.backward(torch.randn(x.shape, generator=torch.Generator().manual_seed(6)))
    return [[t.square().mean().item() for t in ts]
            for ts in (responses, [x.grad for x in inputs])]  # fmt: skip


def is_of_eq_1(act):
    """Whether a rectifier is y above zero and linear below, as Eq. 15 assumes."""
    f, y = build_act(act, 96), torch.logspace(-2, 2, 9)[:, None].expand(-1, 96)
    return torch.allclose(f(y), y) and torch.allclose(f(-y), y * f(-torch.ones(1, 96)))


OF_EQ_1 = [act for act in choices("act") if is_of_eq_1(act)]
WIDTHS = {"fc": [256, 512] * 6, "conv": [96, 192] * 4}
# Over 12 seeds the mean is unbiased across all layers; a single seed is off by a factor of 2^0.4
# (standard deviation) at the far end. Xavier would be off by 2^-10 (fc) and 2^-6 (conv).
SAMPLING = 2


def signal(kind, rule, name, widths=None):
    slope, widths = slope_of(name), widths or WIDTHS[kind]
    tower = build_tower(kind, widths, partial(build_act, name))
    initialize(tower, partial(layer_stds, rule=rule, slope=slope, range="normalised"), seed=1)
    return measure(tower, kind)


def test_all_of_the_papers_rectifiers_are_of_eq_1():
    assert {"relu", "lrelu", "prelu", "prelu_shared"} <= set(OF_EQ_1)


@pytest.mark.parametrize("name", OF_EQ_1)
@pytest.mark.parametrize("kind", WIDTHS)
def test_he_keeps_the_second_moment_of_the_responses_over_all_layers(kind, name):
    responses, _ = signal(kind, he, name)
    assert all(1 / SAMPLING < r / responses[0] < SAMPLING for r in responses)


@pytest.mark.parametrize("name", OF_EQ_1)
@pytest.mark.parametrize("kind", WIDTHS)
def test_he_backward_keeps_the_second_moment_of_the_gradients_over_all_layers(kind, name):
    _, gradients = signal(kind, he_backward, name)
    assert all(1 / SAMPLING < g / gradients[-1] < SAMPLING for g in gradients)


@pytest.mark.parametrize("kind", WIDTHS)
def test_xavier_halves_the_responses_second_moment_with_every_relu(kind):
    responses, _ = signal(kind, xavier, "relu")
    for layer, response in enumerate(responses):
        kept = response * 2**layer / responses[0]
        assert 1 / SAMPLING < kept < SAMPLING


def test_with_equation_14_the_responses_change_by_the_ratio_of_widths_alone():
    """Either condition suffices: with Eq. 14 the forward product becomes c_2 / d_L, here 4, however
    many layers there are; with Eq. 10 it is 1."""
    widths = [*WIDTHS["fc"][:-1], 128]
    for rule, ratio in ((he_backward, widths[1] / widths[-1]), (he, 1)):
        responses, _ = signal("fc", rule, "relu", widths)
        assert responses[-1] / responses[0] == pytest.approx(ratio, rel=0.4)


def test_a_module_without_initial_values_is_refused_by_name(monkeypatch):
    """A new rectifier with parameters of its own must say how they start."""

    class Forgetful(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.empty(1))

        def forward(self, y):
            return y * self.gain

    monkeypatch.setitem(RECTIFIERS, "relu", lambda channels, slope: Forgetful())
    with pytest.raises(ValueError, match=r"conv1_act\.gain got no initial value"):
        build_model(compose(["scale=smoke", "act=relu"]), 4)


@pytest.mark.parametrize("value", [0.1, 3])
@pytest.mark.parametrize("resets", [False, True])
def test_so_is_one_whose_buffer_nothing_fills(monkeypatch, resets, value):
    """What the buffer held at construction is lost when the net gets its storage."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("slopes", torch.tensor([value]))

        def forward(self, y):
            return torch.where(y > 0, y, self.slopes * y)

    if resets:
        Fixed.reset_parameters = lambda self: self.slopes.fill_(value)
    monkeypatch.setitem(RECTIFIERS, "relu", lambda channels, slope: Fixed())
    config = compose(["scale=smoke", "act=relu"])
    refused = pytest.raises(ValueError, match=r"conv1_act\.slopes got no initial value")
    with nullcontext() if resets else refused:
        net = materialise(build_model(config, 4)[0], config, torch.device("cpu"))
        assert net.features.conv1_act.slopes.item() == pytest.approx(value)


def test_a_buffer_of_integers_keeps_its_kind(monkeypatch):
    class Turned(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.register_buffer("order", torch.empty(channels, dtype=torch.int64))

        def reset_parameters(self):
            self.order.copy_(torch.arange(len(self.order)).flip(0))

        def forward(self, y):
            return y[:, self.order].relu()

    monkeypatch.setitem(RECTIFIERS, "relu", lambda channels, slope: Turned(channels))
    config = compose(["scale=smoke", "act=relu"])
    net = materialise(build_model(config, 4)[0], config, torch.device("cpu"))
    assert net.features.conv1_act.order.tolist()[-1] == 0
    assert net(torch.zeros(1, 3, 28, 28)).shape == (1, 4)


def test_a_parameter_of_several_layers_is_refused_by_name(monkeypatch):
    """Each layer would silently end up with a parameter of its own."""

    one = nn.Parameter(torch.empty(1, device="meta"))

    def build_tied(channels, slope):
        act = nn.PReLU()
        act.weight = one
        return act

    monkeypatch.setitem(RECTIFIERS, "prelu", build_tied)
    config = compose(["scale=smoke", "act=prelu"])
    net, _ = build_model(config, 4)
    with pytest.raises(ValueError, match=r"conv2_1_act\.weight is another layer's too"):
        materialise(net, config, torch.device("cpu"))


def test_a_buffer_that_no_checkpoint_keeps_is_refused_by_name(monkeypatch):
    """When the trained net is loaded to be scored, it would hold whatever lies in memory."""

    class Fixed(nn.Identity):
        def __init__(self):
            super().__init__()
            self.register_buffer("slopes", torch.empty(1), persistent=False)

        def reset_parameters(self):
            self.slopes.fill_(0.1)

    monkeypatch.setitem(RECTIFIERS, "relu", lambda channels, slope: Fixed())
    with pytest.raises(ValueError, match=r"conv1_act\.slopes is a buffer that is not persistent"):
        build_model(compose(["scale=smoke", "act=relu"]), 4)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (lambda n, nhat, a: math.sqrt(a - n), "(math domain error|expected a nonnegative)"),
        (lambda n, nhat, a: 1 / a, "division by zero"),
        (lambda n, nhat, a: math.inf, "a std of inf"),
        (lambda n, nhat, a: math.nan, "a std of nan"),
        (lambda n, nhat, a: -0.1, "a std of -0.1"),
    ],
)
def test_an_initialiser_that_gives_no_std_is_refused_by_name(monkeypatch, rule, why):
    """In time, and not as a net that diverged."""
    monkeypatch.setitem(INITIALIZERS, "he", rule)
    with pytest.raises(ValueError, match=rf"init=he: conv1, .*fan_in=147.*: .*{why}"):
        build("model=small14", "act=relu")


def test_an_initialiser_may_give_zero(monkeypatch):
    """As for a layer that is to start without any say."""
    monkeypatch.setitem(INITIALIZERS, "he", lambda n, nhat, a: 0.0)
    assert build("model=small14", "act=relu")


def test_a_parameter_with_values_in_part_is_refused():
    def fill(net):
        with torch.no_grad():
            net.bias.zero_()
            net.weight[:2] = 0

    with pytest.raises(ValueError, match="weight got no initial value"):
        start(nn.Linear(2, 3, device="meta"), torch.device("cpu"), fill)


def test_draws_that_are_kept_serve_the_same_seed_name_and_shape_alone():
    drawn = {}
    for width, seed in ((4, 0), (6, 0), (4, 1), (4, 0)):
        nets = [nn.Sequential(nn.Linear(width, 3)) for _ in range(2)]
        for net, kept in zip(nets, (drawn, None), strict=True):
            initialize(net, lambda layers: [0.5], seed=seed, drawn=kept)
        assert torch.equal(nets[0][0].weight, nets[1][0].weight)
    assert len(drawn) == 3


def test_a_parameter_that_is_not_learned_stays_so():
    act = nn.PReLU(3, device="meta").requires_grad_(False)
    give_storage(act, torch.device("cpu"), torch.float32)
    assert act.weight.device.type == "cpu"
    assert not act.weight.requires_grad


def test_relu_takes_no_slope():
    with pytest.raises(ValueError, match=r"act\.slope=0\.3"):
        build_model(compose(["scale=smoke", "act=relu", "act.slope=0.3"]), 4)


def test_a_std_of_its_own_is_the_gaussians_alone():
    words = ["scale=smoke", "init.std=0.02"]
    assert build_model(compose([*words, "init=gaussian"]), 4)
    with pytest.raises(ValueError, match=r"init\.std=0\.02: init=gaussian's; he has its own"):
        build_model(compose([*words, "init=he"]), 4)
