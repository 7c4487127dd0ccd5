"""Whether a folder holds the run that is asked for, or another of the same name."""

import dataclasses
from functools import lru_cache
from pathlib import Path

import yaml

from delving import config as configs
from delving import record
from delving.data import fingerprint, load_splits
from delving.foreign import check_yaml, read_text
from delving.schema import NEUTRAL, Config, Data, differences, leaves

WRITTEN = ("lock", "log.jsonl", "checkpoint", "eval")  # in place, by a run in its folder


def find_other(config: Config, folder: Path) -> str | None:
    """What the folder holds instead of this run, in a sentence; None if it holds this run, or
    nothing. Images may move: if another data.root is asked for, the images there are compared.

    Raises:
        ValueError: the images there, or the run's env.json, cannot be read.
    """
    if link := find_link(folder):
        return f"{link}. Move {folder} away"
    saved = folder / "config.yaml"
    if not saved.exists():
        return None
    root = _root_of_the_same(config, saved)
    if root is None:
        try:
            there = configs.load(saved)
        except ValueError as error:
            return f"{error}. Move {folder} away"
        if changed := differences(config, there):
            keys = "; ".join(
                f"{k} {ours} asked for, {theirs} there" for k, (ours, theirs) in changed.items()
            )
            return f"{folder} holds another run: {keys}. Move it away to train anew"
        root = there.data.root or ""
    return _find_other_images(config, folder, root)


def find_link(folder: Path) -> str | None:
    """Which of a run's files is a link, in a sentence; a stranger's folder may hold such."""
    links = (path for name in WRITTEN if (path := folder / name).is_symlink())
    return next((f"{path} is a link, and a run keeps to its folder" for path in links), None)


def saved_value(folder: Path, key: str) -> object:
    """The value of a key in a run's config.yaml, unchecked; None if it cannot be read."""
    try:
        return _value_at(_read(folder / "config.yaml"), key)
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
        return None


def _find_other_images(config: Config, folder: Path, root: str) -> str | None:
    """A sentence if the run's images, once at `root`, are not those at the root asked for."""
    asked, env = config.data.root, folder / "env.json"
    if not (asked and env.exists()):
        return None
    if root and Path(asked).expanduser().resolve() == Path(root).resolve():
        return None
    ours = images_of(config)
    there = record.expect(record.read_json(env), {"data": str}, str(env))["data"]
    if there == ours:
        return None
    return (
        f"{folder} holds a run on other images, data.root {asked} asked for, "
        f"{root or 'generated ones'} there. "
        "Give the same ones, move it away to train anew, or write elsewhere with output_root=..."
    )


def images_of(config: Config) -> str:
    """The hash of the images that a configuration's `data` names. ValueError: cannot be read."""
    return _fingerprint(dataclasses.astuple(config.data), config.output_root)


@lru_cache(maxsize=4)
def _fingerprint(data: tuple, output_root: str) -> str:
    """images_of, kept, as sweeps ask often."""
    return fingerprint(*load_splits(Data(*data), output_root))


def _root_of_the_same(config: Config, saved: Path) -> str | None:
    """data.root ('' without one) of a config.yaml that surely describes the same run; None if that
    is not sure. A quick look, as OmegaConf takes a tenth of a second over each."""
    try:
        tree = _read(saved)
        ours = dataclasses.asdict(config)
        same = all(
            _value_at(tree, key) == _value_at(ours, key)
            for key, _, _ in leaves(config)
            if key not in NEUTRAL
        )
        return str(tree["data"]["root"] or "") if same else None
    except (yaml.YAMLError, ValueError, KeyError, TypeError):
        return None


def _read(saved: Path) -> dict:
    text = read_text(saved)
    check_yaml(text)
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _value_at(tree: dict, key: str) -> object:
    for part in key.split("."):
        tree = tree[part]
    return tree
