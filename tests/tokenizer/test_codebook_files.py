"""Frozen codebooks from files, and codebooks reduced by k-means, by their library and by arcvq codebook."""

import hashlib
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torchvision.models import alexnet

from arcvq.conversion import codebook
from arcvq.faults import forked_process
from arcvq.training import tokenizer as train_tokenizer
from pipelines.metrics.extractors import ExtractorConfig, make_extractor
from pipelines.metrics.patch_features import patch_features
from tokenizer import VQTokenizer, codebook_reduction
from tokenizer.codebook_file import load_codebook_file, save_codebook_file
from tokenizer.codebook_reduction import reduced_codebook
from tokenizer.losses.lpips import WeightFiles
from tokenizer.quantizers import make_quantizer

REDUCED = ("arc", "arc_vae", "cosine", "fc", "ibq", "lc", "simvq", "sq", "vaevq", "vq")


def make(quantizer, codes=24, dim=3):
    """A tokenizer with rows of length 1, so that l2 and cosine agree."""
    options = {"feature_dim": 5} if quantizer == "lc" else {}
    tokenizer = VQTokenizer(1, 8, "conv", quantizer, codes, dim, hidden_channels=8, quantizer_options=options)
    return tokenizer.eval()


def table_of(tokenizer):
    return getattr(tokenizer.bottleneck, "table", tokenizer.codebook)


def in_order(rows):
    return rows[sorted(range(len(rows)), key=lambda row: rows[row].tolist())]


@pytest.fixture(params=REDUCED)
def name(request):
    return request.param


@torch.no_grad()
def test_a_reduced_codebook_is_of_the_means_of_its_nearest_rows(name):
    tokenizer = make(name)
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    reduced = reduced_codebook(tokenizer, 6)
    assert reduced.config.codebook_size == 6 and reduced.config.quantizer == name
    assert len(reduced.codebook.unique(dim=0)) == 6
    whole, means = tokenizer.codebook, reduced.codebook
    nearest = torch.cdist(whole, table_of(reduced) if name == "fc" else means).argmin(dim=1)
    for code in range(6):
        members = whole[nearest == code]
        mean = torch.nn.functional.normalize(members.mean(dim=0), dim=0) if name == "fc" else members.mean(dim=0)
        torch.testing.assert_close(means[code], mean, rtol=1e-4, atol=1e-5)
        if name in ("lc", "simvq"):
            features = table_of(tokenizer)[nearest == code].mean(dim=0)
            torch.testing.assert_close(table_of(reduced)[code], features, rtol=1e-5, atol=1e-6)
    # Nothing else has changed, of either tokenizer.
    after, others = tokenizer.state_dict(), reduced.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    kept = [key for key in others if key not in ("bottleneck.codebook", "bottleneck.table")]
    assert len(kept) == len(others) - 1 and all(torch.equal(others[key], before[key]) for key in kept)


@torch.no_grad()
def test_distinct_rows_that_all_fit_are_kept(name):
    tokenizer = make(name)
    rows = table_of(tokenizer)
    rows.copy_(rows[:8].repeat_interleave(3, dim=0))
    images = torch.randn(5, 1, 8, 8)
    expected = tokenizer.decode_codes(tokenizer.encode_codes(images))
    for size in (8, 11):
        reduced = reduced_codebook(tokenizer, size)
        torch.testing.assert_close(
            in_order(reduced.codebook.unique(dim=0)), in_order(tokenizer.codebook.unique(dim=0)), rtol=1e-6, atol=1e-7
        )
        torch.testing.assert_close(reduced.decode_codes(reduced.encode_codes(images)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_the_rows_does_not_matter(name):
    tokenizer, other = make(name), make(name)
    other.load_state_dict(tokenizer.state_dict())
    table_of(other).copy_(table_of(tokenizer)[torch.randperm(24)])
    found = [in_order(reduced_codebook(these, 5, seed=3).codebook) for these in (tokenizer, other)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert torch.equal(reduced_codebook(tokenizer, 5, seed=3).codebook, reduced_codebook(tokenizer, 5, 3).codebook)


@torch.no_grad()
def test_a_row_counts_as_often_as_it_occurs():
    # Of 0, 10 and 11 the last two are one group, unless there are so many of each that 0 had better join the 10s.
    for times, means in ((1, [0.0, 10.5]), (1000, [10_000 / 1001, 11.0])):
        tokenizer = make("vq", 1 + 2 * times, 1)
        tokenizer.codebook.copy_(torch.tensor([0.0] + [10.0] * times + [11.0] * times)[:, None])
        assert sorted(reduced_codebook(tokenizer, 2).codebook.flatten().tolist()) == pytest.approx(means)


@torch.no_grad()
def test_statistics_of_codes_are_summed_over_the_members():
    tokenizer = make("vq", 4)
    tokenizer.codebook.copy_(torch.tensor([[0.0, 0, 0], [5, 5, 5], [0, 0, 1], [5, 5, 6]]))
    state, counts = tokenizer.state_dict(), torch.tensor([1.0, 2, 4, 8])
    patched = []
    for size in (4, 2):  # as a quantizer that counts would have it
        model = make("vq", size)
        model.bottleneck.register_buffer("size", torch.zeros(size))
        patched.append(model)
    patched[0].load_state_dict(state | {"bottleneck.size": counts})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codebook_reduction, "VQTokenizer", lambda **_: patched[1])
        reduced = reduced_codebook(patched[0], 2)
    assert sorted(reduced.bottleneck.size.tolist()) == [5, 10]


def test_what_cannot_be_reduced_is_refused():
    for size in (0, 24, 25):
        with pytest.raises(ValueError, match=f"codebook_size {size} is no reduction of 24 codes; take 1 to 23"):
            reduced_codebook(make("vq"), size)
    without_table = make("vq")
    del without_table.bottleneck.codebook
    with pytest.raises(ValueError, match="quantizer 'vq' has no table of one row for each of its codes"):
        reduced_codebook(without_table, 4)


def test_a_codebook_file_is_the_table_and_its_hash(tmp_path):
    features = torch.randn(12, 9)
    save_codebook_file(features, file := tmp_path / "new" / "codebook.safetensors")
    quantizer = make_quantizer("lc", 12, 6, {"feature_dim": 9})
    assert load_codebook_file(quantizer, file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert torch.equal(quantizer.table, features)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "missing.safetensors cannot be read .*; arcvq codebook features writes one"),
        ({"table": torch.zeros(12, 9)}, r"should hold `codebook`, floating point .K, F., but holds table float32"),
        ({"codebook": torch.zeros(12, 9, dtype=torch.int64)}, "but holds codebook int64"),
        ({"codebook": torch.zeros(108)}, "but holds codebook float32"),
        ({"codebook": torch.zeros(12, 8)}, r"the features are .12, 8., the quantizer's table is .12, 9."),
        ({"codebook": torch.full((12, 9), torch.nan)}, "holds NaN or infinity"),
    ],
)
def test_other_files_are_refused(tmp_path, tensors, message):
    quantizer = make_quantizer("lc", 12, 6, {"feature_dim": 9})
    file = tmp_path / ("missing.safetensors" if tensors is None else "codebook.safetensors")
    if tensors is not None:
        save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        load_codebook_file(quantizer, file)
    with pytest.raises(ValueError, match=r"which model\.quantizer lc alone has; leave it out"):
        load_codebook_file(make_quantizer("vq", 12, 6, {}), file)
    (broken := tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_codebook_file(quantizer, broken)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """AlexNet's, drawn so that activations do not vanish."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in alexnet(weights=None).state_dict().items() if "features" in name}
    for name, shape in shapes.items():
        scale = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.1
        tensors[name] = torch.randn(shape, generator=generator) * scale
    file = tmp_path_factory.mktemp("alexnet") / "stand-in.safetensors"
    save_file(tensors, file)
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def test_patch_features_are_those_whose_mean_is_the_images(weights):
    file, digest = weights
    extractor = make_extractor("alexnet", ExtractorConfig(weights=WeightFiles(alexnet=str(file), accept_sha256=digest)))
    images = torch.randint(256, (9, 1, 63, 63), dtype=torch.uint8)
    patches = patch_features(extractor, images)
    assert patches.shape == (9 * 9, 256) and patches.dtype == torch.float32
    torch.testing.assert_close(patches.view(9, 9, 256).mean(dim=1), extractor.extract(images)[0])
    assert not extractor.layers._forward_hooks


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield tmp_path
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_features_are_made_trained_with_and_reduced(here, weights, capsys, monkeypatch):
    file, digest = weights
    monkeypatch.setattr(train_tokenizer, "PREVIEW_IMAGES", 4)
    make_features = ["features", "--weights.alexnet", str(file), "--weights.accept_sha256", digest, "--resize", "63"]
    make_features += ["--num_images", "8", "--codebook_size"]
    codebook.main([*make_features, "16"])
    table = load_file(here / "runs" / "codebook.safetensors")["codebook"]
    assert table.shape == (16, 256) and len(table.unique(dim=0)) == 16
    codebook.main([*make_features, "16", "--output", "again.safetensors"])
    assert torch.equal(load_file("again.safetensors")["codebook"], table)
    with pytest.raises(ValueError, match="codebook_size 73 needs as many features, and there are 72 of 8 images"):
        codebook.main([*make_features, "73", "--output", "more.safetensors"])

    # What is printed are the options to train with.
    said = "to train with it: "
    lines = capsys.readouterr().out.splitlines()
    options = next(line for line in lines if line.startswith(said)).removeprefix(said).split()
    small = ["--model.hidden_channels", "8", "--model.codebook_dim", "4", "--optim.batch_size", "8"]
    small += ["--optim.warmup_steps", "0", "--optim.max_steps", "2", "--run.name", "lc"]
    train_tokenizer.main([*options, *small])
    trained = VQTokenizer.from_pretrained("runs/lc/tokenizer")
    assert torch.equal(trained.bottleneck.table, table)
    sha256 = hashlib.sha256(Path("runs/codebook.safetensors").read_bytes()).hexdigest()
    assert yaml.safe_load(Path("runs/lc/inputs.yaml").read_text())["codebook_file"] == sha256
    # Another file of the same name is another run.
    save_codebook_file(table + 1, Path("runs/codebook.safetensors"))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(codebook_file was"):
        train_tokenizer.main([*options, *small])

    command = [sys.executable, "-m", "arcvq", "codebook", "reduce", "runs/lc", "--codebook_size", "5"]
    done = forked_process.run(command, here)
    assert done.stdout == "tokenizer with 5 of 16 codes: runs/reduced\n"
    reduced = VQTokenizer.from_pretrained("runs/reduced")
    assert torch.equal(reduced.bottleneck.table, reduced_codebook(trained, 5).bottleneck.table)
    with pytest.raises(ValueError, match="'runs/reduced' exists; name another folder"):
        codebook.main(["reduce", "runs/lc", "--codebook_size", "5"])


@pytest.mark.parametrize("words", [[], ["shrink"]])
def test_another_verb_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        codebook.main(words)
    assert "say features or reduce first" in capsys.readouterr().err
