"""Turns a state dict with the public ArcVQ-VAE code's parameter names into a VQTokenizer folder.

    python scripts/convert.py STATE_DICT FOLDER

STATE_DICT is a .safetensors file or a .pt/.pth file of tensors (read with weights_only, so it can run no code). All
sizes but the image size are read off the tensors.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from command_line import ScriptParser, run_script
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenizer import VQTokenizer

# Public name (a pattern) -> ours.
NAMES = {
    r"_encoder\._conv_1": "encoder.conv_in",
    r"_encoder\._conv_2": "encoder.conv_down",
    r"_encoder\._conv_3": "encoder.conv_mid",
    r"_encoder\._residual_stack\._layers\.(\d+)\._block\.1": r"encoder.residual.\1.conv1",
    r"_encoder\._residual_stack\._layers\.(\d+)\._block\.3": r"encoder.residual.\1.conv2",
    r"_pre_vq_conv": "encoder.conv_out",
    r"_vq_vae\.(?:_)?embedding\.weight": "bottleneck.codebook",
    r"_decoder\._conv_1": "decoder.conv_in",
    r"_decoder\._residual_stack\._layers\.(\d+)\._block\.1": r"decoder.residual.\1.conv1",
    r"_decoder\._residual_stack\._layers\.(\d+)\._block\.3": r"decoder.residual.\1.conv2",
    r"_decoder\._conv_trans_1": "decoder.conv_up",
    r"_decoder\._conv_trans_2": "decoder.conv_out",
}
PARTS = ("_encoder.", "_pre_vq_conv.", "_vq_vae.", "_decoder.")


def main(args: Sequence[str] | None = None) -> None:
    """Reads, renames, checks that nothing is missing or left over, and writes the folder."""
    parser = ScriptParser("Convert a public ArcVQ-VAE state dict (small network) to a tokenizer folder.")
    parser.add_argument("state_dict", type=str, help=".safetensors, .pt or .pth file")
    parser.add_argument("folder", type=str, help="folder to write; must not hold anything yet")
    parser.add_argument(
        "--image_size", type=int | None, default=None, help="None: what the file's metadata says, else 32"
    )
    config = parser.parse(args)
    folder = Path(config.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{config.folder!r} exists and is not an empty folder; name another")

    tensors, metadata = read_tensors(Path(config.state_dict))
    state = rename(tensors, config.state_dict)
    image_size = int(metadata.get("image_size", 32)) if config.image_size is None else config.image_size
    tokenizer = VQTokenizer(**sizes(state), image_size=image_size, quantizer="arc")
    # The file does not say how many updates the codebook has seen.
    try:
        tokenizer.load_state_dict(state | {"bottleneck.step": torch.zeros((), dtype=torch.int64)})
    except RuntimeError as error:
        raise ValueError(f"the tensors of {config.state_dict} do not fit together: {error}") from error
    tokenizer.save_pretrained(folder)
    print(f"tokenizer for images of {image_size} x {image_size}: {folder}")


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file by name, and its metadata.

    Raises:
        ValueError: no such file, or one that is neither safetensors nor a plain dictionary of tensors.
    """
    if not file.is_file():
        raise ValueError(f"state dict {str(file)!r} is not there")
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file} holds no plain tensors: {reason}") from error
    return _flat(content), {}


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


def rename(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The model's tensors under our names, float32, whatever prefix they have in the file.

    Raises:
        ValueError: tensors of the model that are missing, or that have no place here.
    """
    landmark = "_encoder._conv_1.weight"
    prefix = next((name.removesuffix(landmark) for name in tensors if name.endswith(landmark)), None)
    if prefix is None:
        raise ValueError(f"{source} has no tensor named {landmark}: it is no small ArcVQ-VAE model of the public code")
    state, unknown, ignored = {}, [], []
    for name, tensor in tensors.items():
        if not name.startswith(tuple(prefix + part for part in PARTS)):
            continue
        public = name.removeprefix(prefix)
        for pattern, ours in NAMES.items():
            suffix = "" if ours == "bottleneck.codebook" else r"\.(?P<kind>weight|bias)"
            if match := re.fullmatch(pattern + suffix, public):
                kind = f".{match['kind']}" if suffix else ""
                state[match.expand(ours) + kind] = tensor.float()
                break
        else:
            (ignored if public.startswith("_vq_vae.") else unknown).append(public)
    if ignored:  # statistics that some versions keep beside the table
        print(f"without a place here, left out: {', '.join(ignored)}")
    if unknown:
        raise ValueError(f"{source} has tensors without a place here: {', '.join(unknown[:5])}")
    needed = {ours for ours in NAMES.values() if "\\" not in ours}
    if missing := [ours for ours in needed if not any(name.startswith(ours) for name in state)]:
        raise ValueError(f"{source} lacks the tensors of {', '.join(sorted(missing)[:5])}")
    return state


def sizes(state: dict[str, Tensor]) -> dict[str, int]:
    """The constructor arguments of VQTokenizer that the tensors tell."""
    hidden, in_channels = 2 * state["encoder.conv_in.weight"].shape[0], state["encoder.conv_in.weight"].shape[1]
    codebook_size, codebook_dim = state["bottleneck.codebook"].shape
    layers = [name for name in state if re.fullmatch(r"encoder\.residual\.\d+\.conv1\.weight", name)]
    return {
        "in_channels": in_channels,
        "hidden_channels": hidden,
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "num_residual_layers": len(layers),
        "residual_channels": state[layers[0]].shape[0] if layers else 1,
    }


if __name__ == "__main__":
    run_script(main)
