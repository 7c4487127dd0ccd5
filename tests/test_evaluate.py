"""Section 3's testing: center, ten_view and dense scores, and the error rates made of them."""

import io
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from delving import evaluate
from delving.build import build_model, materialise
from delving.config import compose
from delving.data.images import Images, UndecodableImageError
from delving.data.input import Input
from delving.data.loader import Cache
from delving.device import autocast
from delving.evaluate import Tester as Scorer  # pytest would take Tester for tests
from delving.evaluate import error_rates, name_protocols, score_windows

CROP, CLASSES = 28, 4
SIZES = [(32, 32), (40, 32), (32, 40), (28, 28), (64, 33), (40, 32), (29, 51)]  # width, height
PROTOCOLS = ("center", "ten_view", "dense")
few = settings(max_examples=60)


def draw_pixels(size, seed):
    """(height, width, 3) of coarse colour fields, so that crops differ from one another."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def to_images(arrays):
    """Images in memory: PNG bytes in a dict, so that decoding gives the arrays back."""
    files, reads = {}, Counter()
    for i, pixels in enumerate(arrays):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        files[f"{i:02}.png"] = data.getvalue()

    def read(name):
        reads[name] += 1
        return files[name]

    classes = [f"class {i}" for i in range(CLASSES)]
    labels = np.arange(len(arrays), dtype=np.int64) % CLASSES
    return Cache(Images(sorted(files), labels, classes, classes, read), 1e9), reads


def to_source(arrays):
    return to_images(arrays)[0]


@pytest.fixture(scope="module")
def arrays():
    return [draw_pixels(size, seed) for seed, size in enumerate(SIZES)]


@torch.no_grad()
def spread_scores(net, input):
    """Moves and scales the logits so that no class wins all views: only then can a fault show."""
    views = np.stack([draw_pixels((CROP, CROP), 100 + seed) for seed in range(32)])
    logits = net(input(torch.from_numpy(views)))
    scale = 1 / logits.std(0)
    net.classifier[-1].weight.mul_(scale[:, None])
    net.classifier[-1].bias.copy_(-logits.mean(0) * scale)


@lru_cache
def build_tester(batch=128, model="small14", act="prelu"):
    """Scores a tiny untrained net; the mean image is not flat, scores differ between views."""
    config = compose(["scale=smoke", f"model={model}", f"act={act}", "model.width=0.125"])
    net = materialise(build_model(config, CLASSES)[0], config, torch.device("cpu"))
    draws = torch.Generator().manual_seed(0)
    mean = 128 + 40 * torch.randn(3, CROP, CROP, generator=draws)
    input = Input(mean, torch.zeros(3, 3), 60.0)
    spread_scores(net.eval(), input)
    return Scorer(net, input, nullcontext, batch)


@torch.no_grad()
def score_view(tester, pixels):
    """The net's class probabilities for one view (height, width, 3)."""
    x = tester.input(torch.from_numpy(pixels.copy())[None])
    return np.array(oracles.softmax(tester.net(x)[0].tolist()))


def resize(pixels, s):
    """The shorter side to s, the aspect ratio kept."""
    height, width = pixels.shape[:2]
    size = round(width * s / min(height, width)), round(height * s / min(height, width))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


# center and ten_view, by hand


def cut(pixels, top, left):
    return pixels[top : top + CROP, left : left + CROP]


def test_center_is_the_middle_of_the_image():
    pixels = draw_pixels((40, 32), 1)
    tester = build_tester()
    np.testing.assert_allclose(
        tester.center(to_source([pixels]), 32)[0],
        score_view(tester, cut(pixels, 2, 6)),
        atol=1e-5,
    )


def test_views_that_are_looked_at_again_are_made_once(arrays):
    """Each validation of a run looks at the same views."""
    source, reads = to_images(arrays)
    source = replace(source, budget=0)
    tester, chosen = replace(build_tester(batch=2), kept=[]), np.arange(1, len(arrays))
    first = tester.center(source, 32, chosen)
    made = Counter(reads)
    assert set(made.values()) == {1}
    assert (tester.center(source, 32, chosen) == first).all()
    assert reads == made
    assert (build_tester(batch=2).center(source, 32, chosen) == first).all()


def test_too_many_views_are_made_each_time(arrays, monkeypatch):
    monkeypatch.setattr(evaluate, "KEPT", 3 * CROP * CROP * (len(arrays) - 1))
    source, reads = to_images(arrays)
    source, tester = replace(source, budget=0), replace(build_tester(batch=2), kept=[])
    first = tester.center(source, 32)
    assert (tester.center(source, 32) == first).all()
    assert set(reads.values()) == {2}


def test_ten_view_averages_four_corners_the_center_and_their_flips():
    pixels = draw_pixels((40, 32), 2)
    places = [(0, 0), (0, 12), (4, 0), (4, 12), (2, 6)]
    crops = [cut(pixels, *place) for place in places]
    tester = build_tester()
    by_hand = [score_view(tester, view) for c in crops for view in (c, c[:, ::-1])]
    assert np.std(by_hand, axis=0).max() > 0.05  # the views do differ
    np.testing.assert_allclose(
        tester.ten_view(to_source([pixels]), 32)[0], np.mean(by_hand, axis=0), atol=1e-5
    )


# dense


@torch.no_grad()
def score_window_by_window(tester, pixels, s):
    """The conv layers over the whole image and its flip; SPP and fc layers window by window."""
    net, size, scores = tester.net, tester.net.map_size, []
    whole = resize(pixels, s)
    for view in (whole, whole[:, ::-1]):
        maps = net.features(tester.input(torch.from_numpy(view.copy())[None]))
        of_view = []
        for y in range(maps.shape[2] - size + 1):
            for x in range(maps.shape[3] - size + 1):
                window = maps[:, :, y : y + size, x : x + size]
                of_view.append(oracles.softmax(net.classifier(net.spp(window))[0].tolist()))
        scores.append(np.mean(of_view, axis=0))
    return np.mean(scores, axis=0), len(of_view)


@pytest.mark.parametrize(("model", "s"), [("small14", 32), ("small14", 60), ("a", 32), ("a", 48)])
def test_dense_is_a_plain_loop_over_windows_of_the_feature_map(model, s, arrays):
    tester = build_tester(model=model)
    found = tester.dense(to_source(arrays), s)
    by_hand, windows = zip(*[score_window_by_window(tester, a, s) for a in arrays], strict=True)
    assert max(windows) > 1
    assert np.std(by_hand, axis=0).min() > 0.01  # images differ in every class's score
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-4)


def test_dense_scores_many_windows_in_parts_without_losing_any(arrays, monkeypatch):
    whole = build_tester().dense(to_source(arrays), 60)
    monkeypatch.setattr("delving.evaluate.WINDOWS", 3)
    np.testing.assert_allclose(build_tester().dense(to_source(arrays), 60), whole, atol=1e-6)


@pytest.mark.parametrize("model", ["small14", "a"])
def test_at_the_crops_size_dense_is_the_mean_of_the_center_crops_and_its_flips_scores(model):
    images = [draw_pixels((CROP, CROP), seed) for seed in range(5)]
    tester, flipped = build_tester(model=model), [p[:, ::-1] for p in images]
    center = [tester.center(to_source(views), CROP) for views in (images, flipped)]
    assert np.abs(center[0] - center[1]).max() > 0.05
    for scores in (tester.dense(to_source(images), CROP), tester.ten_view(to_source(images), CROP)):
        np.testing.assert_allclose(scores, np.mean(center, axis=0), rtol=0, atol=1e-5)


def test_a_window_of_the_maps_own_size_scores_as_the_net_itself():
    tester = build_tester(model="a")
    x = torch.randn(3, 3, CROP, CROP, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            score_windows(tester.net, x), tester.net(x).softmax(1), rtol=0, atol=1e-5
        )


class Roundings(TorchDispatchMode):
    """Counts how often one of a net's parameters is cast to bf16."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        rounds = func is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16
        self.count += rounds and isinstance(args[0], torch.nn.Parameter)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_in_bf16_the_weights_are_rounded_once_for_all_images(protocol, arrays):
    """Not for each group of images: rounding fc1's takes as long as a dozen images' conv layers."""
    tester = build_tester(batch=1)
    tester = replace(tester, autocast=partial(autocast, torch.device("cpu"), "bf16"))
    weights = [p for p in tester.net.parameters() if p.dim() > 1]
    with Roundings() as seen:
        getattr(tester, protocol)(to_source(arrays), 32)
    assert len(weights) <= seen.count <= len(list(tester.net.parameters()))


# Every image counts exactly once


@pytest.mark.parametrize("batch", [1, 3, 7, 1000])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_image_is_scored_in_its_place_whatever_the_batch(protocol, batch, arrays):
    found = getattr(build_tester(batch), protocol)(to_source(arrays), 32)
    alone = [getattr(build_tester(1), protocol)(to_source([a]), 32)[0] for a in arrays]
    assert found.shape == (len(arrays), CLASSES)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_image_is_decoded_and_counted_once(protocol, arrays):
    source, reads = to_images(arrays)
    tester = build_tester(3)
    counted = []
    inner = tester.input.register_forward_pre_hook(lambda _, x: counted.append(len(x[0])))
    getattr(tester, protocol)(source, 32)
    inner.remove()
    views = {"center": 1, "ten_view": 10, "dense": 2}[protocol]
    assert sum(counted) == views * len(arrays)
    assert set(reads) == set(source.images.names)


def test_center_of_some_images_leaves_the_others_alone(arrays):
    every = build_tester(3).center(to_source(arrays), 32)
    chosen = np.array([1, 4, 5])
    source, reads = to_images(arrays)
    found = build_tester(2).center(source, 32, chosen)
    np.testing.assert_allclose(found, every[chosen], atol=1e-5)
    assert sorted(reads) == [source.images.names[i] for i in chosen]


def test_dropout_is_off_when_scoring_and_a_second_look_sees_the_same(arrays):
    tester = build_tester()
    tester.net.train()
    first = tester.ten_view(to_source(arrays), 32)
    tester.net.train()
    np.testing.assert_array_equal(first, tester.ten_view(to_source(arrays), 32))


def test_an_undecodable_image_ends_the_evaluation_and_is_named(arrays):
    source, _ = to_images(arrays[:3])
    whole = source.images.read
    broken = Images(
        source.images.names, source.images.labels, source.images.classes, source.images.titles,
        lambda name: whole(name)[:200] if name == "01.png" else whole(name),
    )  # fmt: skip
    for protocol in PROTOCOLS:
        with pytest.raises(UndecodableImageError, match=r"01\.png"):
            getattr(build_tester(), protocol)(Cache(broken, 1e9), 32)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_gpu_whose_memory_is_full_is_told_with_what_takes_less_of_it(arrays, protocol):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")

    tester = build_tester()
    tester.net.features.register_forward_hook(full)
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory: eval\.batch=\.\.\. scores"):
        getattr(tester, protocol)(to_images(arrays[:3])[0], 32)


def faulty(change):
    """A loader whose list of items, [indices, pixels] each, has gone through `change`."""

    def iterate(*args, **kwargs):
        return iter(change(list(real(*args, **kwargs))))

    real = evaluate.iterate
    return iterate


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items[:-1],
        lambda items: [*items, items[0]],
        lambda items: [*items[:-1], items[0]],
        lambda items: [*items, (np.array([0]), items[0][1])],  # an image that nobody asked for
    ],
    ids=["lost", "twice", "in another's place", "unasked"],
)
def test_an_image_that_is_not_scored_exactly_once_is_an_error(change, arrays, monkeypatch):
    monkeypatch.setattr(evaluate, "iterate", faulty(change))
    with pytest.raises(RuntimeError, match="not scored exactly once"):
        build_tester(1).center(to_source(arrays), 32, np.arange(1, len(arrays)))


def test_a_single_image_without_finite_scores_is_enough(arrays):
    tester = build_tester.__wrapped__(batch=1)  # not the cached one, since it is spoilt here
    calls = iter([False, True] + [False] * len(arrays))
    tester.net.register_forward_hook(lambda net, x, y: y * torch.nan if next(calls) else y)
    with pytest.raises(FloatingPointError, match="not finite"):
        tester.center(to_source(arrays), 32)


# Error rates


@few
@given(
    scores=st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5]), min_size=7, max_size=7),
        min_size=1,
        max_size=9,
    ),
    seed=st.integers(0, 99),
)
def test_error_rates_are_those_of_a_sorted_list_also_with_ties(scores, seed):
    probabilities = np.array(scores, np.float32)
    labels = np.random.default_rng(seed).integers(0, 7, len(scores))
    rates = error_rates(probabilities, labels)
    assert list(rates) == ["top1_err", "top5_err"]
    for k in (1, 5):
        assert rates[f"top{k}_err"] == pytest.approx(
            oracles.top_k_error(probabilities, labels, k), abs=1e-3
        )


def test_error_rates_by_hand():
    """Of four images one is right at once, one more within five, two not at all."""
    ranking = np.linspace(1, 0, 8, dtype=np.float32)
    rates = error_rates(np.tile(ranking, (4, 1)), np.array([0, 4, 5, 7]))
    assert rates == {"top1_err": 75.0, "top5_err": 50.0}


def test_a_net_that_says_the_same_of_all_classes_is_right_as_often_as_by_chance():
    rates = error_rates(np.full((20, 10), 0.1, np.float32), np.arange(20) % 10)
    assert rates == {"top1_err": 90.0, "top5_err": 50.0}


def test_with_five_classes_or_fewer_the_top_5_error_is_zero():
    assert error_rates(np.eye(4, dtype=np.float32), np.array([3, 2, 1, 0]))["top5_err"] == 0.0


@pytest.mark.parametrize("place", [(1, 0), (1, 2)])
def test_probabilities_that_are_no_numbers_are_refused_not_counted_as_right(place):
    """NaN for another class than the image's, and for its own."""
    probabilities = np.eye(3, dtype=np.float32)
    probabilities[place] = np.nan
    with pytest.raises(ValueError, match="probabilities of 1 of 3 images are NaN"):
        error_rates(probabilities, np.array([0, 2, 2]))


@pytest.mark.parametrize(
    ("protocols", "names"),
    [
        (["center"], ["center"]),
        (["ten_view", "dense"], ["ten_view", "dense@64", "dense@96", "dense@120", "dense"]),
        (["dense", "center"], ["dense@64", "dense@96", "dense@120", "dense", "center"]),
    ],
)
def test_dense_is_saved_for_each_scale_and_then_averaged(protocols, names):
    assert name_protocols(protocols, [64, 96, 120]) == names


def test_scores_that_are_not_finite_are_no_scores():
    """A net that blew up must never count as right on every image."""
    tester = build_tester.__wrapped__()  # not the cached one, since it is spoilt here
    with torch.no_grad():
        next(tester.net.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        tester.center(to_source([draw_pixels((32, 32), seed=0)]), 32)
