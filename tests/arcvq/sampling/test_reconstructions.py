"""Reconstructions of a whole split: the numbers of each image, without a wait for the device for each."""

import pytest
import torch
from counted_reads import CountedReads
from quantizer_cases import small_tokenizer
from torch.utils.data import Dataset

from arcvq.sampling.reconstructions import SHOWN, reconstruct, round_trip
from pipelines.figures.grids import plot_codebook
from pipelines.metrics import code_counts, pair_metrics, perplexity, to_uint8, usage


class Pictures(Dataset):
    """Random images, on their way out of the range of pixels."""

    def __init__(self, number):
        self.images = torch.rand(number, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2.2 - 1.1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"images": self.images[index]}


@pytest.mark.parametrize("name", ["arc", "product", "vae"])
def test_numbers_and_pictures_are_those_of_each_image_alone(name):
    tokenizer, pictures = small_tokenizer(name), Pictures(SHOWN + 9)
    originals, reconstructions, metrics = reconstruct(tokenizer, pictures)
    sums, counts, shown = {}, 0, []
    for image in pictures.images.split(1):
        decoded, codes = round_trip(tokenizer, image)
        shown.append((to_uint8(image), to_uint8(decoded)))
        for metric, value in pair_metrics(*shown[-1]).items():
            sums[metric] = sums.get(metric, 0.0) + value.item()
        if codes is not None:  # those of several tables stand one after the other
            counts += torch.cat([code_counts(part, 12) for part in (codes.unbind(-1) if codes.ndim == 4 else [codes])])
    expected = {metric: total / len(pictures) for metric, total in sums.items()} | {"images": len(pictures)}
    if tokenizer.has_codes:
        expected |= {"usage": usage(counts).item(), "perplexity": perplexity(counts).item()}
    assert metrics.result() == pytest.approx(expected, rel=1e-12)
    for side, made in enumerate((originals, reconstructions)):
        assert torch.equal(made, torch.cat([pair[side] for pair in shown[:SHOWN]]))


def test_broken_values_are_counted_on_both_sides():
    tokenizer, pictures = small_tokenizer("vae"), Pictures(SHOWN + 1)
    pictures.images[-1, 0, 0, :3] = torch.nan
    with pytest.raises(ValueError, match=r"^\d+ image values are NaN or infinite; the model diverged$"):
        reconstruct(tokenizer, pictures)


@pytest.mark.parametrize("name", ["arc", "vae"])
def test_the_device_is_read_as_often_for_many_images_as_for_one(name):
    reads = []
    for number in (1, 4 * SHOWN + 1):
        tokenizer, pictures = small_tokenizer(name), Pictures(number)
        with CountedReads() as cuda:
            _, _, metrics = reconstruct(tokenizer.to("cuda:0"), pictures)
            assert metrics.result()["images"] == number
        reads.append(cuda.reads)
    # Broken values, originals, reconstructions, the sums; and the counts of the codes.
    assert reads == [5 if tokenizer.has_codes else 4] * 2


def test_the_picture_of_a_codebook_reads_the_table_and_the_counts_once(tmp_path):
    counts = torch.arange(12)
    with CountedReads() as cuda:
        plot_codebook(torch.rand(12, 4).to("cuda:0"), counts, tmp_path / "codebook.png")
        assert cuda.reads == 1
