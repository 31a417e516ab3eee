"""Kill, starve and break trainings, and measure what becomes of them => a JSON file.

python scripts/faults.py
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("faults")
