"""Run folders of finished trainings with random weights, which no training has to be waited for."""

import json

import torch
import yaml
from quantizer_cases import small_tokenizer

from arcvq.training import ldm, pixelcnn, tokenizer
from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from priors import PixelCNN
from priors.diffusion import make_scheduler
from priors.unet import make_unet

STEPS, BATCH = 40, 16
SCRIPTS = {"tokenizer": tokenizer, "ldm": ldm, "pixelcnn": pixelcnn}


def write_run(folder, kind, *options, quantizer="arc", data_line="data: some", **sizes):
    """Writes a run folder as a training of the kind leaves it; its images are not all alike."""
    vqvae = small_tokenizer(quantizer, **{"image_size": 32, **sizes})
    with torch.no_grad():
        vqvae.decoder.conv_out.weight.mul_(20)
        vqvae.bottleneck.step.fill_(STEPS)
    if kind == "tokenizer":
        vqvae.save_pretrained(folder / "tokenizer")
    else:
        pipeline = _pipeline(kind, vqvae)
        pipeline.save_pretrained(folder / "pipeline")
        type(pipeline).from_pretrained(folder / "pipeline").save_pretrained(folder / "pipeline")  # notes the place
    parser = SCRIPTS[kind].make_parser()
    options = [
        f"--optim.max_steps={STEPS}",
        f"--optim.batch_size={BATCH}",
        f"--run.output_dir={folder.parent}",
        *options,
    ]
    settings = parser.settings(parser.parse([*options, f"--run.name={folder.name}"]))
    settings["run"]["mixed_precision"] = "no"
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (folder / "inputs.yaml").write_text("data: some\n")
    (folder / "data.txt").write_text(f"{data_line}\n")
    lines = [{"step": step, "images_per_second": 32.0} for step in (20, STEPS)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def _pipeline(kind, vqvae):
    names = {label: str(label) for label in range(10)}
    if kind == "pixelcnn":
        prior = PixelCNN(vqvae.config.codebook_size, 10, vqvae.code_shape, channels=8, num_layers=3, head_channels=16)
        with torch.no_grad():
            prior.head[-1].weight.mul_(20)
        return ArcVQPixelCNNPipeline(vqvae, prior.eval(), names)
    unet = make_unet(vqvae.latent_shape, 10, 16, (1,), num_blocks=1, head_channels=8)
    with torch.no_grad():
        unet.class_embedding.weight.mul_(5)
    return ArcVQLDMPipeline(vqvae, unet.eval(), make_scheduler(), names, 1.0)
