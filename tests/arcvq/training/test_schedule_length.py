"""Schedules of a quantizer that are scaled to the length of the training."""

from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState

from arcvq.training import tokenizer as train_tokenizer
from arcvq.training.schedule_length import described_schedule, scaled_rates
from tokenizer import VQTokenizer
from tokenizer.quantizers import QUANTIZERS

IMAGES = SimpleNamespace(channels=1, image_size=8)
STATES = {
    "arc": lambda quantizer: [quantizer.radius, quantizer.loss_weights()["arc"]],
    "arc_vae": lambda quantizer: [quantizer.radius, quantizer.loss_weights()["arc"]],
    "sq": lambda quantizer: [quantizer.temperature],
}
SMALL = ["--model.hidden_channels", "8", "--model.codebook_size", "8", "--model.codebook_dim", "4"]


def parsed(*options):
    return train_tokenizer.make_parser().parse([*SMALL, *map(str, options)])


def test_every_quantizer_with_a_schedule_per_step_is_tried_here():
    assert {name for name, quantizer in QUANTIZERS.items() if quantizer.rates_per_step} == STATES.keys()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", STATES)
def test_a_training_of_any_length_goes_through_the_same_schedule(name, share):
    states = []
    for steps in (400, 40_000):
        config = parsed("--model.quantizer", name, "--optim.max_steps", steps, "--schedule_length", 20_000)
        quantizer = train_tokenizer.make_tokenizer(config, IMAGES).bottleneck
        quantizer.step.fill_(round(share * steps))
        states.append([float(value) for value in STATES[name](quantizer)])
    assert states[0] == pytest.approx(states[1], rel=1e-5)


def test_given_rates_are_scaled_and_other_options_kept():
    options = ("--model.quantizer_options", "{arc_decay: 0.001, margin: 0.3}", "--optim.max_steps", 50)
    config = parsed(*options, "--schedule_length", 100)
    quantizer = train_tokenizer.make_tokenizer(config, IMAGES).bottleneck
    assert (quantizer.arc_decay, quantizer.ball_growth, quantizer.margin) == pytest.approx((0.002, 0.0006, 0.3))
    assert scaled_rates(parsed(*options)) == {}


@pytest.mark.parametrize("options", [{"base": "arc"}, {"base": "arc", "base_options": {"margin": 0.3}}])
def test_the_rates_of_a_product_are_those_of_its_base(options):
    given = ("--model.quantizer", "product", "--model.quantizer_options", options, "--optim.max_steps", 50)
    product = train_tokenizer.make_tokenizer(parsed(*given, "--schedule_length", 100), IMAGES).bottleneck
    assert all(base.arc_decay == pytest.approx(0.001) for base in product.bases)
    assert product.bases[0].margin == options.get("base_options", {}).get("margin", 0.1)


def test_a_quantizer_without_a_schedule_says_so():
    assert "quantizer 'vq' has no rates" in described_schedule(
        parsed("--model.quantizer", "vq", "--schedule_length", 9)
    )


@pytest.mark.slow
def test_the_saved_tokenizer_has_the_scaled_rates_and_another_length_is_another_schedule(tmp_path):
    def train(*options):
        AcceleratorState._reset_state(reset_partial_state=True)
        place = ("--run.output_dir", tmp_path, "--run.name", "scaled", "--optim.batch_size", 8)
        train_tokenizer.main([*SMALL, *map(str, (*place, "--schedule_length", 300, *options))])

    train("--optim.max_steps", 3)
    bottleneck = VQTokenizer.from_pretrained(tmp_path / "scaled").bottleneck
    assert bottleneck.arc_decay == pytest.approx(100 * 5e-4)
    with pytest.raises(ValueError, match="schedule_length"):
        train("--optim.max_steps", 6)


def test_a_length_below_a_step_is_refused():
    with pytest.raises(ValueError, match="schedule_length must be at least 1, or None, got 0"):
        train_tokenizer.check(parsed("--schedule_length", 0))
