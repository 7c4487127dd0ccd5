"""`delving runs ...`: export, import."""

from pathlib import Path
from typing import Annotated

import typer

from delving import disk, terminal
from delving.cli_words import Root, split_places

runs_app = typer.Typer(no_args_is_help=True, help="Move finished runs from one machine to another.")


@runs_app.command("export", short_help="Export finished runs as one archive.")
def export(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of runs (all if none is given), and scale=quarter.", show_default=False
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The archive, or runs-<scale>.zip.")] = None,
    output_root: Root = "outputs",
) -> None:
    """Export finished runs, and what was measured of them, as one archive without weights."""
    from delving import record
    from delving.transfer import export_runs
    from delving.words import count

    root_of_all, scale, names = split_places(words or [], output_root)
    if names:
        folders = [record.find_run(name, root_of_all, scale) for name in names]
        roots = sorted({folder.parent.parent for folder in folders})
        if len(roots) > 1:
            raise ValueError(f"runs of {', '.join(map(str, roots))}: an archive is of one scale")
        [root], names = roots, [folder.name for folder in folders]
    else:
        root = Path(root_of_all) / ("cpu" if scale == "*" else scale)
    to = to or Path(f"runs-{root.name}.zip")
    exported = export_runs(root, names, disk.find_target(to))
    terminal.say(f"{to}: {count(len(exported.names), 'run')}, {to.stat().st_size / 1e6:.2f} MB")
    for why in exported.left_out.values():
        terminal.say(f"  left out: {why}")
    if exported.left_out:
        raise typer.Exit(1)


@runs_app.command("import", short_help="Import exported runs, verified.")
def import_(
    words: Annotated[
        list[str],
        typer.Argument(help="What `delving runs export` wrote.", metavar="archives..."),
    ],
    output_root: Root = "outputs",
) -> None:
    """Import exported runs, verified, each whole or not at all."""
    from delving.transfer import import_runs

    root, scale, archives = split_places(words, output_root)
    disk.check_writable(Path(root))
    for archive in map(Path, archives):
        moved = import_runs(archive, root, scale)
        terminal.say(f"{archive}: {len(moved.new)} new, {len(moved.there)} there already")
        for name in moved.new:
            terminal.say(f"  {name}")
        for name in moved.others:
            terminal.say(f"  {name}: the measurement that is here stays, another of these runs")
