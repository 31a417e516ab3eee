"""Where a number comes from."""

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState

from arcvq.compute.devices import default_device

_PACKAGES = ("torch", "torchvision", "diffusers", "torch-fidelity")


def provenance(verb: str, args: Sequence[str] | None, packages: Sequence[str] = ()) -> dict[str, Any]:
    """The command (`args` None: those of the process), the commit and the versions, also of `packages`, of a number."""
    script, *words = verb.split()
    words += sys.argv[1:] if args is None else args
    return {"command": shlex.join(["python", f"scripts/{script}.py", *words])} | code_and_device(packages)


def code_and_device(packages: Sequence[str] = ()) -> dict[str, Any]:
    """The commit, the versions, also of `packages`, and the device."""
    return {
        "commit": commit(),
        "versions": {package: version(package) for package in (*_PACKAGES, *packages)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else default_device().type,
    }


def environment() -> dict[str, Any]:
    """Name what rounding depends on; values that are kept on disk are kept under it, in addition to their settings."""
    return {"torch": torch.__version__, "device": PartialState().device.type}


def commit() -> str | None:
    """The commit of this code, with + and a hash of what was changed since; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "diff", "HEAD"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+{hashlib.sha256(changes).hexdigest()[:8]}" if changes else head


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = [line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")]
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }


def cpu_lines() -> list[str]:
    """What Linux says of the processor; nothing elsewhere."""
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
