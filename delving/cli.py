"""The commands: parse, call, print. torch and hydra are imported only inside them."""

try:
    import json
    import sys
    from pathlib import Path
    from typing import Annotated

    import typer

    from delving import (
        __version__,
        cli_bench,
        cli_detect,
        cli_paper,
        cli_train,
        disk,
        exits,
        terminal,
    )
    from delving.cli_data import data_app
    from delving.cli_runs import runs_app
    from delving.cli_words import (
        AsJson,
        Overrides,
        Root,
        asked_root,
        found_once,
        make_display,
        speaks,
        split_places,
    )
except KeyboardInterrupt:  # before main() can catch it
    raise SystemExit(130) from None

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help by rich takes a tenth of a second
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.add_typer(runs_app, name="runs")
cli_train.register(app)
cli_paper.register(app)
cli_detect.register(app)
cli_bench.register(app)


def _tell_version(wanted: bool) -> None:
    if wanted:
        terminal.say(f"delving {__version__}")
        raise typer.Exit


@app.callback()
def delving(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="Print it and exit."),
    ] = False,
) -> None:
    """Reproduces 'Delving Deep into Rectifiers' (He, Zhang, Ren, Sun 2015)."""


HEX = set("0123456789abcdef")


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
    from delving.config import from_yaml

    with found_once(lambda: _find_run(run, overrides or [])) as (place, text):
        folder = Path(place)
        with make_display() as display:
            from delving.score import eval_run

            eval_run(folder, from_yaml(text, place), display)
    if speaks():
        terminal.say(f"saved in {folder / 'eval'}")
        if not (folder / "result.json").exists():
            terminal.say("The run is not finished: these are scores of its last checkpoint, and go "
                         "when it is.")  # fmt: skip


def _find_run(run: str, words: list[str]) -> tuple[str, str]:
    """The run's folder, and the configuration to score it by."""
    from delving import record
    from delving.config import amend, to_yaml

    root, scale, _ = split_places(words)
    folder = record.find_run(run, root, scale)
    config = amend(folder / "config.yaml", [w for w in words if not w.startswith("scale=")])
    disk.check_writable(folder / "eval")
    return str(folder), to_yaml(config)


@app.command(short_help="Show a net's layers, parameters, cost and deviations.")
def show(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show a net's layers, parameters and cost, and how it deviates from the paper's recipe."""
    from delving.config import compose
    from delving.schema import check_families

    config = compose(overrides or [])
    check_families(overrides or [], [config])
    from delving.build import describe_model

    card = describe_model(config)
    terminal.write(json.dumps(card, indent=2)) if as_json else _print_card(card)


@app.command("list", short_help="List models, data sets, scales, artefacts, runs ...")
def list_(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="models, acts, inits, data, scales, artefacts, runs, detections; by default all "
            "but the last two.",
            show_default=False,
        ),
    ] = None,
    output_root: Root = "outputs",
) -> None:
    """List models, rectifiers, initialisers, data sets, scales, artefacts, runs or detections."""
    from delving import groups
    from delving.words import likeliest

    groups_of = {
        "models": "model",
        "acts": "act",
        "inits": "init",
        "data": "data",
        "scales": "scale",
        "artefacts": "paper",
    }
    known = [*groups_of, "runs", "detections"]
    root, scale, asked = split_places(words or [], output_root)
    if unknown := [word for word in asked if word not in known]:
        meant = likeliest(unknown[0], known)
        raise ValueError(f"list {unknown[0]}: choose from {', '.join(known)}{meant}")
    for plural in asked or groups_of:
        if plural in ("runs", "detections"):
            _print_folders(root, scale, plural)
            continue
        group = groups_of[plural]
        how = "delving reproduce ..." if group == "paper" else f"{group}=..."
        terminal.say(f"{plural} ({how})")
        for name in groups.choices(group):
            terminal.say(f"  {name:14} {groups.describe(group, name)}")


@app.command("plot-curves", short_help="Draw the training curves of runs.")
def plot_curves(
    runs: Annotated[list[str], typer.Argument(help="Folders or names of runs.")],
    to: Annotated[
        Path | None,
        typer.Option(
            help="The picture, with a .csv beside it; by default <output-root>/curves/curves.png.",
            show_default=False,
        ),
    ] = None,
    output_root: Root = "outputs",
) -> None:
    """Draw the training curves of runs: loss, training and validation error."""
    import pandas as pd

    from delving import record
    from delving.curves import count_classes, load_curves
    from delving.plot import check_ending, draw_curves, save_figure
    from delving.words import name_apart, shortest_labels

    root, scale, wanted = split_places(runs, output_root)
    to = to or Path(root) / "curves" / "curves.png"
    target, beside = disk.find_target(to), disk.find_target(to.with_suffix(".csv"))
    check_ending(target)
    names = name_apart([record.find_run(run, root, scale) for run in wanted])
    if not names:
        raise ValueError("plot-curves: name at least one run")
    curves = pd.concat([load_curves(folder).assign(run=name) for name, folder in names.items()])
    labels = shortest_labels(list(names))
    if len(labels) > 1:  # a long one would leave its line no room
        labels = {name: terminal.plain(label, longest=24) for name, label in labels.items()}
    classes = {count_classes(folder) for folder in names.values()}
    figure = draw_curves(curves, labels=labels, classes=sorted(classes))
    terminal.say(save_figure(figure, target))
    record.write_text(beside, curves.to_csv(index=False))


@app.command()
def doctor(
    words: Annotated[
        list[str] | None, typer.Argument(help="output_root=...", show_default=False)
    ] = None,
    output_root: Root = "outputs",
) -> None:
    """Tell this machine's versions, devices, data and disk."""
    from delving.doctor import examine

    root = asked_root(words or [], output_root)
    if unknown := [word for word in words or [] if not word.startswith("output_root=")]:
        raise ValueError(f"doctor {unknown[0]}: it takes output_root=... alone")
    for name, finding in examine(root):
        terminal.say(f"{name:14} {finding}")


def _print_card(card: dict) -> None:
    def say(layer: str, notation: str, output: str, params: str, cost: str) -> None:
        terminal.say(f"{layer:10} {notation:14} {output:>14} {params:>13} {cost:>16}")

    terminal.say(f"{card['model']}: {card['depth']} conv and fc layers")
    say("layer", "notation", "output", "parameters", "mult-adds")
    for row in card["layers"]:
        counts = f"{row['params']:,}", f"{row['multiply_adds']:,}"
        say(row["name"], row["notation"], row["output"], *counts)
    say("total", "", "", f"{card['params']:,}", f"{card['multiply_adds']:,}")
    found = card["deviations"]
    terminal.say("deviations from the paper's recipe:" if found else "the paper's recipe")
    for line in found:
        terminal.say(f"  {line}")


def _print_folders(output_root: str, scale: str, kind: str) -> None:
    """Prints every run or detection; of those that are broken, what is wrong with them."""
    from delving.record import list_runs

    for folder in list_runs(output_root, kind, scale):
        terminal.say(f"{folder}  {_state(folder, kind)}{_unhashed(folder, kind)}")


def _unhashed(folder: Path, kind: str) -> str:
    """What a hash in a run's name stands for."""
    parts = folder.name.split("-")
    if kind != "runs" or len(parts) < 3 or len(parts[-2]) != 8 or not set(parts[-2]) <= HEX:
        return ""
    from delving.config import load
    from delving.naming import list_extra

    try:
        return f"  ({' '.join(list_extra(load(folder / 'config.yaml')))})"
    except (OSError, ValueError):
        return ""


def _state(folder: Path, kind: str) -> str:
    from delving.detect.record import read_detection
    from delving.foreign import check_yaml, read_text
    from delving.record import read_result

    if not (folder / "result.json").exists():
        return "unfinished"
    try:
        check_yaml(read_text(folder / "config.yaml"))
        result = read_result(folder) if kind == "runs" else read_detection(folder)
        scores = [
            f"{name} {e['top1_err']:.1f}/{e['top5_err']:.1f}" if kind == "runs"
            else f"{name} {e['map']}"
            for name, e in result["eval"].items()
        ]  # fmt: skip
    except (ArithmeticError, OSError, ValueError) as error:
        return f"BROKEN: {exits.describe(error)}"
    return "  ".join([result["status"], *scores])


def main() -> None:
    """The console script: every error in a line, with the exit codes of the contract."""
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    exits.end(exits.exit_code(lambda: _call(arguments, debug), debug=debug))


def _call(arguments: list[str], debug: bool) -> int:
    """Runs a command without typer's handling of errors, which would let a broken pipe end it as a
    failure, and say nothing of it."""
    terminal.settle_streams()
    disk.settle_caches()
    if not debug:
        terminal.settle_warnings()
    command = typer.main.get_command(app)
    try:
        with command.make_context("delving", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # of typer's own copy of click
            raise
        terminal.write(error.ctx.get_help())
        return 2
    return 0
