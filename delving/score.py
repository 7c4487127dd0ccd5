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
from delving.session import Session, Watch, open_session
from delving.signals import Interrupted, heeding_signals


def eval_run(folder: Path, config: Config, watch: Watch) -> dict[str, dict]:
    """Scores a run's checkpoint by the configuration's protocols; {protocol: error rates}.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of another model.
    """
    saved = record.load_checkpoint(folder)
    if not saved:
        raise ValueError(f"{folder} has no checkpoint to score")
    session = open_session(config, folder, watch)
    session.net = session.net.to_empty(device=session.device).to(memory_format=torch.channels_last)
    session.input = blank_input(config.data.crop).to(session.device)
    load_weights(session.net, session.input, saved[0]["model"], folder)
    with heeding_signals() as heard:
        return score(session, heard)


def score(session: Session, heard: list[int]) -> dict[str, dict]:
    """Every protocol of the configuration, saved under its name; {name: error rates}."""
    config, images = session.config.eval, session.val_images.images
    sides = session.sides(config.dense_s)
    scored: dict[str, np.ndarray] = {}
    summaries = {}
    for name in name_protocols(config.protocols, sides):
        started = time.perf_counter()
        if name == "dense":
            scored[name] = np.mean([scored[f"dense@{s}"] for s in sides], axis=0)
        elif name.startswith("dense@"):
            scored[name] = session.tester.dense(session.val_images, int(name[6:]))
        else:
            s = session.sides([config.ten_view_s])[0]
            scored[name] = getattr(session.tester, name)(session.val_images, s)
        # As they are saved, so that who reads them finds the same errors.
        scored[name] = scored[name].astype(np.float16).astype(np.float32)
        summaries[name] = {**error_rates(scored[name], images.labels), "images": len(images)}
        round(time.perf_counter() - started, 2)
        record.save_scores(
            session.folder,
            name,
            {
                "protocol": name,
                **summaries[name],
                "seconds": round(time.perf_counter() - started, 2),
            },
            probabilities=scored[name],
            labels=images.labels,
            names=images.names,
        )
        session.watch({"event": "score", "protocol": name, **summaries[name]})
        if heard:
            raise Interrupted(heard[0], session.folder)
    return summaries
