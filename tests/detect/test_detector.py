"""Fast R-CNN made from a trained net: its layers, its heads, which parts are trained."""

import math

import numpy as np
import oracles
import pytest
import torch
from composed import composed
from torch import nn

from delving.build import build_model, materialise
from delving.detect.net import build_detector, map_geometry
from delving.spp import SPP

CPU = torch.device("cpu")


def small_net(*words, model="small14"):
    """An fp64 net with its initial weights, but biases and slopes moved as if it were trained."""
    config = composed(("scale=smoke", f"model={model}", "act=prelu", "precision=fp64", *words))
    net, _ = build_model(config, 4)
    net = materialise(net, config, CPU)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=draws, dtype=p.dtype))
    return net


def detector(net=None, **settings):
    return build_detector(net or small_net(), **({"classes": 3, "frozen": 1, "seed": 0} | settings))


# --- made of a trained net ---
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (1, 2, 3, 6), (2, 6, 1), (4,)])
def test_fc1_keeps_the_weights_of_the_finest_level_times_what_the_others_leave(levels):
    net = small_net()
    cells = sum(n * n for n in levels)
    net.spp = SPP(levels)
    net.classifier[0] = nn.Linear(16 * cells, 20, dtype=torch.float64)
    trained = net.classifier[0].weight.detach().clone()  # (units, channels x all bins)
    net.classifier[3] = nn.Linear(20, 20, dtype=torch.float64)
    net.classifier[-1] = nn.Linear(20, 4, dtype=torch.float64)
    made = detector(net)
    finest, place = max(levels), 0
    for bins in levels:
        if bins == finest:
            break
        place += 16 * bins * bins
    wanted = trained[:, place : place + 16 * finest**2] * math.sqrt(cells / finest**2)
    assert made.bins == finest
    torch.testing.assert_close(made.hidden[0].weight.detach(), wanted, rtol=1e-12, atol=0)
    assert torch.equal(made.hidden[0].bias, net.classifier[0].bias)
    assert torch.equal(net.classifier[0].weight, trained)  # the net's own stays


def test_all_other_layers_are_the_nets_own():
    net = small_net()
    made = detector(net)
    assert made.features is net.features
    assert list(made.hidden)[1:] == list(net.classifier)[1:-1]
    assert made.classes == 3
    assert (made.stride, made.start) == map_geometry(net.features)


@pytest.mark.parametrize("model", ["vgg19", "vgg_b"])
def test_the_last_pooling_gives_way_to_that_of_regions(model):
    """Fast R-CNN, 2.2: RoI pooling takes the last max pooling's place, so that VGG's cells are 16
    pixels apart; at 32 the map would be pooled twice."""
    made = detector(small_net("data.crop=56", model=model))
    assert not isinstance(made.features[-1], nn.MaxPool2d)
    assert made.stride == 16


def test_responses_are_those_worked_out_layer_by_layer():
    """A region of the whole image: the map's finest bins, fc1's share of them, PReLU, fc2, PReLU,
    the heads."""
    net = small_net()
    made = detector(net).eval()
    image = torch.randn(1, 3, 40, 52, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        scores, shifts = made([image], [torch.tensor([[0.0, 0, 52, 40]])])
        feature_map = net.features(image)[0].numpy()
    x = oracles.pool_pyramid(feature_map, [6])
    fc1, fc2 = (net.classifier[n] for n in (0, 3))
    for layer, act, part in ((fc1, 1, math.sqrt(50 / 36)), (fc2, 4, 1.0)):
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        x = part * weight[:, : len(x)] @ x + bias
        slopes = net.classifier[act].slope.detach().numpy()
        x = oracles.rectify(x[None], slopes)[0]
    for head, ours in ((made.scores, scores[0]), (made.shifts, shifts[0].flatten())):
        np.testing.assert_allclose(ours.numpy(), head.weight.detach().numpy() @ x, rtol=1e-9)
    assert scores.shape == (1, 4)
    assert shifts.shape == (1, 3, 4)


def test_images_of_several_sizes_are_judged_as_each_by_itself():
    made = detector().eval()
    draws = torch.Generator().manual_seed(2)
    images = [torch.randn(1, 3, h, w, generator=draws).double() for h, w in ((40, 52), (60, 34))]
    rois = [torch.tensor([[0.0, 0, 30, 30], [10, 5, 52, 40]]), torch.tensor([[4.0, 8, 34, 60]])]
    with torch.no_grad():
        together = made(images, rois)
        apart = [made([image], [boxes]) for image, boxes in zip(images, rois, strict=True)]
    for ours, theirs in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.cat(theirs), rtol=1e-9, atol=1e-12)


def test_a_response_keeps_its_size_without_the_coarser_levels():
    """What sqrt(fan_in / kept) is for, shown on independent inputs of unit variance."""
    net = small_net()
    made = detector(net)
    x = torch.randn(400, 800, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        whole, part = net.classifier[0](x).std(), made.hidden[0](x[:, :576]).std()
    assert part / whole == pytest.approx(1, abs=0.05)


# --- what is trained ---
@pytest.mark.parametrize("frozen", [0, 1, 3, 11])
def test_frozen_layers_get_no_gradient_and_all_others_do(frozen):
    made = detector(frozen=frozen).eval()
    image = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)).double()
    scores, shifts = made([image], [torch.tensor([[0.0, 0, 40, 40], [4, 6, 30, 40]])])
    (scores.square().sum() + shifts.square().sum()).backward()
    names = [name for name, m in made.features.named_children() if isinstance(m, nn.Conv2d)]
    kept = {part for name in names[:frozen] for part in (name, f"{name}_act")}
    for name, p in made.named_parameters():
        still = name.startswith("features.") and name.split(".")[1] in kept
        assert p.requires_grad == (not still), name
        assert (p.grad is None) == still, name
    assert len(names) == 11


def test_more_frozen_layers_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"detect\.frozen=12: the net has 11 conv layers"):
        detector(frozen=12)


def test_a_net_without_hidden_fc_layers_is_refused():
    net = small_net()
    net.classifier = net.classifier[-1:]
    with pytest.raises(ValueError, match="no fc layer but the last"):
        detector(net)


def test_the_heads_are_drawn_as_fast_rcnns_are_by_the_seed_alone():
    first = detector(classes=20)
    again = detector(small_net("seed=5"), classes=20)
    other = detector(classes=20, seed=1)
    for head, std in (("scores", 0.01), ("shifts", 0.001)):
        weight = getattr(first, head).weight
        assert weight.std().item() == pytest.approx(std, rel=0.05)
        assert abs(weight.mean().item()) < 0.1 * std
        assert not getattr(first, head).bias.any()
        assert torch.equal(weight, getattr(again, head).weight)
        assert not torch.equal(weight, getattr(other, head).weight)
    assert first.scores.weight.shape == (21, 256)
    assert first.shifts.weight.shape == (80, 256)
    assert first.scores.weight.dtype == torch.float64  # like the trunk's
