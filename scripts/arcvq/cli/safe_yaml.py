"""YAML files, which somebody else may have written: read within bounds, and as nothing but plain values."""

from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent, DocumentStartEvent, MappingStartEvent, ScalarEvent, SequenceStartEvent

LARGEST_FILE = 2**18  # bytes; the configs of this project are of some 2,000
DEEPEST = 20  # nested lists and mappings
LONGEST_NUMBER = 40  # digits: Python reads thousands, and no float is as large

# What makes jsonargparse import a class, and names that it keeps for itself.
_NOT_NAMES = ("class_path", "__")

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(file: Path) -> dict[str, Any]:
    """The options in a YAML file: a mapping of names.

    It is checked event by event before anything is made of it, so that nothing is expanded and nothing is nested deep.

    Raises:
        ValueError: no such file, or no regular one, above LARGEST_FILE, or not UTF-8; no YAML, or not one mapping; an
            alias, a tag, a name that is no text or that is there twice, a number without end.
    """
    if not file.is_file():  # a device or a pipe might never end
        raise ValueError(f"{file} is not there, or no file")
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line}: not UTF-8; save it as that") from error
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{file} is larger than {LARGEST_FILE} bytes, which no config is")
    try:
        _check(text, file)
        options = yaml.load(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{file}{where}: no YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        found = "nothing" if options is None else f"a {type(options).__name__}"
        raise ValueError(f"{file} holds {found} and not options by name")
    return options


def _check(text: str, file: Path) -> None:
    """Raises ValueError for what a config has no use of."""
    nested: list[_Nested] = []  # the open lists and mappings
    documents = 0
    for event in yaml.parse(text, Loader=_LOADER):
        where = f"{file}, line {event.start_mark.line + 1}"
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ValueError(f"{where}: a second document; a config is one")
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError(f"{where}: & and * are not for configs; write the value out, or put it in quotes")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"{where}: the tag {event.tag!r:.80} is not for configs; write a plain value")
        if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent):
            kind = _kind(event)
            if kind in ("int", "float") and len(event.value) > LONGEST_NUMBER:
                raise ValueError(f"{where}: a number of {len(event.value)} digits; at most {LONGEST_NUMBER} are read")
            if nested:
                nested[-1].take(event, kind, where)
            if kind == "nested":
                nested.append(_Nested(isinstance(event, MappingStartEvent)))
            if len(nested) > DEEPEST:
                raise ValueError(f"{where}: nested deeper than {DEEPEST} times")
        elif isinstance(event, yaml.events.CollectionEndEvent):
            nested.pop()


class _Nested:
    """An open list or mapping, and the names that were in it."""

    def __init__(self, is_mapping: bool):
        self._names: set[str] | None = set() if is_mapping else None
        self._expects_name = is_mapping

    def take(self, event: yaml.events.NodeEvent, kind: str, where: str) -> None:
        """Takes what comes next in it. Raises ValueError where that should be a name, and is none or not a new one."""
        if self._expects_name:
            if kind != "str" or any(part.startswith(_NOT_NAMES) for part in event.value.split(".")):
                raise ValueError(f"{where}: {getattr(event, 'value', 'a list')!r:.80} is no option's name")
            if event.value in self._names:
                raise ValueError(f"{where}: {event.value!r:.80} is there twice")
            self._names.add(event.value)
        self._expects_name = self._names is not None and not self._expects_name


def _kind(event: yaml.events.NodeEvent) -> str:
    """`nested`, or what YAML takes a scalar for: str, int, float, null, ..."""
    if not isinstance(event, ScalarEvent):
        return "nested"
    return _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit).rpartition(":")[2]


_RESOLVER = yaml.resolver.Resolver()
