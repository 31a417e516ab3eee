"""A step as a CUDA graph: the training is the same, and what cannot be captured is said."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from replayed_calls import graphs_on_cpu
from small_runs import run, training

from arcvq.training import tokenizer as train_tokenizer
from arcvq.training.graphed_step import QUANTIZERS, graph_hindrance
from arcvq.training.tokenizer import make_parser, set_up
from tokenizer import VQTokenizer
from tokenizer.data import load_splits

STEPS = 8


def trained_tokenizer(tmp_path, name, captures, *options):
    """The state after some steps, in which learning rate, decay of the average and the quantizer's schedules change."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    parser = make_parser()
    config = parser.parse(
        [
            *("--model.quantizer", name, "--model.codebook_size", "16", "--model.codebook_dim", "4"),
            *("--model.hidden_channels", "8", "--optim.max_steps", str(STEPS), "--optim.batch_size", "8"),
            *("--optim.warmup_steps", "6", "--ema_decay", "0.9", "--run.cuda_graph", "true"),
            *("--run.output_dir", str(tmp_path), "--run.name", f"{name}-{captures}", "--run.log_every", "3"),
            *("--run.mixed_precision", "no", *options),
        ]
    )
    images = load_splits(config.data).train
    whole = train_tokenizer.Run(config.run, config.optim, parser.settings(config))
    update = set_up(whole, config, images)
    assert whole.captures
    if not captures:
        update.__dict__["graphed"] = None
    for batch in whole.steps(whole=True):
        update.step(batch)
    state = update.tokenizer.state_dict() | {
        f"average {index}": tensor for index, tensor in enumerate(whole.average.tensors)
    }
    lines = (whole.folder / "metrics.jsonl").read_text().splitlines()
    return state, [line.split('"lr"')[0] for line in lines], dict(whole._skipped.counts)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_captured_training_is_the_same(tmp_path, monkeypatch, name):
    monkeypatch.setattr(train_tokenizer, "graph_hindrance", lambda *_: None)
    expected = trained_tokenizer(tmp_path, name, False)
    with graphs_on_cpu():
        found = trained_tokenizer(tmp_path, name, True)
    assert all(torch.equal(found[0][key], value) for key, value in expected[0].items())
    assert found[1:] == expected[1:]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "cpu"}, "no GPU"),
        ({"num_processes": 2}, "2 processes"),
        ({"scaler": object()}, "fp16"),
        ({"is_adversarial": True}, "discriminator"),
        ({"quantizer": "vae"}, "'vae'"),
        ({"quantizer": "ema", "quantizer_options": {"revive_below": 0.1}}, "revive_below"),
        ({"quantizer": "arc", "quantizer_options": {"init": "kmeans"}}, "init kmeans"),
        ({"network": "vqgan", "network_options": {"channel_multipliers": (1, 2)}}, "'vqgan'"),
        ({}, None),
    ],
)
def test_what_hinders_a_capture_is_named(options, named):
    options = dict(options)
    is_adversarial = options.pop("is_adversarial", False)
    device = torch.device(options.pop("device", "cuda"))
    accelerator = SimpleNamespace(
        num_processes=options.pop("num_processes", 1), scaler=options.pop("scaler", None), device=device
    )
    tokenizer = VQTokenizer(1, 16, codebook_size=12, codebook_dim=4, hidden_channels=32, **options)
    found = graph_hindrance(SimpleNamespace(device=device, accelerator=accelerator), tokenizer, is_adversarial)
    assert found is None if named is None else named in found


def test_without_a_gpu_the_step_runs_without_a_graph_and_says_so(tmp_path):
    done = run(*training("tokenizer", tmp_path, 2, "--run.cuda_graph", "true"), cwd=tmp_path)
    assert "note: run.cuda_graph: there is no GPU" in done.stdout
