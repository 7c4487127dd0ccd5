"""Section 2.1: f(y) = y where y > 0, else a y (Eq. 1), its gradients (Eq. 2-3), and the slopes."""

import math

import numpy as np
import oracles
import pytest
import torch
from calling import call
from composed import build_act
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PAPERS
from torch import nn

from delving.build import build_model
from delving.config import compose
from delving.fused import rectify_backward_plain, rectify_plain
from delving.groups import choices
from delving.kernels import native
from delving.rectifier import RECTIFIERS, PReLU

LEARNED = ("prelu", "prelu_shared")
SHAPES = [(3, 4), (2, 3, 4, 5)]
# A learned slope of 0 counts as 2^-60, so that y can still be read back from f(y).
NOTHING = 2.0**-56
few = settings(max_examples=20)


def draw_responses(shape, seed=0):
    """Responses of both signs, some exactly 0, where Eq. 1 has its kink."""
    y = np.random.default_rng(seed).normal(size=shape)
    y.flat[::7] = 0
    return y


def slopes_of(act, fixed):
    """The slopes a rectifier uses: what it learns, or else what it was built with."""
    return next((p.tolist() for p in act.parameters()), [fixed])


def build(name, channels, slope):
    """A rectifier with every slope at `slope`; ReLU's is 0 whatever is asked for."""
    return RECTIFIERS[name](channels, slope), 0.0 if name == "relu" else slope


def run(act, y, grad, *, layout=torch.contiguous_format):
    """The response, dE/dy and [dE/da] for dE/df = grad."""
    x = torch.from_numpy(y)
    x = (x.to(memory_format=layout) if y.ndim == 4 else x).requires_grad_()
    out = act(x)
    out.backward(torch.from_numpy(grad))
    return out.detach(), x.grad, [p.grad for p in act.parameters()]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", [0.25, 0.0, -0.5, 3.0])
@pytest.mark.parametrize("name", PAPERS)
def test_values_and_gradients_follow_equations_1_to_3(name, slope, shape, layout):
    act, a = build(name, shape[1], slope)
    act = act.double()
    y, grad = draw_responses(shape), np.random.default_rng(1).normal(size=shape)
    out, grad_y, grad_slope = run(act, y, grad, layout=layout)
    slopes = slopes_of(act, a)
    expected_y, expected_a = oracles.rectify_gradients(y, slopes, grad)
    np.testing.assert_allclose(out, oracles.rectify(y, slopes), rtol=1e-12, atol=NOTHING)
    np.testing.assert_allclose(grad_y, expected_y, rtol=1e-12, atol=NOTHING)
    for found in grad_slope:
        np.testing.assert_allclose(found, expected_a, rtol=1e-12, atol=1e-12)


@few
@given(
    slopes=st.lists(st.floats(-4, 4, allow_subnormal=False), min_size=1, max_size=5),
    size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_channel_has_its_own_slope(slopes, size, seed):
    act = PReLU(len(slopes), 0.25).double()
    act.slope.data = torch.tensor(slopes, dtype=torch.float64)
    y = draw_responses((2, len(slopes), size, size), seed)
    grad = np.random.default_rng(seed + 1).normal(size=y.shape)
    out, grad_y, [grad_slope] = run(act, y, grad)
    expected_y, expected_a = oracles.rectify_gradients(y, slopes, grad)
    np.testing.assert_allclose(out, oracles.rectify(y, slopes), rtol=1e-12, atol=NOTHING)
    np.testing.assert_allclose(grad_y, expected_y, rtol=1e-12, atol=NOTHING)
    np.testing.assert_allclose(grad_slope, expected_a, rtol=1e-9, atol=1e-12)


def test_slope_gradient_sums_over_positions_where_the_response_is_negative():
    """Eq. 3 by hand: of -1, 2, -3 with dE/df = 10, 10, 1 only -1 and -3 count: -10 - 3."""
    act = PReLU(1, 0.25).double()
    _, _, [slope] = run(act, np.array([[-1.0], [2.0], [-3.0]]), np.array([[10.0], [10.0], [1.0]]))
    assert slope.tolist() == [-13.0]


def test_shared_slope_gradient_also_sums_over_channels():
    y, grad = draw_responses((2, 3, 4, 4)), np.ones((2, 3, 4, 4))
    _, _, [apart] = run(PReLU(3, 0.25).double(), y, grad)
    _, _, [shared] = run(PReLU(1, 0.25).double(), y, grad)
    torch.testing.assert_close(shared, apart.sum(0, keepdim=True))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_only_a_slope_nearer_to_zero_than_2_to_the_minus_60_is_replaced(sign, kind):
    act, used = PReLU(1, 0.25).to(kind), []
    for slope in (2.0**-30, 2.0**-59, 2.0**-60, 2.0**-61, 0.0):
        act.slope.data.fill_(math.copysign(slope, sign))
        used.append(act(-torch.ones(1, 1, dtype=kind)).item())
    wanted = [-sign * slope for slope in (2.0**-30, 2.0**-59, *[2.0**-60] * 3)]
    assert used == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", choices("act"))
def test_gradients_are_those_of_finite_differences(name, shape):
    act = build_act(name, shape[1], 0.25).double()  # one may draw at random in train mode
    y = torch.from_numpy(np.random.default_rng(2).normal(size=shape)).requires_grad_()
    for p in act.parameters():
        p.data += torch.linspace(-0.5, 0.5, p.numel()).double().view_as(p)
    assert torch.autograd.gradcheck(lambda y, *_: act(y), (y, *act.parameters()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PAPERS)
def test_a_gradients_gradient_is_that_of_the_formula(name, dtype, layout):
    """Gradient penalties and Hessians need it; the kernels have no second derivative."""
    draws = np.random.default_rng(3)
    y, target = (torch.from_numpy(draws.normal(size=(2, 3, 4, 5))).to(dtype) for _ in range(2))
    bias = torch.from_numpy(draws.normal(size=3)).to(dtype)

    def penalty(rectify, *given):
        y, bias = (t.clone().to(kind).requires_grad_() for t in (y0, bias0))
        out = rectify(y, bias)
        grads = torch.autograd.grad(
            (out**3 * target.to(kind)).sum(), (y, bias, *given), create_graph=True
        )
        loss = sum(grad.square().sum() for grad in grads)
        return torch.autograd.grad(loss, (y, bias, *given))

    y0, bias0, kind = y.to(memory_format=layout), bias, dtype
    act = RECTIFIERS[name](3, 0.25).to(dtype)
    ours = penalty(lambda y, bias: act(y, bias), *act.parameters())
    kind = torch.float64
    slope = torch.full_like(next(act.parameters(), torch.zeros(1)), act.initial).double()
    learned = [slope.requires_grad_()] if name in LEARNED else []

    def formula(y, bias):
        z = y + bias.view(1, -1, 1, 1)
        return z.clamp(min=0) + slope.view(1, -1, 1, 1) * z.clamp(max=0)

    theirs = penalty(formula, *learned)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("slope", [0.0, 1e-5, -1e-5, 0.25])
def test_in_half_precision_a_slope_near_zero_can_learn(slope):
    """Only f(y) is kept for the backward pass: the slope times y must have digits left."""
    y = torch.from_numpy(draw_responses((64, 3))).half()
    for act in (PReLU(3, slope), PReLU(3, slope).half()):
        act(y).sum().backward()
        wanted = y.double().clamp(max=0).sum(0)
        torch.testing.assert_close(act.slope.grad.double(), wanted, rtol=4e-3, atol=1e-2)


@pytest.mark.parametrize("name", PAPERS)
def test_a_positive_response_passes_unchanged_and_keeps_type_shape_and_layout(name):
    y = torch.rand(2, 3, 4, 5).add(0.1).to(memory_format=torch.channels_last)
    out = RECTIFIERS[name](3, 0.25)(y)
    torch.testing.assert_close(out, y, rtol=0, atol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", choices("act"))
def test_every_act_of_conf_is_a_rectifier(name):
    act = compose(["scale=smoke", f"act={name}"]).act
    module = build_act(name, 3)
    assert module(torch.zeros(1, 3)).shape == (1, 3)
    if name in PAPERS:
        assert not module(torch.zeros(1, 3)).any()
        assert all((p == act.slope).all() for p in module.parameters())


def test_lrelu_starts_where_prelu_does_so_that_the_comparison_isolates_the_learning():
    slopes = {name: compose(["scale=smoke", f"act={name}"]).act.slope for name in PAPERS}
    assert slopes == {"relu": 0.0, "lrelu": 0.25, "prelu": 0.25, "prelu_shared": 0.25}


@pytest.mark.parametrize(
    ("name", "count"), [("relu", 0), ("lrelu", 0), ("prelu", 96), ("prelu_shared", 1)]
)
def test_prelu_learns_a_slope_a_channel_and_the_shared_one_a_slope_a_layer(name, count):
    assert sum(p.numel() for p in RECTIFIERS[name](96, 0.25).parameters()) == count


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("direction", [1, -1])
def test_the_slope_is_not_constrained(name, direction):
    """2.1: f may become non-monotonic (a < 0) and steeper below than above 0 (a > 1)."""
    act = RECTIFIERS[name](2, 0.25)
    optimizer = torch.optim.SGD(act.parameters(), lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        (direction * act(-torch.ones(3, 2))).sum().backward()  # falls as a goes that way
        optimizer.step()
    slope = next(act.parameters())
    assert (slope * direction > 1).all()
    torch.testing.assert_close(act(-torch.ones(1, 2)), -slope.detach().expand(1, 2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", PAPERS)
def test_under_bf16_autocast_the_response_is_the_fp32_formula_rounded(name, layout):
    """0.2531 is not a bf16 number: with the slope rounded first, the products would differ."""
    act, a = build(name, 8, 0.2531)
    y = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = act(y.to(memory_format=layout))
    wide = y.float()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out, torch.where(wide > 0, wide, a * wide).bfloat16(), rtol=0, atol=0
    )


@pytest.mark.parametrize("name", LEARNED)
def test_under_bf16_autocast_slope_and_its_gradient_stay_fp32(name):
    conv, act = nn.Conv2d(3, 8, 3, padding=1), RECTIFIERS[name](8, 0.2531)
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 8, 8, generator=draws)
    grad = torch.randn(4, 8, 8, 8, generator=draws).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
        out = act(y)
    out.backward(grad)
    assert y.dtype == out.dtype == torch.bfloat16
    assert act.slope.dtype == act.slope.grad.dtype == torch.float32
    y, grad = (t.detach().double().numpy() for t in (y, grad))
    _, expected = oracles.rectify_gradients(y, act.slope.tolist(), grad)
    # y is read back from a response of eight bits, so each product is off by 1 in 256 at most, up
    # or down. If they were summed in bf16 as well, the sum would miss by several percent.
    products = np.abs(np.minimum(y, 0) * grad)
    products = products.sum() if act.slope.numel() == 1 else products.sum((0, 2, 3))
    assert (np.abs(act.slope.grad.numpy() - expected) < 1e-3 * products).all()


# A user's own: what a net cannot work with is refused before anything is made


class Glu(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Linear(channels, channels)


class Maxout(nn.Module):
    def forward(self, y):
        return torch.maximum(*y.chunk(2, 1))


class Drawing(nn.Module):
    def forward(self, y):
        return y * torch.rand_like(y)


def centre(channels):
    """It has buffers, and takes rows and maps."""
    return nn.Sequential(nn.GroupNorm(2, channels), nn.ReLU())


def build_with(monkeypatch, function, *words):
    """The net of a configuration whose rectifier is function(channels)."""
    monkeypatch.setitem(RECTIFIERS, "lrelu", lambda channels, slope: function(channels))
    return build_model(compose(["scale=smoke", "act=lrelu", *words]), 4)[0]


UNFIT = {
    "layer": (Glu, r"act=lrelu: conv1_act has a layer of its own \(gate\).*no conv or fc layers"),
    "is a layer": (lambda c: nn.Conv2d(c, c, 1), r"a layer of its own \(conv1_act\)"),
    "shape": (lambda c: Maxout(), r"act=lrelu: .*its layer's shape, but makes \(2, 2, 4, 4\) of"),
    "maps only": (nn.BatchNorm2d, r"act=lrelu: fc1_act fails on \(2, 256\): expected 4D"),
    "rows only": (lambda c: nn.Flatten(), r"makes \(2, 64\) of \(2, 4, 4, 4\)"),
    "in place": (lambda c: nn.ReLU(inplace=True), r"act=lrelu: conv1_act writes over its input"),
    "smooth, in place": (lambda c: nn.SiLU(inplace=True), "conv1_act writes over its input"),
    "capped, in place": (lambda c: nn.Hardtanh(-9, 9, inplace=True), "writes over its input"),
}


@pytest.mark.parametrize(("function", "why"), UNFIT.values(), ids=UNFIT)
def test_a_rectifier_that_a_net_cannot_work_with_is_refused(monkeypatch, function, why):
    with pytest.raises(ValueError, match=why):
        build_with(monkeypatch, function)


@pytest.mark.parametrize(
    "function",
    [nn.PReLU, centre, lambda c: nn.Sequential(PReLU(c, 0.25), nn.Hardtanh(-6, 6)),
     lambda c: nn.RReLU(), lambda c: Drawing()],
)  # fmt: skip
def test_one_that_fits_is_tried_without_moving_any_draws(monkeypatch, function):
    state = torch.get_rng_state()
    build_with(monkeypatch, function)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_net_without_hidden_fc_layers_takes_a_rectifier_of_maps(monkeypatch):
    layers = "model.layers=[{conv1: '3x3, 8'}, {spp: '{1}'}, {fc: classes}]"
    net = build_with(monkeypatch, nn.BatchNorm2d, layers)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 1


@pytest.mark.parametrize("words", [["show"], ["train"], ["train", "--plan"], ["train", "-m"]])
def test_a_command_with_an_unfit_one_ends_with_bad_input_and_no_run(monkeypatch, tmp_path, words):
    monkeypatch.setitem(RECTIFIERS, "lrelu", lambda channels, slope: Maxout())
    place = [] if words == ["show"] else [f"output_root={tmp_path}"]
    code, _, told = call(*words, "scale=smoke", "act=lrelu", *place)
    assert code == 2
    assert "act=lrelu: a rectifier keeps its layer's shape" in told
    assert not list(tmp_path.glob("smoke/runs/*/*"))


def test_every_rectifier_of_the_dict_has_its_file_in_conf():
    assert set(RECTIFIERS) == set(choices("act"))


# Negative slopes: the last bit of f tells on which side of 0 the response lies

WAYS = {"plain": rectify_plain, "compiled": native.rectify}
HALF = [torch.bfloat16, torch.float16]  # significands of 8 and 11 bits


def ways_for(dtype):
    """The plain form, and the compiled one where it knows the type."""
    known = dtype in native.TYPES and native.load() is not None
    return {name: way for name, way in WAYS.items() if name == "plain" or known}


def unit_in_last_place(exact, dtype):
    exponent = exact.abs().clamp_min(torch.finfo(dtype).smallest_normal).log2().floor()
    return torch.finfo(dtype).eps * 2**exponent


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("slope", "most"), [(-1.0, 0.0), (-0.25, 0.0), (-0.25, 0.2), (-0.2531, 0.2)]
)
@pytest.mark.parametrize("side", [1, -1])
def test_a_negative_slope_neither_grows_nor_shrinks_responses(side, slope, most, dtype):
    """With a bias of 0 many responses lie midway between two numbers that end in the wanted bit."""
    draws = torch.Generator().manual_seed(0)
    x = (side * 2 ** (6 * torch.rand(1000, 256, generator=draws) - 2)).to(dtype)
    bias = side * torch.linspace(0, most, 256)
    z = x.double() + bias
    exact = z if side > 0 else slope * z
    for name, way in ways_for(dtype).items():
        out = way(x, bias, torch.full((1,), slope), False)
        assert abs((out.double() / exact).mean() - 1) < 2e-4, name
        off = (out.double() - exact).abs() / unit_in_last_place(exact, dtype)
        assert off.max() < 1.001, name  # z is a sum in fp32


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("side", [1, -1])
def test_the_last_bit_tells_the_side_of_every_number_there_is(side, dtype):
    """Subnormal numbers, the largest one and infinity too; 0 itself does not count as above."""
    numbers = torch.arange(0, 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    x = side * numbers[~numbers.isnan()][:, None]
    slope, ones = torch.full((1,), -1.0), torch.ones_like(x)
    for name, way in ways_for(dtype).items():
        out = way(x, None, slope, False)
        grad = rectify_backward_plain(ones, out, slope, False)[0]
        assert torch.equal(grad > 0, x > 0), name
        assert torch.equal(out.isinf(), x == -torch.inf), name
        exact, largest = x.double().abs(), torch.finfo(dtype).max
        exact = exact.clamp(max=largest)  # infinity ends in 0; +inf must end in 1
        off = (out.double().clamp(max=largest) - exact).abs()
        assert (off <= unit_in_last_place(exact, dtype)).all(), name
        assert way(torch.full_like(x, torch.nan), None, slope, False).isnan().all(), name
