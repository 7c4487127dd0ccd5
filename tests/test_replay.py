"""A GPU replays a step that was recorded, and it is the step that launches one by one make."""

from dataclasses import replace
from itertools import islice, repeat

import pytest
import torch
from torch import nn

from delving.bench.training import build
from delving.net import Dropout, Net
from delving.rectifier import RECTIFIERS
from delving.replay import EAGER, Ahead, can_be_replayed
from delving.train import Progress, train

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def failing(error, after):
    yield from range(after)
    raise error


def test_what_is_fetched_ahead_comes_in_its_turn():
    items = Ahead(iter("abc"))
    items.fetch()
    items.fetch()  # no more than one
    assert next(items) == "a"
    items.fetch()
    assert list(items) == ["b", "c"]
    assert list(items) == []


def test_an_error_met_ahead_is_raised_where_its_item_would_have_come():
    items = Ahead(failing(OSError("gone"), after=1))
    assert next(items) == 0
    items.fetch()
    with pytest.raises(OSError, match="gone"):
        next(items)


def small(act="relu"):
    return build(["scale=smoke", "model=small14", f"act={act}", "device=cpu"]).net


@pytest.mark.parametrize("act", RECTIFIERS)
def test_every_rectifier_of_the_paper_can_be_replayed_but_on_a_gpu_alone(act):
    net = small(act)
    assert can_be_replayed(net, torch.device("cuda"))
    assert not can_be_replayed(net, torch.device("cpu"))


def test_what_is_not_known_to_do_the_same_in_each_step_is_not_replayed():
    net, cuda = small(), torch.device("cuda")
    net.classifier.fc1_act = nn.RReLU()
    assert not can_be_replayed(net, cuda)
    hooked = small()
    hooked.features[0].register_forward_hook(print)
    assert not can_be_replayed(hooked, cuda)
    assert not can_be_replayed(small().double(), cuda)
    assert not can_be_replayed(nn.DataParallel(small()), cuda)


def trained(words, *, replay, steps=EAGER + 4, lr=1e-3):
    """What the steps showed, and the net."""
    bench = build([*words, "device=cuda"])
    bench.recipe = replace(bench.recipe, lr=lr)
    made = train(
        bench.net, bench.input, bench.optimizer, batches=repeat(bench.batch), recipe=bench.recipe,
        progress=Progress(), autocast=bench.autocast, replay=replay,
    )  # fmt: skip
    return list(islice(made, steps)), bench.net


@gpu
@pytest.mark.parametrize("act", ["relu", "prelu"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_replayed_steps_are_the_launched_ones_bit_for_bit(act, precision, monkeypatch):
    monkeypatch.setattr("torch.backends.cudnn.deterministic", True)
    words = ["scale=quarter", "model=small14", "model.width=0.25", f"act={act}",
             "data.classes=10", f"precision={precision}"]  # fmt: skip
    (ours, net), (theirs, other) = (trained(words, replay=r) for r in (True, False))
    assert any(isinstance(m, Dropout) and m.p for m in net.modules())
    losses = [step.loss for step in ours]
    assert losses == [step.loss for step in theirs]
    assert len(set(losses)) == len(losses)  # masks and weights change
    assert [step.grad_norm for step in ours] == [step.grad_norm for step in theirs]
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@gpu
@pytest.mark.parametrize("broken", [1, EAGER + 2])
def test_a_step_that_is_not_finite_moves_nothing(broken):
    bench = build(["scale=quarter", "model=small14", "model.width=0.25", "data.classes=10"])
    assert isinstance(bench.net, Net)
    assert bench.device.type == "cuda"
    progress = Progress()
    made = train(bench.net, bench.input, bench.optimizer, batches=repeat(bench.batch),
                 recipe=bench.recipe, progress=progress, autocast=bench.autocast)  # fmt: skip
    assert len(list(islice(made, broken - 1))) == broken - 1
    bench.input.std.fill_(torch.nan)
    before = [p.detach().clone() for p in bench.net.parameters()]
    [last] = made
    assert progress.status == "diverged"
    assert last.error == 100
    for p, old in zip(bench.net.parameters(), before, strict=True):
        assert torch.equal(p, old)
    assert all(v.isfinite().all() for v in bench.optimizer.velocity.values())
