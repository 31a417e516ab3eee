"""Name the splits: which folders and which shards hold training images, and which hold images held out.

A folder is a split where its name, in any case, is one of `SPLITS`; nothing else in a path or a file's name counts.
A shard is of the split whose folder it lies in, or whose name stands last in its own, before numbers and hashes.
"""

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import PurePosixPath

from tokenizer.data.decoding import DataError
from tokenizer.data.left_out import listed

# What a split may be called, and the name under which it is known here.
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

# Of several held-out splits the first of these that is there.
HELD_OUT_SPLITS = ("test", "validation", "evaluation", "dev")

# Words of a shard's name that number it: `train-00000-of-00005`, `train-00000-of-00001-5ab2c8d1e0f34567`.
_NUMBERING = re.compile(r"\d+|of|part|shard|(?=[a-f]*\d)[0-9a-f]{8,}")


def split_name(name: str) -> str:
    """Give a split's one name: `validation` for Val and valid; another name stays as it is."""
    return SPLITS.get(name.casefold(), name)


def split_of_folder(folder: str, test_split: str | None = None) -> str | None:
    """Give the split that a folder's name stands for; None where it is no split.

    Args:
        folder: its name, without the path before it.
        test_split: another name that the user calls the held-out split by, in any case.
    """
    if test_split is not None and folder.casefold() == test_split.casefold():
        return split_name(test_split)
    return SPLITS.get(folder.casefold())


def split_of_shard(path: str, test_split: str | None = None) -> tuple[str | None, str]:
    """Give the split of a shard, and the words of its name before the split's: `imagenet1k` of `imagenet1k-train-007`.

    Args:
        path: below the data set's folder, with "/".
        test_split: as of `split_of_folder`.

    Raises:
        DataError: its folder and its name are of two splits.
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
    """Sort shards into splits: paths below the data set's folder; `train` alone where no shard names a split.

    Raises:
        DataError: only some name a split, or what looks like splits are names: bullet-train-1, crash-test-1.
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
    """Find two names that differ only in a word for a train and for a held-out split: training_set and test_set."""
    found: dict[tuple[str, ...], dict[bool, str]] = defaultdict(dict)
    for name in sorted(names):
        apart = re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[0-9])(?=[A-Za-z])", "-", name).casefold()
        words = [word for word in re.split(r"[\W_]+", apart) if word]
        for place, word in enumerate(words):
            if word in SPLITS:
                rest = (*words[:place], "", *words[place + 1 :])
                found[rest].setdefault(SPLITS[word] == "train", name)
    return next(((pair[True], pair[False]) for pair in found.values() if len(pair) == 2), None)


def held_out_split(found: Collection[str], test_split: str | None, owner: str) -> str | None:
    """Choose the split that is held out; None where there is none.

    Args:
        found: the names of the splits that are there.
        test_split: the one that the user asks for; None: the first of `HELD_OUT_SPLITS`.
        owner: the words that name the data set.

    Raises:
        DataError: the split that is asked for is missing.
    """
    if test_split is None:
        return next((name for name in HELD_OUT_SPLITS if name in found), None)
    wanted = split_name(test_split).casefold()
    name = next((name for name in found if name.casefold() == wanted), None)
    if name is None:
        there = f"{owner} has the splits {', '.join(found)}" if found else f"{owner} has none"
        raise DataError(f"data.test_split {test_split!r} is missing: {there}; set it to one of them")
    return name
