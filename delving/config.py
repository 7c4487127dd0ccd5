"""Composes conf/ and the command line into a `Config`. The only importer of hydra."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache, lru_cache, reduce
from itertools import chain
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

from delving.bounds import MAPPED
from delving.foreign import check_nesting, check_yaml, read_text, root_of
from delving.groups import CONF, GROUPS, choices, choose
from delving.schema import (
    FAMILY,
    LIMITS,
    NEUTRAL,
    Config,
    Detect,
    Families,
    Reproduce,
    Seeds,
    check_value,
    leaves,
    refusal,
    validate,
)
from delving.sweep import Several, multiply, read_ranges, read_sweep
from delving.words import at_home, cut, first_line, last_of_each, nearest, quote, shown


@dataclass
class _Composed(Config):
    family: Families = field(default_factory=Families)
    reproduce: Reproduce = field(default_factory=Reproduce)
    detect: Detect = field(default_factory=Detect)

    def own(self) -> Config:
        return Config(**{f.name: getattr(self, f.name) for f in fields(Config)})


ConfigStore.instance().store(name="schema", node=_Composed)
DETECT = {key: f for key, _, f in leaves(Detect(), "detect.")}
SEEDS = {key: f for key, _, f in leaves(Seeds(), "reproduce.seeds.")}
KEYS = {key: f for key, _, f in leaves(Config())}
WORDS = KEYS | FAMILY
KNOBS = WORDS | DETECT | SEEDS
LISTS = tuple(key for key, f in KNOBS.items() if "list[" in str(f.type))
TEXTS = tuple(key for key, f in KNOBS.items() if "str" in str(f.type) and key not in LISTS)
_cell_of = cache(lambda key: make_dataclass("Cell", [(KNOBS[key].name, KNOBS[key].type)]))
UNSWEPT = ("data.root", "output_root", "device", "detect.root", "detect.proposals")
LATER = (*NEUTRAL, "seed")  # set after composing: runs that differ only in them compose once


def compose(overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The validated configuration of `key=value` words, every `${...}` resolved.

    Raises:
        ValueError: an unknown key or an impossible value; names the nearest ones.
    """
    rest, later = _check_all(str(CONF), tuple(overrides))
    return validate(_assign(_compose_all(rest).own(), later))


@lru_cache(maxsize=4096)  # conf/'s files are read, and each run's name asks for the same again
def _check_all(folder: str, overrides: tuple[str, ...]) -> tuple[list[str], list[str]]:
    read = {text: _check(text) for text in overrides}
    checked = {key: read[text] for key, text in last_of_each(overrides).items()}
    if checked.get("data", ["data=shapes"]) != ["data=shapes"]:
        checked = {key: [f"{key}=null"] for key in LIMITS} | checked
    later = [word for key, words in checked.items() if key in LATER for word in words]
    return [word for key in checked if key not in LATER for word in checked[key]], later


def expand(words: Sequence[str], *, limit: int = 1000) -> list[list[str]]:
    """The runs of `key=value` words: every combination of their sweeps, the last changing fastest.

    A sweep is one of Hydra's (`act=relu,prelu`; choice, range, glob, sort, shuffle) or a range of
    integers with both its ends, `seed=0..4`. Lists are swept in brackets, `train.s=[8,8],[8,16]`;
    paths and devices are not swept. The order of shuffle depends only on its words.

    Raises:
        ValueError: a word that compose would refuse; or more than `limit` runs, before any is made.
    """
    last = last_of_each(words).values()
    runs = multiply([_sweep_of(word) or Several(1, [word]) for word in last], limit)
    for word in dict.fromkeys(chain(*runs)):
        _check(word)
    return runs


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
    """The paper's own knobs for a model and a rectifier, which no scale has changed."""
    groups = (f"model={model}", f"act={act}")
    words = [*(word for text in groups for word in _check(text)), "~scale"]
    return _compose_all(words).own()


def plan_of(scale: str, words: Sequence[str] = ()) -> Reproduce:
    """A scale's settings of `delving reproduce`, with `reproduce.seeds.role=n` words. Raises as
    compose."""
    return _settle(scale, words, SEEDS).reproduce


def compose_detect(scale: str, words: Sequence[str]) -> Detect:
    """A scale's settings of `delving detect`, with `detect.key=value` words. Raises as compose."""
    found = _settle(scale, words, DETECT).detect
    if found.rois < found.images:
        raise ValueError(f"detect.rois={found.rois}: one at least of each of the {found.images} "
                         "images of a batch (detect.images)")  # fmt: skip
    return found


def _settle(scale: str, words: Sequence[str], keys: Mapping) -> _Composed:
    """A composed scale with words set that `keys` knows, which are no knobs of a run."""
    checked = [word for text in words for word in _check(text, keys)]
    return validate(_assign(_compose_all(_check(f"scale={scale}")), checked))


def load(path: Path) -> Config:
    """Reads the config.yaml of a run folder, which may be a stranger's.

    `output_root` is where the folder lies: <root> of <root>/<scale>/runs/<run>/config.yaml, else
    the usual one. The saved one is ignored, lest a file decide where we write.

    Raises:
        ValueError: names the file and what does not fit.
    """
    config = from_yaml(read_text(path), str(path))
    config.output_root = root_of(path, config.scale) or Config.output_root
    return config


def from_yaml(text: str, name: str) -> Config:
    """The configuration that to_yaml wrote; ValueError, naming `name`, if it is not plain YAML or
    does not fit. Knobs that change no result may be missing: there were fewer of them once."""
    try:
        check_yaml(text)
        tree = OmegaConf.create(text) if text.strip() else OmegaConf.create()
        saved = OmegaConf.merge(OmegaConf.structured(Config), tree)
        lacking = [key for key in KEYS if key not in NEUTRAL and not _has(tree, key.split("."))]
        if lacking:
            raise ValueError(f"lacks {', '.join(lacking)}")
        return validate(OmegaConf.to_object(saved))
    except (OmegaConfBaseException, OverflowError) as error:
        raise ValueError(f"{name}: {_explain(error)}") from error
    except (YAMLError, ValueError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from error


def _has(tree: Mapping, parts: list[str]) -> bool:
    return parts[0] in tree and (len(parts) == 1 or _has(tree[parts[0]], parts[1:]))


def amend(path: Path, overrides: list[str], *, scoring: bool = True) -> Config:
    """A saved configuration with other words on how, where and on what to score it or, unless
    `scoring`, on how and where to run a detection from it.

    Raises:
        ValueError: a key that would make it another run.
    """
    of_scoring = dict.fromkeys([*NEUTRAL, *(key for key in KEYS if key.startswith("eval."))])
    allowed = ["precision", *(of_scoring if scoring else ("device", "output_root"))]
    config = load(path)
    for text in overrides:
        key, sign, value = text.partition("=")
        key = "eval.protocols" if key == "protocol" else key
        if key not in allowed:
            what = "scoring takes protocol and" if scoring else "of a run's words detect takes"
            raise ValueError(f"{cut(text)!r}: {what} {', '.join(allowed)}")
        [word] = _check(f"{key}{sign}{value}")
        config = _assign(config, [word])
    return validate(config)


def _assign(config: Config, words: list[str]) -> Config:
    """Sets checked `key=value` words in the configuration, and returns it."""
    for word in words:
        key = word.partition("=")[0]
        *groups, name = key.split(".")
        setattr(reduce(getattr, groups, config), name, _fitted(key, _parse(word).value()))
    return config


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _check(text: str, keys: Mapping = WORDS) -> list[str]:
    """Refuses what Hydra would accept, and rewrites lists and small<N> as Hydra wants them."""
    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"{cut(text)!r} is not key=value; for example model=c train.lr=0.02")
    if keys is WORDS and key in (*DETECT, *SEEDS):
        command = "detect" if key in DETECT else "reproduce"
        raise ValueError(f"{key}: a setting of `delving {command}`")
    known = [*GROUPS, *WORDS, *SEEDS] if keys is WORDS else list(keys)
    if key not in known:
        raise ValueError(f"there is no {cut(key)!r}{nearest(cut(key), known)}")
    if key.endswith(".name"):
        group = key.removesuffix(".name")
        raise ValueError(f"{key} comes with its group: {group}=... ({', '.join(choices(group))})")
    if _sweep_of(text):
        hint = "; `train -m` makes a run of each" if keys is WORDS else ""
        raise ValueError(f"{shown(text)}: one value here{hint}")
    return choose(key, value) if key in GROUPS else [_check_knob(key, value)]


def _check_knob(key: str, value: str) -> str:
    if "${" in value or (key not in TEXTS and "shuffle(" in value):
        raise ValueError(f"{shown(f'{key}={value}')}: a value, no interpolation or random order")
    if key in TEXTS:  # in a path '~', ',' and '=' are no grammar
        _fitted(key, None if value == "null" else value)
        return f"{key}=" + ("null" if value == "null" else quote(at_home(key, value)))
    word = f"{key}=[{value}]" if key in LISTS and not value.startswith("[") else f"{key}={value}"
    try:
        check_nesting(word)
        value = _parse(word).value()
    except ValueError as error:
        raise ValueError(f"{shown(word)}: {error}") from error
    _fitted(key, value)
    return word


def _fitted(key: str, value: object) -> object:
    """The value in its knob's type; ValueError names the key if it does not fit."""
    f = KNOBS[key]
    if f.type is bool and value not in (True, False):  # OmegaConf would take any number
        raise ValueError(refusal(key, value, f))
    cell = OmegaConf.structured(_cell_of(key))
    try:
        OmegaConf.update(cell, f.name, value)
        found = OmegaConf.to_container(cell, throw_on_missing=True)[f.name]
    except (OmegaConfBaseException, OverflowError) as error:
        raise ValueError(refusal(key, value, f)) from error
    return check_value(key, found, f)


def _sweep_of(text: str) -> Several | None:
    """The words that a word with a list or a range stands for; None for a single value."""
    key, _, value = text.partition("=")
    if key in UNSWEPT or key not in (*KNOBS, *GROUPS) or not re.search(r"[,(]|\.\.", value):
        return None
    try:
        check_nesting(text)
        found = None if key in LISTS else read_ranges(value)
        if not found:
            names = choices(key) if key in GROUPS else []
            found = read_sweep(_parse(text), lists=key in LISTS, names=names)
        if found and not found.count:
            raise ValueError("not one value")
    except ValueError as error:
        raise ValueError(f"{shown(text)}: {error}") from error
    return Several(found.count, (f"{key}={one}" for one in found.values)) if found else None


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:
        raise ValueError(f"cannot be read: {first_line(error)}") from error


def _explain(error: Exception) -> str:
    """A library's message in one line, with the nearest keys if a YAML has an unknown one."""
    inner = error
    while not isinstance(inner, OmegaConfBaseException) and inner.__context__:
        inner = inner.__context__
    # OmegaConf's key of a list's item is its index.
    file, key = str(error).split(":")[0], str(getattr(inner, "full_key", None) or "")
    text = first_line(inner).replace(*MAPPED)
    if file.startswith("In '"):
        text = f"conf/{file[4:].rstrip(chr(39))}.yaml: {text}"
    if key and key not in KEYS and "not in" in text:
        return f"{text.split(': ')[0]}: unknown key {key!r}{nearest(key, list(KNOBS))}"
    return f"{key}: {text}" if key and key not in text else text
