"""Train an image tokenizer: images => runs/<name>/tokenizer.

python scripts/train_tokenizer.py
accelerate launch scripts/train_tokenizer.py --config configs/mnist/arcvq.yaml
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("train-tokenizer")
