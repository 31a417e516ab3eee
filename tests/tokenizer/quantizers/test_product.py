"""Codes of chunks, against the base quantizer by itself on each chunk or on their stack."""

import copy
from typing import get_args

import pytest
import torch

from tokenizer import VQTokenizer
from tokenizer.quantizers import QUANTIZERS, make_quantizer
from tokenizer.quantizers.product import Base
from tokenizer.quantizers.tables import TableQuantizer

BASES = get_args(Base)
# Options of the base quantizers that make their step do more.
OPTIONS = {
    "arc": {"init": "kmeans", "revive_below": 0.5},
    "ema": {"revive_below": 0.5},
    "lc": {"feature_dim": 10},
    "sq": {"variance": "image"},
}
GROUPS, CODES, DIM = 3, 7, 4
every_base = pytest.mark.parametrize("base", BASES)


def product_of(base, groups=GROUPS, shared=False, dim=DIM):
    torch.manual_seed(0)
    options = {"base": base, "groups": groups, "shared": shared, "base_options": OPTIONS.get(base, {})}
    quantizer = make_quantizer("product", CODES, groups * dim, options).double()
    quantizer.set_total_steps(9)
    return quantizer


def step(quantizer, encoder_output, seed, first_image, share=1.0):
    """A training step's output, gradient at the encoder output, and state; `share` weighs the loss."""
    parameters = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    quantizer.seed_noise(seed, first_image)
    encoder_output = encoder_output.clone().requires_grad_()
    output, weights = quantizer(encoder_output), quantizer.loss_weights()
    decoded = [part for part in (output.quantized, output.sampled) if part is not None]
    loss = share * sum(weights[name] * loss for name, loss in output.losses.items())
    loss = loss + sum((part * part.detach().cos()).sum() for part in decoded)
    gradient, *of_parameters = torch.autograd.grad(loss, [encoder_output, *parameters])
    with torch.no_grad():
        for parameter, change in zip(parameters, of_parameters, strict=True):
            parameter -= 0.1 * change
    quantizer.after_update(encoder_output.detach(), output.codes)
    return output, gradient


def check_equal_state(found, expected):
    assert found.state_dict().keys() == expected.state_dict().keys()
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


def test_a_base_is_any_quantizer_with_one_table_and_one_code_per_token():
    assert sorted(BASES) == sorted(
        name for name, kind in QUANTIZERS.items() if issubclass(kind, TableQuantizer) and name != "rq"
    )


@every_base
@pytest.mark.parametrize("shared", [False, True])
def test_one_group_is_the_base_quantizer_to_the_bit(base, shared):
    quantizer = product_of(base, groups=1, shared=shared)
    alone = copy.deepcopy(quantizer.bases[0])
    for number in range(3):
        encoder_output = torch.randn(2, alone.encoder_channels, 3, 4, dtype=torch.float64)
        found, gradient = step(quantizer, encoder_output, number, 5)
        expected, of_base = step(alone, encoder_output, number, 5)
        assert torch.equal(found.quantized, expected.quantized) and torch.equal(gradient, of_base)
        assert torch.equal(found.codes, expected.codes) and torch.equal(found.counts, expected.counts)
        assert found.losses.keys() == expected.losses.keys()
        assert all(torch.equal(loss, expected.losses[name]) for name, loss in found.losses.items())
        own = quantizer.bases[0].state_dict()
        assert all(torch.equal(value, own[name]) for name, value in alone.state_dict().items())
    assert torch.equal(quantizer.codebook, alone.codebook)


@every_base
def test_tables_of_their_own_are_independent_quantizers_of_the_chunks(base):
    quantizer = product_of(base)
    alone = copy.deepcopy(list(quantizer.bases))
    for number in range(3):
        parts = [torch.randn(2, one.encoder_channels, 3, 4, dtype=torch.float64) for one in alone]
        found, gradient = step(quantizer, torch.cat(parts, dim=1), number, 5)
        each = [
            step(one, part, GROUPS * number + index, 5, share=1 / GROUPS)
            for index, (one, part) in enumerate(zip(alone, parts, strict=True))
        ]
        outputs, gradients = zip(*each, strict=True)
        assert torch.equal(found.quantized, torch.cat([output.quantized for output in outputs], dim=1))
        assert torch.equal(found.codes, torch.stack([output.codes for output in outputs], dim=-1))
        assert torch.equal(found.counts, torch.cat([output.counts for output in outputs]))
        for name, loss in found.losses.items():
            torch.testing.assert_close(loss, sum(output.losses[name] for output in outputs) / GROUPS)
        torch.testing.assert_close(gradient, torch.cat(gradients, dim=1))
        for one, own in zip(alone, quantizer.bases, strict=True):
            check_equal_state(own, one)
        if found.sampled is not None:  # the chunks' noise is not one noise repeated
            noise = (found.sampled - quantizer.latents(torch.cat(parts, dim=1))).chunk(GROUPS, dim=1)
            assert not torch.equal(noise[0].sign(), noise[1].sign())
    assert torch.equal(quantizer.codebook, torch.cat([one.codebook for one in alone]))


@every_base
def test_a_shared_table_is_the_base_quantizer_of_the_chunks_as_images(base):
    """The stack is made by loops: the chunks of the first image, then those of the second, and so on."""
    quantizer = product_of(base, shared=True)
    alone = copy.deepcopy(quantizer.bases[0])
    channels = alone.encoder_channels
    for number in range(3):
        encoder_output = torch.randn(2, GROUPS * channels, 3, 4, dtype=torch.float64)
        stack = torch.stack([part for image in encoder_output for part in image.split(channels)])
        found, gradient = step(quantizer, encoder_output, number, 5)
        expected, of_stack = step(alone, stack, number, 5 * GROUPS)
        for image in range(2):
            for group in range(GROUPS):
                chunk, row = slice(group * DIM, (group + 1) * DIM), image * GROUPS + group
                assert torch.equal(found.quantized[image, chunk], expected.quantized[row])
                assert torch.equal(found.codes[image, :, :, group], expected.codes[row])
        assert torch.equal(gradient, of_stack.reshape(gradient.shape))
        assert torch.equal(found.counts, expected.counts)
        torch.testing.assert_close(found.losses, expected.losses)
        check_equal_state(quantizer.bases[0], alone)
    assert torch.equal(quantizer.codebook, alone.codebook)


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True])
def test_each_combination_of_codes_is_looked_up_and_found_again(shared):
    quantizer = product_of("vq", groups=2, shared=shared)
    codes = torch.cartesian_prod(torch.arange(CODES), torch.arange(CODES)).view(1, CODES, CODES, 2)
    latents = quantizer.lookup(codes)
    tables = quantizer.codebook.split(CODES) * (2 if shared else 1)
    for row in range(CODES):
        for column in range(CODES):
            assert torch.equal(latents[0, :, row, column], torch.cat([tables[0][row], tables[1][column]]))
    assert torch.equal(quantizer.encode(latents), codes)
    assert torch.equal(quantizer.quantize_latents(latents), latents)
    counts = torch.full((2 * CODES,), CODES) if not shared else torch.full((CODES,), 2 * CODES)
    assert torch.equal(quantizer.counts_of(codes), counts)


def test_usage_of_own_tables_is_over_the_rows_of_all():
    quantizer = product_of("vq", groups=2)
    with torch.no_grad():  # the first group's latents all get one code, the second's get all codes
        latents = quantizer.lookup(
            torch.stack([torch.zeros(CODES, dtype=torch.int64), torch.arange(CODES)], -1)[None, None]
        )
    assert quantizer(latents).usage.item() == pytest.approx((1 + CODES) / (2 * CODES))


@pytest.mark.parametrize("shared", [False, True])
@torch.no_grad()
def test_a_tokenizer_of_chunks_is_saved_with_the_options_of_its_base(tmp_path, shared):
    options = {"base": "ema", "groups": 2, "shared": shared, "base_options": {"decay": 0.5, "init": "normal"}}
    model = VQTokenizer(1, 16, quantizer="product", codebook_size=8, codebook_dim=4, quantizer_options=options).eval()
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    model.save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path)
    codes = model.encode_codes(images)
    assert codes.shape == (2, *model.code_shape) and model.code_shape[-1] == 2
    assert torch.equal(loaded.encode_codes(images), codes) and loaded.bottleneck.bases[0].decay == 0.5
    assert torch.equal(loaded.decode_codes(codes), model.decode_codes(codes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "product.groups must be at least 1, got 0"),
        ({"groups": 5}, "12 channels cannot be split into product.groups 5 chunks; set model.codebook_dim"),
        ({"base": "hvq"}, "product.base is one of arc, .*, got 'hvq'"),
        ({"base": "product"}, "product.base is one of"),
        ({"base_options": [1]}, r"product.base_options must be of type dict or null, got \[1\]"),
        ({"base": "ema", "base_options": {"margin": 1}}, "quantizer 'ema' has no option 'margin'; it has beta, decay"),
        ({"base_options": {"beta": "a"}}, "vq.beta must be of type float, got 'a'"),
    ],
)
def test_what_cannot_be_split_or_is_no_base_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer("product", 8, 12, options)


def test_a_batch_that_a_table_cannot_learn_from_is_refused():
    options = {"base": "ema", "groups": 2, "base_options": {"revive_below": 1.0}}
    own, shared = (make_quantizer("product", 8, 4, options | {"shared": each}) for each in (False, True))
    own.check_batch(8, 1)
    shared.check_batch(4, 1)
    for quantizer, tokens in ((own, 7), (shared, 3)):
        with pytest.raises(ValueError, match="cannot hit each of 8 codes"):
            quantizer.check_batch(tokens, 1)
