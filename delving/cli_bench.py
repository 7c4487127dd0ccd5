"""`delving bench` and `delving estimate`: what things take."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from delving import disk, exits, terminal
from delving.cli_words import AsJson, Overrides, refuse_ranks

COLUMNS = ("ours", "baseline", "ratio", "low", "high", "limit", "fraction")


@contextmanager
def _from_the_start() -> Iterator[None]:
    """Words for a signal that ends a command whose next call takes up nothing."""
    from delving.signals import Interrupted

    try:
        yield
    except Interrupted as end:
        told = "stopped here; the same command begins again"
        raise Interrupted(end.signal, told=told) from None


@_from_the_start()
def bench(
    what: Annotated[
        str, typer.Argument(help="rectifier, train, eval, dense, loader, scaling, start, or all.")
    ],
    overrides: Overrides = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each runs all alternatives.")] = 7,
    to: Annotated[
        Path | None,
        typer.Option(help="A JSON file for the rows, rewritten after each.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure speed, beside plain PyTorch in the same rounds and this machine's own limits.

    ratio: how many times better ours is, the median, lowest and highest of the rounds.
    """
    refuse_ranks("bench")
    from delving import record
    from delving.bench.table import measure

    target = to and disk.find_target(to)
    records, failed = [], False
    try:
        for name, row in measure(what, overrides or [], rounds):
            if isinstance(row, Exception):
                failed = True
                told = terminal.plain(exits.describe(row))
                typer.echo(f"delving: bench {name}: {told}", err=True)
                continue
            records.append(row.as_record())
            if not as_json:
                _say(records[-1])
            if target:
                record.write_json(target, records)
    finally:  # also if a signal ends it: measuring all takes minutes
        if as_json and (records or failed):
            terminal.write(json.dumps(records, indent=2))
    raise typer.Exit(1 if failed else 0)


def _say(row: dict) -> None:
    terminal.say(f"{row['row']} ({row['device']})")
    told = [f"{key} {row[key]:g}" for key in COLUMNS if row[key] is not None]
    terminal.say(f"  {', '.join(told)} ({row['unit']})")


@_from_the_start()
def estimate(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Artefacts, or all; and key=value such as scale=paper.", show_default=False
        ),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(help="A model's training rate in images a second, if known: a=4400."),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            help="10^12 operations a second in training, to use instead of a probe here.",
        ),
    ] = None,
    loader: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="Images a second from all loader processes; see `bench loader`."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Runs side by side; those of one seed share their images.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Estimate the hours, memory and disk (GB) that artefacts take, before starting any.

    Rates are measured by a few steps of each net here, or stated. A row is what its artefact takes
    alone; the last row is for all of them, which share runs. Hours are those of one device.
    """
    refuse_ranks("estimate")
    artefacts = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    stated = dict(map(_read_rate, rate or []))
    for name, value in (("tflops", tflops), ("loader", loader)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"--{name} {value}: must be a finite number")
    from delving.estimate import estimate as reckon

    say = (lambda line: None) if as_json else terminal.say
    rows = reckon(
        artefacts, overrides, stated=stated, tflops=tflops, loader=loader, jobs=jobs, say=say
    )
    if as_json:
        terminal.write(json.dumps(rows, indent=2))
        return
    terminal.say(f"{'artefact':12} {'runs':>5} {'time':>9} {'scoring':>9} {'memory':>10} disk")
    for row in rows:
        hours, scoring = (_time(row[key]) for key in ("hours", "scoring"))
        memory, space = (f"{_digits(row[key], 3)} GB" for key in ("memory", "disk"))
        terminal.say(
            f"{row['artefact']:12} {row['runs']:5} {hours:>9} {scoring:>9} {memory:>10} {space}"
        )


def _time(hours: float) -> str:
    """Hours, or if it is less, minutes or seconds."""
    unit, each = ("h", 1) if hours >= 1 else ("min", 60) if hours >= 1 / 60 else ("s", 3600)
    return f"{_digits(hours * each)} {unit}"


def _digits(value: float, count: int = 4) -> str:
    """As many digits, or all before the point; a large number is not told as a power of ten."""
    return f"{value:,.0f}" if value >= 10 ** (count - 1) else f"{value:.{count}g}"


def _read_rate(text: str) -> tuple[str, float]:
    model, _, value = text.partition("=")
    try:
        images = float(value)
    except ValueError:
        images = 0.0
    if not model or not 0 < images < 1e12:
        raise ValueError(f"--rate {text}: must be a model and its images a second, such as a=4400")
    return model, images


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command(short_help="Measure speed, beside plain PyTorch.")(bench)
    app.command(short_help="Estimate hours, memory and disk before starting.")(estimate)
