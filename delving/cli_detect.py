"""`delving detect`: a trained run fine-tuned to detect objects."""

from pathlib import Path
from typing import Annotated

import typer

from delving import disk, terminal
from delving.cli_words import make_display, refuse_ranks, split_places

Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="A run's folder or name, or the key=value words it was trained by; detect.key=value.",
        show_default=False,
    ),
]


def detect(words: Words = None) -> None:
    """Fine-tune a run by Fast R-CNN on PASCAL VOC 2007 (or generated scenes), and score its mAP."""
    refuse_ranks("detect")
    own = [word for word in words or [] if word.startswith("detect.")]
    rest = [word for word in words or [] if not word.startswith("detect.")]
    from delving.config import compose_detect

    folder, config = _find(rest)
    settings = compose_detect(config.scale, own)
    if settings.data == "voc2007" and settings.classes and "detect.classes" in _keys(own):
        raise ValueError(f"detect.classes={settings.classes}: of generated scenes, "
                         "detect.data=shapes_voc; of VOC's classes all 20 count")  # fmt: skip
    disk.check_writable(folder.absolute().parent.parent / "detections")
    with make_display() as display:
        from delving.detect.run import detect_run

        to = detect_run(folder, config, settings, display)
    _print(to, scores=not display.scored)


def _find(words: list[str]):
    """A trained run's folder, and its configuration with words on where to compute."""
    from delving import config as configs
    from delving import record
    from delving.naming import name_run
    from delving.schema import check_families

    runs = [word for word in words if "=" not in word]
    rest = [word for word in words if "=" in word]
    if len(runs) > 1:
        raise ValueError(f"one run at a time, not {', '.join(runs)}")
    if runs:
        root, scale, _ = split_places(rest)
        folder = record.find_run(runs[0], root, scale)
        own = [word for word in rest if not word.startswith("scale=")]
        _refuse_trunks(own)
        config = configs.amend(folder / "config.yaml", own, scoring=False)
    else:
        config = configs.compose(rest)
        check_families(rest, [config])
        folder = record.run_folder(config.output_root, config.scale, name_run(config))
    if not (folder / "result.json").exists():
        if runs:
            raise ValueError(f"{folder} is not finished: the command that began it goes on; its "
                             f"settings are in {folder / 'config.yaml'}")  # fmt: skip
        how = " ".join(["delving train", *rest])
        raise ValueError(f"{folder} is not trained yet: {how} does it")
    return folder, config


def _refuse_trunks(words: list[str]) -> None:
    """Raises ValueError for a word on how the run was trained where the detection has its like."""
    from delving.config import DETECT
    from delving.words import shown

    for word, key in zip(words, _keys(words), strict=True):
        section, _, name = key.rpartition(".")
        if section and f"detect.{name}" in DETECT:
            raise ValueError(f"{shown(word)}: the run is trained; did you mean detect.{name}?")


def _keys(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words]


def _print(folder: Path, scores: bool) -> None:
    from delving.detect.record import read_detection

    result = read_detection(folder)
    for name, found in result["eval"].items() if scores else ():
        terminal.say(f"{name}: mAP {_percent(found['map'])}")
    boxes = result["proposals"]
    terminal.say(
        f"proposals by {boxes['method']}, {boxes['per_image']:g} an image, reach "
        f"{_percent(boxes['recall'])} of the objects; at random mAP is "
        f"{_percent(result['chance'])} (voc07)"
    )
    terminal.say(f"{result['status']} after {result['steps']} steps, {result['seconds']:.0f} s; "
                 f"see {folder / 'result.json'}")  # fmt: skip


def _percent(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f} %"


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command(short_help="Fine-tune a run on PASCAL VOC, score its mAP.")(detect)
