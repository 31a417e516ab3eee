import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pipeline_calls
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from pipeline_calls import quiet, seeded
from places import PYTHONPATH
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from priors.diffusion import make_scheduler, other_scheduler
from priors.unet import CrossAttentionUNet, make_unet
from tokenizer import VQTokenizer

ID2LABEL = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 2: "hen"}


def small_unet(conditioning="embedding"):
    return make_unet((4, 4, 4), 3, 64, (1,), num_blocks=1, attention_sizes=(4,), conditioning=conditioning)


@pytest.fixture(scope="module", params=["embedding", "cross_attention"])
def parts(request):
    torch.manual_seed(0)
    vqvae = VQTokenizer(
        in_channels=3,
        image_size=16,
        codebook_size=32,
        codebook_dim=4,
        hidden_channels=8,
        network_options={"residual_channels": 4},
    )
    unet = small_unet(request.param)
    with torch.no_grad():  # a random embedding says little, a random decoder paints grey
        unet.class_embedding.weight.mul_(5)
        vqvae.decoder.conv_out.weight.mul_(20)
    return vqvae.eval(), unet.eval()


@pytest.fixture
def pipe(parts):
    vqvae, unet = parts
    return quiet(ArcVQLDMPipeline(vqvae, unet, make_scheduler(), ID2LABEL, latent_scale=0.5))


@pytest.fixture
def folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def unet_inputs(pipe):
    inputs = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: inputs.append(args))
    yield inputs
    hook.remove()


def sample(pipe, labels=(0, 2), seeds=None, **options):
    return pipeline_calls.sample(pipe, labels, seeds, **({"num_inference_steps": 3} | options))


def test_images_differ_by_class_and_by_seed(pipe):
    images = sample(pipe, (0, 2, 0, 0), (1, 1, 2, 1))
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
    torch.testing.assert_close(images[0], images[3], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.0, 1.4, 3.0])
def test_equals_guided_ddim_by_hand(pipe, guidance_scale):
    labels, noise = torch.tensor([2, 0]), torch.randn(2, 4, 4, 4)
    steps = []  # the latents after each: images are made of codes, and hide small errors
    found = sample(
        pipe,
        [2, 0],
        latents=noise,
        guidance_scale=guidance_scale,
        num_inference_steps=4,
        callback_on_step_end=lambda *args: steps.append(args[3]["latents"]) or {},
    )
    alphas = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2, 0)
    latents, timesteps = noise, [999, 749, 499, 249]
    for timestep, following in zip(timesteps, [749, 499, 249, None], strict=True):
        conditional = pipe.unet(latents, timestep, labels).sample
        unconditional = pipe.unet(latents, timestep, torch.full((2,), 3)).sample
        predicted = unconditional + guidance_scale * (conditional - unconditional)
        alpha, next_alpha = (alphas[t].item() for t in (timestep, 0 if following is None else following))
        clean = (latents - (1 - alpha) ** 0.5 * predicted) / alpha**0.5
        latents = next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * predicted
    torch.testing.assert_close(steps[-1], latents.float(), rtol=1e-3, atol=1e-3)
    expected = (pipe.vqvae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_latents_are_divided_by_the_scale_before_they_are_decoded(parts, monkeypatch):
    vqvae, unet = parts
    pipe = quiet(ArcVQLDMPipeline(vqvae, unet, make_scheduler(), latent_scale=4.0))
    decoded, last = [], []
    decode = vqvae.decode
    monkeypatch.setattr(vqvae, "decode", lambda latents: decoded.append(latents) or decode(latents))
    sample(pipe, callback_on_step_end=lambda *args: last.append(args[3]["latents"]) or {})
    torch.testing.assert_close(decoded[0], last[-1] / 4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_batch_equals_its_singles(pipe, eta):
    labels, seeds = (2, 0, 1), (21, 22, 23)
    batch = sample(pipe, labels, seeds, eta=eta)
    for image, label, seed in zip(batch, labels, seeds, strict=True):
        torch.testing.assert_close(sample(pipe, [label], [seed], eta=eta)[0], image, rtol=0, atol=1e-5)


def test_eta_adds_noise_of_each_images_generator(pipe):
    noise = torch.randn(2, 4, 4, 4)
    assert torch.equal(sample(pipe, latents=noise, seeds=(1, 2)), sample(pipe, latents=noise, seeds=(3, 4)))
    noisy = [sample(pipe, latents=noise, seeds=seeds, eta=1.0) for seeds in ((1, 2), (1, 4))]
    torch.testing.assert_close(noisy[0][0], noisy[1][0], rtol=0, atol=1e-5)
    assert not torch.equal(noisy[0][1], noisy[1][1])


def test_given_latents_reproduce_a_generators_result(pipe):
    noise = torch.cat([torch.randn(1, 4, 4, 4, generator=generator) for generator in seeded(8, 9)])
    assert torch.equal(sample(pipe, latents=noise), sample(pipe, seeds=(8, 9)))


def test_one_generator_serves_all_images(pipe):
    found = sample(pipe, generator=seeded(4)[0])
    assert torch.equal(found, sample(pipe, latents=torch.randn(2, 4, 4, 4, generator=seeded(4)[0])))
    torch.manual_seed(6)
    without = sample(pipe, generator=None)
    torch.manual_seed(6)
    assert torch.equal(sample(pipe, generator=None), without)


def test_labels_may_be_a_number_a_list_a_tensor_or_an_array(pipe):
    expected = sample(pipe, [1], [5])
    for labels in (1, (1,), torch.tensor([1]), torch.tensor([1], dtype=torch.int32), np.array([1])):
        images = pipe(labels, num_inference_steps=3, output_type="pt", generator=seeded(5)).images
        assert torch.equal(images, expected)


def test_output_types_agree(pipe):
    pt, array, pil = (sample(pipe, output_type=kind) for kind in ("pt", "np", "pil"))
    assert pt.min() >= 0 and pt.max() <= 1 and pt.std() > 0.05
    assert array.shape == (2, 16, 16, 3) and array.dtype == np.float32
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert [image.size for image in pil] == [(16, 16)] * 2 and pil[0].mode == "RGB"
    for image, values in zip(pil, array, strict=True):
        assert np.array_equal(np.asarray(image), np.round(values * 255).astype(np.uint8))


def test_to_output_maps_minus_one_to_one_onto_zero_to_one():
    images = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0], dtype=torch.bfloat16).reshape(1, 1, 2, 3)
    found = ArcVQLDMPipeline.to_output(images, "pt")
    assert found.dtype == torch.float32 and found.flatten().tolist() == [0, 0, 0.5, 0.75, 1, 1]
    grey = ArcVQLDMPipeline.to_output(images, "pil")[0]
    assert (
        grey.mode == "L" and grey.size == (3, 2) and np.asarray(grey).flatten().tolist() == [0, 0, 128, 191, 255, 255]
    )


def test_return_dict(pipe):
    options = {"num_inference_steps": 2, "output_type": "pt", "latents": torch.randn(1, 4, 4, 4)}
    output, plain = pipe([1], **options), pipe([1], **options, return_dict=False)
    assert isinstance(output, ImagePipelineOutput) and isinstance(plain, tuple) and len(plain) == 1
    assert torch.equal(output.images, plain[0])


def test_no_guidance_costs_one_pass_per_image(pipe, unet_inputs):
    sample(pipe, (0, 1, 2), guidance_scale=1)
    assert [len(args[0]) for args in unet_inputs] == [3, 3, 3]
    assert unet_inputs[0][2].tolist() == [0, 1, 2]
    unet_inputs.clear()
    sample(pipe, (0, 1, 2), guidance_scale=1.4)
    assert [len(args[0]) for args in unet_inputs] == [6, 6, 6]
    assert unet_inputs[0][2].tolist() == [3, 3, 3, 0, 1, 2]


def test_the_callback_sees_every_step(pipe):
    seen = []

    def callback(pipeline, index, timestep, tensors):
        assert pipeline is pipe and list(tensors) == ["latents"] and tensors["latents"].shape == (2, 4, 4, 4)
        seen.append((index, int(timestep)))
        return {}

    images = sample(pipe, callback_on_step_end=callback)
    assert seen == [(0, 999), (1, 666), (2, 332)]
    assert torch.equal(images, sample(pipe))


@torch.no_grad()
def test_the_callback_can_replace_the_latents(pipe, unet_inputs):
    chosen = torch.randn(3, 2, 4, 4, 4)
    images = sample(pipe, guidance_scale=1, callback_on_step_end=lambda _, index, *rest: {"latents": chosen[index]})
    assert torch.equal(unet_inputs[1][0], chosen[0]) and torch.equal(unet_inputs[2][0], chosen[1])
    expected = pipe.vqvae.decode(chosen[2] / 0.5).sample
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize(
    "scheduler",
    [DPMSolverMultistepScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DDPMScheduler],
    ids=lambda scheduler: scheduler.__name__,
)
def test_other_schedulers_run_and_a_batch_still_equals_its_singles(pipe, scheduler):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    batch = sample(pipe, (2, 0), (31, 32), num_inference_steps=5)
    assert batch.isfinite().all() and not torch.equal(batch, sample(pipe, (2, 0), (33, 34), num_inference_steps=5))
    for index, (label, seed) in enumerate(((2, 31), (0, 32))):
        single = sample(pipe, [label], [seed], num_inference_steps=5)
        torch.testing.assert_close(single[0], batch[index], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("parts", ["embedding"], indirect=True)
def test_deterministic_solvers_meet_in_the_limit_of_many_steps(pipe):
    noise = torch.randn(1, 4, 4, 4)
    last = {}
    for scheduler in (DDIMScheduler, EulerDiscreteScheduler):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)

        def keep(_, index, timestep, tensors, scheduler=scheduler):
            last[scheduler] = tensors["latents"]
            return {}

        sample(pipe, [1], latents=noise, num_inference_steps=200, callback_on_step_end=keep)
    ddim, euler = last.values()
    assert (ddim - euler).norm() < 0.06 * ddim.norm()
    assert (ddim - noise).norm() > 0.3 * ddim.norm()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([3], {}, "class label 3 is out of range: the classes are 0 to 2"),
        ([0, -1], {}, "class label -1 is out of range"),
        ([0.0], {}, "one or more integers"),
        (torch.tensor([1.0]), {}, "one or more integers"),
        ([True], {}, "one or more integers"),
        ([], {}, "one or more integers"),
        ([[0, 1]], {}, "one or more integers"),
        ([0, 1], {"generator": seeded(1)}, "2 images need 2 generators.* got 1"),
        ([0, 1], {"generator": seeded(1, 2, 3)}, "2 images need 2 generators.* got 3"),
        ([0, 1], {"latents": torch.zeros(1, 4, 4, 4)}, r"\(2, 4, 4, 4\), got \(1, 4, 4, 4\)"),
        ([0], {"latents": torch.zeros(1, 4, 8, 8)}, r"\(1, 4, 4, 4\), got \(1, 4, 8, 8\)"),
        ([0], {"output_type": "latent"}, "output_type is one of pil, np, pt, got 'latent'"),
        ([0], {"num_inference_steps": 0}, "between 1 and 1000, got 0"),
        ([0], {"num_inference_steps": 1001}, "between 1 and 1000, got 1001"),
        ([0], {"num_inference_steps": 600}, "would leave 400 of 1000 undone"),
        ([0], {"eta": -0.1}, "eta must be between 0 and 1, got -0.1"),
        ([0], {"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
    ],
)
def test_refuses_before_the_unet_runs(pipe, unet_inputs, labels, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(labels, **({"num_inference_steps": 1} | options))
    assert unet_inputs == []


def test_save_and_load_keeps_weights_names_scale_and_images(pipe, folder):
    loaded = quiet(ArcVQLDMPipeline.from_pretrained(folder))
    assert loaded.config.latent_scale == 0.5
    assert loaded.class_names == ID2LABEL and list(loaded.class_names) == [0, 1, 2]
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert torch.equal(loaded.scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod)
    names = [name for name in pipe.scheduler.config if not name.startswith("_")]
    assert all(loaded.scheduler.config[name] == pipe.scheduler.config[name] for name in names)
    for component in ("vqvae", "unet"):
        saved, restored = (getattr(p, component).state_dict() for p in (pipe, loaded))
        assert saved.keys() == restored.keys() and all(torch.equal(saved[key], restored[key]) for key in saved)
    torch.testing.assert_close(sample(loaded), sample(pipe), rtol=0, atol=1e-4)
    # A second round changes nothing.
    loaded.save_pretrained(folder.parent / "again")
    again = folder.parent / "again" / "model_index.json"
    first, second = (json.loads(file.read_text()) for file in (folder / "model_index.json", again))
    assert {k: v for k, v in first.items() if k != "_name_or_path"} == {
        k: v for k, v in second.items() if k != "_name_or_path"
    }


def test_a_folder_without_all_weights_is_refused(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if name.endswith("conv_in.weight"))]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"unet lacks weights|/unet are not those .*conv_in.weight missing"):
        ArcVQLDMPipeline.from_pretrained(folder)


def test_the_folder_names_the_components_modules(folder, pipe):
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "ArcVQLDMPipeline"
    assert index["vqvae"] == ["tokenizer.model", "VQTokenizer"]
    kinds = [["diffusers", "UNet2DModel"], ["priors.unet", "CrossAttentionUNet"]]
    assert index["unet"] == kinds[isinstance(pipe.unet, CrossAttentionUNet)]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index["latent_scale"] == 0.5 and index["id2label"]["1"] == "goldfish, Carassius auratus"


def test_a_half_precision_load_samples_and_keeps_the_codebook_in_float32(folder, pipe):
    loaded = quiet(ArcVQLDMPipeline.from_pretrained(folder, dtype=torch.bfloat16))
    assert loaded.unet.dtype == loaded.vqvae.dtype == torch.bfloat16
    assert torch.equal(loaded.vqvae.codebook, pipe.vqvae.codebook)
    images = sample(loaded)
    assert images.dtype == torch.float32 and images.isfinite().all()


def test_a_pipeline_made_half_precision_samples_and_keeps_the_codebook_in_float32(folder, pipe):
    loaded = quiet(ArcVQLDMPipeline.from_pretrained(folder)).to(torch.bfloat16)
    assert loaded.unet.dtype == loaded.vqvae.dtype == torch.bfloat16
    images = sample(loaded)
    assert images.dtype == torch.float32 and images.isfinite().all() and images.std() > 0.05


def test_either_unet_is_of_a_type_that_diffusers_expects(folder, caplog):
    loggers = logging.getLogger("diffusers")
    loggers.addHandler(caplog.handler)
    ArcVQLDMPipeline.from_pretrained(folder)

    def warned():
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        return any("unet" in message for message in said)

    assert not warned()
    blocks = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    with pytest.raises(TypeError, match="unet must be a UNet2DModel or CrossAttentionUNet"):
        ArcVQLDMPipeline.from_pretrained(folder, unet=UNet2DConditionModel(**blocks, num_class_embeds=4))
    loggers.removeHandler(caplog.handler)
    assert warned()


def test_components_may_be_replaced_while_loading(folder, parts):
    unet = small_unet()
    assert ArcVQLDMPipeline.from_pretrained(folder, unet=unet).unet is unet


def test_a_hub_id_is_fetched_then_loaded_from_its_folder(folder, pipe, monkeypatch):
    calls = []

    def snapshot_download(*args, **kwargs):
        calls.append((args, kwargs))
        return str(folder)

    monkeypatch.setattr("tokenizer.loading.model_folder.snapshot_download", snapshot_download)
    loaded = ArcVQLDMPipeline.from_pretrained("someone/model", revision="v1", token="secret", local_files_only=True)
    assert torch.equal(loaded.vqvae.codebook, pipe.vqvae.codebook)
    ((args, kwargs),) = calls
    assert args == ("someone/model",)
    patterns = kwargs.pop("allow_patterns")
    assert kwargs == {"revision": "v1", "token": "secret", "local_files_only": True}
    # Every file of a pipeline is fetched, and no pickle.
    matches = [any(file.relative_to(folder).match(p) for p in patterns) for file in folder.rglob("*") if file.is_file()]
    assert len(matches) >= 6 and all(matches)
    assert not any(Path("unet/diffusion_pytorch_model.bin").match(p) for p in patterns)
    calls.clear()
    ArcVQLDMPipeline.from_pretrained(folder)
    assert calls == []


def test_a_folder_that_holds_something_else_is_refused(folder, pipe, tmp_path):
    with pytest.raises(ValueError, match="holds a ArcVQLDMPipeline, not a ArcVQPixelCNNPipeline"):
        ArcVQPixelCNNPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="there is no model_index"):
        ArcVQLDMPipeline.from_pretrained(folder / "vqvae")


@pytest.mark.parametrize("id2label", [{0: "a", 1: "b"}, {0: "a", 1: "b", 2: "c", 3: "d"}, {1: "a", 2: "b", 3: "c"}])
def test_names_must_cover_the_classes_and_no_null_class(parts, id2label):
    with pytest.raises(ValueError, match="must name the classes 0 to 2"):
        ArcVQLDMPipeline(*parts, make_scheduler(), id2label)


def test_without_names_the_numbers_are_the_names(parts):
    pipe = ArcVQLDMPipeline(parts[0], small_unet(), make_scheduler(), latent_scale=1.0)
    assert pipe.class_names == {0: "0", 1: "1", 2: "2"} and pipe.get_label_ids(["2", "0"]) == [2, 0]


def test_label_ids_by_name_or_by_any_of_its_synonyms(pipe):
    assert pipe.get_label_ids("hen") == [2]
    assert pipe.get_label_ids(["hen", "goldfish", "Tinca tinca", "tench", "tench, Tinca tinca"]) == [2, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"unknown class 'dog'; the pipeline has 3: tench, Tinca tinca"):
        pipe.get_label_ids(["hen", "dog"])


FRESH = """
import sys
from pipelines import ArcVQLDMPipeline
import torch
torch.set_num_threads(1)
pipe = ArcVQLDMPipeline.from_pretrained(sys.argv[1])
generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
images = pipe([0, 2], num_inference_steps=3, generator=generator, output_type="pt").images
torch.save(images, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["cross_attention"], indirect=True)  # whose class is no module of diffusers
def test_a_fresh_process_gives_the_same_images(folder, tmp_path):
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", FRESH, folder, tmp_path / "images.pt"]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    expected = sample(quiet(ArcVQLDMPipeline.from_pretrained(folder)), (0, 2), (1, 2))
    assert torch.equal(torch.load(tmp_path / "images.pt"), expected)


def test_guidance_outside_its_interval_costs_nothing_and_does_nothing(pipe, unet_inputs):
    # Ten steps: timesteps 999, 899, ... 99.
    sample(pipe, num_inference_steps=10, guidance_interval=(0.35, 0.7))
    assert [len(latents) for latents, *_ in unet_inputs] == [2] * 3 + [4] * 4 + [2] * 3
    noise = torch.randn(2, 4, 4, 4)
    latents = {}
    for name, options in {
        "none": {"guidance_scale": 1.0},
        "outside": {"guidance_scale": 3.0, "guidance_interval": (0.9995, 1.0)},
        "all": {"guidance_scale": 3.0},
        "whole": {"guidance_scale": 3.0, "guidance_interval": (0.0, 1.0)},
        "half": {"guidance_scale": 3.0, "guidance_interval": (0.5, 1.0)},
    }.items():
        keep = lambda *args, name=name: latents.update({name: args[3]["latents"]}) or {}  # noqa: E731
        sample(pipe, latents=noise, callback_on_step_end=keep, **options)
    assert torch.equal(latents["none"], latents["outside"]) and torch.equal(latents["all"], latents["whole"])
    assert not torch.equal(latents["half"], latents["all"]) and not torch.equal(latents["half"], latents["none"])


@pytest.mark.parametrize("interval", [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_that_is_none_is_refused(pipe, unet_inputs, interval):
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        sample(pipe, guidance_interval=interval)
    assert unet_inputs == []


def test_decoding_in_slices_changes_nothing(pipe, monkeypatch):
    sizes = []
    decode = pipe.vqvae.decode
    monkeypatch.setattr(pipe.vqvae, "decode", lambda latents: sizes.append(len(latents)) or decode(latents))
    labels, seeds = [0, 1, 2, 0, 1], [1, 2, 3, 4, 5]
    whole = sample(pipe, labels, seeds)
    monkeypatch.setattr("pipelines.class_conditional.DECODED_AT_ONCE", 2 * 16**2 + 1)
    torch.testing.assert_close(sample(pipe, labels, seeds), whole, rtol=0, atol=1e-5)
    assert sizes == [5, 2, 2, 1]


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "unipc"])
def test_every_scheduler_reaches_what_ddim_reaches_in_many_steps(parts, scheduler):
    pipe = quiet(ArcVQLDMPipeline(*parts, make_scheduler(), latent_scale=0.5))
    noise, ends = torch.randn(2, 4, 4, 4), []
    keep = lambda *args: ends.append(args[3]["latents"]) or {}  # noqa: E731
    sample(pipe, latents=noise, num_inference_steps=200, callback_on_step_end=keep)
    exact = ends[-1]
    pipe.scheduler = other_scheduler(pipe.scheduler, scheduler)
    errors = {}
    for steps in (5, 50):
        sample(pipe, latents=noise, num_inference_steps=steps, callback_on_step_end=keep)
        errors[steps] = ((ends[-1] - exact).norm() / exact.norm()).item()
    assert errors[50] < 0.1 and errors[50] < 0.7 * errors[5]


def test_a_unet_of_half_the_width_keeps_the_latents_in_float32(folder):
    loaded = quiet(ArcVQLDMPipeline.from_pretrained(folder))
    plain, seen = sample(loaded, (0, 1, 2), num_inference_steps=20), []
    loaded.optimize(torch.bfloat16, channels_last=True)
    kernels = [weight for weight in loaded.unet.parameters() if weight.ndim == 4 and weight.shape[2] > 1]
    assert kernels and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    hook = loaded.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    found = sample(
        loaded,
        (0, 1, 2),
        num_inference_steps=20,
        callback_on_step_end=lambda *args: seen.append(args[3]["latents"].dtype) or {},
    )
    hook.remove()
    assert set(seen[::2]) == {torch.bfloat16} and set(seen[1::2]) == {torch.float32}
    assert loaded.vqvae.dtype == torch.float32
    assert (255 * (found - plain)).abs().mean() < 2


@pytest.mark.slow
def test_a_compiled_unet_gives_the_same_images(folder):
    loaded = quiet(ArcVQLDMPipeline.from_pretrained(folder))
    plain = sample(loaded)
    counters["stats"].clear()
    torch.testing.assert_close(sample(loaded.optimize(compile=True)), plain, rtol=0, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    loaded.save_pretrained(folder.parent / "compiled")
    assert torch.equal(sample(quiet(ArcVQLDMPipeline.from_pretrained(folder.parent / "compiled"))), plain)
