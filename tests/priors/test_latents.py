import pickle

import pytest
import torch
from fake_cuda import FakeCuda
from safetensors.torch import save_file

from priors.latents import (
    ENCODED_AT_ONCE,
    EncodedDataset,
    encode_images,
    encode_shard,
    finish_shard,
    latent_scale,
    shard_batches,
    tokenizer_fingerprint,
)
from tokenizer import VQTokenizer
from tokenizer.data import training_batches
from tokenizer.data.transport import on_device


class Images(torch.utils.data.Dataset):
    """Images in memory."""

    def __init__(self, count=10):
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1
        self.labels = torch.arange(count) % 3

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"images": self.images[index], "labels": self.labels[index]}


@pytest.fixture
def model():
    return VQTokenizer(
        in_channels=1,
        image_size=8,
        codebook_size=12,
        codebook_dim=4,
        hidden_channels=8,
        network_options={"residual_channels": 4},
    ).eval()


def encoded(model, images, folder, size=4, **options):
    """The data set over shards of `size` images each."""
    files, shards = [], [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    for shard, batches in zip(shards, shard_batches(images, shards, model.device), strict=True):
        files.append(folder / f"{shard.start}.safetensors")
        content = encode_shard(model, batches, **options)
        save_file(finish_shard(content, f"images {shard.start} to {shard.stop - 1}"), files[-1])
    return EncodedDataset(files)


@torch.no_grad()
def test_images_are_encoded_one_by_one_whatever_the_batch(model):
    images = Images(2 * ENCODED_AT_ONCE + 3).images
    found = encode_images(model, images)
    assert found["latents"].shape == (len(images), 4, 2, 2) and found["latents"].dtype == torch.float32
    assert found["codes"].shape == (len(images), 2, 2) and found["codes"].dtype == torch.int64
    for index in (0, ENCODED_AT_ONCE - 1, ENCODED_AT_ONCE, len(images) - 1):
        torch.testing.assert_close(found["latents"][index], model.encode(images[index, None]).latents[0])
        assert torch.equal(found["codes"][index], model.encode_codes(images[index, None])[0])
    assert not found["latents"].requires_grad


def test_the_shards_give_what_the_tokenizer_gives_to_the_bit(model, tmp_path):
    images = Images()
    found = encoded(model, images, tmp_path)
    assert len(found) == 10 and torch.equal(found.labels, images.labels)
    for first in range(0, 10, 4):
        chosen = list(range(first, min(first + 4, 10)))
        expected = encode_images(model, images.images[chosen]) | {"labels": images.labels[chosen]}
        batch = found[chosen]
        assert batch.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(batch[name], values) and batch[name].dtype == values.dtype


@pytest.mark.parametrize("order", [[0], [9, 0, 4, 3, 3, 8], [], list(range(10))])
def test_a_batch_is_made_of_its_items_in_any_order(model, tmp_path, order):
    found = encoded(model, Images(), tmp_path)
    batch = found[order]
    for place, index in enumerate(order):
        for name, value in found[index].items():
            assert torch.equal(batch[name][place], value)
    assert batch["latents"].shape == (len(order), 4, 2, 2)


@pytest.mark.parametrize("index", [10, -1, [3, 10], [-1]])
def test_an_index_outside_is_refused(model, tmp_path, index):
    with pytest.raises(IndexError, match=r"outside 0..9"):
        encoded(model, Images(), tmp_path)[index]


def test_mirrored_images_are_encoded_and_not_mirrored_latents(model, tmp_path):
    images, mirrored = Images(), Images()
    mirrored.images = mirrored.images.flip(-1)
    (tmp_path / "mirrored").mkdir()
    both, other = encoded(model, images, tmp_path, flips=True), encoded(model, mirrored, tmp_path / "mirrored")
    everything = list(range(10))
    assert torch.equal(both[everything]["latents"], encoded(model, images, tmp_path)[everything]["latents"])
    both = encoded(model, images, tmp_path, flips=True)
    seen = both.augmented(everything, 0, 0)
    plain, flipped = both[everything], other[everything]
    assert not torch.equal(plain["latents"].flip(-1), flipped["latents"])
    sides = [plain, flipped]
    turned = [int(torch.equal(seen["latents"][index], flipped["latents"][index])) for index in everything]
    assert 0 < sum(turned) < 10
    for index, side in enumerate(turned):
        for name in ("latents", "codes", "labels"):
            assert torch.equal(seen[name][index], sides[side][name][index])


def test_the_orientation_depends_on_seed_epoch_and_index_alone(model, tmp_path):
    both = encoded(model, Images(200), tmp_path, size=64, flips=True)
    plain = both[list(range(200))]["latents"]

    def turned(seed, epoch, indices):
        latents = both.augmented(indices, seed, epoch)["latents"]
        return [not torch.equal(values, plain[index]) for values, index in zip(latents, indices, strict=True)]

    first = turned(0, 0, list(range(200)))
    assert 70 < sum(first) < 130
    assert turned(0, 0, [150, 3, 77]) == [first[150], first[3], first[77]]
    for other in ((1, 0), (0, 1)):
        differ = sum(a != b for a, b in zip(first, turned(*other, list(range(200))), strict=True))
        assert 70 < differ < 130


def test_without_mirrored_images_training_sees_the_items(model, tmp_path):
    found = encoded(model, Images(), tmp_path)
    assert not found.is_augmented
    batches = training_batches(found, batch_size=5, seed=0, start_step=0, stop_step=2)
    plain = found[list(range(10))]["latents"].flatten(1).sort(0).values
    seen = torch.cat([batch["latents"] for batch in batches]).flatten(1).sort(0).values
    assert torch.equal(seen, plain)
    assert encoded(model, Images(), tmp_path, flips=True).is_augmented


def test_half_precision_is_stored_as_such_and_read_as_float32(model, tmp_path):
    (tmp_path / "half").mkdir()
    full, half = encoded(model, Images(), tmp_path), encoded(model, Images(), tmp_path / "half", dtype=torch.float16)
    batch, expected = half[list(range(10))], full[list(range(10))]
    assert torch.equal(batch["latents"], expected["latents"].half().float()) and batch["latents"].dtype == torch.float32
    assert torch.equal(batch["codes"], expected["codes"])


def test_a_shard_is_encoded_without_a_wait_for_the_device(model):
    batch = {"images": torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8), "labels": torch.arange(3)}
    with FakeCuda() as cuda:
        model.to("cuda:0")
        batches = [on_device(batch, torch.device("cuda:0")) for _ in range(2)]
        cuda.refuses_copies = True
        shard = encode_shard(model, batches, torch.float16, flips=True)
    assert {name: (values.device.type, values.dtype, values.shape) for name, values in shard.items()} == {
        "latents": ("cuda", torch.float16, (6, 2, 4, 2, 2)),
        "codes": ("cuda", torch.int32, (6, 2, 2, 2)),
        "labels": ("cuda", torch.int64, (6,)),
    }


def test_latents_that_cannot_be_stored_are_refused(model, tmp_path):
    with torch.no_grad():
        model.encoder.conv_out.bias.fill_(1e5)
    encoded(model, Images(), tmp_path)
    with pytest.raises(ValueError, match="images 0 to 3 are not finite in float16"):
        encoded(model, Images(), tmp_path, dtype=torch.float16)
    with torch.no_grad():
        model.encoder.conv_out.bias[0] = torch.nan
    with pytest.raises(ValueError, match="not finite in float32"):
        encoded(model, Images(), tmp_path)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_latent_scale_is_that_of_all_latents_however_they_are_split(model, tmp_path, offset):
    with torch.no_grad():
        model.encoder.conv_out.weight.mul_(40)
        model.encoder.conv_out.bias.add_(offset)
    images = Images(50)
    latents = torch.cat([encode_images(model, side)["latents"] for side in (images.images, images.images.flip(-1))])
    assert abs(latents.std() - 1) > 0.1
    for size in (7, 50):
        (tmp_path / str(size)).mkdir()
        found = encoded(model, images, tmp_path / str(size), size=size, flips=True)
        assert latent_scale(found.statistics) == pytest.approx(1 / latents.double().std().item(), rel=1e-6)


def test_latents_that_are_all_equal_have_no_scale(model, tmp_path):
    with torch.no_grad():
        model.encoder.conv_out.weight.zero_()
        model.encoder.conv_out.bias.fill_(0.1)
    with pytest.raises(ValueError, match="encodes every image alike"):
        latent_scale(encoded(model, Images(), tmp_path).statistics)


def test_shards_are_mapped_when_they_are_needed_and_never_sent(model, tmp_path):
    found = encoded(model, Images(300), tmp_path, size=10)
    assert len(pickle.dumps(found)) < 20_000
    found[[5, 15]]
    assert sorted(found._mapped) == [0, 1]
    restored = pickle.loads(pickle.dumps(found))
    assert restored._mapped == {}
    for name, values in found[[299, 3]].items():
        assert torch.equal(restored[[299, 3]][name], values)


def test_loader_processes_give_the_batches_of_one(model, tmp_path):
    found = encoded(model, Images(40), tmp_path)
    options = {"batch_size": 8, "seed": 0, "start_step": 0, "stop_step": 6}
    alone, workers = (list(training_batches(found, **options, num_workers=number)) for number in (0, 2))
    assert len(alone) == len(workers) == 6
    for first, second in zip(alone, workers, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in ("latents", "codes", "labels"))


@torch.no_grad()
def test_another_weight_code_or_config_is_another_fingerprint(model):
    found = [tokenizer_fingerprint(model)]
    for weight in (model.encoder.conv_in.weight, model.codebook):
        weight[0, 0].add_(1e-3)
        found.append(tokenizer_fingerprint(model))
    other = VQTokenizer(**{**model.config, "quantizer": "vq"})
    other.load_state_dict(model.state_dict())
    found.append(tokenizer_fingerprint(other))
    assert len(set(found)) == len(found)


def test_the_step_and_a_reload_do_not_matter(model, tmp_path):
    fingerprint = tokenizer_fingerprint(model)
    model.bottleneck.step += 100
    assert tokenizer_fingerprint(model) == fingerprint
    model.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(VQTokenizer.from_pretrained(tmp_path)) == fingerprint


def test_several_codes_of_a_token_are_kept_as_they_are(tmp_path):
    sizes = {"codebook_size": 12, "codebook_dim": 4, "hidden_channels": 8, "network_options": {"residual_channels": 4}}
    model = VQTokenizer(1, 8, quantizer="rq", quantizer_options={"code_depth": 3, "init": "normal"}, **sizes).eval()
    images = Images(6)
    dataset = encoded(model, images, tmp_path, flips=True)
    direct = encode_images(model, images.images)
    assert direct["codes"].shape == (6, *model.code_shape) == (6, 2, 2, 3)
    batch = dataset[list(range(6))]
    assert torch.equal(batch["codes"], direct["codes"]) and torch.equal(batch["latents"], direct["latents"])
    mirrored = encode_images(model, images.images.flip(-1))["codes"]
    found = dataset.augmented([0, 1, 2, 3, 4, 5], seed=0, epoch=0)["codes"]
    assert all(any(torch.equal(code, side[i]) for side in (direct["codes"], mirrored)) for i, code in enumerate(found))
