"""What every script's command line has: options from signatures, a YAML by --config, one line for an error."""

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class ScriptParser(ArgumentParser):
    """A parser with --config, whose errors are one line that names the value and the valid options.

    Without a --config among the arguments, `digits_config`, a file of configs/digits, is the config.
    """

    def __init__(self, description: str, digits_config: str | None = None):
        super().__init__(description=description, exit_on_error=False, allow_abbrev=False)
        if digits_config is not None:
            file = CONFIGS / "digits" / digits_config
            help_text = f"YAML file with options; without one it is configs/digits/{digits_config}"
            self.add_argument("--config", action="config", help=help_text)
            self._digits_config = file
        else:
            self._digits_config = None

    def parse(self, args: Sequence[str] | None) -> Namespace:
        """The parsed options; `args` None are those of the process. Exits with one line and status 2 on an error."""
        args = list(sys.argv[1:] if args is None else args)
        if self._digits_config is not None and not any(arg.split("=")[0] == "--config" for arg in args):
            args = ["--config", str(self._digits_config), *args]
        try:
            return self.parse_args(args)
        except ArgumentError as error:
            self._fail(" ".join(str(error).split()))

    def _fail(self, message: str) -> NoReturn:
        names = [option for action in self._actions for option in action.option_strings]
        hint = "--help lists the options"
        for word in message.replace("'", " ").replace("=", " ").split():
            if close := difflib.get_close_matches("--" + word.removeprefix("--"), names, n=1, cutoff=0.75):
                hint = f"did you mean {close[0]}? {hint}"
                break
        fail(f"{message}; {hint}")

    def settings(self, config: Namespace) -> dict[str, Any]:
        """All options as plain nested values, as YAML holds them, without the name of the config file."""
        plain = yaml.safe_load(self.dump(config))
        plain.pop("config", None)
        return plain


def fail(message: str) -> NoReturn:
    """Prints one line to standard error and exits with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run_script(main: Callable[[], object]) -> None:
    """Runs a script's `main`; an error of the user's, a ValueError or an OSError, becomes one line.

    With ARCVQ_TRACEBACK=1 in the environment the traceback is shown.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("ARCVQ_TRACEBACK") == "1":
            raise
        fail(" ".join(str(error).split()))
