"""Try broken configs and images: each must be accepted, or refused by one of this project's errors."""

import contextlib
import io
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from arcvq.cli.parser import ScriptParser
from arcvq.faults.broken_inputs import broken_configs, broken_images
from arcvq.training import ldm as train_ldm
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer
from priors import PixelCNN
from priors.unet import make_unet
from tokenizer import VQTokenizer
from tokenizer.data import DataError
from tokenizer.data.dataset import framed_pixels
from tokenizer.data.decoding import decode_image
from tokenizer.data.framing import Framing

# An input that takes longer counts as hung.
LONGEST_S = 30

SCRIPTS = {"train_tokenizer": train_tokenizer, "train_ldm": train_ldm, "train_pixelcnn": train_pixelcnn}


@dataclass
class Tally:
    """Counts of how inputs were treated.

    Attributes:
        outcomes: counts of `taken` and `refused`; `hung` and `foreign error` should not occur.
        slowest_s: seconds of the slowest input.
        failures: descriptions of the foreign errors.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, take: Callable[[], None], what: str) -> None:
        """Try an input, and count the outcome."""
        began = time.monotonic()
        signal.alarm(LONGEST_S)
        try:
            take()
            outcome = "taken"
        except DataError:
            outcome = "refused"
        except TimeoutError:
            outcome = "hung"
        except Exception as error:  # an error that a user should never see
            outcome = "foreign error"
            self.failures.append(f"{what}: {type(error).__name__}: {error}"[:300])
        finally:
            signal.alarm(0)
        self.outcomes[outcome] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def numbers(self) -> dict[str, object]:
        """Return the counts for a JSON file, with the peak memory of the process."""
        import resource  # which Windows has not, where the verb's help is still to be read

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
        facts = {"slowest_s": round(self.slowest_s, 2), "peak_memory_gib": round(peak, 2)}
        return {"inputs": self.outcomes.total(), **self.outcomes, **facts, "failures": self.failures[:10]}


def take_image(content: bytes) -> None:
    """Decode an image as a training does. Raises DataError."""
    image = decode_image(content, "an image")
    framed_pixels(image, "an image", Framing(32, resize_to=32), 3)


class ConfigTaker:
    """Parses and checks configs as the trainings do, and builds the model on the meta device."""

    def __init__(self):
        self._parsers: dict[str, ScriptParser] = {name: script.make_parser() for name, script in SCRIPTS.items()}
        self._file = Path(tempfile.mkdtemp()) / "config.yaml"

    def __call__(self, script: str, content: bytes) -> None:
        """Raise DataError where the training would end with one line."""
        self._file.write_bytes(content)
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                self._take(script)
        except SystemExit as error:
            lines = said.getvalue().strip().splitlines()
            if error.code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
                raise RuntimeError(f"status {error.code}, said {lines[-3:]}") from error
            raise DataError(lines[0]) from error
        except ValueError as error:
            raise DataError(str(error)) from error

    def _take(self, script: str) -> None:
        config = self._parsers[script].parse([f"--config={self._file}"])
        SCRIPTS[script].check(config)
        config.run.check()
        config.optim.check()
        config.data.check()
        with torch.device("meta"):
            if script == "train_tokenizer":
                VQTokenizer(3, config.data.image_size or 32, **config.model.as_dict())
            elif script == "train_ldm":
                make_unet((4, 8, 8), 10, **config.unet.as_dict())
            else:
                PixelCNN(512, 10, (8, 8), **config.prior.as_dict())


def try_inputs(count: int, seed: int) -> dict[str, dict[str, object]]:
    """Try `count` inputs, half of them images and half configs; return the counts of both."""

    def hangs(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, hangs)
    images, configs = Tally(), Tally()
    for content in broken_images(count // 2, seed):
        images.add(lambda content=content: take_image(content), repr(content[:40]))
    numbers = {"images": images.numbers()}
    take = ConfigTaker()
    for script, content in broken_configs(count - count // 2, seed):
        configs.add(lambda script=script, content=content: take(script, content), repr(content[-200:]))
    return numbers | {"configs": configs.numbers()}
