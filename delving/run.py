"""From a configuration to a run folder: `train_run` trains, scores and records one run."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from delving import device as devices
from delving import record
from delving.build import list_deviations
from delving.checkpoint import drop_previous
from delving.data import lacking
from delving.data.images import UndecodableImageError
from delving.data.processes import LoaderError
from delving.evaluate import error_rates
from delving.lock import clear_up, holding
from delving.meter import Meter
from delving.naming import name_run
from delving.net import describe
from delving.ranks import agree, joined
from delving.same import find_other
from delving.schema import Config
from delving.score import drop_others, score_trained
from delving.session import Session, Watch, compile_kernels, open_session, supply_batches
from delving.signals import heeding_signals, leaving_at_once
from delving.state import resume_or_start, save
from delving.step import decay_norm
from delving.train import Step, compile_net, final_status, passed, train

BAD_SHARE = 1e-4  # share of training images that may be undecodable; at least one may
SUBSET = 20_15  # keys the fixed random validation images looked at in training


def train_run(config: Config, watch: Watch, shelf: dict | None = None) -> Path:
    """Trains and scores one run, or what is left of it, and returns its folder.

    As one of several processes that torchrun or SLURM started, it does its share. `shelf` keeps
    decoded images from one run of a process to the next.

    Raises:
        ValueError: bad data, a folder of that name whose run was asked for differently, or one that
            another process is training.
        DiskFullError: there is no room for what it would write.
        LoaderError: a loader process died or hangs; the state is saved.
        LostRankError, OtherRankError: another rank died, or failed.
        Interrupted: TERM, INT, HUP, USR1 or USR2 came; the state is saved.
    """
    folder = record.run_folder(config.output_root, config.scale, name_run(config))
    with joined() as ranks, leaving_at_once():
        if agree(ranks, lambda: is_finished(folder, config)):
            if ranks.first:
                clear_up(folder)
                watch({"event": "finished"})
            return folder
        with ExitStack() as held:
            with ranks.same_fate():
                if ranks.first:
                    held.enter_context(holding(folder))
            session = open_session(config, folder, watch, shelf, ranks)
            session.tell(event="opening", line=opening_line(session))
            with ranks.same_fate():
                compile_kernels(session.device, lambda event: session.tell(**event))
            resume_or_start(session)
            with heeding_signals() as session.heard:
                train_until_done(session)
                finish(session)
                ranks.wait()
    return folder


def is_finished(folder: Path, config: Config) -> bool:
    """Whether this very run is finished; ValueError if the folder holds another run, or does not
    tell which."""
    if why := find_other(config, folder):
        raise ValueError(why)
    finished = (folder / "result.json").exists()
    if finished and not (folder / "config.yaml").exists():
        raise ValueError(f"{folder} has a result.json, but no config.yaml: move it away")
    return finished


def opening_line(session: Session) -> str:
    """What this training really is, in a line."""
    config, images = session.config, len(session.train_images.images)
    name = config.model.name.upper() if len(config.model.name) == 1 else config.model.name
    width = "" if config.model.width == 1 else f" at width {_fraction(config.model.width)}"
    kind = "generated" if config.data.name == "shapes" else config.data.name
    line = f"{name}{width} on {images:,} {kind} images (scale {config.scale})."
    if config.scale == "paper":
        return line
    fitting = session.device.type != "cpu" and config.scale != "quarter"
    hint = " For this machine's GPU: scale=quarter." if fitting else ""
    return f"{line} The paper's own: scale=paper data.root=...{hint}"


def _fraction(width: float) -> str:
    return f"1/{1 / width:g}" if width < 1 and (1 / width).is_integer() else f"{width:g}"


def train_until_done(session: Session) -> None:
    """Trains the remaining steps, with log, validation, checkpoints and signals in between."""
    recipe, progress = session.recipe, session.progress
    if progress.status == "diverged":
        return  # trained, but not scored
    if _owes_a_look(session) and not validate(session):
        save(session)
        return
    if progress.step >= recipe.steps:
        return
    meter = Meter(session.seconds)
    try:
        with closing(planned_steps(session, meter)) as steps:  # closes the loader processes too
            for step in steps:
                session.seconds = meter.seconds
                meter.images += recipe.batch
                if not after_step(session, step, meter):
                    break
    except (LoaderError, UndecodableImageError):  # the latter comes in a validation
        save(session)
        raise
    session.seconds = meter.seconds
    save(session)


def _owes_a_look(session: Session) -> bool:
    """Whether the validation after the last step was not finished, so that the log lacks it."""
    step, owes = session.progress.step, False
    if session.ranks.first and step and _is_look_due(session):
        looks = record.read_events(session.folder, "val")
        owes = all(look["step"] != step for look in looks)
    return session.ranks.tell(owes)


def _is_look_due(session: Session) -> bool:
    step, recipe = session.progress.step, session.recipe
    return step == recipe.steps or passed(step, recipe.epoch * session.config.eval.every)


def after_step(session: Session, step: Step, meter: Meter) -> bool:
    """Does what follows a step; False if the training has diverged.

    Raises:
        Interrupted: after saving.
    """
    config, progress = session.config, session.progress
    note_bad_images(session, step)
    report_step(session, step, meter)
    if progress.status == "diverged":
        return False
    if _is_look_due(session):
        with meter.paused():
            finite = validate(session)
        if not finite:
            return False
    # Every rank must stop after the same step, even if only one was told to.
    told = session.ranks.told(session.heard)
    if told or meter.checkpoint_due(config.train.checkpoint_minutes):
        with meter.paused():
            save(session)
    session.ranks.stop(told, session.folder)
    return True


def planned_steps(session: Session, meter: Meter) -> Iterator[Step]:
    """The training of the remaining steps, about to begin."""
    config, recipe, progress = session.config, session.recipe, session.progress
    supply = supply_batches(session, range(progress.step, recipe.steps))
    net = compile_net(session.net) if config.train.compile else session.net
    return train(
        session.ranks.share(net, session.device),
        session.input,
        session.optimizer,
        batches=meter.timed(supply, session.device),
        recipe=recipe,
        progress=progress,
        autocast=session.autocast,
        ranks=session.ranks,
    )


def note_bad_images(session: Session, step: Step) -> None:
    """Counts undecodable training images; ValueError names them once they are too many."""
    bad = step.bad
    if session.ranks.largest(len(bad)):
        bad = [name for names in session.ranks.gather(bad) for name in names]
    new = [name for name in dict.fromkeys(bad) if name not in session.progress.bad]
    for name in new:
        session.progress.bad.append(name)
        session.log(event="bad_image", name=name)
    limit = max(1, int(BAD_SHARE * len(session.train_images.images)))
    if new and len(session.progress.bad) > limit:
        session.ranks.fail(
            ValueError(
                f"{len(session.progress.bad)} training images cannot be decoded "
                f"(at most {limit} is tolerated): {', '.join(session.progress.bad[:5])}. "
                "`delving data verify` lists them all"
            )
        )


def report_step(session: Session, step: Step, meter: Meter) -> None:
    progress, recipe = session.progress, session.recipe
    session.tell(event="tick", step=progress.step, loss=step.loss, err=step.error)
    if progress.status == "diverged":
        session.log(
            event="diverged", step=progress.step, loss=str(step.loss), grad_norm=str(step.grad_norm)
        )
    elif progress.step % session.config.train.log_every == 0 or progress.step == recipe.steps:
        loss, err, norm, conv_norm = np.mean(progress.pending, axis=0).tolist()
        progress.pending.clear()
        session.log(
            event="step",
            step=progress.step,
            epoch=round(progress.step / recipe.epoch, 4),
            loss=loss,
            err=err,
            grad_norm=norm,
            conv_grad_norm=conv_norm,
            conv_decay_norm=decay_norm(session.net, recipe.weight_decay),
            lr=step.lr,
            seconds=round(session.seconds, 2),
            **meter.rates(),
        )


def validate(session: Session) -> bool:
    """Logs the center-crop error of a fixed random subset of the validation images, for the
    curves; False if the scores are not finite, which is recorded as divergence."""
    images = session.val_images.images
    count = min(session.config.eval.images, len(images))
    rng = np.random.Generator(np.random.Philox(SUBSET))
    chosen = np.sort(rng.permutation(len(images))[:count])
    s = session.sides([session.config.eval.ten_view_s])[0]
    try:
        probabilities = session.tester(kept=session.looks).center(session.val_images, s, chosen)
    except FloatingPointError as error:
        session.progress.status = "diverged"
        session.log(
            event="diverged", step=session.progress.step, loss=str(error), grad_norm="finite"
        )
        return False
    session.log(
        event="val",
        step=session.progress.step,
        epoch=round(session.progress.step / session.recipe.epoch, 4),
        images=count,
        **error_rates(probabilities, images.labels[chosen]),
    )
    return True


def finish(session: Session) -> None:
    """Scores the trained net and writes result.json, the mark of a finished run."""
    status = final_status(session.progress, len(session.train_images.images.classes))
    try:
        scores = {} if status == "diverged" else score_trained(session)
    except FloatingPointError:  # the weights are finite, but the scores are not
        status, scores = "diverged", {}
    except UndecodableImageError as error:
        told = f"{error}. The net is trained: with that file mended the same command scores it"
        raise UndecodableImageError(told) from error
    if not session.ranks.first:
        return
    drop_others(session)
    result = summarise(session, status, scores)
    record.save_slopes(session.folder, session.net.slopes())
    session.log(event="end", status=status, seconds=round(session.seconds, 2))
    drop_previous(session.folder)
    record.write_json(session.folder / "result.json", result)  # last: it marks the run as finished


def summarise(session: Session, status: str, scores: dict[str, dict]) -> dict:
    config, progress, recipe = session.config, session.progress, session.recipe
    steps = record.read_events(session.folder, "step")
    rows = describe(session.net, session.layers, config.data.crop)
    return {
        "run": session.folder.name,
        "scale": config.scale,
        "model": config.model.name,
        "act": config.act.name,
        "init": config.init.name,
        "seed": config.seed,
        "epochs": round(progress.step / recipe.epoch, 4),
        "images_seen": progress.step * recipe.batch,
        "params": sum(row["params"] for row in rows),
        "multiply_adds": sum(row["multiply_adds"] for row in rows),
        "train_loss": steps[-1]["loss"] if steps else None,
        "status": status,
        "seconds": round(session.seconds, 2),
        "images_per_second": round(progress.step * recipe.batch / max(session.seconds, 1e-9), 1),
        "device": devices.name_device(session.device, session.ranks.size),
        "eval": scores,
        "deviations": [
            *list_deviations(config, session.net, session.precision),
            *lacking(config.data, session.train_images.images, session.val_images.images),
        ],
    }
