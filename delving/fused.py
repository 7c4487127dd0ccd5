"""The operator behind the rectifiers: it adds a layer's bias and rectifies; its backward gives the
gradients of response, bias and slope together.

Of the responses it saves only its output, which the next layer saves anyway, so a PReLU net needs
no more memory than a ReLU net; the backward recovers the rest from that output.

ours: where a slope is negative, f(y) > 0 on both sides of 0, and the last bit of f(y) tells the
side, so that f(y) may be off by one unit in its last place there.

An infinite y above 0 cannot be marked so: it becomes the largest finite number in 16 bits, and nan
in more.

ours: a learned slope nearer to 0 than 2^-60 (2^-10 in float16) counts as 2^-60 of its sign, so that
f(y) / a is y.
"""

from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from delving.kernels import KERNELS, is_transformed, is_watched, native

# In float16's range of exponents, 2^-10 times a response of 1 still has all its digits.
REACH = {torch.float16: 2.0**-10}
USUAL_REACH = 2.0**-60
INTEGERS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}
INTEGERS[torch.float16] = torch.int16


def by_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) or (1,), reshaped to broadcast along the channels of `like`."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


def reach(slope: Tensor, learned: bool, kind: torch.dtype) -> Tensor:
    """The slopes to compute with for responses of type `kind`: learned ones are kept off 0."""
    if not learned:
        return slope
    least = REACH.get(kind, USUAL_REACH)
    return slope.where(slope.abs() >= least, torch.copysign(torch.full_like(slope, least), slope))


def rectify_plain(x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool) -> Tensor:
    """f(x + bias), computed in the slope's type: (N, C, ...) to the same."""
    z = _response(x, bias, slope)
    a = by_channel(reach(slope, learned, x.dtype), x)
    f = torch.where(z > 0, z, a * z)
    y = f.to(x.dtype)
    if x.device.type == "cpu" and not (a < 0).any():  # on a GPU .any() would wait
        return y
    bits = y.view(INTEGERS[y.dtype])
    return torch.where(a < 0, _marked(f, y, z > 0), bits).view(y.dtype)


def _response(x: Tensor, bias: Tensor | None, slope: Tensor) -> Tensor:
    z = x.to(slope.dtype)
    return z if bias is None else z + by_channel(bias, x)


def _marked(f: Tensor, y: Tensor, above: Tensor) -> Tensor:
    """The bits of f in y's type, rounded to the nearest value whose last bit tells the side of 0; y
    is f rounded without that condition. Of two values equally near, the one whose last bit but one
    is 1 is taken, so that ties go up as often as down."""
    bits = y.view(INTEGERS[y.dtype])
    if bits.dtype != torch.int16:  # one part in 2^24 is not worth the work
        return (bits & ~1) | above
    up = torch.where(f == y, (bits ^ bits >> 1) & 1 > 0, f > y)
    return torch.where((bits & 1) == above, bits, torch.where(up, bits + 1, bits - 1))


def rectify_backward_plain(
    grad: Tensor, out: Tensor, slope: Tensor, learned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, typed as `out`, and of bias and slope: (C,) each, in the slope's type."""
    a = by_channel(reach(slope, learned, out.dtype), out)
    positive = torch.where(a < 0, (out.view(INTEGERS[out.dtype]) & 1) > 0, out > 0)
    wide, y = grad.to(slope.dtype), out.to(slope.dtype)
    grad_x = torch.where(positive, wide, a * wide)
    others = [d for d in range(out.dim()) if d != 1]
    grad_slope = torch.where(positive, 0, wide * y / a).sum(others)
    return grad_x.to(out.dtype), grad_x.sum(others), grad_slope


def _dense(x: Tensor) -> Tensor:
    """x itself if it is dense in a layout that nets use, else a contiguous copy."""
    return x if native.channels_innermost(x) else x.contiguous()


PLAIN = SimpleNamespace(rectify=rectify_plain, rectify_backward=rectify_backward_plain)


def _pick(kernels, x: Tensor, slope: Tensor, bias: Tensor | None = None):
    """The kernels if they can take these tensors, else the plain forms. Kernels assume, unchecked,
    that there are channels, and that parameters are fp32 and contiguous: one bias a channel, and
    one slope a channel or a single one."""
    if not kernels or not kernels.knows(x):
        return PLAIN
    channels = x.shape[1]
    fits = _are_plain(slope, 1, channels) and (bias is None or _are_plain(bias, channels))
    return kernels if channels and fits else PLAIN


def _are_plain(values: Tensor, *counts: int) -> bool:
    dense = values.dtype == torch.float32 and values.dim() == 1 and values.is_contiguous()
    return dense and values.shape[0] in counts and native.is_plain(values)


def _rectify(x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool, kernels=None) -> Tensor:
    x = _dense(x)
    return _pick(kernels, x, slope, bias).rectify(x, bias, slope, learned)


def _rectify_backward(
    grad: Tensor, out: Tensor, slope: Tensor, learned: bool, kernels=None
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _pick(kernels, out, slope)
    return kernels.rectify_backward(_lying_as(out, grad), out, slope, learned)


def _lying_as(out: Tensor, grad: Tensor) -> Tensor:
    alike = grad.stride() == out.stride() and native.is_plain(grad)
    return grad if alike else torch.empty_like(out).copy_(grad)


def _as_computed(out: Tensor, grad: Tensor) -> Tensor:
    """A saved output in the type that it had: hooks on saved tensors may keep them in another. Its
    gradient is of that type. In fewer bits the side of 0 is lost where a slope is negative."""
    return out.to(grad.dtype)


def _fake(x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool) -> Tensor:
    return torch.empty_like(_dense(x))


def _fake_backward(
    grad: Tensor, out: Tensor, slope: Tensor, learned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    by_channel = slope.new_empty(out.shape[1])
    return torch.empty_like(out), by_channel, torch.empty_like(by_channel)


class _Eager(torch.autograd.Function):
    """The operator for GPUs, and where operator.cpp's cannot serve. torch's dispatch to functions
    in Python takes longer than a small layer's own work."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool) -> Tensor:
        out = _rectify(x, bias, slope, learned, KERNELS.get(x.device.type))
        _keep(ctx, (x, bias, slope, learned), out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        out, slope = ctx.saved_tensors
        # With create_graph none: kernels have no gradients of their own.
        kernels = None if torch.is_grad_enabled() else KERNELS.get(grad.device.type)
        given = (grad, _as_computed(out, grad), slope, ctx.learned)
        return _given(ctx, *_rectify_backward(*given, kernels))


def _keep(ctx, inputs: tuple, output: Tensor, *more: Tensor) -> None:
    _, bias, slope, ctx.learned = inputs
    ctx.shared, ctx.biased = slope.numel() == 1, bias is not None
    ctx.save_for_backward(output, slope, *more)


def _given(ctx, grad_x: Tensor, grad_bias: Tensor, grad_slope: Tensor) -> tuple:
    if ctx.shared:
        grad_slope = grad_slope.sum(0, keepdim=True)
    return grad_x, grad_bias if ctx.biased else None, grad_slope if ctx.learned else None, None


def _backward(ctx, grad: Tensor) -> tuple:
    out, slope = ctx.saved_tensors
    given = (grad, _as_computed(out, grad), slope, ctx.learned)
    return _given(ctx, *torch.ops.delving.rectify_backward(*given))


def _register() -> None:
    """Registers the operator for torch.compile, as `torch.ops.delving.rectify`."""
    library = torch.library
    library.define(
        "delving::rectify", "(Tensor x, Tensor? bias, Tensor slope, bool learned) -> Tensor"
    )
    library.define(
        "delving::rectify_backward",
        "(Tensor grad, Tensor out, Tensor slope, bool learned) -> (Tensor, Tensor, Tensor)",
    )
    for device in ("default", *KERNELS):
        kernels = KERNELS.get(device)
        library.impl("delving::rectify", device, partial(_rectify, kernels=kernels))
        library.impl(
            "delving::rectify_backward", device, partial(_rectify_backward, kernels=kernels)
        )
    library.define(
        "delving::rectify_backward_plain",
        "(Tensor grad, Tensor out, Tensor slope, bool learned) -> (Tensor, Tensor, Tensor)",
    )
    library.impl(  # for operator.cpp
        "delving::rectify_backward_plain", "CompositeImplicitAutograd", rectify_backward_plain
    )
    library.register_fake("delving::rectify", _fake)
    library.register_fake("delving::rectify_backward", _fake_backward)
    library.register_autograd("delving::rectify", _backward, setup_context=_keep)


_register()


def rectify(x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool) -> Tensor:
    """f(x + bias) with gradients: (N, C, ...) to the same; bias (C,), slope (C,) or (1,)."""
    if is_transformed():
        return _composed(x, bias, slope)
    if is_watched():
        return torch.ops.delving.rectify(x, bias, slope, learned)
    if x.is_cpu and (operator := native.operator()):
        out = operator(x, bias, slope, learned)
        if out is not None:
            return out
    return _Eager.apply(x, bias, slope, learned)


def _composed(x: Tensor, bias: Tensor | None, slope: Tensor) -> Tensor:
    """f(x + bias) of torch's own operators, which torch.func can transform; nothing is marked."""
    z = _response(x, bias, slope)
    return torch.where(z > 0, z, by_channel(slope, x) * z).to(x.dtype)


class _Pooled(torch.autograd.Function):
    """The operator fused with the max pooling after it: the rectified map is never written, and
    only each window's maximum and its place are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool, side: int):
        ctx.shape, ctx.side, ctx.kernels = x.shape, side, KERNELS[x.device.type]
        out, chosen = ctx.kernels.rectify_pool(x, bias, slope, learned, side)
        _keep(ctx, (x, bias, slope, learned), out, chosen)
        return out

    @staticmethod
    @once_differentiable  # raises if a gradient's gradient is wanted
    def backward(ctx, grad: Tensor) -> tuple:
        kept, slope, chosen = ctx.saved_tensors
        out, chosen = (
            x.contiguous(memory_format=torch.channels_last)
            for x in (_as_computed(kept, grad), chosen)
        )
        grad = _lying_as(out, grad)
        given = ctx.kernels.rectify_pool_backward(
            grad, out, chosen, slope, ctx.learned, ctx.shape, ctx.side
        )
        return *_given(ctx, *given), None


def rectify_pool(x: Tensor, bias: Tensor | None, slope: Tensor, learned: bool, side: int) -> Tensor:
    """Max pooling of `rectify`'s result over windows of side x side that do not overlap: (N, C, H,
    W) to (N, C, H // side, W // side). What is left at the map's edge is dropped."""
    kernels = KERNELS.get(x.device.type)
    fused = hasattr(kernels, "rectify_pool") and not is_watched()
    if fused and min(x.shape[2:]) >= side and _pick(kernels, x, slope, bias) is kernels:
        return _Pooled.apply(x, bias, slope, learned, side)
    return F.max_pool2d(rectify(x, bias, slope, learned), side)
