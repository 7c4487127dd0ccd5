"""The ICCV version's analysis: some parameters' Fisher matrix, and how centred responses are."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from delving.fisher import (
    Chosen,
    choose_parameters,
    condition,
    describe_fisher,
    draw_labels,
    response_statistics,
    sample_gradients,
    unit_diagonal,
)
from delving.initializer import he, initialize, layer_stds
from delving.net import build_net
from delving.notation import read_layers
from delving.paper.fisher import condition as log_condition
from delving.paper.fisher import log_between, tabulate
from delving.rectifier import RECTIFIERS
from delving.signal import weight_layers

few = settings(max_examples=30)
LINES = [
    {"conv1": "5x5, 6, /2"}, {"pool1": "2x2, /2"}, {"conv2": "2x2, 7, x2"},
    {"spp": "{2,1}"}, {"fc1": "9"}, {"fc2": "classes"},
]  # fmt: skip
KINDS = ("within", "between", "bias_weight")


def build(*, act="prelu", slope=0.25, classes=4, seed=0):
    """A small float64 net with drawn weights, biases other than zero and dropout switched on."""
    rectifier = partial(RECTIFIERS[act], slope=slope)
    net = build_net(read_layers(LINES), rectifier, classes=classes, crop=14).double()
    net = net.to_empty(device="cpu")
    initialize(net, partial(layer_stds, rule=he, slope=slope, range="normalised"), seed=seed)
    for layer in weight_layers(net).values():
        nn.init.constant_(layer.bias, 0.1)
    return net.train()


def images(n, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 14, 14, generator=draws, dtype=torch.float64)


def a_layer(units, weights, name="fc1"):
    """The layer's first `units` units, each with its first `weights` weights."""
    return Chosen(name, torch.arange(units), torch.arange(weights).expand(units, -1))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Which parameters


def test_a_few_units_of_every_weight_layer_are_chosen_each_with_a_few_weights():
    net = build()
    chosen = choose_parameters(net, 3, weights=4, seed=0)
    assert [some.name for some in chosen] == list(weight_layers(net))
    for some, layer in zip(chosen, weight_layers(net).values(), strict=True):
        assert some.units.shape == (3,)
        assert some.weights.shape == (3, 4)
        assert some.units.max() < layer.weight.shape[0]
        assert some.weights.max() < layer.weight[0].numel()
        assert len(some.units.unique()) == 3
        assert len(some.weights.unique(dim=0)) == 3  # each has its own


def test_the_weights_of_a_unit_come_from_different_channels_where_there_are_enough():
    _, conv2, *_ = choose_parameters(build(), 5, weights=6, seed=0)
    assert all(len((own // 4).unique()) == 6 for own in conv2.weights)  # 2x2 filters


def test_weights_of_different_channels_are_of_different_taps_too():
    """Not all from a corner of the filter, which sees zeros at every border."""
    _, conv2, *_ = choose_parameters(build(), 5, weights=6, seed=0)
    assert all(len((own % 4).unique()) == 4 for own in conv2.weights)  # 2x2 filters


def test_a_layer_of_one_unit_gives_it():
    net = nn.Sequential()
    net.fc1, net.fc2 = nn.Linear(3, 1), nn.Linear(1, 4)
    first, _ = choose_parameters(net, 2, weights=2, seed=0)
    assert first.units.tolist() == [0]


@few
@given(units=st.integers(1, 12), weights=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_no_weight_is_chosen_twice_however_many_are_asked_for(units, weights, seed):
    for some in choose_parameters(build(), units, weights=weights, seed=seed):
        assert all(len(own.unique()) == len(own) for own in some.weights)


def test_nets_of_equal_shapes_get_the_same_parameters_and_other_seeds_others():
    ours, theirs = (choose_parameters(build(act=a, seed=i), 3, weights=4, seed=7)
                    for i, a in enumerate(("relu", "prelu")))  # fmt: skip
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.units, b.units)
        assert torch.equal(a.weights, b.weights)
    others = choose_parameters(build(), 3, weights=4, seed=8)
    assert any(not torch.equal(a.weights, b.weights) for a, b in zip(ours, others, strict=True))


def test_the_classifier_never_gives_all_of_its_units():
    """Their gradients sum to zero over classes, so that all of them would make F singular."""
    chosen = choose_parameters(build(classes=4), 4, weights=2, seed=0)
    assert chosen[-1].units.shape == (3,)
    gradients = sample_gradients(build(classes=4), images(64), chosen, seed=0)
    everything = [*chosen[:-1], a_layer(4, 2, "fc2")]
    singular = sample_gradients(build(classes=4), images(64), everything, seed=0)[:, -12::3]
    assert singular.sum(1).abs().max() < 1e-12
    assert gradients[:, -9::3].sum(1).abs().max() > 0.1


# Gradients of single samples


def one_at_a_time(net, x, chosen, labels):
    """The gradients by autograd of the whole net, sample after sample."""
    layers, rows = weight_layers(net), []
    for image, label in zip(x, labels, strict=True):
        net.eval().zero_grad()
        net(image[None]).log_softmax(1)[0, label].backward()
        rows.append([])
        for some in chosen:
            layer = layers[some.name]
            for unit, weights in zip(some.units, some.weights, strict=True):
                rows[-1] += [layer.bias.grad[unit], *layer.weight.grad[unit].flatten()[weights]]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("act", "slope"), [("relu", 0.0), ("prelu", 0.25), ("prelu_shared", 0.5)])
def test_gradients_are_those_of_autograd_one_sample_at_a_time(act, slope):
    """Through strides, padding, even filters, pooling, SPP and fc layers."""
    net, x = build(act=act, slope=slope), images(6)
    chosen = choose_parameters(net, 4, weights=10, seed=1)
    found = sample_gradients(net, x, chosen, seed=5)
    uniform = torch.rand(6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = draw_labels(net.eval()(x).softmax(1), uniform)
    torch.testing.assert_close(found, one_at_a_time(net, x, chosen, labels), rtol=1e-9, atol=1e-12)


def test_gradients_of_oblong_filters_are_autograds_too():
    """The paper's are square; padding, stride and taps have an order all the same."""
    net = nn.Sequential()
    net.conv1 = nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 1))
    net.flatten, net.fc1 = nn.Flatten(), nn.Linear(3 * 7 * 3, 4)
    net, x = net.double(), normal(6, 2, 5, 4)
    chosen = choose_parameters(net, 3, weights=12, seed=0)
    found = sample_gradients(net, x, chosen, seed=5)
    uniform = torch.rand(6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    labels = draw_labels(net(x).softmax(1), uniform)
    torch.testing.assert_close(found, one_at_a_time(net, x, chosen, labels), rtol=1e-9, atol=1e-12)


def test_images_are_taken_in_the_nets_type_and_sums_in_float64():
    net, x = build().float(), images(6)
    chosen = choose_parameters(net, 2, weights=3, seed=0)
    with torch.no_grad():  # gradients are its business alone
        found = sample_gradients(net, x, chosen, seed=0)
    assert found.dtype == torch.float64
    wanted = sample_gradients(net.double(), x, chosen, seed=0)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
    ours, theirs = response_statistics(net.float(), x), response_statistics(net.double(), x)
    assert ours[0]["mean"] == pytest.approx(theirs[0]["mean"], rel=1e-4)


def test_the_size_of_the_batch_changes_nothing():
    net, x = build(), images(7)
    chosen = choose_parameters(net, 2, weights=3, seed=0)
    whole = sample_gradients(net, x, chosen, seed=0)
    parts = sample_gradients(net, x, chosen, seed=0, batch=3)
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)


def test_labels_are_drawn_from_the_nets_own_prediction():
    """The true Fisher matrix; with the images' labels it would be the empirical one."""
    p = torch.tensor([0.2, 0.5, 0.3]).expand(20_000, 3)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shares = draw_labels(p, uniform).bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, p[0], atol=0.015, rtol=0)
    assert draw_labels(torch.tensor([[0.0, 0.4, 0.6]]), torch.zeros(1)).item() == 1
    assert draw_labels(torch.tensor([[0.5, 0.5 - 1e-6]]), torch.ones(1)).item() == 1


def test_gradients_are_computed_without_dropout_and_leave_nothing_behind():
    net, x = build(), images(4)
    chosen = choose_parameters(net, 2, weights=2, seed=0)
    first = sample_gradients(net, x, chosen, seed=0)
    assert torch.equal(first, sample_gradients(net, x, chosen, seed=0))
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    assert not first.requires_grad


def test_the_expected_gradient_is_zero_since_labels_are_the_nets_own():
    net, x = build(), images(400)
    g = sample_gradients(net, x, choose_parameters(net, 2, weights=2, seed=0), seed=0)
    errors = g.mean(0) / (g.std(0) / 20)
    assert errors.abs().max() < 4.5


def test_the_fisher_matrix_of_a_logistic_regression_is_the_mean_of_p_1_minus_p_x_x():
    net, x = nn.Sequential(nn.Linear(3, 2)).double(), normal(40_000, 3) + torch.tensor([0, 1, 2])
    nn.init.constant_(net[0].weight, 0.5).data[0] *= -0.5
    nn.init.zeros_(net[0].bias)
    g = sample_gradients(net, x, [a_layer(1, 3, "0")], seed=0, batch=10_000)
    p = net(x).softmax(1)[:, 0].detach()
    inputs = torch.cat([torch.ones(len(x), 1), x], 1)  # the bias is the weight of a constant 1
    expected = (inputs * (p * (1 - p))[:, None]).T @ inputs / len(x)
    torch.testing.assert_close(g.T @ g / len(g), expected, rtol=0.04, atol=0.005)


# The matrix described


def test_the_energy_of_independent_gradients_is_zero_on_average_while_squares_are_not():
    """Squares of estimates add their noise, here 1/200; products of two halves do not."""
    chosen = [a_layer(2, 2, "a"), a_layer(2, 2, "b")]
    found = [describe_fisher(normal(200, 12, seed=s), chosen) for s in range(60)]
    for kind in KINDS:
        energies = torch.tensor([f[kind]["energy"] for f in found])
        error = energies.std() / math.sqrt(60)
        assert abs(energies.mean()) < 3.5 * error
        assert error < 0.1 / 200
        told = torch.tensor([f[kind]["error"] for f in found]).mean()
        assert 0.8 < told / energies.std() < 1.6
    c = unit_diagonal(normal(200, 12).T @ normal(200, 12))
    squares = (c - torch.eye(12)).square().sum() / (12 * 11)
    assert squares == pytest.approx(1 / 200, rel=0.5)


@few
@given(shift=st.floats(0, 2), seed=st.integers(0, 2**32))
def test_a_mean_that_gradients_share_is_off_diagonal_energy_of_every_kind(shift, seed):
    """A mean m gives entries m^2 / (1 + m^2): why responses far from zero are bad."""
    g = normal(4000, 12, seed=seed) + shift
    found = describe_fisher(g, [a_layer(2, 2, "a"), a_layer(2, 2, "b")])
    entry = shift**2 / (1 + shift**2)
    for kind in KINDS:
        assert found[kind]["energy"] == pytest.approx(entry**2, abs=0.1 * entry + 0.01)
    assert found["condition"] >= 1


def test_a_factor_that_only_layers_share_is_energy_within_them():
    shared = normal(2000, 2, seed=1).repeat_interleave(6, 1)  # one per layer
    found = describe_fisher(normal(2000, 12) + shared, [a_layer(2, 2, "a"), a_layer(2, 2, "b")])
    assert found["within"]["energy"] == pytest.approx(0.25, abs=0.03)
    assert found["between"]["energy"] == pytest.approx(0, abs=0.01)


def test_bias_and_weight_are_coupled_by_the_mean_input_over_its_root_mean_square():
    """For an fc unit whose inputs and gradients are independent; the point of the analysis."""
    dy, x = normal(8000, 1), normal(8000, 3, seed=1) + 0.75
    found = describe_fisher(torch.cat([dy, dy * x], 1), [a_layer(1, 3)])
    assert found["bias_weight"]["energy"] == pytest.approx(0.75**2 / (1 + 0.75**2), abs=0.03)
    assert found["bias_weight"]["pairs"] == 3


def test_each_pair_is_of_one_layer_or_of_two():
    found = describe_fisher(normal(100, 18), [a_layer(2, 2, "a"), a_layer(3, 3, "b")])
    assert found["within"]["pairs"] == 6 * 5 / 2 + 12 * 11 / 2
    assert found["between"]["pairs"] == 6 * 12
    assert found["bias_weight"]["pairs"] == 2 * 2 + 3 * 3
    assert (found["parameters"], found["samples"]) == (18, 100)


@few
@given(scales=st.lists(st.floats(1e-6, 1e6), min_size=6, max_size=6))
def test_the_scale_of_a_parameter_has_no_say(scales):
    """The diagonal is scaled to 1, so that nets of different gradient sizes can be compared."""
    g = normal(60, 6) + 0.5
    ours = describe_fisher(g, [a_layer(2, 2)])
    theirs = describe_fisher(g * torch.tensor(scales, dtype=torch.float64), [a_layer(2, 2)])
    assert theirs["within"]["energy"] == pytest.approx(ours["within"]["energy"])
    assert theirs["condition"] == pytest.approx(ours["condition"])


def test_parameters_without_a_gradient_are_counted_and_left_out():
    g = normal(100, 12)
    chosen = [a_layer(2, 2, "a"), a_layer(2, 2, "b")]
    alive = describe_fisher(g[:, [0, 2, 3, 4, 5, 6, 7, 8, 9, 11]], [
        Chosen("a", torch.arange(1), torch.zeros(1, 1)), a_layer(1, 2, "a"),
        a_layer(1, 2, "b"), Chosen("b", torch.arange(1), torch.zeros(1, 1)),
    ])  # fmt: skip
    g[:, 1] = 0  # dead
    g[::2, 10] = 0  # rare: has a gradient in one half only
    found = describe_fisher(g, chosen)
    assert (found["parameters"], found["dead"], found["rare"]) == (10, 1, 1)
    assert found["condition"] == pytest.approx(alive["condition"])
    assert found["within"]["pairs"] == 2 * 5 * 4 / 2


@pytest.mark.parametrize(("samples", "rare"), [([0, 2], 1), ([1, 3], 1), ([1, 2], 0)])
def test_a_parameter_is_rare_by_the_even_and_the_odd_samples(samples, rare):
    g = normal(100, 6)
    g[[i for i in range(100) if i not in samples], 3] = 0
    found = describe_fisher(g, [a_layer(2, 2)])
    assert (found["parameters"], found["dead"], found["rare"]) == (6 - rare, 0, rare)


def test_a_parameter_with_few_gradients_survives_the_jackknife():
    g = normal(100, 6)
    g[2:, 3] = 0
    found = describe_fisher(g, [a_layer(2, 2)])
    assert all(math.isfinite(found["within"][key]) for key in ("energy", "error"))


def test_too_few_samples_or_no_gradient_at_all_are_refused():
    with pytest.raises(ValueError, match="12 parameters with a gradient in 24 samples"):
        describe_fisher(normal(24, 12), [a_layer(4, 2)])
    with pytest.raises(ValueError, match="more samples than parameters in each half"):
        describe_fisher(normal(25, 12), [a_layer(4, 2)])  # in halves of 13 and 12
    with pytest.raises(ValueError, match="0 parameters"):
        describe_fisher(torch.zeros(24, 3), [a_layer(1, 2)])


def test_the_condition_of_equal_directions_is_1_of_proportional_gradients_infinite():
    assert condition(torch.eye(5, dtype=torch.float64)) == 1
    assert condition(torch.tensor([[1.0, 0.5], [0.5, 1.0]])) == pytest.approx(3)
    assert condition(torch.ones(2, 2, dtype=torch.float64)) > 1e12
    assert condition(torch.diag(torch.tensor([1.0, -1e-17]))) == math.inf  # 0, but for rounding
    g = normal(5000, 6)
    found = describe_fisher(g, [a_layer(2, 2)])
    spread = math.sqrt(6 / 5000)
    assert 1 < found["condition"] < ((1 + spread) / (1 - spread)) ** 2 * 1.05
    assert all(c > 1 for c in found["condition_halves"])


def test_each_half_of_the_samples_has_a_condition_of_its_own():
    """Even and odd samples: how much they differ shows what the number of samples does."""
    g = normal(200, 6)
    g[1::2, 1] += 3 * g[1::2, 0]
    even, odd = (condition(unit_diagonal(half.T @ half)) for half in (g[::2], g[1::2]))
    found = describe_fisher(g, [a_layer(2, 2)])["condition_halves"]
    assert found == pytest.approx([even, odd])
    assert odd > 5 * even


# Mean responses


@pytest.mark.parametrize("act", ["relu", "prelu", "lrelu"])
def test_response_statistics_are_the_means_over_images_and_positions_by_channel(act):
    net, x = build(act=act, slope=0.0 if act == "relu" else 0.25), images(5)
    found = {row["name"]: row for row in response_statistics(net, x, batch=2)}
    assert list(found) == ["conv1", "conv2_1", "conv2_2", "fc1"]
    assert net.training
    f = net.eval().features[:2](x).detach()  # (5, 6, 7, 7)
    means = [f[:, c].sum().item() / (5 * 49) for c in range(6)]
    rms = math.sqrt(sum(v * v for v in f.flatten().tolist()) / f.numel())
    row = found["conv1"]
    assert row["units"] == 6
    assert row["mean"] == pytest.approx(sum(means) / 6 / rms)
    assert row["channel_mean"] == pytest.approx(math.sqrt(sum(m * m for m in means) / 6) / rms)


def test_rectifiers_that_a_net_does_not_have_change_nothing_of_it(monkeypatch):
    """An added one may be an nn.Sequential, as other modules are, or want even channel counts."""
    net, x = build(), images(5)
    before = response_statistics(net, x)

    def build_capped(channels, slope):
        if channels % 2:
            raise ValueError("even channels")
        return nn.Sequential(nn.Softplus(), nn.Hardtanh(0, 6))

    monkeypatch.setitem(RECTIFIERS, "capped", build_capped)
    assert response_statistics(net, x) == before
    build_any = lambda channels, slope: build_capped(2, slope)  # noqa: E731
    monkeypatch.setitem(RECTIFIERS, "capped", build_any)
    assert [row["name"] for row in response_statistics(build(act="capped"), x)] == [
        row["name"] for row in before
    ]


def towards_zero(bias, act="relu", slope=0.0):
    """Statistics of one layer of four units on normal input, with these biases."""
    net = nn.Sequential()
    net.fc1, net.fc1_act = nn.Linear(4, 4), RECTIFIERS[act](4, slope)
    nn.init.eye_(net.fc1.weight)
    net.fc1.bias.data = torch.tensor(bias)
    [row] = response_statistics(net, normal(4000, 4).float())
    return row


@pytest.mark.parametrize(("act", "slope"), [("relu", 0.0), ("prelu", 0.25), ("prelu", -0.25)])
def test_a_unit_that_fires_for_no_image_is_silent_whatever_its_slope(act, slope):
    """A unit that seldom fires is not silent; with a negative slope, f(y) > 0 is not yet firing."""
    assert towards_zero([-20.0, -2.0, 0.0, 2.0], act, slope)["silent"] == 0.25


def test_a_unit_whose_responses_are_all_exactly_zero_is_silent():
    net = nn.Sequential()
    net.fc1, net.fc1_act = nn.Linear(4, 4), RECTIFIERS["relu"](4, 0.0)
    nn.init.eye_(net.fc1.weight)
    nn.init.zeros_(net.fc1.bias)
    x = normal(50, 4).float() * torch.tensor([1, 1, 1, 0])
    assert response_statistics(net, x)[0]["silent"] == 0.25


def test_the_mean_response_is_1_where_it_is_constant_and_nears_0_where_it_is_centred():
    assert towards_zero([1e4] * 4)["channel_mean"] == pytest.approx(1, abs=1e-4)
    assert towards_zero([0.0] * 4, "lrelu", 1.0)["channel_mean"] == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("a", [0.0, 0.25, 0.5])
def test_a_slope_moves_the_mean_response_towards_zero(a):
    """For standard normal responses: (1 - a) / sqrt(pi (1 + a^2)), 0.56 for ReLU, 0.41 at 1/4."""
    row = towards_zero([0.0] * 4, "prelu", a)
    expected = (1 - a) / math.sqrt(math.pi * (1 + a * a))
    assert row["mean"] == pytest.approx(expected, abs=0.02)


def test_opposite_means_do_not_count_as_centred():
    row = towards_zero([5.0, 5.0, -5.0, -5.0], "lrelu", 1.0)
    assert row["mean"] == pytest.approx(0, abs=0.02)
    assert row["channel_mean"] == pytest.approx(5 / math.sqrt(26), abs=0.01)


def test_a_layer_without_any_response_has_no_mean_to_tell():
    row = towards_zero([-20.0] * 4)
    assert row["silent"] == 1
    assert math.isnan(row["channel_mean"])


def test_the_table_tells_all_three_kinds_of_pairs():
    """Our source does not say which of them the paper means."""
    g = normal(100, 18)
    found = describe_fisher(g, [a_layer(2, 2, "a"), a_layer(3, 3, "b")])
    net = {"fisher": found, "responses": [{"channel_mean": 0.5, "silent": 0.0, "units": 3}]}
    cells = tabulate({"relu": [net], "prelu": [net]}).set_index("")["PReLU"]
    rows = ("within layers", "between layers", "between a unit's bias and weights")
    for kind, row in zip(KINDS, rows, strict=True):
        assert cells[f"energy {row}"] == f"{found[kind]['energy']:.4f} (1)"


@pytest.mark.parametrize(("energy", "error", "told"), [(0.01, 0.001, -2), (-0.0001, 0.001, -3)])
def test_an_energy_below_its_own_error_counts_as_that(energy, error, told):
    """The mean of products of two halves may have either sign where the true energy is 0."""
    one = {"fisher": {"between": {"energy": energy, "error": error}}}
    assert log_between(one) == pytest.approx(told)


def test_a_singular_matrix_counts_by_what_float64_can_tell():
    """It is not left out, but counts in favour of the other net."""

    def found(number):
        return log_condition({"fisher": {"condition": number, "parameters": 280}})

    assert found(1e4) == pytest.approx(4)
    assert found(math.inf) == found(3.5e18) == pytest.approx(-math.log10(280 * 2.0**-52))
