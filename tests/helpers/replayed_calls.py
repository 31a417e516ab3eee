"""Stands for CUDA graphs on the CPU: a capture notes calls of kernels and changes nothing, a replay repeats them."""

import contextlib
import unittest.mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class ReplayedCalls(TorchDispatchMode):
    """The calls of a captured function, on the same memory at every replay.

    What the function takes from the host is as it was at the capture, as in a CUDA graph.
    """

    def __init__(self):
        super().__init__()
        self._calls = []
        self._before = {}  # what the capture has changed, by the memory's address

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert function is not torch.ops.aten._local_scalar_dense.default, "a capture reads no values"
        written = [
            value
            for value, argument in zip(args, function._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ] + [kwargs[name] for name in ("out",) if name in kwargs]
        if function is torch.ops.aten._fused_adamw_.default or "fused" in str(function):
            written += list(args)
        for tensor in tree_leaves(written):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))
        results = function(*args, **kwargs)
        self._calls.append((function, args, kwargs, results))
        return results

    @contextlib.contextmanager
    def captured(self, capture_error_mode="global"):
        """Note the calls; afterwards all memory that existed before has its values from before."""
        assert capture_error_mode == "thread_local", "a thread that pins memory would end the capture"
        with self:
            yield
        for storage, before in self._before.values():
            storage.copy_(before)

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, results in self._calls:
                again = function(*args, **kwargs)
                for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.detach().copy_(new)


@contextlib.contextmanager
def graphs_on_cpu():
    """While it is entered, CUDA graphs are `ReplayedCalls`, and streams have no effect."""
    with (
        unittest.mock.patch.object(torch.cuda, "CUDAGraph", ReplayedCalls),
        unittest.mock.patch.object(
            torch.cuda, "graph", lambda graph, capture_error_mode: graph.captured(capture_error_mode)
        ),
        unittest.mock.patch.object(torch.cuda, "Stream", unittest.mock.MagicMock()),
        unittest.mock.patch.object(torch.cuda, "current_stream", unittest.mock.MagicMock()),
        unittest.mock.patch.object(torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
    ):
        yield
