"""Scores a session's net by its protocols and saves what it says of each image."""

import time
from pathlib import Path

import numpy as np

from delving import record
from delving.evaluate import error_rates, name_protocols, rank_labels
from delving.probe import open_trained
from delving.schema import Config
from delving.session import Session, Watch
from delving.signals import Interrupted, heeding_signals


def eval_run(folder: Path, config: Config, watch: Watch) -> dict[str, dict]:
    """Scores a run's checkpoint by the configuration's protocols; {protocol: error rates}.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of another model or other data.
    """
    with heeding_signals() as heard:
        return score(open_trained(folder, config, watch), heard)


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
        record.save_ranks(session.folder, name, rank_labels(scored[name], images.labels))
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
