"""Check a saved model before its tensors take memory: the config against the names and shapes of the weights."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from torch import nn

from tokenizer.loading.json_config import check_arguments, read_json
from tokenizer.loading.weight_formats import HEAD, not_weights

WEIGHTS = "diffusion_pytorch_model"

# The size of a file is bounded by the disk; a number in a config is not.
_LARGEST_NUMBER = 2**24
_FLOATS = {"F64", "F32", "F16", "BF16"}
_OTHERS = {torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def local_folder(name: str | Path, patterns: list[str], **hub: Any) -> Path:
    """Return a local folder as it is; fetch the files of a Hub id that match `patterns`, and return their folder.

    Raises:
        TypeError: the name is neither text nor path.
        ValueError: the name is empty, or neither a folder nor a Hub id that can be fetched.
    """
    if not isinstance(name, str | PathLike):
        raise TypeError(
            f"a folder or Hub id is a text or a Path, got a {type(name).__name__}; name what is to be loaded"
        )
    if not str(name):  # a variable that is not set; Path would take it for the working directory
        raise ValueError(
            "the name of the folder is empty; name the folder, or the Hub id, '.' for the working directory"
        )
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise ValueError(f"{str(name)!r} is a file; name the folder that it lies in")
    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns, **hub))
    except (OSError, ValueError) as error:  # no such repository, no network, or no name a repository can have
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{str(name)!r} is no folder here, and the Hub did not give it: {reason}") from error


def read_model_config(model: type[ModelMixin], folder: Path) -> dict[str, Any]:
    """Read the config.json of a model's folder; one that an older version has written is brought up to date.

    Raises:
        ValueError: the file is missing or broken, names another class, or holds an unknown argument.
    """
    file = folder / "config.json"
    config = read_json(file)
    if config.get("_class_name") != model.__name__:
        raise ValueError(f"{file} is of a {config.get('_class_name')!r:.80}, not of a {model.__name__}")
    if hasattr(model, "current_config"):  # diffusers' own models have none
        try:
            config = model.current_config(config)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    check_arguments(model, config, file)
    check_numbers(config, file, _LARGEST_NUMBER)
    return config


def check_numbers(value: Any, file: Path, largest: int) -> None:
    """Raise ValueError for a whole number in a config, at any depth, that is larger than `largest`."""
    nested = [value]
    while nested:
        value = nested.pop()
        if isinstance(value, dict | list):
            nested.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, int) and abs(value) > largest:
            raise ValueError(f"{file} holds {value!r:.30}, and no size is larger than {largest}; get the folder anew")


def check_model_folder(model: type[ModelMixin], folder: Path, variant: str | None = None) -> None:
    """Check that the weights in a folder are those of its config.json, without reading a tensor.

    diffusers would leave missing weights at random, and read pickles where there is no safetensors file.

    Args:
        model: class of the model in the folder.
        folder: a local folder.
        variant: variant of the weights, part of their file's name in diffusers.

    Raises:
        ValueError: the config is of another class, or its values cannot work; the weights are missing, broken or not
            in safetensors; a tensor is missing, left over, or of another shape or type.
    """
    config, file = read_model_config(model, folder), _weights_file(folder, variant)
    header = _header(file)
    try:
        with _at_most(2 * len(header) + 100), torch.device("meta"):
            built = model.from_config(config).state_dict()
    except Exception as error:  # any error that a constructor, here or in diffusers, raises for a value
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder / 'config.json'} describes no {model.__name__}: {reason:.500}") from error
    problems = [f"{name} missing" for name in built.keys() - header.keys()]
    problems += [f"{name:.200} left over" for name in header.keys() - built.keys()]
    for name in built.keys() & header.keys():
        (shape, dtype), wanted = header[name], built[name]
        if shape != list(wanted.shape):
            problems.append(f"{name} is {shape} and not {list(wanted.shape)}")
        elif dtype not in (_FLOATS if wanted.is_floating_point() else {_OTHERS.get(wanted.dtype)}):
            problems.append(f"{name} is {dtype} and not as {wanted.dtype}")
    if problems:
        raise ValueError(
            f"the weights in {folder} are not those that its config.json describes: {', '.join(sorted(problems)[:3])}; "
            "get the folder anew"
        )


def _weights_file(folder: Path, variant: str | None) -> Path:
    """Find the one file that diffusers would read. Raises ValueError where there is none."""
    if index := next(iter(sorted(folder.glob("*.safetensors*.json"))), None):
        raise ValueError(f"{index}: weights in several files are not read; save them with max_shard_size='1TB'")
    file = folder / f"{WEIGHTS}{f'.{variant}' if variant else ''}.safetensors"
    if file.is_file():
        return file
    if pickles := [other.name for other in sorted(folder.iterdir()) if other.suffix in _PICKLES]:
        raise ValueError(
            f"{folder} holds {pickles[0]:.80} and no {file.name}: only safetensors are read, as others may run code; "
            "arcvq convert makes a folder from a file of tensors"
        )
    raise ValueError(f"{file} is not there, or no file; get the folder anew")


def _header(file: Path) -> dict[str, tuple[list[int], str]]:
    """Read the shape and type of each tensor in a safetensors file, whose reader checks that the data are complete."""
    try:
        with safetensors.safe_open(file, "pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        with file.open("rb") as opened:
            reason = not_weights(opened.read(HEAD), file.stat().st_size) or f"{error!s:.200}; get it anew"
        raise ValueError(f"{file} is truncated or no safetensors file: {reason}") from error


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Let this thread build modules of at most so many parameters in this context.

    A constructor registers some parameters twice. One that registers far more than the file has tensors was given a
    number of layers that does not fit the weights, and might build for hours.
    """
    thread, count = threading.get_ident(), 0

    def count_parameter(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        if threading.get_ident() != thread:
            return
        count += 1
        if count > parameters:
            raise ValueError("it describes many more tensors than there are in the file of weights")

    handle = nn.modules.module.register_module_parameter_registration_hook(count_parameter)
    try:
        yield
    finally:
        handle.remove()
