"""What every script's command line has: options from signatures, a YAML by --config, one line for an error."""

import atexit
import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch import distributed

from arcvq.cli.configs import CONFIGS
from arcvq.cli.option_errors import OptionErrors
from arcvq.cli.safe_yaml import read_yaml
from arcvq.compute.allocator import keep_freed_memory

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

    def parse(self, args: Sequence[str] | None) -> Namespace:
        """The parsed options; `args` None are those of the process. Exits with one line and status 2 on an error."""
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
        """All options of a run as plain nested values, as YAML holds them."""
        plain = yaml.safe_load(self.dump(config))
        for name in ("config", "dry_run"):
            plain.pop(name, None)
        return plain


def fail(message: str) -> NoReturn:
    """Prints one line to standard error and exits with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def run_script(main: Callable[[], object]) -> None:
    """Runs a script's `main`; an error of the user's, a ValueError or an OSError, becomes one line.

    With ARCVQ_TRACEBACK=1 in the environment the traceback is shown.
    """
    keep_freed_memory()
    if not torch.accelerator.is_available():
        # Or accelerate takes each of several processes without a GPU for the only one.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a .functools.lru_cache")  # in diffusers
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # retries without a network, said once by the error
    try:
        main()
        _end_one_of_several(0)
    except SystemExit as end:  # after a signal, for which all processes have saved
        if isinstance(end.code, int):
            _end_one_of_several(end.code)
        raise
    except KeyboardInterrupt:
        print("interrupted; a training goes on from its newest checkpoint when it is started again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            print("note: another process has ended; its own error says why", file=sys.stderr)
            sys.exit(2)
        message = _message(error)
        if message is None or os.environ.get("ARCVQ_TRACEBACK") == "1":
            raise
        fail(" ".join(message.split()))


def _end_one_of_several(status: int) -> None:
    """End this process with `status` at once if it is one of several, else do nothing.

    Gloo's threads can outlive `destroy_process_group` (a device mesh holds the group), and a thread that asks for the
    interpreter while Python finalizes it aborts the process. So Python's exit functions run, its finalization does not.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _message(error: Exception) -> str | None:
    """What to tell the user of an error; None where it is one of the program."""
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return f"out of memory ({text or 'no more is given'}); lower optim.batch_size, or raise optim.accumulation"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" ({error.filename})" if error.filename else ""
        remedy = "raise ulimit -f or the quota" if error.errno == errno.EFBIG else "make room"
        return f"{error.strerror}{where}: {remedy}, and start the same command again; what was complete is still there"
    if isinstance(error, ValueError | OSError):
        return text
    if "does not have a deterministic implementation" in text:
        return f"{text.partition('.')[0]}; leave out run.deterministic, or set another option that does without it"
    if text.startswith("DataLoader worker"):
        return (
            f"a process that loads data has ended ({text.splitlines()[0]}); lower data.num_workers if memory is short"
        )
    return None
