"""Table 3's times: on the device and in the precision that the words name."""

from types import SimpleNamespace

import pytest

from delving.paper import table3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_are_timed_in_the_precision_asked_for(precision, monkeypatch):
    """The last word on precision counts."""
    words = ["precision=fp64", "data.workers=0", f"precision={precision}"]
    monkeypatch.setattr(table3, "TIMED", ("small14-relu", "small14-prelu"))
    asked = SimpleNamespace(overrides=["device=cpu", *words],
                            settings={"rounds": 2, "seconds": 1e-9})  # fmt: skip
    found = table3.measure(asked)
    assert found["precision"] == precision
    assert found["device"].startswith("cpu (")
    assert found["batch"] == 1
    assert [len(times) for times in found["seconds"].values()] == [2, 2]
    assert min(min(times) for times in found["seconds"].values()) > 0


@pytest.mark.parametrize(("seconds", "few"), [(9, 1), (20, table3.FEW)])
def test_nets_that_no_claim_is_about_are_timed_in_fewer_rounds(seconds, few, monkeypatch):
    """In one round if there is no time for a step of two images."""
    monkeypatch.setattr(table3, "TIMED", ("small14-relu", "small14-prelu"))
    monkeypatch.setattr(table3, "ASIDE", {"small14-prelu"})
    monkeypatch.setattr(table3, "_timed", lambda step, batch, device: 1.0)
    settings = {"rounds": 4, "seconds": seconds}
    found = table3.measure(SimpleNamespace(overrides=["device=cpu"], settings=settings))
    assert [len(times) for times in found["seconds"].values()] == [4, few]


@pytest.mark.parametrize(("seconds", "rounds"), [(1, table3.LEAST), (8, 4), (9, 5), (13, 7)])
def test_no_round_begins_when_the_time_is_over_but_for_the_least_number(
    seconds, rounds, monkeypatch
):
    monkeypatch.setattr(table3, "TIMED", ("small14-relu", "small14-prelu"))
    monkeypatch.setattr(table3, "_timed", lambda step, batch, device: 1.0)
    settings = {"rounds": 7, "seconds": seconds}
    found = table3.measure(SimpleNamespace(overrides=["device=cpu"], settings=settings))
    assert [len(times) for times in found["seconds"].values()] == [rounds, rounds]


def test_the_nets_that_claims_are_about_are_timed_in_every_round():
    assert not table3.ASIDE & {"vgg19-relu", "a-relu", "a-prelu"}


@pytest.mark.parametrize(
    ("slower", "verdict"), [(0.94, "reproduced"), (1.045, "reproduced"), (1.06, "not_reproduced")]
)
def test_rounds_that_drift_are_judged_by_the_ratio_of_each(slower, verdict):
    """A shared machine may take twice as long in the first round as in the last, for both nets."""
    theirs = [1.6, 1.2, 0.7]
    ours = [slower * seconds for seconds in theirs]
    assert table3._no_slower(ours, theirs).verdict == verdict


def test_a_net_is_kept_in_the_numbers_it_is_timed_in(monkeypatch):
    seen = []
    monkeypatch.setattr(table3, "build_optimizer", lambda net, recipe: seen.append(net) or
                        SimpleNamespace(param_groups=[]))  # fmt: skip
    for precision in ("fp32", "bf16", "fp64"):
        table3._build_step("small14-relu", table3.torch.device("cpu"), precision)
    kinds = [{str(p.dtype) for p in net.parameters()} for net in seen]
    assert kinds == [{"torch.float32"}, {"torch.float32"}, {"torch.float64"}]
