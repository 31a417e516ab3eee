"""Configs and images that are broken at random: each must be taken, or refused by an error of this project."""

import contextlib
import io
import random
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import train_ldm
import train_pixelcnn
import train_tokenizer
from command_line import CONFIGS, ScriptParser
from run_options import OptimConfig, RunConfig

from priors import PixelCNN
from priors.unet import make_unet
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, DataError
from tokenizer.framing import Framing
from tokenizer.image_dataset import framed_pixels
from tokenizer.image_files import decode_image

# An input that takes longer hangs.
LONGEST_S = 30

FORMATS = (
    ("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
    ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "CMYK"), ("PPM", "L"), ("TGA", "RGB"),
)  # fmt: skip

VALUES = (
    "0", "-1", "1.5", "1e400", "-.inf", ".nan", "null", "~", "true", "[]", "{}", "[1, 2]", "{a: 1}", "''", "digits",
    "99999999999999999999", "1000000000", "&a [*a]", "!!python/object:os.system {}", "2024-01-01", "0x7f", "*x", "\\0",
    "[" * 60, "'" + "x" * 5000 + "'", "!!binary aGVsbG8=",
)  # fmt: skip

SCRIPTS = {"train_tokenizer": train_tokenizer, "train_ldm": train_ldm, "train_pixelcnn": train_pixelcnn}


@dataclass
class Tally:
    """What became of inputs.

    Attributes:
        outcomes: how many were taken, refused, or something else, which should be none.
        slowest_s: of all inputs.
        failures: the first few of something else.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, take: Callable[[], None], what: str) -> None:
        """Tries an input."""
        began = time.monotonic()
        signal.alarm(LONGEST_S)
        try:
            take()
            outcome = "taken"
        except DataError:
            outcome = "refused"
        except TimeoutError:
            outcome = "hung"
        except Exception as error:  # what must not be
            outcome = "foreign error"
            self.failures.append(f"{what}: {type(error).__name__}: {error}"[:300])
        finally:
            signal.alarm(0)
        self.outcomes[outcome] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def numbers(self) -> dict[str, object]:
        """For a JSON; the process's peak of memory stands beside them."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
        facts = {"slowest_s": round(self.slowest_s, 2), "peak_memory_gib": round(peak, 2)}
        return {"inputs": self.outcomes.total(), **self.outcomes, **facts, "failures": self.failures[:10]}


def broken_images(count: int, seed: int) -> Iterator[bytes]:
    """Images of all formats and modes, whole and in many ways broken."""
    dice = random.Random(seed)
    whole = [_image(dice, *kind) for kind in FORMATS]
    whole.append(_animation(dice))
    whole += [_image(dice, "PNG", "1", (100_000, 1)), b"", b"GIF89a\xff\xff\xff\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    yield from whole
    for _ in range(count - len(whole)):
        yield _broken(dice, dice.choice(whole))


def take_image(content: bytes) -> None:
    """Decodes an image as a training does. Raises DataError."""
    image = decode_image(content, "an image")
    framed_pixels(image, "an image", Framing(32, resize_to=32), 3)


def broken_configs(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """This project's configs with lines, values and bytes changed, and the script that each is for."""
    dice = random.Random(seed)
    files = [file for file in sorted(CONFIGS.rglob("*.yaml")) if file.parent.name != "accelerate"]
    for _ in range(count):
        file = dice.choice(files)
        lines = file.read_text().splitlines()
        script = next((name for name in SCRIPTS if name in lines[0]), "train_tokenizer")
        for _ in range(dice.randint(1, 3)):
            _break_line(dice, lines)
        content = "\n".join(lines).encode()
        yield script, _broken(dice, content) if dice.random() < 0.2 else content


class ConfigTaker:
    """Takes configs as the scripts do, until the model is described, of which nothing is allocated."""

    def __init__(self):
        self._parsers: dict[str, ScriptParser] = {name: script.make_parser() for name, script in SCRIPTS.items()}
        self._file = Path(tempfile.mkdtemp()) / "config.yaml"

    def __call__(self, script: str, content: bytes) -> None:
        """Raises DataError where the script would say what is wrong."""
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
        RunConfig(**config.run.as_dict()).check()
        OptimConfig(**config.optim.as_dict()).check()
        DataConfig(**config.data.as_dict()).check()
        with torch.device("meta"):
            if script == "train_tokenizer":
                VQTokenizer(3, config.data.image_size or 32, **config.model.as_dict())
            elif script == "train_ldm":
                make_unet((4, 8, 8), 10, **config.unet.as_dict())
            else:
                PixelCNN(512, 10, (8, 8), **config.prior.as_dict())


def try_inputs(count: int, seed: int) -> dict[str, dict[str, object]]:
    """Half images, half configs; what became of them."""

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


def _image(dice: random.Random, kind: str, mode: str, size: tuple[int, int] = (48, 40)) -> bytes:
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    pixels = np.random.default_rng(dice.randrange(2**32)).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode == "I;16":
        image = PIL.Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode in ("L", "P", "1"):
        image = PIL.Image.fromarray(pixels[..., 0]).convert(mode)
    else:
        image = PIL.Image.fromarray(pixels, mode)
    return _encoded(image, kind)


def _animation(dice: random.Random) -> bytes:
    frames = [PIL.Image.new("L", (20, 20), dice.randrange(256)) for _ in range(3)]
    return _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def _encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _broken(dice: random.Random, content: bytes) -> bytes:
    """With bytes changed, taken away, put in or moved."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 5, 20))):
        place = dice.randrange(len(changed) + 1) if dice.random() < 0.5 else min(dice.randrange(64), len(changed))
        kind = dice.randrange(5)
        if kind == 0:
            changed[place : place + 1] = bytes([dice.randrange(256)])
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            changed[place:place] = dice.randbytes(dice.randint(1, 8))
        elif kind == 3:
            changed[place : place + 4] = dice.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\0\0")
            )
        else:
            other = dice.randrange(len(changed) + 1)
            changed[place : place + 16] = changed[other : other + 16]
    return bytes(changed)


def _break_line(dice: random.Random, lines: list[str]) -> None:
    place = dice.randrange(len(lines))
    kind, line = dice.randrange(6), lines[place]
    if kind == 0:
        del lines[place]
        lines.append("")
    elif kind == 1:
        lines.insert(dice.randrange(len(lines)), line)
    elif kind == 2 and ":" in line:
        lines[place] = f"{line.partition(':')[0]}: {dice.choice(VALUES)}"
    elif kind == 3 and len(line) > 3:
        at = dice.randrange(len(line))
        lines[place] = line[:at] + dice.choice("abz_:-#{[&*!\t ") + line[at + 1 :]
    elif kind == 4:
        lines.insert(place, f"{dice.choice(('run', 'data', 'optim', 'model', 'x'))}: {dice.choice(VALUES)}")
    else:
        lines[place] = "  " + line
