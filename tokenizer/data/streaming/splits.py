"""Load the shards of a folder or address: its train and held-out images, streamed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal

import numpy as np

from tokenizer.data.bad_images import BadImages
from tokenizer.data.columns import NO_LABELS
from tokenizer.data.config import DataConfig
from tokenizer.data.decoding import DataError
from tokenizer.data.kinds import image_kind
from tokenizer.data.labels import check_ids, distinct_names
from tokenizer.data.sources import NAMED
from tokenizer.data.split_names import held_out_split
from tokenizer.data.splits import DataSplits
from tokenizer.data.streaming.images import INDEX_THREADS, StreamedImages
from tokenizer.data.streaming.parquet import index_parquet
from tokenizer.data.streaming.shards import Shard, ShardFile, find_shards
from tokenizer.data.streaming.webdataset import index_tar


def load_streamed(config: DataConfig) -> DataSplits:
    """Load shards as `load_splits` does; reads their metadata and some images.

    Raises:
        DataError: as `load_splits`; or a shard cannot be read, or names other classes than the other shards.
    """
    if config.name in NAMED:
        remedy = "set data.streaming to false, or data.name to a folder or an address of parquet or tar files"
        raise DataError(f"data set {config.name!r} cannot be streamed; {remedy}")
    files, left_out = find_shards(config.name, (".parquet", ".tar"), config.test_split)
    owner = f"data set {config.name!r}"
    if "train" not in files:
        raise DataError(f"{owner} has no train split, only {', '.join(files)}; rename one to train")
    held_out = held_out_split(files, config.test_split, owner)
    used = ["train"] + ([held_out] if held_out else [])
    every = iter(_index(tuple(file for name in used for file in files[name]), config))
    shards = {name: [next(every) for _ in files[name]] for name in used}
    class_names, label_values = _classes([shard for name in used for shard in shards[name]], config)
    shards = {name: [shard for shard in shards[name] if len(shard.counts)] for name in used}
    for name in used:
        if not shards[name]:
            raise DataError(f"split {name!r} of {config.name!r} has no images; add or remove it")
    common = (class_names, config.shuffle_buffer, config.name)
    stored = StreamedImages(shards["train"], None, None, *common, "train")
    kind = image_kind(len(stored), stored.stored, stored.header, stored.sample(), config)

    def split_images(split: Literal["train", "test"], name: str) -> StreamedImages:
        framing = config.framing(kind.image_size, split)
        images = StreamedImages(shards[name], framing, kind.channels, *common, split, label_values=label_values)
        images.bad_images = BadImages(len(images)) if config.on_bad_image == "skip" else None
        return images

    left_out.others.update(
        {f"shards of split {name}": len(unused) for name, unused in files.items() if name not in used}
    )
    if held_out is not None:
        return DataSplits(split_images("train", "train"), split_images("test", held_out), left_out, kind.notes)
    remedy = "add shards called test-... or validation-...; of streamed images none are held out by themselves"
    without = f"data set {config.name!r} has no test split: {remedy}"
    return DataSplits(split_images("train", "train"), None, left_out, kind.notes, without)


@lru_cache(maxsize=1)  # both splits are loaded one after the other, from the same shards
def _index(files: tuple[ShardFile, ...], config: DataConfig) -> tuple[Shard, ...]:
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        return tuple(
            pool.map(
                lambda file: index_tar(file) if _is_tar(file) else index_parquet(file, config),
                files,
            )
        )


def _is_tar(file: ShardFile) -> bool:
    return file.url.lower().endswith(".tar")


def _classes(shards: Sequence[Shard], config: DataConfig) -> tuple[list[str], np.ndarray | None]:
    """Return the common class names of the shards ("image" without labels), and label values that are no ids."""
    shards = [shard for shard in shards if len(shard.counts)]
    if config.label_column == NO_LABELS:
        for shard in shards:
            shard.label_range = None
    labelled = [shard for shard in shards if shard.label_range is not None]
    if not labelled:
        return ["image"], None
    for shard in shards:
        if shard.label_range is None:
            raise DataError(f"shard {shard.file.name} has no labels, {labelled[0].file.name} has; add or remove them")
        if shard.class_names != labelled[0].class_names:
            other = labelled[0].file.name
            raise DataError(f"shard {shard.file.name} names other classes than {other}; write them alike")
    class_names = labelled[0].class_names
    if class_names is None:
        return _numbered(labelled, config.label_values)
    for shard in labelled:
        low, high = shard.label_range
        if low < 0 or high >= len(class_names):
            wrong = f"shard {shard.file.name} has label {low if low < 0 else high}, which is no class"
            raise DataError(f"{wrong}; correct it, or set data.test_split where the split has no labels")
    return class_names, None


def _numbered(shards: Sequence[Shard], label_values: str | None) -> tuple[list[str], np.ndarray | None]:
    """Compute `_classes` for plain integers."""
    highest = max(shards, key=lambda shard: shard.label_range[1])
    lowest = min(shards, key=lambda shard: shard.label_range[0])
    odd = lowest if lowest.label_range[0] < 0 else highest
    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        values = np.unique(np.concatenate(list(pool.map(lambda shard: np.unique(shard.read_labels()), shards))))
    if label_values != "distinct":
        return check_ids(values, f"shard {odd.file.name}", label_values), None
    return distinct_names(values, f"shard {odd.file.name}"), values
