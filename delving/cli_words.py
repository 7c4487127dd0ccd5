"""What the commands have in common: their arguments, and what shows their work."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from delving.launched import RANK, SIZE, are_several

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="key=value words: model=c act=prelu scale=cpu train.lr=0.02 seed=3", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Root = Annotated[str, typer.Option(help="The folder for outputs.")]


def refuse_ranks(what: str) -> None:
    """Raises ValueError if torchrun started this process: it is for the ranks of one run."""
    if are_several():
        raise ValueError(f"{RANK} and {SIZE} are set, as by torchrun: it starts the processes of "
                         f"one train or eval; {what} starts its own")  # fmt: skip


@contextmanager
def found_once(find: Callable[[], Any]) -> Iterator[Any]:
    """What `find` returns, a JSON value: of several ranks only the first calls it, and tells the
    others; they are joined until this context ends."""
    if not are_several():
        yield find()
        return
    from delving.ranks import agree, joined

    with joined() as ranks:
        yield agree(ranks, find)


def speaks() -> bool:
    """Whether this process is the one of its run that prints."""
    return not are_several() or os.environ[RANK] == "0"


def asked_root(words: Sequence[str], usual: str = "outputs") -> str:
    """The folder for outputs by key=value words, the last one counting; `~` is the user's home.
    ValueError for an empty one."""
    roots = [word.partition("=")[2] for word in words if word.startswith("output_root=")]
    root = roots[-1] if roots else usual
    if not root:
        raise ValueError("output_root=: no folder is named; output_root=. is this one")
    return os.path.expanduser(root)


def split_places(words: Sequence[str], usual: str = "outputs") -> tuple[str, str, list[str]]:
    """The folder for outputs, the scale whose runs are meant (`*` if none is given), and all other
    words; ValueError for an unknown scale."""
    from delving.groups import choose

    scales = [word for word in words if word.startswith("scale=")]
    [scale] = choose("scale", scales[-1].partition("=")[2]) if scales else ["scale=*"]
    rest = [word for word in words if not word.startswith(("output_root=", "scale="))]
    return asked_root(words, usual), scale.partition("=")[2], rest


def make_display():
    """What shows one run on this terminal."""
    from delving.display import Display, make_console

    return Display(make_console())


def make_overview():
    """What shows many runs."""
    from delving.display import Overview, make_console

    return Overview(make_console())
