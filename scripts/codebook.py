"""Make a frozen codebook from features of images, or reduce the codebook of a trained tokenizer.

python scripts/codebook.py features --data.name mnist --output runs/codebook.safetensors
python scripts/codebook.py reduce runs/mnist-lc --codebook_size 256 --output runs/reduced
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("codebook")
