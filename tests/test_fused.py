"""The rectifier and SPP inside other programs: hooks on what is saved, tracers, fake tensors,
torch.func. Kernels are called past torch's dispatcher, and would read and write what is not there.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from delving import fused
from delving.build import build_model, materialise
from delving.config import compose
from delving.fused import rectify, rectify_backward_plain, rectify_plain, rectify_pool
from delving.kernels import native
from delving.rectifier import PReLU
from delving.spp import SPP, pool_levels

compiled = pytest.mark.skipif(native.load() is None, reason="no C++ compiler here")
WAYS = pytest.mark.parametrize("way", [rectify, fused._Eager.apply, torch.ops.delving.rectify])
SLOPES = torch.linspace(-0.5, 0.5, 8)  # both signs, and 0 is not among them


def normal(*shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def as_rows(x):
    """As torch.autograd.graph.save_on_cpu(pin_memory=True) keeps it: in another layout."""
    return torch.empty(x.shape, dtype=x.dtype).copy_(x)


KEEPING = {
    "in another layout": as_rows,
    "in more bits": lambda x: x.double() if x.is_floating_point() else x,
    "in both": lambda x: as_rows(x).double() if x.is_floating_point() else as_rows(x),
}


def gradients(function, leaves, grad, keep=None):
    with saved_tensors_hooks(keep or (lambda x: x), lambda x: x):
        out = function(*leaves)
    return torch.autograd.grad(out, leaves, grad)


@pytest.fixture
def net():
    torch.manual_seed(0)
    config = compose(["scale=smoke", "act=prelu"])
    return materialise(build_model(config, 4)[0], config, torch.device("cpu")).eval()


@compiled
@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeping", KEEPING)
def test_gradients_do_not_depend_on_how_hooks_keep_what_is_saved(way, dtype, keeping):
    leaves = [normal(2, 8, 3, 3).to(dtype), normal(8, seed=1), SLOPES.clone()]
    leaves, grad = [x.requires_grad_() for x in leaves], normal(2, 8, 3, 3, seed=2).to(dtype)
    found, wanted = (
        gradients(lambda x, bias, slope: way(x, bias, slope, True), leaves, grad, keep)
        for keep in (KEEPING[keeping], None)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@compiled
@pytest.mark.parametrize("keeping", KEEPING)
def test_pyramid_poolings_gradient_does_not_depend_on_it_either(keeping):
    x, grad = normal(2, 8, 4, 4).requires_grad_(), normal(2, 40, seed=1)
    found, wanted = (gradients(SPP((2, 1)), [x], grad, keep) for keep in (KEEPING[keeping], None))
    assert torch.equal(found[0], wanted[0])


@compiled
@WAYS
def test_a_gradient_that_is_nowhere_in_memory_is_zero(way):
    x, slope = normal(4, 8).requires_grad_(), SLOPES.clone().requires_grad_()
    zero = torch._efficientzerotensor((4, 8))
    found = torch.autograd.grad(way(x, None, slope, True), (x, slope), zero)
    assert not any(one.any() for one in found)
    x = normal(2, 8, 4, 4).requires_grad_()
    zero = torch._efficientzerotensor((2, 40))
    assert not torch.autograd.grad(SPP((2, 1))(x), x, zero)[0].any()


@WAYS
def test_without_channels_nothing_is_left_and_nothing_breaks(way):
    x, slope = torch.zeros(2, 0, requires_grad=True), torch.full((1,), 0.25, requires_grad=True)
    out = way(x, None, slope, True)
    assert out.shape == (2, 0)
    assert torch.autograd.grad(out.sum(), slope)[0] == 0


@WAYS
def test_slopes_are_a_row(way):
    """Of others a kernel would read the first numbers only."""
    with pytest.raises(RuntimeError):
        way(normal(2, 8), None, torch.full((8, 3), 0.25), False)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_responses_of_a_type_without_kernels_are_rectified_too(way, dtype):
    """They lie as kernels want them, and slopes are fp32."""
    x = normal(2, 8, 3, 3).to(dtype)
    assert torch.equal(way(x, None, SLOPES, True), rectify_plain(x, None, SLOPES, True))
    assert torch.equal(SPP((2, 1))(x), pool_levels(x, (2, 1)))


@WAYS
@pytest.mark.parametrize("shape", [(2, 8, 5), (2, 8, 2, 3, 2)])
def test_maps_of_one_side_or_three_are_read_as_they_lie(way, shape):
    """Kernels know rows and maps of two sides, channels innermost."""
    x, grad = normal(*shape).requires_grad_(), normal(*shape, seed=1)
    out = way(x, None, SLOPES, True)
    assert torch.equal(out, rectify_plain(x, None, SLOPES, True))
    [found] = torch.autograd.grad(out, x, grad)
    assert torch.equal(found, rectify_backward_plain(grad, out.detach(), SLOPES, True)[0])


def test_a_map_of_no_rows_has_no_maxima():
    with pytest.raises(IndexError):
        SPP((2, 1))(normal(2, 8, 0, 3))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_fake_tensors_pass_through(guard):
    with FakeTensorMode(), guard():
        out = SPP((2, 1))(PReLU(8, 0.25)(torch.randn(2, 8, 4, 4)))
    assert out.shape == (2, 40)


def with_gaps(x):
    return torch.stack([x, x], -1)[..., 0]


@pytest.mark.parametrize("slope", [SLOPES, SLOPES[:1]])
@pytest.mark.parametrize(
    "x", [normal(2, 8), normal(8, 2).T, as_rows(normal(2, 8, 3, 3)), with_gaps(normal(2, 8, 3, 3))]
)
def test_fake_results_lie_as_real_ones_do(x, slope):
    """torch.compile plans memory by them."""

    def laid_out(x, slope):
        out = torch.ops.delving.rectify(x, None, slope, True)
        results = out, *torch.ops.delving.rectify_backward(out, out, slope, True)
        return [(t.shape, t.stride(), t.dtype) for t in results]

    with FakeTensorMode() as fake:
        found = laid_out(fake.from_tensor(x), fake.from_tensor(slope))
    assert found == laid_out(x, slope)


def test_torch_compile_finds_the_operators_and_nothing_that_it_cannot_see_into():
    graphs = []

    def keep(module, inputs):
        graphs.append(module.code)
        return module

    layers, x = nn.Sequential(PReLU(8, 0.25), SPP((2, 1))), normal(2, 8, 4, 4)
    found = torch.compile(layers, backend=keep, fullgraph=True)(x)
    assert torch.equal(found, layers(x))
    assert "delving.rectify" in graphs[0]


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace warns that it is old
@pytest.mark.parametrize("trace", [lambda net, x: make_fx(net)(x), torch.jit.trace])
def test_a_traced_net_computes_what_the_net_does(net, trace):
    x, other = (normal(2, 3, 28, 28, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        traced = trace(net, x)
        assert torch.equal(traced(other), net(other))


def test_torch_func_gives_each_images_gradients(net):
    """Those of one image after the other by autograd."""
    x, labels = normal(3, 3, 28, 28), torch.tensor([0, 3, 1])
    parameters = dict(net.named_parameters())

    def loss(parameters, x, label):
        logits = functional_call(net, parameters, (x[None],))
        return torch.nn.functional.cross_entropy(logits, label[None])

    found = vmap(grad(loss), (None, 0, 0))(parameters, x, labels)
    for i in range(len(x)):
        own = torch.autograd.grad(loss(parameters, x[i], labels[i]), list(parameters.values()))
        for name, wanted in zip(parameters, own, strict=True):
            torch.testing.assert_close(found[name][i], wanted, rtol=1e-4, atol=1e-6)


def test_torch_func_keeps_the_type_of_the_responses():
    """With fp32 parameters, as under autocast."""
    x, bias = normal(3, 8).bfloat16(), normal(8, seed=1)
    out = vmap(lambda x: rectify(x[None], bias, SLOPES, True)[0])(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, rectify(x, bias, SLOPES, True), rtol=2.0**-7, atol=0)


# Rectified and pooled at once, as by a GPU's kernels: here by what stands for them


def knows(x):
    return x.dtype in native.TYPES and native.channels_innermost(x) and native.is_plain(x)


def pool_at_once(x, bias, slope, learned, side):
    out, at = F.max_pool2d(rectify_plain(x, bias, slope, learned), side, return_indices=True)
    row, column = at // x.shape[3] % side, at % x.shape[3] % side
    return out, (row * side + column).to(torch.uint8)


def pool_backward(grad, out, chosen, slope, learned, shape, side):
    """Refuses what a kernel would misread."""
    assert all(native.channels_innermost(t) and native.is_plain(t) for t in (grad, out, chosen))
    assert grad.dtype == out.dtype
    row, column = (side * torch.arange(n) for n in out.shape[2:])
    at = (row[:, None] + chosen // side) * shape[3] + column + chosen % side

    def spread(t):
        return F.max_unpool2d(t.float(), at, side, output_size=shape[2:]).to(t.dtype)

    return rectify_backward_plain(spread(grad), spread(out), slope, learned)


@pytest.fixture
def pooling(monkeypatch):
    stand_in = SimpleNamespace(
        knows=knows, rectify=rectify_plain, rectify_backward=rectify_backward_plain,
        rectify_pool=pool_at_once, rectify_pool_backward=pool_backward,
    )  # fmt: skip
    monkeypatch.setitem(fused.KERNELS, "cpu", stand_in)
    return stand_in


def one_after_the_other(x, bias, slope, learned, side):
    return F.max_pool2d(rectify(x, bias, slope, learned), side)


def assert_close(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "side"), [((2, 8, 6, 4), 2), ((3, 8, 7, 5), 3), ((2, 8, 2, 2), 2)]
)
@pytest.mark.parametrize("slope", [SLOPES, torch.tensor([-0.5])])
@pytest.mark.parametrize(("biased", "learned"), [(True, True), (False, True), (True, False)])
def test_pooling_at_once_is_pooling_of_the_rectified(
    pooling, dtype, shape, side, slope, biased, learned
):
    x, bias, slope = normal(*shape).to(dtype), normal(8, seed=1), slope.clone()
    x, bias, slope = (t.requires_grad_() for t in (x, bias, slope))
    leaves = [x, *([bias] if biased else []), *([slope] if learned else [])]
    found = []
    for way in (rectify_pool, one_after_the_other):
        out = way(x, bias if biased else None, slope, learned, side)
        grad = normal(*out.shape, seed=2).to(dtype)
        found.append([out, *torch.autograd.grad(out, leaves, grad)])
    assert found[0][0].grad_fn.name() == "_PooledBackward"
    assert_close(*found)


def test_a_layers_own_parameters_are_what_the_kernels_take(pooling):
    x, act, bias = normal(2, 8, 4, 4), PReLU(8, 0.25), nn.Parameter(normal(8, seed=1))
    out = act.pooled(x, bias, 2)
    assert out.grad_fn.name() == "_PooledBackward"
    assert torch.equal(out, F.max_pool2d(act(x, bias), 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeping", KEEPING)
def test_nor_does_that_of_pooling_at_once_depend_on_hooks(pooling, dtype, keeping):
    leaves = [normal(2, 8, 4, 4).to(dtype), normal(8, seed=1), SLOPES.clone()]
    leaves, grad = [x.requires_grad_() for x in leaves], normal(2, 8, 2, 2, seed=2).to(dtype)
    assert_close(*(
        gradients(lambda x, bias, slope: rectify_pool(x, bias, slope, True, 2), leaves, grad, keep)
        for keep in (KEEPING[keeping], None)
    ))  # fmt: skip


def test_pooling_at_once_takes_its_gradient_however_it_lies(pooling):
    x, plain = normal(2, 8, 4, 4).requires_grad_(), normal(2, 8, 2, 2, seed=2)
    for some in (torch.ones(1).expand(plain.shape), plain.contiguous(), torch._neg_view(plain)):
        assert_close(*(
            torch.autograd.grad(way(x, None, SLOPES, False, 2), x, some)
            for way in (rectify_pool, one_after_the_other)
        ))  # fmt: skip


def test_a_gradients_gradient_of_pooling_at_once_is_refused(pooling):
    """The kernels have none, and a wrong one would go unnoticed."""
    x = normal(2, 8, 4, 4).requires_grad_()
    out = rectify_pool(x, None, SLOPES, False, 2)
    [first] = torch.autograd.grad((out**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_the_kernels_do_not_take_is_pooled_after_it_is_rectified(pooling):
    def never(*_):
        raise AssertionError("a kernel was called")

    pooling.rectify_pool = never
    x, bias, slope = normal(2, 8, 4, 4), normal(8, seed=1), SLOPES
    for given in (
        (x.contiguous(), bias, slope), (x.double(), bias, slope), (x, bias.double(), slope),
        (x, normal(16, seed=1)[::2], slope), (x, bias, slope.double()),
    ):  # fmt: skip
        wanted = one_after_the_other(*given, True, 2)
        assert torch.equal(rectify_pool(*given, True, 2), wanted)
    with pytest.raises(RuntimeError):
        rectify_pool(x, bias, slope[:3], True, 2)
    with pytest.raises(RuntimeError):
        rectify_pool(x, bias[:3], slope, True, 2)
    for small in (x[:, :, :1], x[..., :1]):
        small = small.contiguous(memory_format=torch.channels_last)
        with pytest.raises(RuntimeError, match="too small"):
            rectify_pool(small, bias, slope, True, 2)


def test_who_watches_sees_rectifying_and_pooling(pooling):
    """A kernel's result would enter a traced net as a constant."""
    x, other = normal(2, 8, 4, 4), normal(2, 8, 4, 4, seed=1)
    traced = make_fx(lambda x: rectify_pool(x, None, SLOPES, False, 2))(x)
    assert "delving.rectify" in traced.code
    assert torch.equal(traced(other), one_after_the_other(other, None, SLOPES, False, 2))
