"""Trains a tokenizer: images => runs/<name>/tokenizer.

accelerate launch scripts/train_tokenizer.py
accelerate launch scripts/train_tokenizer.py --config configs/mnist/arcvq.yaml
"""

from collections.abc import Sequence
from functools import partial

import torch
from command_line import ScriptParser, run_script
from common import Run
from run_options import OptimConfig, RunConfig
from sampling import reconstruct
from torch import Tensor
from torch.utils.data import Subset
from tqdm.auto import tqdm

from pipelines.pictures import plot_codebook, save_comparison
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, hold_in_memory, load_images, pixel_batches
from tokenizer.decoded import pixel_variance
from tokenizer.losses import normalised_mse
from tokenizer.model import TokenizerOutput
from tokenizer.quantizers import Quantizer
from tokenizer.usage import perplexity, usage

# Held-out images for the numbers and pictures of a training; scripts/evaluate.py takes all of them.
PREVIEW_IMAGES = 512


def make_parser() -> ScriptParser:
    """The options of this script."""
    parser = ScriptParser("Train an image tokenizer.", digits_config="tokenizer.yaml")
    parser.add_class_arguments(VQTokenizer, "model", skip={"in_channels", "image_size"})
    parser.add_argument(
        "--recon_norm", type=bool, default=True, help="divide the squared error by the variance of the training pixels"
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
    data = DataConfig(**config.data.as_dict())
    train_set, test_set = load_images(data, "train"), load_images(data, "test")
    run = Run(RunConfig(**config.run.as_dict()), OptimConfig(**config.optim.as_dict()), parser.settings(config))
    tokenizer = VQTokenizer(in_channels=train_set.channels, image_size=train_set.image_size, **config.model.as_dict())
    model = run.prepare(tokenizer, train_set, {"data": train_set.fingerprint()}, data.num_workers)
    run.dataset = hold_in_memory(train_set, data, partial(tqdm, desc="decoding train", disable=not run.is_main))
    quantizer = tokenizer.bottleneck
    variance = pixel_variance(pixel_batches(run.dataset, data.num_workers)) if config.recon_norm else 1.0
    if not variance > 0:
        raise ValueError(f"all pixels of {data.name!r} are equal: there is nothing to learn from them")
    preview = Subset(test_set, range(min(PREVIEW_IMAGES, len(test_set))))
    counts = torch.zeros(quantizer.codebook_size, dtype=torch.int64, device=run.device)

    for batch in run.steps():
        images = batch["images"]  # (B, C, H, W)
        output = model(images)
        loss, terms = total_loss(images, output, quantizer, variance)
        run.update(loss)
        quantizer.after_update()

        run.log(loss=loss, **terms)
        counts += output.counts
        if run.due(run.config.log_every):
            counts = run.accelerator.reduce(counts, "sum")
            numbers = {"train_usage": usage(counts), "train_perplexity": perplexity(counts), **quantizer.diagnostics()}
            values = torch.stack([value.float() for value in numbers.values()]).tolist()  # one wait for the device
            run.write(dict(zip(numbers, values, strict=True)))
            counts.zero_()
        if run.is_main and run.due(run.config.sample_every):
            originals, reconstructions, metrics = reconstruct(tokenizer, preview)
            run.write({f"test_{name}": value for name, value in metrics.result().items() if name != "images"})
            save_comparison(originals[:32], reconstructions[:32], run.picture("step"))
            plot_codebook(tokenizer.codebook.detach().cpu(), metrics.counts, run.picture("codebook"))

    folder = run.export("tokenizer", tokenizer.save_pretrained)
    if run.is_main:
        print(f"tokenizer: {folder}")


def total_loss(
    images: Tensor, output: TokenizerOutput, quantizer: Quantizer, variance: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """What is minimised (eq. 13), a scalar, and its terms by name, not weighted."""
    terms = {"reconstruction": normalised_mse(images, output.reconstruction, variance), **output.losses}
    weights = {"reconstruction": 1.0, **quantizer.loss_weights()}
    return sum(weights[name] * term for name, term in terms.items()), terms


if __name__ == "__main__":
    run_script(main)
