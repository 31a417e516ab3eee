"""Read a file of weights of any format => its tensors by name; no code in it is executed."""

import json
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from tokenizer.loading.weight_formats import HEAD, format_of, not_weights

# Pickles at the beginning of a file of torch.save before torch 1.6: magic number, version, machine, contents.
_PICKLES = 4

# Bytes of an archive's member that are read at once.
_AT_ONCE = 2**20


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a file by name, and its metadata. The contents decide on the format, not the ending.

    Raises:
        ValueError: the file does not exist, is neither safetensors nor dictionaries of tensors, is cut off, or holds
            classes.
    """
    if not file.is_file():
        raise ValueError(f"state dict {str(file)!r} is not there, or no file")
    with file.open("rb") as opened:
        head, size = opened.read(HEAD), file.stat().st_size
    container = format_of(head)
    if container != "safetensors" and (reason := not_weights(head, size)):
        raise _unreadable(file, reason)
    if container is None:
        begins = f"it has {size} bytes alone" if size < 64 else f"it begins with {head[:8]!r}"
        raise _unreadable(file, f"it is neither safetensors nor of torch.save, or cut off: {begins}")
    if container == "zip" and (reason := _zip_problem(file)):
        raise _unreadable(file, reason)
    try:
        if container == "safetensors":
            with safe_open(file, "pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
        content = _load(file)
    except Exception as error:  # a damaged file may raise anything
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise
        problems = {"safetensors": _safetensors_problem, "pickle": _pickle_problem, "zip": lambda *_: None}
        if reason := problems[container](file, error):
            raise _unreadable(file, reason) from error
        if classes := [name for name in pickled_classes(file, error) if not _is_lightnings(name)]:
            raise ValueError(
                f"{file} holds more than tensors, which is refused, as it could run code: {', '.join(classes)}. "
                'Where you trust the file and have these classes, save the tensors alone: python -c "import torch; '
                f"torch.save(torch.load('{file}', 'cpu', weights_only=False)['state_dict'], 'weights.pt')\""
            ) from error
        # torch's own message would advise to read the file without weights_only.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it is no file of torch.save" if refused else (str(error).splitlines() or [type(error).__name__])[0]
        raise _unreadable(file, reason) from error
    try:
        return _flat(content), {}
    except RecursionError as error:
        raise _unreadable(file, "its dictionaries are nested without end") from error


def _unreadable(file: Path, reason: str) -> ValueError:
    return ValueError(f"{file} holds no plain tensors: {reason}")


def _zip_problem(file: Path) -> str | None:
    """Say why a zip archive is no complete file of torch.save; None if it may be one."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except Exception:  # an archive's directory is at its end
        return f"it is cut off after {file.stat().st_size:,} bytes, or its end is damaged; get it anew"
    if any(name.endswith("/constants.pkl") for name in names):
        return "it is a program of TorchScript; save its state_dict() alone"
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return _zip_damage(file)
    return f"it is a zip archive of {', '.join(names[:3])!r:.80}, not of torch.save; unpack it, and name the file in it"


def _zip_damage(file: Path) -> str | None:
    """Name a member whose checksum is wrong, which torch does not check; None if all are right."""
    damaged = []
    with zipfile.ZipFile(file) as archive:
        # torch.serialization.set_crc32_options(False) stores zeros instead of checksums.
        members = [member for member in archive.infolist() if member.CRC]
        for member in members:
            try:
                with archive.open(member) as content:
                    while content.read(_AT_ONCE):
                        pass
            except Exception:  # zipfile and zlib raise errors of many classes
                damaged.append(member.filename)
    if not damaged:
        return None
    return f"it is damaged, as by a download with gaps: {damaged[0]} is not what was written; get it anew"


def _safetensors_problem(file: Path, error: Exception) -> str | None:
    """Say how the file's length differs from the one in its header; None if it does not."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if 8 + length > size:
            return f"it is cut off after {size:,} bytes, or no safetensors file; get it anew"
        try:
            header = json.loads(opened.read(length))
            ends = [facts["data_offsets"][1] for name, facts in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None
    if size == expected:
        return None
    what = "it is cut off" if size < expected else "it is longer than its header says"
    return f"{what}: {size:,} bytes are there, of {expected:,}; get it anew"


def _pickle_problem(file: Path, error: Exception) -> str | None:
    """Say whether a file of torch.save before torch 1.6 is cut off, in its pickles or in the tensors after them."""
    is_whole = isinstance(error, pickle.UnpicklingError)
    with file.open("rb") as opened:
        try:
            for _ in range(_PICKLES):
                for _ in pickletools.genops(opened) if opened.peek(1) else ():
                    pass
        except Exception:  # damaged bytes may raise anything
            is_whole = False
    return None if is_whole else f"it is cut off after {file.stat().st_size:,} bytes, or damaged; get it anew"


def _load(file: Path) -> Any:
    """Read tensors and plain values from a file of torch.save; raise the errors of torch.load.

    Lightning's checkpoints name classes of their own; dictionaries replace their objects.
    """
    allowed: set[str] = set()
    while True:
        try:
            # Pass the open file, because torch would judge a path by its ending.
            with file.open("rb") as opened, safe_globals([(OrderedDict, name) for name in allowed]):
                return torch.load(opened, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            classes = {name for name in pickled_classes(file, error) if _is_lightnings(name)}
            if classes <= allowed:
                raise
            allowed |= classes


def _is_lightnings(name: str) -> bool:
    return name.partition(".")[0] in ("pytorch_lightning", "lightning")


def pickled_classes(file: Path, error: Exception) -> list[str]:
    """List the classes because of which weights_only refuses a file; empty if it has another reason."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        return sorted(get_unsafe_globals_in_checkpoint(file))
    except Exception:  # not in the zip format of torch 1.6 and newer, or damaged
        return re.findall(r"GLOBAL (\S+) was not", str(error))


def _flat(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Flatten nested dictionaries of tensors to dotted names."""
    if isinstance(content, Tensor):
        return {prefix: content}
    if not isinstance(content, Mapping):
        return {}
    dot = "." if prefix else ""
    return {
        name: tensor for key, value in content.items() for name, tensor in _flat(value, f"{prefix}{dot}{key}").items()
    }
