"""What holds for every quantizer: the contract, saving, edge cases, any split of a batch."""

import copy
import json
import sys

import pytest
import torch
from places import HELPERS
from quantizer_cases import CASES, CODEBOOKS, REFUSED, sizes_of, small_quantizer, small_tokenizer, total

from arcvq.faults import forked_process
from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from priors import PixelCNN
from priors.diffusion import make_scheduler
from priors.pixelcnn import code_grid
from priors.unet import make_unet
from tokenizer import VQTokenizer
from tokenizer.functional.usage import usage

WORKER = HELPERS / "every_quantizer_worker.py"

every = pytest.mark.parametrize("name", CASES)


def images(count=4, seed=1):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.enable_grad()
def trained(name, steps=3, **sizes):
    """A tokenizer after a few updates, which have moved weights, tables and statistics."""
    tokenizer = small_tokenizer(name, **sizes)
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        output = tokenizer(images(seed=step))
        (output.reconstruction.square().mean() + total(tokenizer.bottleneck, output.losses)).backward()
        optimizer.step()
        optimizer.zero_grad()
        tokenizer.bottleneck.after_update(output.encoder_output.detach(), output.codes)
    return tokenizer


@every
def test_training_gives_what_the_contract_says(name):
    tokenizer = small_tokenizer(name).train()
    bottleneck = tokenizer.bottleneck
    output = tokenizer(images())
    assert output.encoder_output.shape[:2] == (4, bottleneck.encoder_channels)
    assert output.latents.shape == (4, *tokenizer.latent_shape)
    assert len(output.reconstruction) in (4, 8) and output.reconstruction.shape[1:] == (1, 16, 16)
    assert set(output.losses) == set(bottleneck.loss_weights())
    assert all(loss.ndim == 0 and loss.isfinite() for loss in output.losses.values())
    if tokenizer.has_codes:
        assert output.codes.shape == (4, *tokenizer.code_shape) and output.codes.dtype == torch.int64
        shape = CODEBOOKS.get(name, sizes_of(name, 12, 6))
        assert output.counts.shape == shape[:1] and output.counts.sum() == output.codes.numel()
        assert torch.equal(output.counts, bottleneck.counts_of(output.codes))
        assert tokenizer.codebook.shape == shape
    assert len(output.reconstruction) == 4 * bottleneck.decodes
    (output.reconstruction.square().mean() + total(bottleneck, output.losses)).backward()
    for part, parameter in tokenizer.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), part


@every
@torch.no_grad()
def test_nothing_changes_but_in_after_update_which_draws_nothing_of_others(name):
    quantizer = small_quantizer(name)
    encoder_output = torch.randn(3, quantizer.encoder_channels, 4, 4)
    before = copy.deepcopy(quantizer.state_dict())
    for training in (True, False):
        quantizer.train(training).seed_noise(1, 0)
        codes = quantizer(encoder_output).codes
        if quantizer.depth:
            quantizer.encode(quantizer.latents(encoder_output))
        state = quantizer.state_dict()
        assert state.keys() == before.keys() and all(torch.equal(value, before[key]) for key, value in state.items())
    drawn = torch.get_rng_state()
    quantizer.after_update(encoder_output, codes)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert quantizer.step == 1 and before["step"] == 0


@every
@torch.no_grad()
def test_evaluation_is_of_the_codes_alone_and_draws_nothing(name):
    tokenizer = trained(name).eval()
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in tokenizer.state_dict().items()}
    output, latents = tokenizer(images()), tokenizer.encode(images()).latents
    assert torch.equal(output.latents, latents) and output.reconstruction.shape == (4, 1, 16, 16)
    torch.testing.assert_close(tokenizer.decode(latents).sample, output.reconstruction)
    if tokenizer.has_codes:
        codes = tokenizer.encode_codes(images())
        assert torch.equal(output.codes, codes)
        torch.testing.assert_close(tokenizer.decode_codes(codes), output.reconstruction)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in tokenizer.state_dict().items())


@pytest.mark.parametrize("name", ["hyperspherical_vae", "vae"])
def test_a_continuous_one_refuses_codes(name):
    tokenizer = small_tokenizer(name)
    latents = tokenizer.encode(images()).latents
    calls = [
        lambda: tokenizer.encode_codes(images()),
        lambda: tokenizer.decode_codes(torch.zeros(1, 4, 4, dtype=torch.int64)),
        lambda: tokenizer.bottleneck.encode(latents),
        lambda: tokenizer.codebook,
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"quantizer '{name}' is continuous"):
            call()


@every
@torch.no_grad()
def test_what_is_saved_and_loaded_is_the_same(name, tmp_path):
    tokenizer = trained(name).eval()
    tokenizer.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path)
    state = tokenizer.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    assert loaded.bottleneck.step == 3
    batch = images(64)
    torch.testing.assert_close(loaded(batch).reconstruction, tokenizer(batch).reconstruction)
    if tokenizer.has_codes:
        counts = [model.bottleneck.counts_of(model.encode_codes(batch)) for model in (tokenizer, loaded)]
        assert torch.equal(*counts) and usage(counts[0]) > 0


@every
@torch.no_grad()
def test_both_priors_sample_through_a_saved_pipeline_or_say_why_not(name, tmp_path):
    tokenizer = trained(name).eval()
    names = {0: "zero", 1: "one"}
    unet = make_unet(tokenizer.latent_shape, 2, 32, (1,), num_blocks=1)
    pipelines = [ArcVQLDMPipeline(tokenizer, unet, make_scheduler(), names, 1.0)]
    if tokenizer.bottleneck.depth == 1:
        prior = PixelCNN(
            tokenizer.bottleneck.codebook_size, 2, tokenizer.code_shape, channels=8, num_layers=2, head_channels=8
        )
        pipelines.append(ArcVQPixelCNNPipeline(tokenizer, prior, names))
    else:
        with pytest.raises(ValueError, match=f"quantizer '{tokenizer.config.quantizer}'"):
            code_grid(tokenizer)
    for index, pipeline in enumerate(pipelines):
        pipeline.save_pretrained(tmp_path / str(index))
        loaded = type(pipeline).from_pretrained(tmp_path / str(index))
        options = {"num_inference_steps": 2} if index == 0 else {}
        made = []
        for model in (pipeline, loaded):
            model.set_progress_bar_config(disable=True)
            generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
            made.append(model([1, 0], generator=generators, output_type="pt", **options).images)
        assert made[0].shape == (2, 1, 16, 16) and made[0].isfinite().all()
        torch.testing.assert_close(*made)


@every
def test_codes_of_another_shape_are_refused(name):
    tokenizer = small_tokenizer(name)
    if tokenizer.has_codes:
        shape = (2, *tokenizer.code_shape)
        for wrong in ((*shape, 3), shape[:-1]):
            with pytest.raises(ValueError, match="expected codes"):
                tokenizer.decode_codes(torch.zeros(wrong, dtype=torch.int64))


LATENTS = {
    "two codes": (2, 6, lambda *shape: torch.randn(shape)),
    "one dimension": (12, 1, lambda *shape: torch.randn(shape)),
    "one token": (12, 6, lambda batch, channels, *_: torch.randn(batch, channels, 1, 1)),
    "one token in all": (12, 6, lambda batch, channels, *_: torch.randn(1, channels, 1, 1)),
    "all equal": (12, 6, lambda batch, channels, *size: torch.randn(1, channels, 1, 1).expand(batch, channels, *size)),
    "zeros": (12, 6, lambda *shape: torch.zeros(shape)),
    "tiny": (12, 6, lambda *shape: torch.randn(shape) * 1e-20),
    "huge": (12, 6, lambda *shape: torch.randn(shape) * 1e4),
    "many codes": (100_000, 4, lambda *shape: torch.randn(shape)),
}


@every
@pytest.mark.parametrize("case", LATENTS)
def test_edge_cases_work_or_say_why_not(name, case):
    codes, dim, make = LATENTS[case]
    if (name, case) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name, case]):
            small_quantizer(name, codes, dim)
        return
    quantizer = small_quantizer(name, codes, dim)
    side = 2 * quantizer.downsampling
    for _ in range(3):  # the third one is of statistics that the others have left
        encoder_output = make(2, quantizer.encoder_channels, side, side)
        if encoder_output.shape[2] == 1:
            encoder_output = encoder_output.repeat(1, 1, quantizer.downsampling, quantizer.downsampling)
        encoder_output = encoder_output.clone().requires_grad_(True)
        quantizer.check_batch(10**6, 1)
        output = quantizer(encoder_output)
        decoded = [part for part in (output.quantized, output.sampled) if part is not None]
        value = sum(part.square().mean() for part in decoded) + total(quantizer, output.losses)
        value.backward()
        found = [*decoded, *output.losses.values(), encoder_output.grad]
        found += [parameter.grad for parameter in quantizer.parameters() if parameter.grad is not None]
        assert all(tensor.isfinite().all() for tensor in found), [tensor.isfinite().all() for tensor in found]
        with torch.no_grad():
            for parameter in quantizer.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad.sign()
                    parameter.grad = None
        quantizer.after_update(encoder_output.detach(), output.codes)
        assert all(tensor.isfinite().all() for tensor in quantizer.state_dict().values())
    quantizer.eval()
    latents = quantizer.latents(encoder_output.detach())
    assert quantizer.quantize_latents(latents).isfinite().all()
    if quantizer.depth:
        assert quantizer.encode(latents).max() < quantizer.codebook_size


@every
def test_it_is_computed_in_float32_under_autocast(name):
    quantizer = small_quantizer(name).eval()
    encoder_output = torch.randn(2, quantizer.encoder_channels, 4, 4).bfloat16()
    expected = quantizer(encoder_output.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(encoder_output)
    assert found.quantized.dtype == torch.bfloat16
    assert torch.equal(found.quantized, expected.quantized.bfloat16())
    for loss_name, loss in found.losses.items():
        assert loss.dtype == torch.float32 and torch.equal(loss, expected.losses[loss_name])


@pytest.mark.slow
def test_processes_with_equal_global_batch_train_as_one(tmp_path):
    """One pair of processes trains every quantizer, as starts take longer than all of it."""
    command = [sys.executable, str(WORKER), str(tmp_path)]
    workers = [
        forked_process.PreloadedProcess([*command, *of], tmp_path) for of in (("0", "2"), ("1", "2"), ("0", "1"))
    ]
    for worker in workers:
        assert worker.wait(300) == 0, worker.output()
    alone, *together = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert sorted({key.split(" ")[0] for key in alone}) == sorted(CASES)
    wrong = {}
    for found in together:
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            difference = (found[key].double() - value.double()).abs().max().item()
            if not difference <= 1e-9 * max(1.0, value.double().abs().max().item()):
                wrong[key] = difference
    assert not wrong, json.dumps(wrong, indent=1)
