"""Train the latent diffusion prior: a tokenizer's latents => runs/<name>/pipeline, an ArcVQLDMPipeline.

python scripts/train_ldm.py
accelerate launch scripts/train_ldm.py --config configs/mnist/ldm.yaml
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("train-ldm")
