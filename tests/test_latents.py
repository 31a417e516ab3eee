import pytest
import torch

from priors.latents import cache_file, encode_dataset, tokenizer_fingerprint
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, load_images


class Images(torch.utils.data.Dataset):
    """Images in memory, with the fingerprint of a data set read from disk."""

    def __init__(self, count=10, name="first"):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1
        self.labels = torch.arange(count) % 3
        self.name = name

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"images": self.images[index], "labels": self.labels[index]}

    def fingerprint(self):
        return self.name


@pytest.fixture
def model():
    return VQTokenizer(
        in_channels=1, image_size=8, codebook_size=12, codebook_dim=4, hidden_channels=8, residual_channels=4
    ).eval()


@pytest.fixture
def no_encoder(monkeypatch):
    def forbid():
        def encode(*_):
            raise AssertionError("the encoder ran")

        monkeypatch.setattr(VQTokenizer, "encode", encode)

    return forbid


def assert_equal(found, expected):
    for name in ("latents", "codes", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@torch.no_grad()
def test_equals_the_tokenizer_image_by_image_in_order(model, tmp_path):
    dataset = Images()
    encoded = encode_dataset(model, dataset, tmp_path, batch_size=4)
    assert encoded.latents.shape == (10, 4, 2, 2) and encoded.latents.dtype == torch.float32
    assert encoded.codes.shape == (10, 2, 2) and encoded.codes.dtype == torch.int64
    for index, image in enumerate(dataset.images):
        torch.testing.assert_close(encoded.latents[index], model.encode(image[None]).latents[0])
        assert torch.equal(encoded.codes[index], model.encode_codes(image[None])[0])
    assert torch.equal(encoded.labels, dataset.labels)
    assert not encoded.latents.requires_grad


def test_a_second_call_reads_the_file_without_the_encoder(model, tmp_path, no_encoder):
    first = encode_dataset(model, Images(), tmp_path / "new" / "folder")
    no_encoder()
    assert_equal(encode_dataset(model, Images(), tmp_path / "new" / "folder"), first)
    with pytest.raises(AssertionError, match="the encoder ran"):
        encode_dataset(model, Images(), tmp_path)


def test_only_the_finished_file_is_left(model, tmp_path):
    encode_dataset(model, Images(), tmp_path)
    assert list(tmp_path.iterdir()) == [cache_file(model, Images(), tmp_path)]


def test_nothing_is_left_when_the_encoding_is_interrupted(model, tmp_path):
    def interrupted(batches):
        yield from list(batches)[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(model, Images(), tmp_path, batch_size=2, progress=interrupted)
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_another_weight_code_config_or_data_set_is_another_file(model, tmp_path):
    files = [cache_file(model, Images(), tmp_path), cache_file(model, Images(name="second"), tmp_path)]
    for weight in (model.encoder.conv_in.weight, model.codebook):
        weight[0, 0].add_(1e-3)
        files.append(cache_file(model, Images(), tmp_path))
    other = VQTokenizer(**{**model.config, "quantizer": "vq"})
    other.load_state_dict(model.state_dict())
    files.append(cache_file(other, Images(), tmp_path))
    assert len(set(files)) == len(files)


def test_a_changed_weight_is_encoded_anew(model, tmp_path):
    first = encode_dataset(model, Images(), tmp_path)
    with torch.no_grad():
        model.encoder.conv_out.bias.add_(1)
    second = encode_dataset(model, Images(), tmp_path)
    torch.testing.assert_close(second.latents, first.latents + 1)


def test_the_step_and_a_reload_do_not_matter(model, tmp_path):
    fingerprint = tokenizer_fingerprint(model)
    model.bottleneck.step += 100
    assert tokenizer_fingerprint(model) == fingerprint
    model.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(VQTokenizer.from_pretrained(tmp_path)) == fingerprint


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_computed_again(model, tmp_path, kept, no_encoder):
    expected = encode_dataset(model, Images(), tmp_path)
    file = cache_file(model, Images(), tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:kept])
    assert_equal(encode_dataset(model, Images(), tmp_path), expected)
    assert file.read_bytes() == whole
    no_encoder()
    assert_equal(encode_dataset(model, Images(), tmp_path), expected)


def test_the_latent_scale_gives_unit_deviation(model, tmp_path):
    with torch.no_grad():
        model.encoder.conv_out.weight.mul_(40)
    encoded = encode_dataset(model, Images(50), tmp_path)
    assert abs(encoded.latents.std() - 1) > 0.1
    assert (encoded.latents * encoded.latent_scale).double().std().item() == pytest.approx(1, rel=1e-6)


def test_encodes_a_data_set_by_name(tmp_path):
    model = VQTokenizer(
        in_channels=1, image_size=32, codebook_size=12, codebook_dim=4, hidden_channels=8, residual_channels=4
    )
    dataset = load_images(DataConfig(), "test")
    seen = []
    encoded = encode_dataset(model, dataset, tmp_path, progress=lambda batches: seen.append(len(batches)) or batches)
    assert encoded.latents.shape == (360, 4, 8, 8) and seen == [2]
    assert torch.equal(encoded.labels, dataset.labels)
    assert not model.training
