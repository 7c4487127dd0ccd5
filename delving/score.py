"""Scores a session's net by its protocols and saves what it says of each image."""

import time
from pathlib import Path

import numpy as np
import torch

from delving import record
from delving.build import load_weights
from delving.data.input import blank_input
from delving.evaluate import error_rates, name_protocols
from delving.schema import Config
from delving.session import Session, Watch, check_same_data, open_session
from delving.signals import Interrupted, heeding_signals


def eval_run(folder: Path, config: Config, watch: Watch) -> dict[str, dict]:
    """Scores a run's checkpoint by the configuration's protocols; {protocol: error rates}.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of another model or other data.
    """
    saved = record.load_checkpoint(folder)
    if not saved:
        raise ValueError(f"{folder} has no checkpoint to score")
    tensors, state = saved
    with heeding_signals() as heard:
        session = open_session(config, folder, watch)
        check_same_data(session, state["data"])
        session.net = session.net.to_empty(device=session.device)
        session.net = session.net.to(memory_format=torch.channels_last)
        session.input = blank_input(config.data.crop).to(session.device)
        load_weights(session.net, session.input, tensors["model"], folder)
        return score(session, heard)


def score(session: Session, heard: list[int]) -> dict[str, dict]:
    """Every protocol of the configuration, saved under its name; {name: error rates}."""
    config, images = session.config.eval, session.val_images.images
    scored: dict[str, np.ndarray] = {}
    summaries = {}
    for name in name_protocols(config.protocols, session.sides(config.dense_s)):
        started = time.perf_counter()
        # As they are saved, so that who reads them finds the same errors.
        scored[name] = record.round_scores(_score_one(session, name, scored))
        summaries[name] = {**error_rates(scored[name], images.labels), "images": len(images)}
        seconds = round(time.perf_counter() - started, 2)
        record.save_scores(
            session.folder,
            name,
            {"protocol": name, **summaries[name], "seconds": seconds},
            probabilities=scored[name],
            labels=images.labels,
            names=images.names,
        )
        session.watch({"event": "score", "protocol": name, **summaries[name]})
        if heard:
            raise Interrupted(heard[0], session.folder)
    return summaries


def _score_one(session: Session, name: str, scored: dict[str, np.ndarray]) -> np.ndarray:
    """(images, classes) by one protocol; `dense` averages the scales scored before it."""
    config, source = session.config.eval, session.val_images
    if name == "dense":
        return np.mean([scored[f"dense@{s}"] for s in session.sides(config.dense_s)], axis=0)
    if name.startswith("dense@"):
        return session.tester.dense(source, int(name.removeprefix("dense@")))
    [s] = session.sides([config.ten_view_s])
    return getattr(session.tester, name)(source, s)
