"""Turns a tokenizer of public code into a VQTokenizer folder.

    python scripts/convert.py STATE_DICT FOLDER

STATE_DICT is a .safetensors file, a .pt/.pth file of tensors, or a Lightning checkpoint (.ckpt), with the names of the
public ArcVQ-VAE code (either network) or of taming-transformers' VQGAN. Nothing in it is executed. All sizes but the
image size are read off the tensors.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from command_line import ScriptParser, run_script
from public_names import PublicTensors
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from tokenizer import VQTokenizer

# What a file's metadata calls the rule that assigns a latent to a code -> the quantizer that has it.
LOOKUPS = {"cosine": "arc", "l2": "vq"}


def main(args: Sequence[str] | None = None) -> None:
    """Reads, renames, checks that nothing is missing or left over, and writes the folder."""
    parser = ScriptParser("Convert a tokenizer of public code (ArcVQ-VAE, taming-transformers) to a tokenizer folder.")
    parser.add_argument("state_dict", type=str, help=".safetensors, .pt, .pth or .ckpt file")
    parser.add_argument("folder", type=str, help="folder to write; must not hold anything yet")
    parser.add_argument(
        "--image_size",
        type=int | None,
        default=None,
        help="None: what the file's metadata says, else 256 for a VQGAN and 32 for the small network",
    )
    parser.add_argument(
        "--quantizer",
        type=Literal["arc", "vq"] | None,
        default=None,
        help="arc looks codes up by their cosine, vq by their distance, as taming-transformers does; the tensors do "
        "not tell. None: what the file's metadata says, else arc",
    )
    config = parser.parse(args)
    folder = Path(config.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{config.folder!r} exists and is not an empty folder; name another")

    tensors, metadata = read_tensors(Path(config.state_dict))
    public = PublicTensors(tensors, config.state_dict)
    quantizer, source = choose_quantizer(config.quantizer, metadata.get("lookup"))
    network = public.public
    stored_size = int(metadata.get("image_size", network.image_size))
    image_size = stored_size if config.image_size is None else config.image_size
    codebook_size, codebook_dim = public.shape(public.codebook)
    tokenizer = VQTokenizer(
        **network.sizes(public, image_size),
        network=network.network,
        image_size=image_size,
        quantizer=quantizer,
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
    )
    # The file does not say how many updates the codebook has seen.
    tokenizer.load_state_dict(public.state(tokenizer) | {"bottleneck.step": torch.zeros((), dtype=torch.int64)})
    tokenizer.save_pretrained(folder)
    if public.left_out:
        kinds = ", ".join(f"{count} of {name}" for name, count in sorted(public.left_out.items()))
        print(f"left out: {public.left_out.total()} tensors ({kinds})")
    print(f"quantizer {quantizer}: {source}")
    print(f"{network.network} tokenizer for images of {image_size} x {image_size}: {folder}")


def choose_quantizer(asked: str | None, lookup: str | None) -> tuple[str, str]:
    """The quantizer's name, and what has decided it.

    Raises:
        ValueError: the metadata names a look-up that no quantizer has.
    """
    if asked is not None:
        return asked, "by --quantizer"
    if lookup is None:
        return "arc", "the file does not tell its look-up; taming-transformers' own models need --quantizer vq"
    if lookup not in LOOKUPS:
        raise ValueError(f"the file's metadata has lookup {lookup!r}, of {', '.join(LOOKUPS)}; set --quantizer")
    return LOOKUPS[lookup], f"the file's metadata says {lookup}"


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file by name, and its metadata.

    Raises:
        ValueError: no such file, one that is neither safetensors nor dictionaries of tensors, one with classes in it.
    """
    if not file.is_file():
        raise ValueError(f"state dict {str(file)!r} is not there")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
        content = _load(file)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if classes := [name for name in pickled_classes(file, error) if not _is_lightnings(name)]:
            raise ValueError(
                f"{file} holds more than tensors, which is refused, as it could run code: {', '.join(classes)}. "
                'Where you trust the file and have these classes, save the tensors alone: python -c "import torch; '
                f"torch.save(torch.load('{file}', 'cpu', weights_only=False)['state_dict'], 'weights.pt')\""
            ) from error
        # torch's own words for a file that it cannot read advise to read it without weights_only.
        unreadable = isinstance(error, pickle.UnpicklingError)
        reason = "it is no file of torch.save" if unreadable else (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file} holds no plain tensors: {reason}") from error
    return _flat(content), {}


def _load(file: Path) -> Any:
    """What torch.save has written, of tensors and plain values alone; raises as torch.load.

    For Lightning's classes, which its checkpoints name beside the weights, there are dictionaries.
    """
    allowed: set[str] = set()
    while True:
        try:
            with safe_globals([(OrderedDict, name) for name in allowed]):
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = {name for name in pickled_classes(file, error) if _is_lightnings(name)}
            if found <= allowed:
                raise
            allowed |= found


def _is_lightnings(name: str) -> bool:
    return name.partition(".")[0] in ("pytorch_lightning", "lightning")


def pickled_classes(file: Path, error: Exception) -> list[str]:
    """The classes for which weights_only refuses a file, or none where it is refused for something else."""
    if not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        return sorted(get_unsafe_globals_in_checkpoint(file))
    except (ValueError, RuntimeError):  # not in the zip format of torch 1.6 and newer
        return re.findall(r"GLOBAL (\S+) was not", str(error))


def _flat(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors of nested dictionaries by dotted name."""
    if isinstance(content, Tensor):
        return {prefix: content}
    if not isinstance(content, Mapping):
        return {}
    dot = "." if prefix else ""
    return {
        name: tensor for key, value in content.items() for name, tensor in _flat(value, f"{prefix}{dot}{key}").items()
    }


if __name__ == "__main__":
    run_script(main)
