"""Generate configs and images at random, valid ones and ones broken in many ways."""

import io
import random
from collections.abc import Iterator

import numpy as np
import PIL.Image

from arcvq.cli.configs import CONFIGS

TRAININGS = ("train_tokenizer", "train_ldm", "train_pixelcnn")

FORMATS = (
    ("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
    ("GIF", "P"), ("WEBP", "RGB"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "CMYK"), ("PPM", "L"), ("TGA", "RGB"),
)  # fmt: skip

VALUES = (
    "0", "-1", "1.5", "1e400", "-.inf", ".nan", "null", "~", "true", "[]", "{}", "[1, 2]", "{a: 1}", "''", "digits",
    "-99999999999999999999", "300", "&a [*a]", "!!python/object:os.system {}", "2024-01-01", "0x7f", "*x", "\\0",
    "[" * 60, "'" + "x" * 5000 + "'", "!!binary aGVsbG8=",
)  # fmt: skip


def broken_images(count: int, seed: int) -> Iterator[bytes]:
    """Generate images of all formats and modes, valid ones first, then broken ones."""
    dice = random.Random(seed)
    whole = [_image(dice, *kind) for kind in FORMATS]
    whole.append(_animation(dice))
    whole += [_image(dice, "PNG", "1", (100_000, 1)), b"", b"GIF89a\xff\xff\xff\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    yield from whole
    for _ in range(count - len(whole)):
        yield _broken(dice, dice.choice(whole))


def broken_configs(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Generate copies of this project's configs with changed lines, values and bytes; yields training, content."""
    dice = random.Random(seed)
    files = [file for file in sorted(CONFIGS.rglob("*.yaml")) if file.parent.name != "accelerate"]
    for _ in range(count):
        file = dice.choice(files)
        lines = file.read_text().splitlines()
        script = next((name for name in TRAININGS if name in lines[0]), "train_tokenizer")
        for _ in range(dice.randint(1, 3)):
            _break_line(dice, lines)
        content = "\n".join(lines).encode()
        yield script, _broken(dice, content) if dice.random() < 0.2 else content


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
    """Change, remove, insert or move bytes."""
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
