"""The command line of a verb: options from signatures, a YAML file by --config, one line for an error."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from arcvq.cli.configs import CONFIGS, find_config
from arcvq.cli.help import HelpPage, OptionFormatter, asked_for_help
from arcvq.cli.option_errors import OptionErrors
from arcvq.cli.safe_yaml import read_yaml
from arcvq.cli.script import fail

# Errors that jsonargparse passes on from Python, for infinite numbers and other values that it does not expect.
_UNEXPECTED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


# Values of a flag on the command line.
_TRUTHS = ("true", "false", "yes", "no")


class ScriptParser(ArgumentParser):
    """A parser with --config, whose errors are one line that names the value and the valid options.

    Args:
        description: what the verb does, in a sentence.
        digits_config: the file of configs/digits that is the config where the arguments name none.
        page: the first page of the help; None: all options.

    Attributes:
        names_within: for an option that takes further names, as model.quantizer_options, a function that lists these.
            An error calls it to say which name was meant.
    """

    def __init__(self, description: str, digits_config: str | None = None, page: HelpPage | None = None):
        super().__init__(
            description=description, exit_on_error=False, allow_abbrev=False, formatter_class=OptionFormatter
        )
        self._page = page
        default = f"; without one it is configs/digits/{digits_config}" if digits_config else ""
        text = f"YAML file with options, or its name in configs/, as mnist/arcvq.yaml{default}"
        self.add_argument("--config", action="config", help=text)
        self.names_within: dict[str, Callable[[], Iterable[str]]] = {}
        self._default_config = [f"--config={CONFIGS / 'digits' / digits_config}"] if digits_config else []
        self._dataclasses: dict[str, type] = {}

    def add_class_arguments(self, class_type: type, nested_key: str | None = None, **options: Any) -> list[str]:
        """Add the options of a class; `parse` returns the section of a dataclass as an instance of it."""
        if nested_key is not None and is_dataclass(class_type):
            self._dataclasses[nested_key] = class_type
        return super().add_class_arguments(class_type, nested_key, **options)

    def explain(self, option: str, text: str) -> None:
        """Replace the help of an option that `add_class_arguments` has added."""
        (action,) = (action for action in self._actions if action.dest == option)
        action.help = text

    def parse(self, args: Sequence[str] | None) -> Namespace:
        """Parse options; on an error print one line and exit with status 2.

        Args:
            args: the words of the command line; None: those of the process.

        Returns:
            The options by name. A section is an instance of its dataclass, or a Namespace where it has none.
        """
        args = list(sys.argv[1:] if args is None else args)
        if (topic := asked_for_help(args)) is not None:
            print(self.help_on(topic), end="")
            sys.exit()
        errors = OptionErrors(self._actions, self.names_within)
        try:
            args = self._config_first(self._with_flags(args))
            configs = self._read_files(args, errors)
            if wrong := errors.unknown_word(args):
                raise ValueError(wrong)
        except ValueError as error:
            fail(" ".join(str(error).split()))
        try:
            config = self.parse_args(args)
            self._check_values(config)
        except (ArgumentError, *_UNEXPECTED) as error:
            message = " ".join(str(error)[:2000].split())
            fail(errors.wrong_value(message, args, configs) or f"{message}; --help lists the options")
        for name, kind in self._dataclasses.items():
            config[name] = kind(**config[name].as_dict())
        return config

    def help_on(self, topic: str) -> str:
        """Write the help on all options, on a section or on an option; with the topic "" the first page.

        Exit with one line and status 2 where there is no such topic.
        """
        sections = [name for name in self.groups if f"--{name}" in self._option_string_actions]
        positional = [action for action in self._actions if not action.option_strings]
        if topic == "" and self._page is not None and self._page.common is not None:
            shown = {*self._page.common, *(action.dest for action in positional)}
        elif topic in ("", "all"):
            shown = {action.dest for action in self._actions}
        else:
            shown = self._option_names(topic.removeprefix("--"))
        if not shown:
            fail(f"no help on {topic!r:.80}; --help takes all, an option, or one of {', '.join(sections)}")
        before = self.usage, self.description, {action: action.help for action in self._actions}
        for action in self._actions:
            # A section is no option: ScriptParser takes its options, and not a file for it.
            if action.dest not in shown or (action.dest in sections and action.option_strings):
                action.help = argparse.SUPPRESS
        if self._page is not None:
            words = [_usage_of(action) for action in positional]
            self.usage = " ".join(["%(prog)s", *words, "[--config FILE] [--OPTION VALUE ...]"])
        if self._page is not None and topic == "":
            more = ["--help all shows all options"] if self._page.common is not None else []
            more += [f"--help SECTION shows those of {', '.join(sections)}"] if sections else []
            self.description = "\n\n".join([self.description, str(self._page), *filter(None, [", ".join(more)])])
        text = self.format_help()
        self.usage, self.description, helps = before
        for action, help_text in helps.items():
            action.help = help_text
        return text

    def _option_names(self, prefix: str) -> set[str]:
        """Find the options of a section, or the option, of this name."""
        return {a.dest for a in self._actions if a.dest == prefix or a.dest.startswith(f"{prefix}.")}

    def _read_files(self, args: Sequence[str], errors: OptionErrors) -> list[dict[str, Any]]:
        """Read the files after --config.

        Raises:
            ValueError: `read_yaml` cannot read a file, or the file names further files or unknown options.
        """
        configs = []
        for word, following in zip(args, [*args, None][1:], strict=True):
            name, _, value = word.removeprefix("--").partition("=")
            if name == "config" and word.startswith("--"):
                file = value if "=" in word else following
                if file is None:
                    continue  # argparse reports the missing value
                options = read_yaml(Path(file).expanduser())
                if "config" in options:
                    raise ValueError(f"{file}: a config names no other; name each with --config")
                for section in self.groups.keys() & options.keys():
                    if not isinstance(options[section], dict):
                        raise ValueError(
                            f"{file}: {section} must hold options by name, got {options[section]!r:.80}; remove it "
                            "to keep their defaults"
                        )
                if wrong := errors.unknown_name(options):
                    raise ValueError(f"{file}: {wrong}")
                configs.append(options)
            elif word.startswith("--") and name in self.groups:
                raise ValueError(
                    f"--{name} is a section: name its options, as in --{name}.NAME, or put it in a --config"
                )
        return configs

    def _check_values(self, config: Namespace) -> None:
        """Raise ValueError for a None that an option does not take; jsonargparse does not check it."""
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            if hint is None or action.default is None or config.get(action.dest) is not None:
                continue
            if type(None) not in get_args(hint):
                raise ValueError(f"{action.dest} must not be null; remove it to keep its default, {action.default!r}")

    def _with_flags(self, args: Sequence[str]) -> list[str]:
        """Write out the value of a flag before a word that is none, as in --status FILE."""
        flags = {
            name
            for action in self._actions
            if action.nargs == "?" and getattr(action, "_typehint", None) is bool
            for name in action.option_strings
        }
        followed = zip(args, [*args, "true"][1:], strict=True)
        return [
            f"{word}=true" if word in flags and following.lower() not in _TRUTHS else word
            for word, following in followed
        ]

    def _config_first(self, args: list[str]) -> list[str]:
        """Put --config before all other arguments, so that an option always overrides the file, and find the files.

        Raises:
            ValueError: no such file, and no config of this name.
        """
        first, rest, words = [], [], iter(args)
        for word in words:
            flag, equals, name = word.partition("=")
            if flag != "--config":
                rest.append(word)
            elif equals or (name := next(words, None)) is not None:
                first.append(f"--config={_found_config(name)}")
            else:
                first.append(word)  # argparse says that its value is missing
        return (first or self._default_config) + rest

    def settings(self, config: Namespace) -> dict[str, Any]:
        """Turn parsed options into plain nested values, as YAML holds them."""
        plain, known = config.clone(), {action.dest for action in self._actions}
        for name in self._dataclasses:
            values = vars(config[name]).items()
            plain[name] = Namespace({key: value for key, value in values if f"{name}.{key}" in known})
        settings = yaml.safe_load(self.dump(plain))
        settings.pop("config", None)
        return settings


def _usage_of(positional: argparse.Action) -> str:
    """Write a positional argument as the usage shows it: [NAME] if it may be left out, NAME ... if it repeats."""
    name = positional.dest.upper() + (" ..." if positional.nargs in ("+", "*") else "")
    return f"[{name}]" if positional.nargs in ("?", "*") else name


def _found_config(name: str) -> str:
    """Find a config; say on the first process which file it is where it was found by its name."""
    file = find_config(name)
    if file != Path(name).expanduser() and os.environ.get("RANK", "0") == "0":
        print(f"config: {file}")
    return str(file)
