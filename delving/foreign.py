"""Text that may come from a stranger: read within bounds, and refused unless it is plain YAML.

Run folders are passed on, so a config.yaml is not to be trusted: it is checked as a stream of
events before any object is made of it.
"""

from collections.abc import Iterator
from pathlib import Path

import yaml

from delving.words import shown

BYTES, EVENTS, DEPTH = 64 * 1024, 5000, 10  # of a config.yaml
LONGEST = 4096  # characters of a value, or of a word that is parsed


def read_text(path: Path) -> str:
    """A file of at most 64 KB as text; ValueError names the file and what is wrong with it."""
    try:
        if not path.is_file():  # reading a pipe would block
            raise ValueError(f"{path}: there is no such file")
        with path.open("rb") as file:
            data = file.read(BYTES + 1)
        if len(data) > BYTES:
            raise ValueError(f"{path}: more than {BYTES:,} bytes; no configuration has so many")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text (byte {error.start:,})") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def root_of(path: Path, scale: str) -> str:
    """<root> of <root>/<scale>/runs/<run>/config.yaml; empty for a file elsewhere."""
    parents = path.parents if len(path.parents) > 3 else path.absolute().parents
    there = len(parents) > 3 and (parents[2].name, parents[1].name) == (scale, "runs")
    return str(parents[3]) if there else ""


def check_nesting(text: str) -> None:
    """Raises ValueError if brackets are nested too deep, or a text is too long, for a parser."""
    depth = deepest = 0
    for sign in text[:LONGEST]:
        depth += (sign in "[{(") - (sign in "]})")
        deepest = max(depth, deepest)
    if deepest > DEPTH or len(text) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} characters, or nested deeper than {DEPTH}")


def check_yaml(text: str) -> None:
    """Refuses all of YAML but one document of plain mappings, lists and values.

    Raises:
        ValueError: names the line and what is wrong: a tag, an anchor, an interpolation, a second
            document, a key given twice, a list as key, or a size beyond every configuration's.
    """
    if len(text) > BYTES:
        raise ValueError(f"more than {BYTES:,} bytes; no configuration has so many")
    try:
        _check_stream(_counted(yaml.parse(text, Loader=yaml.SafeLoader)))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"line {line}: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise ValueError(f"no YAML: the character {error.character:#x}") from error


def _counted(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    for number, event in enumerate(events):
        if number > EVENTS:
            raise _refusal(event, f"more than {EVENTS:,} values; no configuration has so many")
        yield event


def _check_stream(events: Iterator[yaml.Event]) -> None:
    next(events)  # the stream's start
    if isinstance(next(events), yaml.StreamEndEvent):
        return  # empty; from_yaml says what it lacks
    root = next(events)
    if not isinstance(root, yaml.MappingStartEvent):
        raise _refusal(root, "keys and values belong here")
    _check_node(root, events, 1)
    next(events)  # the document's end
    if not isinstance(after := next(events), yaml.StreamEndEvent):
        raise _refusal(after, "a second document")


def _check_node(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> None:
    """A value, and all that is in it."""
    _check_plain(event, depth)
    if isinstance(event, yaml.MappingStartEvent):
        keys: set[str] = set()
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            _check_key(key, keys)
            keys.add(key.value)
            _check_node(next(events), events, depth + 1)
    if isinstance(event, yaml.SequenceStartEvent):
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            _check_node(item, events, depth + 1)


def _check_plain(event: yaml.Event, depth: int) -> None:
    if isinstance(event, yaml.AliasEvent):
        raise _refusal(event, f"an alias, *{shown(event.anchor)}")
    if event.anchor is not None:
        raise _refusal(event, f"an anchor, &{shown(event.anchor)}")
    if event.tag is not None:
        raise _refusal(event, f"a tag, {shown(event.tag)}")
    if depth > DEPTH:
        raise _refusal(event, f"nested deeper than {DEPTH}")
    if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
        raise _refusal(event, f"a value of {len(event.value):,} characters")
    if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
        raise _refusal(event, f"an interpolation, {shown(event.value)}")


def _check_key(event: yaml.Event, keys: set[str]) -> None:
    _check_plain(event, 1)
    if not isinstance(event, yaml.ScalarEvent):
        raise _refusal(event, "a list or mapping as key")
    if event.value in keys:
        raise _refusal(event, f"{shown(event.value)} is given twice")
    if event.value == "<<":
        raise _refusal(event, "a merge, <<")


def _refusal(event: yaml.Event, fault: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {fault}")
