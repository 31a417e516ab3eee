"""Convert a tokenizer of public code => a VQTokenizer folder.

python scripts/convert.py STATE_DICT FOLDER
"""

from arcvq.verbs import run_verb

if __name__ == "__main__":
    run_verb("convert")
