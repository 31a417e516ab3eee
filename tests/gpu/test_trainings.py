"""Trainings on a GPU: every network in bf16, and the same bits twice where that is asked for."""

import pytest
import torch
from small_runs import ARTEFACT, run, training

from arcvq.benchmarks.gpu.device_step import DeviceTraining
from arcvq.training import ldm as train_ldm
from arcvq.training import tokenizer as train_tokenizer
from tokenizer.networks import NETWORKS

pytestmark = pytest.mark.gpu
SMALL = ["--optim.batch_size=4", "--model.codebook_size=16", "--model.codebook_dim=4", "--model.hidden_channels=32"]


def first_losses(module, words, device):
    """The losses of three steps on one batch."""
    torch.manual_seed(0)
    made, losses = DeviceTraining.of(module, words, torch.device(device)), []
    torch.manual_seed(1)
    batch = made.batch()
    for _ in range(3):
        torch.manual_seed(2)
        output = made.training.step(batch)
        losses.append((output if isinstance(output, torch.Tensor) else output.terms["loss"]).item())
    assert next(made.run.model.parameters()).device.type == device
    return losses


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_step_of_every_network_in_bf16_is_that_of_the_cpu(network):
    words = [*SMALL, f"--model.network={network}", "--run.mixed_precision=bf16"]
    cpu, cuda = (first_losses(train_tokenizer, words, device) for device in ("cpu", "cuda"))
    assert cuda == pytest.approx(cpu, rel=0.05)


def test_a_step_of_latent_diffusion_in_bf16_is_that_of_the_cpu():
    words = ["--config=cifar10/ldm.yaml", "--optim.batch_size=4", "--unet.channels=32", "--run.mixed_precision=bf16"]
    cpu, cuda = (first_losses(train_ldm, words, device) for device in ("cpu", "cuda"))
    assert cuda == pytest.approx(cpu, rel=0.05)


@pytest.mark.parametrize("quantizer", ["arc", "rq"])
def test_a_deterministic_training_gives_the_same_bits_twice(quantizer, tmp_path):
    weights = []
    for name in ("first", "second"):
        options = ("--run.deterministic", "true", "--run.name", name, "--model.quantizer", quantizer)
        run(*training("tokenizer", "runs", 8, *options), cwd=tmp_path)
        weights.append((tmp_path / "runs" / name / ARTEFACT["tokenizer"]).read_bytes())
    assert weights[0] == weights[1]
