"""Spatial pyramid pooling (2.3): one rule for bin edges, in training and in dense testing."""

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from delving.spp import SPP, bin_edges, pool_bins, pool_levels

# Cells and bins a side: small14 at 224 and 56 (18/6, 9/6), A to C (14/3, 7/7, 7/3), crowded (4/7).
CASES = [(18, 6), (14, 3), (9, 6), (7, 7), (7, 3), (4, 7)]
SIDES = [*[(n, n, b) for n, b in CASES], (18, 13, 6), (14, 15, 3), (9, 7, 6), (4, 9, 7), (21, 4, 7)]
few = settings(max_examples=25)


def draw_maps(*shape, seed=0):
    """Feature maps in which no two cells tie."""
    count = int(np.prod(shape))
    cells = np.random.default_rng(seed).permutation(count) - count // 2
    return torch.from_numpy(cells.reshape(shape).astype(np.float64))


def pool_image_by_image(x, levels):
    return np.stack([oracles.pool_pyramid(image, levels) for image in x.numpy()])


@pytest.mark.parametrize(("height", "width", "bins"), SIDES)
def test_a_bin_holds_the_maximum_of_its_cells(height, width, bins):
    x = draw_maps(2, 3, height, width)
    expected = pool_image_by_image(x, [bins])
    np.testing.assert_array_equal(pool_bins(x, bins).flatten(1), expected)
    np.testing.assert_array_equal(SPP([bins])(x), expected)


@few
@given(n=st.integers(1, 60), b=st.integers(1, 20))
def test_bins_are_never_empty_and_leave_no_cell_out(n, b):
    edges = bin_edges(n, b)
    assert edges == oracles.bins(n, b)
    assert all(0 <= start < end <= n for start, end in edges)
    assert {cell for start, end in edges for cell in range(start, end)} == set(range(n))


@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (7, 3, 2, 1)])
def test_levels_follow_one_another_from_fine_to_coarse(levels):
    """50 bins a channel for the small models, 63 for the large ones."""
    x = draw_maps(2, 2, 14, 9)
    out = SPP(levels)(x)
    assert out.shape == (2, 2 * {6: 50, 7: 63}[levels[0]])
    np.testing.assert_array_equal(out, pool_image_by_image(x, levels))


@pytest.mark.parametrize(("n", "bins"), [(18, 6), (18, 3), (14, 7), (14, 2), (9, 1)])
def test_where_the_bins_divide_the_map_it_is_plain_max_pooling(n, bins):
    x = draw_maps(2, 3, n, n)
    np.testing.assert_array_equal(pool_bins(x, bins), F.max_pool2d(x, n // bins))


@pytest.mark.parametrize(("height", "width", "bins"), SIDES)
def test_the_gradient_reaches_exactly_the_maxima(height, width, bins):
    """Each bin hands its gradient to one cell; the maximum of several bins sums theirs."""
    x = draw_maps(1, 1, height, width).requires_grad_()
    out = SPP([bins])(x)
    grad = torch.arange(1.0, out.numel() + 1).double()[None]
    out.backward(grad)
    expected = np.zeros((height, width))
    for value, g in zip(out[0].tolist(), grad[0].tolist(), strict=True):
        expected[x.detach()[0, 0].numpy() == value] += g
    np.testing.assert_array_equal(x.grad[0, 0], expected)


@pytest.mark.parametrize(("height", "width", "bins"), [(9, 9, 6), (18, 18, 6), (4, 7, 7)])
def test_of_tied_cells_the_gradients_still_sum_to_the_bins(height, width, bins):
    x = torch.zeros(1, 1, height, width, dtype=torch.float64, requires_grad=True)
    SPP([bins])(x).sum().backward()
    assert x.grad.sum().item() == pytest.approx(bins * bins)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_forward_and_backward_are_deterministic(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    start = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0)).relu().to(device)
    grads = []
    torch.use_deterministic_algorithms(True)  # refuses what has no deterministic form on CUDA
    try:
        for _ in range(3):
            x = start.clone().requires_grad_()
            out = SPP([6, 3, 2, 1])(x)
            (out * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum().backward()
            grads.append(x.grad)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(grads[0], g) for g in grads)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "levels"), [(9, (6, 3, 2, 1)), (7, (7, 3, 2, 1)), (4, (7, 2))])
@pytest.mark.parametrize("more", [(0, 0), (2, 0), (1, 3)])
def test_pooling_all_windows_at_once_is_a_loop_over_windows(size, levels, more, layout):
    """Section 3: each window of the training map's size is pooled by SPP."""
    x = draw_maps(1, 2, size + more[0], size + more[1]).to(memory_format=layout)
    found = SPP(levels).windows(x, size)
    np.testing.assert_array_equal(found[0], oracles.pool_every_window(x[0].numpy(), size, levels))


@few
@given(
    size=st.integers(1, 9),
    rows=st.integers(0, 3),
    columns=st.integers(0, 3),
    levels=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_every_window_agrees_with_what_training_would_pool_there(size, rows, columns, levels, seed):
    x, spp = draw_maps(2, 3, size + rows, size + columns, seed=seed), SPP(levels)
    found = spp.windows(x, size)
    assert found.shape[:3] == (2, rows + 1, columns + 1)
    for y in range(rows + 1):
        for z in range(columns + 1):
            assert torch.equal(found[:, y, z], spp(x[:, :, y : y + size, z : z + size]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("levels", [(7, 3, 2, 1), (6, 3, 2, 1), (5,)])
def test_on_a_gpu_windows_are_pooled_as_one_by_one(levels):
    x = torch.randn(2, 40, 19, 17, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last).cuda()
    found = SPP(levels).windows(x, 14)
    assert found.shape[1:3] == (6, 4)
    for top in range(6):
        for left in range(4):
            window = x[:, :, top : top + 14, left : left + 14]
            assert torch.equal(found[:, top, left], pool_levels(window, levels))
