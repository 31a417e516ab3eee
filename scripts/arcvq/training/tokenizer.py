"""Trains a tokenizer: images => runs/<name>/tokenizer.

accelerate launch scripts/train_tokenizer.py
accelerate launch scripts/train_tokenizer.py --config configs/mnist/arcvq.yaml
"""

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jsonargparse import Namespace
from torch import Tensor
from torch.utils.data import Subset
from tqdm.auto import tqdm

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.parser import ScriptParser
from arcvq.planning.dry_run import DryReport, add_dry_run, dry_run
from arcvq.planning.dry_training import DryRun, DryTraining
from arcvq.runs.options import OptimConfig, RunConfig, check_run, check_share
from arcvq.runs.run import Run
from arcvq.runs.trained_module import on_device
from arcvq.training.adversary import AdversarialConfig, Adversary
from arcvq.training.collapse import CollapseConfig
from arcvq.training.memory_check import check_memory
from arcvq.training.reconstruction_loss import LossConfig, ReconstructionLoss
from arcvq.training.tokenizer_step import Seen, TokenizerUpdate
from tokenizer import VQTokenizer
from tokenizer.codebook_file import load_codebook_file
from tokenizer.data import DataConfig, ImageDataset, StreamedImages, load_into_memory, pixel_batches
from tokenizer.data.bad_images import report_bad_images
from tokenizer.data.facts import DatasetInfo, dataset_info
from tokenizer.data.in_memory import bytes_held, pixel_variance
from tokenizer.data.subsets import evenly_spaced_images
from tokenizer.functional.usage import perplexity, usage
from tokenizer.losses.lpips import RandomWeights, WeightFiles
from tokenizer.networks import network_options
from tokenizer.quantizers import quantizer_options

# Held-out images for the numbers and pictures of a training; scripts/evaluate.py takes all of them.
PREVIEW_IMAGES = 512


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Train an image tokenizer.", digits_config="tokenizer.yaml")
    parser.add_class_arguments(VQTokenizer, "model", skip={"in_channels", "image_size"})
    parser.names_within = {
        "model.network_options": network_options,
        "model.quantizer_options": quantizer_options,
    }
    parser.add_argument(
        "--codebook_file",
        type=str | None,
        default=None,
        help="of quantizer lc: its frozen table, as scripts/codebook.py features writes it; None: a random one",
    )
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
    parser.add_class_arguments(CollapseConfig, "collapse")
    parser.add_class_arguments(DataConfig, "data")
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(RunConfig, "run")
    add_dry_run(parser)
    parser.set_defaults({"run.name": "tokenizer"})
    return parser


def check(config: Namespace) -> None:
    """Raises ValueError for options that cannot work, before time is spent."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ValueError("FSDP shards the UNet of train_ldm.py; launch this with configs/accelerate/eight_gpus.yaml")
    check_run(config)
    config.loss.check()
    config.adversarial.check(config.optim.max_steps)
    config.collapse.check()
    if config.ema_decay is not None:
        check_share("ema_decay", config.ema_decay)


@dataclass(frozen=True)
class Training:
    """A tokenizer in training, and what its step is made of.

    Attributes:
        averaged: what is saved: the tokenizer's average, or itself.
        adversary: what it trains against, if anything.
    """

    tokenizer: VQTokenizer
    averaged: VQTokenizer
    reconstruction_loss: ReconstructionLoss
    adversary: Adversary | None
    update: TokenizerUpdate

    def step(self, images: Sequence[Tensor], seed: int) -> tuple[Seen, dict[str, Tensor]]:
        """Both updates on a batch, in parts (B, C, H, W) of one size; what the second one logs."""
        seen = self.update(images, seed)
        return seen, self.adversary.update(images, seen.reconstructions) if self.adversary else {}


def set_up(
    run: Run,
    config: Namespace,
    images: ImageDataset | StreamedImages | DatasetInfo,
    weights: WeightFiles,
) -> Training:
    """Builds what is trained, and takes up the newest checkpoint. Raises ValueError for options that cannot work."""
    loss, adversarial = config.loss, config.adversarial
    sizes = (images.channels, images.image_size)
    make = partial(VQTokenizer, *sizes, **config.model.as_dict())
    check_memory(run, make, "model.hidden_channels or model.codebook_size")
    tokenizer = make()
    inputs = {"data": images.fingerprint()}
    if config.codebook_file is not None:
        inputs["codebook_file"] = load_codebook_file(tokenizer.bottleneck, Path(config.codebook_file))
    tokenizer.bottleneck.set_total_steps(run.optim.max_steps)
    tokens = math.prod(tokenizer.latent_shape[1:])
    processes = run.accelerator.num_processes
    tokenizer.bottleneck.check_batch(run.optim.batch_size // processes * tokens, processes)
    averaged = tokenizer if config.ema_decay is None else copy.deepcopy(tokenizer).to(run.device)
    adversary = Adversary(run, adversarial, *sizes) if adversarial.weight else None
    reconstruction_loss = ReconstructionLoss(loss, weights, images.image_size, run.device)
    if adversary:  # of a longer training a share is a later step: the adversary would fall silent again
        inputs["step of adversarial.disc_start"] = str(adversarial.start(run.optim.max_steps))
    run.prepare(tokenizer, images, inputs, config.data.num_workers, config.ema_decay)
    if adversary:
        adversary.take_up()
    update = TokenizerUpdate(run.accelerator, run.main, reconstruction_loss, adversary)
    return Training(tokenizer, averaged, reconstruction_loss, adversary, update)


def make_dry_training(run: DryRun, config: Namespace, images: DatasetInfo) -> DryTraining:
    """The same with random weights of LPIPS's network, and on images of no contents."""
    training = set_up(run, config, images, RandomWeights())
    batch = on_device(torch.empty(run.images_here, images.channels, images.image_size, images.image_size), run.device)
    adversarial = config.adversarial

    def step() -> None:
        run.step = adversarial.fullest_step(run.optim.max_steps)
        seen, _ = training.step(batch.chunk(run.optim.accumulation), run.noise_seed)
        run.end_step(seen.updated)

    tokenizer = training.tokenizer
    parts = {"encoder": tokenizer.encoder, "quantizer": tokenizer.bottleneck, "decoder": tokenizer.decoder}
    if training.adversary is not None:
        parts["discriminator"] = training.adversary.discriminator
    return DryTraining(
        step,
        parts,
        batch=[batch],
        frozen=training.reconstruction_loss.networks,
        averaged=[] if training.averaged is tokenizer else [training.averaged],
        tokens_per_image=math.prod(tokenizer.latent_shape[1:]),
        source=f"images of {images.name}",
        bytes_per_epoch=images.encoded_bytes,
        bytes_held=bytes_held(images, config.data),
    )


def plan(config: Namespace) -> tuple[Callable[[DryRun, Namespace], DryTraining], DatasetInfo]:
    """What a dry run needs: how the training is set up, and its images. Raises ValueError as that does."""
    check(config)
    images = dataset_info(config.data)
    return partial(make_dry_training, images=images), images


def main(args: Sequence[str] | None = None) -> DryReport | None:
    """Trains, or resumes, until `optim.max_steps`, and writes the tokenizer; or says what that takes."""
    parser = make_parser()
    config = parser.parse(args)
    if config.dry_run is not None:
        return dry_run(parser, config, *plan(config))
    check(config)
    data, optim = config.data, config.optim
    splits = announced_splits(data)
    train_set, test_set = splits.train, splits.held_out
    run = Run(config.run, optim, parser.settings(config))
    run.data = str(splits)
    training = set_up(run, config, train_set, config.weights)
    tokenizer, averaged = training.tokenizer, training.averaged
    run.dataset = load_into_memory(train_set, data, partial(tqdm, desc="decoding train", disable=not run.is_main))
    if config.recon_norm and config.loss.pixel == "mse":
        variance = pixel_variance(pixel_batches(run.dataset, data.num_workers))
        if not variance > 0:
            raise ValueError(f"all pixels of {data.name!r} are equal: there is nothing to learn from them")
        training.reconstruction_loss.pixel_variance = variance
    quantizer, collapse = tokenizer.bottleneck, config.collapse
    preview = Subset(test_set, evenly_spaced_images(test_set, PREVIEW_IMAGES))
    used = run.counter("used codes", quantizer.codebook_size)

    for batch in run.steps(whole=True):
        parts = batch["images"].chunk(optim.accumulation)  # each (B, C, H, W)
        seen, against = training.step(parts, run.noise_seed)
        run.end_step(seen.updated)

        run.log(**seen.terms, **against)
        if tokenizer.has_codes:
            used += seen.counts
        if run.is_due(run.config.log_every):
            numbers = quantizer.diagnostics()
            if tokenizer.has_codes:
                counts = run.accelerator.reduce(used, "sum")
                numbers |= {"train_usage": usage(counts), "train_perplexity": perplexity(counts)}
            if numbers:
                values = torch.stack([value.float() for value in numbers.values()]).tolist()  # one wait for the device
                run.write(dict(zip(numbers, values, strict=True)))
            used.zero_()
        if run.is_main and run.is_due(run.config.sample_every):
            # diffusers' pipelines take seconds to import, which --help need not wait for.
            from arcvq.sampling.options import reconstruct
            from pipelines.figures.grids import plot_codebook, save_comparison

            load_average(run, tokenizer, averaged)
            originals, reconstructions, metrics = reconstruct(averaged, preview)
            if report := report_bad_images(test_set):
                run.warn(f"test split: {report}")
            numbers = metrics.result()
            run.write({f"test_{name}": value for name, value in numbers.items() if name != "images"})
            save_comparison(originals[:32], reconstructions[:32], run.picture("step"))
            if tokenizer.has_codes:
                codes = (numbers["usage"], numbers["perplexity"], quantizer.codebook_size)
                if warning := collapse.warning(run.counts, *codes):
                    run.warn(warning)
                plot_codebook(averaged.codebook.detach().cpu(), metrics.counts, run.picture("codebook"))

    load_average(run, tokenizer, averaged)
    folder = run.export("tokenizer", averaged.save_pretrained)
    if run.is_main:
        print(f"tokenizer: {folder}")
    return None


def load_average(run: Run, tokenizer: VQTokenizer, averaged: VQTokenizer) -> None:
    """Brings `averaged` up to date with the tokenizer in training, where it is another."""
    if averaged is not tokenizer:
        run.average.load_into(averaged)
        # What is no parameter has no average: counters, and tables that are means already.
        for buffer, current in zip(averaged.buffers(), tokenizer.buffers(), strict=True):
            buffer.copy_(current)
