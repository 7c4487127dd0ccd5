"""Everything computes on the device that it is given, with nothing left on the CPU.

On a GPU one tensor on the wrong device ends a run, but most machines that run these tests have no
GPU. So all is done twice in a process of its own, on the CPU and on a device that is not the CPU.
"""

import contextlib
import json
import sys
from pathlib import Path

import pytest
from calling import run_apart

PROGRAM = "import test_other_device; test_other_device.main()"


# --- in the process of its own ---
def main():
    import torch
    from other_device import at_work, put_up

    from delving import device as devices

    torch.set_num_threads(1)
    found, root = {}, Path(sys.argv[1])
    places = {"cpu": torch.device("cpu"), "other": put_up()}
    for name, device in places.items():
        devices.pick_device = lambda name, device=device, **ranks: device
        with at_work() if name == "other" else contextlib.nullcontext():
            found[name] = {"refused": is_refused(device)} | do_everything(root / name)
    print(json.dumps(found))


def is_refused(device):
    """Whether mixing a CPU tensor with the device's is an error."""
    import torch

    try:
        torch.ones(2, device=device) + torch.ones(2)
    except RuntimeError:
        return True
    return False


def do_everything(root):
    """Training, resumed once; every protocol; the measurements; the detector."""
    from delving.config import compose

    # In float64 the two devices' results differ in the last bits only.
    words = ["scale=smoke", "precision=fp64", "data.workers=0", "act=prelu", "train.log_every=1",
             f"output_root={root}", "train.checkpoint_minutes=1e-9", "eval=recipe"]  # fmt: skip
    small, large = (compose([*words, f"model={net}"]) for net in ("small14", "c"))
    with contextlib.suppress(StoppedError):
        train(small, stop_at_step_three)
    folders = {config.model.name: train(config) for config in (small, large)}
    return {
        **{net: told_of(folder) for net, folder in folders.items()},
        "batch": batch_of_resident_images(),
        "fisher": fisher(folders["small14"]),
        "signal": signal(words),
        "detector": detect(folders["c"]),
    }


class StoppedError(Exception):
    """Stops a training in a test."""


def stop_at_step_three(event):
    if event["event"] == "tick" and event["step"] == 3:
        raise StoppedError


def train(config, watch=lambda event: None):
    from delving.run import train_run

    return train_run(config, watch)


def told_of(folder):
    """What a run's files tell except times: losses, errors, slopes, the scores of every image."""
    from delving import record

    result = record.read_result(folder)
    return {
        "steps": [[e["loss"], e["grad_norm"]] for e in record.read_events(folder, "step")],
        "errors": result["eval"],
        "slopes": record.read_json(folder / "slopes.json"),
        "scores": {name: record.load_scores(folder, name)[0].tolist() for name in result["eval"]},
    }


def batch_of_resident_images():
    """A batch made on the device; its pixels as a sum weighted by place, so that order counts."""
    import torch
    from helpers import make_images

    from delving import device as devices
    from delving.data.resident import ResidentBatches, load_resident

    source = load_resident(make_images([(30, 20)] * 9), devices.pick_device("auto"), 1.0)
    batch = ResidentBatches(source, batch=8, crop=14, sides=(16, 32), flip=True, seed=0)[1]
    assert batch.pixels.device == batch.labels.device == batch.color.device == source.pixels.device
    pixels = batch.pixels.cpu().double().flatten()
    return [torch.dot(pixels, torch.arange(len(pixels)).double()).item(), batch.labels.tolist(),
            batch.color.tolist()]  # fmt: skip


def fisher(folder):
    from delving.fisher import choose_parameters, describe_fisher, response_statistics
    from delving.fisher import sample_gradients as gradients_of
    from delving.probe import open_run, some_images

    session = open_run(folder)
    x, _ = some_images(session, 96)
    chosen = choose_parameters(session.net, 1, weights=1, seed=0)
    gradients = gradients_of(session.net, x, chosen, seed=0)
    return [describe_fisher(gradients, chosen), response_statistics(session.net, x)]


def signal(words):
    from delving.config import compose
    from delving.draws import measure_nets

    nets = {init: compose([*words, "model=a", f"init={init}"]) for init in ("he", "gaussian")}
    return [*measure_nets(nets, {"images": 4, "draws": 2}).values()]


def detect(folder):
    from delving import config as configs
    from delving.detect.run import detect_run

    words = ["detect.train_images=4", "detect.test_images=3", "detect.steps=2",
             "detect.log_every=1", "detect.proposals=grid", "detect.rois=32"]  # fmt: skip
    settings = configs.compose_detect("smoke", words)
    to = detect_run(folder, configs.load(folder / "config.yaml"), settings, lambda event: None)
    result = json.loads((to / "result.json").read_text())
    return [result["train_loss"], result["eval"]]


# --- what came out of it ---
@pytest.fixture(scope="module")
def found(tmp_path_factory):
    done = run_apart(PROGRAM, tmp_path_factory.mktemp("devices"))
    if "_setup_privateuseone_for_python_backend" in done.stderr:
        pytest.skip("this torch has no devices written in Python")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_other_device_refuses_tensors_of_the_cpu(found):
    """Else the tests below would prove nothing."""
    assert found["other"]["refused"]
    assert not found["cpu"]["refused"]


@pytest.mark.parametrize("what", ["small14", "c", "batch", "fisher", "signal", "detector"])
def test_another_device_computes_what_the_cpu_does(found, what):
    assert_near(found["other"][what], found["cpu"][what])


def assert_near(ours, theirs):
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_near(one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9, nan_ok=True)
    else:
        assert ours == theirs
