"""The help of a verb: first the options that most users set, and on demand all of them or those of a section."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from jsonargparse import DefaultHelpFormatter

from arcvq.cli.option_errors import takes

# The value of an option, by the words for what it takes.
_LETTERS = {"a whole number": "N", "a number": "X", "a whole number or null": "N", "a number or null": "X"}
_FLAGS = ("-h", "--help")


@dataclass(frozen=True)
class HelpPage:
    """The first page of a verb's help.

    Args:
        examples: commands.
        writes: the files or folders that the verb writes.
        following: the command that usually comes next.
        common: the options that most users set, by name; None: all options.
    """

    examples: Sequence[str]
    writes: str
    following: str
    common: Sequence[str] | None = None

    def __str__(self) -> str:
        lines = ["examples:", *(f"  {example}" for example in self.examples), ""]
        return "\n".join([*lines, f"writes:  {self.writes}", f"next:    {self.following}"])


class OptionFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Formats options with their values in words, and leaves the description's lines as they are."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _LETTERS.get(takes(action)) or super()._get_default_metavar_for_optional(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = super()._get_help_string(action)
        if action.default is not None:
            text = text.replace("(required, ", "(")
        value, words = self._format_args(action, self._get_default_metavar_for_optional(action)), takes(action)
        if "{" in value or value in _LETTERS.values() or words == "a text":  # the option shows its values itself
            return text.replace("type: %(type)s, ", "")
        return text.replace("type: %(type)s", words.replace("%", "%%"))


def asked_for_help(args: Sequence[str]) -> str | None:
    """Find --help among the words of a command line.

    Returns:
        The word after it, `all` or the name of a section or an option; "" where none follows; None without --help.
    """
    for word, following in zip(args, [*args, ""][1:], strict=True):
        flag, _, topic = word.partition("=")
        if flag in _FLAGS:
            return topic or (following if not following.startswith("-") else "")
    return None
