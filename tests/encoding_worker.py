"""One process of several that encode a data set together; run by the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from accelerate import PartialState
from encoding import LatentsConfig, encode_splits
from stage_one import load_tokenizer

from tokenizer.data import DataConfig, load_splits

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    device = PartialState(cpu=True).device
    data = DataConfig()
    encode_splits(load_tokenizer(str(folder)), load_splits(data), data, LatentsConfig(), folder / "pair", device)
