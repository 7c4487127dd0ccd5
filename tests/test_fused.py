"""The rectifier and SPP inside other programs: hooks on what is saved, tracers, fake tensors,
torch.func. Kernels are called past torch's dispatcher, and would read and write what is not there.
"""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from delving import fused
from delving.build import build_model, materialise
from delving.config import compose
from delving.fused import rectify
from delving.kernels import native
from delving.rectifier import PReLU
from delving.spp import SPP

compiled = pytest.mark.skipif(native.load() is None, reason="no C++ compiler here")
WAYS = pytest.mark.parametrize("way", [rectify, fused._Eager.apply])
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


def test_a_map_of_no_rows_has_no_maxima():
    with pytest.raises(IndexError):
        SPP((2, 1))(normal(2, 8, 0, 3))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_fake_tensors_pass_through(guard):
    with FakeTensorMode(), guard():
        out = SPP((2, 1))(PReLU(8, 0.25)(torch.randn(2, 8, 4, 4)))
    assert out.shape == (2, 40)


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
