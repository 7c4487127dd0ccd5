"""`delving detect`: a trained run fine-tuned to detect objects, scored and recorded."""

import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from delving import device as devices
from delving import record
from delving.arrays import pack_arrays
from delving.build import load_momentum, load_weights, tensors_of
from delving.checkpoint import check_room, drop_previous, load_checkpoint, save_checkpoint, settle
from delving.config import compose_detect
from delving.data.images import to_base64
from delving.detect.job import Job, describe, open_job, open_trunk
from delving.detect.metric import Detections
from delving.detect.naming import Detection, check_same, detection_folder, load_about, save_about
from delving.detect.proposals import METHODS, hash_of
from delving.detect.record import read_detection
from delving.detect.score import Judge, chance, joined, recall, score
from delving.detect.train import Progress, ahead
from delving.lock import clear_up, holding
from delving.meter import Meter
from delving.schema import Config, Detect
from delving.session import Watch
from delving.signals import Interrupted, counted, heeding_signals, leaving_at_once
from delving.state import environment_of

PICTURES, SHOWN = 8, 0.5  # test images kept for figures, and the score from which a box is drawn
BESIDE = 64 * 2**20  # bytes to allow for log and detections
STATE = {"progress": dict, "seconds": record.NUMBER, "data": str, "log_bytes": int}
PROGRESS = {"step": int, "pending": list, "status": str}


def detect_run(run: Path, config: Config, settings: Detect, watch: Watch) -> Path:
    """Fine-tunes a run on VOC and scores it, or does what is left of that; returns the folder.

    Args:
        config: the run's own, perhaps with other settings of where to compute.

    Raises:
        ValueError: no trained run, bad data, or a folder of that name with another detection.
        DiskFullError: there is no room for what it would write.
        Interrupted: TERM, INT, HUP, USR1 or USR2 came; the state is saved.
    """
    usual = compose_detect(config.scale, [])
    folder = detection_folder(run, settings, usual, config.precision)
    with leaving_at_once():
        if (folder / "result.json").exists():
            _check_finished(run, config, settings, folder)
            clear_up(folder)
            watch({"event": "finished"})
            return folder
        trunk = open_trunk(run, config)
        about = describe(run, config, settings, trunk.weights)
        check_same(about, folder)
        with holding(folder):
            job = open_job(folder, config, trunk, about, watch)
            watch({"event": "opening", "line": opening_line(job)})
            resume_or_start(job)
            with heeding_signals() as job.heard:
                train_until_done(job)
                finish(job)
    return folder


def _check_finished(run: Path, config: Config, settings: Detect, folder: Path) -> None:
    """Raises ValueError if the finished detection is not the one asked for. It may be from another
    machine: `auto` then means what it has, and its run may be here without weights."""
    there = load_about(folder / "config.yaml")
    weights = open_trunk(run, config).weights if (run / "checkpoint").exists() else there.weights
    precision = there.precision if config.precision == "auto" else config.precision
    if settings.proposals == "auto":
        settings = replace(settings, proposals=there.detect.proposals)
    asked = Detection(run.name, weights, config.scale, config.seed, precision, settings)
    check_same(asked, folder)
    # A proposal file's name does not tell whether its content is the same.
    boxes, told = settings.proposals, read_detection(folder)["proposals"].get("hash")
    if told and hash_of(boxes) not in (None, told):
        raise ValueError(
            f"{folder} was made of other proposals than those of {boxes}: move it away"
        )


def opening_line(job: Job) -> str:
    """What this training really is, in one line."""
    train, test = map(len, job.splits)
    kind = "generated" if job.about.detect.data == "shapes_voc" else "VOC 2007"
    boxes = np.mean([len(boxes) for boxes in job.proposals[1]])
    return (f"Fast R-CNN with {job.about.run} as trunk on {train:,} {kind} images, tested on "
            f"{test:,}, {boxes:,.0f} proposals each (scale {job.about.scale}).")  # fmt: skip


def resume_or_start(job: Job) -> None:
    """Resumes from the checkpoint, or starts from the beginning.

    Raises:
        ValueError: the checkpoint is of other data or another net, or none is whole.
    """
    folder = job.folder
    record.remove_leftovers(folder)
    for fault in settle(folder):
        job.watch({"event": "damaged", "fault": fault})
    check_room(folder, 2 * sum(p.nbytes for p in job.net.parameters()), BESIDE)
    found = load_checkpoint(folder)
    if found:
        _restore(job, *found)
        return
    for name in ("config.yaml", "env.json", "log.jsonl"):
        (folder / name).unlink(missing_ok=True)
    _write_about(job)


def _write_about(job: Job) -> None:
    """Writes what tells which detection this is, if missing; by config.yaml it is found again."""
    if not (job.folder / "config.yaml").exists():
        save_about(job.about, job.folder)
    if not (job.folder / "env.json").exists():
        about = environment_of(job.input.mean.device, job.about.precision, job.data)
        record.write_json(job.folder / "env.json", about)
    if not record.read_events(job.folder, "start"):
        job.log(event="start", run=job.folder.name, steps=job.about.detect.steps,
                train_images=len(job.splits[0]), test_images=len(job.splits[1]),
                classes=len(job.splits[0].classes), precision=job.about.precision)  # fmt: skip


def _restore(job: Job, tensors: dict, state: dict) -> None:
    where = f"{job.folder}: its checkpoint's state.json"
    progress = record.expect(record.expect(state, STATE, where)["progress"], PROGRESS, where)
    rows = all(record.are_numbers(row, 4) for row in progress["pending"])
    counts = progress["step"], state["log_bytes"]
    if set(progress) != set(PROGRESS) or min(counts) < 0 or not rows:
        raise ValueError(f"{where} is damaged")
    if state["data"] != job.data:
        raise ValueError(f"{job.folder} was trained on other images or proposals: give the same "
                         "detect.root, or move the folder away")  # fmt: skip
    job.progress, job.seconds = Progress(**progress), state["seconds"]
    load_weights(job.net, job.input, tensors.get("model", {}), job.folder)
    load_momentum(job.net, job.optimizer, tensors.get("optimizer", {}), job.folder)
    if fault := record.truncate_log(job.folder / "log.jsonl", state["log_bytes"]):
        job.watch({"event": "damaged", "fault": fault})
    _write_about(job)
    job.log(event="resume", run=job.folder.name, step=job.progress.step,
            steps=job.about.detect.steps)  # fmt: skip


def save(job: Job) -> None:
    """Writes a checkpoint from which the same steps follow."""
    log = job.folder / "log.jsonl"
    record.sync_log(log)
    state = {"progress": asdict(job.progress), "seconds": job.seconds, "data": job.data,
             "log_bytes": log.stat().st_size}  # fmt: skip
    tensors = tensors_of(job.net, job.input, job.optimizer)
    save_checkpoint(job.folder, tensors, state)


def train_until_done(job: Job) -> None:
    """The steps that are left, with log, checkpoints and signals in between."""
    progress, settings = job.progress, job.about.detect
    if progress.step >= settings.steps or progress.status == "diverged":
        return
    meter = Meter(job.seconds)
    with closing(ahead(job.batches(), progress.step, settings.steps)) as supply:
        for told in job.trainer().steps(meter.timed(supply, job.input.mean.device), progress):
            meter.images += settings.images
            job.seconds = meter.seconds
            _report(job, told, meter)
            number = counted(job.heard)
            if number or meter.checkpoint_due(settings.checkpoint_minutes):
                with meter.paused():
                    save(job)
            if number:
                raise Interrupted(number, job.folder)
    save(job)


def _report(job: Job, told: tuple[float, ...], meter: Meter) -> None:
    progress, settings = job.progress, job.about.detect
    job.watch({"event": "tick", "step": progress.step, "loss": told[0], "err": told[3]})
    if progress.status == "diverged":
        job.log(event="diverged", step=progress.step, loss=str(told[0]), grad_norm="not looked at")
    elif progress.step % settings.log_every == 0 or progress.step == settings.steps:
        loss, of_classes, of_boxes, error = np.mean(progress.pending, axis=0).tolist()
        progress.pending.clear()
        epoch = progress.step * settings.images / len(job.useful)
        job.log(event="step", step=progress.step, epoch=round(epoch, 4), loss=loss,
                class_loss=of_classes, box_loss=of_boxes, err=error,
                seconds=round(job.seconds, 2), **meter.rates())  # fmt: skip


def finish(job: Job) -> None:
    """Scores the detector and writes result.json, the mark of a finished detection. Its status is
    `stalled` if its mAP is not above that of detections at random."""
    status, scores, started = "diverged", {}, time.perf_counter()
    blind = chance(job.splits[1], job.proposals[1])
    if job.progress.status != "diverged":
        try:
            scores = score_detector(job)
            found = scores["voc07"]["map"]  # both are None if there is nothing to be found
            status = "stalled" if found is not None and found <= blind else "converged"
        except FloatingPointError:  # the last step's loss was finite, but scores are not
            scores = {}
    result = summarise(job, status, scores) | {
        "chance": blind,
        "testing": round(time.perf_counter() - started, 2),
    }
    job.log(event="end", status=status, seconds=round(job.seconds, 2))
    drop_previous(job.folder)
    record.write_json(job.folder / "result.json", result)  # last: it marks the end


def score_detector(job: Job) -> dict[str, dict]:
    """Finds the objects of all test images, and saves what was found.

    Raises:
        FloatingPointError: a score is not finite.
        Interrupted: a signal came.
    """
    judge = Judge(job.net, job.input, job.sizing, job.statistics, job.about.detect.nms,
                  job.autocast)  # fmt: skip
    test, parts = job.splits[1], []
    with job.autocast():  # the weights are rounded once, not for every image
        for number, boxes in enumerate(job.proposals[1]):
            parts.append(judge.find(test, number, boxes))
            if job.heard:
                raise Interrupted(counted(job.heard), job.folder)
    found = joined(parts)
    save_detections(job.folder, found)
    record.write_json(job.folder / "pictures.json", list_pictures(job, parts))
    scores = score(found, test)
    maps = {name: one["map"] for name, one in scores.items()}
    job.watch({"event": "detected", "maps": maps, "images": len(test)})
    return scores


def save_detections(folder: Path, found: Detections) -> None:
    """Writes detections.npz: image (its place in the split), label, score, boxes in tenths of a
    pixel."""
    packed = pack_arrays(
        image=found.image.astype(np.int32), label=found.label.astype(np.int16),
        score=found.score.astype(np.float32), boxes=np.round(10 * found.boxes).astype(np.int32),
    )  # fmt: skip
    record.write_bytes(folder / "detections.npz", packed)


def list_pictures(job: Job, parts: list[Detections]) -> list[dict]:
    """The first test images, with their objects and what was found in them, for figures."""
    test, pictures = job.splits[1], []
    for number in range(min(PICTURES, len(test))):
        sure = parts[number].score >= SHOWN
        found = zip(parts[number].label[sure], parts[number].score[sure],
                    parts[number].boxes[sure], strict=True)  # fmt: skip
        objects, small = test.objects[number], test.load(number)
        small.thumbnail((320, 320))
        pictures.append({
            "image": test.ids[number],
            "jpeg": to_base64(small, quality=85),
            "size": list(test.sizes[number]),
            "found": [[test.classes[c], round(float(s), 3), [round(float(v), 1) for v in box]]
                      for c, s, box in found],
            "objects": [[test.classes[c], [round(float(v), 1) for v in box], bool(hard)]
                        for c, box, hard in zip(objects.labels, objects.boxes, objects.difficult,
                                                strict=True)],
        })  # fmt: skip
    return pictures


def summarise(job: Job, status: str, scores: dict[str, dict]) -> dict:
    """result.json of a detection."""
    config, settings, progress = job.config, job.about.detect, job.progress
    steps = record.read_events(job.folder, "step")
    return {
        "detection": job.folder.name, "run": job.about.run, "scale": config.scale,
        "model": config.model.name, "act": config.act.name, "init": config.init.name,
        "seed": config.seed, "data": settings.data, "train_images": len(job.splits[0]),
        "test_images": len(job.splits[1]), "steps": progress.step,
        "params": sum(p.numel() for p in job.net.parameters()),
        "proposals": {
            "method": settings.proposals if settings.proposals in METHODS else "file",
            "hash": hash_of(settings.proposals),
            "per_image": round(float(np.mean([len(b) for b in job.proposals[1]])), 1),
            "recall": recall(job.splits[1], job.proposals[1]),
        },
        "train_loss": steps[-1]["loss"] if steps else None,
        "status": status, "seconds": round(job.seconds, 2),
        "images_per_second": round(progress.step * settings.images / max(job.seconds, 1e-9), 1),
        "device": devices.name_device(job.input.mean.device),
        "eval": scores,
    }  # fmt: skip
