"""Where the cells of a feature map look, and what regions are pooled to."""

import math

import numpy as np
import pytest
import slow
import torch
from composed import composed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from delving.build import build_model
from delving.detect.net import FastRCNN, map_geometry
from delving.spp import SPP

some = settings(max_examples=40)


# --- where cells look ---
def windows_of(features):
    """The convolutions and poolings only, with one channel, linear and with positive weights: the
    gradient of a cell is non-zero exactly where it looks."""
    twins = []
    for m in features:
        if isinstance(m, nn.Conv2d):
            twins.append(nn.Conv2d(1, 1, m.kernel_size, m.stride, m.padding, bias=False).double())
            nn.init.constant_(twins[-1].weight, 1 / m.weight[0, 0].numel())
        elif isinstance(m, nn.MaxPool2d):
            twins.append(nn.AvgPool2d(m.kernel_size, m.stride, m.padding))
    return nn.Sequential(*twins)


def fields_of(twin, side):
    """[(cell, first, last)]: which pixels of a row a cell sees, for cells that see no padding."""
    image = torch.zeros(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    row = twin(image)[0, 0, :, :].diagonal()
    found = []
    for cell in row:
        [grad] = torch.autograd.grad(cell, image, retain_graph=True)
        seen = grad[0, 0].amax(0).nonzero().flatten().tolist()
        found.append((seen[0], seen[-1]))
    size = max(last - first for first, last in found)
    return [(i, *pair) for i, pair in enumerate(found) if pair[1] - pair[0] == size]


SMALL = {
    "one convolution": [nn.Conv2d(1, 1, 3, padding=1)],
    "a stride": [nn.Conv2d(1, 1, 7, 2, padding=3), nn.Conv2d(1, 1, 3, padding=1)],
    "an even filter, padded or not": [nn.Conv2d(1, 1, 2), nn.Conv2d(1, 1, 2, padding=1)],
    "one even filter": [nn.Conv2d(1, 1, 2)],
    "no padding": [nn.Conv2d(1, 1, 5), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 3)],
    "pooling with padding": [nn.Conv2d(1, 1, 3, 2, 1), nn.MaxPool2d(3, 2, 1)],
    "strides after even filters": [nn.Conv2d(1, 1, 2, 3), nn.MaxPool2d(2, 2), nn.Conv2d(1, 1, 4)],
}


@pytest.mark.parametrize("what", SMALL)
def test_a_cell_looks_around_where_the_geometry_says(what):
    features = nn.Sequential(*SMALL[what])
    stride, start = map_geometry(features)
    whole = fields_of(windows_of(features), 40)
    assert len(whole) >= 2
    for cell, first, last in whole:
        assert (first + last) / 2 == start + cell * stride


@pytest.mark.parametrize(("model", "side"), [("small14", 96), ("a", 176), ("vgg_b", 256)])
def test_cells_of_the_papers_nets_look_around_where_the_geometry_says(model, side):
    config = composed(("scale=smoke", f"model={model}", "act=relu", "data.crop=56"))
    features = build_model(config, 4)[0].features
    stride, start = map_geometry(features)
    whole = fields_of(windows_of(features), side)
    assert len(whole) >= 2
    for cell, first, last in whole:
        assert (first + last) / 2 == start + cell * stride


def test_the_geometry_of_the_papers_own_nets_is_the_known_one():
    """A, B and C have VGG's 16; small14 has 2 x 3 x 2: a stem of stride 2, poolings of 3 and 2."""
    for model, stride in (("a", 16), ("small14", 12)):
        config = composed(("scale=paper", f"model={model}", "act=relu"))
        assert map_geometry(build_model(config, 10)[0].features)[0] == stride


def test_a_change_of_one_pixel_reaches_the_cells_that_look_at_it():
    """With maxima instead of means: the cells that a NaN pixel reaches lie around it."""
    features = nn.Sequential(
        nn.Conv2d(3, 4, 7, padding=3),
        nn.MaxPool2d(3),
        nn.Conv2d(4, 4, 2),
        nn.Conv2d(4, 4, 2, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3),
    )
    stride, start = map_geometry(features.double())
    image = torch.zeros(1, 3, 120, 120, dtype=torch.float64)
    image[0, :, 60, 48] = torch.nan
    with torch.no_grad():
        reached = features(image)[0, 0].isnan()
    rows, columns = (reached.any(axis).nonzero().flatten() for axis in (1, 0))
    half = stride / 2
    assert (rows[0] + rows[-1]) / 2 * stride + start == pytest.approx(60, abs=half)
    assert (columns[0] + columns[-1]) / 2 * stride + start == pytest.approx(48, abs=half)


# --- pooling ---
def bare(bins, stride=6, start=2.5):
    """A detector with this geometry, usable for its pooling only."""
    made = FastRCNN(nn.Sequential(), nn.Sequential(), bins=bins, units=1, classes=1)
    made.stride, made.start = stride, start
    return made


def check_pool(made, feature_map, rois):
    ours = made.pool(feature_map, torch.tensor(rois, dtype=torch.float64))
    theirs = [slow.pool(feature_map[0].tolist(), roi, made.bins, start=made.start,
                        stride=made.stride) for roi in rois]  # fmt: skip
    assert ours.shape == (len(rois), feature_map.shape[1], made.bins, made.bins)
    np.testing.assert_array_equal(ours.numpy(), np.array(theirs))


def draw_map(height, width, channels=2, seed=0):
    """A map of cells that all differ, most of them below 0: an empty bin's 0 would show."""
    draws = np.random.default_rng(seed).permutation(channels * height * width).astype(np.float64)
    return torch.from_numpy(draws.reshape(1, channels, height, width) - 1.5 * draws.size)


@pytest.mark.parametrize("bins", [1, 2, 3, 6, 7])
def test_regions_are_pooled_as_by_the_slow_loops(bins):
    rois = [
        (0, 0, 78, 60),  # all of it
        (0, 0, 1, 1), (77, 59, 78, 60),  # a corner's pixel
        (0, 0, 6, 6), (2, 2, 3, 3), (5, 5, 7, 7),  # one cell or two
        (70, 0, 78, 60), (0, 50, 78, 60), (72, 54, 78, 60),  # along the edges
        (11, 7, 52, 44), (3, 20, 75, 31), (30, 3, 41, 58), (12.4, 9.7, 33.3, 51.2),
    ]  # fmt: skip
    check_pool(bare(bins), draw_map(10, 13), rois)


# Below 29 cells: at 29, torchvision's 7 bins see a thirtieth cell, by rounding.
edges = st.tuples(st.integers(0, 159), st.integers(1, 160)).map(
    lambda pair: (pair[0], min(pair[0] + pair[1], 160))
)


GEOMETRIES = [(6, 2.5), (8, 3.5), (16, 7.5), (12, 0.0), (10, -1.5), (10, 17.0)]


@some
@given(st.lists(st.tuples(edges, edges), min_size=1, max_size=3), st.sampled_from([3, 6, 7]),
       st.sampled_from(GEOMETRIES))  # fmt: skip
def test_any_region_is_pooled_as_by_the_slow_loops(pairs, bins, geometry):
    rois = [(x[0], y[0], x[1], y[1]) for x, y in pairs]
    cells = math.ceil(160 / geometry[0])
    check_pool(bare(bins, *geometry), draw_map(cells, cells, channels=1), rois)


def test_a_whole_map_is_pooled_as_in_training():
    """RoI pooling has the bins that SPP has on the same cells."""
    for cells in range(1, 31):
        feature_map = draw_map(cells, cells, channels=1)
        for bins in (3, 6, 7):
            whole = torch.tensor([[0.0, 0, 6 * cells, 6 * cells]], dtype=torch.float64)
            ours = bare(bins).pool(feature_map, whole)
            np.testing.assert_array_equal(ours.flatten(1), SPP([bins])(feature_map))


def test_maps_of_half_precision_are_pooled_in_full():
    made = bare(2)
    pooled = made.pool(draw_map(4, 4).bfloat16(), torch.tensor([[0.0, 0, 24, 24]]))
    assert pooled.dtype == torch.float32
