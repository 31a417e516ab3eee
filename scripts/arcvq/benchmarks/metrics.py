"""Compare our metrics with those of torch-fidelity and scikit-image on the same images => a table and a JSON file.

python scripts/benchmark.py metrics --data.name cifar10
python scripts/benchmark.py metrics --data.name cifar10 --weights.inception random

The images are those of the test split and their JPEGs of quality 10. Each row is one metric, computed by both
implementations. `--weights.inception random` draws Inception's weights where the published ones are not available: the
numbers mean nothing, but both implementations must agree.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch_fidelity
from accelerate import PartialState
from jsonargparse import Namespace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.io import decode_jpeg, encode_jpeg
from tqdm.auto import tqdm

from arcvq.cli.announced_data import announced_splits
from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import provenance
from arcvq.compute.threads import use_all_cores
from arcvq.evaluation.image_sources import DataSetImages
from arcvq.evaluation.networks import check_count, refuse_skipping
from pipelines.metrics import distribution_metrics, extract_features, pair_metrics
from pipelines.metrics.extractors import INCEPTION, Extractor, ExtractorConfig, make_extractor
from tokenizer.data import DataConfig
from tokenizer.losses.lpips import WeightFiles

QUALITY = 10  # of the JPEG
KEYS = {
    "frechet_distance": torch_fidelity.KEY_METRIC_FID,
    "inception_score": torch_fidelity.KEY_METRIC_ISC_MEAN,
    "inception_score_std": torch_fidelity.KEY_METRIC_ISC_STD,
    "precision": torch_fidelity.KEY_METRIC_PRECISION,
    "recall": torch_fidelity.KEY_METRIC_RECALL,
}
RANDOM = "random"

HELP = HelpPage(
    common=("num_images", "extractors", "resize", "output", "weights.inception", "data.name", "data.image_size"),
    examples=(
        "arcvq benchmark metrics --data.name cifar10",
        "arcvq benchmark metrics --data.name cifar10 --weights.inception random",
    ),
    writes="OUTPUT: a JSON file with each metric by both implementations",
    following="arcvq evaluate measures a model by these metrics",
)


def main(args: Sequence[str] | None = None) -> None:
    """Compute every metric by both implementations, print the table and write it."""
    parser = ScriptParser("Compare our metrics with those of torch-fidelity and scikit-image.", page=HELP)
    parser.add_argument("--num_images", type=int, default=2000, help="images of the test split, from the first on")
    parser.add_argument("--extractors", type=str, default="alexnet,inception", help="by name, with commas; '': none")
    parser.add_argument("--resize", type=int | None, default=None, help="side of AlexNet's images in pixels")
    parser.add_argument("--output", type=str, default="runs/metrics.json", help="JSON file of the results")
    parser.add_class_arguments(WeightFiles, "weights")
    parser.add_class_arguments(DataConfig, "data")
    config = parser.parse(args)
    refuse_skipping(config)
    PartialState()
    use_all_cores()
    images = announced_splits(config.data).held_out
    check_count(config.num_images, len(images), f"images in the {images.split} split of {images.name}")
    source = DataSetImages(images, config.num_images)
    originals = torch.stack(list(tqdm(source, desc="images"))).expand(-1, 3, -1, -1)
    distorted = torch.stack([decode_jpeg(encode_jpeg(image.contiguous(), QUALITY)) for image in originals])

    rows = pair_rows(originals, distorted)
    for name in filter(None, config.extractors.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            extractor, weights = measured_by(name, config, Path(folder))
            rows += distribution_rows(extractor, weights, originals, distorted)
    facts = {"data": images.name, "split": "test", "images": len(source), "fingerprint": source.fingerprint}
    protocol = facts | {
        "distortion": f"JPEG, quality {QUALITY}",
        **provenance("benchmark metrics", args, ["scikit-image"]),
    }
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"protocol": protocol, "results": rows}, indent=2) + "\n")
    for row in rows:
        print("  {number:44}{ours:14.8f}  {peer:14}{theirs:14.8f}  largest difference {difference:.1e}".format(**row))
    print(f"results: {output}")


def row_of(number: str, ours: Tensor | float, peer: str, theirs: Tensor | float) -> dict[str, Any]:
    """Make a row of the table: both means, and the largest difference of any image."""
    ours, theirs = (torch.as_tensor(value, dtype=torch.float64) for value in (ours, theirs))
    difference = (ours - theirs).abs().max().item()
    return {
        "number": number,
        "ours": ours.mean().item(),
        "peer": peer,
        "theirs": theirs.mean().item(),
        "difference": difference,
    }


def pair_rows(originals: Tensor, distorted: Tensor) -> list[dict[str, Any]]:
    """Compare PSNR and SSIM of each pair with scikit-image's."""
    ours = pair_metrics(originals, distorted) | pair_metrics(originals, distorted, ssim_window="gaussian")
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    theirs: dict[str, list[float]] = {"psnr": [], "ssim": [], "ssim-gaussian": []}
    for pair in zip(tqdm(originals, desc="scikit-image"), distorted, strict=True):
        a, b = (image.permute(1, 2, 0).numpy() for image in pair)
        theirs["psnr"].append(peak_signal_noise_ratio(a, b, data_range=255))
        options = {"data_range": 255, "win_size": 11, "channel_axis": -1}
        theirs["ssim"].append(structural_similarity(a, b, **options))
        theirs["ssim-gaussian"].append(structural_similarity(a, b, **options, **gaussian))
    return [row_of(name, ours[name], "scikit-image", torch.tensor(values)) for name, values in theirs.items()]


def measured_by(name: str, config: Namespace, folder: Path) -> tuple[Extractor, Path | None]:
    """Return our extractor, in float32 as torch-fidelity's, and the file of Inception's weights."""
    weights = config.weights
    if name != "inception":
        return make_extractor(name, ExtractorConfig(resize=config.resize, weights=weights, double=False)), None
    if weights.inception == RANDOM:
        file = folder / "random.pth"
        torch.save(random_inception(), file)
        weights = replace(weights, inception=str(file), accept_sha256=sha256(file.read_bytes()).hexdigest())
    extractor = make_extractor(name, ExtractorConfig(weights=weights, double=False))
    file = folder / "inception.pth"  # torch-fidelity unpickles its file, so it gets one written from checked tensors
    torch.save(weights.read(INCEPTION)[0], file)
    return extractor, file


def random_inception() -> dict[str, Tensor]:
    """Draw Inception's tensors from seed 0, so that features and logits differ from image to image."""

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
            """Keep the random weights."""

    with torch.random.fork_rng(devices=[]), tempfile.NamedTemporaryFile() as file:
        torch.manual_seed(0)
        torch.save({}, file.name)
        network = Untrained("random", ["2048"], feature_extractor_weights_path=file.name)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(network.fc.weight, std=0.2)
        return network.state_dict()


def distribution_rows(
    extractor: Extractor, weights: Path | None, originals: Tensor, distorted: Tensor
) -> list[dict[str, Any]]:
    """Compare Frechet distance, precision, recall and, with logits, Inception score with torch-fidelity's."""
    sets = Images(distorted, "ours, samples"), Images(originals, "ours, reference")
    (features, logits), (reference, _) = (extract_features(images, extractor) for images in sets)
    ours = distribution_metrics(features, logits, reference)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(distorted, "torch-fidelity, samples"),
        input2=Images(originals, "torch-fidelity, reference"),
        isc=logits is not None,
        fid=True,
        prc=True,
        feature_extractor="inception-v3-compat" if weights is not None else registered(extractor),
        feature_extractor_weights_path=None if weights is None else str(weights),
        feature_layer_fid="2048" if weights is not None else "features",
        feature_layer_prc="2048" if weights is not None else "features",
        prc_neighborhood=3,
        save_cpu_ram=True,
        cache=False,
        cuda=False,
        verbose=False,
    )
    return [row_of(f"{name}[{extractor.name}]", ours[name], "torch-fidelity", theirs[KEYS[name]]) for name in ours]


def registered(extractor: Extractor) -> str:
    """Register our extractor with torch-fidelity, and return its name there."""

    class Registered(torch_fidelity.FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **kwargs: Any):  # kwargs: all of calculate_metrics's
            super().__init__(name, features_list)
            self.extractor = extractor

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (self.extractor.extract(images)[0].double(),)

    name = f"ours-{extractor.name}-{extractor.sha256[:8]}"
    torch_fidelity.register_feature_extractor(name, Registered)
    return name


class Images(Dataset):
    """uint8 (N, 3, H, W), with a progress bar over one pass."""

    def __init__(self, images: Tensor, title: str):
        self.images = images
        self.bar = tqdm(total=len(images), desc=title, unit="image")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        if index >= self.bar.n:
            self.bar.update(index + 1 - self.bar.n)
        return self.images[index]
