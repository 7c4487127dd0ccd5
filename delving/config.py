"""Composes conf/ and the command line into a `Config`. The only importer of hydra and omegaconf."""

import copy
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from delving.groups import CONF, GROUPS, choices
from delving.schema import NEUTRAL, Arm, Config, Families, Reproduce, Request, leaves, validate

PAPER_DEPTH = 14  # of small14, which small-N lengthens


@dataclass
class _Composed(Config):
    family: Families = field(default_factory=Families)
    reproduce: Reproduce = field(default_factory=Reproduce)


ConfigStore.instance().store(name="schema", node=_Composed)
KEYS = {key: f.type for key, _, f in leaves(Config())}


def compose(overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The validated configuration of `key=value` words, every `${...}` resolved.

    Raises:
        ValueError: for a key or value that does not exist or cannot be, with the nearest ones.
    """
    words = [word for text in overrides for word in _check(text)]
    # Words that change no result are set afterwards, so that what is composed is found again.
    later = [word for word in words if word.partition("=")[0] in NEUTRAL]
    config = _compose([word for word in words if word not in later])
    return validate(_assign(config, later)) if later else config


def _compose(words: list[str]) -> Config:
    return validate(_without_family(_compose_all(words)))


def _compose_all(words: list[str]) -> _Composed:
    return copy.deepcopy(_compose_once(str(CONF), tuple(words)))


@lru_cache(maxsize=256)  # half a second each, and a reproduction asks for the same again and again
def _compose_once(folder: str, words: tuple[str, ...]) -> _Composed:
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            return OmegaConf.to_object(hydra_compose("config", list(words)))
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(_explain(error)) from error


def paper_recipe(model: str, act: str) -> Config:
    """The paper's own knobs for a model and a rectifier, as no scale has touched them."""
    groups = (f"model={model}", f"act={act}")
    return _compose([*(word for text in groups for word in _check(text)), "~scale"])


def plan_of(scale: str) -> Reproduce:
    """What a scale gives `delving reproduce`."""
    return _compose_all(_check(f"scale={scale}")).reproduce


def load_request(name: str) -> Request:
    """What an artefact asks for, conf/paper/<name>.yaml; ValueError for a typo in it."""
    path = CONF / "paper" / f"{name}.yaml"
    if not path.is_file():
        known = choices("paper")
        raise ValueError(f"artefact {name!r}: choose from {', '.join(known)}{nearest(name, known)}")
    try:
        tree = OmegaConf.merge(OmegaConf.structured(Request), OmegaConf.load(path))
        return OmegaConf.to_object(tree)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: {_explain_request(error)}") from error


def _explain_request(error: Exception) -> str:
    key, text = getattr(error, "full_key", None), " ".join(str(error).splitlines()[0].split())
    if key and "not in" in text:
        known = [f.name for part in (Request, Arm) for f in fields(part)]
        return f"unknown key {key!r}{nearest(key.split('.')[-1], known)}"
    return f"{key}: {text}" if key and key not in text else text


def load(path: Path) -> Config:
    """Reads the config.yaml of a run folder; ValueError where it does not fit the schema."""
    try:
        return from_yaml(path.read_text(encoding="utf-8"), str(path))
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: {_explain(error)}") from error


def from_yaml(text: str, name: str) -> Config:
    """What to_yaml wrote; ValueError, under `name`, where it does not fit the schema."""
    try:
        tree = OmegaConf.create(text) if text.strip() else OmegaConf.create()
        saved = OmegaConf.merge(OmegaConf.structured(Config), tree)
        lacking = [key for key in KEYS if not _has(tree, key.split("."))]
        if lacking:
            raise ValueError(f"{name} lacks {', '.join(lacking)}")
        return validate(OmegaConf.to_object(saved))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{name}: {_explain(error)}") from error


def _has(tree: Mapping, parts: list[str]) -> bool:
    inside = parts[0] in tree
    return inside if len(parts) == 1 or not inside else _has(tree[parts[0]], parts[1:])


def amend(path: Path, overrides: list[str]) -> Config:
    """A saved configuration with other words on how, where and on what to score it.

    Raises:
        ValueError: for a key that would make it another run.
    """
    allowed = [
        key for key in KEYS if key in NEUTRAL or key.startswith("eval.") or key == "precision"
    ]
    config = load(path)
    for text in overrides:
        key, sign, value = text.partition("=")
        key = "eval.protocols" if key == "protocol" else key
        if key not in allowed:
            raise ValueError(f"{text!r}: scoring takes protocol and {', '.join(allowed)}")
        [word] = _check(f"{key}{sign}{value}")
        config = _assign(config, [word])
    return validate(config)


def _assign(config: Config, words: list[str]) -> Config:
    """The configuration with checked `key=value` words set; ValueError for an impossible value."""
    tree = OmegaConf.structured(config)
    try:
        for word in words:
            OmegaConf.update(tree, word.partition("=")[0], _parse(word).value())
        return OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise ValueError(_explain(error)) from error


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _without_family(composed: _Composed) -> Config:
    names = [name for name in vars(composed) if name not in ("family", "reproduce")]
    return Config(**{name: getattr(composed, name) for name in names})


def _check(text: str) -> list[str]:
    """Refuses what Hydra would not, and words lists and small-N as Hydra wants them."""
    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"{text!r} is not key=value; for example model=c train.lr=0.02")
    if key not in KEYS and key not in GROUPS:
        raise ValueError(f"there is no {key!r}{nearest(key, [*GROUPS, *KEYS])}")
    if key in GROUPS:
        return _choose(key, value)
    if "${" in value:
        raise ValueError(f"{text!r}: a value, not an interpolation")
    if key.endswith(".name"):
        group = key.removesuffix(".name")
        raise ValueError(f"{key} comes with its group: {group}=... ({', '.join(choices(group))})")
    if "str" in str(KEYS[key]) and "list[" not in str(KEYS[key]):
        # A path is a path: its '~', ',' and '=' are no grammar.
        return [f"{key}=" + ("null" if value == "null" else _quote(value))]
    if "list[" in str(KEYS[key]) and not value.startswith("["):
        text = f"{key}=[{value}]"
    if not isinstance(_parse(text).value(), int | float | str | list | None):
        raise ValueError(f"{text!r}: one value, please")
    return [text]


def _quote(value: str) -> str:
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ValueError(f"{text!r} cannot be read: {' '.join(str(error).split())}") from error


def _choose(group: str, value: str) -> list[str]:
    names = choices(group)
    if value in names:
        return [f"{group}={value}"]
    deeper = re.fullmatch(r"small([1-9]\d*)", value)
    if group == "model" and deeper and int(deeper[1]) >= PAPER_DEPTH:
        return ["model=small14", f"model.name={value}", f"model.depth={int(deeper[1])}"]
    more = f", small<N> with N >= {PAPER_DEPTH}" if group == "model" else ""
    close = difflib.get_close_matches(value, names, n=1)
    advice = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(f"{group}={value}: choose from {', '.join(names)}{more}{advice}")


def nearest(word: str, known: list[str]) -> str:
    """'; did you mean x?' with the likeliest of `known`, or what there is."""
    known = list(dict.fromkeys(known))
    same_end = [k for k in known if k.split(".")[-1] == word.split(".")[-1]]
    found = same_end or difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if not found:
        by_end = {k.split(".")[-1]: k for k in known}
        ends = difflib.get_close_matches(word.split(".")[-1], by_end, n=3)
        found = [by_end[end] for end in ends]
    return f"; did you mean {' or '.join(found)}?" if found else f"; there is {', '.join(known)}"


def _explain(error: Exception) -> str:
    """A library's message in one line; with the nearest keys where a YAML has an unknown one."""
    inner = error
    while not isinstance(inner, OmegaConfBaseException) and inner.__context__:
        inner = inner.__context__
    file, key = str(error).split(":")[0], getattr(inner, "full_key", None)
    text = " ".join(str(inner).splitlines()[0].split())
    if file.startswith("In '"):
        text = f"conf/{file[4:].rstrip(chr(39))}.yaml: {text}"
    if key and key not in KEYS and "not in" in text:
        return f"{text.split(': ')[0]}: unknown key {key!r}{nearest(key, list(KEYS))}"
    return f"{key}: {text}" if key and key not in text else text
