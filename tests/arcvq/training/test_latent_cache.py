"""A data set as latents and codes: cached by any number of processes, killed or not, or encoded while training."""

import shutil
import sys

import pytest
import torch
from accelerate import PartialState
from places import HELPERS

from arcvq.faults import forked_process
from arcvq.training import latent_cache
from arcvq.training.latent_cache import LatentsConfig, encode_splits
from priors.latents import EncodedDataset, encode_images
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, batches, load_images, load_splits, training_batches
from tokenizer.data.batches import loader
from tokenizer.data.sources import digit_tables
from tokenizer.data.subsets import evenly_spaced_images

WORKER = HELPERS / "encoding_worker.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of random weights, beside which the caches are kept."""
    torch.manual_seed(0)
    tokenizer = VQTokenizer(
        in_channels=1, codebook_size=16, codebook_dim=4, hidden_channels=8, network_options={"residual_channels": 4}
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def encode(folder, cache, data=None, **options):
    tokenizer = VQTokenizer.from_pretrained(folder)
    config = LatentsConfig(**options)
    data = data or DataConfig()
    return encode_splits(tokenizer, load_splits(data), data, config, folder / cache, torch.device("cpu"))


def files(folder):
    """The shards in a cache, by their names."""
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def cached(folder):
    return encode(folder, "alone")


def test_the_cache_equals_direct_encoding_to_the_bit(cached):
    images = load_images(DataConfig(), "train")
    assert isinstance(cached.train, EncodedDataset) and len(cached.train.shards) == 3
    for shard in (range(512), range(1024, len(images))):
        chosen = list(shard)
        batch = images[chosen]
        found = cached.train[chosen]
        for name, values in (encode_images(cached.tokenizer, batch["images"]) | {"labels": batch["labels"]}).items():
            assert torch.equal(found[name], values), name
    test = load_images(DataConfig(), "test")
    direct = encode_images(cached.tokenizer, test[list(range(360))]["images"])
    assert torch.equal(cached.held_out["latents"], direct["latents"])
    assert torch.equal(cached.held_out["codes"], direct["codes"])
    assert torch.equal(cached.held_out["labels"], test.labels)


def test_two_processes_write_the_shards_of_one(folder, cached):
    done = forked_process.run([sys.executable, str(WORKER), str(folder)], folder, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert files(folder / "pair") == files(folder / "alone") and len(files(folder / "pair")) == 4


def test_an_encoding_that_is_cut_off_goes_on(folder, cached, monkeypatch):
    finish_shard, done, cut_at = latent_cache.finish_shard, [], [512]

    def cut_off(shard, images):
        first = int(images.split()[1])
        if first in cut_at:
            raise KeyboardInterrupt
        done.append(first)
        return finish_shard(shard, images)

    monkeypatch.setattr(latent_cache, "finish_shard", cut_off)
    with pytest.raises(KeyboardInterrupt):
        encode(folder, "cut")
    there = len(files(folder / "cut"))
    assert there == len(done) < 3

    cut_at.clear()
    encode(folder, "cut")
    assert sorted(done) == [0, 0, 512, 1024]  # each of the train split's and the held-out one, once
    assert files(folder / "cut") == files(folder / "alone")
    encode(folder, "cut")
    assert len(done) == 4


@pytest.mark.parametrize("there", [(), (1,)])
def test_where_one_thread_feeds_a_gpu_the_shards_are_the_same_and_one_loader_reads_them(
    folder, cached, monkeypatch, tmp_path, there
):
    copied = shutil.copytree(folder / "alone", tmp_path / "alone")
    for number, file in enumerate(sorted(copied.rglob("latents-train-*/*.safetensors"))):
        if number not in there:
            file.unlink()
    loaders = []
    monkeypatch.setattr(batches, "loader", lambda *args, **options: loaders.append(args) or loader(*args, **options))
    PartialState()  # or there is no state whose device could be another
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cuda"))
    encode(folder, copied)
    assert files(copied) == files(folder / "alone") and len(loaders) == 1


def test_a_shard_that_is_damaged_or_of_other_images_is_encoded_again(folder, cached):
    encode(folder, "damaged")
    expected = files(folder / "damaged")
    first, second, _ = sorted((folder / "damaged").glob("latents-train-*/*.safetensors"))
    other = encode(folder, "damaged", dtype="float16").train.shards[0]
    for content in (b"", first.read_bytes()[:-1], second.read_bytes(), other.read_bytes()):
        first.write_bytes(content)
        encode(folder, "damaged")
        assert files(folder / "damaged").items() >= expected.items()
    flipped = bytearray(first.read_bytes())
    flipped[-1] ^= 1
    first.write_bytes(flipped)
    encode(folder, "damaged")
    assert first.read_bytes() == flipped  # its size and header are as they should be
    encode(folder, "damaged", verify=True)
    assert files(folder / "damaged").items() >= expected.items()


def test_on_the_fly_gives_what_the_cache_gives_and_stores_no_latents_to_train_on(folder, cached):
    stage = encode(folder, "fly", mode="on_the_fly")
    assert stage.latent_scale == cached.latent_scale and stage.fingerprints == cached.fingerprints
    for name, values in cached.held_out.items():
        assert torch.equal(stage.held_out[name], values)
    indices = [3, 1400, 700, 3]
    found, expected = stage.encode(stage.train[indices]), cached.encode(cached.train[indices])
    torch.testing.assert_close(found["latents"], expected["latents"])
    assert torch.equal(found["codes"], expected["codes"]) and torch.equal(found["labels"], expected["labels"])
    assert sum(map(len, files(folder / "fly").values())) < sum(map(len, files(folder / "alone").values())) / 3


def test_the_scale_on_the_fly_is_that_of_a_sample_over_the_whole_split(folder, cached, monkeypatch):
    monkeypatch.setattr(latent_cache, "SCALE_SAMPLE", 100)
    stage = encode(folder, "sample", mode="on_the_fly")
    chosen = [index * 1437 // 100 for index in range(100)]
    expected = 1 / cached.train[chosen]["latents"].double().std().item()
    assert stage.latent_scale == pytest.approx(expected, rel=1e-5) and stage.latent_scale != cached.latent_scale


def test_another_tokenizer_or_dtype_is_another_cache(folder, cached, tmp_path):
    before = files(folder / "alone")
    encode(folder, "alone", dtype="float16")
    other = VQTokenizer.from_pretrained(folder)
    with torch.no_grad():
        other.encoder.conv_out.bias.add_(1)
    other.save_pretrained(tmp_path)
    data = DataConfig()
    found = encode_splits(other, load_splits(data), data, LatentsConfig(), folder / "alone", torch.device("cpu"))
    torch.testing.assert_close(found.train[[7]]["latents"], cached.train[[7]]["latents"] + 1)
    assert files(folder / "alone").items() > before.items()
    assert len({file.parts[0] for file in files(folder / "alone")}) == len({file.parts[0] for file in before}) + 3


def test_training_sees_the_same_flips_from_the_cache_and_on_the_fly(folder):
    data = DataConfig(flip=True)
    stages = [encode(folder, "flips", data, mode=mode) for mode in ("cache", "on_the_fly")]
    assert stages[0].latent_scale == stages[1].latent_scale  # of both orientations
    options = {"batch_size": 500, "seed": 3, "start_step": 1, "stop_step": 4}  # two epochs
    batches = [list(training_batches(stage.train, **options)) for stage in stages]
    for cached, images in zip(*batches, strict=True):
        expected = stages[1].encode(images)
        torch.testing.assert_close(cached["latents"], expected["latents"])
        assert (cached["codes"] == expected["codes"]).double().mean() > 0.999  # another batch may round to another code
        assert torch.equal(cached["labels"], expected["labels"])
    plain = encode(folder, "flips").train
    mirrored = stages[0].train.augmented(list(range(200)), 3, 0)["latents"] != plain[list(range(200))]["latents"]
    assert 70 < mirrored.flatten(1).any(1).sum() < 130


def test_ranks_and_workers_see_the_flips_of_one_process(folder):
    train = encode(folder, "flips", DataConfig(flip=True)).train
    options = {"batch_size": 60, "seed": 1, "start_step": 22, "stop_step": 26}
    alone = list(training_batches(train, **options))
    ranks = [list(training_batches(train, **options, rank=rank, world_size=2, num_workers=rank)) for rank in (0, 1)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole["latents"], torch.cat([part["latents"] for part in parts]))


def test_streamed_shards_are_cached_and_sampled(folder, tmp_path):
    for split in ("train", "test"):
        images = digit_tables()[split].select(range(150))
        images.to_parquet(str(tmp_path / f"{split}-0.parquet"), batch_size=40)
    data = DataConfig(name=str(tmp_path), streaming=True)
    whole = load_images(data, "train")
    stage = encode(folder, "streamed", data)
    expected = encode_images(stage.tokenizer, whole[list(range(150))]["images"])
    torch.testing.assert_close(stage.train[list(range(150))]["latents"], expected["latents"])
    assert torch.equal(stage.train.labels, whole.labels) and len(stage.held_out["labels"]) == 150
    assert encode(folder, "streamed", data, mode="on_the_fly").latent_scale == stage.latent_scale
    assert evenly_spaced_images(whole, 128) == [*range(64), *range(75, 139)]


def test_a_cache_of_random_crops_is_refused(folder):
    with pytest.raises(ValueError, match=r"data.crop random shows other pixels .* latents.mode on_the_fly"):
        encode(folder, "refused", DataConfig(crop="random"))


def test_a_dtype_of_the_cache_is_refused_without_one(folder):
    with pytest.raises(ValueError, match=r"latents.dtype float16 is for the cache"):
        encode(folder, "refused", mode="on_the_fly", dtype="float16")
    assert not (folder / "refused").exists()
