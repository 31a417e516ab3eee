"""Hold images in a GPU's memory, and put the batches of training together there, without work of the host per image."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.data.dataset import as_floats
from tokenizer.data.framing import mirrored, uniform_draws
from tokenizer.data.step_batches import StepBatches
from tokenizer.data.transport import mirrored_where

# Share of a GPU's free memory that images may take; the rest is the training's.
SHARE = 0.1


def fits_on(device: torch.device, pixels: Tensor) -> bool:
    """Tell whether a GPU holds these pixels in at most `SHARE` of its free memory; other devices hold none."""
    return device.type == "cuda" and pixels.nbytes <= SHARE * torch.cuda.mem_get_info(device)[0]


def drawn_flips(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Return which images, by their indices int64 (...), training mirrors in an epoch: bool (...)."""
    return torch.from_numpy(mirrored(uniform_draws(seed, epoch, indices.flatten().numpy()))).view(indices.shape)


@dataclass(eq=False, repr=False)
class DeviceBatches:
    """A training's batches of images that the device holds: those that the loader makes of the same images.

    An epoch begins with one copy to the device, that of its order and flips; a step is a selection there.

    Args:
        pixels: (n, C, S, S) uint8, on the CPU; moved when the first batch is asked for.
        labels: (n,) int64, on the CPU.
        flip: whether half of the images are mirrored.
        order: the steps.
        device: where the images are held. A batch is {"images": float32 (B, C, S, S) in [-1, 1], channels last,
            "labels": int64 (B,)}.
    """

    pixels: Tensor
    labels: Tensor
    flip: bool
    order: StepBatches
    device: torch.device

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # Networks take channels last: stored so, the images need no further copy in a step.
        pixels = self.pixels.to(self.device).permute(0, 2, 3, 1).contiguous()
        labels = self.labels.to(self.device)
        for epoch, indices in self.order.epochs():
            columns = [indices, drawn_flips(self.order.seed, epoch, indices).long()] if self.flip else [indices]
            chosen, *flips = self._moved(torch.stack(columns))
            flips = [column.bool() for column in flips]
            for step, rows in enumerate(chosen):
                images = pixels.index_select(0, rows)
                if self.flip:
                    images = mirrored_where(flips[0][step], images, -2)
                images = as_floats(images).permute(0, 3, 1, 2)
                yield {"images": images, "labels": labels.index_select(0, rows)}

    def _moved(self, steps: Tensor) -> Tensor:
        """Copy an epoch's order to the device; a GPU's host does not wait for the copy."""
        if self.device.type == "cuda" and torch.cuda.is_available():
            steps = steps.pin_memory()
        return steps.to(self.device, non_blocking=self.device.type == "cuda")
