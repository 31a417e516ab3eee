import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import alexnet
from transformers import Dinov2Config, Dinov2Model

from pipelines.metrics import extractors
from pipelines.metrics.extractors import Extractor, ExtractorConfig, make_extractor, register_extractor, resized
from tokenizer.losses.lpips import WeightFiles

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)
LAST_BIT = {"rtol": 1.2e-7, "atol": 1e-30}  # of a float32


def pictures(n, size, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def drawn(shapes, generator):
    """Weights for which activations neither vanish nor explode, and small biases."""
    return {
        name: torch.randn(shape, generator=generator) * (math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in alexnet(weights=None).state_dict().items() if "features" in name}
    path = tmp_path_factory.mktemp("alexnet") / "stand-in.pth"
    torch.save(drawn(shapes, torch.Generator().manual_seed(0)), path)
    return path


def alexnet_config(path, **options):
    return ExtractorConfig(weights=WeightFiles(alexnet=str(path), accept_sha256=sha256(path)), **options)


@pytest.fixture(scope="module")
def alexnet_extractor(alexnet_file):
    return make_extractor("alexnet", alexnet_config(alexnet_file))


def test_alexnets_numbers_are_named_by_the_hash_of_its_weights(alexnet_file, alexnet_extractor, tmp_path):
    digest = sha256(alexnet_file)
    assert alexnet_extractor.name == f"alexnet-{digest[:8]}"
    assert alexnet_extractor.sha256 == digest
    assert not alexnet_extractor.is_fid
    other = tmp_path / "stand-in.safetensors"
    safetensors.torch.save_file(torch.load(alexnet_file), other)
    again = make_extractor("alexnet", alexnet_config(other))
    assert again.name == f"alexnet-{sha256(other)[:8]}" != alexnet_extractor.name
    images = pictures(2, 40)
    assert torch.equal(again.extract(images)[0], alexnet_extractor.extract(images)[0])


def test_published_weights_need_no_hash_in_the_name(alexnet_file, monkeypatch):
    monkeypatch.setattr(extractors, "ALEXNET", replace(extractors.ALEXNET, sha256=(sha256(alexnet_file),)))
    weights = WeightFiles(alexnet=str(alexnet_file))
    assert make_extractor("alexnet", ExtractorConfig(weights=weights)).name == "alexnet"
    assert make_extractor("alexnet", ExtractorConfig(weights=weights, resize=64)).name == "alexnet-64px"


def test_alexnets_features_are_its_last_channels_averaged(alexnet_file, alexnet_extractor):
    tensors = {name: value.double() for name, value in torch.load(alexnet_file).items()}
    images = pictures(3, 48)
    values = (images.double() / 255 - MEAN) / STD
    for layer, stride, padding, pool in ((0, 4, 2, True), (3, 1, 2, True), (6, 1, 1, False), (8, 1, 1, False)):
        weight, bias = tensors[f"features.{layer}.weight"], tensors[f"features.{layer}.bias"]
        values = F.relu(F.conv2d(values, weight, bias, stride, padding))
        values = F.max_pool2d(values, 3, 2) if pool else values
    values = F.relu(F.conv2d(values, tensors["features.10.weight"], tensors["features.10.bias"], 1, 1))
    features, logits = alexnet_extractor.extract(images)
    assert logits is None
    assert features.dtype == torch.float32 and features.shape == (3, 256)
    assert features.std() > 0.01
    torch.testing.assert_close(features, values.mean(dim=(2, 3)).float(), **LAST_BIT)


def test_features_do_not_depend_on_the_batch_to_the_last_bit(alexnet_extractor):
    images = pictures(9, 40)
    whole, _ = alexnet_extractor.extract(images)
    for batch in (1, 2, 4):
        assert torch.equal(torch.cat([alexnet_extractor.extract(part)[0] for part in images.split(batch)]), whole)
    assert torch.equal(alexnet_extractor.extract(images.flip(0))[0], whole.flip(0))


def test_grey_images_are_read_as_three_equal_channels(alexnet_extractor):
    grey = pictures(3, 40, channels=1)
    assert torch.equal(alexnet_extractor.extract(grey)[0], alexnet_extractor.extract(grey.repeat(1, 3, 1, 1))[0])


def test_alexnet_takes_31_pixels_and_no_fewer(alexnet_extractor):
    assert alexnet_extractor.extract(pictures(1, 31))[0].isfinite().all()
    for images in (pictures(1, 28), pictures(1, 40)[..., :30]):
        with pytest.raises(ValueError, match=r"too small for alexnet-\w{8}, which takes 31 pixels.*--resize"):
            alexnet_extractor.extract(images)
    with pytest.raises(ValueError, match="images of 28x40 are too small"):
        alexnet_extractor.check_size(28, 40)


def test_a_resize_is_recorded_and_done_before_anything_else(alexnet_file, alexnet_extractor):
    resizing = make_extractor("alexnet", alexnet_config(alexnet_file, resize=64))
    assert resizing.name == f"{alexnet_extractor.name}-64px"
    assert resizing.input_text == "bicubic antialiased to 64, uint8; " + alexnet_extractor.input_text
    images = pictures(3, 28)
    resizing.check_size(28, 28)
    expected, _ = alexnet_extractor.extract(resized(images, 64))
    assert torch.equal(resizing.extract(images)[0], expected)
    with pytest.raises(ValueError, match="takes images of 31 pixels and more, not resize 30"):
        make_extractor("alexnet", alexnet_config(alexnet_file, resize=30))


@pytest.mark.parametrize(("before", "after"), [(40, 24), (28, 64)])
def test_resizing_is_pils_bicubic_up_to_its_rounding(before, after):
    images = pictures(2, before) // 2 + 64  # nothing to clamp, which PIL does after each of its two passes
    found = resized(images, after)
    assert found.dtype == torch.uint8 and found.shape == (2, 3, after, after)
    for image, ours in zip(images, found, strict=True):
        pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((after, after), Image.Resampling.BICUBIC)
        difference = ours.permute(1, 2, 0).int() - torch.from_numpy(np.asarray(pil).copy()).int()
        assert difference.abs().max() <= 1
        assert difference.abs().float().mean() < 0.3


def test_extractors_are_frozen_and_compute_in_the_precision_asked_for(alexnet_file, alexnet_extractor):
    single = make_extractor("alexnet", alexnet_config(alexnet_file, double=False))
    for extractor, dtype in ((alexnet_extractor, torch.float64), (single, torch.float32)):
        assert {weight.dtype for weight in extractor.parameters()} == {dtype}
        assert not extractor.training and not any(weight.requires_grad for weight in extractor.parameters())
    images = pictures(2, 40)
    rounded, exact = single.extract(images)[0], alexnet_extractor.extract(images)[0]
    torch.testing.assert_close(rounded, exact, rtol=1e-4, atol=1e-6)
    assert not torch.equal(rounded, exact)


def test_images_of_another_kind_are_refused(alexnet_extractor):
    images = pictures(2, 40)
    for wrong in (images.float(), images[0], images[:, :2], images.to(torch.int64)):
        with pytest.raises(ValueError, match=r"not uint8 \(B, 3 or 1, H, W\)"):
            alexnet_extractor.extract(wrong)


def test_weights_of_another_network_are_refused(alexnet_file, tmp_path):
    tensors = torch.load(alexnet_file)
    del tensors["features.8.bias"]
    path = tmp_path / "w.pth"
    for wrong in (tensors, tensors | {"features.8.bias": torch.zeros(255)}):
        torch.save(wrong, path)
        with pytest.raises(ValueError, match=r"AlexNet weights have no features\.8\.bias of \(256,\)"):
            make_extractor("alexnet", alexnet_config(path))
        with pytest.raises(ValueError, match="Inception weights are of another network") as error:
            weights = WeightFiles(inception=str(path), accept_sha256=sha256(path))
            make_extractor("inception", ExtractorConfig(weights=weights))
        assert "\n" not in str(error.value)


class Untrained(FeatureExtractorInceptionV3):
    def load_state_dict(self, *args, **kwargs):
        """Keeps what was drawn."""


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "stand-in.pth"
    torch.save({}, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Untrained("drawn", ["2048"], feature_extractor_weights_path=str(path))
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.8, 1.2)
        nn.init.normal_(network.fc.weight, std=0.2)
        nn.init.normal_(network.fc.bias)
        torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception_weights(inception_file):
    return WeightFiles(inception=str(inception_file), accept_sha256=sha256(inception_file))


def test_inceptions_features_and_logits_are_torch_fidelitys(inception_file, inception_weights):
    images = pictures(2, 32)
    theirs = FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_file)
    )
    for double in (False, True):
        if double:
            theirs.double().feature_extractor_internal_dtype = torch.float64  # its option for this has no effect
        expected = theirs(images)
        extractor = make_extractor("inception", ExtractorConfig(weights=inception_weights, double=double))
        for ours, peer in zip(extractor.extract(images), expected, strict=True):
            assert peer.std(dim=0).max() > 1e-3 * peer.abs().max()  # the two images are told apart
            tolerance = 1.2e-7 if double else 1e-6
            torch.testing.assert_close(ours, peer, rtol=tolerance, atol=tolerance * peer.abs().max().item())
    digest = sha256(inception_file)
    assert extractor.name == f"inception-{digest[:8]}" and extractor.sha256 == digest
    assert not extractor.is_fid
    assert extractor.extract(pictures(1, 5, channels=1))[0].isfinite().all()  # any size, and grey


def test_only_the_published_inception_fed_as_it_was_gives_fid(inception_file, monkeypatch):
    published = replace(extractors.INCEPTION, sha256=(sha256(inception_file),))
    monkeypatch.setattr(extractors, "INCEPTION", published)
    weights = WeightFiles(inception=str(inception_file))
    extractor = make_extractor("inception", ExtractorConfig(weights=weights))
    assert extractor.is_fid and extractor.name == "inception-v3-compat"
    resizing = make_extractor("inception", ExtractorConfig(weights=weights, resize=64))
    assert not resizing.is_fid and resizing.name == "inception-v3-compat-64px"


def test_the_official_input_is_resized_by_pil_to_229_and_from_there_to_299(inception_weights):
    official = make_extractor("inception", ExtractorConfig(weights=inception_weights, fid_input_229=True))
    images = pictures(2, 32)
    small = np.stack(
        [
            np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((229, 229), Image.BILINEAR))
            for image in images
        ]
    )
    large = F.interpolate(
        torch.from_numpy(small).permute(0, 3, 1, 2).double(), size=(299, 299), mode="bilinear", align_corners=False
    )
    expected = official.trunk(2 * large / 255 - 1).flatten(1)
    features, logits = official.extract(images)
    torch.testing.assert_close(features, expected.float(), **LAST_BIT)
    torch.testing.assert_close(logits, (expected @ official.head.weight.T).float(), rtol=1e-6, atol=1e-6)
    assert official.input_text.startswith("229, PIL bilinear, uint8; 299")
    official.fid_input_229 = False
    assert (official.extract(images)[0] - features).abs().max() > 1e-3 * features.abs().max()


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-dinov2"
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(config)
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    return folder


def test_dinov2s_features_are_its_class_token(dinov2_folder):
    images = pictures(2, 32)
    extractor = make_extractor("dinov2", ExtractorConfig(dinov2=str(dinov2_folder)))
    assert extractor.name == f"tiny-dinov2-{extractor.sha256[:8]}" and not extractor.is_fid
    features, logits = extractor.extract(images)
    assert logits is None and features.shape == (2, 32)
    pixels = F.interpolate(images.double(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    model = Dinov2Model.from_pretrained(dinov2_folder).double().eval()
    with torch.no_grad():
        tokens = model((pixels / 255 - MEAN) / STD).last_hidden_state
    assert tokens.shape == (2, 257, 32)
    torch.testing.assert_close(features, tokens[:, 0].float(), rtol=1e-6, atol=1e-6)
    assert (tokens[0, 0] - tokens[0, 1]).abs().max() > 1e-3 < (features[0] - features[1]).abs().max()
    single = torch.cat([extractor.extract(image[None])[0] for image in images])
    assert torch.equal(single, features)


def test_dinov2s_hash_is_of_its_weights(dinov2_folder, tmp_path):
    first, second = (make_extractor("dinov2", ExtractorConfig(dinov2=str(dinov2_folder))) for _ in range(2))
    assert first.sha256 == second.sha256 and len(first.sha256) == 64
    model = Dinov2Model.from_pretrained(dinov2_folder)
    model.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        model.layernorm.bias[3] += 1e-3
    model.save_pretrained(tmp_path / "changed")
    hashes = [make_extractor("dinov2", ExtractorConfig(dinov2=str(tmp_path / n))).sha256 for n in ("same", "changed")]
    assert hashes[0] == first.sha256 != hashes[1]


def test_missing_and_damaged_dinov2_weights_are_one_line(dinov2_folder, tmp_path):
    damaged, empty = tmp_path / "damaged", tmp_path / "empty"
    for folder in (damaged, empty):
        folder.mkdir()
    (damaged / "config.json").write_bytes((dinov2_folder / "config.json").read_bytes())
    (damaged / "model.safetensors").write_bytes((dinov2_folder / "model.safetensors").read_bytes()[:1000])
    for folder in (tmp_path / "absent", empty, damaged):
        with pytest.raises(ValueError, match=r"no DINOv2 weights in .*--dinov2") as error:
            make_extractor("dinov2", ExtractorConfig(dinov2=str(folder)))
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(extractors, "EXTRACTORS", dict(extractors.EXTRACTORS))


class Mean(Extractor):
    """The mean of each channel."""

    def __init__(self, config):
        super().__init__("mean", "0" * 64, smallest=2, input_text="as it is", is_fid=True, resize=config.resize)
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, pixels):
        return self.factor * pixels.mean(dim=(2, 3)), None


def test_an_extractor_of_ones_own_is_made_under_its_name(registry):
    register_extractor("mean-of-test", Mean)
    extractor = make_extractor("mean-of-test")
    assert isinstance(extractor, Mean) and not extractor.factor.requires_grad and not extractor.training
    images = pictures(3, 4)
    expected = 2 * images.double().mean(dim=(2, 3))
    torch.testing.assert_close(extractor.extract(images)[0], expected.float(), **LAST_BIT)
    assert extractor.is_fid and not make_extractor("mean-of-test", ExtractorConfig(resize=8)).is_fid


def test_a_name_is_registered_once_and_unknown_names_list_the_known_ones(registry):
    register_extractor("mean-of-test", Mean)
    for taken in ("mean-of-test", "alexnet"):
        with pytest.raises(ValueError, match=f"'{taken}' is registered already"):
            register_extractor(taken, Mean)
    with pytest.raises(ValueError, match=r"no extractor 'vgg'; .*inception, alexnet, dinov2, .*mean-of-test"):
        make_extractor("vgg")


def test_an_extractor_without_forward_says_so():
    extractor = Extractor("none", "0" * 64, smallest=1, input_text="")
    with pytest.raises(TypeError, match="Extractor defines no forward"):
        extractor(torch.zeros(1, 3, 2, 2))


def test_the_expected_hash_of_inception_is_the_one_in_its_files_name():
    assert Path(extractors.INCEPTION.url).name.endswith(f"-{extractors.INCEPTION.sha256[0][:8]}.pth")
