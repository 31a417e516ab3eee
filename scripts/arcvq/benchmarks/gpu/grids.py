"""ArcVQ's quantizer alone, forward and backward, beside the three matrix products that it needs."""

from functools import partial
from typing import Any

import psutil
import torch

from arcvq.benchmarks.cases import quantizer_case
from arcvq.benchmarks.gpu.bench import Bench, Figures, LeftOut


def figures(bench: Bench) -> Figures:
    """Time both for each size; the products are left out where their table does not fit."""
    for grid in bench.sizes.grids:
        name = "x".join(map(str, grid))
        yield f"products {name}", partial(products, bench, *grid)
        yield f"arc {name}", lambda grid=grid: bench.figure(quantizer_case("arc", *grid, bench.device), grid[0])


def products(bench: Bench, tokens: int, codes: int, dim: int) -> dict[str, Any]:
    """Time the bare products, into a table of all tokens and codes."""
    table = 4 * tokens * codes
    free = torch.cuda.mem_get_info()[0] if bench.is_cuda else psutil.virtual_memory().available
    if 1.2 * table > free:
        raise LeftOut(f"the table takes {table / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free")
    return bench.figure(quantizer_case("products", tokens, codes, dim, bench.device), tokens)
