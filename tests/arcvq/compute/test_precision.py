"""Float32 in full where images are sampled, measured or encoded; what was set before stays for the trainings."""

import shutil

import pytest
import torch
from small_runs import SMALL
from torch.nn.modules.module import register_module_forward_pre_hook

from arcvq.compute.precision import float32_precisions, full_float32
from arcvq.conversion import codebook
from arcvq.evaluation import command as evaluate
from arcvq.evaluation import schedulers
from arcvq.paper import figures
from arcvq.sampling import command as sample
from arcvq.training import ldm, pixelcnn, tokenizer

LAYERS = (torch.nn.Conv2d, torch.nn.Linear)


def set_to(precisions):
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = precisions[0]
    torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = precisions[1:]


@pytest.fixture(autouse=True)
def as_it_was():
    """Puts torch's own settings back, the old and the new ones."""
    conv = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    set_to((conv, "none", "none"))


SETTINGS = {
    "torch's own": lambda: None,
    "TensorFloat-32 everywhere": lambda: set_to(("tf32", "tf32", "bf16")),
    "full already": lambda: set_to(("ieee", "ieee", "ieee")),
    "the old switch": lambda: torch.set_float32_matmul_precision("medium"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_all_is_full_inside_and_as_before_outside(setting, recwarn, monkeypatch):
    torch.set_warn_always(True)
    SETTINGS[setting]()
    before = float32_precisions()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(KeyError), full_float32():
        assert not torch.backends.cudnn.benchmark
        assert set(float32_precisions().values()) == {"ieee"}
        with full_float32():
            pass
        assert set(float32_precisions().values()) == {"ieee"}
        raise KeyError
    assert float32_precisions() == before and torch.backends.cudnn.benchmark
    torch.set_warn_always(False)
    assert not [str(warning.message) for warning in recwarn if "precision" in str(warning.message)]


@pytest.fixture
def seen():
    """Pairs of whether a layer computes for a gradient, and the settings it computes with, since the last `clear`."""
    pairs = set()

    def record(module, inputs):
        if isinstance(module, LAYERS):
            pairs.add((torch.is_grad_enabled(), tuple(float32_precisions().items())))

    handle = register_module_forward_pre_hook(record)
    yield pairs
    handle.remove()


@pytest.mark.slow
def test_trainings_compute_alike_in_any_order_and_all_else_in_full(tmp_path, monkeypatch, seen, classifier_cache):
    """Every command after every other, in one process, as reproduce runs them."""
    monkeypatch.chdir(tmp_path)
    start = float32_precisions()
    trains, full = (True, tuple(start.items())), (False, tuple(dict.fromkeys(start, "ieee").items()))
    assert trains[1] != full[1]

    def check(main, *arguments, expected):
        seen.clear()
        main([*map(str, arguments)])
        assert seen == expected and float32_precisions() == start, main

    short = ["--optim.max_steps=1", "--optim.batch_size=4", "--run.sample_every=1"]
    shutil.copytree(classifier_cache, "cache")
    measured = ["--num_images=10", "--cache_dir=cache"]
    fast = "--sampling.num_inference_steps=2"
    check(tokenizer.main, *SMALL["tokenizer"], *short, expected={trains, full})
    check(ldm.main, *SMALL["ldm"], *short, expected={trains, full})
    check(pixelcnn.main, *SMALL["pixelcnn"], *short, expected={trains, full})
    on_the_fly = ("--latents.mode=on_the_fly", "--run.name=on_the_fly")
    check(ldm.main, *SMALL["ldm"], *short, *on_the_fly, expected={trains, full})
    check(sample.main, "runs/ldm", "--num_images=2", fast, expected={full})
    check(evaluate.main, "reconstruction", "runs/tokenizer", *measured, expected={full})
    digits = (*measured, "--extractor=digits-classifier")
    check(evaluate.main, "generation", "runs/ldm", *digits, fast, expected={full})
    points = ("--schedulers=ddim", "--guidance_scales=1", "--steps=2", "--ddim_steps=")
    check(schedulers.main, "runs/ldm", *points, *digits, expected={full})
    check(figures.main, "figure_2", "runs/tokenizer", "--num_images=10", expected={full})
    of_digits = (
        "--extractor=digits-classifier",
        "--cache_dir=cache",
        "--codebook_size=4",
        "--num_images=10",
    )
    check(codebook.main, "features", *of_digits, expected={full})
    check(tokenizer.main, *SMALL["tokenizer"], *short, "--run.name=again", expected={trains, full})
