"""Write the result of an evaluation as JSON, and print it."""

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from arcvq.compute.atomic_files import atomic_file
from arcvq.compute.resumable import ResumableMap


@dataclass(frozen=True)
class EvaluationResult:
    """The numbers of an evaluation.

    Attributes:
        protocol: what was measured, and how.
        numbers: by name.
        chunks: the values of single images, to be removed when the numbers are on disk.
    """

    protocol: dict[str, Any]
    numbers: dict[str, float | int]
    chunks: ResumableMap


def write_result(file: Path, protocol: dict[str, Any], settings: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Write protocol, settings and numbers as JSON, and print the numbers below a summary of the protocol."""
    # JSON has no infinity, which is the PSNR of equal images.
    plain = {
        name: str(value) if isinstance(value, float) and not isfinite(value) else value
        for name, value in numbers.items()
    }
    result = {"protocol": protocol, "settings": settings, "numbers": plain}
    with atomic_file(file) as unfinished:
        unfinished.write_text(json.dumps(result, indent=2, default=str) + "\n")
    print(f"{file}: {summarise(protocol)}")
    width = max(map(len, numbers))
    for name, value in numbers.items():
        print(f"  {name:{width}}  {value:.4f}" if isinstance(value, float) else f"  {name:{width}}  {value}")


def summarise(protocol: dict[str, Any]) -> str:
    """Describe the protocol in one line."""
    number = protocol.get("samples", protocol.get("images"))
    asked = protocol.get("asked")
    count = f"{number} images" if asked is None or number >= asked else f"{number} of the {asked} images it asks for"
    extractor = (protocol.get("extractor") or {}).get("name")
    parts = [protocol.get("protocol", protocol["task"]), count]
    parts += [f"{protocol['split']} split of {protocol['data']}"] if protocol["task"] == "reconstruction" else []
    parts += [f"against {protocol['reference']}"] if protocol["task"] == "generation" else []
    parts += [f"features of {extractor}"] if extractor else []
    return ", ".join(parts)
