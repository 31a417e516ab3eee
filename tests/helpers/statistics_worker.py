"""Train the quantizers that learn from statistics of the batch, in one of several processes; tests run this."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tokenizer.quantizers import make_quantizer

CASES = {
    "ema": ("ema", 9, {}),
    "ema, revived": ("ema", 9, {"revive_below": 2.0}),
    "ema, more codes than tokens": ("ema", 60, {"revive_below": 0.5}),
    "rq": ("rq", 9, {"code_depth": 3, "revive_below": 3.0}),
    "cvq": ("cvq", 9, {"contrastive_weight": 0.5}),
    "cvq, l2": ("cvq", 9, {"distance": "l2", "contrastive_weight": 0.5}),
    "cvq, one code": ("cvq", 1, {}),
    "cvq, random": ("cvq", 9, {"anchor": "random", "decay": 0.9}),
    "cvq, probrandom": ("cvq", 9, {"anchor": "probrandom", "distance": "l2"}),
}


def train(folder: Path, rank: int, world: int, steps: int = 5) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {}
    for case, (name, codes, options) in CASES.items():
        torch.manual_seed(0)
        quantizer = make_quantizer(name, codes, 3, {"init": "normal"} | options).double()
        batches = torch.randn(steps, 4, 3, 2, 3, dtype=torch.float64)
        learns = bool(list(quantizer.parameters()))
        model = DistributedDataParallel(quantizer) if world > 1 and learns else quantizer
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1) if learns else None
        for latents in batches:
            share = latents.chunk(world)[rank].requires_grad_()
            output, weights = model(share), quantizer.loss_weights()
            sum(weights[name] * loss for name, loss in output.losses.items()).backward()
            if learns:
                optimizer.step()
                optimizer.zero_grad()
            quantizer.after_update(share, output.codes)
        found |= {f"{case}: {key}": value.detach() for key, value in quantizer.state_dict().items()}
    torch.save(found, folder / f"{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    train(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
