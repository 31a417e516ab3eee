"""One process of several that encode a data set together; run by the tests."""

import sys
from pathlib import Path

from accelerate import PartialState

from arcvq.runs.results import load_tokenizer
from arcvq.training.latent_cache import LatentsConfig, encode_splits
from tokenizer.data import DataConfig, load_splits

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    device = PartialState(cpu=True).device
    data = DataConfig()
    encode_splits(load_tokenizer(str(folder)), load_splits(data), data, LatentsConfig(), folder / "pair", device)
