"""A run's name, made from its configuration, and the deviations from the paper's recipe."""

import hashlib
import os
import re

from delving.config import compose, paper_recipe
from delving.schema import Config, differences

LONGEST = 60  # characters of a run's name
ODD = re.compile(r"[^A-Za-z0-9_.+-]")  # characters that no run's name has


def name_run(config: Config) -> str:
    """The run's name: model-act-init, whatever else was asked for, seed.

    Whatever else there is stands in short form, sorted; beyond 60 characters a hash replaces it.
    """
    head, extra = f"{config.model.name}-{config.act.name}-{config.init.name}", list_extra(config)
    return shortened(head, extra, f"-s{config.seed}")


def shortened(head: str, extra: list[str], end: str = "") -> str:
    """`head`, `extra` and `end` as one name; beyond 60 characters a hash replaces `extra`."""
    name = "-".join([head, *extra]) + end
    if len(name) <= LONGEST or not extra:
        return name
    return f"{head}-{hashlib.sha256('-'.join(extra).encode()).hexdigest()[:8]}{end}"


def list_extra(config: Config) -> list[str]:
    """What was asked for besides model, act, init and seed, in short form."""
    scale = f"scale={config.scale}"
    default = compose([scale])
    groups = [
        f"{group}={getattr(config, group).name}"
        for group in ("model", "act", "init")
        if group != "init" or config.init.name != default.init.name
    ]
    usual = compose([scale, *groups])
    changed = differences(config, usual)
    extra = [config.data.name] if "data.name" in changed else []
    if "data.name" in changed:
        changed = differences(config, compose([scale, f"data={config.data.name}", *groups]))
    if config.data.name == "folder" and config.data.root:
        extra.append(_name_of(config.data.root))
    return extra + sorted(_short(key, changed[key][0]) for key in changed if key != "seed")


def _short(key: str, value: object) -> str:
    if key == "model.layers":  # no name may have its characters
        return f"layers{hashlib.sha256(repr(value).encode()).hexdigest()[:8]}"
    text = "_".join(map(_plain, value)) if isinstance(value, list) else _plain(value)
    return key.split(".")[-1] + ODD.sub("", text)


def _name_of(folder: str) -> str:
    """What a folder adds to a run's name; a hash if none of its characters may stand there."""
    name = os.path.basename(os.path.abspath(os.path.expanduser(folder)))
    name = re.sub(r"\.{2,}", ".", name)  # an archive takes no name with two dots in a row
    return ODD.sub("", name) or hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


def deviations(config: Config) -> list[str]:
    """What differs from the paper's own recipe for this model, one line each."""
    paper = paper_recipe(config.model.name, config.act.name)
    skip = ("scale", "seed", "precision")
    return [
        f"{key} {_told(key, ours)} (paper: {_told(key, theirs)})"
        for key, (ours, theirs) in differences(config, paper).items()
        if key not in skip
    ]


def _told(key: str, value: object) -> str:
    """A value in words; None means a net's own stride or depth, or all classes or images."""
    return "all" if value is None and key.startswith("data.") else _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return "as listed"
    value = value + 0.0 if isinstance(value, float) else value  # -0.0 is 0
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
