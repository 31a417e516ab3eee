"""Export a trained run as a folder to give away: a run => weights, a model card, examples.

python scripts/export.py runs/mnist-arcvq --output models/mnist-arcvq --evaluate "reconstruction --lpips alex"
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("export")
