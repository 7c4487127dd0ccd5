"""A GPU replays a recorded step, which equals the step whose launches are made one by one."""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice, repeat
from unittest.mock import MagicMock

import pytest
import torch
from oracles import PAPERS
from torch import nn

from delving.bench.training import build
from delving.data.loader import Batch
from delving.net import Dropout, Net
from delving.replay import EAGER, Ahead, Replay, can_be_replayed
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


def test_at_the_end_nothing_is_left_to_the_garbage_collector():
    """It would be the whole training, with all that a GPU recorded of it."""

    class Net:
        pass

    def work():
        net = Net()
        assert list(Ahead("ab")) == ["a", "b"]
        return weakref.ref(net)

    gc.disable()
    try:
        assert work()() is None
    finally:
        gc.enable()


def small(act="relu"):
    return build(["scale=smoke", "model=small14", f"act={act}", "device=cpu"]).net


@pytest.mark.parametrize("act", PAPERS)
def test_every_rectifier_of_the_paper_can_be_replayed_but_on_a_gpu_alone(act):
    net = small(act)
    assert can_be_replayed(net, torch.device("cuda"))
    assert not can_be_replayed(net, torch.device("cpu"))


def test_what_is_not_known_to_do_the_same_in_each_step_is_not_replayed():
    net, cuda = small(), torch.device("cuda")
    net.classifier.fc1_act = nn.RReLU()
    assert not can_be_replayed(net, cuda)
    assert not can_be_replayed(small().double(), cuda)
    assert not can_be_replayed(nn.DataParallel(small()), cuda)


LOOKS = {
    "forward": lambda net: net.features[0].register_forward_hook(print),
    "forward, before": lambda net: net.features[1].register_forward_pre_hook(print),
    "backward": lambda net: net.spp.register_full_backward_hook(print),
    "backward, before": lambda net: net.spp.register_full_backward_pre_hook(print),
    "of a parameter": lambda net: next(net.parameters()).register_hook(print),
    "of a gradient": lambda net: next(net.parameters()).register_post_accumulate_grad_hook(print),
    "its own forward": lambda net: setattr(net.spp, "forward", print),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_looks_at_steps_from_python_sees_all_of_them(look):
    net = small()
    LOOKS[look](net)
    assert not can_be_replayed(net, torch.device("cuda"))


def test_what_looks_at_all_modules_sees_all_steps_too(monkeypatch):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not can_be_replayed(small(), torch.device("cuda"))
    handle.remove()
    assert can_be_replayed(small(), torch.device("cuda"))
    monkeypatch.setattr("torch.is_anomaly_enabled", lambda: True)
    assert not can_be_replayed(small(), torch.device("cuda"))


def trained(words, *, replay, steps=EAGER + 4):
    """Trains for some steps; returns what they showed, and the net."""
    bench = build(words)
    bench.recipe = replace(bench.recipe, lr=1e-3, warmup=0.5, steps=steps)
    made = train(
        bench.net, bench.input, bench.optimizer, batches=repeat(bench.batch, steps),
        recipe=bench.recipe, progress=Progress(), autocast=bench.autocast, replay=replay,
    )  # fmt: skip
    return list(made), bench.net


@gpu
@pytest.mark.parametrize("act", ["relu", "prelu"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_replayed_steps_are_the_launched_ones_bit_for_bit(act, precision, monkeypatch):
    monkeypatch.setattr("torch.backends.cudnn.deterministic", True)
    words = ["scale=quarter", "model=small14", "model.width=0.25", f"act={act}",
             "data.classes=10", f"precision={precision}", "device=cuda"]  # fmt: skip
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


class Recorded:
    """Stands for a CUDA graph on a CPU: what is recorded is undone, and done at each replay.

    A real graph's launches write to where they wrote when they were recorded: so does `found` here.
    """

    def __init__(self, error=None):
        self.error, self.replays = error, 0

    def register_generator_state(self, generator):
        pass

    @contextmanager
    def recording(self):
        optimizer = self.replayed.optimizer
        weights = [p.detach() for group in optimizer.param_groups for p in group["params"]]
        kept = [*weights, *optimizer.velocity.values()]
        before = [x.clone() for x in kept]
        yield
        for x, old in zip(kept, before, strict=True):
            x.copy_(old)
        if self.error:
            raise self.error

    def replay(self):
        self.replays += 1
        self.replayed.found.copy_(self.replayed._launch())


def on_a_cpu(monkeypatch, error=None):
    """Makes Replay work as on a GPU, with a Recorded as its graph; returns that graph."""
    graph = Recorded(error)

    def recording(self):
        graph.replayed = self
        original(self)

    original = Replay._record
    monkeypatch.setattr("torch.cuda.graph", lambda *_, **__: graph.recording())
    monkeypatch.setattr(Replay, "_record", recording)
    monkeypatch.setattr("torch.cuda.CUDAGraph", lambda: graph)
    monkeypatch.setattr("torch.cuda.Event", MagicMock)
    monkeypatch.setattr("torch.cuda.Stream", MagicMock)
    for name in ("device", "stream"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda _: nullcontext())
    monkeypatch.setattr("torch.cuda.current_stream", lambda: None)
    monkeypatch.setattr("delving.train.can_be_replayed", lambda *_: True)
    return graph


SMOKE = ["scale=smoke", "model=small14", "device=cpu"]


@pytest.mark.parametrize("act", ["relu", "prelu"])
def test_recording_and_replaying_keeps_to_the_order_of_steps(act, monkeypatch):
    graph = on_a_cpu(monkeypatch)
    ours, net = trained([*SMOKE, f"act={act}"], steps=8, replay=True)
    assert graph.replays == 8 - EAGER + 1  # the first replay checks the graph
    theirs, other = trained([*SMOKE, f"act={act}"], steps=8, replay=False)
    # On a GPU, and so here, the rate is an fp32 number.
    assert [s.loss for s in ours] == pytest.approx([s.loss for s in theirs], rel=1e-5)
    assert [s.lr for s in ours] == [s.lr for s in theirs]
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("other", [0, 2])
def test_a_recording_that_finds_another_loss_or_gradient_is_not_used(other, monkeypatch):
    graph = on_a_cpu(monkeypatch)
    monkeypatch.setattr(graph, "replay", lambda: graph.replayed.found[other].mul_(1.02))
    with pytest.warns(UserWarning, match=r"launched one by one: loss and squared norm of \["):
        ours, net = trained(SMOKE, steps=8, replay=True)
    theirs, same = trained(SMOKE, steps=8, replay=False)
    assert [s.loss for s in ours] == pytest.approx([s.loss for s in theirs], rel=1e-5)
    for a, b in zip(net.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_where_nothing_can_be_recorded_steps_are_launched(monkeypatch):
    graph = on_a_cpu(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.warns(UserWarning, match="launched one by one: CUDA out of memory"):
        ours, _ = trained(SMOKE, steps=8, replay=True)
    assert graph.replays == 0
    theirs, _ = trained(SMOKE, steps=8, replay=False)
    assert [s.loss for s in ours] == pytest.approx([s.loss for s in theirs], rel=1e-5)


def test_a_batch_that_cannot_be_made_ends_the_training_after_the_step_before_it(monkeypatch):
    on_a_cpu(monkeypatch)
    batch = build(SMOKE).batch

    def batches():
        yield from repeat(batch, EAGER + 2)
        raise OSError("gone")

    bench = build(SMOKE)
    progress = Progress()
    steps = train(bench.net, bench.input, bench.optimizer, batches=batches(), recipe=bench.recipe,
                  progress=progress, autocast=bench.autocast)  # fmt: skip
    with pytest.raises(OSError, match="gone"):
        list(steps)
    assert progress.step == EAGER + 2


def test_a_batch_of_another_size_is_refused(monkeypatch):
    """Copied to the first one's place, its single image would be broadcast to all."""
    on_a_cpu(monkeypatch)
    bench = build(SMOKE)
    short = Batch(*(x[:1] for x in bench.batch[:3]), [])
    steps = train(bench.net, bench.input, bench.optimizer, batches=[bench.batch, short],
                  recipe=bench.recipe, progress=Progress(), autocast=bench.autocast)  # fmt: skip
    with pytest.raises(ValueError, match=r"a batch of \(1, 28, 28, 3\) after those of \(32, "):
        list(steps)
