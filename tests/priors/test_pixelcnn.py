import itertools
import math

import pytest
import torch
from pipeline_calls import seeded
from torch.nn.functional import one_hot

from priors import PixelCNN
from priors.code_sampling import inverse_cdf
from priors.gated_layer import GatedLayer
from priors.pixelcnn import code_nll
from tokenizer.functional.noise import ImageNoise


def make(codes=5, grid=(4, 5), layers=4, sharpness=4.0, **options):
    model = PixelCNN(codes, 3, grid, channels=12, num_layers=layers, head_channels=16, **options).eval()
    with torch.no_grad():  # random weights give nearly uniform codes, which hardly depend on each other
        model.head[-1].weight.mul_(sharpness)
        for layer in model.layers:
            layer.horizontal_out.weight.mul_(3)
            layer.horizontal_out.bias.zero_()
        for convolution in (model.head[0], model.head[-1]):
            convolution.bias.zero_()
    return model


def raster(position, grid=(4, 5)):
    return divmod(position, grid[1])


def all_grids(codes, height, width):
    return torch.tensor(list(itertools.product(range(codes), repeat=height * width))).reshape(-1, height, width)


@torch.no_grad()
def probabilities_of_all_grids(model, label):
    height, width = model.config.grid_size
    grids = all_grids(model.config.codebook_size, height, width)
    nll = model.nll(grids, torch.full((len(grids),), label))
    return grids, torch.exp(-nll.double() * height * width)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 4])
def test_logits_do_not_change_with_their_own_or_later_codes(layers):
    model = make(layers=layers).double()
    codes, labels = torch.randint(5, (1, 4, 5)), torch.tensor([1])
    logits = model(codes, labels).flatten(2)
    for position in range(20):
        row, column = raster(position)
        changed = codes.clone()
        changed[0, row, column] = (codes[0, row, column] + 1) % 5
        difference = (model(changed, labels).flatten(2) - logits).abs().amax(dim=(0, 1))
        assert (difference[: position + 1] == 0).all()
        if layers == 4:  # enough to see the whole grid, without a blind spot
            assert (difference[position + 1 :] > 0).all()


@pytest.mark.parametrize("layers", [1, 4])
def test_gradients_reach_every_earlier_code_and_no_other(layers):
    model = make(layers=layers).double()
    embedded = []
    model.embedding.register_forward_hook(lambda *args: embedded.append(args[2]))
    logits = model(torch.randint(5, (1, 4, 5)), torch.tensor([1]))
    for position in range(20):
        row, column = raster(position)
        weight = torch.randn(5, dtype=torch.float64)
        loss = (logits[0, :, row, column] * weight).sum()
        (gradient,) = torch.autograd.grad(loss, embedded[0], retain_graph=True)
        seen = gradient.abs().sum(dim=3).flatten() > 0
        assert not seen[position:].any()
        if layers == 4:
            assert seen[:position].all()


def test_the_first_layer_reaches_three_positions():
    model = make(layers=1, grid=(9, 9)).double()
    embedded = []
    model.embedding.register_forward_hook(lambda *args: embedded.append(args[2]))
    logits = model(torch.randint(5, (1, 9, 9)), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(logits[0, 0, 5, 4], embedded[0])
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[2:5, 1:8] = True  # kernel 7: three rows above, three columns to either side
    expected[5, 1:4] = True
    assert torch.equal(gradient[0].abs().sum(dim=2) > 0, expected)


@torch.no_grad()
def test_every_layer_and_position_knows_the_class():
    model = make()
    codes = torch.randint(5, (1, 4, 5)).expand(3, -1, -1)
    logits = model(codes, torch.arange(3))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert ((logits[a] - logits[b]).abs().amax(dim=0) > 1e-4).all()
    for layer in model.layers:
        weight = layer.label.weight.clone()
        layer.label.weight[2] += 1
        changed = model(codes, torch.arange(3))
        layer.label.weight.copy_(weight)
        assert torch.equal(changed[:2], logits[:2]) and not torch.equal(changed[2], logits[2])


@torch.no_grad()
def test_the_class_enters_the_gates_of_both_stacks():
    layer = GatedLayer(6, 3, 2, sees_itself=True, dropout=0.0)
    stacks = torch.randn(2, 1, 6, 3, 3)
    first, second = (layer(*stacks, torch.tensor([label])) for label in (0, 1))
    assert all((a - b).abs().min() > 0 for a, b in zip(first, second, strict=True))


@torch.no_grad()
def test_nll_is_the_mean_cross_entropy_of_the_codes():
    model = make()
    codes, labels = torch.randint(5, (3, 4, 5)), torch.tensor([0, 1, 2])
    log_probabilities = model(codes, labels).double().log_softmax(dim=1)
    picked = (log_probabilities * one_hot(codes, 5).permute(0, 3, 1, 2)).sum(dim=1)
    nll = model.nll(codes, labels)
    assert nll.shape == (3,) and nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), -picked.mean(dim=(1, 2)), rtol=1e-5, atol=0)


def test_uniform_logits_cost_log_k():
    nll = code_nll(torch.zeros(2, 7, 3, 3, dtype=torch.bfloat16), torch.randint(7, (2, 3, 3)))
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, torch.full((2,), math.log(7)))


@pytest.mark.parametrize(("codes", "grid"), [(3, (2, 2)), (2, (2, 3)), (2, (3, 2))])
def test_the_probabilities_of_all_grids_sum_to_one(codes, grid):
    for label in range(3):
        _, probabilities = probabilities_of_all_grids(make(codes, grid), label)
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
        assert probabilities.max() > 2 / len(probabilities)  # far from uniform


def test_samples_follow_the_models_distribution():
    model = make(3, (2, 2))
    grids, probabilities = probabilities_of_all_grids(model, 2)
    count = 20000
    samples = model.sample(torch.full((count,), 2), seeded(5) * count)
    index = (samples.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(dim=1)
    assert torch.equal(grids[index], samples)
    # Grids of fewer than 5 expected samples are one cell.
    expected, observed = probabilities * count, torch.bincount(index, minlength=81).double()
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    observed = torch.cat([observed[~rare], observed[rare].sum()[None]])
    cells = len(expected)
    assert cells > 20
    chi_square = ((observed - expected) ** 2 / expected.clamp(min=1)).sum().item()
    assert chi_square < cells + 4 * math.sqrt(2 * cells)
    # The bound has teeth: another class is told apart at once.
    _, other = probabilities_of_all_grids(model, 0)
    assert ((torch.bincount(index, minlength=81) - other * count) ** 2 / (other * count)).sum() > 10 * chi_square


@pytest.mark.parametrize(("uniform", "code"), [(0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-24, 3)])
def test_a_code_of_probability_zero_is_never_drawn(uniform, code):
    assert inverse_cdf(torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]), torch.tensor([uniform])).tolist() == [code]


def first_code_frequencies(model, count=20000, **options):
    samples = model.sample(torch.zeros(count, dtype=torch.int64), seeded(1) * count, **options)
    return torch.bincount(samples.flatten(), minlength=model.config.codebook_size) / count


@torch.no_grad()
def test_temperature_top_k_and_top_p_restrict_the_distribution():
    model = make(6, (1, 1))
    logits = model(torch.zeros(1, 1, 1, dtype=torch.int64), torch.tensor([0])).flatten().double()
    probabilities, order = logits.softmax(dim=0), logits.argsort(descending=True)
    cumulative = probabilities[order].cumsum(dim=0)
    assert probabilities.min() > 0.01 and cumulative[1] < 0.9

    for temperature in (0.5, 1.0, 2.0):
        found = first_code_frequencies(model, temperature=temperature)
        torch.testing.assert_close(found.double(), (logits / temperature).softmax(dim=0), rtol=0, atol=0.015)
    between = (cumulative[1] + cumulative[2]).item() / 2  # reached by the third code
    for options, kept in (
        ({"top_k": 2}, 2),
        ({"top_k": 100}, 6),
        ({"top_p": between}, 3),
        ({"top_p": 1.0}, 6),
        ({"top_k": 2, "top_p": 0.999}, 2),
    ):
        expected = torch.zeros(6, dtype=torch.float64)
        expected[order[:kept]] = probabilities[order[:kept]] / cumulative[kept - 1]
        found = first_code_frequencies(model, **options)
        assert ((found > 0) == (expected > 0)).all()
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.015)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-6}])
def test_the_narrowest_choice_is_greedy(options):
    model = make()
    labels = torch.tensor([0, 1, 2])
    greedy = torch.zeros(3, 4, 5, dtype=torch.int64)
    for position in range(20):
        row, column = raster(position)
        greedy[:, row, column] = model(greedy, labels)[:, :, row, column].argmax(dim=1)
    assert len(greedy.unique()) > 1
    assert torch.equal(model.sample(labels, seeded(1, 2, 3), **options), greedy)


def test_a_batch_equals_its_singles():
    model = make()
    labels, seeds = [2, 0, 2, 1], [11, 12, 13, 14]
    batch = model.sample(torch.tensor(labels), seeded(*seeds))
    assert batch.shape == (4, 4, 5) and batch.dtype == torch.int64
    for codes, label, seed in zip(batch, labels, seeds, strict=True):
        assert torch.equal(model.sample(torch.tensor([label]), seeded(seed))[0], codes)
    assert not torch.equal(batch[0], batch[2])  # one class, two seeds


def test_without_generators_the_global_seed_decides():
    model = make()
    labels = torch.tensor([0, 0])
    torch.manual_seed(3)
    first = model.sample(labels, [None, None])
    torch.manual_seed(3)
    assert torch.equal(model.sample(labels, [None, None]), first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(model.sample(labels, [None, None]), first)


def test_progress_wraps_every_position():
    seen = []
    make().sample(torch.tensor([0]), seeded(0), progress=lambda positions: seen.extend(positions) or positions)
    assert seen == list(range(20))


def test_training_lowers_the_nll_to_that_of_the_data():
    model = PixelCNN(4, 2, (3, 3), channels=12, num_layers=3, head_channels=16)
    # Class 0 counts upwards in raster order, class 1 downwards, each from a random code: log 4 nats in 9 codes.
    start, labels = torch.randint(4, (256, 1)), torch.arange(256) % 2
    codes = ((start + torch.arange(9) * (1 - 2 * labels[:, None])) % 4).reshape(-1, 3, 3)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        loss = model.nll(codes, labels).mean()
        loss.backward()
        optimiser.step()
    assert math.log(4) / 9 * 0.98 < loss.item() < math.log(4) / 9 * 1.1
    samples = model.eval().sample(torch.arange(40) % 2, seeded(*range(40))).flatten(1)
    steps = (samples[:, 1:] - samples[:, :-1]) % 4
    right = steps == torch.tensor([1, 3])[torch.arange(40) % 2][:, None]
    assert right.double().mean() > 0.95


@torch.no_grad()
def test_save_and_load(tmp_path):
    model = make(dropout=0.1)
    model.save_pretrained(tmp_path)
    loaded = PixelCNN.from_pretrained(tmp_path)
    assert tuple(loaded.config.grid_size) == (4, 5) and not loaded.training
    saved, restored = model.state_dict(), loaded.state_dict()
    assert saved.keys() == restored.keys() and all(torch.equal(saved[key], restored[key]) for key in saved)
    labels = torch.tensor([0, 1])
    assert torch.equal(loaded.sample(labels, seeded(1, 2)), model.sample(labels, seeded(1, 2)))


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    codes, labels = torch.randint(5, (1, 4, 5)), torch.tensor([0])
    assert torch.equal(model(codes, labels), model(codes, labels))
    model.train()
    assert not torch.equal(model(codes, labels), model(codes, labels))


@pytest.mark.parametrize(
    "options", [{"codebook_size": 0}, {"num_classes": 0}, {"grid_size": (0, 4)}, {"channels": 0}, {"num_layers": 0}]
)
def test_an_empty_size_is_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        PixelCNN(**options)


def test_dropped_labels_are_a_function_of_seed_and_image():
    model = make(label_dropout=0.5).train()
    codes, labels = torch.zeros(8, 4, 5, dtype=torch.int64), torch.zeros(8, dtype=torch.int64)
    whole = model(codes, labels, ImageNoise(8, codes.device, 3))
    parts = [model(codes[i:j], labels[i:j], ImageNoise(j - i, codes.device, 3, i)) for i, j in ((0, 3), (3, 8))]
    torch.testing.assert_close(torch.cat(parts), whole)
    with torch.no_grad():
        kept, dropped = (model.eval()(codes[:1], torch.tensor([label]))[0] for label in (0, model.null_label))
    is_dropped = torch.tensor([torch.allclose(row, dropped, atol=1e-5) for row in whole])
    is_kept = torch.tensor([torch.allclose(row, kept, atol=1e-5) for row in whole])
    assert torch.equal(is_dropped, ~is_kept) and 0 < is_dropped.sum() < 8
