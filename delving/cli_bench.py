"""`delving bench` and `delving estimate`: what things take."""

import json
from typing import Annotated

import typer

from delving import terminal
from delving.cli_data import Overrides, refuse_ranks

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
COLUMNS = ("ours", "baseline", "ratio", "low", "high", "limit", "fraction")


def bench(
    what: Annotated[
        str, typer.Argument(help="rectifier, train, eval, dense, loader, scaling, start, or all.")
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Speed here, beside plain PyTorch's in the same rounds and this machine's own limits.

    ratio: how many times better ours is, in the middle round, the lowest and the highest.
    """
    refuse_ranks("bench")
    from delving.bench.table import measure

    rows = [row.as_record() for row in measure(what, overrides or [])]
    if as_json:
        terminal.write(json.dumps(rows, indent=2))
        return
    for row in rows:
        terminal.say(f"{row['row']} ({row['device']})")
        told = [f"{key} {row[key]:g}" for key in COLUMNS if row[key] is not None]
        terminal.say(f"  {', '.join(told)} ({row['unit']})")


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command(short_help="Speed here, beside plain PyTorch's.")(bench)
