"""Measure speed and memory next to named peers => a table and a JSON file.

python scripts/benchmark.py quantizers
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("benchmark")
