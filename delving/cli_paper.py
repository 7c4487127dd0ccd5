"""The commands on the paper's artefacts: reproduce, compare-init, plot-slopes, ensemble."""

import math
from pathlib import Path
from typing import Annotated

import typer

from delving import disk, terminal
from delving.cli_words import (
    Overrides,
    Root,
    asked_root,
    make_overview,
    refuse_ranks,
    split_places,
)

Words = Annotated[
    list[str] | None,
    typer.Argument(help="Artefacts, or all; and key=value such as scale=quarter.",
                   show_default=False),
]  # fmt: skip
Runs = Annotated[list[str] | None, typer.Argument(help="Folders or names of runs.")]


def reproduce(
    words: Words = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Redraw from records, such as outputs/reference/cpu."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; by default one per core.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Begin only runs that will end within this time."),
    ] = None,
    dry: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
) -> None:
    """Reproduce tables and figures: train and score what is missing, judge, draw, report."""
    refuse_ranks("reproduce")
    artefacts = [word for word in words or [] if "=" not in word]
    overrides = [word for word in words or [] if "=" in word]
    if strange := [word for word in overrides if word.startswith(("launcher=", "slurm."))]:
        raise ValueError(f"{strange[0]}: of `delving train -m`. Jobs that are each given this "
                         "same command share a reproduction")  # fmt: skip
    if not artefacts:
        raise ValueError("reproduce: name artefacts, or all; `delving list artefacts` tells them")
    if minutes is not None and math.isnan(minutes):
        raise ValueError(f"--minutes {minutes}: must be a number")
    if not dry:
        disk.check_writable(Path(asked_root(overrides)))
    from delving.reproduce import reproduce_artefacts

    failed = reproduce_artefacts(
        artefacts,
        overrides,
        source=source,
        jobs=jobs,
        minutes=minutes or math.inf,
        dry=dry,
        say=make_overview(),
    )
    if failed:
        raise typer.Exit(1)


def compare_init(words: Overrides = None) -> None:
    """Compare the scale's initialiser with Xavier, or inits=a,b, at depth=14|22|30|N or model=m."""
    refuse_ranks("compare-init")
    disk.check_writable(Path(asked_root(words or [])))
    from delving.compare import compare_inits

    for path in compare_inits(words or [], make_overview()):
        terminal.say(path)


def plot_slopes(runs: Runs = None, output_root: Root = "outputs") -> None:
    """Draw the learned slopes of runs layer by layer, beside Table 1."""
    root, scale, wanted = split_places(runs or [], output_root)
    disk.check_writable(Path(root) / "slopes")
    from delving.compare import compare_slopes

    path, faults = compare_slopes(wanted, root, scale)
    for why in faults:
        terminal.say(f"left out: {why}")
    terminal.say(path)


def ensemble(
    runs: Annotated[list[str], typer.Argument(help="Folders or names of runs; protocol=dense.")],
    output_root: Root = "outputs",
) -> None:
    """Average the saved probabilities of runs: ensemble RUN RUN... protocol=dense."""
    from delving import record
    from delving.ensemble import check_members, name_ensemble, pick_protocol, save_ensemble

    root, scale, rest = split_places(runs, output_root)
    names = [word for word in rest if not word.startswith("protocol=")]
    folders = [record.find_run(name, root, scale) for name in names]
    check_members(folders)
    told = [word.partition("=")[2] for word in rest if word.startswith("protocol=")]
    protocol = told[-1] if told else pick_protocol(folders)
    to = folders[0].parent.parent / "ensembles" / name_ensemble(folders)
    disk.check_writable(to)
    summary = save_ensemble(folders, protocol, to)
    for name, e in [*summary["members"].items(), (f"ensemble of {len(folders)}", summary)]:
        terminal.say(f"{name}: top-1 {e['top1_err']:.2f} %, top-5 {e['top5_err']:.2f} %")
    terminal.say(f"{protocol}, saved in {to}")


def register(app: typer.Typer) -> None:
    """Adds the commands to the application."""
    app.command(short_help="Train what is missing, draw tables and figures.")(reproduce)
    app.command("compare-init", short_help="Compare He with Xavier at any depth.")(compare_init)
    app.command("plot-slopes", short_help="Draw learned slopes beside Table 1.")(plot_slopes)
    app.command(short_help="Average the saved scores of runs.")(ensemble)
