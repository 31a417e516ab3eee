"""The sizes of the GPU benchmark: those of the paper's models, or tiny ones that a CPU does in seconds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Set how large and how long each part is.

    Attributes:
        copy_bytes: of a copy that measures a bandwidth.
        matrix_side: of the square matrices whose product measures a rate.
        blocks: timed blocks of each figure, whose median counts.
        digits_steps: steps of each quantizer on the digits.
        quickstart: options of `arcvq quickstart`.
        deterministic_steps: steps of the runs whose hashes are compared.
        model: options of the tokenizers on the digits; none: the defaults.
        batch: images of a step of the CIFAR-10 tokenizer.
        compiled: whether the compiled step is measured, which takes a minute or two.
        grids: tokens, codes and dimensions of the quantizers.
        random_images: images of the data set that a whole training reads, and its steps.
        unets: config, images of a step and further options of each UNet.
        diffusion: images, and DDIM steps.
        pixelcnn: height, width and images of each sampling.
    """

    copy_bytes: int
    matrix_side: int
    blocks: int
    digits_steps: int
    quickstart: tuple[str, ...]
    deterministic_steps: int
    model: tuple[str, ...]
    batch: int
    compiled: bool
    grids: tuple[tuple[int, int, int], ...]
    random_images: int
    training_steps: int
    unets: tuple[tuple[str, int, tuple[str, ...]], ...]
    diffusion: tuple[int, int]
    pixelcnn: tuple[tuple[int, int, int], ...]


SIZES = {
    "full": Sizes(
        copy_bytes=2**30,
        matrix_side=8192,
        blocks=7,
        digits_steps=40,
        quickstart=("--max_steps=300",),
        deterministic_steps=40,
        model=(),
        batch=1024,
        compiled=True,
        grids=((65536, 512, 64), (30720, 1024, 16), (4096, 16384, 64), (65536, 262144, 8)),
        random_images=8192,
        training_steps=120,
        # ImageNet's batch of 64 is that of eight GPUs.
        unets=(("cifar10/ldm.yaml", 256, ()), ("imagenet/ldm.yaml", 8, ())),
        diffusion=(64, 50),
        pixelcnn=((8, 8, 100), (32, 32, 16)),
    ),
    "tiny": Sizes(
        copy_bytes=2**24,
        matrix_side=512,
        blocks=2,
        digits_steps=6,
        quickstart=("--max_steps=2", "--num_images=12"),
        deterministic_steps=2,
        model=("--model.codebook_size=16", "--model.codebook_dim=4", "--model.hidden_channels=8"),
        batch=8,
        compiled=False,
        grids=((64, 32, 8),),
        random_images=40,
        training_steps=4,
        unets=(
            ("cifar10/ldm.yaml", 2, ("--unet.channels=32",)),
            ("imagenet/ldm.yaml", 1, ("--unet.channels=32", "--unet.attention_sizes=[8]")),
        ),
        diffusion=(2, 2),
        pixelcnn=((2, 3, 2),),
    ),
}
