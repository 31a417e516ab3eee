"""Pictures hold exactly the pixels given, and figures draw what was measured."""

import json
import sys

import matplotlib
import numpy as np
import pytest
import torch
from images import is_png, noise, pixels
from matplotlib.figure import Figure

from pipelines.figures.grids import (
    image_grid,
    plot_codebook,
    plot_curves,
    read_metrics,
    save_class_samples,
    save_comparison,
    save_samples,
)


def tile(picture, row, column, height=5, width=7):
    top, left = row * (height + 1), column * (width + 1)
    return pixels(picture)[:, top : top + height, left : left + width]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, so that a test can ask what was drawn."""
    saved = []
    savefig = Figure.savefig

    def remember(figure, *args, **kwargs):
        saved.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return saved


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_each_image_unchanged_between_grey_gaps(channels):
    images = noise(7, channels)
    picture = image_grid(images, columns=3)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    assert picture.size == (3 * 8 - 1, 3 * 6 - 1)
    for i, image in enumerate(images):
        assert torch.equal(tile(picture, i // 3, i % 3), image)
    everything = pixels(picture)
    assert (everything[:, 5::6] == 128).all() and (everything[:, :, 7::8] == 128).all()
    assert (everything[:, 12:, 8:] == 128).all()  # what the last row leaves empty


def test_samples_are_the_grid_and_few_images_make_a_narrow_one(tmp_path):
    save_samples(noise(3), tmp_path / "samples.png")
    assert is_png(tmp_path / "samples.png")
    assert torch.equal(pixels(tmp_path / "samples.png"), pixels(image_grid(noise(3), columns=3)))


def test_comparison_has_each_reconstruction_below_its_original(tmp_path):
    originals, reconstructions = noise(18), noise(18, seed=1)
    save_comparison(originals, reconstructions, tmp_path / "comparison.png")
    assert pixels(tmp_path / "comparison.png").shape == (3, 4 * 6 - 1, 16 * 8 - 1)
    for i in range(18):
        row, column = 2 * (i // 16), i % 16
        assert torch.equal(tile(tmp_path / "comparison.png", row, column), originals[i])
        assert torch.equal(tile(tmp_path / "comparison.png", row + 1, column), reconstructions[i])


def positions(picture, image, factor):
    """Where the enlarged image occurs, pixel for pixel, as (top, left)."""
    sought = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    _, height, width = sought.shape
    windows = pixels(picture).unfold(1, height, 1).unfold(2, width, 1)
    found = (windows[..., 0, 0] == sought[:, None, None, 0, 0]).all(0).nonzero().tolist()
    return [(top, left) for top, left in found if torch.equal(windows[:, top, left], sought)]


@pytest.mark.parametrize(("channels", "size", "factor"), [(1, 32, 2), (3, 70, 1), (3, 8, 8)])
def test_class_rows_hold_their_images_exactly(tmp_path, channels, size, factor):
    images, labels = noise(9, channels, size, size), torch.tensor([2, 0, 2, 0, 2, 0, 2, 5, 0])
    path = tmp_path / "classes.png"
    save_class_samples(images, labels, ["cat", "dog", "ox", "bee", "ant", "a very long name of a class"], path, 3)
    assert pixels(path).shape[1] == (3 * (size + 1) - 1) * factor  # classes 0, 2 and 5, no note
    left = positions(path, images[1], factor)[0][1]
    step = (size + 1) * factor
    for row, chosen in enumerate([[1, 3, 5], [0, 2, 4], [7]]):
        for column, i in enumerate(chosen):
            assert positions(path, images[i], factor) == [(row * step, left + column * step)]
    assert positions(path, images[8], factor) == []  # the fourth of its class
    for row in range(3):  # a name stands to the left of every row, and between rows there is none
        beside = pixels(path)[0, row * step : (row + 1) * step, :left]
        assert beside.min() < 100 and (beside[:2] == 255).all() and (beside[:, :2] == 255).all()


def test_only_twenty_classes_are_drawn_and_a_note_says_so(tmp_path):
    images, labels = noise(25, 1, 16, 16), torch.arange(25).flip(0)
    save_class_samples(images, labels, {label: f"class {label}" for label in range(25)}, tmp_path / "25.png")
    save_class_samples(images[5:], labels[5:], [str(label) for label in range(20)], tmp_path / "20.png")
    assert len(positions(tmp_path / "25.png", images[24], 4)) == 1  # class 0
    assert len(positions(tmp_path / "25.png", images[5], 4)) == 1  # class 19
    assert positions(tmp_path / "25.png", images[4], 4) == []  # class 20
    rows = (20 * 17 - 1) * 4
    assert pixels(tmp_path / "20.png").shape[1] == rows
    assert pixels(tmp_path / "25.png")[:, rows:].min() < 100


@pytest.mark.parametrize(
    "images",
    [noise(4).float(), noise(4)[0], noise(4, channels=2), noise(4).permute(0, 2, 3, 1), noise(0)],
    ids=["float", "one", "2 channels", "channels last", "none"],
)
def test_other_tensors_are_refused_by_name(tmp_path, images):
    path = tmp_path / "x.png"
    calls = (
        lambda: image_grid(images, 4),
        lambda: save_samples(images, path),
        lambda: save_comparison(images, images, path),
        lambda: save_class_samples(images, torch.zeros(len(images)), ["a"], path),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"images are torch\.\w+ \([\d, ]+\), not uint8 \(n, C, H, W\)"):
            call()
    assert not path.exists()


def test_arguments_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        image_grid(noise(2), 0)
    with pytest.raises(ValueError, match="differ in shape"):
        save_comparison(noise(3), noise(2), path)
    with pytest.raises(ValueError, match=r"labels are \(3,\) for 2 images"):
        save_class_samples(noise(2), torch.zeros(3, dtype=torch.int64), ["a"], path)
    for names in (["a"], {0: "a"}):
        with pytest.raises(ValueError, match="class 1 has no name"):
            save_class_samples(noise(2), torch.tensor([0, 1]), names, path)
    with pytest.raises(ValueError, match="class -1 has no name"):
        save_class_samples(noise(2), torch.tensor([0, -1]), ["a"], path)
    with pytest.raises(ValueError, match="per_class must be at least 1"):
        save_class_samples(noise(2), torch.tensor([0, 0]), ["a"], path, per_class=0)


def test_codebook_panels_show_norms_usage_and_ordered_distances(tmp_path, figures):
    codebook = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [6.0, 8.0]])
    plot_codebook(codebook.requires_grad_(), torch.tensor([1, 0, 7, 0]), tmp_path / "codebook.png")
    scatter, matrix = figures[0].axes[:2]
    points = np.concatenate([drawn.get_offsets() for drawn in scatter.collections]).tolist()
    assert sorted(points) == [[0.0, 7.0], [1.0, 0.0], [5.0, 1.0], [10.0, 0.0]]
    low, high = scatter.get_ylim()
    assert low < 0 and high > 7 and scatter.get_yscale() == "symlog"
    # exp of the entropy of (1/8, 7/8) is 1.457.
    assert scatter.get_title() == "usage 50.0 %, perplexity 1.5 of 4"
    assert [text.get_text() for text in scatter.get_legend().get_texts()] == ["2 used", "2 unused"]
    order = codebook.detach()[[2, 0, 1, 3]].numpy()  # most used first, then as in the codebook
    expected = np.linalg.norm(order[:, None] - order[None], axis=-1)
    np.testing.assert_allclose(matrix.images[0].get_array(), expected, rtol=1e-6)
    assert is_png(tmp_path / "codebook.png")


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # what libraries say of each other
@pytest.mark.parametrize("size", [1, 2, 2000])
def test_codebooks_of_any_size(tmp_path, figures, size):
    counts = torch.arange(size) + 1
    plot_codebook(0.1 * torch.arange(size)[:, None].expand(-1, 9), counts, tmp_path / "codebook.png")
    distances = figures[0].axes[1].images[0].get_array()
    shown = min(size, 1024)
    assert distances.shape == (shown, shown) and (np.diag(distances) == 0).all()
    assert distances[0, -1] == pytest.approx(0.3 * (shown - 1), rel=1e-5)
    assert ("1024 most used of 2,000" in figures[0].axes[1].get_title()) == (size == 2000)


@pytest.mark.parametrize(
    ("codebook", "counts", "message"),
    [
        (torch.ones(4), torch.ones(4).long(), r"codebook is torch\.float32 \(4,\) with counts \(4,\), not"),
        (torch.ones(4, 2), torch.ones(3).long(), r"with counts \(3,\), not"),
        (torch.ones(4, 2).long(), torch.ones(4).long(), r"codebook is torch\.int64"),
        (torch.full((4, 2), torch.nan), torch.ones(4).long(), "NaN"),
        (torch.ones(4, 2), torch.zeros(4).long(), "all zero"),
        (torch.ones(4, 2), torch.tensor([1, 1, 1, -1]), "negative"),
    ],
)
def test_codebooks_that_do_not_fit_are_refused(tmp_path, codebook, counts, message):
    with pytest.raises(ValueError, match=message):
        plot_codebook(codebook, counts, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # what libraries say of each other
def test_curves_of_records_with_differing_names(tmp_path, figures):
    metrics = [
        {"step": 1, "loss": 10.0, "lr": 1e-5, "arc": 0.0},
        {"step": 2, "loss": float("nan"), "lr": 1e-3, "arc": 5.0},
        {"step": 2, "test_usage": 0.01, "test_psnr": float("inf")},
        {"step": 3, "loss": 0.1, "lr": 1e-3, "test_usage": 0.9},
    ]
    plot_curves(metrics, tmp_path / "curves.png")
    panels = figures[0].axes
    titles = [panel.get_title() for panel in panels]
    assert titles == ["loss (1 of 3 not finite)", "arc", "test_usage", "test_psnr (1 of 1 not finite)", "lr"]
    # Logarithmic is the loss alone: arc touches 0, usage and lr are no losses, psnr has no value.
    assert [panel.get_yscale() for panel in panels] == ["log", "linear", "linear", "linear", "linear"]
    drawn = {panel.get_title(): panel.lines[0].get_xydata() for panel in panels}
    np.testing.assert_array_equal(drawn["loss (1 of 3 not finite)"], [[1, 10], [2, np.nan], [3, 0.1]])
    np.testing.assert_array_equal(drawn["test_usage"], [[2, 0.01], [3, 0.9]])
    assert is_png(tmp_path / "curves.png")


def test_curves_without_values_are_refused(tmp_path):
    for metrics in ([], [{"step": 1}]):
        with pytest.raises(ValueError, match="no values to plot"):
            plot_curves(metrics, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"has no step: \{'loss': 1.0\}"):
        plot_curves([{"loss": 1.0}], tmp_path / "x.png")


def test_metrics_are_read_without_an_incomplete_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": 20, "loss": 0.5}, {"step": 20, "test_psnr": float("inf")}]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(lines + '{"step": 40, "lo')
    assert read_metrics(path) == records
    path.write_text('{"step": 40, "lo\n' + lines)
    with pytest.raises(ValueError, match=r"line 1 of .* is no JSON"):
        read_metrics(path)
    path.write_text(lines + "[1]\n")
    with pytest.raises(ValueError, match=r'line 3 of .* is no record with a "step"'):
        read_metrics(path)


def test_the_callers_backend_and_pyplot_stay(tmp_path, monkeypatch):
    """pyplot is not even imported: that alone may choose a backend."""
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    plot_codebook(torch.eye(4), torch.arange(4), tmp_path / "codebook.png")
    plot_curves([{"step": 1, "loss": 1.0}], tmp_path / "curves.png")
    assert matplotlib.rcParams["backend"] == "svg"
    assert "matplotlib.pyplot" not in sys.modules
    for name in ("codebook.png", "curves.png"):
        assert is_png(tmp_path / name)
