"""One process of several, or the only one: trains every quantizer, and stores what came of it. Run by the tests."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from quantizer_cases import CASES, small_tokenizer, total
from torch.nn.parallel import DistributedDataParallel

STEPS, BATCH = 22, 12


def train(name: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """In float64, so that nothing but the split of the batch could make a difference."""
    tokenizer = small_tokenizer(name, image_size=8).double().train()
    tokenizer.bottleneck.set_total_steps(STEPS)
    images = torch.rand(STEPS, BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
    model = DistributedDataParallel(tokenizer) if world > 1 else tokenizer
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], lr=3e-3, eps=1e-3)
    share = BATCH // world
    for step in range(STEPS):
        mine = images[step, rank * share : (rank + 1) * share]
        tokenizer.bottleneck.seed_noise(step, rank * share)
        output = model(mine)
        targets = mine.repeat(len(output.reconstruction) // len(mine), 1, 1, 1)
        loss = (output.reconstruction - targets).square().mean() + total(tokenizer.bottleneck, output.losses)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        tokenizer.bottleneck.after_update(output.encoder_output.detach(), output.codes)
    return {f"{name} {key}": value.detach().clone() for key, value in tokenizer.state_dict().items()}


def main(folder: Path, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    results = {}
    for name in CASES:
        results |= train(name, rank, world)
    torch.save(results, folder / f"{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
