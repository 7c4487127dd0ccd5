"""Run folders made by hand: a training's records, with the numbers that a test needs."""

import json
import math
import os
from unittest.mock import patch

import numpy as np

from delving import config as configs
from delving import record
from delving.artefact import Asked, Run
from delving.plan import make_plan
from delving.request import load_request
from delving.schema import Reproduce, Seeds

CLASSES, IMAGES, EVERY, EPOCH = 4, 1000, 20, 100  # EVERY steps a line, EPOCH steps an epoch
BLIND = math.log(CLASSES)
LAYERS = [f"conv{n}" for n in range(1, 12)] + ["fc1", "fc2"]
USUAL = {
    "model": "small14", "act": "prelu", "init": "he", "seed": 0, "status": "converged",
    "errors": {"ten_view": 20.0},  # {protocol: top-1 error, percent}
    "steps": 1000, "leaves": 100,  # trained steps, and the one at which the loss leaves ln(classes)
    "training": 30.0, "validation": 35.0,  # errors, percent, all along
    "gradient": 1.0, "decay": 0.1,  # norms over the conv weights, all along
    "slopes": None,  # {layer: slopes}
}  # fmt: skip


def make_run(folder, **told):
    """Writes a finished run, USUAL where nothing is told; returns its folder."""
    made = USUAL | told
    lines = [json.dumps(event) + "\n" for event in _events(folder.name, made)]
    with patch.object(os, "fsync"):  # which takes longer than all the rest
        record.write_text(folder / "log.jsonl", "".join(lines))
        for protocol, error in made["errors"].items():  # wrong on the first `error` percent
            wrong = np.arange(IMAGES) < round(IMAGES * error / 100)
            record.save_ranks(folder, protocol, wrong.astype(int))
        record.save_slopes(folder, {k: np.array(v) for k, v in (made["slopes"] or {}).items()})
        record.write_json(folder / "result.json", _result(folder.name, made))
    return folder


def _events(name, made):
    yield {"event": "start", "run": name, "steps": made["steps"], "classes": CLASSES,
           "train_images": 32 * EPOCH, "val_images": IMAGES}  # fmt: skip
    for step in range(EVERY, made["steps"] + 1, EVERY):
        loss = BLIND if step < made["leaves"] else BLIND / 2
        yield {"event": "step", "step": step, "epoch": step / EPOCH, "loss": loss,
               "err": made["training"], "grad_norm": made["gradient"],
               "conv_grad_norm": made["gradient"], "conv_decay_norm": made["decay"]}  # fmt: skip
        if step % EPOCH == 0:
            yield {"event": "val", "step": step, "epoch": step / EPOCH,
                   "images": IMAGES, "top1_err": made["validation"], "top5_err": 0.0}  # fmt: skip
    yield {"event": "end", "status": made["status"]}


def _result(name, made):
    scores = {protocol: {"top1_err": float(error), "top5_err": float(error) / 2, "images": IMAGES}
              for protocol, error in made["errors"].items()}  # fmt: skip
    keys = ("model", "act", "init", "seed", "status")
    return {"run": name, "scale": "smoke", **{key: made[key] for key in keys},
            "epochs": made["steps"] / EPOCH, "images_seen": made["steps"] * 32, "params": 1000,
            "multiply_adds": 1000, "train_loss": BLIND, "seconds": 10.0,
            "images_per_second": 100.0, "device": "cpu", "eval": scores,
            "deviations": []}  # fmt: skip


def make_asked(folder, artefact, tell, seeds=3):
    """What an artefact is given where every arm has `seeds` runs, <arm>-s<seed>, whose numbers are
    tell(arm, seed)."""
    request = load_request(artefact)
    words = {arm: dict(word.split("=", 1) for word in one.words)
             for arm, one in request.runs.items()}  # fmt: skip
    arms = {
        arm: [Run(make_run(folder / f"{arm}-s{seed}", **({"seed": seed} | own | tell(arm, seed))))
              for seed in range(seeds)]
        for arm, own in words.items()
    }  # fmt: skip
    return Asked(artefact, "smoke", arms, request.settings, {}, [], folder)


def make_planned(plan, artefact, tell):
    """Makes every run that an artefact asks for, its numbers as tell(arm, seed) has them."""
    for arm, names in plan.arms[artefact].items():
        for name in names:
            config, folder = plan.runs[name], plan.folder(name)
            groups = {group: getattr(config, group).name for group in ("model", "act", "init")}
            make_run(folder, **groups, seed=config.seed, **tell(arm, config.seed))
            record.write_text(folder / "config.yaml", configs.to_yaml(config))
            record.write_json(folder / "env.json", {"device": "none"})


def seeded_plan(monkeypatch, folder, *artefacts, seeds=5):
    """A plan at scale=smoke that writes below `folder` and gives every arm `seeds` seeds."""
    monkeypatch.chdir(folder)  # so that all tests have the same words, composed once
    roles = dict.fromkeys(("rectifiers", "small", "deep", "large"), seeds)
    budget = Reproduce(seeds=Seeds(**roles))
    monkeypatch.setattr("delving.plan.configs.plan_of", lambda scale, words: budget)
    return make_plan(artefacts, ["scale=smoke"])


def save_scores(folder, probabilities, labels, names=None, protocol="dense"):
    """A run folder with saved probabilities, a result that tells their protocol, little else."""
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    names = [f"val/{n}.jpg" for n in range(len(labels))] if names is None else names
    record.save_scores(folder, protocol, {}, probabilities=probabilities, labels=labels,
                       names=names)  # fmt: skip
    result = _result(folder.name, USUAL | {"errors": {protocol: 1.0}})
    record.write_json(folder / "result.json", result)
    record.write_text(folder / "config.yaml", "seed: 0\n")
    return folder


def snapshot(folder):
    """{file below folder: (bytes, time of writing)}"""
    return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns)
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip


def rewrite_json(path, **changes):
    path.write_text(json.dumps(record.read_json(path) | changes))
