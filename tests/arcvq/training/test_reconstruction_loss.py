"""The reconstruction loss that is no mean over images, log_mse: in parts, and over processes, it is the whole's."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from processes_as_threads import Processes

from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run
from arcvq.training.reconstruction_loss import LossConfig, ReconstructionLoss
from arcvq.training.tokenizer_step import TokenizerUpdate
from tokenizer import VQTokenizer
from tokenizer.losses.lpips import WeightFiles


def log_mse(weight=1.0):
    return ReconstructionLoss(LossConfig(pixel="log_mse", pixel_weight=weight), WeightFiles(), 8, torch.device("cpu"))


def pair(images=8):
    """Images, and reconstructions of which the later ones are worse."""
    originals = 2 * torch.rand(images, 3, 8, 8) - 1
    return originals, originals + torch.arange(1, images + 1).view(-1, 1, 1, 1) * 0.1 * torch.randn(images, 3, 8, 8)


def plain(originals, reconstructions):
    """The definition, and its gradient, in float64."""
    leaf = reconstructions.double().requires_grad_()
    squares = sum(((a - b) ** 2).sum() for a, b in zip(originals.double(), leaf, strict=True))
    loss = 3 * 8 * 8 / 2 * (squares / len(originals)).log()
    loss.backward()
    return loss.item(), leaf.grad.float()


def measured(loss, parts, leaves, accelerator):
    """The mean over the parts, and its gradient at each part's leaf."""
    loss.observe_batch(parts, leaves, accelerator)
    values = [loss(part, leaf)[0] for part, leaf in zip(parts, leaves, strict=True)]
    total = torch.stack(values).mean()
    return total.item(), torch.cat(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_batch_in_parts_is_the_whole(parts):
    originals, reconstructions = pair()
    leaves = [part.clone().requires_grad_() for part in reconstructions.chunk(parts)]
    value, gradient = measured(log_mse(), originals.chunk(parts), leaves, Accelerator(cpu=True))
    expected, expected_gradient = plain(originals, reconstructions)
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    # Two halves by themselves would be other ones.
    halves = [plain(*half) for half in zip(originals.chunk(2), reconstructions.chunk(2), strict=True)]
    assert abs((halves[0][0] + halves[1][0]) / 2 - expected) > 10


@pytest.mark.parametrize("parts", [1, 2])
def test_processes_together_are_one(parts):
    originals, reconstructions = pair()
    processes = Processes(2)

    def work(rank):
        leaves = [part.clone().requires_grad_() for part in reconstructions.chunk(2)[rank].chunk(parts)]
        return measured(log_mse(), originals.chunk(2)[rank].chunk(parts), leaves, processes)

    results = processes.run(work)
    expected, expected_gradient = plain(originals, reconstructions)
    assert [value for value, _ in results] == pytest.approx([expected] * 2, rel=1e-6)
    # DistributedDataParallel takes the mean over processes of the parameters' gradients.
    gradient = torch.cat([gradient for _, gradient in results]) / 2
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_the_weight_and_the_name_of_the_term():
    originals, reconstructions = pair()
    loss = log_mse(weight=0.5)
    loss.observe_batch([originals], [reconstructions], Accelerator(cpu=True))
    value, terms = loss(originals, reconstructions)
    assert value == 0.5 * terms["reconstruction"] and set(terms) == {"reconstruction"}


@pytest.mark.parametrize("scale", [0.0, 1e-22, 1.0, 1e15])
def test_exact_tiny_and_huge_errors_are_finite(scale):
    originals = torch.zeros(2, 3, 8, 8)
    leaf = (scale * torch.ones(2, 3, 8, 8)).requires_grad_()
    value, gradient = measured(log_mse(), [originals], [leaf], Accelerator(cpu=True))
    assert math.isfinite(value) and gradient.isfinite().all()
    assert (gradient.abs().max() > 0) == (scale > 0)


@pytest.mark.parametrize("parts", [2, 4])
def test_an_update_of_a_stochastic_tokenizer_in_parts_is_that_of_the_whole(tmp_path, parts):
    """Of a quantizer that draws samples, with the logarithm of the batch's error."""

    def gradients(parts):
        AcceleratorState._reset_state(reset_partial_state=True)
        run = Run(RunConfig("run", str(tmp_path)), OptimConfig(max_steps=10), {"run": {}})
        tokenizer = VQTokenizer(3, 8, quantizer="sq", codebook_size=6, codebook_dim=4, hidden_channels=8)
        trained = run.add_module(tokenizer, "model")
        trained.optimizer_step = lambda loss: torch.tensor(False)
        seen = TokenizerUpdate(run.accelerator, trained, log_mse())(images.chunk(parts), seed=0)
        return {name: parameter.grad for name, parameter in tokenizer.named_parameters()}, seen.terms.by_name()

    images = pair()[0] * torch.linspace(0.1, 1, 8).view(-1, 1, 1, 1)
    expected, whole = gradients(1)
    found, terms = gradients(parts)
    assert {"reconstruction", "entropy", "distance"} < set(terms)
    for name, term in whole.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        assert gradient.norm() > 0
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name
