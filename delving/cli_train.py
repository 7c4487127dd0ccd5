"""`delving train`: one run in this process, or many, here or on a cluster."""

import os
from pathlib import Path
from typing import Annotated

import typer

from delving import disk, terminal
from delving.cli_words import (
    Overrides,
    found_once,
    make_display,
    make_overview,
    refuse_ranks,
    speaks,
)

Count = Annotated[int | None, typer.Option(min=1, help="With -m: runs side by side here.")]
Cap = Annotated[
    int | None, typer.Option(min=1, help="With -m: the most runs to accept; by default 100.")
]


def train(
    words: Overrides = None,
    multirun: Annotated[
        bool,
        typer.Option("-m", "--multirun", help="Every combination: act=relu,prelu seed=0..4."),
    ] = False,
    dry: Annotated[bool, typer.Option("--plan", help="Only say what would be done.")] = False,
    jobs: Count = None,
    cap: Cap = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="With launcher=slurm: wait until the jobs have ended.")
    ] = False,
    print_sbatch: Annotated[
        bool, typer.Option("--print-sbatch", help="With launcher=slurm: only print the script.")
    ] = False,
) -> None:
    """Train a run and score it, or many with -m; the same command goes on with what is unfinished.

    With launcher=slurm each run is a job of a cluster; see slurm.partition=, slurm.gpus= and so on.
    """
    from delving.launcher import split_words

    rest, settings = split_words(words or [])
    many = multirun or settings is not None
    if many:
        refuse_ranks("train with -m or launcher=slurm")
    if jobs and (not multirun or settings is not None):
        raise ValueError("--jobs: only with -m and launcher=local; slurm.parallel= is a cluster's")
    if cap and not multirun:
        raise ValueError("--cap: only with -m")
    if (wait or print_sbatch) and settings is None:
        raise ValueError(f"{'--wait' if wait else '--print-sbatch'}: only with launcher=slurm")
    if many or dry:
        from delving.multirun import CAP, plan_sweep, train_here

        sweep = plan_sweep(rest, cap=cap or CAP, several=multirun)
        if print_sbatch:
            _print_scripts(sweep, settings)
            return
        for root, plan in () if dry else sweep.plans.items():
            if not all(map(plan.finished, plan.runs)):
                disk.check_writable(root / "runs")
        if settings is None:
            failed = train_here(sweep, jobs=jobs, dry=dry, say=make_overview())
        else:
            from delving.slurm import train_there

            failed = train_there(sweep, settings, wait=wait, dry=dry, say=make_overview())
        raise typer.Exit(1 if failed else 0)
    _train_one(rest)


def _train_one(words: list[str]) -> None:
    from delving.config import from_yaml

    with found_once(lambda: _prepare(words)) as text:
        config = from_yaml(text, "what was composed")
        with make_display() as display:
            from delving.run import train_run

            folder = train_run(config, display)
        if speaks():
            _print_result(folder, scores=not display.scored)


def _prepare(words: list[str]) -> str:
    from delving.config import compose, to_yaml
    from delving.naming import name_run
    from delving.record import run_folder
    from delving.schema import check_families

    config = compose(words)
    check_families(words, [config])
    folder = run_folder(config.output_root, config.scale, name_run(config))
    if not os.path.isfile(folder / "result.json"):  # else it is only shown, from any disk
        disk.check_writable(folder.parent)
    return to_yaml(config)


def _print_result(folder: Path, scores: bool) -> None:
    from delving.record import read_result

    result = read_result(folder)
    for protocol, e in result["eval"].items() if scores else ():
        terminal.say(f"{protocol}: top-1 {e['top1_err']:.2f} %, top-5 {e['top5_err']:.2f} %")
    terminal.say(
        f"{result['status']} after {result['epochs']:g} epochs, {result['seconds']:.0f} s at "
        f"{result['images_per_second']:.0f} images/s; {len(result['deviations'])} deviations from "
        f"the paper's recipe, see {folder / 'result.json'}"
    )


def _print_scripts(sweep, settings) -> None:
    from delving.slurm import script_text

    missing = list(sweep.missing())
    for plan in sweep.plans.values():
        names = [name for _, of, name in missing if of is plan]
        if names:
            terminal.write(script_text(plan, names, settings))
    if not missing:
        terminal.say("Nothing is missing: no job would be sent.")


def register(app: typer.Typer) -> None:
    """Adds the command to the application."""
    app.command(short_help="Train a run and score it, or many with -m.")(train)
