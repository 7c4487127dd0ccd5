"""The commands: parse, call, print. torch and hydra are imported inside them alone."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from delving import cli_paper
from delving.cli_data import Overrides, data_app

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reproduces 'Delving Deep into Rectifiers' (He, Zhang, Ren, Sun 2015).",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
cli_paper.register(app)

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def train(overrides: Overrides = None) -> None:
    """Train one run and score it; the same command goes on with an unfinished one."""
    from delving.config import compose

    config = compose(overrides or [])
    with _display() as display:
        from delving.run import train_run

        folder = train_run(config, display)
    _print_result(folder, scores=not display.scored)


@app.command("eval")
def evaluate(
    run: Annotated[str, typer.Argument(help="A run's folder or name.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="protocol=center|ten_view|dense device=... data.root=...", show_default=False
        ),
    ] = None,
) -> None:
    """Score a run by its own protocols or by others."""
    from delving import record
    from delving.config import amend

    root = next((x[12:] for x in overrides or [] if x.startswith("output_root=")), "outputs")
    folder = record.find_run(run, root)
    config = amend(folder / "config.yaml", overrides or [])
    with _display() as display:
        from delving.score import eval_run

        eval_run(folder, config, display)
    typer.echo(f"saved in {folder / 'eval'}")


@app.command()
def show(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """The layers of a net, its parameters and cost, and what deviates from the paper's recipe."""
    from delving.config import compose

    config = compose(overrides or [])
    from delving.build import describe_model

    card = describe_model(config)
    typer.echo(json.dumps(card, indent=2)) if as_json else _print_card(card)


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="models, acts, inits, data, scales, artefacts, runs.")
    ] = "",
    output_root: Annotated[str, typer.Option(help="Where outputs lie.")] = "outputs",
) -> None:
    """What there is."""
    from delving import groups

    groups_of = {
        "models": "model",
        "acts": "act",
        "inits": "init",
        "data": "data",
        "scales": "scale",
        "artefacts": "paper",
    }
    if what and what not in [*groups_of, "runs"]:
        raise ValueError(f"list {what}: choose from {', '.join([*groups_of, 'runs'])}")
    for plural in [what] if what else groups_of:
        if plural == "runs":
            _print_runs(output_root)
            continue
        group = groups_of[plural]
        how = "delving reproduce ..." if group == "paper" else f"{group}=..."
        typer.echo(f"{plural} ({how})")
        for name in groups.choices(group):
            typer.echo(f"  {name:14} {groups.describe(group, name)}")


@app.command("plot-curves")
def plot_curves(
    runs: Annotated[list[str], typer.Argument(help="Folders or names of runs.")],
    to: Annotated[Path, typer.Option(help="The picture; its data.csv lies beside it.")] = Path(
        "outputs/curves/curves.png"
    ),
    output_root: Annotated[str, typer.Option(help="Where outputs lie.")] = "outputs",
) -> None:
    """Draw the training curves of runs: loss, training and validation error."""
    import pandas as pd

    from delving import record
    from delving.curves import count_classes, load_curves
    from delving.plot import draw_curves, save_figure

    folders = [record.find_run(run, output_root) for run in runs]
    curves = pd.concat([load_curves(folder) for folder in folders])
    labels = record.shortest_labels([folder.name for folder in folders])
    figure = draw_curves(curves, labels=labels, classes=count_classes(folders[0]))
    typer.echo(save_figure(figure, to))
    record.write_text(to.with_suffix(".csv"), curves.to_csv(index=False))


@app.command()
def doctor(
    output_root: Annotated[str, typer.Option(help="Where outputs lie.")] = "outputs",
) -> None:
    """Versions, devices, data, disk: what this machine can do."""
    from delving.doctor import examine

    for name, finding in examine(output_root):
        typer.echo(f"{name:14} {finding}")


def _display():
    from rich.console import Console

    from delving.display import Display

    return Display(Console())


def _print_result(folder: Path, scores: bool) -> None:
    from delving.record import read_json

    result = read_json(folder / "result.json")
    for protocol, e in result["eval"].items() if scores else ():
        typer.echo(f"{protocol}: top-1 {e['top1_err']:.2f} %, top-5 {e['top5_err']:.2f} %")
    typer.echo(
        f"{result['status']} after {result['epochs']:g} epochs, {result['seconds']:.0f} s at "
        f"{result['images_per_second']:.0f} images/s; {len(result['deviations'])} deviations from "
        f"the paper's recipe, see {folder / 'result.json'}"
    )


def _print_card(card: dict) -> None:
    typer.echo(f"{card['model']}: {card['depth']} conv and fc layers")
    typer.echo(f"{'layer':10} {'notation':14} {'output':>14} {'parameters':>13} {'mult-adds':>16}")
    for row in card["layers"]:
        typer.echo(
            f"{row['name']:10} {row['notation']:14} {row['output']:>14} "
            f"{row['params']:>13,} {row['multiply_adds']:>16,}"
        )
    typer.echo(f"{'total':10} {'':14} {'':>14} {card['params']:>13,} {card['multiply_adds']:>16,}")
    typer.echo(
        "deviations from the paper's recipe:" if card["deviations"] else "the paper's recipe"
    )
    for line in card["deviations"]:
        typer.echo(f"  {line}")


def _print_runs(output_root: str) -> None:
    from delving.record import list_runs, read_json

    for folder in list_runs(output_root):
        result = read_json(folder / "result.json") if (folder / "result.json").exists() else None
        scores = (
            ""
            if result is None
            else "  ".join(
                f"{name} {e['top1_err']:.1f}/{e['top5_err']:.1f}"
                for name, e in result["eval"].items()
            )
        )
        typer.echo(f"{folder}  {result['status'] if result else 'unfinished'}  {scores}")


def main() -> None:
    """The console script: every error in a line, with the exit codes of the contract."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, prog_name="delving", standalone_mode=False)
        sys.exit(code or 0)
    except Exception as error:
        if debug:
            raise
        sys.exit(_report(error))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _report(error: Exception) -> int:
    import signal

    number = getattr(error, "signal", None)
    if number is not None:
        return _fail(str(error), 75 if number == signal.SIGUSR1 else 128 + number)
    if hasattr(error, "format_message"):  # typer's own: an unknown option or command
        return _fail(error.format_message(), 2)
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    bad_input = isinstance(
        error, ValueError | FileNotFoundError | NotADirectoryError | PermissionError
    )
    return _fail(str(error) or type(error).__name__, 2 if bad_input else 1)


def _fail(message: str, code: int) -> int:
    print(f"delving: {message}", file=sys.stderr)
    return code
