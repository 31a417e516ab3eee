"""Run both stages on the embedded digits => runs/quickstart/report.html.

python scripts/quickstart.py
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("quickstart")
