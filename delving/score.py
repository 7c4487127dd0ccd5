"""Scores a session's net by its protocols and saves its answers for each image."""

import contextlib
import re
import time
from pathlib import Path

import numpy as np

from delving import config as configs
from delving import record
from delving.checkpoint import weights_hash
from delving.evaluate import error_rates, name_protocols, rank_labels
from delving.probe import open_trained
from delving.ranks import joined
from delving.same import find_link
from delving.schema import Config
from delving.session import Session, Watch
from delving.signals import heeding_signals, leaving_at_once


def eval_run(folder: Path, config: Config, watch: Watch) -> dict[str, dict]:
    """Scores a run's checkpoint by the configuration's protocols; {protocol: error rates}.

    Tables and ensembles read scores by the run's own settings. Scores by other settings have names
    that tell these: ten_view@40, dense@40+56, center-fp32.

    Raises:
        ValueError: no checkpoint, a damaged one, or one of another model or other data; a link in
            the folder; the run was trained on meanwhile.
        Interrupted: TERM, INT, HUP, USR1 or USR2 came; the protocols done by then are saved.
    """
    if link := find_link(folder):
        raise ValueError(link)
    with joined() as ranks, leaving_at_once():
        session = open_trained(folder, config, watch, ranks)
        with heeding_signals() as session.heard:
            return _score(session, configs.load(folder / "config.yaml"), {})


def score_trained(session: Session) -> dict[str, dict]:
    """The same for a run that has just been trained; what an interrupted scoring of the same
    weights has saved is not done again."""
    before = _saved_scores(session) if session.ranks.first else {}
    return _score(session, session.config, before)


def _score(session: Session, own: Config, before: dict[str, np.ndarray]) -> dict[str, dict]:
    """Every protocol of the session's configuration, saved under its name; {name: error rates}.

    Args:
        own: the run's own configuration.
        before: probabilities that are there already, by protocol.
    """
    config, ranks = session.config.eval, session.ranks
    done = ranks.tell(sorted(before))
    scored: dict[str, np.ndarray] = dict(before)
    summaries = {}
    for name in name_protocols(config.protocols, session.sides(config.dense_s)):
        started = time.perf_counter()
        if name not in done:
            # Rounded as they are saved, so that a reader of the file finds the same errors.
            scored[name] = record.round_scores(_score_one(session, name, scored))
        told = _name_settings(session, own, name)
        if ranks.first and told not in summaries:  # `dense` of one other scale is named by it
            rates = error_rates(scored[name], session.val_images.images.labels)
            summaries[told] = {**rates, "images": len(session.val_images.images)}
            if name not in done:
                seconds = round(time.perf_counter() - started, 2)
                how = {"seconds": seconds, **_settings(session, name)}
                _save(session, told, scored[name], summaries[told] | how)
            session.tell(event="score", protocol=told, **summaries[told])
        ranks.stop_if_told(session.heard, session.folder)
    return ranks.tell(summaries)


def _settings(session: Session, name: str) -> dict:
    """What a protocol's scores depend on besides weights and images: shorter sides in pixels, and
    the precision."""
    own = session.config.eval
    given = {"center": [own.ten_view_s], "ten_view": [own.ten_view_s], "dense": own.dense_s}
    sides = session.sides(given[name]) if name in given else [int(name.partition("@")[2])]
    return {"s": sides, "precision": session.precision}


def _name_settings(session: Session, own: Config, name: str) -> str:
    """A protocol's name, followed by those of its settings that are not the run's own."""
    given = session.config
    other = given.eval.dense_s != own.eval.dense_s
    if name in ("center", "ten_view"):
        other = given.eval.ten_view_s != own.eval.ten_view_s
    if other and "@" not in name:
        name += "@" + "+".join(map(str, _settings(session, name)["s"]))
    # `auto` may come to another precision on another machine than it did in training.
    same = session.trained in (None, session.precision)
    return name if same else f"{name}-{session.precision}"


def _save(session: Session, name: str, probabilities: np.ndarray, summary: dict) -> None:
    """Saves scores; what readers look for first is written last. ValueError if the weights are no
    longer the run's: a training may have ended meanwhile, and its scores are to stay."""
    if weights_hash(session.folder) not in (None, session.weights):
        raise ValueError(f"{session.folder} was trained on meanwhile: score it again")
    images = session.val_images.images
    record.save_ranks(session.folder, name, rank_labels(probabilities, images.labels))
    record.save_scores(
        session.folder,
        name,
        {"protocol": name, **summary, "weights": session.weights},
        probabilities=probabilities,
        labels=images.labels,
        names=images.ids,
    )


def drop_others(session: Session) -> None:
    """Removes scores of other weights, made by `delving eval` before the run was finished."""
    endings = (".json", ".hits.npz", ".npz")
    there = [path.name for ending in endings for path in session.folder.glob(f"eval/*{ending}")]
    for name in {re.sub(r"(\.hits)?\.(npz|json)$", "", name) for name in there}:
        summary, path = None, session.folder / "eval" / f"{name}.json"
        with contextlib.suppress(ValueError, FileNotFoundError):  # without, no weights are named
            summary = record.read_json(path)
        if not isinstance(summary, dict) or summary.get("weights") != session.weights:
            for ending in endings:  # what readers look for first goes first
                path.with_name(name + ending).unlink(missing_ok=True)


def _saved_scores(session: Session) -> dict[str, np.ndarray]:
    """{protocol: probabilities} that the folder holds for the session's own weights, images and
    settings."""
    found, images = {}, session.val_images.images
    for path in sorted((session.folder / "eval").glob("[!.]*.json")):
        with contextlib.suppress(ValueError):  # damaged ones are made anew
            summary = record.read_json(path)
            probabilities, _, names = record.load_scores(session.folder, path.stem)
            record.load_hits(session.folder, path.stem)
            if not isinstance(summary, dict) or session.weights is None:
                continue
            asked = {"weights": session.weights, **_settings(session, path.stem)}
            if asked.items() <= summary.items() and names == images.ids:
                found[path.stem] = probabilities
    return found


def _score_one(session: Session, name: str, scored: dict[str, np.ndarray]) -> np.ndarray:
    """(images, classes) by one protocol; `dense` averages the scales scored before it."""
    config, source = session.config.eval, session.val_images
    [s] = session.sides([config.ten_view_s])
    tester = session.tester(session.heard)
    if name == "dense":
        if not session.ranks.first:  # only rank 0 has what was scored before
            return np.empty(0)
        return np.mean([scored[f"dense@{s}"] for s in session.sides(config.dense_s)], axis=0)
    if name.startswith("dense@"):
        return tester.dense(source, int(name.removeprefix("dense@")))
    return getattr(tester, name)(source, s)
