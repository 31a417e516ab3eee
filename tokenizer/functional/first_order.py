"""For functions whose backward is written by hand, and can itself not be differentiated."""

import torch


def refuse_second_derivative(name: str) -> None:
    """To be called first in a backward. Raises RuntimeError where its result is to be differentiated again.

    torch's own once_differentiable lets a gradient without a history through, as if it were a constant.
    """
    # While a graph is compiled gradients may be enabled for its tracing; compiled graphs refuse by themselves.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} has no second derivative: differentiate it without create_graph=True")
