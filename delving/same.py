"""Whether a folder holds the run that is asked for, or another under its name."""

import dataclasses
from pathlib import Path

import yaml

from delving import config as configs
from delving.foreign import check_yaml, read_text
from delving.schema import NEUTRAL, Config, differences, leaves


def find_other(config: Config, folder: Path) -> str | None:
    """What the folder holds in place of this run, in a sentence; None where it holds it, or
    nothing."""
    saved = folder / "config.yaml"
    if not saved.exists() or _plainly_same(config, saved):
        return None
    try:
        changed = differences(config, configs.load(saved))
    except ValueError as error:
        return f"{error}. Move {folder} away"
    keys = "; ".join(
        f"{k} {ours} asked for, {theirs} there" for k, (ours, theirs) in changed.items()
    )
    return f"{folder} holds another run: {keys}. Move it away" if changed else None


def _plainly_same(config: Config, saved: Path) -> bool:
    """Whether a file surely holds the same run: a quick look, before OmegaConf takes a tenth of a
    second over each."""
    try:
        text = read_text(saved)
        check_yaml(text)
        tree = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        ours = dataclasses.asdict(config)
        return all(
            _value_at(tree, key) == _value_at(ours, key)
            for key, _, _ in leaves(config)
            if key not in NEUTRAL
        )
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        return False


def _value_at(tree: dict, key: str) -> object:
    for part in key.split("."):
        tree = tree[part]
    return tree
