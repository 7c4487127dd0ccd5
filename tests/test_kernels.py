"""The fused kernels compute what the plain forms do, and the plain forms what Eq. 1 to 3 say."""

import importlib.util
import math
import os
import re
import shutil
import signal
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from calling import run_apart
from hypothesis import given, settings
from hypothesis import strategies as st

from delving import fused
from delving.bench.training import build
from delving.build import build_model, materialise
from delving.config import compose
from delving.device import prepare_backend
from delving.doctor import examine
from delving.fused import rectify, rectify_backward_plain, rectify_plain, rectify_pool
from delving.kernels import compiled as compiling
from delving.kernels import gpu, native
from delving.rectifier import PReLU
from delving.signals import Interrupted
from delving.spp import SPP, pool_levels
from delving.train import Progress, build_optimizer, train

TYPES = (torch.float32, torch.bfloat16)
SHAPES = [(3, 4), (7, 200), (2, 3, 4, 5), (2, 16, 9, 9), (3, 96, 7, 6), (1, 1, 1, 1)]
# The error of rounding a number, as a share of it: bf16 has eight bits, one of which is given up
# where the slope is negative.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}
SIDES = (0.25, -0.5, 0.0, -0.0, 1e-30, -1e-30, 3.0)  # both sides of 0, and close to it
compiled = pytest.mark.skipif(native.load() is None, reason="no C++ compiler here")
triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton here")
few = settings(max_examples=30)
LAYERS = {"shape": st.sampled_from(SHAPES), "dtype": st.sampled_from(TYPES)}
LAYERS |= dict.fromkeys(("shared", "learned", "biased"), st.booleans())


def normal(shape, seed=0):
    """Numbers in the layout that nets use."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def slopes_for(channels, shared=False):
    return torch.tensor([SIDES[i % len(SIDES)] for i in range(1 if shared else channels)])


def distance(found, wanted):
    """The norm of the difference, as a share of that of what is wanted."""
    found, wanted = found.double(), wanted.double()
    return ((found - wanted).norm() / wanted.norm().clamp_min(1e-12)).item()


def exactly(x, bias, slope, grad):
    """f(x + bias) and the gradients of x, bias and slope, in float64 by autograd of Eq. 1 alone."""
    x, bias, slope = (t.detach().double().requires_grad_() for t in (x, bias, slope))
    along = [1, -1, *[1] * (x.dim() - 2)]
    z = x + bias.view(along)
    out = torch.where(z > 0, z, slope.view(along) * z)
    return out.detach(), *torch.autograd.grad(out, (x, bias, slope), grad.double())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "gaps"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_operator_and_all_its_gradients_are_those_of_the_formula(shape, dtype, layout, shared):
    x, bias = normal(shape).to(dtype), normal(shape[1:2], 1)
    grad, slope = normal(shape, 2).to(dtype), slopes_for(shape[1], shared)
    if layout == "contiguous":
        x, grad = x.contiguous(), grad.contiguous()
    if layout == "gaps":
        x = torch.stack([x, x], -1)[..., 0]
    wanted = exactly(x, bias, slope, grad)
    x, bias, slope = (t.requires_grad_() for t in (x, bias, slope))
    out = rectify(x, bias, slope, True)
    out.backward(grad)
    assert out.dtype == x.grad.dtype == dtype
    assert bias.grad.dtype == slope.grad.dtype == torch.float32
    rounding = ROUNDING[dtype]
    assert distance(out, wanted[0]) < rounding
    assert distance(x.grad, wanted[1]) < rounding
    assert distance(bias.grad, wanted[2]) < 1e-6
    # The slope's gradient sums products with rounded responses, which may cancel each other here.
    others = [d for d in range(x.dim()) if d != 1 or shared]
    z = x.detach().double() + bias.detach().double().view([1, -1, *[1] * (x.dim() - 2)])
    products = (z.clamp(max=0) * grad.double()).abs().sum(others)
    assert ((slope.grad - wanted[3]).abs() <= rounding * products + 1e-12).all()


@compiled
@few
@given(**LAYERS, seed=st.integers(0, 99))
def test_the_compiled_kernels_equal_the_plain_forms_to_the_last_bit(
    shape, dtype, shared, learned, biased, seed
):
    x, grad = (normal(shape, seed + i).to(dtype) for i in (0, 1))
    bias = normal(shape[1:2], seed + 2) if biased else None
    slope = slopes_for(shape[1], shared)
    out, wanted = (f(x, bias, slope, learned) for f in (native.rectify, rectify_plain))
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    found = native.rectify_backward(grad, out, slope, learned)
    wanted = rectify_backward_plain(grad, out, slope, learned)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=0)
    assert distance(found[1], wanted[1]) < 1e-6
    if learned:
        assert distance(found[2], wanted[2]) < 1e-6


@compiled
@few
@given(**LAYERS, order=st.sampled_from([1, 2]))
def test_the_compiled_operator_is_the_one_in_python_to_the_last_bit(
    shape, dtype, shared, learned, biased, order
):
    """With all gradients; of order 2 those of a gradient."""
    results = []
    for way in (rectify, fused._Eager.apply):
        x, bias = normal(shape).to(dtype).requires_grad_(), normal(shape[1:2], 1).requires_grad_()
        slope = slopes_for(shape[1], shared).requires_grad_()
        leaves = [x, *([bias] if biased else []), *([slope] if learned else [])]
        out = way(x, bias if biased else None, slope, learned)
        grad = normal(shape, 2).to(dtype)
        if order == 2:
            [first] = torch.autograd.grad(out**3, x, grad, create_graph=True)
            results.append([first, *torch.autograd.grad(first, leaves, grad, allow_unused=True)])
        else:
            results.append([out, *torch.autograd.grad(out, leaves, grad)])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)


@compiled
def test_the_compiled_operator_takes_what_the_kernels_take_and_leaves_the_rest():
    operator = native.operator()
    assert operator is not None, compiling.FAULTS
    x, bias, slope = normal((2, 8, 3, 3)), normal((8,), 1), torch.full((8,), 0.25)
    taken = [
        (x, bias, slope), (x, None, slope[:1]), (normal((5, 8)), bias, slope),
        (x[:0], bias, slope), (x.bfloat16(), bias, slope),
    ]  # fmt: skip
    left = [
        (x.contiguous(), bias, slope), (x.double(), bias, slope), (x[..., :2], bias, slope),
        (x[0], bias, slope), (x, bias[:3], slope), (x, bias, slope[:3]), (x, bias.double(), slope),
        (x, bias[:1], slope), (x, bias, slope.double()), (x[:, :, 0, 0], bias, slope),
        (x, bias, slope[:1].expand(8)), (x, torch.stack([bias, bias], 1)[:, 0], slope),
        (x, bias.bfloat16(), slope),
    ]  # fmt: skip
    for guard in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with guard():
            for tensors in taken:
                assert torch.equal(operator(*tensors, True), rectify_plain(*tensors, True))
            assert all(operator(*tensors, True) is None for tensors in left)


@compiled
@pytest.mark.parametrize("way", [rectify, fused._Eager.apply])
def test_numbers_that_are_not_what_lies_in_memory_are_read_as_what_they_are(way):
    """Such as those of a complex number's conjugate."""
    x, bias, slope = normal((2, 8, 3, 3)), normal((8,), 1), torch.full((8,), 0.25)
    for negated in range(3):
        tensors = [x, bias, slope]
        tensors[negated] = torch._neg_view(tensors[negated])
        for guard in (torch.no_grad, torch.inference_mode):
            with guard():
                assert torch.equal(way(*tensors, True), rectify_plain(*tensors, True))


@compiled
@pytest.mark.parametrize("way", [rectify, fused._Eager.apply])
def test_a_gradient_that_lies_otherwise_is_put_in_order(way):
    """As that of a sum, whose numbers are one number."""
    x, slope = normal((2, 8, 3, 3)).requires_grad_(), torch.full((8,), 0.25, requires_grad=True)
    out, plain = way(x, None, slope, True), normal(x.shape, 1)
    for grad in (torch.ones(1).expand(x.shape), plain.contiguous(), torch._neg_view(plain)):
        found = torch.autograd.grad(out, (x, slope), grad, retain_graph=True)
        wanted = rectify_backward_plain(grad, out.detach(), slope.detach(), True)
        assert torch.equal(found[0], wanted[0])
        assert distance(found[1], wanted[2]) < 1e-6


@compiled
def test_without_the_compiled_operator_the_one_in_python_serves(monkeypatch, tmp_path):
    x, act = normal((2, 8, 3, 3)).requires_grad_(), PReLU(8, 0.25)
    assert act(x).grad_fn.name() != "_EagerBackward"
    monkeypatch.setattr(native, "_operator", lambda: None)
    monkeypatch.setitem(compiling.FAULTS, "operator.cpp", "no header")
    assert act(x).grad_fn.name() == "_EagerBackward"
    told = dict(examine(str(tmp_path)))["kernels"]
    assert torch.cuda.is_available() or told.endswith("the operator that calls them (no header)")


@compiled
def test_an_operator_is_registered_once():
    """A second one of its name, as of a library compiled anew, could be the end of Python."""
    again = native._operator.__wrapped__()
    assert again is native.operator() is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_of_another_type_are_read_as_what_they_are(dtype):
    """As after net.bfloat16(), whereas kernels read fp32."""
    x, grad = normal((2, 8, 3, 3)), normal((2, 8, 3, 3), 1)
    act, bias = PReLU(8, 0.25).to(dtype), normal((8,), 2).to(dtype)
    out, wanted, *_ = act(x, bias), *exactly(x, bias, act.slope, grad)
    out.backward(grad)
    assert distance(out, wanted) < ROUNDING[torch.bfloat16]
    assert act.slope.grad.dtype == dtype


def test_parameters_with_gaps_are_read_where_they_lie():
    """Kernels read values that lie one after the other."""
    x, bias = normal((2, 8, 3, 3)), normal((16,), 1)[::2]
    for slope in (slopes_for(16, shared=False)[::2], torch.full((1,), 0.25).expand(8)):
        assert torch.equal(rectify(x, bias, slope, False), rectify_plain(x, bias, slope, False))
        one = torch.ones(1).expand(8)
        assert torch.equal(rectify(x, one, slope, False), rectify_plain(x, one, slope, False))


def test_as_many_biases_as_channels_are_asked_for():
    with pytest.raises(RuntimeError, match="size"):
        rectify(normal((2, 8, 3, 3)), torch.zeros(3), torch.zeros(1), False)
    with pytest.raises(RuntimeError, match="size"):
        rectify(normal((2, 8, 3, 3)), None, torch.zeros(3), False)


def test_kernels_are_given_no_fewer_numbers_than_they_read(monkeypatch):
    """A GPU's kernel would read beyond their end; the plain form refuses."""

    def never(*_):
        raise AssertionError("a kernel was called")

    monkeypatch.setitem(fused.KERNELS, "cpu", SimpleNamespace(knows=lambda x: True, rectify=never))
    x, slope, one = normal((2, 8, 3, 3)), slopes_for(8), torch.ones(1)
    with pytest.raises(RuntimeError, match="size"):
        rectify(x, None, torch.zeros(3), False)
    assert torch.equal(rectify(x, one, slope, False), rectify_plain(x, one, slope, False))


def test_a_slope_that_was_zero_can_leave_it():
    """At slope 0, f(y) for y < 0 is 0 for all that matters, and yet y can be read back from it."""
    x, slope = torch.tensor([[-2.0], [-3.0], [5.0]]), torch.zeros(1, requires_grad=True)
    out = rectify(x, None, slope, True)
    torch.testing.assert_close(out.detach(), torch.tensor([[0.0], [0.0], [5.0]]))
    out.backward(torch.ones(3, 1))
    assert slope.grad.item() == pytest.approx(-5)


@pytest.mark.parametrize("slope", [-0.5, 0.25])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_infinite_response_stays_large_or_is_no_number(dtype, slope):
    """So that a net that diverges is seen to, in whichever type it computes."""
    x = torch.tensor([math.inf, -math.inf]).repeat(1, 8, 4, 1).to(dtype)
    above, below = rectify(x, None, torch.full((8,), slope), True).unbind(-1)
    assert (below == math.copysign(math.inf, -slope)).all()
    if slope > 0:
        assert (above == math.inf).all()
    elif dtype.itemsize == 2:
        assert (above == torch.finfo(dtype).max).all()
    else:
        assert above.isnan().all()


@compiled
def test_sums_do_not_depend_on_the_number_of_threads():
    out, grad, slope = normal((16, 24, 20, 20)), normal((16, 24, 20, 20), 1), slopes_for(24)
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(native.rectify_backward(grad, out, slope, True))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_operator_keeps_the_rules_of_torch(dtype):
    """Its schema, its fake form (which torch.compile traces) and its autograd registration."""
    arguments = (normal((2, 8, 3, 3)).to(dtype).requires_grad_(), torch.zeros(8), slopes_for(8))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.delving.rectify, (*arguments, True), test_utils=checks)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_torch_compile_calls_has_the_values_and_gradients_of_the_eager_form(dtype, shared):
    found = []
    for form in (rectify, torch.ops.delving.rectify):
        x, bias, slope = normal((2, 8, 3, 3)).to(dtype), normal((8,), 1), slopes_for(8, shared)
        inputs = [t.requires_grad_() for t in (x, bias, slope)]
        out = form(*inputs, True)
        found.append([out, *torch.autograd.grad(out, inputs, normal((2, 8, 3, 3), 2).to(dtype))])
    for eager, compiled_form in zip(*found, strict=True):
        torch.testing.assert_close(compiled_form, eager, rtol=0, atol=0)


def kept_bytes(act):
    """The bytes that a small net keeps for its backward pass, each tensor counted once."""
    config = compose(
        ["scale=smoke", "model=small14", "data.crop=56", "train.dropout=0", f"act={act}"]
    )
    net = materialise(build_model(config, 4)[0], config, torch.device("cpu")).train()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(8, 3, 56, 56).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = net(x)
    assert out.requires_grad
    return sum(kept.values())


def test_a_prelu_net_keeps_no_more_for_its_backward_pass_than_a_relu_net():
    assert kept_bytes("prelu") <= 1.01 * kept_bytes("relu")


def test_the_bias_is_added_by_the_rectifier_unless_somebody_looks():
    """The same net, with a hook on each layer and without."""
    config = compose(["scale=smoke"])
    net = materialise(build_model(config, 4)[0], config, torch.device("cpu"))
    with torch.no_grad():
        for p in net.features.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    x, seen = normal((2, 3, 28, 28)), []
    alone = net.features(x)
    hooks = [
        m.register_forward_hook(lambda m, i, y: seen.append(y)) for m in net.features.children()
    ]
    torch.testing.assert_close(net.features(x), alone)
    assert len(seen) == len(hooks)
    for hook in hooks:
        hook.remove()
    first, act = list(net.features)[:2]
    torch.testing.assert_close(act(seen[0]), seen[1])
    torch.testing.assert_close(seen[0], first(x))


# SPP


@compiled
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (7, 3, 2, 1)])
@pytest.mark.parametrize("sides", [(4, 4), (18, 18), (14, 9), (1, 5)])
@pytest.mark.parametrize("tied", [False, True])
def test_compiled_pyramid_pooling_equals_the_plain_one_to_the_last_bit(dtype, levels, sides, tied):
    x = normal((3, 5, *sides)).to(dtype)
    x = x.relu() if tied else x
    apart = [x.clone().requires_grad_() for _ in range(2)]
    out, wanted = SPP(levels)(apart[0]), pool_levels(apart[1], levels)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    grad = normal(out.shape, 1).to(dtype)
    out.backward(grad)
    wanted.backward(grad)
    # The maximum of several overlapping bins sums their gradients: here in fp32, rounded once.
    rounding = 1e-6 if dtype == torch.float32 else 1e-2
    assert distance(apart[0].grad, apart[1].grad) < rounding


@compiled
def test_a_gradients_gradient_of_pyramid_pooling_is_that_of_the_plain_one():
    x = normal((2, 16, 5, 5)).requires_grad_()
    y = x.detach().double().requires_grad_()
    found = []
    for pooled, of in ((SPP((3, 2, 1))(x), x), (pool_levels(y, (3, 2, 1)), y)):
        [grad] = torch.autograd.grad((pooled**3).sum(), of, create_graph=True)
        found += torch.autograd.grad((grad**2).sum(), of)
    assert distance(*found) < 1e-5


@compiled
def test_pyramid_poolings_gradient_from_a_negated_one_is_that_of_its_numbers():
    x = normal((2, 8, 3, 3)).requires_grad_()
    out, grad = SPP((2, 1))(x), normal((2, 40), 1)
    negated, wanted = (
        torch.autograd.grad(out, x, g, retain_graph=True)[0] for g in (torch._neg_view(grad), -grad)
    )
    assert torch.equal(negated, wanted)


@compiled
def test_pyramid_pooling_takes_its_gradient_however_it_lies():
    x = normal((2, 8, 5, 5)).requires_grad_()
    for grad in (torch.ones(1).expand(2, 40), normal((40, 2), 1).T):
        found, wanted = (
            torch.autograd.grad(pooled, x, grad)[0]
            for pooled in (SPP((2, 1))(x), pool_levels(x, (2, 1)))
        )
        assert distance(found, wanted) < 1e-6


@compiled
def test_a_kernel_without_memory_says_so(monkeypatch):
    """What it should have written is not there."""
    monkeypatch.setattr(native, "_function", lambda *_: lambda *_: 1)
    with pytest.raises(MemoryError):
        native.rectify(normal((2, 8)), None, torch.zeros(1), False)


def test_pyramid_pooling_hands_on_what_is_no_number():
    x = normal((1, 2, 6, 6))
    x[0, 1, 2, 3] = torch.nan
    out = SPP((2, 1))(x)
    torch.testing.assert_close(out, pool_levels(x, (2, 1)), equal_nan=True)
    assert out.isnan().sum() == 2
    of_windows = SPP((2, 1)).windows(x, 6)[:, 0, 0]
    torch.testing.assert_close(of_windows, out, rtol=0, atol=0, equal_nan=True)


@compiled
@few
@given(
    images=st.integers(1, 3),
    channels=st.sampled_from([1, 5, 32, 200]),
    size=st.integers(1, 18),
    more=st.tuples(st.integers(0, 6), st.integers(0, 40)),
    levels=st.sampled_from([(6, 3, 2, 1), (7, 3, 2, 1), (1,), (2, 8)]),
    dtype=st.sampled_from(TYPES),
)
def test_compiled_pooling_of_all_windows_equals_the_plain_one_to_the_last_bit(
    images, channels, size, more, levels, dtype
):
    """Where a gradient is wanted the plain form computes, as for float64 (test_spp.py)."""
    x = normal((images, channels, size + more[0], size + more[1])).to(dtype)
    found, wanted = SPP(levels).windows(x, size), SPP(levels).windows(x.requires_grad_(), size)
    assert wanted.requires_grad
    assert not found.requires_grad
    assert found.is_contiguous()
    torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=0)


# Without a compiler, or with a bad one


@contextmanager
def loading_anew(monkeypatch, **environment):
    for key, value in environment.items():
        monkeypatch.setenv(key, str(value))
    native.load.cache_clear()
    native._function.cache_clear()
    try:
        yield
    finally:
        monkeypatch.undo()
        native.load.cache_clear()
        native._function.cache_clear()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "true"])
def test_where_nothing_compiles_the_plain_forms_serve(monkeypatch, tmp_path, compiler):
    """No compiler, one that fails, and one that reports success but writes nothing."""
    x, act = normal((2, 4, 3, 3)), PReLU(4, 0.25)
    wanted = act(x)
    with loading_anew(monkeypatch, CXX=compiler, XDG_CACHE_HOME=tmp_path):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # it has kernels of its own
        assert native.load() is None
        torch.testing.assert_close(act(x), wanted)
        torch.testing.assert_close(SPP((2, 1))(x), pool_levels(x, (2, 1)))
        told = dict(examine(str(tmp_path)))["kernels"]
    assert re.match(r"none \(.+\): compiled by a C\+\+ compiler", told)
    assert compiler != "no-such-compiler" or "no C++ compiler (no-such-compiler)" in told
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@compiled
@pytest.mark.parametrize("words", ["", "{} -O1", "env {}"])
def test_the_compiler_is_a_command_with_words_or_none(monkeypatch, tmp_path, words):
    """As for ccache, or a cross compiler's flags."""
    command = words.format(shutil.which(os.environ.get("CXX") or "c++"))
    with loading_anew(monkeypatch, CXX=command, XDG_CACHE_HOME=tmp_path):
        assert native.load() is not None
    assert [*tmp_path.rglob("*.so")]


@compiled
def test_kernels_are_compiled_once_and_a_damaged_file_is_not_fatal(monkeypatch, tmp_path):
    with loading_anew(monkeypatch, XDG_CACHE_HOME=tmp_path):
        assert native.load() is not None
    [made] = tmp_path.rglob("*.so")
    before = made.stat().st_mtime_ns
    with loading_anew(monkeypatch, XDG_CACHE_HOME=tmp_path):
        assert native.load() is not None
    assert made.stat().st_mtime_ns == before
    cut = tmp_path / "other" / "delving" / made.name
    cut.parent.mkdir(parents=True)
    cut.write_bytes(made.read_bytes()[:1000])
    shutil.copy(made.with_suffix(".sha256"), cut.with_suffix(".sha256"))
    with loading_anew(monkeypatch, XDG_CACHE_HOME=tmp_path / "other"):
        assert native.load() is not None
    assert cut.read_bytes() == made.read_bytes()


def test_a_relative_cache_folder_counts_as_none(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for told in ("cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", told)
        assert compiling._folder() == tmp_path / ".cache" / "delving"


@compiled
def test_a_home_that_cannot_be_written_leaves_the_plain_forms(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    with loading_anew(monkeypatch, XDG_CACHE_HOME=tmp_path / "file"):
        assert native.load() is None


def losses_of(seed, precision, steps=40):
    """The training losses of a small net on one batch, again and again."""
    bench = build(["scale=smoke", f"seed={seed}", "device=cpu", f"precision={precision}"])
    recipe = replace(bench.recipe, lr=0.005)
    batches = (bench.batch for _ in range(steps))
    return [
        step.loss
        for step in train(
            bench.net, bench.input, build_optimizer(bench.net, recipe), batches=batches,
            recipe=recipe, progress=Progress(), autocast=bench.autocast,
        )
    ]  # fmt: skip


@compiled
@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.01), ("bf16", 0.05)])
def test_a_runs_losses_with_the_kernels_are_those_without_but_for_rounding(
    monkeypatch, precision, share
):
    """Even a small share of the difference that another seed makes would be seen."""
    fast, other = losses_of(0, precision), losses_of(1, precision)
    monkeypatch.setattr(native, "load", lambda: None)
    plain = losses_of(0, precision)
    noise = max(abs(a - b) for a, b in zip(plain, other, strict=True))
    assert max(abs(a - b) for a, b in zip(plain, fast, strict=True)) < share * noise
    assert fast[-1] < fast[0]


# Triton: running its programs takes a GPU; interpreting and compiling them does not

INTERPRETED = """
import torch
import torch.nn.functional as F
from delving.data.input import Input
from delving.fused import rectify_backward_plain, rectify_plain
from delving.kernels import gpu
from delving.spp import SPP, pool_levels
from test_kernels import TYPES, distance, normal, slopes_for
from test_stem import fold

for shape in [(5, 3), (2, 8, 5, 7), (2, 130, 9, 9)]:
    for dtype in TYPES:
        for shared in (False, True):
            for learned in (False, True):
                x, grad = (normal(shape, i).to(dtype) for i in (0, 1))
                slope = slopes_for(shape[1], shared)
                for bias in (None, normal(shape[1:2], 2)):
                    out, wanted = (f(x, bias, slope, learned) for f in (gpu.rectify, rectify_plain))
                    # The interpreter cuts bf16 off where the machine rounds.
                    rounding = 0 if dtype == torch.float32 else 1e-2
                    assert distance(out, wanted) <= rounding, (shape, dtype, shared, learned)
                    marked = slope.expand(shape[1]) < 0  # by whole numbers, which it does not cut
                    assert torch.equal(out[:, marked], wanted[:, marked])
                    found = gpu.rectify_backward(grad, wanted, slope, learned)
                    plain = rectify_backward_plain(grad, wanted, slope, learned)
                    assert distance(found[0], plain[0]) <= rounding
                    assert distance(found[1], plain[1]) < 1e-5
                    assert not learned or distance(found[2], plain[2]) < 1e-5
for shape, side in [((2, 3, 6, 4), 2), ((1, 130, 7, 5), 3), ((3, 8, 5, 5), 2)]:
    for dtype in TYPES:
        for shared in (False, True):
            for learned in (False, True):
                x, bias = normal(shape).to(dtype), normal(shape[1:2], 2)
                slope = slopes_for(shape[1], shared)
                x[0, 0, 1, 0] = torch.nan
                for b in (bias, None):
                    out, chosen = gpu.rectify_pool(x, b, slope, learned, side)
                    whole = gpu.rectify(x, b, slope, learned)
                    wanted, at = F.max_pool2d(whole, side, return_indices=True)
                    assert torch.equal(out.nan_to_num(9), wanted.nan_to_num(9)), (shape, dtype)
                    rows, columns = at // shape[3] % side, at % shape[3] % side
                    assert torch.equal(chosen.long(), rows * side + columns)
                    grad = normal(out.shape, 1).to(dtype)
                    about = (slope, learned, shape, side)
                    found = gpu.rectify_pool_backward(grad, out, chosen, *about)
                    spread = F.max_unpool2d(grad.float(), at, side, output_size=shape[2:]).to(dtype)
                    spread = spread.contiguous(memory_format=torch.channels_last)
                    plain = gpu.rectify_backward(spread, whole, slope, learned)
                    assert torch.equal(found[0], plain[0])
                    for ours, exact in zip(found[1:], plain[1:], strict=True):
                        assert distance(ours[1:], exact[1:]) < 1e-5
for dtype in TYPES:
    assert gpu._wrong(dtype, gpu.programs(), "cpu") == ""
    for shape, levels in [
        ((2, 3, 5, 4), (3, 2, 1)), ((1, 600, 1, 2), (1, 2)), ((1, 1, 1, 5), (2,)),
    ]:
        for tied in (False, True):
            x = normal(shape).to(dtype)
            x = x.relu() if tied else x
            out, *kept = gpu.spp(x, levels)
            exact = x.double().requires_grad_()
            wanted = pool_levels(exact, levels)
            assert torch.equal(out.double(), wanted.detach())
            grad = normal(out.shape, 1).to(dtype)
            wanted.backward(grad.double())
            found = gpu.spp_backward(grad, x, *kept, levels)
            assert distance(found, exact.grad) < (1e-6 if dtype == torch.float32 else 1e-2)
for dtype in TYPES:
    for shape, size, levels in [((2, 3, 7, 6), 5, (3, 2, 1)), ((1, 20, 4, 9), 4, (4, 1))]:
        x = normal(shape).to(dtype)
        plain = SPP(levels).windows(x.requires_grad_(), size)
        assert torch.equal(gpu.spp_windows(x.detach(), levels, size), plain)
for shape in [(2, 3, 10, 8), (1, 3, 9, 13), (3, 3, 40, 41)]:
    x = normal(shape)
    assert torch.equal(gpu.fold(x, torch.float32), fold(x))
for shape in [(2, 5, 7, 3), (3, 40, 30, 3)]:
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    plain = Input(normal((3, *shape[1:3])).contiguous(), torch.zeros(3, 3), 57.3)
    for shift in (None, normal((shape[0], 3), 1)):
        found = gpu.prepare(pixels, plain.mean, shift, plain.std)
        assert torch.equal(found, plain(pixels, shift))
x = normal((1, 2, 6, 6))
x[0, 1, 2, 3] = torch.nan
assert torch.equal(gpu.spp(x, (2, 1))[0].isnan(), pool_levels(x, (2, 1)).isnan())
print("all equal")
"""

FOR_A_GPU = """
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from delving.kernels import pooling, programs

sizes = dict(SHARED=0, LEARNED=True, ROWS=32, COLUMNS=128)
types = {"bias": "*fp32", "slope": "*fp32", "sums": "*fp32", "tied": "*i16", "levels": "*i32"}
types |= {"chosen": "*u8", "pixels": "*u8"} | dict.fromkeys(["shift", "mean", "std"], "*fp32")
numbers = "cells rows columns channels height width features bins count before size"
types |= dict.fromkeys(numbers.split(), "i32")
for kind, bits in (("bf16", tl.int16), ("fp32", tl.int32)):
    rectifying = {**sizes, "BITS": bits}
    for program, fixed in (
        (programs.rectify, {**rectifying, "BIASED": True}),
        (programs.rectify_backward, rectifying),
        (programs.rectify_pool, {**rectifying, "BIASED": True, "SIDE": 3}),
        (programs.rectify_pool_backward, {**rectifying, "SIDE": 3, "BELOW": 1, "BESIDE": 2}),
        (pooling.pool, dict(COLUMNS=512)),
        (pooling.pool_backward, dict(COLUMNS=512)),
        (pooling.prepare, dict(SHIFTED=True, NUMBERS=1024)),
        (pooling.fold, dict(ROWS=256)),
        (pooling.pool_windows, dict(SIDE=3, EXTENT=6, BINS=16, COLUMNS=256)),
    ):
        names = program.arg_names
        signature = {n: "constexpr" if n in fixed else types.get(n, "*" + kind) for n in names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
                   if n not in fixed and (n == "channels" or "*" in signature[n])}
        source = ASTSource(program, signature, fixed, aligned)
        made = compile(source, target=GPUTarget("cuda", 90, 32))
        # Of SPP's bins a thread has four channels at a time.
        few = kind == "bf16" and program in (pooling.pool, pooling.pool_backward)
        wide = f"ld.global.v{2 if few else 4}"
        loads = [line for line in made.asm["ptx"].splitlines() if wide in line]
        narrow = program in (pooling.prepare, pooling.fold)  # three channels
        assert loads or narrow, f"{program}: no loads so wide as {wide}"
        assert made.asm["cubin"]
print("all compiled")
"""


@triton
def test_the_triton_programs_compute_what_the_plain_forms_do():
    # Triton decides at its import whether it interprets.
    done = run_apart(INTERPRETED, TRITON_INTERPRET="1")
    assert done.stdout == "all equal\n", done.stderr


@triton
def test_the_triton_programs_compile_for_hopper_with_wide_loads(tmp_path):
    done = run_apart(FOR_A_GPU, TRITON_CACHE_DIR=str(tmp_path))
    if "ptxas" in done.stderr and "not found" in done.stderr:
        pytest.skip("triton has no assembler here")
    assert done.stdout == "all compiled\n", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_on_a_gpu_the_operator_and_its_gradients_are_those_of_the_formula(shape, dtype):
    x, bias, slope = normal(shape).to(dtype), normal(shape[1:2], 1), slopes_for(shape[1])
    grad = normal(shape, 2).to(dtype)
    wanted = exactly(x, bias, slope, grad)
    x, bias, slope = (t.cuda().requires_grad_() for t in (x, bias, slope))
    out = rectify(x, bias, slope, True)
    out.backward(grad.cuda())
    for found, exact in zip((out, x.grad, bias.grad), wanted, strict=False):
        assert distance(found.cpu(), exact) < ROUNDING[dtype]
    plain = rectify_backward_plain(grad, out.detach().cpu(), slope.detach().cpu(), True)
    assert distance(slope.grad.cpu(), plain[2]) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("shape", "side"), [((3, 5, 18, 18), 2), ((2, 96, 14, 13), 3), ((1, 200, 2, 3), 2)]
)
def test_on_a_gpu_the_pooled_operator_is_pooling_of_the_operator(shape, side, dtype):
    x, bias, slope = normal(shape).to(dtype), normal(shape[1:2], 1), slopes_for(shape[1])
    results = []
    for way in (rectify_pool, lambda *a: F.max_pool2d(rectify(*a[:4]), side)):
        leaves = [t.cuda().requires_grad_() for t in (x, bias, slope)]
        out = way(*leaves, True, side)
        out.backward(normal(out.shape, 2).to("cuda", dtype))
        results.append((out, *(t.grad for t in leaves)))
    ours, plain = results
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])
    for found, wanted in zip(ours[2:], plain[2:], strict=True):
        assert distance(found, wanted) < 1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 18, 18), (2, 256, 9, 9), (2, 600, 14, 9), (1, 1, 1, 5)])
def test_on_a_gpu_pyramid_pooling_is_the_plain_one(shape, tied, dtype):
    x = normal(shape).to(dtype)
    x = x.relu() if tied else x
    ours, exact = x.cuda().requires_grad_(), x.double().requires_grad_()
    out, wanted = SPP((6, 3, 2, 1))(ours), pool_levels(exact, (6, 3, 2, 1))
    assert torch.equal(out.cpu().double(), wanted)
    grad = normal(out.shape, 1).to(dtype)
    out.backward(grad.cuda())
    wanted.backward(grad.double())
    assert distance(ours.grad.cpu(), exact.grad) < ROUNDING[dtype]


def test_a_gpu_named_without_a_number_is_the_current_one(monkeypatch):
    """torch.cuda.set_device refuses a device without an index, which `auto` gives."""
    told = []
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    for name in ("benchmark", "allow_tf32"):  # put back afterwards
        monkeypatch.setattr(torch.backends.cudnn, name, False)
    prepare_backend(torch.device("cuda"))
    prepare_backend(torch.device("cuda", 1))
    assert told == [torch.device("cuda", 1)]


PROGRAMS = ("rectify", "rectify_backward", "rectify_pool", "rectify_pool_backward", "pool",
            "pool_backward", "pool_windows", "fold", "prepare")  # fmt: skip


def pretended(**launched):
    """A stand-in for programs.py; programs that are not given do nothing."""
    programs = {name: launched.get(name, lambda *_, **__: None) for name in PROGRAMS}
    return SimpleNamespace(
        tl=SimpleNamespace(int32=None, int16=None),
        **{name: defaultdict(lambda call=call: call) for name, call in programs.items()},
    )


def test_where_triton_cannot_launch_the_plain_operators_compute():
    def broken(*_, **__):
        raise RuntimeError("no C compiler")

    for name in PROGRAMS:
        told = gpu._launch(pretended(**{name: broken}), "cpu")
        assert told == "Triton cannot compile here (RuntimeError: no C compiler)"


def test_where_triton_computes_otherwise_than_known_the_plain_operators_do():
    def seven(x, slope, bias, out, *_, **__):
        out.fill_(7)

    assert gpu._launch(pretended(rectify=seven), "cpu") == "Triton's rectify is wrong here"


def test_a_signal_while_triton_compiles_is_no_fault_of_it():
    def told(*_, **__):
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        gpu._launch(pretended(rectify=told), "cpu")
