"""Reproduce the paper's tables and figures: train what is missing, measure it, write the table.

python scripts/reproduce.py table_1 --budget 20m
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("reproduce")
