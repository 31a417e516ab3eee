"""Explain a wrong option: suggest the name that was meant, or say which values the option takes."""

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", NoneType: "null", Any: "any"}

# Lowest similarity, as difflib's ratio, of a word and the one that was meant.
_CLOSE = 0.7
# Lowest similarity of a slip of the hand; below it a whole word that two names share says more.
_TYPO = 0.8


class OptionErrors:
    """Explains errors in a parser's options.

    Args:
        actions: the parser's actions.
        names_within: for an option that takes further names, as model.quantizer_options, a function that lists these.
    """

    def __init__(
        self, actions: Sequence[argparse.Action], names_within: Mapping[str, Callable[[], Iterable[str]]] | None = None
    ):
        self._names_within = names_within or {}
        self._actions = {action.dest: action for action in actions}
        self._strings = {name: action for action in actions for name in action.option_strings}
        sections = {parent for name in self._actions for parent in _parents(name)}
        self._names = [name for name in self._actions if f"--{name}" in self._strings and name not in sections]

    def unknown_word(self, args: Sequence[str]) -> str | None:
        """Explain the first word of a command line that looks like an option and is none; None without such."""
        for word in args:
            if word == "--":
                return None
            string = word.partition("=")[0]
            if re.match(r"[-\u2010-\u2015\u2212]+[^\W\d]", string) and not self._is_known(string) and not _number(word):
                return f"there is no option {string}; {self._meant(string)}"
        return None

    def unknown_name(self, options: Mapping[str, Any]) -> str | None:
        """Explain the first name in a config's nested options that is not an option; None without such a name."""
        for name in self._leaves(options):
            if name not in self._actions and not self._is_known(f"--{name}"):
                return f"there is no option {name}; {self._meant(name)}"
        return None

    def wrong_value(self, message: str, args: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> str | None:
        """Reword a parser's message about the value of an option; None where the message names no option.

        Args:
            message: the parser's message.
            args: the words of the command line.
            configs: the nested options of the config files.
        """
        action = self._named(message)
        if action is None:
            return None
        name = f"--{action.dest}" if action.option_strings else action.dest
        values = [*self._on_command_line(action, args), *self._in_configs(action, configs)]
        # A later value takes an earlier one's place, and the parser has looked at both.
        value = next((value for value in values if _shown(value) in message), values[0] if values else None)
        if value is None:
            return f"{name} takes {takes(action)}, and has no value"
        words = choices(action)
        close = [word for word in words if value and word.startswith(str(value))]
        close = close or _closest(str(value).lower(), {word: word for word in words})
        meant = f"; did you mean {close[0]}?" if close else ""
        return f"{name} takes {takes(action)}, got {_shown(value)!r:.80}{meant}"

    def _is_known(self, string: str) -> bool:
        """Whether it is an option, or a name in the value of one that takes names."""
        if string in self._strings:
            return True
        return any(
            f"--{name}" in self._strings and _takes_names(self._strings[f"--{name}"])
            for name in _parents(string.removeprefix("--"))
        )

    def _leaves(self, options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
        """The dotted names of what stands in nested options."""
        for name, value in options.items():
            option = self._strings.get(f"--{prefix}{name}")
            if isinstance(value, Mapping) and value and (option is None or not _takes_names(option)):
                yield from self._leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    def _meant(self, given: str) -> str:
        """The option that an unknown name stands for, or those of its section."""
        given = re.sub(r"^\W+", "", given).replace("-", "_").lower()
        last, lasts = given.rpartition(".")[2], {name: name.rpartition(".")[2] for name in self._names}
        of_section: list[str] = []
        for section in _parents(given):
            of_section = of_section or [name for name in self._names if name.startswith(f"{section}.")]
        among = of_section or self._names
        found = [name for name in self._names if given in (name, name.replace(".", "_"))]
        found = found or [name for name in self._names if lasts[name] == last]
        found = found or [f"{name}.{last}" for name, names in self._names_within.items() if last in names()]
        found = found or _closest(last, {lasts[name]: name for name in reversed(among)}, _TYPO)
        found = found or [name for name in among if set(last.split("_")) <= set(lasts[name].split("_"))]
        found = found or _closest(last, {lasts[name]: name for name in reversed(among)})
        found = found or ([] if of_section else _closest(given, {name: name for name in self._names}))
        found = found or [name for name in _parents(given) if name in self._names]
        if found:
            return f"did you mean {' or '.join(f'--{name}' for name in found[:3])}?"
        if of_section:
            return f"{given.partition('.')[0]} has {', '.join(name.partition('.')[2] for name in of_section)}"
        return "--help lists the options"

    def _named(self, message: str) -> argparse.Action | None:
        """The option that a message names first, in quotes or at its beginning; a section is none."""
        for word in re.findall(r'"([\w.]+)"|argument (?:--)?([\w.]+)', message):
            for name in (word[0] or word[1], *_parents(word[0] or word[1])):
                if name in self._actions:
                    return self._actions[name]
        return None

    def _on_command_line(self, action: argparse.Action, args: Sequence[str]) -> list[str]:
        found = []
        for word, following in zip(args, [*args[1:], None], strict=True):
            string, equals, value = word.partition("=")
            if string in action.option_strings:
                found += [value] if equals else [] if following is None or following.startswith("--") else [following]
            elif not action.option_strings and not word.startswith("-"):
                found.append(word)
        return found[::-1]

    def _in_configs(self, action: argparse.Action, configs: Sequence[Mapping[str, Any]]) -> list[Any]:
        found = []
        for config in configs:
            value: Any = config
            for part in action.dest.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            found += [] if value is None else [value]
        return found


def takes(action: argparse.Action) -> str:
    """Say in words which values an option takes."""
    if action.choices:
        return f"one of {', '.join(map(str, action.choices))}"
    hint = getattr(action, "_typehint", None) or action.type
    return "a file" if hint is None else _described(hint)


def choices(action: argparse.Action) -> list[str]:
    """The words that an option takes; none where it takes any."""
    hint = getattr(action, "_typehint", None)
    literals = [one for one in (hint, *get_args(hint)) if get_origin(one) is Literal]
    return [str(value) for value in (*(action.choices or ()), *(word for one in literals for word in get_args(one)))]


def _described(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_described, inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin in (tuple, list):
        kinds = {_described(one) for one in inner if one is not Ellipsis}
        number = "" if Ellipsis in inner or origin is list else f"{len(inner)} values, "
        return f"a list in brackets ({number}{' or '.join(sorted(kinds))}{' each' if len(kinds) == 1 else ''})"
    if origin is dict or hint is dict:
        return "options in braces, as {name: value}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _closest(word: str, named: Mapping[str, str], cutoff: float = _CLOSE) -> list[str]:
    """Return what the closest of some words stands for, where one is close."""
    return [named[one] for one in difflib.get_close_matches(word, named, n=1, cutoff=cutoff)]


def _takes_names(action: argparse.Action) -> bool:
    hint = getattr(action, "_typehint", None)
    return any(dict in (one, get_origin(one)) for one in (hint, *get_args(hint)))


def _parents(name: str) -> list[str]:
    """`a.b`, `a` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1)]


def _shown(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _number(word: str) -> bool:
    try:
        float(word)
        return True
    except ValueError:
        return False
