"""Sample images from a trained pipeline => PNG files, an npz or tar shards, and a grid.

python scripts/sample.py
accelerate launch --multi_gpu --num_processes 8 scripts/sample.py --num_images 50000 --format npz
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("sample")
