"""Autograd's backward pass in Python, for tensors whose device has no driver here: its own engine asks for streams."""

import contextlib
import unittest.mock
from collections import Counter

import torch
from torch.autograd.graph import get_gradient_edge


@contextlib.contextmanager
def python_autograd():
    """While it is entered, backward() and grad() call the recorded functions one by one, in the engine's order.

    Hooks of tensors and modules are not called.
    """
    task = iter(range(1, 1 << 62))
    with (
        unittest.mock.patch.object(torch.autograd, "_engine_run_backward", _run),
        # Checkpointed blocks are computed again once per backward pass, which they know by this number.
        unittest.mock.patch.object(torch._C, "_current_graph_task_id", lambda: _run.task),
        unittest.mock.patch.object(_run, "tasks", task),
    ):
        yield


def _run(outputs, gradients, retain_graph, create_graph, inputs=(), allow_unreachable=False, accumulate_grad=False):
    """The engine's `run_backward`."""
    _run.task = next(_run.tasks)
    edges = [get_gradient_edge(output) if isinstance(output, torch.Tensor) else output for output in outputs]
    wanted = {(edge.node, edge.output_nr): None for edge in map(get_gradient_edge, inputs)}
    waiting = {}  # function => the gradients of its outputs
    for edge, gradient in zip(edges, gradients, strict=True):
        _add(waiting, edge.node, edge.output_nr, gradient)
    roots = list(dict.fromkeys(edge.node for edge in edges))
    order = _dependencies(roots)
    ready = [function for function in roots if not order[function]]
    with torch.set_grad_enabled(create_graph):
        while ready:
            function = ready.pop()
            received = waiting.pop(function, None) or [None] * len(function._input_metadata)
            for number, gradient in enumerate(received):
                if (function, number) in wanted:
                    wanted[function, number] = gradient
            if hasattr(function, "variable"):
                if not wanted and received[0] is not None:
                    before = function.variable.grad
                    function.variable.grad = received[0] if before is None else before + received[0]
                continue
            known = any(gradient is not None for gradient in received)
            results = _call(function, received) if known else [None] * len(function.next_functions)
            for (following, number), gradient in zip(function.next_functions, results, strict=False):
                if following is None:
                    continue
                if gradient is not None:
                    _add(waiting, following, number, gradient)
                order[following] -= 1
                if not order[following]:
                    ready.append(following)
    if not wanted:
        return ()
    found = tuple(wanted[edge.node, edge.output_nr] for edge in map(get_gradient_edge, inputs))
    if not allow_unreachable and any(gradient is None for gradient in found):
        raise RuntimeError("One of the differentiated Tensors appears to not have been used in the graph")
    return found


_run.task, _run.tasks = -1, iter(())


def _call(function, received):
    """The gradients of a function's inputs."""
    if isinstance(function, torch.autograd.function.BackwardCFunction):
        if getattr(function, "materialize_grads", True):
            received = [
                torch.zeros(meta.shape, dtype=meta.dtype, device=meta.device) if gradient is None else gradient
                for gradient, meta in zip(received, function._input_metadata, strict=True)
            ]
        results = function.apply(*received)
    else:
        results = function(*received)
    return results if isinstance(results, tuple) else (results,)


def _add(waiting, function, number, gradient):
    """Add to the gradients that a function has received; brings them to the shape and type of its output."""
    meta = function._input_metadata[number]
    if gradient.shape != meta.shape:
        gradient = gradient.sum_to_size(meta.shape)
    if gradient.dtype != meta.dtype:
        gradient = gradient.to(meta.dtype)
    received = waiting.setdefault(function, [None] * len(function._input_metadata))
    received[number] = gradient if received[number] is None else received[number] + gradient


def _dependencies(roots):
    """How many functions give each function a gradient."""
    counts, seen, stack = Counter(), set(), list(roots)
    while stack:
        function = stack.pop()
        if function in seen:
            continue
        seen.add(function)
        for following, _ in function.next_functions:
            if following is not None:
                counts[following] += 1
                stack.append(following)
    return counts
