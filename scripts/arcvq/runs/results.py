"""What the second stage starts from: a trained tokenizer, or pipeline, found on disk; whether images fit to it."""

from pathlib import Path
from typing import TYPE_CHECKING

from arcvq.runs.settings import ARTEFACTS, read_settings
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, ImageDataset, StreamedImages
from tokenizer.loading.json_config import read_json
from tokenizer.loading.result_folders import class_in, what_it_holds

if TYPE_CHECKING:
    from pipelines.class_conditional import ClassConditionalPipeline

# Classes of the package `pipelines`.
PIPELINES = ("ArcVQLDMPipeline", "ArcVQPixelCNNPipeline")


def check_images(tokenizer: VQTokenizer, images: ImageDataset | StreamedImages) -> None:
    """Raises ValueError where the images are not of the tokenizer's channels and size."""
    ours = (images.channels, images.image_size)
    theirs = (tokenizer.config.in_channels, tokenizer.config.image_size)
    if ours != theirs:
        raise ValueError(
            f"the images of {images.name!r} have (channels, size) {ours}, the tokenizer was trained on {theirs}; "
            "set data.name, data.channels and data.image_size to what it was trained on"
        )


def note_other_data(folder: str, data: DataConfig) -> None:
    """Says so where the run that wrote `folder` was trained on another data set than `data`."""
    for place in (Path(folder), Path(folder).parent):
        settings = read_settings(place / "config.yaml")
        if isinstance(settings.get("data"), dict):
            trained_on = settings["data"].get("name")
            if trained_on != data.name:
                print(f"note: {folder} was trained on {trained_on!r}; data.name is {data.name!r}")
            return


def load_tokenizer(folder: str) -> VQTokenizer:
    """The tokenizer in a tokenizer folder, in a run folder of train_tokenizer.py, or in a pipeline folder."""
    return VQTokenizer.from_pretrained(find_tokenizer(folder)).eval()


def find_tokenizer(folder: str) -> Path:
    """The tokenizer's own folder: `folder`, or the one in a run folder or in a pipeline folder."""
    places = ("", "tokenizer", "vqvae", "pipeline/vqvae")
    return _find(folder, "config.json", places, "VQTokenizer", "train_tokenizer")


def load_pipeline(folder: str) -> "ClassConditionalPipeline":
    """The pipeline in a pipeline folder, or in a run folder of train_ldm.py or train_pixelcnn.py."""
    path = find_pipeline(folder)
    import pipelines  # with diffusers' UNets, which a tokenizer's training does without

    return getattr(pipelines, class_in(path / "model_index.json")).from_pretrained(path)


def find_pipeline(folder: str) -> Path:
    """The pipeline's own folder: `folder`, or the one in a run folder."""
    return _find(folder, "model_index.json", ("", "pipeline"), " or ".join(PIPELINES), "train_ldm")


def _find(folder: str, index: str, places: tuple[str, ...], classes: str, script: str) -> Path:
    """The first of the `places` below `folder` whose index file names one of the classes."""
    if Path(folder).is_file():
        raise ValueError(f"{folder!r} is a file; name the folder that scripts/{script}.py writes")
    if not Path(folder).is_dir():
        raise ValueError(f"folder {folder!r} is not there; scripts/{script}.py writes one, or name another")
    for place in places:
        if class_in(Path(folder, place, index)) in classes.split(" or "):
            return Path(folder, place)
    indices = [Path(folder, place, name) for place in ("", *ARTEFACTS) for name in ("model_index.json", "config.json")]
    for index in indices:
        if index.is_file():
            read_json(index)  # which says what is wrong with a broken one
    held = what_it_holds(Path(folder))
    raise ValueError(f"folder {folder!r} should hold a {classes} as scripts/{script}.py writes it, but holds {held}")
