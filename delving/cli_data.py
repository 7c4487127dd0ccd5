"""`delving data ...`: prepare, verify, preview."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from delving import terminal
from delving.cli_words import Overrides

data_app = typer.Typer(no_args_is_help=True, help="Prepare, verify or preview a data set.")


@data_app.command()
def prepare(overrides: Overrides = None) -> None:
    """Generate or download a data set, and count what it holds."""
    from delving.config import compose
    from delving.data import load_splits, prepare_data

    config = compose(overrides or [])
    prepare_data(config.data.name, config.data.root)
    train, val = load_splits(config.data, config.output_root)
    terminal.say(
        f"{config.data.name}: {len(train):,} training and {len(val):,} validation images "
        f"of {len(train.classes)} classes"
    )


@data_app.command()
def verify(
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all classes.")] = False,
) -> None:
    """Decode every image: counts by class, undecodable ones, duplicates between train and val."""
    from delving.config import compose
    from delving.data import lacking, load_splits
    from delving.data.verify import verify_data

    config = compose(overrides or [])
    splits = load_splits(config.data, config.output_root)
    report, lacks = verify_data(*splits, _every(10)), lacking(config.data, *splits)
    if as_json:
        terminal.write(json.dumps(_as_record(report) | {"lacking": lacks}, indent=2))
    else:
        for what in lacks:
            terminal.say(f"not all of {config.data.name}: {what}")
        _print_report(report)
    raise typer.Exit(0 if report.sound else 1)


def _every(seconds: float):
    """A callback that reports on stderr how many images were looked at, every `seconds` at most."""
    import time

    last = time.monotonic()

    def tell(split: str, count: int, bad: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            print(f"{split}: {count:,} images looked at, {bad:,} of them bad", file=sys.stderr)

    return tell


def _as_record(report) -> dict:
    return {
        "sound": report.sound,
        "counts": report.counts,
        "decoded": report.decoded,
        "bad": [{"name": name, "problem": problem} for name, problem in report.bad],
        "duplicates": [{"train": train, "val": val} for train, val in report.duplicates],
    }


def _print_report(report) -> None:
    for split, counts in report.counts.items():
        per_class = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:12])
        more = f", and {len(counts) - 12} more" if len(counts) > 12 else ""
        terminal.say(
            f"{split}: {sum(counts.values()):,} images, {report.decoded[split]:,} of them sound, "
            f"{len(counts)} classes: {per_class}{more}"
        )
    for _, problem in report.bad:
        terminal.say(f"bad: {problem}")
    for train, val in report.duplicates:
        terminal.say(f"duplicate: {train} = {val}")
    terminal.say(
        "sound"
        if report.sound
        else f"{len(report.bad)} undecodable, {len(report.duplicates)} duplicates"
    )


@data_app.command()
def preview(overrides: Overrides = None) -> None:
    """Draw a contact sheet of the images, and one of what augmentation makes of them."""
    from delving.config import compose
    from delving.data import load_splits
    from delving.data.preview import (
        augmented_rows,
        describe_shift,
        sample_input,
        sheet_rows,
    )
    from delving.plot import draw_sheet, save_figure

    config = compose(overrides or [])
    images, _ = load_splits(config.data, config.output_root)
    sides = tuple(k * config.data.crop // 7 for k in config.train.s)
    flip, color = config.train.flip, config.train.color
    sample = sample_input(images, config.data.crop)
    rows = augmented_rows(images, sample, sides=sides, flip=flip, color=color, seed=config.seed)
    title = (f"s in {list(sides)}, crop {config.data.crop}, {'flip' if flip else 'no flip'}, "
             f"{describe_shift(sample, color)}")  # fmt: skip
    whole = draw_sheet(sheet_rows(images), title=f"{config.data.name}, training images")
    folder = Path(config.output_root) / config.scale / "preview"
    terminal.say(save_figure(whole, folder / f"{config.data.name}.png"))
    augmented = draw_sheet(rows, title=title)
    terminal.say(save_figure(augmented, folder / f"{config.data.name}-augmented.png"))
