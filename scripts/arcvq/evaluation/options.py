"""The options that evaluate and its comparison of schedulers share."""

from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter

from jsonargparse import Namespace

from arcvq.cli.parser import ScriptParser
from arcvq.sampling.options import SamplingConfig, SpeedConfig
from arcvq.sampling.writers import FORMATS
from pipelines.metrics.protocols import PROTOCOLS
from tokenizer.data import DataConfig
from tokenizer.losses.lpips import WeightFiles

# Options of sampling, without effect on images in files.
SAMPLED = (
    "seed",
    "labels",
    "batch_size",
    "save_images",
    *(f"sampling.{field.name}" for field in fields(SamplingConfig)),
    *(f"speed.{field.name}" for field in fields(SpeedConfig)),
)
RECONSTRUCTION, GENERATION, STATISTICS = "reconstruction", "generation", "statistics"
DEFAULT_FOLDERS = {RECONSTRUCTION: ("runs/tokenizer",), GENERATION: ("runs/ldm", "runs/pixelcnn")}
# Options that compare images with originals.
PAIRED = ("lpips", "ssim_window")
# Options without effect, by task.
UNUSED = {
    RECONSTRUCTION: (*SAMPLED, "reference"),
    GENERATION: PAIRED,
    STATISTICS: (*SAMPLED, *PAIRED, "protocol"),
}


def add_measuring_options(parser: ScriptParser) -> None:
    """Add the options that say what is measured, and how."""
    parser.add_argument(
        "--protocol", choices=list(PROTOCOLS), default=None, help="None: rfid; of samples torch-fidelity, or adm"
    )
    parser.add_argument(
        "--num_images", type=int | None, default=None, help="None: 500 samples, or all images of the files or the split"
    )
    parser.add_argument("--seed", type=int, default=0, help="the samples have the seeds from this one on")
    parser.add_argument("--labels", choices=["balanced", "random"], default="balanced", help="classes of the samples")
    parser.add_argument("--batch_size", type=int, default=100, help="images sampled at once")
    parser.add_argument(
        "--reference", type=str, default="test", help="train or test split of the data, or a file of statistics"
    )
    parser.add_argument(
        "--extractor",
        type=str | None,
        default=None,
        help="inception, alexnet, dinov2 or digits-classifier; None: the last for the digits, inception for samples",
    )
    parser.add_argument("--resize", type=int | None, default=None, help="side of the extractor's images in pixels")
    parser.add_argument("--dinov2", type=str, default="facebook/dinov2-large", help="id on the Hub, or folder")
    parser.add_argument(
        "--lpips", choices=["alex", "vgg", "squeeze"], default=None, help="network of LPIPS; None: none"
    )
    parser.add_argument("--ssim_window", choices=["uniform", "gaussian"], default="uniform", help="window of SSIM")
    parser.add_argument(
        "--dtype",
        choices=["float64", "float32"],
        default="float64",
        help="of the networks that measure; with float32 the sixth digit depends on the batch",
    )
    parser.add_argument("--save_images", choices=list(FORMATS), default=None, help="keep the samples, in this form")
    parser.add_argument("--cache_dir", type=str, default="runs/cache", help="where features of real images are kept")
    parser.add_class_arguments(WeightFiles, "weights")
    parser.add_class_arguments(SamplingConfig, "sampling")
    parser.add_class_arguments(SpeedConfig, "speed")
    parser.add_class_arguments(DataConfig, "data")


def refuse_unused(config: Namespace, defaults: Namespace, names: Sequence[str], what: str) -> None:
    """Raise ValueError if one of these options is set, because it has no effect on what is measured."""
    for name in names:
        value = attrgetter(name)(config)
        if value != attrgetter(name)(defaults):
            raise ValueError(f"--{name} {value} changes nothing {what}: leave it out")
