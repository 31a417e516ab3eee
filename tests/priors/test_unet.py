import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from priors.diffusion import diffusion_loss, make_scheduler
from priors.unet import CrossAttentionUNet, make_unet, null_label

NUM_CLASSES = 3
KINDS = {"embedding": UNet2DModel, "cross_attention": CrossAttentionUNet}

# The UNet of METHOD's ImageNet prior; LDM-8's but for its 4 channels.
IMAGENET = {"channels": 256, "channel_multipliers": (1, 2, 4), "attention_sizes": (32, 16, 8)}
LDM_8 = 394_984_196


@pytest.fixture(scope="module", params=KINDS)
def unet(request):
    torch.manual_seed(0)
    sizes = {"channels": 32, "channel_multipliers": (1, 2), "num_blocks": 1, "attention_sizes": (4,)}
    return make_unet((4, 8, 8), NUM_CLASSES, **sizes, head_channels=16, conditioning=request.param).eval()


def inputs(batch=2):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, 8, 8, generator=generator)
    return latents, torch.randint(1000, (batch,), generator=generator), torch.arange(batch) % (NUM_CLASSES + 1)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(*args, **options):
    with torch.device("meta"):
        return make_unet(*args, **options, conditioning="cross_attention")


def test_the_imagenet_unet_has_the_parameters_of_ldm_but_for_its_latents_and_its_classes():
    ours = on_meta((16, 32, 32), 1000, **IMAGENET)
    theirs = on_meta((4, 32, 32), 1000, **IMAGENET)
    assert parameters(theirs.unet) == LDM_8 and round(LDM_8 / 1e6) == 395  # what LDM's table prints
    # 12 channels more in a 3 x 3 convolution, once from the latents and once to them, where each has a bias.
    assert parameters(ours.unet) - LDM_8 == 12 * 9 * 256 + 12 * (9 * 256 + 1) == 55_308
    assert parameters(ours.class_embedding) == 1001 * 512
    assert parameters(ours) == LDM_8 + 55_308 + 512_512 == 395_552_016
    assert not any(parameter.device.type != "meta" for parameter in ours.parameters())


def test_the_released_model_on_64_x_64_x_3_has_the_parameters_that_its_code_prints():
    sizes = {"channels": 192, "channel_multipliers": (1, 2, 3, 5), "attention_sizes": (32, 16, 8)}
    assert parameters(on_meta((3, 64, 64), 1000, **sizes).unet) == 400_920_579  # "400.92 M"


def test_heads_have_32_channels_at_every_level():
    unet = on_meta((16, 32, 32), 1000, **IMAGENET)
    attentions = [module for module in unet.modules() if type(module).__name__ == "Attention"]
    assert len(attentions) == 2 * (6 + 1 + 9)  # to itself and to the class; down, middle, up
    assert all(attention.inner_dim == 32 * attention.heads for attention in attentions)
    assert {attention.heads for attention in attentions} == {8, 16, 32}


@torch.no_grad()
def test_cross_attention_equals_a_direct_call_with_the_class_as_the_one_token():
    torch.manual_seed(0)
    ours = make_unet((4, 8, 8), NUM_CLASSES, 32, (1, 2), 1, (4,), 16, conditioning="cross_attention").eval()
    direct = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=512,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
    ).eval()
    direct.load_state_dict(ours.unet.state_dict())
    latents, timesteps, labels = inputs(4)
    rows = ours.class_embedding.weight[labels].reshape(4, 1, 512)
    expected = direct(latents, timesteps, encoder_hidden_states=rows).sample
    assert torch.equal(ours(latents, timesteps, labels).sample, expected)
    assert torch.equal(ours(latents, timesteps, labels, return_dict=False)[0], expected)


def test_the_null_class_is_the_last_row_of_the_embedding(unet):
    assert null_label(unet) == NUM_CLASSES
    assert unet.class_embedding.weight.shape[0] == NUM_CLASSES + 1


@torch.no_grad()
def test_each_class_and_the_null_class_predict_something_else(unet):
    latents = torch.randn(1, 4, 8, 8).expand(4, -1, -1, -1)
    predicted = unet(latents, torch.tensor(500), torch.arange(4)).sample
    for first in range(4):
        for second in range(first):
            assert (predicted[first] - predicted[second]).abs().max() > 1e-4


def test_attention_is_where_it_was_asked_for(unet):
    blocks = unet.config if isinstance(unet, UNet2DModel) else unet.unet.config
    attending = "Attn" if isinstance(unet, UNet2DModel) else "CrossAttn"
    assert list(blocks.down_block_types) == ["DownBlock2D", f"{attending}DownBlock2D"]
    assert list(blocks.up_block_types) == [f"{attending}UpBlock2D", "UpBlock2D"]
    assert list(unet.config.block_out_channels) == [32, 64] and unet.config.in_channels == 4
    seen, hooks = [], []

    def record(module, inputs, _):
        tokens = inputs[0].shape[1] if inputs[0].ndim == 3 else inputs[0].shape[-1] ** 2
        seen.append((tokens, module.heads))

    for module in unet.modules():
        if type(module).__name__ == "Attention":
            hooks.append(module.register_forward_hook(record))
    assert unet(*inputs()).sample.shape == (2, 4, 8, 8)
    for hook in hooks:
        hook.remove()
    # One block down, the middle, two blocks up, each at 4 x 4 with 64 channels in heads of 16; nowhere at 8 x 8.
    assert seen == [(16, 4)] * (4 if isinstance(unet, UNet2DModel) else 8)


def test_gradient_checkpointing_keeps_the_gradients(unet):
    latents, _, labels = inputs(4)
    gradients = []
    unet.train()  # where it is on
    for enabled in (False, True):
        (unet.enable_gradient_checkpointing if enabled else unet.disable_gradient_checkpointing)()
        assert unet.is_gradient_checkpointing == enabled
        passes = []
        blocks = unet.down_blocks if isinstance(unet, UNet2DModel) else unet.unet.down_blocks
        hook = blocks[1].resnets[0].register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        torch.manual_seed(5)
        loss = diffusion_loss(unet, make_scheduler(), latents, labels, NUM_CLASSES, 0.1)
        gradients.append(torch.autograd.grad(loss, list(unet.parameters())))
        hook.remove()
        assert len(passes) == 1 + enabled  # what is not kept is computed again
    unet.disable_gradient_checkpointing()
    unet.eval()
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_with_zero_init_the_first_prediction_is_0_and_every_block_passes_its_input_on(kind):
    sizes = {"channels": 32, "channel_multipliers": (1, 1), "num_blocks": 2, "attention_sizes": (8, 4)}
    unet = make_unet((4, 8, 8), NUM_CLASSES, **sizes, head_channels=16, conditioning=kind, zero_init=True)
    assert not unet(*inputs()).sample.any()
    features, checked = torch.randn(2, 32, 4, 4), set()
    for module in unet.modules():
        name = type(module).__name__
        if name == "ResnetBlock2D" and module.conv_shortcut is None:
            assert torch.equal(module(features, torch.randn(2, 128)), features)
        elif name == "Attention" and kind == "embedding":
            assert torch.equal(module(features), features)
        elif name == "Transformer2DModel":
            context = torch.randn(2, 1, 512)
            assert torch.equal(module(features, encoder_hidden_states=context).sample, features)
        else:
            continue
        checked.add(name)
    assert len(checked) == 2


def test_a_saved_unet_keeps_the_null_class(tmp_path, unet):
    unet.save_pretrained(tmp_path)
    loaded = type(unet).from_pretrained(tmp_path).eval()
    assert null_label(loaded) == NUM_CLASSES
    latents, timesteps, _ = inputs()
    labels = torch.tensor([NUM_CLASSES, 0])
    assert torch.equal(loaded(latents, timesteps, labels).sample, unet(latents, timesteps, labels).sample)
    assert loaded.config.in_channels == 4 and loaded.config.num_class_embeds == NUM_CLASSES + 1


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4, 7, 7), {}, "7 x 7 cannot be halved 1 times"),
        ((4, 8, 6), {"channel_multipliers": (1, 2, 2)}, "8 x 6 cannot be halved 2 times"),
        ((4, 8, 8), {"channel_multipliers": ()}, "at least 1"),
        ((4, 8, 8), {"channel_multipliers": (0, 1)}, "at least 1"),
        ((4, 8, 8), {"num_blocks": 0}, "at least 1"),
        ((4, 8, 8), {"head_channels": 0}, "at least 1"),
        ((4, 8, 8), {"attention_sizes": (16, 8)}, r"attention_sizes \[16\] are not .* \[8, 4\]"),
    ],
)
def test_a_unet_that_cannot_work_is_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        make_unet(shape, NUM_CLASSES, channels=32, **options)
