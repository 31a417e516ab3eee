"""A data set, and the line that tells the user what it was found to be."""

import os

from tokenizer.data import DataConfig, DataSplits, load_splits


def announced_splits(config: DataConfig) -> DataSplits:
    """Load both splits of a data set, and print what they are, once for all processes.

    Raises:
        DataError: as `load_splits`.
    """
    splits = load_splits(config)
    announce(str(splits))
    return splits


def announce(line: str) -> None:
    """Print a line on the first process, which may not have met the others yet."""
    if os.environ.get("RANK", "0") == "0":
        print(line)
