"""Estimate the memory of a training step, by part, without allocating any.

The step's own code runs on fake tensors, which have a shape, a type and a device but no memory. Every storage that an
operator makes is counted until it is freed. What operators hold only inside themselves is not seen: another layout for
a convolution and the like, below 2 % of the models of configs/imagenet on a CPU.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arcvq.compute.allocator import keeps_freed_memory

# Share of the bytes freed within a step that fragmentation adds. glibc, set to keep freed memory, leaves holes that fit
# no later tensor, since small objects lie between the large ones. Measured: 28 % for the f8 VQGAN of configs/imagenet
# (29 % in bf16), 40 % for its UNet, and 24 % for configs/cifar10/arcvq.yaml (49 % in bf16).
_FRAGMENTATION = 1 / 3

_OTHERS = "activations and temporaries"


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on a CPU.

    Attributes:
        tensors: bytes of tensors by part, at the peak of their sum.
        most: the peak of each part by itself.
        fragmentation: bytes that the allocator adds.
        program: bytes of interpreter and libraries.
    """

    tensors: dict[str, int]
    most: dict[str, int]
    fragmentation: int
    program: int

    @property
    def total(self) -> int:
        """Peak of the process."""
        return sum(self.tensors.values()) + self.fragmentation + self.program


class FakeAllocation(ExitStack):
    """A context in which tensors have no memory, and the bytes that they would take are counted by part.

    `assign_training` and `assign` name modules, optimizers and inputs; every other tensor is an activation or a
    temporary. The optimizer's state exists from the end of the first step on, so only two steps show the peak.
    """

    def __enter__(self) -> "FakeAllocation":
        super().__enter__()
        # Constants created before, such as a noise schedule, may take part.
        mode = self.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        self._tracker = self.enter_context(_Tracker())
        # Two operations of modules that fake tensors do not support.
        swap_tensors, memo = torch.utils.swap_tensors, mode.fake_tensor_converter.tensor_memo

        def swap(before: Tensor, after: Tensor) -> None:
            """`Module.to` swaps a parameter with the converted one; neither may have weak references."""
            memo.clear()
            swap_tensors(before, after)

        self.enter_context(mock.patch.object(torch.utils, "swap_tensors", swap))
        self.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", _copy, create=True))
        return self

    def assign_training(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Count parameters and buffers as weights, and name gradients and the optimizer's state."""

        def assign_gradient(parameter: Tensor) -> None:
            self.assign("gradients", [parameter.grad])

        def assign_state(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            self.assign("optimiser", tree_leaves(list(optimizer.state.values())))

        self.assign("weights", [*module.parameters(), *module.buffers()])
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(assign_gradient)
        optimizer.register_step_post_hook(assign_state)

    def assign(self, part: str, tensors: Iterable[Any]) -> None:
        """Count the tensors among `tensors` as part of `part`."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._tracker.count(tensor, part)

    def add(self, part: str, size: int) -> None:
        """Count `size` more bytes of `part`, which stay."""
        self._tracker.change(part, size)

    def forget_peak(self) -> None:
        """Measure the peak from now on."""
        self._tracker.peak, self._tracker.most = self._tracker.now.copy(), self._tracker.now.copy()

    def peak(self) -> StepMemory:
        """Return the peak so far."""
        tensors = {part: size for part, size in self._tracker.peak.items() if size}
        freed = self._tracker.peak.total() - self._tracker.now.total()
        fragmentation = round(_FRAGMENTATION * freed) if keeps_freed_memory() else 0
        most = {part: size for part, size in self._tracker.most.items() if size}
        return StepMemory(tensors, most, fragmentation, psutil.Process().memory_info().rss)


def _copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Copy a parameter or buffer as `copy.deepcopy` does."""
    copy = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copy = nn.Parameter(copy, tensor.requires_grad)
    memo[id(tensor)] = copy
    return copy


# torch.distributed._tools.mem_tracker.MemTracker counts the same totals, but is private, refuses a network that is
# called twice before a reset (micro-batches, a discriminator), and knows neither these parts nor their most.
class _Tracker(TorchDispatchMode):
    """Counts the bytes of live storages by part: `now`, at the `peak` of their sum, and the `most` of each part."""

    def __init__(self):
        super().__init__()
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._parts: dict[int, str] = {}  # of live storages, by identity

    def __torch_dispatch__(
        self, operator: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if operator is torch.ops.aten._local_scalar_dense.default:
            # The value of a tensor without memory. Integers: the seed of a step, or that no proposal is left to wait
            # for. Floats: Adam's step, which divides by 1 - beta^step.
            return 1.0 if args[0].is_floating_point() else 0
        results = operator(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if not isinstance(result, Tensor) or result.device.type == "meta":
                continue
            if id(result.untyped_storage()) not in self._parts:
                self.count(result, _OTHERS)
        return results

    def count(self, tensor: Tensor, part: str) -> None:
        """Count the tensor's storage as part of `part` until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._parts:
            self.now[self._parts[key]] -= size
        else:
            weakref.finalize(storage, self._freed, key, size)
        self._parts[key] = part
        self.change(part, size)

    def change(self, part: str, size: int) -> None:
        """Count `size` more bytes of `part`."""
        self.now[part] += size
        self.most[part] = max(self.most[part], self.now[part])
        if self.now.total() >= self.peak.total():  # the last of equal ones, whose parts are known by then
            self.peak = self.now.copy()

    def _freed(self, key: int, size: int) -> None:
        self.now[self._parts.pop(key)] -= size
