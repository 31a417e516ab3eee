"""Recognise splits by name: which folders and shards hold training images, and which held-out ones.

A folder is a split if its name, in any case, is one of `SPLITS`; no other part of a path counts. A shard belongs to the
split whose folder it lies in, or whose name is the last word of its file name before numbers and hashes.
"""

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import PurePosixPath

from tokenizer.data.decoding import DataError
from tokenizer.data.left_out import listed

# Accepted names of splits, and their canonical names.
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "eval": "evaluation",
    "evaluation": "evaluation",
    "dev": "dev",
}

# Order of preference among several held-out splits.
HELD_OUT_SPLITS = ("test", "validation", "evaluation", "dev")

# Words that number a shard: `train-00000-of-00005`, `train-00000-of-00001-5ab2c8d1e0f34567`.
_NUMBERING = re.compile(r"\d+|of|part|shard|(?=[a-f]*\d)[0-9a-f]{8,}")


def split_name(name: str) -> str:
    """Return a split's canonical name: `validation` for Val and valid; other names stay as they are."""
    return SPLITS.get(name.casefold(), name)


def split_of_folder(folder: str, test_split: str | None = None) -> str | None:
    """Return the split that a folder's name stands for; None if it is no split.

    Args:
        folder: name of the folder, without its path.
        test_split: a further name of the held-out split, in any case.
    """
    if test_split is not None and folder.casefold() == test_split.casefold():
        return split_name(test_split)
    return SPLITS.get(folder.casefold())


def split_of_shard(path: str, test_split: str | None = None) -> tuple[str | None, str]:
    """Return the split of a shard, and the words before the split in its name: `imagenet1k` of `imagenet1k-train-007`.

    Args:
        path: path below the data set's folder, with "/".
        test_split: as in `split_of_folder`.

    Raises:
        DataError: its folder and its name belong to two splits.
    """
    *folders, file = path.split("/")
    of_folder = next(filter(None, (split_of_folder(folder, test_split) for folder in folders)), None)
    stem = file.partition(".")[0]
    if (of_file := split_of_folder(stem, test_split)) is not None:
        before: list[str] = []
    else:
        words = [word for word in re.split(r"[^0-9a-z]+", stem.casefold()) if word and not _NUMBERING.fullmatch(word)]
        of_file = split_of_folder(words[-1].rstrip("0123456789"), test_split) if words else None
        before = words[:-1] if of_file else []
    if of_folder is not None and of_file is not None and of_file != of_folder:
        raise DataError(f"{path} lies in a folder of split {of_folder} and is called {of_file}; rename one of them")
    return of_folder or of_file, "" if of_folder else " ".join(before)


def shards_by_split(paths: list[str], owner: str, test_split: str | None) -> dict[str, list[str]]:
    """Sort shards (paths below the data set's folder) into splits; `train` alone if no shard names a split.

    Raises:
        DataError: only some shards name a split, or the split words may be part of names: bullet-train-1, crash-test-1.
    """
    by_split: dict[str | None, list[str]] = defaultdict(list)
    before: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        split, words = split_of_shard(path, test_split)
        by_split[split].append(path)
        if split is not None:
            before[split].add(words)
    unnamed = by_split.pop(None, [])
    pair = splits_by_another_name([PurePosixPath(path).name.partition(".")[0] for path in unnamed])
    if pair is not None:
        raise DataError(
            f"the shards {pair[0]} and {pair[1]} of {owner} may be two splits; call them train-... and test-..., or "
            "move them into folders train and test; where they are one split, into a folder train"
        )
    if unnamed and by_split:
        raise DataError(
            f"shard {unnamed[0]} of {owner} is of no split, as {listed(sorted(by_split))} are; name it train-..., "
            "validation-... or test-..."
        )
    if len({frozenset(words) for words in before.values()}) > 1:
        named = listed([f"{'/'.join(sorted(words))} {split}" for split, words in sorted(before.items(), reverse=True)])
        raise DataError(
            f"the shards of {owner} may be called by their splits or not: {named}; move them into folders train and "
            "test, or rename them"
        )
    return dict(by_split) or {"train": unnamed}


def splits_by_another_name(names: Collection[str]) -> tuple[str, str] | None:
    """Find two names that differ only in a word for a train and a held-out split: training_set and test_set."""
    pairs: dict[tuple[str, ...], dict[bool, str]] = defaultdict(dict)
    for name in sorted(names):
        apart = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[0-9])(?=[A-Za-z])", "-", name).casefold()
        words = [word for word in re.split(r"[\W_]+", apart) if word]
        for index, word in enumerate(words):
            if word in SPLITS:
                rest = (*words[:index], "", *words[index + 1 :])
                pairs[rest].setdefault(SPLITS[word] == "train", name)
    return next(((pair[True], pair[False]) for pair in pairs.values() if len(pair) == 2), None)


def held_out_split(splits: Collection[str], test_split: str | None, owner: str) -> str | None:
    """Choose the held-out split; None if there is none.

    Args:
        splits: names of the existing splits.
        test_split: the split that the user asks for; None: the first of `HELD_OUT_SPLITS`.
        owner: name of the data set in errors.

    Raises:
        DataError: the requested split is missing.
    """
    if test_split is None:
        return next((name for name in HELD_OUT_SPLITS if name in splits), None)
    wanted = split_name(test_split).casefold()
    name = next((name for name in splits if name.casefold() == wanted), None)
    if name is None:
        existing = f"{owner} has the splits {', '.join(splits)}" if splits else f"{owner} has none"
        raise DataError(f"data.test_split {test_split!r} is missing: {existing}; set it to one of them")
    return name
