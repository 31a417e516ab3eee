"""Trainings that start from a trained tokenizer, of all its parts or of the decoder alone."""

import pytest
import torch
from accelerate.state import AcceleratorState
from quantizer_cases import CASES, small_tokenizer
from safetensors.torch import load_file

from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run
from arcvq.training import tokenizer as train_tokenizer
from arcvq.training.start_from import load_start
from arcvq.training.tokenizer_step import TokenizerUpdate
from tokenizer import VQTokenizer

SMALL = [
    *("--data.image_size", "16", "--model.hidden_channels", "8", "--model.codebook_size", "16"),
    *("--model.codebook_dim", "4", "--optim.batch_size", "8", "--optim.warmup_steps", "0", "--run.log_every", "1"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of the digits after four steps."""
    home = tmp_path_factory.mktemp("home")
    return train(home, "base", "--optim.max_steps", "4")


def train(home, name, *options):
    AcceleratorState._reset_state(reset_partial_state=True)
    train_tokenizer.main([*SMALL, *map(str, options), "--run.output_dir", str(home), "--run.name", name])
    return home / name


def weights(run):
    return load_file(run / "tokenizer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--optim.accumulation", 2, "--ema_decay", 0.9, "--adversarial.weight", 0.8]])
def test_the_decoder_stage_leaves_encoder_table_and_codes_bit_for_bit(trained, tmp_path, extra):
    options = ("--start_from", trained, "--stage", "decoder", "--optim.max_steps", 3, "--optim.lr", 0.01)
    small = ("--adversarial.channels", 4, "--adversarial.layers", 2)
    before, after = weights(trained), weights(train(tmp_path, "decoder", *options, *small, *extra))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("decoder.")}
    images = 2 * torch.rand(4, 1, 16, 16) - 1
    codes = [VQTokenizer.from_pretrained(run).encode_codes(images) for run in (trained, tmp_path / "decoder")]
    assert torch.equal(*codes)


@pytest.mark.slow
def test_a_whole_training_goes_on_from_the_weights_and_the_quantizers_step(trained, tmp_path):
    after = weights(train(tmp_path, "further", "--start_from", trained, "--optim.max_steps", 1, "--optim.lr", 1e-6))
    before = weights(trained)
    assert after["bottleneck.step"] == before["bottleneck.step"] + 1 == 5
    assert all(torch.allclose(after[name], before[name], atol=1e-5) for name in before if name != "bottleneck.step")


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["arc", "product"])
def test_rates_that_were_scaled_are_no_other_tokenizer(tmp_path, quantizer):
    options = ("--model.quantizer", quantizer, "--schedule_length", 100)
    base = train(tmp_path, "scaled", *options, "--optim.max_steps", 2)
    plain = ("--model.quantizer", quantizer, "--start_from", base, "--stage", "decoder")
    train(tmp_path, "decoder", *plain, "--optim.max_steps", 1)


@pytest.mark.slow
def test_a_run_goes_on_with_the_decoder_alone(tmp_path):
    base = train(tmp_path, "run", "--optim.max_steps", 2)
    before = weights(base)
    options = ("--start_from", base, "--stage", "decoder", "--run.other_settings", "go_on", "--optim.max_steps", 4)
    after = weights(train(tmp_path, "run", *options))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        name for name in before if name.startswith("decoder.")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--stage", "decoder"], "name its folder with --start_from"),
        (["--start_from", "{base}", "--model.codebook_size", "32"], r"model.codebook_size is 32, .* has 16"),
        (["--start_from", "{base}", "--model.quantizer", "vq"], "model.quantizer is vq, .* has arc"),
        (["--start_from", "{base}", "--data.image_size", "8"], "has image_size 16, the images 8"),
        (["--start_from", "{base}", "--codebook_file", "table.safetensors"], "start_from and codebook_file both set"),
        (["--start_from", "nowhere"], "folder 'nowhere' is not there"),
    ],
)
def test_what_cannot_start_is_refused_before_anything_is_written(trained, tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        train(tmp_path, "refused", *(option.format(base=trained) for option in options))
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("parts", [1, 2])
def test_frozen_codes_decode_as_in_evaluation_and_give_gradients_to_the_decoder_alone(tmp_path, name, parts):
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(RunConfig("run", str(tmp_path)), OptimConfig(max_steps=10), {"run": {}})
    tokenizer = small_tokenizer(name, in_channels=3, codebook_dim=4).double()
    images = 2 * torch.rand(4, 3, 16, 16, dtype=torch.float64) - 1
    tokenizer.eval()
    expected = tokenizer.decode(tokenizer.encode(images).latents).sample
    loss = (images - expected).square().mean()
    decoder = list(tokenizer.decoder.parameters())
    gradients = torch.autograd.grad(loss, decoder)

    tokenizer.freeze_codes()
    trained = run.add_module(tokenizer, "model")
    trained.begin(0.0)
    trained.optimizer_step = lambda loss: torch.tensor(True)
    squared = SquaredError()
    state = {name: value.clone() for name, value in tokenizer.bottleneck.state_dict().items()}
    seen = TokenizerUpdate(run.accelerator, trained, squared)(images.chunk(parts), 0)
    torch.testing.assert_close(torch.cat(seen.reconstructions), expected)
    torch.testing.assert_close([parameter.grad for parameter in decoder], list(gradients))
    assert all(
        weight.grad is None for part in (tokenizer.encoder, tokenizer.bottleneck) for weight in part.parameters()
    )
    torch.testing.assert_close(tokenizer.bottleneck.state_dict(), state, rtol=0, atol=0)
    if tokenizer.has_codes:
        counted = tokenizer.bottleneck.counts_of(tokenizer.encode_codes(images))
        assert torch.equal(seen.counts, counted)


class SquaredError:
    def __call__(self, images, reconstructions):
        loss = (images - reconstructions).square().mean()
        return loss, {"reconstruction": loss}

    def observe_batch(self, *_):
        pass


def test_a_start_needs_images_of_its_own_size(tmp_path):
    VQTokenizer(1, 16, codebook_size=8, codebook_dim=4, hidden_channels=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has in_channels 1, the images 3"):
        load_start(VQTokenizer(3, 16, codebook_size=8, codebook_dim=4, hidden_channels=8), str(tmp_path))
