"""The folded first layer is the convolution that it replaces."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from delving.stem import convolve, fold_weight

few = settings(max_examples=30)


def drawn(*shape, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=torch.float64)


def fold(x):
    """(N, 3, H, W) to blocks of 2 x 2 cells, (N, 16, ceil(H / 2) + 3, ceil(W / 2) + 3): 12 channels
    ordered by (row, column, channel), then four of zeros. The image is padded with four rows and
    columns of zeros before it, and two or three after it."""
    height, width = x.shape[2:]
    x = F.pad(x, (4, 2 + width % 2, 4, 2 + height % 2))
    cells = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.cat([*cells, torch.zeros_like(torch.cat(cells, 1)[:, :4])], 1)


@few
@given(height=st.integers(1, 40), width=st.integers(1, 40), filters=st.integers(1, 5))
def test_it_is_the_7x7_convolution_with_stride_2_of_any_image(height, width, filters):
    x, weight = drawn(2, 3, height, width), drawn(filters, 3, 7, 7, seed=1)
    found = F.conv2d(fold(x), fold_weight(weight))
    torch.testing.assert_close(found, F.conv2d(x, weight, None, 2, 3), rtol=1e-12, atol=1e-12)


def test_its_weights_get_the_same_gradient():
    x, grads = drawn(2, 3, 14, 13), []
    for way in (lambda w: F.conv2d(fold(x), fold_weight(w)),
                lambda w: F.conv2d(x, w, None, 2, 3)):  # fmt: skip
        weight = drawn(4, 3, 7, 7, seed=1).requires_grad_()
        out = way(weight)
        out.backward(drawn(*out.shape, seed=2))
        grads.append(weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_a_cpu_convolves_as_it_always_does():
    layer, x = nn.Conv2d(3, 4, 7, 2, 3), drawn(2, 3, 20, 20).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(convolve(layer, x), F.conv2d(x, layer.weight, None, 2, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("side", [(224, 224), (97, 64)])
def test_on_a_gpu_it_is_the_convolution_to_the_rounding_of_bf16(side):
    x = drawn(4, 3, *side)
    layer = nn.Conv2d(3, 64, 7, 2, 3, bias=False).double()
    exact = layer(x)
    grad = drawn(*exact.shape, seed=2)
    exact.backward(grad)
    wanted, seen = (exact.detach(), layer.weight.grad.clone()), []
    layer.weight.grad = None
    layer = layer.float().cuda()
    handle = torch.nn.functional.conv2d
    with torch.autocast("cuda", torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "conv2d", lambda *a: seen.append(a[0].shape[1]) or handle(*a))
        out = convolve(layer, x.float().cuda().contiguous(memory_format=torch.channels_last))
    assert seen == [16]
    out.backward(grad.cuda().bfloat16())
    for found, right in zip((out, layer.weight.grad), wanted, strict=True):
        error = (found.double().cpu() - right).norm() / right.norm()
        assert error < 1e-2
