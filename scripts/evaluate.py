"""Measure a tokenizer, a pipeline, a folder of images or an npz => a JSON file and pictures.

python scripts/evaluate.py
python scripts/evaluate.py generation runs/ldm --num_images 50000
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("evaluate")
