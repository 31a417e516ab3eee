"""The UNets of latent diffusion: noised latents, timesteps, class labels -> predicted noise or v.

Both embed one class more than the data have: the last one is the null class, which stands for "no label" in training
(label dropout) and in classifier-free guidance. The class reaches the network in one of two ways: added to the time
embedding, as in diffusers' `UNet2DModel`, or as the context of cross-attention, as in the original latent diffusion.
"""

from math import gcd
from pathlib import Path
from typing import Any, Literal

from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from tokenizer.loading.model_folder import check_model_folder
from tokenizer.loading.safe_mixin import CompleteWeights, only_safetensors
from tokenizer.option_checks import check_layers


class CrossAttentionUNet(CompleteWeights, ModelMixin, ConfigMixin):
    """The UNet of LDM's class-conditional ImageNet model (Rombach et al. 2022), called like `UNet2DModel`.

    It is diffusers' `UNet2DConditionModel` whose context is one token, the class's embedding. Attention over a single
    token returns that token's value for any queries and keys, so the query and key weights of the cross-attention get
    no gradient. The original has the same property and the same number of parameters.

    Args:
        sample_size: (h, w) of the latents.
        in_channels: D of the latents.
        block_out_channels: width of each level.
        layers_per_block: residual blocks per level.
        attends: for each level, whether self- and cross-attention follow its residual blocks; the middle always has
            them.
        head_channels: channels per attention head, at every level.
        num_class_embeds: number of classes, including the null class.
        dropout: dropout inside the residual blocks.
        norm_num_groups: groups of the group norms.
        class_embedding_dim: width of the class's embedding.
    """

    _supports_gradient_checkpointing = True
    # Units that stay on one device, and are gathered at once when weights are sharded (FSDP). accelerate requires that
    # every UNet has both.
    _no_split_modules = ["ResnetBlock2D", "BasicTransformerBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, int],
        in_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        attends: tuple[bool, ...],
        head_channels: int,
        num_class_embeds: int,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        class_embedding_dim: int = 512,
    ):
        super().__init__()
        self.class_embedding = nn.Embedding(num_class_embeds, class_embedding_dim)
        self.unet = UNet2DConditionModel(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=in_channels,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            down_block_types=tuple("CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
            up_block_types=tuple("CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)),
            cross_attention_dim=class_embedding_dim,
            # Despite its name this is the number of heads. Levels without attention ignore it, but it must not be 0.
            attention_head_dim=tuple(max(1, width // head_channels) for width in block_out_channels),
            dropout=dropout,
            norm_num_groups=norm_num_groups,
        )

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor, return_dict: bool = True
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """Predict `.sample` (B, D, h, w): noised latents (B, D, h, w), timesteps () or (B,), labels (B,) int64."""
        context = self.class_embedding(class_labels)[:, None]  # (B, 1, class_embedding_dim)
        return self.unet(sample, timestep, encoder_hidden_states=context, return_dict=return_dict)


class CompleteUNet2DModel(UNet2DModel):
    """Loader of diffusers' `UNet2DModel`, whose own `from_pretrained` reads pickles and leaves missing weights random.

    The loaded model is a `UNet2DModel`, and is saved as one.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> UNet2DModel:
        """Load a local folder; raise ValueError if its config or weights are broken, or do not fit each other."""
        only_safetensors(kwargs)
        check_model_folder(UNet2DModel, Path(pretrained_model_name_or_path), kwargs.get("variant"))
        return UNet2DModel.from_pretrained(pretrained_model_name_or_path, **kwargs)


UNet = UNet2DModel | CrossAttentionUNet


def make_unet(
    latent_shape: tuple[int, int, int],
    num_classes: int,
    channels: int = 64,
    channel_multipliers: tuple[int, ...] = (1, 2),
    num_blocks: int = 2,
    attention_sizes: tuple[int, ...] | None = None,
    head_channels: int = 32,
    dropout: float = 0.0,
    conditioning: Literal["embedding", "cross_attention"] = "embedding",
    zero_init: bool = False,
) -> UNet:
    """Build the UNet of the diffusion prior, with random weights.

    Args:
        latent_shape: (D, h, w) of the latents.
        num_classes: number of classes, without the null class, which is added.
        channels: width at the full latent size.
        channel_multipliers: width of each level as a multiple of `channels`; the latents are halved from level to
            level.
        num_blocks: residual blocks per level.
        attention_sizes: latent heights with attention after the residual blocks, on the way down and up; None: the
            lowest level alone.
        head_channels: channels per attention head.
        dropout: dropout inside the residual blocks.
        conditioning: how the class reaches the network: `embedding`, added to the time embedding; or `cross_attention`,
            as in the original LDM: instead of self-attention alone, a transformer block with self-attention, attention
            to the class, and a feed-forward layer.
        zero_init: whether the last layer of each residual block, of each attention and of the UNet starts at zero, as
            in the original LDM, so that the first prediction is 0; else all start as diffusers has them.

    Raises:
        ValueError: latents that cannot be halved once per further level, an attention size that does not occur, or a
            width that is not divisible into groups or heads.
    """
    if conditioning not in ("embedding", "cross_attention"):
        raise ValueError(f"unet.conditioning is embedding or cross_attention, got {conditioning!r}")
    if channels < 2 or channels % 2:
        raise ValueError(f"unet.channels must be even and at least 2, got {channels}")
    check_layers(**{"unet.num_blocks": num_blocks, "number of unet.channel_multipliers": len(channel_multipliers)})
    if not channel_multipliers or min(num_blocks, head_channels, *channel_multipliers) < 1:
        raise ValueError(
            "unet.num_blocks, unet.head_channels and every one of unet.channel_multipliers must be at least 1, got "
            f"{num_blocks}, {head_channels} and {list(channel_multipliers)}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"unet.dropout must be between 0 and 1, got {dropout}")
    latent_channels, height, width = latent_shape
    levels = len(channel_multipliers)
    if any(side % (1 << (levels - 1)) for side in (height, width)):
        raise ValueError(
            f"latents of {height} x {width} cannot be halved {levels - 1} times, once per level but the first: "
            f"give unet.channel_multipliers fewer entries than {levels}"
        )
    sizes = [height >> level for level in range(levels)]
    attention_sizes = sizes[-1:] if attention_sizes is None else attention_sizes
    if absent := set(attention_sizes) - set(sizes):
        raise ValueError(f"unet.attention_sizes {sorted(absent)} are not among the sizes of the UNet's levels, {sizes}")
    attends = tuple(size in attention_sizes for size in sizes)
    # The middle has attention too, at the width of the lowest level.
    for multiplier, attention in zip(channel_multipliers, [*attends[:-1], True], strict=True):
        if attention and channels * multiplier % head_channels:
            raise ValueError(
                f"channels x {multiplier} = {channels * multiplier} do not go into heads of {head_channels}"
            )
    shared = {
        "sample_size": (height, width),
        "in_channels": latent_channels,
        "block_out_channels": tuple(channels * multiplier for multiplier in channel_multipliers),
        "layers_per_block": num_blocks,
        "dropout": dropout,
        # At least two channels per group: a group of one would normalise away the embeddings of time and class.
        "norm_num_groups": gcd(32, channels // 2),
        "num_class_embeds": num_classes + 1,
    }
    if conditioning == "cross_attention":
        unet = CrossAttentionUNet(**shared, attends=attends, head_channels=head_channels)
    else:
        unet = UNet2DModel(
            **shared,
            out_channels=latent_channels,
            down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
            up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)),
            attention_head_dim=head_channels,
        )
    if zero_init:
        _zero_last_layers(unet)
    return unet


def _zero_last_layers(unet: UNet) -> None:
    """Set the last layer of each residual block, of each attention and of the UNet to zero."""
    network = unet.unet if isinstance(unet, CrossAttentionUNet) else unet
    last = [network.conv_out]
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            last.append(module.conv2)
        elif isinstance(module, Transformer2DModel):
            last.append(module.proj_out)
        elif isinstance(module, Attention) and module.residual_connection:
            last.append(module.to_out[0])
    for layer in last:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def null_label(unet: UNet) -> int:
    """Return the id of the null class, the last row of the class embedding; raise ValueError if the UNet has none."""
    if unet.config.num_class_embeds is None:
        raise ValueError("the UNet has no class embedding, num_class_embeds; make one with priors.unet.make_unet")
    return unet.config.num_class_embeds - 1
