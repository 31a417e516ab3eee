"""Read YAML configs as plain values: no aliases, no tags, and no name twice."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 2**18  # bytes; a config of this project has some 2,000

# jsonargparse imports a class by the first, and keeps names with the second to itself.
_NOT_NAMES = ("class_path", "__")


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, tags, and names that are no text or occur twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _error("& and * are not for configs; write the value out, or put it in quotes", event.start_mark)
        if event.tag is not None:
            raise _error(f"the tag {event.tag!r:.80} is not for configs; write a plain value", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = set()
        for key, _ in node.value:
            parts = key.value.split(".") if key.tag == "tag:yaml.org,2002:str" else []
            if not parts or any(part.startswith(_NOT_NAMES) for part in parts):
                shown = f"{key.value!r:.80}" if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _error(f"{shown} is no option's name", key.start_mark)
            if key.value in names:
                raise _error(f"{key.value!r:.80} is there twice; remove one of them", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read the options in a YAML file: a mapping of names.

    Raises:
        ValueError: the file is missing, larger than LARGEST_FILE or not UTF-8; it is no YAML, or not one mapping of
            names to plain values.
    """
    if not file.is_file():  # reading a device or a pipe might never end
        raise ValueError(f"{file} is not there, or no file")
    if file.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{file} is larger than {LARGEST_FILE} bytes, which no config is")
    try:
        options = yaml.load(file.read_text("utf-8-sig"), Loader=_PlainLoader)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line}: not UTF-8; save it as that") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{file}, line {mark.line + 1}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or a number without end
        raise ValueError(f"{file}: no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        found = "nothing" if options is None else f"a {type(options).__name__}"
        raise ValueError(f"{file} holds {found} and not options by name")
    return options


def _error(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)
