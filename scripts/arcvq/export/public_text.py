"""Take local places out of what is published: an absolute path, or one from outside, becomes its last part."""

import re
from pathlib import Path, PureWindowsPath
from typing import Any

from tokenizer.data.sources import HUB_IDS

# A path ends at a space, a quote or a bracket, and may follow an option and its =.
_WORD = re.compile(r"""[^\s'"`=,;()\[\]{}]+""")
_LOCAL = re.compile(r"(file:|[A-Za-z]:[\\/]|~|/|\\\\|\.\.[\\/]).+", re.DOTALL)
# A text that is a path and nothing else, or an option with one, may have all these characters.
_WHOLE = re.compile(r"(--[\w.]+=)?((?:file:|[A-Za-z]:[\\/]|~[\\/]|/|\\\\|\.\.[\\/])\S.*)")
# Name and password in an address, and its query, which may have a token.
_SECRETS = re.compile(r"""(\w+://)(?:[^\s/@'"]+@)?([^\s?'"]*)(?:\?[^\s'"]*)?""")


def public(value: Any) -> Any:
    """Replace local paths in all texts of nested values by their last part; relative paths inside stay as they are.

    Local is what begins with /, ~, ../, a drive or file:. Names and addresses of the Hub and of servers are kept,
    without a password or a query.
    """
    if isinstance(value, dict):
        return {public(name): public(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _WHOLE.fullmatch(value):
        return f"{whole[1] or ''}{_last_part(whole[2])}"
    return _WORD.sub(lambda word: _last_part(word[0]), _SECRETS.sub(r"\1\2", value))


def public_data_name(name: str) -> str:
    """Name a data set as others know it: a folder by its last part, a built-in name or an address as it is."""
    is_folder = name != "digits" and name not in HUB_IDS and Path(name).expanduser().is_dir()
    if is_folder or _LOCAL.fullmatch(name):
        return PureWindowsPath(Path(name).expanduser().absolute()).name  # takes / and \ alike
    return public(name)


def public_folder(output: Path) -> str:
    """Name the exported folder in commands: a relative path as given, else its last part."""
    text = output.as_posix()
    return text if public(text) == text and not re.search(r"\s", text) else output.name


def _last_part(word: str) -> str:
    """Return the last part of a local path, and any other word as it is."""
    return PureWindowsPath(word).name or word if _LOCAL.fullmatch(word) else word
