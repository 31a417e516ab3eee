import json

import numpy as np
import pytest
import torch
from pipeline_calls import quiet, sample, seeded
from quantizer_cases import small_tokenizer
from torch._dynamo.utils import counters

from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from priors import PixelCNN
from priors.pixelcnn import code_grid
from tokenizer import VQTokenizer

ID2LABEL = {0: "zero", 1: "one, single", 2: "two"}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    vqvae = VQTokenizer(
        in_channels=1,
        image_size=16,
        codebook_size=32,
        codebook_dim=4,
        hidden_channels=8,
        network_options={"residual_channels": 4},
    )
    prior = PixelCNN(32, 3, (4, 4), channels=8, num_layers=3, head_channels=16)
    with torch.no_grad():  # random weights give nearly uniform codes and grey images
        prior.head[-1].weight.mul_(20)
        vqvae.decoder.conv_out.weight.mul_(20)
    return vqvae.eval(), prior.eval()


@pytest.fixture
def pipe(parts):
    return quiet(ArcVQPixelCNNPipeline(*parts, ID2LABEL))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.5}])
def test_equals_the_priors_codes_decoded(pipe, options):
    codes = pipe.prior.sample(torch.tensor([0, 2]), seeded(0, 2), **options)
    expected = (pipe.vqvae.decode_codes(codes) / 2 + 0.5).clamp(0, 1)
    found = sample(pipe, **options)
    assert torch.equal(found, expected) and found.std() > 0.05
    if options:
        assert not torch.equal(found, sample(pipe))


def test_a_batch_equals_its_singles(pipe):
    labels, seeds = (2, 0, 2), (21, 22, 23)
    batch = sample(pipe, labels, seeds)
    for image, label, seed in zip(batch, labels, seeds, strict=True):
        torch.testing.assert_close(sample(pipe, [label], [seed])[0], image, rtol=0, atol=1e-5)
    assert not torch.equal(batch[0], batch[2])


def test_one_generator_or_none_serves_all_images(pipe):
    first = sample(pipe, (1, 1), generator=seeded(4)[0])
    assert torch.equal(sample(pipe, (1, 1), generator=seeded(4)[0]), first)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(6)
    without = sample(pipe, generator=None)
    torch.manual_seed(6)
    assert torch.equal(sample(pipe, generator=None), without)


def test_output_types_agree(pipe):
    pt, array, pil = (sample(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    assert pt.shape == (2, 1, 16, 16) and pt.min() >= 0 and pt.max() <= 1
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    for image, values in zip(pil, array, strict=True):
        assert image.mode == "L" and image.size == (16, 16)
        assert np.array_equal(np.asarray(image), np.round(values[:, :, 0] * 255).astype(np.uint8))
    (plain,) = pipe([0, 2], generator=seeded(0, 2), output_type="pt", return_dict=False)
    assert torch.equal(plain, pt)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([3], {}, "class label 3 is out of range: the classes are 0 to 2"),
        ([1.0], {}, "one or more integers"),
        ([], {}, "one or more integers"),
        ([0, 1], {"generator": seeded(1)}, "2 images need 2 generators"),
        ([0], {"output_type": "jpeg"}, "output_type is one of pil, np, pt"),
        ([0], {"temperature": 0.0}, "temperature must be above 0"),
        ([0], {"temperature": -1.0}, "temperature must be above 0"),
        ([0], {"top_k": 0}, "top_k must be at least 1"),
        ([0], {"top_p": 0.0}, "top_p must be above 0"),
        ([0], {"top_p": 1.1}, "at most 1"),
    ],
)
def test_refuses_before_the_prior_runs(pipe, labels, options, message):
    calls = []
    hook = pipe.prior.register_forward_pre_hook(lambda *args: calls.append(args))
    with pytest.raises(ValueError, match=message):
        pipe(labels, **options)
    hook.remove()
    assert calls == []


def test_save_and_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["vqvae"] == ["tokenizer.model", "VQTokenizer"] and index["prior"] == ["priors.pixelcnn", "PixelCNN"]
    loaded = quiet(ArcVQPixelCNNPipeline.from_pretrained(tmp_path))
    assert loaded.class_names == ID2LABEL and loaded.get_label_ids(["single", "two"]) == [1, 2]
    for component in ("vqvae", "prior"):
        saved, restored = (getattr(p, component).state_dict() for p in (pipe, loaded))
        assert saved.keys() == restored.keys() and all(torch.equal(saved[key], restored[key]) for key in saved)
    torch.testing.assert_close(sample(loaded), sample(pipe), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="holds a ArcVQPixelCNNPipeline, not a ArcVQLDMPipeline"):
        ArcVQLDMPipeline.from_pretrained(tmp_path)


def test_a_hub_id_is_fetched_then_loaded_from_its_folder(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    calls = []
    fetch = lambda *args, **kwargs: calls.append(args[0]) or str(tmp_path)  # noqa: E731
    monkeypatch.setattr("tokenizer.loading.model_folder.snapshot_download", fetch)
    loaded = ArcVQPixelCNNPipeline.from_pretrained("someone/model")
    assert calls == ["someone/model"] and torch.equal(loaded.prior.embedding.weight, pipe.prior.embedding.weight)


@pytest.mark.parametrize(("codes", "grid"), [(31, (4, 4)), (32, (4, 5)), (32, (8, 8))])
def test_a_prior_over_another_grid_is_refused(parts, codes, grid):
    prior = PixelCNN(codes, 3, grid, channels=8, num_layers=1, head_channels=8)
    with pytest.raises(ValueError, match=r"the tokenizer has \(32, 4, 4\)"):
        ArcVQPixelCNNPipeline(parts[0], prior)


def test_names_must_cover_the_classes(parts):
    with pytest.raises(ValueError, match="must name the classes 0 to 2"):
        ArcVQPixelCNNPipeline(*parts, {0: "a", 1: "b", 2: "c", 3: "null"})


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [("vae", "quantizer 'vae' gives no codes"), ("rq", "quantizer 'rq' gives 4 codes for each token")],
)
def test_a_tokenizer_without_one_code_for_each_token_is_refused(quantizer, message):
    tokenizer = small_tokenizer(quantizer)
    for call in (lambda: code_grid(tokenizer), lambda: ArcVQPixelCNNPipeline(tokenizer, PixelCNN(12, 3, (4, 4)))):
        with pytest.raises(ValueError, match=message + "; train the latent diffusion prior"):
            call()


@torch.no_grad()
def test_a_prior_with_a_null_class_is_guided(parts):
    prior = PixelCNN(32, 3, (4, 4), channels=8, num_layers=3, head_channels=16, label_dropout=0.1).eval()
    prior.head[-1].weight.mul_(20)
    pipe = quiet(ArcVQPixelCNNPipeline(parts[0], prior, ID2LABEL))
    codes = prior.sample(torch.tensor([0, 2]), seeded(0, 2), guidance_scale=3.0)
    expected = (pipe.vqvae.decode_codes(codes) / 2 + 0.5).clamp(0, 1)
    found = sample(pipe, guidance_scale=3.0)
    assert torch.equal(found, expected) and not torch.equal(found, sample(pipe))
    with pytest.raises(ValueError, match="class label 3 is out of range"):  # the null class is none to ask for
        pipe([3])


def test_guidance_without_a_null_class_is_refused(pipe):
    with pytest.raises(ValueError, match=r"train one with --prior\.label_dropout 0\.1"):
        pipe([0], guidance_scale=2.0)


@torch.no_grad()
def test_images_are_completed(pipe):
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    codes = pipe.vqvae.encode_codes(images)
    known = codes.clone()
    known[:, 2:] = -1
    seen = []
    completed = sample(pipe, codes=known, callback_on_step_end=lambda *args: seen.append(args[3]["codes"]) or {})
    assert torch.equal(seen[-1][:, :2], codes[:, :2]) and (seen[-1] >= 0).all()
    assert not torch.equal(completed, sample(pipe))
    whole = sample(pipe, codes=codes)
    assert torch.equal(whole, (pipe.vqvae.decode_codes(codes) / 2 + 0.5).clamp(0, 1))


@torch.no_grad()
def test_bits_per_dimension_are_those_of_the_codes_over_the_pixels(pipe):
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    codes = pipe.vqvae.encode_codes(images)
    log_probabilities = pipe.prior(codes, torch.tensor([1, 0])).log_softmax(dim=1).gather(1, codes[:, None])
    expected = -log_probabilities.sum(dim=(1, 2, 3)) / 0.6931471805599453 / 256
    torch.testing.assert_close(pipe.bits_per_dimension(images, [1, 0]), expected)


@pytest.mark.slow
def test_the_compiled_step_gives_the_same_images(parts):
    pipe = quiet(ArcVQPixelCNNPipeline(*parts, ID2LABEL))
    plain = sample(pipe)
    counters["stats"].clear()
    assert torch.equal(sample(pipe.optimize(compile=True)), plain)
    assert counters["stats"]["unique_graphs"] == 1


def test_decoding_in_slices_changes_nothing(pipe, monkeypatch):
    sizes = []
    decode = pipe.vqvae.decode_codes
    monkeypatch.setattr(pipe.vqvae, "decode_codes", lambda codes: sizes.append(len(codes)) or decode(codes))
    whole = sample(pipe, (0, 1, 2))
    monkeypatch.setattr("pipelines.class_conditional.DECODED_AT_ONCE", 2 * 16**2 + 1)
    torch.testing.assert_close(sample(pipe, (0, 1, 2)), whole, rtol=0, atol=1e-5)
    assert sizes == [3, 2, 1]


def test_bits_of_other_than_a_label_per_image_are_refused(pipe):
    with pytest.raises(ValueError, match="2 images need as many class_labels, got 1"):
        pipe.bits_per_dimension(torch.zeros(2, 1, 16, 16), [1])
