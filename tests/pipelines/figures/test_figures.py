"""The paper's figures draw what they are given: coordinates, norms, uses, distances, activations, a table's numbers."""

import math

import numpy as np
import pytest
import torch
from images import is_png, noise
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pipelines.figures.activations import activation_maps, plot_activations
from pipelines.figures.distances import plot_distances
from pipelines.figures.grids import UNUSED, USED
from pipelines.figures.principal_plane import principal_plane
from pipelines.figures.tables import plot_histories, plot_table
from pipelines.figures.tokenizers import NotDrawable, TokenizerTensors, plot_norms, plot_planes
from tokenizer.data.subsets import evenly_spaced_indices


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be saved; to render them would take seconds."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: saved.append(figure))
    return saved


def tensors(name="one", size=9, channels=5, tokens=40, **others):
    spread = torch.arange(1.0, channels + 1) ** 2
    counts = torch.arange(size) * (torch.arange(size) % 3 > 0)
    return TokenizerTensors(
        name, torch.randn(tokens, channels) * spread + 3, torch.randn(size, channels), counts, **others
    )


def marks(panel, colour):
    """Positions and areas of the marks of one colour in a panel."""
    found = [drawn for drawn in panel.collections if np.allclose(drawn.get_facecolor()[0][:3], to_rgba(colour)[:3])]
    return found[0].get_offsets(), found[0].get_sizes()


@pytest.mark.parametrize(("number", "channels"), [(50, 7), (4, 7), (60, 2)])
def test_the_plane_is_that_of_numpys_decomposition(number, channels):
    tokens = torch.randn(number, channels) * torch.arange(1.0, channels + 1) + 5
    mean, axes, shares = principal_plane(tokens)
    centred = tokens.double().numpy() - tokens.double().numpy().mean(axis=0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign((axes.numpy() * directions[:2]).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(axes.numpy(), signs * directions[:2], atol=1e-10)
    np.testing.assert_allclose(shares.numpy(), (lengths**2)[:2] / (lengths**2).sum(), rtol=1e-10)
    np.testing.assert_allclose((tokens.double() - mean).numpy(), centred, atol=1e-12)
    coordinates = centred @ axes.numpy().T
    assert (coordinates.max(axis=0) == np.abs(coordinates).max(axis=0)).all()  # the furthest is on the positive side


@pytest.mark.parametrize("tokens", [torch.ones(6, 3), torch.randn(1, 3), torch.randn(9, 1), torch.zeros(1, 1)])
def test_degenerate_tokens_have_a_plane(tokens):
    _, axes, shares = principal_plane(tokens)
    assert axes.shape == (2, tokens.shape[1]) and torch.isfinite(axes).all()
    assert torch.isfinite(shares).all() and shares.sum() <= 1 + 1e-12


def test_tokens_and_codes_are_drawn_in_the_tokens_plane(figures):
    one = tensors()
    numbers = plot_planes([one, TokenizerTensors("free", torch.randn(20, 3))], "x.png")
    mean, axes, shares = principal_plane(one.tokens)
    codes = ((one.codebook.double() - mean) @ axes.T).numpy()
    tokens = ((one.tokens.double() - mean) @ axes.T).numpy()
    used = one.counts.numpy() > 0
    whole, near = (next(axis for axis in figures[0].axes if title in axis.get_title()) for title in ("one", "about"))
    for panel in (whole, near):
        positions, areas = marks(panel, USED)
        np.testing.assert_allclose(positions, codes[used], rtol=1e-12)
        assert (np.argsort(areas) == np.argsort(one.counts.numpy()[used])).all() and len(set(areas.tolist())) > 1
        np.testing.assert_allclose(marks(panel, UNUSED)[0], codes[~used], rtol=1e-12)
        np.testing.assert_allclose(panel.collections[0].get_offsets(), tokens, rtol=1e-12)
        assert panel.get_aspect() == 1
    (left, right), (low, high) = near.get_xlim(), near.get_ylim()
    assert left < codes[:, 0].min() and codes[:, 0].max() < right and low < codes[:, 1].min()
    assert codes[:, 1].max() < high and high - low == pytest.approx(right - left)
    assert f"{100 * used.mean():.1f} % of 9 codes used" in whole.get_title()
    np.testing.assert_allclose(numbers["one"]["codes"], codes)
    assert numbers["one"]["counts"] == one.counts.tolist() and numbers["one"]["share_used"] == used.mean()
    assert numbers["one"]["variance_shares"] == shares.tolist()
    assert numbers["free"].keys() == {"tokens", "variance_shares"}
    free = next(axis for axis in figures[0].axes if "free" in axis.get_title())
    assert "no codes" in free.get_title() and len(free.collections) == 1 and len(figures[0].axes) == 3


def test_a_rotation_of_tokens_and_codes_changes_no_number(figures):
    one = tensors()
    turn, _ = torch.linalg.qr(torch.randn(5, 5).double())
    turned = TokenizerTensors("one", one.tokens.double() @ turn, one.codebook.double() @ turn, one.counts)
    for plot in (plot_planes, plot_norms, plot_distances):
        before, after = plot([one], "x.png")["one"], plot([turned], "x.png")["one"]
        assert before.keys() == after.keys()
        for name, value in before.items():
            if name == "histogram":
                assert value["pairs"] == after[name]["pairs"] and value["edges"] == pytest.approx(after[name]["edges"])
            elif name == "quantiles":
                assert value == pytest.approx(after[name], rel=1e-9)
            elif value is not None:
                np.testing.assert_allclose(value, after[name], rtol=1e-9, atol=1e-12)


def test_norms_and_uses_are_those_given_and_the_ball_is_a_line(figures):
    one, far, free = (tensors("one", radius=3.0), tensors("far", radius=1e6), tensors("free", size=4))
    numbers = plot_norms([one, far, free], "x.png")
    for panel, its in zip(figures[0].axes, (one, far, free), strict=True):
        norms, counts, used = its.codebook.double().norm(dim=1).numpy(), its.counts.numpy(), its.counts.numpy() > 0
        np.testing.assert_allclose(marks(panel, USED)[0], np.stack([norms, counts], 1)[used], rtol=1e-12)
        np.testing.assert_allclose(marks(panel, UNUSED)[0], np.stack([norms, counts], 1)[~used], rtol=1e-12)
        np.testing.assert_allclose(numbers[its.name]["norms"], norms)
        assert numbers[its.name]["counts"] == counts.tolist() and panel.get_yscale() == "symlog"
        assert f"{100 * used.mean():.1f} % of {len(used)} codes used" in panel.get_title()
    drawn, said, none = ([line.get_xdata() for line in axis.lines] for axis in figures[0].axes)
    assert drawn == [[3.0, 3.0]] and none == [] and len(said) == 1 and len(said[0]) == 0
    legends = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in figures[0].axes]
    assert legends[0][-1] == "ball of radius 3" and legends[1][-1] == "ball of radius 1e+06, not shown"
    assert [numbers[name]["radius"] for name in ("one", "far", "free")] == [3.0, 1e6, None]


def test_distances_are_all_pairs_in_the_order_of_use(figures):
    one, other = tensors("one"), tensors("other", channels=3)
    numbers = plot_distances([one, other], "x.png")
    heats = [axis for axis in figures[0].axes if axis.images]
    histograms = [axis for axis in figures[0].axes if "pairs of used codes" in axis.get_title()]
    for its, heat, histogram in zip((one, other), heats, histograms, strict=True):
        codes, counts = its.codebook.double().numpy(), its.counts.numpy()
        order = np.argsort(-counts, kind="stable")
        expected = np.linalg.norm(codes[order][:, None] - codes[order][None], axis=-1)
        np.testing.assert_allclose(heat.images[0].get_array(), expected, atol=1e-12)
        used = codes[counts > 0]
        pairs = [np.linalg.norm(used[i] - used[j]) for i in range(len(used)) for j in range(i)]
        found = numbers[its.name]
        assert found["codes"] == order.tolist() and found["pairs"] == len(pairs) == sum(found["histogram"]["pairs"])
        assert found["quantiles"]["0.5"] == pytest.approx(np.median(pairs))
        bins, _ = np.histogram(pairs, found["histogram"]["edges"])
        assert bins.tolist() == found["histogram"]["pairs"]
        np.testing.assert_allclose(histogram.patches[0].get_data().values, 100 * bins / len(pairs))
    # One scale, over the distances of different codes of both.
    off = np.concatenate([np.array(heat.images[0].get_array())[~np.eye(9, dtype=bool)] for heat in heats])
    assert {heat.images[0].get_clim() for heat in heats} == {(off.min(), off.max())}
    assert numbers["one"]["histogram"]["edges"] == numbers["other"]["histogram"]["edges"]


def test_distances_of_another_magnitude_have_a_scale_of_their_own(figures):
    one = tensors("one")
    large = TokenizerTensors("large", one.tokens, 100 * one.codebook, one.counts)
    numbers = plot_distances([one, large], "x.png")
    np.testing.assert_allclose(100 * np.array(numbers["one"]["colours"]), numbers["large"]["colours"], rtol=1e-6)
    assert numbers["one"]["histogram"]["pairs"] == numbers["large"]["histogram"]["pairs"]


def test_many_codes_are_taken_evenly_and_few_make_no_pairs(figures):
    counts = 1 + torch.arange(5000)
    many = TokenizerTensors("many", torch.randn(3, 1), torch.arange(5000.0)[:, None], counts)
    one = TokenizerTensors("single", torch.randn(3, 1), torch.ones(1, 1), torch.ones(1).long())
    numbers = plot_distances([many, one], "x.png")
    codes = numbers["many"]["codes"]
    assert len(codes) == 512 and codes[0] == 4999 and codes[-1] == 0 and set(np.diff(codes)) == {-9, -10}
    assert numbers["many"]["pairs"] == 4096 * 4095 // 2
    assert numbers["single"]["pairs"] == 0 and numbers["single"]["quantiles"] == {}
    assert evenly_spaced_indices(3, 5).tolist() == [0, 1, 2] and evenly_spaced_indices(7, 3).tolist() == [0, 3, 6]


def test_what_has_no_place_in_a_figure_is_refused_by_name(figures):
    free, wide = TokenizerTensors("kl", torch.randn(5, 3)), tensors("wide")
    for plot in (plot_norms, plot_distances):
        with pytest.raises(NotDrawable, match="tokenizer 'kl' has no codes"):
            plot([wide, free], "x.png")
    other = TokenizerTensors("spread", torch.randn(5, 10), wide.codebook, wide.counts)
    with pytest.raises(NotDrawable, match=r"'spread' has latent tokens of 10 channels and codes of 5"):
        plot_planes([wide, other], "x.png")
    assert not figures
    wrong = [
        ("tokens of a", (torch.full((2, 2), torch.nan),)),
        ("tokens of a", (torch.randn(0, 2),)),
        ("codebook of a", (torch.randn(3, 2), torch.randn(4, 2), torch.ones(3).long())),
        ("codebook of a", (torch.randn(3, 2), torch.randn(4, 2))),
        ("none of its codes is used", (torch.randn(3, 2), torch.randn(4, 2), torch.zeros(4).long())),
    ]
    for message, given in wrong:
        with pytest.raises(ValueError, match=message):
            TokenizerTensors("a", *given)


@pytest.mark.parametrize("channels", [1, 3])
def test_activations_lie_over_their_images(figures, channels):
    originals, made = noise(2, channels, 8, 8), noise(2, channels, 8, 8, seed=1)
    latents = torch.randn(2, 5, 2, 2)
    numbers = plot_activations(originals, [("a", latents, made), ("b", 3 * latents, originals)], "x.png")
    rows = np.array(figures[0].axes[:10]).reshape(2, 5)
    norms = np.linalg.norm(latents.double().numpy(), axis=1)
    expected = norms / norms.max(axis=(1, 2), keepdims=True)
    for i, (original, over, beside, over_b, beside_b) in enumerate(rows):
        assert [len(axis.images) for axis in rows[i]] == [1, 2, 1, 2, 1]
        picture = originals[i].expand(3, -1, -1).permute(1, 2, 0).numpy()
        for axis in (original, over, over_b, beside_b):
            np.testing.assert_array_equal(axis.images[0].get_array(), picture)
        np.testing.assert_array_equal(beside.images[0].get_array(), made[i].expand(3, -1, -1).permute(1, 2, 0).numpy())
        for axis in (over, over_b):  # the scale of the latents is divided out
            np.testing.assert_allclose(axis.images[1].get_array(), expected[i], rtol=1e-6)
            assert tuple(axis.images[1].get_extent()) == tuple(axis.images[0].get_extent())
            assert axis.images[1].get_interpolation() == "nearest" and 0 < axis.images[1].get_alpha() < 1
    np.testing.assert_allclose(numbers["a"]["activations"], expected, rtol=1e-6)
    assert not activation_maps(torch.zeros(1, 3, 2, 2)).any()
    with pytest.raises(ValueError, match="one of each per image"):
        plot_activations(originals, [("a", latents[:1], made)], "x.png")


def test_a_tables_dots_are_means_and_the_papers_numbers_have_their_own_axis(figures):
    metrics = {
        "psnr": {"vq": [20.0, 22.0, 27.0], "arc": [30.0], "sq": [], "other": [1.0]},
        "ssim": {"vq": [math.nan], "arc": [0.9, math.inf]},
        "empty": {"vq": []},
    }
    plot_table(["vq", "sq", "arc"], metrics, {"psnr": {"vq": 25.0, "sq": 26.0}, "lpips": {"vq": 1.0}}, "x.png")
    psnr, ssim, upper = figures[0].axes
    assert [axis.get_title() for axis in (psnr, ssim)] == ["psnr", "ssim"]
    assert [text.get_text() for text in psnr.get_yticklabels()] == ["vq", "arc"]
    assert [text.get_text() for text in ssim.get_yticklabels()] == ["arc"]
    line, _, (bars,) = psnr.containers[0]
    np.testing.assert_allclose(line.get_xydata(), [[23.0, 0], [30.0, 1]])
    np.testing.assert_allclose([segment[:, 0] for segment in bars.get_segments()], [[20, 27], [30, 30]])
    np.testing.assert_allclose(ssim.containers[0][0].get_xydata(), [[0.9, 0]])
    np.testing.assert_allclose(upper.lines[0].get_xydata(), [[25.0, 0]])
    assert upper.lines[0].get_markerfacecolor() == "none" and upper.get_ylim() == psnr.get_ylim()
    assert psnr.get_ylim()[0] > psnr.get_ylim()[1]  # the first row is on top
    with pytest.raises(ValueError, match="no finite number"):
        plot_table(["vq"], {"psnr": {"arc": [1.0]}}, {}, "x.png")


def test_histories_are_a_line_for_each_seed_in_its_rows_colour(figures):
    entries = [{"step": 10, "psnr": 1.0}, {"step": 20, "usage": 0.5}, {"step": 30, "psnr": 3.0}]
    plot_histories({"vae": {0: entries[:1]}, "arc": {0: entries, 4: entries[:2]}}, ["psnr", "usage"], "x.png")
    psnr, usage = figures[0].axes
    assert [axis.get_title() for axis in (psnr, usage)] == ["psnr", "usage"]
    lines = [line.get_xydata().tolist() for line in psnr.lines]
    assert lines == [[[10, 1]], [[10, 1], [30, 3]], [[10, 1]]]
    assert [line.get_xydata().tolist() for line in usage.lines] == [[[20, 0.5]]] * 2  # the first row has no usage
    colours = [line.get_color() for line in (*psnr.lines, *usage.lines)]
    named = {line.get_label(): line.get_color() for line in figures[0].legends[0].get_lines()}
    assert colours == [named["vae"]] + 4 * [named["arc"]] and len(set(colours)) == 2
    with pytest.raises(ValueError, match="metrics is empty"):
        plot_histories({}, [], "x.png")


def test_curves_have_the_papers_number_in_the_rows_colour_and_dashes_of_the_seed(figures):
    entries = [{"step": 10, "psnr": 1.0, "usage": 0.5, "share_on_ball": 0.1}, {"step": 30, "psnr": 3.0}]
    histories = {"vq": {0: entries, 1: entries}, "arc": {1: entries}}
    plot_histories(histories, ["psnr", "usage", "share_on_ball"], "x.png", {"psnr": {"vq": 26.48, "other": 20.0}})
    psnr, usage, share = figures[0].axes
    assert share.get_title() == "share_on_ball" and len(usage.lines) == len(share.lines) == 3
    number = [line for line in psnr.lines if list(line.get_ydata()) == [26.48, 26.48]]
    assert len(psnr.lines) == 4 and len(number) == 1 and list(number[0].get_xdata()) == [0, 1]  # the whole width
    first, second, other = (line for line in psnr.lines if line not in number)
    assert first.get_color() == second.get_color() == number[0].get_color() != other.get_color()
    assert first.get_linestyle() != second.get_linestyle() == other.get_linestyle() != number[0].get_linestyle()
    named = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert named == ["vq", "arc", "seed 0", "seed 1", "the paper's number"]


@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning")  # what libraries say of each other
def test_a_table_is_a_png(tmp_path):
    plot_table(["vq"], {"psnr": {"vq": [1.0, 2.0]}}, {"psnr": {"vq": 3.0}}, tmp_path / "table.png")
    assert is_png(tmp_path / "table.png")


def test_normalised_latents_have_no_activation():
    latents = torch.nn.functional.normalize(torch.randn(2, 3, 4, 4), dim=1)
    with pytest.raises(NotDrawable, match="all latents have length 1"):
        activation_maps(latents)
    assert activation_maps(2 * latents).shape == (2, 4, 4)
