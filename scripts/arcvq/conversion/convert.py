"""Convert a tokenizer of public code to a VQTokenizer folder.

    python scripts/convert.py STATE_DICT FOLDER
    python scripts/convert.py STATE_DICT FOLDER --ema      its averaged weights

STATE_DICT is a .safetensors file, a .pt/.pth file of tensors, or a Lightning checkpoint (.ckpt), with the names of the
public ArcVQ-VAE code (either network) or of taming-transformers' VQGAN. No code in it is executed. All sizes except the
image size follow from the tensors.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.conversion.public_tensors import PublicTensors
from arcvq.conversion.state_dicts import read_tensors
from arcvq.runs.results import find_tokenizer
from tokenizer import VQTokenizer

# The look-up rule in a file's metadata -> the quantizer that uses it.
LOOKUPS = {"cosine": "arc", "l2": "vq"}

HELP = HelpPage(
    examples=("arcvq convert model.safetensors runs/converted", "arcvq convert last.ckpt runs/vqgan --quantizer vq"),
    writes="FOLDER: a tokenizer, which VQTokenizer.from_pretrained loads",
    following="arcvq evaluate reconstruction FOLDER, or arcvq train-ldm --tokenizer FOLDER",
)


def main(args: Sequence[str] | None = None) -> None:
    """Read the tensors, rename them, check that none is missing or left over, and write the folder."""
    parser = ScriptParser(
        "Convert a tokenizer of public code (ArcVQ-VAE, taming-transformers) to a tokenizer folder.", page=HELP
    )
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
    parser.add_argument(
        "--ema",
        action="store_true",
        help="take the averaged weights: those of latent diffusion (model_ema), or below a name as ema. Without it the "
        "plain ones are taken",
    )
    config = parser.parse(args)
    if config.image_size is not None and config.image_size < 1:
        raise ValueError(f"--image_size must be at least 1, got {config.image_size}")
    refuse_folder(Path(config.state_dict))
    folder = Path(config.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{config.folder!r} exists and is not an empty folder; name another")

    tensors, metadata = read_tensors(Path(config.state_dict))
    public = PublicTensors(tensors, config.state_dict, config.ema)
    quantizer, source = choose_quantizer(config.quantizer, metadata.get("lookup"))
    network = public.public
    stored_size = size_in(metadata) or network.image_size
    image_size = stored_size if config.image_size is None else config.image_size
    codebook_size, codebook_dim = public.codebook_shape()
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
    if public.weights:
        print(f"weights: {public.weights}")
    print(f"quantizer {quantizer}: {source}")
    print(f"{network.network} tokenizer for images of {image_size} x {image_size}: {folder}")


def refuse_folder(folder: Path) -> None:
    """Raise ValueError if the path is a folder; the message says so if it already holds a VQTokenizer."""
    if not folder.is_dir():
        return
    try:
        tokenizer = find_tokenizer(str(folder))
    except ValueError:
        raise ValueError(f"{str(folder)!r} is a folder; name the file of weights in it") from None
    raise ValueError(
        f"{str(folder)!r} needs no conversion: {tokenizer} is a VQTokenizer's, which VQTokenizer.from_pretrained loads"
    )


def size_in(metadata: dict[str, str]) -> int | None:
    """Read the image size from a file's metadata, if any. ValueError if it is no whole number above 0."""
    text = metadata.get("image_size")
    if text is None:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"the file's metadata has image_size {text!r:.40}, no size; set --image_size")
    return int(text)


def choose_quantizer(asked: str | None, lookup: str | None) -> tuple[str, str]:
    """Choose the quantizer; return its name, and the reason of the choice.

    Args:
        asked: --quantizer.
        lookup: the look-up rule in the file's metadata.

    Raises:
        ValueError: no quantizer has this look-up rule.
    """
    if asked is not None:
        return asked, "by --quantizer"
    if lookup is None:
        return "arc", "the file does not tell its look-up; taming-transformers' own models need --quantizer vq"
    if lookup not in LOOKUPS:
        raise ValueError(f"the file's metadata has lookup {lookup!r}, of {', '.join(LOOKUPS)}; set --quantizer")
    return LOOKUPS[lookup], f"the file's metadata says {lookup}"
