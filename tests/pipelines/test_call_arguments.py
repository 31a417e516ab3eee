"""What a pipeline cannot use is one TypeError or ValueError that names it, in one line, before anything is sampled."""

import types

import datasets
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    CogVideoXDDIMScheduler,
    DDIMInverseScheduler,
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    RePaintScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.schedulers import ScoreSdeVpScheduler
from pipeline_calls import image_tokenizer, latent_diffusion, pixelcnn, sample, seeded

from pipelines.class_conditional import ClassConditionalPipeline
from priors import PixelCNN
from priors.diffusion import make_scheduler
from priors.unet import make_unet
from tokenizer import VQTokenizer

NOISE = torch.randn(2, 4, 4, 4, generator=seeded(0)[0])


@pytest.fixture(scope="module")
def ldm():
    return latent_diffusion()


@pytest.fixture(scope="module")
def px():
    return pixelcnn(label_dropout=0.1)


@pytest.fixture
def passes(ldm, px):
    """The passes through the networks so far."""
    seen = []
    hooks = [part.register_forward_pre_hook(lambda *args: seen.append(args)) for part in (ldm.unet, ldm.vqvae.decoder)]
    hooks += [px.vqvae.decoder.register_forward_pre_hook(lambda *args: seen.append(args))]
    hooks += [layer.register_forward_pre_hook(lambda *args: seen.append(args)) for layer in px.prior.head]
    yield seen
    for hook in hooks:
        hook.remove()


def refused(kind, call, *parts):
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert type(error.value) is kind and "\n" not in message and len(message) < 500, message
    for part in parts:
        assert part in message, message


def few(pipe, **options):
    steps = {"num_inference_steps": 2} if hasattr(pipe, "unet") else {}
    return sample(pipe, **steps | options)


NO_NUMBERS = [None, "1.0", "x", True, np.True_, torch.tensor(True), [1.0], (1,), {}, 1j, object(), float, torch.ones(2)]
NO_NUMBERS += [np.ones(2), np.array([]), np.array("1"), torch.zeros(1, device="meta"), b"1"]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number(ldm, px, passes, value):
    for pipe, names in (
        (ldm, ["guidance_scale", "eta", "num_inference_steps"]),
        (px, ["guidance_scale", "temperature"]),
    ):
        for name in names:
            refused(TypeError, lambda pipe=pipe, name=name: few(pipe, **{name: value}), name, "number")
    for name in ("top_k", "top_p"):
        if value is not None:
            refused(TypeError, lambda name=name: few(px, **{name: value}), name, "number")
    refused(TypeError, lambda: few(ldm, guidance_interval=(0.0, value)), "guidance_interval", "number")
    assert passes == []


@pytest.mark.parametrize("value", [10.0, np.float32(10), torch.tensor(10.0), np.array([10.0]), 2.5, float("inf")])
def test_numbers_of_steps_or_codes_are_whole(ldm, px, passes, value):
    refused(TypeError, lambda: few(ldm, num_inference_steps=value), "num_inference_steps", "whole")
    refused(TypeError, lambda: few(px, top_k=value), "top_k", "whole")
    assert passes == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, np.float64("nan")])
def test_numbers_are_finite(ldm, px, passes, value):
    for pipe, names in ((ldm, ["guidance_scale", "eta"]), (px, ["guidance_scale", "top_p"])):
        for name in names:
            refused(ValueError, lambda pipe=pipe, name=name: few(pipe, **{name: value}), name)
    refused(ValueError, lambda: few(ldm, num_inference_steps=10**400), "num_inference_steps")
    refused(ValueError, lambda: few(px, temperature=float("nan")), "temperature")
    assert passes == []


@pytest.mark.parametrize("made", [np.float32, np.float64, np.array, torch.tensor, lambda value: torch.tensor([value])])
def test_numbers_of_numpy_and_torch_are_numbers(ldm, px, made):
    options = {"guidance_scale": 3.0, "eta": 0.5, "guidance_interval": (0.25, 1.0)}
    given = {
        name: tuple(map(made, value)) if name == "guidance_interval" else made(value) for name, value in options.items()
    }
    assert torch.equal(few(ldm, **given), few(ldm, **options))
    whole = np.int64(3) if made in (np.float32, np.float64) else made(3)
    assert torch.equal(few(ldm, num_inference_steps=whole), few(ldm, num_inference_steps=3))
    options = {"temperature": 0.5, "top_p": 0.75, "guidance_scale": 2.0}
    given = {name: made(value) for name, value in options.items()}
    assert torch.equal(few(px, **given, top_k=whole), few(px, **options, top_k=3))


@pytest.mark.parametrize("interval", [[0.5, 1.0], np.array([0.5, 1.0]), torch.tensor([0.5, 1.0])])
def test_an_interval_may_be_any_pair(ldm, interval):
    options = {"guidance_scale": 3.0, "num_inference_steps": 4}
    assert torch.equal(
        few(ldm, guidance_interval=interval, **options), few(ldm, guidance_interval=(0.5, 1.0), **options)
    )


@pytest.mark.parametrize(
    ("interval", "kind"),
    [
        *((value, TypeError) for value in (0.5, None, "0.2,0.8", {0.2, 0.8}, {0.2: 0.8}, object(), b"ab")),
        *((value, ValueError) for value in ((0.1,), (), (0.1, 0.2, 0.3), np.array(0.5), torch.zeros(2, 2), (0.8, 0.2))),
        ((float("nan"), 1.0), ValueError),
    ],
)
def test_an_interval_that_is_no_pair(ldm, passes, interval, kind):
    refused(kind, lambda: few(ldm, guidance_interval=interval), "guidance_interval")
    assert passes == []


def spoiled(value):
    noise = NOISE.clone()
    noise[1, 2, 3, 0] = value
    return noise


@pytest.mark.parametrize(
    ("latents", "kind"),
    [
        *((value, TypeError) for value in (NOISE.numpy(), NOISE.tolist(), "noise", 0, True, list(NOISE))),
        *((value, ValueError) for value in (NOISE[:1], NOISE[None], NOISE[..., :2], NOISE.int(), NOISE > 0)),
        *((value, ValueError) for value in (NOISE.to(torch.complex64), NOISE.to("meta"))),
        *((spoiled(float(value)), ValueError) for value in ("nan", "inf", "-inf")),
    ],
)
def test_latents_that_are_no_noise(ldm, passes, latents, kind):
    refused(kind, lambda: few(ldm, latents=latents), "latents")
    assert passes == []


def test_latents_may_be_of_any_float_type(ldm):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        noise = NOISE.to(dtype)
        assert torch.equal(few(ldm, latents=noise), few(ldm, latents=noise.float()))


@pytest.mark.parametrize("latents", [NOISE.to_sparse(), torch.full((2, 4, 4, 4), 1e300, dtype=torch.float64)])
def test_latents_that_become_none(ldm, passes, latents):
    refused(ValueError, lambda: few(ldm, latents=latents), "latents")
    assert passes == []


@pytest.mark.parametrize("part", ["unet", "vqvae"])
@pytest.mark.parametrize("quantizer", ["vae", "arc"])  # one of which hides NaN in codes
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_networks_that_have_diverged_paint_no_images(part, quantizer, value):
    pipe = latent_diffusion()
    pipe.vqvae = image_tokenizer(quantizer)
    network = pipe.unet.conv_out if part == "unet" else pipe.vqvae.decoder.conv_out
    with torch.no_grad():
        network.bias[0] = value
    for output_type in ("np", "pil"):
        refused(ValueError, lambda: few(pipe, output_type=output_type), "not finite", "guidance_scale")  # noqa: B023
    assert few(pipe, output_type="pt").isnan().all()


def spoiled_in_place(latents):
    latents[0] = torch.nan


def test_guidance_beyond_all_numbers_paints_no_images(ldm):
    beyond = {"guidance_scale": 1e38, "num_inference_steps": 4}
    refused(ValueError, lambda: few(ldm, **beyond, output_type="pil"), "not finite", "guidance_scale")
    noise = NOISE.clone()
    alone = few(ldm, latents=noise)
    spoil = {"callback_on_step_end": lambda pipe, index, step, given: spoiled_in_place(given["latents"])}
    assert few(ldm, latents=noise, **spoil)[0].isnan().all() and alone.isfinite().all()


@pytest.mark.parametrize("conditioning", ["embedding", "cross_attention"])
def test_dropout_of_a_unet_in_training_mode_changes_no_image(conditioning):
    pipe = latent_diffusion(conditioning)
    expected = few(pipe)
    pipe.unet.train()
    assert torch.equal(few(pipe), expected)  # it has no dropout
    unet = make_unet((4, 4, 4), 3, 16, (1,), 1, head_channels=8, dropout=0.5, conditioning=conditioning)
    unet.load_state_dict(pipe.unet.state_dict())
    pipe.unet = unet
    refused(ValueError, lambda: few(pipe), "training mode", "pipe.unet.eval()")
    pipe.unet.eval()
    assert torch.equal(few(pipe), expected)


def test_dropout_of_a_prior_in_training_mode_changes_no_rate():
    pipe, images = pixelcnn(dropout=0.5), torch.zeros(2, 1, 16, 16)
    pipe.bits_per_dimension(images, [0, 1])
    pipe.prior.train()
    refused(ValueError, lambda: pipe.bits_per_dimension(images, [0, 1]), "training mode", "pipe.prior.eval()")


@pytest.mark.parametrize("folder", [None, 0, 3.5, b"runs", ["runs"], VQTokenizer])
def test_what_is_no_folder(ldm, px, folder):
    for kind in (type(ldm), type(px), VQTokenizer, PixelCNN):
        refused(TypeError, lambda kind=kind: kind.from_pretrained(folder), "a folder or Hub id", type(folder).__name__)


def test_a_name_that_is_empty_is_not_the_working_directory(ldm, px, tmp_path, monkeypatch):
    ldm.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    for kind in (type(ldm), VQTokenizer, PixelCNN):
        refused(ValueError, lambda kind=kind: kind.from_pretrained(""), "empty", "'.'")
    type(ldm).from_pretrained(".")


def test_a_pipeline_is_made_of_what_has_its_components(ldm, px):
    for wrong in (None, "runs/ldm", ldm.unet, type(ldm), ldm.components):
        refused(TypeError, lambda wrong=wrong: type(ldm).from_pipe(wrong), "from_pipe", "from_pretrained")
    refused(ValueError, lambda: type(px).from_pipe(ldm), "ArcVQLDMPipeline has no prior")
    refused(ValueError, lambda: type(ldm).from_pipe(px), "ArcVQPixelCNNPipeline has no scheduler, unet")
    assert torch.equal(few(type(px).from_pipe(ldm, vqvae=px.vqvae, prior=px.prior)), few(px))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8, np.float16, float, 16, torch.bool])
def test_a_pipeline_is_not_optimized_for_what_is_no_type(ldm, dtype):
    refused(TypeError, lambda: ldm.optimize(dtype), "dtype", "torch.bfloat16")


WRONG = [0, "seed", [0, 1], torch.Generator, [None, None], iter(seeded(0, 1)), np.random.default_rng()]


@pytest.mark.parametrize("generator", WRONG)
def test_what_is_no_generator(ldm, px, passes, generator):
    for pipe in (ldm, px):
        refused(ValueError, lambda pipe=pipe: few(pipe, generator=generator), "generator", "manual_seed")
    assert passes == []


@pytest.mark.parametrize("output_type", ["PIL", "latent", None, 3, ["pil"], np.array(["pil"]), b"pil"])
def test_what_is_no_output_type(ldm, px, passes, output_type):
    for pipe in (ldm, px):
        refused(ValueError, lambda pipe=pipe: few(pipe, output_type=output_type), "output_type", "pil, np, pt")
    assert passes == []


@pytest.mark.parametrize(
    "labels",
    [
        *("hen", None, {0: 1}, [2.0**70], torch.tensor([1j]), object(), np.array(["a"]), torch.ones(1, device="meta")),
        *(
            ["1"],
            b"01",
            True,
            [True, 2],
            [2, np.True_],
            np.array([True]),
            np.array([0, True], object),
            {0, 1},
            iter([0]),
        ),
        *([], (), np.array([], int), torch.zeros(0, dtype=int), np.zeros((1, 1), int), [[0]], [[0, 1], [2]], [1, None]),
        *(
            [1.0],
            [0, 1.0],
            np.float32(1),
            torch.tensor(1.0),
            [torch.tensor(1.5)],
            torch.tensor([1], dtype=torch.bfloat16),
        ),
        *(torch.tensor([0, 1]).to_sparse(), torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.quint8)),
        torch.nested.nested_tensor([torch.tensor([0, 1])]),
    ],
)
def test_what_is_no_class_label(ldm, px, passes, labels):
    for pipe in (ldm, px):
        refused(ValueError, lambda pipe=pipe: pipe(labels), "class_labels", "get_label_ids")
    assert passes == []


@pytest.mark.parametrize("outside", [-1, 3, 2**63, 10**30, np.uint64(2**64 - 1), np.int64(-1)], ids=str)
def test_a_label_of_no_class(ldm, px, passes, outside):
    for pipe in (ldm, px):
        refused(
            ValueError, lambda pipe=pipe: pipe([0, outside]), f"class label {int(outside)} is out of range", "0 to 2"
        )
    assert passes == []


def test_class_labels_may_be_any_row_of_whole_numbers(ldm, px):
    numbers = [2, 1, 0]
    rows = [
        tuple(numbers),
        range(2, -1, -1),
        np.arange(3)[::-1],
        np.array(numbers, object),
        list(map(np.int8, numbers)),
    ]
    rows += [np.array(numbers, kind) for kind in (np.uint8, np.uint64, np.dtype(">i4"))]
    rows += [torch.tensor(numbers, dtype=kind) for kind in (torch.uint8, torch.int32, torch.uint32, torch.uint64)]
    rows += [
        list(torch.tensor(numbers)),
        tuple(map(np.array, numbers)),
        datasets.Dataset.from_dict({"a": numbers})["a"],
    ]
    for pipe in (ldm, px):
        for row in rows:
            assert pipe.check_labels(row, 3).tolist() == numbers
        for one in (2, np.int64(2), np.array(2), torch.tensor(2)):
            assert pipe.check_labels(one, 3).tolist() == [2]


def test_a_name_of_several_classes_is_not_guessed():
    names = {0: "crane", 1: "machine, crane", 2: "hen, bird", 3: "tit, bird", 4: "cock", 5: "cock"}
    pipe = types.SimpleNamespace(class_names=names)

    def ids(asked):
        return ClassConditionalPipeline.get_label_ids(pipe, asked)

    assert ids(["crane", "machine", "hen", "tit, bird"]) == [0, 1, 2, 3] and ids(()) == []
    assert ids(np.array(["machine", "tit"])) == [1, 3]
    refused(ValueError, lambda: ids("bird"), "'bird'", "[2, 3]")
    refused(ValueError, lambda: ids(["hen", "cock"]), "'cock'", "[4, 5]")
    refused(ValueError, lambda: ids("x" * 10**4), "unknown class")
    for wrong in (5, None, [5], [["hen"]], [None], b"hen", {"hen"}):
        refused(TypeError, lambda wrong=wrong: ids(wrong), "class names")


WRONG_NAMES = [{0.0: "a", 1.0: "b", 2.0: "c"}, {0.2: "a", 1: "b", 2: "c"}, {False: "a", True: "b", 2: "c"}]
WRONG_NAMES += [{0: "a", "0": "b", 1: "c", 2: "d"}, {0: None, 1: "b", 2: "c"}, {0: ["a"], 1: "b", 2: "c"}, {None: "a"}]
WRONG_NAMES += [["a", "b", "c"], "abc", {"a": 0, "b": 1, "c": 2}, {"-1": "a", "0": "b", "1": "c"}]


@pytest.mark.parametrize("names", WRONG_NAMES, ids=repr)
def test_names_that_are_not_those_of_all_classes(ldm, names):
    refused(ValueError, lambda: type(ldm)(**ldm.components, id2label=names), "id2label")


CODES = torch.full((2, 4, 4), -1)


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        *((value, TypeError) for value in (CODES.numpy(), CODES.tolist(), "codes", -1)),
        *((value, ValueError) for value in (CODES.int(), CODES.float(), CODES > 0, CODES[:1], CODES - 1, CODES + 33)),
    ],
)
def test_what_are_no_codes(px, passes, codes, kind):
    refused(kind, lambda: few(px, codes=codes), "codes", "encode_codes")
    assert passes == []


@pytest.mark.parametrize("callback", ["f", 3, [], True, {}, False])
def test_a_callback_that_cannot_be_called(ldm, px, passes, callback):
    for pipe in (ldm, px):
        refused(TypeError, lambda pipe=pipe: few(pipe, callback_on_step_end=callback), "callback_on_step_end")
    assert passes == []


@pytest.mark.parametrize("kind_of_pipe", ["ldm", "px"])
def test_the_callback_is_given_the_tensors_that_it_asks_for(ldm, px, passes, kind_of_pipe):
    pipe, name = (ldm, "latents") if kind_of_pipe == "ldm" else (px, "codes")
    assert pipe._callback_tensor_inputs == (name,)
    expected = few(pipe)
    for asked in ([name], (name,), [], [name, name]):
        seen = []
        options = {"callback_on_step_end": lambda *args, seen=seen: seen.append(set(args[3])) or args[3]}
        assert torch.equal(few(pipe, callback_on_step_end_tensor_inputs=asked, **options), expected)
        assert len(seen) in (2, 16) and all(one == set(asked) for one in seen)
    passes.clear()
    inputs = "callback_on_step_end_tensor_inputs"
    for asked in (["prompt_embeds"], [name, "x"], [[name]], [None], [name.upper()]):
        refused(ValueError, lambda asked=asked: few(pipe, callback_on_step_end_tensor_inputs=asked), inputs, name)
    for asked in (name, None, 3, {name}):
        refused(TypeError, lambda asked=asked: few(pipe, callback_on_step_end_tensor_inputs=asked), inputs, name)
    assert passes == []


RETURNED = [
    torch.zeros(2, 4, 4, 4),
    [NOISE],
    (),
    "latents",
    0,
    True,
    np.zeros(3),
    {"latents": NOISE.numpy()},
    {"latents": None},
]
REFUSED = [
    {"latent": NOISE},
    {"latents": NOISE, "x": NOISE},
    {1: NOISE},
    {"latents": NOISE[:1]},
    {"latents": NOISE.int()},
]
REFUSED += [{"latents": spoiled(float("nan"))}, {"latents": NOISE.to(torch.complex64)}, {"latents": NOISE > 0}]


@pytest.mark.parametrize(
    ("returned", "kind"),
    [*((value, TypeError) for value in RETURNED), *((value, ValueError) for value in REFUSED)],
)
def test_what_a_callback_cannot_return(ldm, px, passes, returned, kind):
    refused(kind, lambda: few(ldm, callback_on_step_end=lambda *args: returned), "callback_on_step_end", "{'latents'")
    assert len(passes) == 1
    as_codes = returned
    if isinstance(returned, dict):
        changed = {
            name: CODES.float() if isinstance(value, torch.Tensor) else value for name, value in returned.items()
        }
        as_codes = {{"latents": "codes"}.get(name, name): value for name, value in changed.items()}
    refused(kind, lambda: few(px, callback_on_step_end=lambda *args: as_codes), "callback_on_step_end", "{'codes'")


@pytest.mark.parametrize("code", [-1, 32, 10**6])
def test_a_code_that_is_none_is_not_taken_from_a_callback(px, code):
    codes = torch.full((2, 4, 4), code)
    refused(
        ValueError, lambda: few(px, callback_on_step_end=lambda *args: {"codes": codes}), "callback_on_step_end", "31"
    )
    codes[:, 0, 0], codes[:, 0, 1] = 5, 6  # of those that it returns, the present position's counts
    refused(
        ValueError,
        lambda: few(px, callback_on_step_end=lambda *args: {"codes": codes}),
        "callback_on_step_end",
        "position 2",
    )


def test_what_a_callback_returns_may_be_of_another_type(ldm, px):
    for made in (torch.Tensor.double, torch.Tensor.half):
        images = few(ldm, callback_on_step_end=lambda *args, made=made: {"latents": made(NOISE)})
        assert torch.equal(
            images, few(ldm, callback_on_step_end=lambda *args, made=made: {"latents": made(NOISE).float()})
        )
    fives = torch.full((2, 4, 4), 5)
    expected = few(px, codes=fives)
    assert torch.equal(few(px, callback_on_step_end=lambda *args: {"codes": fives.int()}), expected)
    assert torch.equal(few(px, callback_on_step_end=lambda *args: None), few(px))


def other_schedulers():
    ours = make_scheduler().config
    continuous = {"prediction_type": "v_prediction", "timestep_type": "continuous", "sigma_min": 0.01, "sigma_max": 10}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    yield from (FlowMatchEulerDiscreteScheduler(), FlowMatchHeunDiscreteScheduler(), EDMEulerScheduler())
    yield from (kind.from_config(ours, **flow) for kind in (DPMSolverMultistepScheduler, UniPCMultistepScheduler))
    yield from (kind.from_config(ours) for kind in (DDIMInverseScheduler, DPMSolverMultistepInverseScheduler))
    yield from (RePaintScheduler.from_config(ours), IPNDMScheduler(), ScoreSdeVpScheduler(), ScoreSdeVeScheduler())
    yield from (CogVideoXDDIMScheduler.from_config(ours), EulerDiscreteScheduler.from_config(ours, **continuous))


@pytest.mark.parametrize("scheduler", list(other_schedulers()), ids=lambda scheduler: type(scheduler).__name__)
def test_a_scheduler_of_another_process(passes, ldm, scheduler):
    said = (type(scheduler).__name__, "from_config(pipe.scheduler.config)")
    refused(ValueError, lambda: type(ldm)(ldm.vqvae, ldm.unet, scheduler), *said)
    ours = ldm.scheduler
    ldm.scheduler = scheduler
    refused(ValueError, lambda: few(ldm), *said)
    ldm.scheduler = ours
    assert passes == []


WHOLE_WAY = [DDIMScheduler, DDIMParallelScheduler, PNDMScheduler, DDPMScheduler, EulerDiscreteScheduler]
WHOLE_WAY += [HeunDiscreteScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]


@pytest.mark.parametrize("kind", WHOLE_WAY, ids=lambda kind: kind.__name__)
def test_a_scheduler_goes_the_whole_way_from_noise_to_images_or_is_refused(monkeypatch, kind):
    pipe, left = latent_diffusion(), []
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    alphas = make_scheduler().alphas_cumprod

    def exact(noised, timestep, labels):  # the noise, where the only image there is has latents of 0.7
        alpha = alphas[round(float(timestep))]
        return UNet2DOutput(sample=(noised - alpha.sqrt() * 0.7) / (1 - alpha).sqrt())

    monkeypatch.setattr(pipe.unet, "forward", exact)
    for steps in (20, 27, 300, 600):
        left.clear()
        watched = {"callback_on_step_end": lambda *args: left.append((args[3]["latents"] - 0.7).abs().max().item())}
        try:
            few(pipe, num_inference_steps=steps, guidance_scale=1.0, **watched)
        except ValueError as error:
            assert kind.__name__ in str(error) and "num_inference_steps that divide 1000" in str(error)
            assert steps in (300, 600) and left == []
        else:
            assert left[-1] < 0.3


def test_a_number_of_steps_that_the_scheduler_cannot_do(ldm, passes):
    ours = ldm.scheduler
    ldm.scheduler = LCMScheduler.from_config(ours.config)
    refused(ValueError, lambda: few(ldm, num_inference_steps=250), "LCMScheduler", "num_inference_steps 250")
    ldm.scheduler = ours
    assert passes == []


@pytest.mark.parametrize("name", ["vqvae", "unet", "prior", "scheduler"])
@pytest.mark.parametrize("value", [None, "runs/tokenizer", VQTokenizer, DDIMScheduler, torch.nn.Linear(1, 1), 5])
def test_a_component_of_another_class(ldm, px, passes, name, value):
    for pipe in (ldm, px):
        if name in pipe.components:
            refused(TypeError, lambda pipe=pipe: type(pipe)(**pipe.components | {name: value}), f"{name} must be a")
            ours = getattr(pipe, name)
            setattr(pipe, name, value)
            refused(TypeError, lambda pipe=pipe: few(pipe), f"{name} must be a")
            setattr(pipe, name, ours)
            few(pipe)
            passes.clear()


def test_a_tokenizer_of_another_class(ldm, px):
    for other in (AutoencoderKL(block_out_channels=(32,)), px.prior, ldm.unet):
        for pipe in (ldm, px):
            said = ("vqvae must be a VQTokenizer", type(other).__name__)
            refused(TypeError, lambda pipe=pipe, other=other: type(pipe)(**pipe.components | {"vqvae": other}), *said)


def test_a_tokenizer_that_takes_anothers_place_must_fit(ldm, px, passes):
    for pipe, said in ((ldm, "4 channels"), (px, "(32, 4, 4)")):
        ours = pipe.vqvae
        pipe.vqvae = VQTokenizer(1, 32, codebook_size=8, codebook_dim=8, hidden_channels=8)
        refused(ValueError, lambda pipe=pipe: few(pipe), said)
        pipe.vqvae = ours
    assert passes == []


@pytest.mark.parametrize(
    ("scale", "kind"), [("0.5", TypeError), (True, TypeError), ([1], TypeError), (0, ValueError), (10**400, ValueError)]
)
def test_a_scale_that_is_none(ldm, scale, kind):
    refused(kind, lambda: type(ldm)(**ldm.components, latent_scale=scale), "latent_scale")


def test_the_prior_itself_refuses_the_same(px, passes):
    for options in ({"temperature": "1"}, {"top_k": 2.0}, {"top_p": None, "guidance_scale": None}):
        refused(TypeError, lambda options=options: px.prior.sample(torch.tensor([0]), [None], **options), "number")
    refused(TypeError, lambda: px.bits_per_dimension(np.zeros((1, 1, 16, 16)), [0]), "images")
    assert passes == []
