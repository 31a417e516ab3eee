"""The largest sizes that a model is built with.

They lie beyond any network there is. Below them no product of two sizes overflows, and even a model that no machine
could hold is built on the meta device in seconds, so that an absurd size is an error and not a wait.
"""

LARGEST_SIZE = 2**24  # of channels, codes, classes
LARGEST_SIDE = 2**16  # of an image, a grid of latents or codes
MOST_LAYERS = 128  # in a stack, or on a level
MOST_LEVELS = 16


def check_at_most(limit: int, **sizes: int | None) -> None:
    """Raises ValueError for a size above the limit; None is no size."""
    for name, size in sizes.items():
        if size is not None and size > limit:
            raise ValueError(f"{name} must be at most {limit}, got {size}")
