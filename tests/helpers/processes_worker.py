"""One process of several, or the only one: trains a small tokenizer and stores what came of it. Run by the tests."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tokenizer import VQTokenizer


def train(folder: Path, rank: int, world: int, codes: int, gather: str, steps: int = 10) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.manual_seed(0)
    tokenizer = VQTokenizer(
        in_channels=1, image_size=8, codebook_size=codes, codebook_dim=6, hidden_channels=8,
        network_options={"residual_channels": 4}, quantizer_options={"gather": gather, "ball_growth": 0.01},
    )  # fmt: skip
    images = torch.rand(steps, 12, 1, 8, 8) * 2 - 1
    model = DistributedDataParallel(tokenizer) if world > 1 else tokenizer
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-2)
    first = {}
    counts = torch.zeros(codes, dtype=torch.int64)
    for step in range(steps):
        share = images[step].chunk(world)[rank]
        output = model(share)
        losses = output.losses | {"reconstruction": (output.reconstruction - share).square().mean()}
        sum(losses.values()).backward()
        if step == 0:
            first = {f"gradient {name}": weight.grad.clone() for name, weight in tokenizer.named_parameters()}
            first |= {f"loss {name}": loss.detach() for name, loss in losses.items()}
        optimizer.step()
        optimizer.zero_grad()
        tokenizer.bottleneck.after_update(output.encoder_output, output.codes)
        counts += output.counts
    result = first | {f"weight {name}": weight.detach() for name, weight in tokenizer.named_parameters()}
    if world > 1:
        dist.all_reduce(counts)
        for name in [name for name in result if name.startswith("loss")]:
            dist.all_reduce(result[name])
            result[name] /= world
    torch.save(result | {"counts": counts}, folder / f"{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    train(Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5])
