"""Make a frozen codebook from features of images, or reduce the codebook of a trained tokenizer.

python scripts/codebook.py features --data.name mnist --extractor alexnet --resize 64 --codebook_size 1024
python scripts/train_tokenizer.py --config configs/mnist/lc.yaml --codebook_file runs/codebook.safetensors ...
python scripts/codebook.py reduce runs/mnist-lc --codebook_size 256 --output runs/reduced
python scripts/evaluate.py reconstruction runs/reduced --data.name mnist
"""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from sklearn.cluster import MiniBatchKMeans
from torch.utils.data import Subset
from tqdm.auto import tqdm

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.script import fail
from arcvq.compute.atomic_files import atomic_folder
from arcvq.compute.devices import default_device, device_for
from arcvq.compute.precision import full_float32
from arcvq.compute.threads import use_all_cores
from arcvq.evaluation.networks import CHUNK
from arcvq.runs.results import load_tokenizer
from pipelines.metrics import to_uint8
from pipelines.metrics.extractors import ExtractorConfig, make_extractor
from pipelines.metrics.patch_features import patch_features
from tokenizer.codebook_file import save_codebook_file
from tokenizer.codebook_reduction import reduced_codebook
from tokenizer.data import DataConfig, evaluation_batches
from tokenizer.data.subsets import evenly_spaced_images
from tokenizer.losses.lpips import WeightFiles

FEATURES_HELP = HelpPage(
    common=("extractor", "codebook_size", "num_images", "seed", "output", "resize", "data.name", "data.image_size"),
    examples=(
        "arcvq codebook features --data.name mnist --extractor alexnet --resize 64",
        "arcvq codebook features --data.name cifar10 --extractor dinov2 --codebook_size 16384",
    ),
    writes="OUTPUT: a safetensors file with the frozen codebook, for quantizer lc",
    following="arcvq train-tokenizer --config mnist/lc.yaml --codebook_file OUTPUT, with the options that it prints",
)
REDUCE_HELP = HelpPage(
    examples=("arcvq codebook reduce runs/mnist-lc --codebook_size 256 --output runs/reduced",),
    writes="OUTPUT: a tokenizer folder with fewer codes",
    following="arcvq evaluate reconstruction OUTPUT",
)


@full_float32()
def features(args: Sequence[str]) -> None:
    """Write the k-means centroids of features of training images, of patches or of whole images."""
    parser = ScriptParser("Make a frozen codebook of features of images, for quantizer lc.", page=FEATURES_HELP)
    parser.add_argument(
        "--extractor", type=str, default="alexnet", help="alexnet and dinov2 give features of patches, others of images"
    )
    parser.add_argument("--codebook_size", type=int, default=1024, help="K, the number of centroids")
    parser.add_argument("--num_images", type=int, default=10_000, help="training images, evenly spaced")
    parser.add_argument("--seed", type=int, default=0, help="of the k-means")
    parser.add_argument("--output", type=str, default="runs/codebook.safetensors", help="file to write")
    parser.add_class_arguments(ExtractorConfig, skip={"fid_input_229", "weights"})
    parser.add_class_arguments(WeightFiles, "weights")
    parser.add_class_arguments(DataConfig, "data")
    config = parser.parse(args)
    if Path(config.output).exists():
        raise ValueError(f"{config.output!r} exists; name another file")
    check_means(config.seed)
    if config.num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {config.num_images}")
    images = announced_splits(config.data).train
    use_all_cores()
    settings = {field.name: config[field.name] for field in fields(ExtractorConfig) if field.name in config}
    extractor = make_extractor(config.extractor, ExtractorConfig(**settings))
    extractor.check_size(images.image_size, images.image_size)
    extractor.to(device_for(extractor.place.dtype, default_device()))
    chosen = Subset(images, evenly_spaced_images(images, config.num_images))
    batches = tqdm(evaluation_batches(chosen, batch_size=CHUNK), desc=extractor.name)
    points = torch.cat([patch_features(extractor, to_uint8(batch["images"])) for batch in batches])
    if not 0 < config.codebook_size <= len(points):
        raise ValueError(
            f"codebook_size {config.codebook_size} needs as many features, and there are {len(points):,} of "
            f"{len(chosen):,} images; lower it, or raise num_images"
        )
    means = MiniBatchKMeans(config.codebook_size, batch_size=4096, n_init=1, random_state=config.seed)
    table = torch.from_numpy(means.fit(points.numpy()).cluster_centers_).float()
    save_codebook_file(table, Path(config.output))
    print(f"codebook of {len(table):,} means of {len(points):,} features of {extractor.name}: {config.output}")
    print(
        f"to train with it: --codebook_file {config.output} --model.quantizer lc --model.codebook_size {len(table)} "
        f"--model.quantizer_options.feature_dim {table.shape[1]}"
    )


def reduce(args: Sequence[str]) -> None:
    """Write a tokenizer with fewer codes, the k-means centroids of its codebook."""
    parser = ScriptParser("Reduce the codebook of a trained tokenizer by k-means.", page=REDUCE_HELP)
    parser.add_argument("folder", type=str, help="tokenizer's folder, or its run folder")
    parser.add_argument("--codebook_size", type=int, required=True, help="K', below the tokenizer's own")
    parser.add_argument("--seed", type=int, default=0, help="of the k-means")
    parser.add_argument("--output", type=str, default="runs/reduced", help="folder to write; must not be there yet")
    config = parser.parse(args)
    output = Path(config.output)
    if output.exists():
        raise ValueError(f"{config.output!r} exists; name another folder")
    check_means(config.seed)
    use_all_cores()
    tokenizer = load_tokenizer(config.folder)
    reduced = reduced_codebook(tokenizer, config.codebook_size, config.seed)
    with atomic_folder(output) as unfinished:
        reduced.save_pretrained(unfinished)
    print(f"tokenizer with {config.codebook_size:,} of {tokenizer.config.codebook_size:,} codes: {output}")


def check_means(seed: int) -> None:
    """Raise ValueError for a seed that scikit-learn's k-means does not accept."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be at least 0 and below 2^32, got {seed}")


VERBS = {"features": features, "reduce": reduce}


def main(args: Sequence[str] | None = None) -> None:
    """Run `features` or `reduce`, as the first word says, with the other words as its arguments."""
    verb, *others = (sys.argv[1:] if args is None else args) or [""]
    if verb not in VERBS:
        fail(f"say {' or '.join(VERBS)} first{f', not {verb!r:.80}' if verb else ''}; each has --help")
    VERBS[verb](others)
