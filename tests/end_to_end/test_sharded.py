"""A UNet whose weights, gradients, optimiser and average two processes share (FSDP 2)."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from places import HELPERS, ROOT
from safetensors.torch import load_file

from tokenizer import VQTokenizer

WORKER = HELPERS / "sharded_worker.py"
CONFIG = ROOT / "configs/accelerate/fsdp_unet.yaml"
OPTIONS = [
    *("--tokenizer", "tokenizer", "--unet.channels", "32", "--unet.num_blocks", "1", "--ema_decay", "0.5"),
    *("--optim.max_steps", "4", "--optim.batch_size", "8", "--optim.warmup_steps", "0", "--optim.eps", "1e-5"),
    *("--run.checkpoint_every", "2", "--run.log_every", "1", "--run.sample_every", "100"),
]


def sharding():
    """The variables that accelerate's launcher makes of the config file."""
    options = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    options["fsdp_transformer_cls_to_wrap"] = options.pop("fsdp_transformer_layer_cls_to_wrap")
    variables = {name.upper(): str(value) for name, value in options.items()}
    variables = {name: value.lower() if value in ("True", "False") else value for name, value in variables.items()}
    return {"ACCELERATE_USE_FSDP": "true"} | variables


def train(folder, name, status=0, **variables):
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared = os.environ | address | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"} | variables
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *OPTIONS, "--run.name", name],
            cwd=folder, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [status] * 2, outputs[0][1][-3000:]
    return outputs[0][0]


@pytest.mark.slow
def test_sharded_trains_resumes_and_saves_as_whole(tmp_path):
    torch.manual_seed(0)
    VQTokenizer(1, 32, codebook_size=16, codebook_dim=4, hidden_channels=8).save_pretrained(tmp_path / "tokenizer")
    train(tmp_path, "whole")
    train(tmp_path, "sharded", status=3, STOP="3", **sharding())
    assert "resuming from runs/sharded/checkpoints/step-2" in train(tmp_path, "sharded", **sharding())
    whole, sharded = (
        load_file(tmp_path / "runs" / name / "pipeline/unet/diffusion_pytorch_model.safetensors")
        for name in ("whole", "sharded")
    )
    began = load_file(tmp_path / "runs/whole/checkpoints/step-2/ema.safetensors")
    assert whole.keys() == sharded.keys() == began.keys()
    for name, expected in whole.items():
        torch.testing.assert_close(
            sharded[name], expected, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert max((began[name] - value).abs().max().item() for name, value in whole.items()) > 1e-3
    shards = list((tmp_path / "runs/sharded/checkpoints/step-4").rglob("*.distcp"))
    assert len(shards) >= 2, "each process writes its shard"
