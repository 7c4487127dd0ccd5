"""Section 3's training: what decays, when the rate drops, what one step does, what ends a run."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import PAPERS
from torch import nn

from delving.build import build_model, materialise
from delving.config import compose
from delving.data.input import Input
from delving.data.loader import Batch
from delving.groups import choices
from delving.initializer import he, initialize, layer_stds
from delving.momentum import Momentum
from delving.net import Dropout, build_net
from delving.notation import read_layers
from delving.rectifier import RECTIFIERS
from delving.step import Recipe, accumulate_gradients, decay_norm, seed_dropout, seed_step
from delving.train import (
    Progress,
    Step,
    advance,
    build_optimizer,
    drop_on_plateau,
    final_status,
    group_parameters,
    learning_rate,
    train,
)

CROP, CLASSES = 7, 4
NOTATION = [{"conv1": "3x3, 5"}, {"spp": "{2,1}"}, {"fc1": "9"}, {"fc2": "9"}, {"fc3": "classes"}]
RECIPE = Recipe(
    steps=100, epoch=10.0, batch=8, micro_batch=8, lr=0.1, warmup=0.0, switch=(0.6, 0.85),
    momentum=0.9, weight_decay=5e-4, color=0.0, seed=0,
)  # fmt: skip
few = settings(max_examples=40)


def build(act="prelu", dropout=0.0):
    """A tiny float64 net with a conv layer, SPP and three fc layers."""
    rectifier = partial(RECTIFIERS[act], slope=0.25)
    layers = read_layers(NOTATION)
    net = build_net(layers, rectifier, classes=CLASSES, crop=CROP, dropout=dropout)
    net = net.to_empty(device="cpu")
    initialize(net, partial(layer_stds, rule=he, slope=0.25, range="normalised"), seed=0)
    return net.double()


def build_input():
    return Input(torch.full((3, CROP, CROP), 128.0), torch.eye(3), 64.0).double()


def draw_batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (size, CROP, CROP, 3)).astype(np.uint8))
    labels = torch.from_numpy(rng.integers(0, CLASSES, size))
    return Batch(pixels, labels, torch.from_numpy(rng.normal(size=(size, 3))), [])


def run(net, batches, recipe=RECIPE, progress=None):
    """Trains on the batches; returns the steps yielded and the progress."""
    progress = Progress() if progress is None else progress
    steps = train(
        net, build_input(), build_optimizer(net, recipe), batches=batches, recipe=recipe,
        progress=progress, autocast=nullcontext,
    )  # fmt: skip
    return list(steps), progress


# What decays


@pytest.mark.parametrize("act", choices("act"))
@pytest.mark.parametrize("model", choices("model"))
def test_weights_decay_but_slopes_never_do_since_that_would_push_them_to_relu(model, act):
    net, _ = build_model(compose(["scale=paper", f"model={model}", f"act={act}"]), 10)
    decayed, kept = group_parameters(net, 5e-4)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (5e-4, 0.0)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        f"{name}.weight" for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    }
    every = [id(p) for p in decayed["params"] + kept["params"]]
    assert sorted(every) == sorted(names)  # each parameter once


def test_whatever_else_a_rectifier_learns_does_not_decay():
    act = nn.Module()
    act.weight = nn.Parameter(torch.ones(2, 4))  # two slopes a channel
    decayed, kept = group_parameters(nn.Sequential(nn.Linear(3, 4), act), 5e-4)
    assert [p.shape for p in decayed["params"]] == [(4, 3)]
    assert [p.shape for p in kept["params"]] == [(4,), (2, 4)]


def test_without_a_gradient_weights_shrink_and_slopes_stay():
    net = build()
    before = copy.deepcopy(net)
    optimizer = build_optimizer(net, RECIPE)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(0.1)
    for (name, old), new in zip(before.named_parameters(), net.parameters(), strict=True):
        factor = 1 - 0.1 * 5e-4 if name.endswith("weight") else 1.0
        torch.testing.assert_close(new, old * factor, rtol=1e-12, atol=0)


# The schedule


def test_the_rate_is_divided_by_ten_at_the_stated_fractions():
    rates = [learning_rate(RECIPE, step, 0) for step in range(100)]
    assert rates == pytest.approx([0.1] * 60 + [0.01] * 25 + [0.001] * 15)


def test_warm_up_rises_linearly_to_the_rate_and_ends():
    recipe = replace(RECIPE, warmup=0.05)
    rates = [learning_rate(recipe, step, 0) for step in range(7)]
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])


@few
@given(
    steps=st.integers(1, 400),
    warmup=st.floats(0, 0.3, allow_subnormal=False),
    switch=st.sets(st.floats(0.31, 0.99), max_size=3),
    drops=st.integers(0, 2),
)
def test_after_the_warm_up_the_rate_never_rises(steps, warmup, switch, drops):
    recipe = replace(RECIPE, steps=steps, warmup=warmup, switch=tuple(sorted(switch)))
    rates = [learning_rate(recipe, step, drops) for step in range(steps)]
    assert all(0 < rate <= recipe.lr * 10.0**-drops * (1 + 1e-9) for rate in rates)
    after = rates[math.ceil(warmup * steps) :]
    assert all(a >= b for a, b in pairwise(after))


def errors_to_drops(errors):
    """How often the rate has dropped after each epoch of the given training errors."""
    recipe, progress, drops = replace(RECIPE, switch=(), epoch=2.0), Progress(), []
    for error in errors:
        for half in (error - 1, error + 1):  # two steps an epoch, whose mean counts
            advance(progress, recipe, Step(1.0, half, 1.0, 1.0, 0.1, []))
        drops.append(progress.drops)
    return drops


def test_on_a_plateau_of_the_training_error_the_rate_drops_at_most_twice():
    """The paper's 1e-2, 1e-3, 1e-4: each drop comes after three epochs without a gain."""
    assert errors_to_drops([80.0] * 12) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2]


def test_while_the_training_error_falls_the_rate_stays():
    assert errors_to_drops([90.0 - epoch for epoch in range(40)]) == [0] * 40


def test_a_gain_starts_the_count_of_epochs_anew():
    assert errors_to_drops([80, 80, 80, 70, 70, 70, 70, 70]) == [0, 0, 0, 0, 0, 0, 1, 1]


def test_less_than_a_tenth_of_a_point_is_no_gain():
    assert errors_to_drops([80, 79.95, 79.92, 79.91]) == [0, 0, 0, 1]
    assert errors_to_drops([80, 79.8, 79.6, 79.4]) == [0] * 4


def test_the_plateau_is_measured_against_the_best_epoch_not_the_last():
    assert errors_to_drops([50, 60, 59, 58]) == [0, 0, 0, 1]


@few
@given(errors=st.lists(st.floats(0, 100, allow_subnormal=False), max_size=40))
def test_never_more_than_two_drops_and_none_is_taken_back(errors):
    progress, drops = Progress(), [0]
    for error in errors:
        drop_on_plateau(progress, error)
        drops.append(progress.drops)
    assert all(0 <= b - a <= 1 for a, b in pairwise(drops))
    assert max(drops) <= 2


def test_with_stated_switches_a_plateau_changes_nothing():
    progress = Progress()
    for _ in range(100):
        advance(progress, RECIPE, Step(1.0, 80.0, 1.0, 1.0, 0.1, []))
    assert progress.drops == 0


def test_plateau_and_switches_divide_the_rate_alike():
    plateau = replace(RECIPE, switch=())
    assert [learning_rate(plateau, 99, drops) for drops in (0, 1, 2)] == pytest.approx(
        [0.1, 0.01, 0.001]
    )


# One step


def gradients(net, micro_batch, *, step=3, size=8):
    """The gradients, the loss and the wrong answers of one batch, cut into micro-batches."""
    net = copy.deepcopy(net).train()
    recipe = replace(RECIPE, batch=size, micro_batch=micro_batch, color=0.1)
    loss, wrong = accumulate_gradients(
        net, build_input(), draw_batch(size), recipe=recipe, step=step, autocast=nullcontext
    )
    return [p.grad for p in net.parameters()], loss, wrong


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("micro_batch", [1, 3, 4, 7])
@pytest.mark.parametrize("act", PAPERS)
def test_micro_batches_give_the_gradient_of_the_whole_batch(act, micro_batch, dropout):
    net = build(act, dropout)
    whole, loss, wrong = gradients(net, 8)
    parts, part_loss, part_wrong = gradients(net, micro_batch)
    torch.testing.assert_close(part_loss, loss)
    assert part_wrong == wrong
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_that_of_the_mean_loss_over_the_batch():
    net, batch = build(), draw_batch()
    recipe = replace(RECIPE, micro_batch=3)
    twin = copy.deepcopy(net)
    accumulate_gradients(net, build_input(), batch, recipe=recipe, step=0, autocast=nullcontext)
    F.cross_entropy(twin(build_input()(batch.pixels)), batch.labels).backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


def test_the_colour_shift_of_each_image_is_its_own_in_micro_batches_too():
    net = build()
    with_color, *_ = gradients(net, 3)
    without = replace(RECIPE, micro_batch=3)
    accumulate_gradients(
        net, build_input(), draw_batch(), recipe=without, step=3, autocast=nullcontext
    )
    assert not torch.allclose(with_color[0], next(net.parameters()).grad, rtol=1e-3)


def test_steps_are_those_of_momentum_sgd_with_decay_on_the_weights():
    """Three steps, so that the velocity counts; the rate is divided by ten before the last."""
    net, batches = build(), [draw_batch(seed=seed) for seed in range(3)]
    recipe = replace(RECIPE, steps=3, epoch=3.0, switch=(0.6,))
    expected = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    velocity = {name: np.zeros_like(p) for name, p in expected.items()}
    twin = copy.deepcopy(net)
    for step, batch in enumerate(batches):
        with torch.no_grad():
            for name, p in twin.named_parameters():
                p.copy_(torch.from_numpy(expected[name]))
        twin.zero_grad()
        F.cross_entropy(twin(build_input()(batch.pixels)), batch.labels).backward()
        for name, p in twin.named_parameters():
            decay = 5e-4 if name.endswith("weight") else 0.0
            expected[name], velocity[name] = oracles.sgd(
                expected[name], velocity[name], p.grad.numpy(),
                lr=(0.1, 0.1, 0.01)[step], momentum=0.9, decay=decay,
            )  # fmt: skip
    steps, progress = run(net, batches, recipe)
    assert [step.lr for step in steps] == pytest.approx([0.1, 0.1, 0.01])
    assert progress.step == 3
    for name, p in net.named_parameters():
        np.testing.assert_allclose(p.detach(), expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_parameter_whose_first_gradient_comes_late_moves_as_in_torchs_sgd():
    ours, theirs = ([nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2))
    groups = [{"params": ours, "weight_decay": 5e-4}]
    momentum = Momentum(groups, momentum=0.9)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(4):
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            for p in pair:
                p.grad = torch.full((3,), 1.0 + step) if number <= step else None
        momentum.step(0.1)
        sgd.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weights_with_channels_last_move_as_in_torchs_sgd(momentum):
    """torch's operator is given them with their dimensions in another order."""
    drawn = torch.randn(3, 8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    shapes = (8, 4, 3, 3), (8, 4, 1, 1), (8, 1, 3, 3), (8,)
    start, *gradients = [
        [x.flatten()[: math.prod(s)].view(s).clone() for s in shapes] for x in drawn
    ]
    ours, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    for p in ours[:3]:
        p.data = p.data.contiguous(memory_format=torch.channels_last)
    optimizer = Momentum([{"params": ours, "weight_decay": 0.1}], momentum=momentum)
    sgd = torch.optim.SGD(theirs, lr=0.1, weight_decay=0.1, momentum=momentum)
    for step in gradients:
        for p, q, g in zip(ours, theirs, step, strict=True):
            p.grad, q.grad = torch.empty_like(p).copy_(g), g
        optimizer.step(0.1)
        sgd.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)
        assert momentum == 0 or optimizer.velocity[p].stride() == p.stride()


def test_a_step_tells_the_loss_error_and_gradient_norm_before_it():
    net, batch = build(), draw_batch()
    twin = copy.deepcopy(net)
    logits = twin(build_input()(batch.pixels))
    loss = F.cross_entropy(logits, batch.labels)
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters()))
    [step], _ = run(net, [batch])
    assert step.loss == pytest.approx(loss.item(), rel=1e-5)
    assert step.error == pytest.approx(100 * (logits.argmax(1) != batch.labels).double().mean())
    assert step.grad_norm == pytest.approx(norm, rel=1e-5)


def test_a_step_tells_the_gradients_norm_of_the_conv_weights_apart():
    net, batch = build(), draw_batch()
    twin = copy.deepcopy(net)
    F.cross_entropy(twin(build_input()(batch.pixels)), batch.labels).backward()
    [step], _ = run(net, [batch])
    assert step.conv_norm == pytest.approx(twin.features[0].weight.grad.norm().item(), rel=1e-5)


@pytest.mark.parametrize("decay", [5e-4, 0.1])
def test_the_decays_norm_is_that_of_what_it_adds_to_the_conv_weights_gradient(decay):
    net = build()
    norm = net.features[0].weight.norm().item()
    assert decay_norm(net, decay) == pytest.approx(decay * norm, rel=1e-12)


def test_micro_batches_change_nothing_of_what_a_step_tells():
    told = [run(build(), [draw_batch()], replace(RECIPE, micro_batch=m))[0][0] for m in (8, 3)]
    whole, parts = ((s.loss, s.error, s.grad_norm, s.conv_norm) for s in told)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_each_step_is_in_training_mode_though_the_net_was_tested_between_two():
    net, seen = build(dropout=0.5), []
    net.register_forward_pre_hook(lambda net, x: seen.append(net.training))

    def batches():
        for seed in range(3):
            net.eval()
            yield draw_batch(seed=seed)

    run(net, batches())
    assert seen == [True] * 3


# Dropout


def mask(layers, number=0, *, seed=0, step=0, batch=64, rows=slice(None), units=50):
    """Which units a dropout layer keeps, and how much it scales them."""
    seed_dropout(layers, (seed, step), batch=batch, rows=rows)
    size = len(range(batch)[rows])
    return layers[number](torch.ones(size, units))


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_about_a_share_p_is_dropped_and_the_rest_scaled_so_that_the_mean_stays(p):
    out = mask(nn.Sequential(Dropout(p)).train(), batch=200)
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    error = math.sqrt(p * (1 - p) / out.numel())
    assert (out == 0).double().mean().item() == pytest.approx(p, abs=4 * error)


def test_the_mask_follows_from_seed_step_layer_and_place_alone():
    layers = nn.Sequential(Dropout(0.5), Dropout(0.5)).train()
    first = mask(layers)
    torch.manual_seed(5)  # the global generator has no say
    assert torch.equal(first, mask(layers))
    others = [mask(layers, step=1), mask(layers, seed=1), mask(layers, 1)]
    for other in others:
        share = (first == other).double().mean().item()
        assert share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(first.numel()))
    assert not torch.equal(first[0], first[1])


def test_each_micro_batch_and_step_has_random_numbers_of_its_own():
    def drawn(step, first):
        with torch.random.fork_rng(devices=[]):
            seed_step(build(), torch.device("cpu"), RECIPE, step, slice(first, first + 4))
            return torch.rand(3).tolist()

    assert drawn(3, 0) == drawn(3, 0)
    assert len({tuple(drawn(*about)) for about in ((3, 0), (3, 4), (4, 0))}) == 3


def test_the_loss_of_logits_in_half_precision_is_computed_in_full():
    net, batch = build().float(), draw_batch()
    input, autocast = build_input().float(), partial(torch.autocast, "cpu", torch.bfloat16)
    about = {"recipe": RECIPE, "step": 0, "autocast": autocast}
    loss, _ = accumulate_gradients(net, input, batch, **about)
    with autocast():
        logits = net(input(batch.pixels))
    assert logits.dtype == torch.bfloat16
    exact = F.cross_entropy(logits.double(), batch.labels).item()
    assert loss.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_what_a_rectifier_draws_follows_from_seed_step_and_place(monkeypatch, micro_batch):
    monkeypatch.setitem(RECTIFIERS, "relu", lambda channels, slope: nn.RReLU())
    net = build("relu")
    first, again, later = (gradients(net, micro_batch, step=step)[0][0] for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, later)


def test_each_step_of_a_training_drops_other_units():
    net = build(dropout=0.5)
    first, again, next_step = (gradients(net, 8, step=step)[0] for step in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[-2], next_step[-2], rtol=1e-3)


def test_cutting_the_batch_does_not_change_the_mask():
    layers = nn.Sequential(Dropout(0.5)).train()
    whole = mask(layers)
    for rows in (slice(0, 24), slice(24, 48), slice(48, 64)):
        assert torch.equal(mask(layers, rows=rows), whole[rows])


def test_in_testing_nothing_is_dropped():
    x = torch.randn(4, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)


# What ends a training


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_value_is_caught_before_the_optimiser_sees_it(where, value):
    net = build()
    last = net.classifier[-1]
    if where == "loss":
        last.bias.data[0] = value
    else:
        last.weight.register_hook(lambda grad: grad * value)
    before = [p.detach().clone() for p in net.parameters()]
    steps, progress = run(net, [draw_batch(), draw_batch(seed=1)])
    assert progress.status == "diverged"
    assert final_status(progress, CLASSES) == "diverged"
    assert (len(steps), progress.step) == (1, 0)  # the second batch is not tried
    assert not math.isfinite(steps[0].loss + steps[0].grad_norm)
    for old, new in zip(before, net.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=0, atol=0, equal_nan=True)


def test_a_gpu_whose_memory_is_full_is_told_with_what_takes_less_of_it():
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")

    net = build()
    net.register_forward_hook(full)
    with pytest.raises(RuntimeError, match=r"^CUDA out of memory: train\.micro_batch=\.\.\. takes"):
        run(net, [draw_batch()])


def test_an_infinite_loss_ends_a_training_though_its_gradient_is_finite():
    """The logits' difference overflows, while their softmax is 0 and 1, which are finite."""
    net = build()
    net.classifier[-1].bias.data.copy_(torch.tensor([1.7, -1.7, -1.7, -1.7]).double() * 1e308)
    [step], progress = run(net, [draw_batch()])
    assert math.isinf(step.loss)
    assert math.isfinite(step.grad_norm)
    assert progress.status == "diverged"


@pytest.mark.parametrize(
    ("share", "status"),
    [(1.0, "stalled"), (0.985, "stalled"), (1.015, "stalled"), (0.97, "converged"),
     (1.5, "stalled"), (0.1, "converged")],
)  # fmt: skip
def test_a_last_tenth_that_is_not_2_percent_below_ln_classes_is_stalled(share, status):
    """Only the mean over the last tenth counts, neither what came before nor one step's loss. A
    loss above that of a blind guess is no better than a blind guess."""
    recipe, progress = replace(RECIPE, steps=40), Progress()
    for step in range(40):
        blind = math.log(CLASSES)
        wave = 0.3 if step % 2 else -0.3
        loss = blind * share + wave if step >= 36 else 0.5 * blind
        advance(progress, recipe, Step(loss, 50.0, 1.0, 1.0, 0.1, []))
    assert progress.tail_steps == 4
    assert final_status(progress, CLASSES) == status


def test_diverged_comes_before_stalled():
    progress = Progress(status="diverged", tail_loss=math.log(CLASSES), tail_steps=1)
    assert final_status(progress, CLASSES) == "diverged"


def test_a_run_goes_on_from_its_step_with_the_rate_and_mask_of_that_step():
    """Two sittings with one optimiser and progress give the weights of one sitting."""
    recipe = replace(RECIPE, steps=4, switch=(0.5,))
    batches = [draw_batch(seed=seed) for seed in range(4)]
    one, two = build(dropout=0.5), build(dropout=0.5)
    run(one, batches, recipe)
    optimizer, progress = build_optimizer(two, recipe), Progress()
    for part in (batches[:2], batches[2:]):
        list(train(two, build_input(), optimizer, batches=part, recipe=recipe, progress=progress,
                   autocast=nullcontext))  # fmt: skip
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("act", RECTIFIERS)
def test_a_handful_of_images_is_learned_by_heart(act):
    """The whole chain: net, input, schedule and steps drive the loss from ln(4) to near 0."""
    words = ["scale=smoke", "model=small14", f"act={act}", "model.width=0.125", "train.dropout=0"]
    config = compose(words)
    net = materialise(build_model(config, CLASSES)[0], config, torch.device("cpu"))
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (8, 28, 28, 3)).astype(np.uint8))
    batch = Batch(pixels, torch.arange(8) % CLASSES, torch.zeros(8, 3), [])
    recipe = replace(RECIPE, steps=40, lr=0.005, warmup=0.3, micro_batch=4)
    input, progress = Input(torch.full((3, 28, 28), 127.5), torch.zeros(3, 3), 74.0), Progress()
    steps = list(train(net, input, build_optimizer(net, recipe), batches=[batch] * 40,
                       recipe=recipe, progress=progress, autocast=nullcontext))  # fmt: skip
    assert steps[0].loss > 0.5
    assert steps[-1].loss < steps[0].loss
    if act in PAPERS:  # others may be slower
        assert steps[-1].loss < 0.1 * steps[0].loss
        assert steps[-1].error == 0.0
        assert final_status(progress, CLASSES) == "converged"
