"""Find and load trained tokenizers and pipelines on disk, and check that images fit them."""

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
    """Raise ValueError if the images do not have the tokenizer's channels and size."""
    given = (images.channels, images.image_size)
    expected = (tokenizer.config.in_channels, tokenizer.config.image_size)
    if given != expected:
        raise ValueError(
            f"the images of {images.name!r} have (channels, size) {given}, the tokenizer was trained on {expected}; "
            "set data.name, data.channels and data.image_size to what it was trained on"
        )


def note_other_data(folder: str, data: DataConfig) -> None:
    """Print a note if the run that wrote `folder` was trained on another data set, or on images held out in `data`."""
    for path in (Path(folder), Path(folder).parent):
        settings = read_settings(path / "config.yaml")
        if isinstance(settings.get("data"), dict):
            trained_on = settings["data"].get("name")
            if trained_on != data.name:
                print(f"note: {folder} was trained on {trained_on!r}; data.name is {data.name!r}")
            held_out = settings["data"].get("hold_out", 0)  # those of a smaller number are among those of a larger one
            if held_out < data.hold_out:
                print(
                    f"note: {folder} was trained with data.hold_out {held_out}, so on images of the {data.hold_out} "
                    "that are held out here"
                )
            return


def load_tokenizer(folder: str) -> VQTokenizer:
    """Load the tokenizer of a tokenizer folder, of a tokenizer's run folder, or of a pipeline folder."""
    return VQTokenizer.from_pretrained(find_tokenizer(folder)).eval()


def find_tokenizer(folder: str) -> Path:
    """Find the tokenizer's own folder: `folder`, or one inside this run folder or pipeline folder."""
    subfolders = ("", "tokenizer", "vqvae", "pipeline/vqvae")
    return _find(folder, "config.json", subfolders, "VQTokenizer", "train-tokenizer")


def load_pipeline(folder: str) -> "ClassConditionalPipeline":
    """Load the pipeline of a pipeline folder, or of a prior's run folder."""
    path = find_pipeline(folder)
    import pipelines  # with diffusers' UNets, which a tokenizer's training does without

    return getattr(pipelines, class_in(path / "model_index.json")).from_pretrained(path)


def find_pipeline(folder: str) -> Path:
    """Find the pipeline's own folder: `folder`, or the one inside this run folder."""
    return _find(folder, "model_index.json", ("", "pipeline"), " or ".join(PIPELINES), "train-ldm")


def _find(folder: str, index: str, subfolders: tuple[str, ...], classes: str, verb: str) -> Path:
    """Return the first of the `subfolders` whose index file names one of the classes."""
    if Path(folder).is_file():
        raise ValueError(f"{folder!r} is a file; name the folder that arcvq {verb} writes")
    if not Path(folder).is_dir():
        raise ValueError(f"folder {folder!r} is not there; arcvq {verb} writes one, or name another")
    for subfolder in subfolders:
        if class_in(Path(folder, subfolder, index)) in classes.split(" or "):
            return Path(folder, subfolder)
    for subfolder in ("", *ARTEFACTS):
        for file in (Path(folder, subfolder, name) for name in ("model_index.json", "config.json")):
            if file.is_file():
                read_json(file)  # raises an error that says what is wrong with a broken file
    content = what_it_holds(Path(folder))
    raise ValueError(f"folder {folder!r} should hold a {classes} as arcvq {verb} writes it, but holds {content}")
