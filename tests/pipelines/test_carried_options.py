"""A pipeline that is made of another's components gives its images and names, or is refused."""

import copy
import inspect
import json
import pickle

import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, UNet2DModel
from pipeline_calls import NAMES, latent_diffusion, pixelcnn, quiet, sample

from pipelines import ArcVQLDMPipeline
from priors.diffusion import make_scheduler
from priors.unet import CrossAttentionUNet
from tokenizer import VQTokenizer

LDM = [lambda: latent_diffusion("embedding"), lambda: latent_diffusion("cross_attention")]


def images(pipe):
    steps = {"num_inference_steps": 4} if isinstance(pipe, ArcVQLDMPipeline) else {}
    return sample(quiet(pipe), (0, 2, 1), (5, 6, 7), **steps)


def check_same(made, pipe):
    assert made is not pipe and torch.equal(images(made), images(pipe))
    assert made.class_names == pipe.class_names and made.config.get("latent_scale") == pipe.config.get("latent_scale")


def by_hand(pipe, **replaced):
    names = ("vqvae", "unet", "scheduler") if isinstance(pipe, ArcVQLDMPipeline) else ("vqvae", "prior")
    return type(pipe)(**{name: getattr(pipe, name) for name in names} | replaced)


WAYS = {
    "components": lambda pipe: type(pipe)(**pipe.components),
    "components and parameters": lambda pipe: type(pipe)(**pipe.components, **pipe.parameters),
    "from_pipe": lambda pipe: type(pipe).from_pipe(pipe),
    "by hand": by_hand,
    "copies": lambda pipe: type(pipe)(**copy.deepcopy(pipe.components)),
    "pickled": lambda pipe: type(pipe)(**pickle.loads(pickle.dumps(pipe.components))),
    "twice": lambda pipe: type(pipe)(**type(pipe)(**pipe.components).components),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", [*LDM, pixelcnn], ids=["ldm", "ldm, cross-attention", "pixelcnn"])
def test_a_pipeline_of_anothers_components_gives_its_images_and_names(make, way):
    pipe = make()
    check_same(way(pipe), pipe)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_so_does_one_of_a_loaded_pipeline(tmp_path, way):
    for make in (latent_diffusion, pixelcnn):
        pipe = make()
        pipe.save_pretrained(tmp_path / make.__name__)
        loaded = type(pipe).from_pretrained(tmp_path / make.__name__)
        check_same(way(loaded), loaded)


def test_so_does_one_of_a_pipeline_with_another_scheduler():
    pipe = latent_diffusion()
    before = images(pipe)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    check_same(type(pipe)(**pipe.components), pipe)
    assert not torch.equal(images(pipe), before)


def test_so_does_one_of_an_offloaded_pipeline():
    pipe = latent_diffusion()
    expected = images(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(images(pipe), expected)
    check_same(type(pipe)(**pipe.components), pipe)


def test_a_scale_that_is_given_beside_components_counts():
    pipe = latent_diffusion()
    other = ArcVQLDMPipeline(**pipe.components, latent_scale=1.0, id2label={0: "a", 1: "b", 2: "c"})
    assert other.config.latent_scale == 1.0 and other.class_names[2] == "c"
    assert not torch.equal(images(other), images(pipe))


def test_pipelines_of_one_unet_and_several_scales_are_never_confused():
    pipe = latent_diffusion(latent_scale=30.0)
    other = by_hand(pipe, latent_scale=50.0, id2label={0: "a", 1: "b", 2: "c"})
    for one in (pipe, other):
        check_same(type(one)(**one.components), one)
        check_same(type(one)(**one.components, **one.parameters), one)
        check_same(type(one).from_pipe(one), one)
        one.to("cpu")  # which goes through the components
    with pytest.raises(ValueError, match=r"id2label is not clear"):
        by_hand(pipe)
    with pytest.raises(ValueError, match=r"latent_scale is not clear.* 30\.0 and 50\.0"):
        by_hand(pipe, id2label=NAMES)
    check_same(by_hand(pipe, id2label=NAMES, latent_scale=30.0), pipe)


@pytest.mark.parametrize("conditioning", ["embedding", "cross_attention"])
def test_parts_that_are_loaded_one_by_one_need_the_scale(tmp_path, conditioning):
    pipe = latent_diffusion(conditioning)
    pipe.save_pretrained(tmp_path)
    kind = UNet2DModel if conditioning == "embedding" else CrossAttentionUNet
    parts = VQTokenizer.from_pretrained(tmp_path / "vqvae"), kind.from_pretrained(tmp_path / "unet"), make_scheduler()
    with pytest.raises(ValueError, match=r"latent_scale is missing.*model_index\.json"):
        ArcVQLDMPipeline(*parts, NAMES)
    index = json.loads((tmp_path / "model_index.json").read_text())
    check_same(ArcVQLDMPipeline(*parts, NAMES, index["latent_scale"]), pipe)


def swaps(pipe, folder, other):
    """Every way to put another pipeline's UNet and tokenizer in the place of a pipeline's."""
    parts = {"unet": other.unet, "vqvae": other.vqvae}

    def set_on(pipe):
        pipe.vqvae, pipe.unet = other.vqvae, other.unet
        return pipe

    def registered(pipe):
        pipe.register_modules(**parts)
        return pipe

    return {
        "own loader": lambda: ArcVQLDMPipeline.from_pretrained(folder, **parts),
        "diffusers' loader": lambda: DiffusionPipeline.from_pretrained(folder, **parts),
        "from_pipe": lambda: ArcVQLDMPipeline.from_pipe(pipe, **parts),
        "set": lambda: set_on(ArcVQLDMPipeline.from_pretrained(folder)),
        "registered": lambda: registered(ArcVQLDMPipeline.from_pretrained(folder)),
    }


SWAPS = ["own loader", "diffusers' loader", "from_pipe", "set", "registered"]
OTHERS = {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("way", SWAPS)
def test_a_unet_that_takes_anothers_place_brings_its_scale_and_names(tmp_path, way):
    pipe, other = latent_diffusion(latent_scale=30.0), latent_diffusion(id2label=OTHERS, latent_scale=50.0)
    pipe.save_pretrained(tmp_path)
    made = swaps(pipe, tmp_path, other)[way]()
    for one in (made, type(made)(**made.components)):
        check_same(one, other)


@pytest.mark.parametrize("way", SWAPS)
def test_a_unet_of_several_scales_takes_no_place_in_a_pipeline_of_a_third(tmp_path, way):
    pipe, other = latent_diffusion(latent_scale=30.0), latent_diffusion(latent_scale=50.0)
    pipe.save_pretrained(tmp_path)
    by_hand(other, latent_scale=70.0)
    with pytest.raises(ValueError, match=r"latent_scale is not clear.* 50\.0 and 70\.0"):
        swaps(pipe, tmp_path, other)[way]()
    by_hand(other, latent_scale=30.0, id2label=OTHERS)  # of which the pipeline's own is one, and so are its names
    made = swaps(pipe, tmp_path, other)[way]()
    assert made.config.latent_scale == 30.0 and made.class_names == NAMES


def test_a_unet_of_no_pipeline_is_taken_for_the_pipelines_own():
    pipe, fresh = latent_diffusion(), UNet2DModel.from_config(latent_diffusion().unet.config).eval()
    pipe.unet = fresh
    assert pipe.config.latent_scale == 30.0
    check_same(by_hand(pipe), pipe)


def test_names_of_another_number_of_classes_are_refused_before_the_prior_runs():
    pipe, fewer = pixelcnn(), pixelcnn()
    pipe.register_to_config(id2label={0: "a", 1: "b"})
    with pytest.raises(ValueError, match="id2label names 2 classes, the prior has 3"):
        images(pipe)
    pipe.prior = fewer.prior
    assert pipe.class_names == NAMES
    images(pipe)


def test_nothing_that_is_carried_is_saved(tmp_path):
    for make in (latent_diffusion, pixelcnn):
        pipe = make()
        saved = []
        for one, place in ((pipe, "first"), (type(pipe)(**pipe.components), "second")):
            one.save_pretrained(tmp_path / place)
            files = sorted((tmp_path / place).rglob("*"))
            saved.append({file.relative_to(tmp_path / place): file.read_bytes() for file in files if file.is_file()})
        assert saved[0] == saved[1]
        index = json.loads((tmp_path / "first" / "model_index.json").read_text())
        options = {"id2label", "latent_scale"} if make is latent_diffusion else {"id2label"}
        parts = {"vqvae", "unet", "scheduler"} if make is latent_diffusion else {"vqvae", "prior"}
        assert {name for name in index if not name.startswith("_")} == options | parts
        config = json.loads((tmp_path / "first" / pipe._prior / "config.json").read_text())
        its_own = inspect.signature(type(getattr(pipe, pipe._prior))).parameters
        assert {name for name in config if not name.startswith("_")} <= set(its_own)
