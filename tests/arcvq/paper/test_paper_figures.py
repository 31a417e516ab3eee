"""figures.py as a user starts it, and what it makes of tokenizers without codes or with several for a token."""

import json
import sys

import numpy as np
import pytest
import torch
from images import is_png
from matplotlib.figure import Figure
from PIL import Image
from places import ROOT

from arcvq.faults import forked_process
from arcvq.paper.figures import main, run_tokenizer, save_images, tokenizer_names
from pipelines.figures.tokenizers import NotDrawable
from tokenizer import VQTokenizer


@pytest.mark.slow
def test_the_script_draws_every_figure_and_writes_what_is_in_it(tmp_path):
    """As a user starts it, on the embedded digits; the numbers are those of the tokenizers."""
    for name, quantizer in (("first", "arc"), ("second", "vq")):
        tokenizer = VQTokenizer(
            1, 32, "conv", quantizer, 32, 4, hidden_channels=8, network_options={"residual_channels": 4}
        )
        tokenizer.save_pretrained(tmp_path / name / "tokenizer")
    arguments = ["figures", "first", "second/tokenizer", "--num_images", "20", "--shown", "2", "--output", "out"]
    done = forked_process.run([sys.executable, str(ROOT / "scripts" / "reproduce.py"), *arguments], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = {}
    for name in ("figure_1", "figure_2", "figure_3", "figure_5", "figure_images"):
        assert is_png(tmp_path / "out" / f"{name}.png")
        figures[name] = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert figures[name]["numbers"].keys() == figures[name]["tokenizers"].keys() == {"first", "second"}
        assert figures[name]["commit"] and len(figures[name]["data"]["images"]) == 20
    norms = figures["figure_2"]["numbers"]
    for name, its in norms.items():
        codebook = VQTokenizer.from_pretrained(tmp_path / name / "tokenizer").codebook.detach().double()
        np.testing.assert_allclose(its["norms"], codebook.norm(dim=1))
        assert sum(its["counts"]) == 20 * 8 * 8
    assert norms["first"]["radius"] == 1 and norms["second"]["radius"] is None
    assert np.shape(figures["figure_5"]["numbers"]["first"]["activations"]) == (2, 8, 8)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Folders of a tokenizer without codes and of one with several per token; the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("arcvq.compute.process.use_all_cores", lambda: None)
    monkeypatch.setattr("arcvq.paper.figures.BATCH", 2)
    for name in ("vae", "rq"):
        made = VQTokenizer(1, 32, "conv", name, 16, 4, hidden_channels=8, network_options={"residual_channels": 4})
        made.save_pretrained(tmp_path / name)
    return tmp_path


def test_tokenizers_without_codes_and_with_several_per_token_are_seen(saved):
    images = [{"images": torch.rand(1, 32, 32) * 2 - 1} for _ in range(5)]
    batch = torch.stack([image["images"] for image in images])
    for name in ("vae", "rq"):
        its = VQTokenizer.from_pretrained(saved / name).eval()
        seen = run_tokenizer(name, its, Stacked(images), [1, 4])
        latents = its.encode(batch).latents.detach()
        torch.testing.assert_close(seen.tensors.tokens, latents.permute(0, 2, 3, 1).flatten(0, 2))
        torch.testing.assert_close(seen.latents, latents[[1, 4]])
        assert seen.reconstructions.shape == (2, 1, 32, 32) and seen.reconstructions.dtype == torch.uint8
        if name == "rq":
            codes = its.encode_codes(batch)
            assert codes.shape == (5, 8, 8, its.bottleneck.depth) and its.bottleneck.depth > 1
            assert seen.tensors.counts.tolist() == [(codes == code).sum().item() for code in range(16)]
        else:
            assert seen.tensors.codebook is None and seen.tensors.counts is None


class Stacked(list):
    """A data set that gives a batch for a list of places."""

    def __getitem__(self, places):
        return {"images": torch.stack([super(Stacked, self).__getitem__(place)["images"] for place in places])}


def test_the_script_refuses_by_name_and_all_leaves_out_what_cannot_be(saved, monkeypatch, capsys):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    few = ["--num_images", "4", "--shown", "2"]
    with pytest.raises(NotDrawable, match="tokenizer 'vae' has no codes"):
        main(["figure_2", "rq", "vae", *few])
    main(["figures", "rq", "vae", *few])
    told = capsys.readouterr().out
    assert "figure_2: left out: tokenizer 'vae'" in told and "figure_3: left out" in told
    assert len(figures) == 2 and sorted(file.name for file in (saved / "runs" / "figures").glob("*.json")) == [
        "figure_1.json",
        "figure_5.json",
        "figure_images.json",
    ]
    with pytest.raises(ValueError, match=r"vae: the images of 'digits' have \(channels, size\) \(3, 32\)"):
        main(["figure_1", "vae", "--data.channels", "3", *few])
    with pytest.raises(ValueError, match="shown"):
        main(["figure_5", "vae", "--num_images", "2", "--shown", "3"])


def test_images_stand_above_their_reconstructions_which_are_measured_one_by_one(tmp_path):
    originals = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    made = {"near": originals ^ 1, "same": originals.clone()}
    numbers = save_images(originals, made, tmp_path / "grid.png")
    assert numbers["same"]["psnr"] == [None] * 3
    np.testing.assert_allclose(numbers["near"]["psnr"], 20 * np.log10(255))
    pixels = np.asarray(Image.open(tmp_path / "grid.png"))
    for row, images in enumerate([originals, made["near"], made["same"]]):
        for column, image in enumerate(images):
            top, right = row * 65, pixels.shape[1] - (2 - column) * 65
            np.testing.assert_array_equal(pixels[top : top + 64, right - 64 : right], image.permute(1, 2, 0).numpy())


def test_tokenizers_are_called_by_their_runs(tmp_path):
    names = tokenizer_names(["runs/a", "runs/b/tokenizer", "x/c", "y/c/"])
    assert names == {"a": "runs/a", "b": "runs/b/tokenizer", "x/c": "x/c", "y/c/": "y/c/"}
    with pytest.raises(ValueError, match="named twice"):
        tokenizer_names(["a", "a"])
