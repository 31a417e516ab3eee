import json
from pathlib import Path

import pytest
import torch

from arcvq.evaluation import compare_images
from arcvq.sampling.writers import write_npz, write_pngs


def test_the_numbers_are_those_of_the_pixels(tmp_path, capsys):
    first = torch.full((4, 3, 2, 2), 100, dtype=torch.uint8)
    second = first.clone()
    second[1, 0, 0, 0] = 103
    second[2, 1] = 99
    write_pngs(tmp_path / "first", iter(first), torch.zeros(4, dtype=torch.int64))
    write_npz(tmp_path / "second.npz", iter(second), torch.zeros(4, dtype=torch.int64))
    output = tmp_path / "made/difference.json"
    compare_images.main([str(tmp_path / "first"), str(tmp_path / "second.npz"), f"--output={output}"])
    written = json.loads(output.read_text())
    assert written["numbers"] == pytest.approx(
        {
            "images": 4,
            "equal_images": 2,
            "mean_levels": (3 + 4) / 48,
            "farthest_image_mean_levels": 4 / 12,
            "largest_levels": 3,
            "pixels_within_one_level": 47 / 48,
        }
    )
    assert "evaluate.py compare" in written["protocol"]["command"] and "mean_levels" in capsys.readouterr().out


@pytest.mark.parametrize(("second", "message"), [("none", "'none' is not there"), ("other", "name sets of one kind")])
def test_sets_that_cannot_be_compared_are_refused(tmp_path, monkeypatch, second, message):
    monkeypatch.chdir(tmp_path)
    for name, number in (("first", 2), ("other", 3)):
        write_pngs(Path(name), iter(torch.zeros(number, 1, 2, 2, dtype=torch.uint8)), torch.zeros(number).long())
    with pytest.raises(ValueError, match=message):
        compare_images.main(["first", second])


def test_grey_images_are_those_of_an_npz_with_three_channels(tmp_path, capsys):
    images = torch.randint(256, (3, 1, 2, 2), dtype=torch.uint8)
    write_pngs(tmp_path / "grey", iter(images), torch.zeros(3).long())
    write_npz(tmp_path / "grey.npz", iter(images), torch.zeros(3).long())
    compare_images.main([str(tmp_path / "grey"), str(tmp_path / "grey.npz")])
    assert "equal_images                3" in capsys.readouterr().out
