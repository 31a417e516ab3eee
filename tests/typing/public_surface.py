"""What a user's type checker sees of the public surface; checked by mypy in `make lint`, never run."""

from collections.abc import Callable
from typing import assert_type

from torch import Tensor

import arcvq
from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from pipelines.extractors import Extractor, ExtractorConfig, make_extractor, register_extractor
from pipelines.metrics import frechet_distance, psnr, ssim
from priors import PixelCNN
from tokenizer import VQTokenizer
from tokenizer.angular_margin import arc_loss, project_to_ball
from tokenizer.data import DataConfig, load_images


def tokenize(images: Tensor) -> Tensor:
    tokenizer = VQTokenizer(in_channels=3, image_size=32, quantizer="arc", codebook_size=512)
    assert_type(tokenizer.latent_shape, tuple[int, int, int])
    assert_type(tokenizer.codebook, Tensor)
    assert_type(tokenizer.encode_codes(images), Tensor)
    assert_type(tokenizer.forward(images).losses, dict[str, Tensor])
    return tokenizer.decode_codes(tokenizer.encode_codes(images))


def angular_margin(latents: Tensor, codebook: Tensor) -> None:
    assert_type(arc_loss(latents, codebook), Tensor)
    assert_type(project_to_ball(codebook, 1.0), Tensor)


def sample(ldm: ArcVQLDMPipeline, pixelcnn: ArcVQPixelCNNPipeline) -> None:
    ldm([3, 7], num_inference_steps=250, guidance_scale=1.4)
    pixelcnn([3, 7], temperature=0.9)


def prior(codes: Tensor, labels: Tensor) -> None:
    assert_type(PixelCNN(codebook_size=512, num_classes=10, grid_size=(8, 8)), PixelCNN)


def measure(a: Tensor, b: Tensor, build: Callable[[ExtractorConfig], Extractor]) -> None:
    assert_type(psnr(a, b), Tensor)
    assert_type(ssim(a, b, window="gaussian"), Tensor)
    register_extractor("mine", build)
    assert_type(make_extractor("mine"), Extractor)
    assert callable(frechet_distance)


def read() -> None:
    images = load_images(DataConfig(name="mnist"), "train")
    assert_type(images.image_size, int)


def top_level(images: Tensor) -> None:
    assert_type(arcvq.VQTokenizer().encode_codes(images), Tensor)
    arcvq.VQTokenizer(image_size="large")  # type: ignore[arg-type]
