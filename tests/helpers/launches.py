"""Count what would be launched on an accelerator: on the device "meta", with shapes alone, autograd included."""

import collections
import contextlib
import traceback
import unittest.mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# These run on the host alone: views, allocations, questions about types.
HOST_ONLY = {
    "_has_compatible_shallow_copy_type",
    "_reshape_alias",
    "_unsafe_view",
    "alias",
    "as_strided",
    "chunk",
    "detach",
    "diagonal",
    "empty",
    "empty_like",
    "empty_strided",
    "expand",
    "is_same_size",
    "lift_fresh",
    "narrow",
    "new_empty",
    "new_empty_strided",
    "permute",
    "promote_types",
    "reshape",
    "resize_",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "t",
    "transpose",
    "unbind",
    "unfold",
    "unsafe_split",
    "unsqueeze",
    "view",
}


class Launches(TorchDispatchMode):
    """Counts the calls while it is entered, by the line of the package that makes them; autocast is without effect.

    Attributes:
        lines: calls of each line.
    """

    def __init__(self):
        super().__init__()
        self.lines = collections.Counter()

    def __enter__(self):
        """Lets autocast alone: it does not know the device."""
        self._patch = unittest.mock.patch.object(torch, "autocast", lambda *args, **options: contextlib.nullcontext())
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        """Puts back what `__enter__` replaced."""
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Counts a call, and makes it."""
        if function._schema.name.split("::")[1] not in HOST_ONLY:
            frames = [frame for frame in traceback.extract_stack() if "/tokenizer/" in frame.filename]
            self.lines[f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "autograd"] += 1
        return function(*args, **(kwargs or {}))

    @property
    def total(self):
        """Number of calls."""
        return sum(self.lines.values())

    def __repr__(self):
        """Lists the lines, most calls first, for a failing test."""
        return f"{self.total} launches:\n" + "\n".join(f"{count:6} {line}" for line, count in self.lines.most_common())
