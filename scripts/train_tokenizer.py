"""Trains a tokenizer: images => runs/<name>/tokenizer.

accelerate launch scripts/train_tokenizer.py
accelerate launch scripts/train_tokenizer.py --config configs/mnist/arcvq.yaml
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from adversary import AdversarialConfig, Adversary
from command_line import ScriptParser, run_script
from common import Run
from reconstruction_loss import LossConfig, ReconstructionLoss
from run_options import OptimConfig, RunConfig, check_share
from sampling import reconstruct
from tokenizer_update import TokenizerUpdate
from torch.utils.data import Subset
from tqdm.auto import tqdm

from pipelines.pictures import plot_codebook, save_comparison
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, hold_in_memory, load_images, pixel_batches
from tokenizer.decoded import pixel_variance
from tokenizer.perceptual import WeightFiles
from tokenizer.usage import perplexity, usage

# Held-out images for the numbers and pictures of a training; scripts/evaluate.py takes all of them.
PREVIEW_IMAGES = 512


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Train an image tokenizer.", digits_config="tokenizer.yaml")
    parser.add_class_arguments(VQTokenizer, "model", skip={"in_channels", "image_size"})
    parser.add_class_arguments(LossConfig, "loss")
    parser.add_argument(
        "--recon_norm", type=bool, default=True, help="divide the squared error by the variance of the training pixels"
    )
    parser.add_class_arguments(AdversarialConfig, "adversarial")
    parser.add_class_arguments(WeightFiles, "weights", skip={"inception"})
    parser.add_argument(
        "--ema_decay",
        type=float | None,
        default=None,
        help="of averaged weights, which then are those that are saved; None: the last weights",
    )
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(RunConfig, "run")
    parser.set_defaults({"run.name": "tokenizer"})
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Trains, or resumes, until `optim.max_steps`, and writes the tokenizer."""
    parser = make_parser()
    config = parser.parse(args)
    data, optim = DataConfig(**config.data.as_dict()), OptimConfig(**config.optim.as_dict())
    loss, adversarial = LossConfig(**config.loss.as_dict()), AdversarialConfig(**config.adversarial.as_dict())
    loss.check()
    adversarial.check(optim.max_steps)
    if config.ema_decay is not None:
        check_share("ema_decay", config.ema_decay)
    train_set, test_set = load_images(data, "train"), load_images(data, "test")
    run = Run(RunConfig(**config.run.as_dict()), optim, parser.settings(config))
    sizes = (train_set.channels, train_set.image_size)
    tokenizer = VQTokenizer(*sizes, **config.model.as_dict())
    averaged = tokenizer if config.ema_decay is None else copy.deepcopy(tokenizer).to(run.device)
    adversary = Adversary(run, adversarial, *sizes) if adversarial.weight else None
    reconstruction_loss = ReconstructionLoss(
        loss, WeightFiles(**config.weights.as_dict()), train_set.image_size, run.device
    )
    run.prepare(tokenizer, train_set, {"data": train_set.fingerprint()}, data.num_workers, config.ema_decay)
    run.dataset = hold_in_memory(train_set, data, partial(tqdm, desc="decoding train", disable=not run.is_main))
    if config.recon_norm and loss.pixel == "mse":
        reconstruction_loss.pixel_variance = pixel_variance(pixel_batches(run.dataset, data.num_workers))
        if not reconstruction_loss.pixel_variance > 0:
            raise ValueError(f"all pixels of {data.name!r} are equal: there is nothing to learn from them")
    update = TokenizerUpdate(run.accelerator, run.main, reconstruction_loss, adversary)
    quantizer = tokenizer.bottleneck
    preview = Subset(test_set, range(min(PREVIEW_IMAGES, len(test_set))))
    counts = torch.zeros(quantizer.codebook_size, dtype=torch.int64, device=run.device)

    for batch in run.steps(whole=True):
        images = batch["images"].chunk(optim.accumulation)  # each (B, C, H, W)
        seen = update(images)
        against = adversary.update(images, seen.reconstructions) if adversary else {}
        run.complete(seen.updated)

        run.log(**seen.terms, **against)
        counts += seen.counts
        if run.due(run.config.log_every):
            counts = run.accelerator.reduce(counts, "sum")
            numbers = {"train_usage": usage(counts), "train_perplexity": perplexity(counts), **quantizer.diagnostics()}
            values = torch.stack([value.float() for value in numbers.values()]).tolist()  # one wait for the device
            run.write(dict(zip(numbers, values, strict=True)))
            counts.zero_()
        if run.is_main and run.due(run.config.sample_every):
            load_average(run, tokenizer, averaged)
            originals, reconstructions, metrics = reconstruct(averaged, preview)
            run.write({f"test_{name}": value for name, value in metrics.result().items() if name != "images"})
            save_comparison(originals[:32], reconstructions[:32], run.picture("step"))
            plot_codebook(averaged.codebook.detach().cpu(), metrics.counts, run.picture("codebook"))

    load_average(run, tokenizer, averaged)
    folder = run.export("tokenizer", averaged.save_pretrained)
    if run.is_main:
        print(f"tokenizer: {folder}")


def load_average(run: Run, tokenizer: VQTokenizer, averaged: VQTokenizer) -> None:
    """Brings `averaged` up to date with the tokenizer in training, where it is another."""
    if averaged is not tokenizer:
        run.load_averaged(averaged)
        averaged.bottleneck.step.copy_(tokenizer.bottleneck.step)


if __name__ == "__main__":
    run_script(main)
