"""Run a training in which one term of the loss is NaN in some steps.

python -m arcvq.faults.nan arc 20:21 train_tokenizer --optim.max_steps 40
python -m arcvq.faults.nan loss 20: train_ldm

Steps count from 1; a range without an end is open. All ranks have the NaN, or with arc@1 rank 1 alone.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from jsonargparse import Namespace

from arcvq.cli.script import run_script
from arcvq.runs.run import Run
from arcvq.training import adversary, reconstruction_loss
from arcvq.training import ldm as train_ldm
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer
from tokenizer.data import ImageDataset
from tokenizer.losses.lpips import LPIPS, RandomWeights
from tokenizer.quantizers import Quantizer

TRAININGS = {"train_tokenizer": train_tokenizer, "train_ldm": train_ldm, "train_pixelcnn": train_pixelcnn}
# Functions that compute the terms; all other terms come from the quantizer.
PLACES = {
    "train_tokenizer": {
        "reconstruction": (reconstruction_loss, "normalised_mse"),
        "perceptual": (LPIPS, "forward"),
        "generator": (adversary, "generator_loss"),
        "discriminator": (adversary, "discriminator_loss"),
        "r1": (adversary, "r1_penalty"),
        "lecam": (adversary, "lecam_penalty"),
    },
    "train_ldm": {"loss": (train_ldm, "diffusion_loss")},
    "train_pixelcnn": {"loss": (train_pixelcnn, "code_nll")},
}


def inject(script: str, term: str, is_broken: Callable[[], bool]) -> None:
    """Make a term of a training's loss NaN, and so its gradient, whenever `is_broken`."""

    def broken(value: torch.Tensor) -> torch.Tensor:
        return value * float("nan") if is_broken() else value

    owner, name = PLACES[script].get(term, (Quantizer, "forward"))
    computed = getattr(owner, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        value = computed(*args, **kwargs)
        if owner is not Quantizer:
            return broken(value)
        value.losses[term] = broken(value.losses[term])  # KeyError: the quantizer has no such loss
        return value

    setattr(owner, name, replacement)


def main() -> None:
    """Run the training of the command line with the broken term."""
    term, steps, script, *options = sys.argv[1:]
    term, _, rank = term.partition("@")
    first, _, last = steps.partition(":")
    broken = range(int(first) - 1, int(last) - 1 if last else sys.maxsize)
    runs: list[Run] = []
    made = Run.__init__

    def remember(run: Run, *args: Any, **kwargs: Any) -> None:
        runs.append(run)
        made(run, *args, **kwargs)

    Run.__init__ = remember

    def is_broken() -> bool:
        return runs[0].step in broken and rank in ("", str(runs[0].accelerator.process_index))

    inject(script, term, is_broken)
    if term == "perceptual":  # random weights need no file
        set_up = train_tokenizer.set_up

        def set_up_with_random_weights(run: Run, config: Namespace, images: ImageDataset) -> Any:
            config.weights = RandomWeights()
            return set_up(run, config, images)

        train_tokenizer.set_up = set_up_with_random_weights
    TRAININGS[script].main(options)


if __name__ == "__main__":
    run_script(main)
