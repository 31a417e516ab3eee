"""A small classifier of the embedded digits, trained here: features and class predictions for generated digits."""

import copy
import hashlib
import os
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.metrics.extractors import Extractor, register_extractor
from tokenizer.data import DataConfig, load_images
from tokenizer.functional.float64 import as_float64

NAME = "digits-classifier"
IMAGE_SIZE = 32
RECIPE = "1"  # part of the cached file's name; increase it when the network, its training or the digits change
TRAINING_STEPS = 600
BATCH_SIZE = 64
MAX_LEARNING_RATE = 3e-3
MAX_SHIFT = 2  # pixels


class DigitClassifier(nn.Module):
    """Classifier of grey digits with features and logits; independent of training mode and batch size."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GroupNorm(4, 16), nn.ReLU()),  # 16x16
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.ReLU()),  # 8x8
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(4, 64), nn.ReLU()),  # 4x4
            *(nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.ReLU()),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features float32 (B, 64) and logits float32 (B, 10) of images float32 (B, 1, 32, 32) in [-1, 1]."""
        features = self.trunk(images)
        return features, self.head(features)


def train_digit_classifier(seed: int = 0, steps: int = TRAINING_STEPS) -> DigitClassifier:
    """Train a classifier on the train split of the digits, shifted by up to 2 pixels; a few seconds on one core.

    The weights are a function of `seed` and `steps`, up to rounding that depends on the processor. The global random
    state and the number of threads are restored.
    """
    dataset = load_images(DataConfig(name="digits"), "train")
    items = [dataset[index] for index in range(len(dataset))]
    images = torch.stack([item["images"] for item in items])
    labels = torch.stack([item["labels"] for item in items])
    images = F.pad(images, (MAX_SHIFT,) * 4, value=-1.0)  # room for shifts, filled with the black background
    generator = torch.Generator().manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the number of threads would change the rounding of sums, and so the weights
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the accelerators
            classifier = DigitClassifier()
            optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LEARNING_RATE, total_steps=steps)
            for _ in range(steps):
                rows = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
                top, left = torch.randint(2 * MAX_SHIFT + 1, (2,), generator=generator).tolist()
                batch = images[rows, :, top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
                loss = F.cross_entropy(classifier(batch)[1], labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return classifier.requires_grad_(False).eval()


def digit_classifier(cache_dir: str | Path) -> DigitClassifier:
    """Load the classifier cached in `cache_dir`; train and store it first if missing.

    Raises:
        ValueError: the cached file is damaged or of another network.
    """
    recipe = f"{RECIPE} {TRAINING_STEPS} {BATCH_SIZE} {MAX_LEARNING_RATE} {MAX_SHIFT}"
    path = Path(cache_dir, f"digits-classifier-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}.safetensors")
    if not path.is_file():
        classifier = train_digit_classifier()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed: whoever reads meanwhile, or after an interruption, sees a whole file or none.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(safetensors.torch.save(classifier.state_dict()))
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return classifier
    with torch.random.fork_rng(devices=[]):  # the discarded initial weights consume random numbers
        classifier = DigitClassifier()
    try:
        classifier.load_state_dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no digit classifier ({reason}); delete it and it is trained anew") from error
    return classifier.requires_grad_(False).eval()


class DigitExtractor(Extractor):
    """The classifier as an extractor: features (B, 64), logits (B, 10), of images of 32 pixels."""

    def __init__(self, classifier: DigitClassifier, resize: int | None = None):
        digest = hashlib.sha256()
        for name, values in sorted(classifier.state_dict().items()):
            if not torch.isfinite(values).all():
                raise ValueError(f"weight {name} of the digit classifier is NaN or infinite; train it anew")
            digest.update(name.encode() + values.cpu().numpy().tobytes())
        text = "mean of the channels, x / 127.5 - 1"
        super().__init__(NAME, digest.hexdigest(), smallest=IMAGE_SIZE, input_text=text, resize=resize)
        self.classifier = copy.deepcopy(classifier)  # only the copy is moved and converted

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for images of another size than 32 pixels."""
        if (self.resize or height, self.resize or width) != (IMAGE_SIZE, IMAGE_SIZE):
            size = f"{height}x{width}" if self.resize is None else f"{self.resize} pixels"
            raise ValueError(
                f"the digits-classifier reads images of {IMAGE_SIZE} pixels, not of {size}; "
                f"take another --extractor, or --resize {IMAGE_SIZE}"
            )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(pixels.mean(dim=1, keepdim=True) / 127.5 - 1)


register_extractor(NAME, lambda config: DigitExtractor(digit_classifier(config.cache_dir), config.resize))


def class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Compute the share in [0, 1] of images whose largest logit is that of their label.

    Args:
        logits: (N, classes).
        labels: (N,) int64.

    Raises:
        ValueError: no images, or another number of labels.
    """
    if len(logits) != len(labels) or len(labels) == 0:
        raise ValueError(f"{len(logits)} images came with {len(labels)} labels; pass one label per image, at least one")
    return as_float64(logits.argmax(dim=1) == labels).mean().item()
