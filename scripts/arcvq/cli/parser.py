"""The command line of a verb: options from signatures, a YAML file by --config, one line for an error."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from arcvq.cli.configs import CONFIGS
from arcvq.cli.option_errors import OptionErrors
from arcvq.cli.safe_yaml import read_yaml
from arcvq.cli.script import fail

# What jsonargparse lets through of Python's, for numbers without end and other values that it does not expect.
_UNEXPECTED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ScriptParser(ArgumentParser):
    """A parser with --config, whose errors are one line that names the value and the valid options.

    Without a --config among the arguments, `digits_config`, a file of configs/digits, is the config where it is given.

    Attributes:
        names_within: for an option that takes further names, as model.quantizer_options, a function that lists these.
            An error calls it to say which name was meant.
    """

    def __init__(self, description: str, digits_config: str | None = None):
        super().__init__(description=description, exit_on_error=False, allow_abbrev=False)
        default = f"; without one it is configs/digits/{digits_config}" if digits_config else ""
        self.add_argument("--config", action="config", help=f"YAML file with options{default}")
        self.names_within: dict[str, Callable[[], Iterable[str]]] = {}
        self._default_config = [f"--config={CONFIGS / 'digits' / digits_config}"] if digits_config else []
        self._dataclasses: dict[str, type] = {}

    def add_class_arguments(self, class_type: type, nested_key: str | None = None, **options: Any) -> list[str]:
        """Add the options of a class; `parse` returns the section of a dataclass as an instance of it."""
        if nested_key is not None and is_dataclass(class_type):
            self._dataclasses[nested_key] = class_type
        return super().add_class_arguments(class_type, nested_key, **options)

    def parse(self, args: Sequence[str] | None) -> Namespace:
        """Parse options; on an error print one line and exit with status 2.

        Args:
            args: the words of the command line; None: those of the process.

        Returns:
            The options by name. A section is an instance of its dataclass, or a Namespace where it has none.
        """
        args = self._config_first(list(sys.argv[1:] if args is None else args))
        errors = OptionErrors(self._actions, self.names_within)
        try:
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

    def _read_files(self, args: Sequence[str], errors: OptionErrors) -> list[dict[str, Any]]:
        """What the files after --config hold.

        Raises:
            ValueError: one of another kind than `read_yaml` reads, that names further files, or what is no option.
        """
        configs = []
        for word, following in zip(args, [*args, None][1:], strict=True):
            name, _, value = word.removeprefix("--").partition("=")
            if name == "config" and word.startswith("--"):
                file = value if "=" in word else following
                if file is None:
                    continue  # argparse says so
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
        """Raises ValueError for a None that is not among an option's values; jsonargparse does not look at it."""
        for action in self._actions:
            hint = getattr(action, "_typehint", None)
            if hint is None or action.default is None or config.get(action.dest) is not None:
                continue
            if type(None) not in get_args(hint):
                raise ValueError(f"{action.dest} must not be null; remove it to keep its default, {action.default!r}")

    def _config_first(self, args: list[str]) -> list[str]:
        """The same arguments with --config before all others, so that an option always overrides the file."""
        first, rest, words = [], [], iter(args)
        for word in words:
            if word == "--config":
                first += [word, *(value for value in [next(words, None)] if value is not None)]
            elif word.startswith("--config="):
                first.append(word)
            else:
                rest.append(word)
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
