"""Train a tokenizer: images => runs/<name>/tokenizer.

accelerate launch scripts/train_tokenizer.py
accelerate launch scripts/train_tokenizer.py --config configs/mnist/arcvq.yaml
"""

import copy
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor
from torch.utils.data import Dataset, Subset
from tqdm.auto import tqdm

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.runs.named_scalars import Terms
from arcvq.runs.options import OptimConfig, RunConfig, check_run, check_share
from arcvq.runs.run import Run
from arcvq.training.adversary import AdversarialConfig, Adversary
from arcvq.training.collapse import CollapseConfig
from arcvq.training.graphed_step import GraphedStep, graph_hindrance
from arcvq.training.memory_check import check_memory
from arcvq.training.parts import TrainingParts
from arcvq.training.reconstruction_loss import LossConfig, ReconstructionLoss
from arcvq.training.schedule_length import (
    add_schedule_option,
    check_schedule,
    described_schedule,
    scaled_rates,
    with_scaled_rates,
)
from arcvq.training.start_from import add_start_options, check_start, load_start
from arcvq.training.tokenizer_step import TokenizerUpdate
from tokenizer import VQTokenizer
from tokenizer.codebook_file import load_codebook_file
from tokenizer.data import DataConfig, ImageDataset, StreamedImages, load_into_memory, pixel_batches
from tokenizer.data.bad_images import report_bad_images
from tokenizer.data.in_memory import pixel_variance
from tokenizer.data.subsets import evenly_spaced_images
from tokenizer.functional.usage import perplexity, usage
from tokenizer.losses.lpips import WeightFiles
from tokenizer.networks import NETWORKS, check_network, network_options
from tokenizer.quantizers import QUANTIZERS, check_quantizer, quantizer_options

# Held-out images for the numbers and pictures of a training; arcvq evaluate takes all of them.
PREVIEW_IMAGES = 512

HELP = HelpPage(
    common=(
        *("config", "dry_run", "ema_decay", "data.name", "data.image_size", "data.num_workers"),
        *("model.network", "model.quantizer", "model.codebook_size", "model.codebook_dim", "model.hidden_channels"),
        *("loss.perceptual_weight", "adversarial.weight", "optim.max_steps", "optim.batch_size", "optim.lr"),
        *("run.name", "run.output_dir", "run.seed", "run.mixed_precision"),
    ),
    examples=(
        "arcvq train-tokenizer",
        "arcvq train-tokenizer --config mnist/arcvq.yaml --optim.max_steps 2000 --run.name arc",
        "accelerate launch -m arcvq train-tokenizer --config imagenet/arcvq_f8.yaml --dry_run",
    ),
    writes="OUTPUT_DIR/NAME/tokenizer; checkpoints, metrics.jsonl and samples next to it",
    following="arcvq train-ldm --tokenizer runs/tokenizer, or train-pixelcnn, or evaluate",
)


def main(args: Sequence[str] | None = None) -> None:
    """Train with the options of a command line; see `train`."""
    parser = make_parser()
    config = parser.parse(args)
    train(config, parser.settings(config))


def train(config: Namespace, settings: dict[str, Any]) -> None:
    """Train, or resume, until `optim.max_steps`, and write the tokenizer.

    Args:
        config: the parsed options.
        settings: the same as plain values, to be stored in the run folder.
    """
    # --- data and run ---
    check(config)
    splits = announced_splits(config.data)
    run = Run(config.run, config.optim, settings)
    run.data = str(splits)
    if config.schedule_length is not None and run.is_main:
        print(described_schedule(config))

    # --- networks ---
    check_memory(run, partial(make_tokenizer, config, splits.train), "model.hidden_channels or model.codebook_size")
    training = set_up(run, config, splits.train)
    progress = partial(tqdm, desc="decoding train", disable=not run.is_main)
    run.dataset = load_into_memory(splits.train, config.data, progress)
    if config.recon_norm and config.loss.pixel == "mse":
        training.reconstruction_loss.pixel_variance = variance_of(run.dataset, config.data)
    preview = Subset(splits.held_out, evenly_spaced_images(splits.held_out, PREVIEW_IMAGES))

    # --- steps ---
    for batch in run.steps(whole=True):
        training.step(batch)
        if run.is_due(run.config.log_every):
            log_quantizer(training)
        if run.is_main and run.is_due(run.config.sample_every):
            log_preview(training, preview, config.collapse)

    # --- result ---
    training.load_average()
    folder = run.export("tokenizer", training.averaged.save_pretrained)
    if run.is_main:
        print(f"tokenizer: {folder}")


def make_parser() -> ScriptParser:
    """Declare the options."""
    parser = ScriptParser("Train an image tokenizer.", "tokenizer.yaml", HELP)
    parser.add_class_arguments(VQTokenizer, "model", skip={"in_channels", "image_size"})
    parser.explain("model.network", f"encoder and decoder: {', '.join(NETWORKS)}")
    parser.explain("model.quantizer", f"method of quantization: {', '.join(QUANTIZERS)}")
    parser.names_within = {
        "model.network_options": network_options,
        "model.quantizer_options": quantizer_options,
    }
    parser.add_argument(
        "--codebook_file",
        type=str | None,
        default=None,
        help="of quantizer lc: its frozen table, as arcvq codebook features writes it; None: a random one",
    )
    add_schedule_option(parser)
    add_start_options(parser)
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
    parser.set_defaults({"run.name": "tokenizer"})
    return parser


def check(config: Namespace) -> None:
    """Raise ValueError for options that cannot work, before time is spent."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ValueError("FSDP shards the UNet of arcvq train-ldm; launch this with configs/accelerate/eight_gpus.yaml")
    check_run(config)
    check_network(config.model.network, config.model.network_options or {})
    check_quantizer(config.model.quantizer, config.model.quantizer_options or {})
    check_schedule(config)
    check_start(config)
    config.loss.check()
    config.adversarial.check(config.optim.max_steps)
    config.collapse.check()
    if config.ema_decay is not None:
        check_share("ema_decay", config.ema_decay)


def make_tokenizer(config: Namespace, images: ImageDataset | StreamedImages) -> VQTokenizer:
    """Build the tokenizer for images of this size and number of channels, with random weights."""
    tokenizer = VQTokenizer(in_channels=images.channels, image_size=images.image_size, **with_scaled_rates(config))
    if config.stage == "decoder":
        tokenizer.freeze_codes()
    return tokenizer


@dataclass(frozen=True)
class TokenizerTraining:
    """A tokenizer in training.

    Attributes:
        run: the run that trains it.
        tokenizer: the tokenizer whose weights the optimizer updates.
        averaged: the tokenizer that is saved: a copy with averaged weights, or the same one.
        reconstruction_loss: the loss on its reconstructions.
        adversary: the discriminator that it trains against, or None.
        update: makes the tokenizer's part of a step.
        used_codes: (K,) int64, how often this process has used each code since the last line of the log.
    """

    run: Run
    tokenizer: VQTokenizer
    averaged: VQTokenizer
    reconstruction_loss: ReconstructionLoss
    adversary: Adversary | None
    update: TokenizerUpdate
    used_codes: Tensor

    def step(self, batch: dict[str, Tensor]) -> None:
        """Make a step on a batch's `images` (B, C, H, W) in [-1, 1]."""
        if self.graphed is None:
            self.compute(batch["images"])
        else:
            self.graphed(batch["images"])
        self.run.end_step()

    def compute(self, images: Tensor) -> None:
        """Update the tokenizer, then the discriminator, on images (B, C, H, W), and record the step on the device."""
        parts = images.chunk(self.run.optim.accumulation)
        output = self.update(parts, self.run.noise_seed)
        if self.adversary is not None:
            renews = self.adversary.config.fresh_reconstructions and self.adversary.is_training
            reconstructions = self.update.reconstruct(parts) if renews else output.reconstructions
            terms = self.adversary.update(parts, reconstructions)
            output = replace(output, terms=output.terms | Terms.stack(terms)) if terms else output
        self.run.record_step(output.updated, output.terms)
        if output.counts is not None:
            self.used_codes.add_(output.counts)

    @cached_property
    def graphed(self) -> GraphedStep | None:
        """The step as a CUDA graph, if the run captures it."""
        return GraphedStep(self.compute) if self.run.captures else None

    def parts(self) -> TrainingParts:
        """Name the networks."""
        tokenizer = self.tokenizer
        trained = {"encoder": tokenizer.encoder, "quantizer": tokenizer.bottleneck, "decoder": tokenizer.decoder}
        if self.adversary is not None:
            trained["discriminator"] = self.adversary.discriminator
        averages = [] if self.averaged is tokenizer else [self.averaged]
        return TrainingParts(trained, self.reconstruction_loss.networks, averages)

    def load_average(self) -> None:
        """Bring `averaged` up to date, where it is a copy."""
        if self.averaged is self.tokenizer:
            return
        self.run.average.load_into(self.averaged)
        # Buffers have no average: they are counters, or tables that are means already.
        for buffer, current in zip(self.averaged.buffers(), self.tokenizer.buffers(), strict=True):
            buffer.copy_(current)


def set_up(run: Run, config: Namespace, images: ImageDataset | StreamedImages) -> TokenizerTraining:
    """Build the networks and the optimizers, and load the newest checkpoint.

    Raises:
        ValueError: options that cannot work.
    """
    tokenizer = make_tokenizer(config, images)
    inputs = {"data": images.fingerprint()}
    if rates := scaled_rates(config):  # those of another length would be another schedule
        inputs["schedule_length"] = json.dumps(rates)
    if config.start_from is not None:
        inputs["start_from"] = load_start(tokenizer, config.start_from)
    if config.codebook_file is not None:
        inputs["codebook_file"] = load_codebook_file(tokenizer.bottleneck, Path(config.codebook_file))
    tokenizer.bottleneck.set_total_steps(run.optim.max_steps)
    tokens = math.prod(tokenizer.latent_shape[1:])
    processes = run.accelerator.num_processes
    if not tokenizer.codes_are_frozen:
        tokenizer.bottleneck.check_batch(run.optim.batch_size // processes * tokens, processes)
    if config.run.cuda_graph:
        run.capture(unless=graph_hindrance(run, tokenizer, bool(config.adversarial.weight)))
    averaged = tokenizer if config.ema_decay is None else copy.deepcopy(tokenizer).to(run.device)
    adversary = None
    if config.adversarial.weight:
        decodes = tokenizer.bottleneck.decodes
        adversary = Adversary(run, config.adversarial, images.channels, images.image_size, decodes)
    reconstruction_loss = ReconstructionLoss(config.loss, config.weights, images.image_size, run.device)
    if adversary:  # a share of a longer training is a later step: the adversarial loss would stop again
        inputs["step of adversarial.disc_start"] = str(config.adversarial.start(run.optim.max_steps))
    run.prepare(tokenizer, images, inputs, config.data.num_workers, config.ema_decay)
    if adversary:
        adversary.resume()
    update = TokenizerUpdate(run.accelerator, run.main, reconstruction_loss, adversary)
    used_codes = run.counter("used codes", tokenizer.bottleneck.codebook_rows)
    return TokenizerTraining(run, tokenizer, averaged, reconstruction_loss, adversary, update, used_codes)


def variance_of(images: Dataset, data: DataConfig) -> float:
    """Measure the variance of the training pixels. Raises ValueError where all of them are equal."""
    variance = pixel_variance(pixel_batches(images, data.num_workers))
    if not variance > 0:
        raise ValueError(f"all pixels of {data.name!r} are equal: there is nothing to learn from them")
    return variance


def log_quantizer(training: TokenizerTraining) -> None:
    """Log the quantizer's diagnostics, and how all processes have used the codebook since the last time."""
    run, tokenizer = training.run, training.tokenizer
    numbers = tokenizer.bottleneck.diagnostics()
    if tokenizer.has_codes:
        counts = run.accelerator.reduce(training.used_codes, "sum")
        numbers |= {"train_usage": usage(counts), "train_perplexity": perplexity(counts)}
        training.used_codes.zero_()
    if numbers:
        values = torch.stack([value.float() for value in numbers.values()]).tolist()  # one wait for the device
        run.write(dict(zip(numbers, values, strict=True)))


def log_preview(training: TokenizerTraining, images: Subset, collapse: CollapseConfig) -> None:
    """Measure the reconstructions of held-out images, draw them and the codebook, and warn where it collapses."""
    # diffusers' pipelines take seconds to import, which --help need not wait for.
    from arcvq.sampling.reconstructions import reconstruct
    from pipelines.figures.grids import plot_codebook, save_comparison

    run, averaged = training.run, training.averaged
    training.load_average()
    originals, reconstructions, metrics = reconstruct(averaged, images)
    if report := report_bad_images(images.dataset):
        run.warn(f"test split: {report}")
    numbers = metrics.result()
    run.write({f"test_{name}": value for name, value in numbers.items() if name != "images"})
    save_comparison(originals[:32], reconstructions[:32], run.picture("step"))
    if averaged.has_codes:
        codes = (numbers["usage"], numbers["perplexity"], averaged.bottleneck.codebook_rows)
        if warning := collapse.warning(run.counts, *codes):
            run.warn(warning)
        plot_codebook(averaged.codebook, metrics.counts, run.picture("codebook"))
