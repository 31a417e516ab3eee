"""Load a data set by name: the tables of its train and its held-out split, local or from the Hub."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import PIL.Image

from tokenizer.data.archives import ARCHIVES, archive_splits
from tokenizer.data.config import DataConfig
from tokenizer.data.decoding import BICUBIC, DataError, reason_of
from tokenizer.data.folders.files import FoundFiles, find_files
from tokenizer.data.folders.overlap import refuse_overlap, refuse_shared_files
from tokenizer.data.folders.parquet import load_parquet, number_of_rows, parquet_labels
from tokenizer.data.folders.splits import FolderSplit, folder_splits
from tokenizer.data.folders.tables import image_table
from tokenizer.data.labels import LabelPart, label_part
from tokenizer.data.left_out import LeftOut, listed
from tokenizer.data.split_names import held_out_split, shards_by_split, split_name

HUB_IDS = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}

# Names that are never taken for folders.
NAMED = ("digits", *HUB_IDS, *ARCHIVES)

# Endings of archives, which the user has to unpack.
_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tar")


@dataclass(frozen=True)
class SplitTable:
    """The rows of one split.

    Attributes:
        name: name of the split.
        rows: images and further columns.
        parquet: files that the rows were read from, each of which may number the classes in its own order.
    """

    name: str
    rows: datasets.Dataset
    parquet: list[Path] = field(default_factory=list)

    def labels(self, column: str) -> list[LabelPart]:
        """Read the label column, in parts that number their classes independently."""
        if self.parquet:
            return parquet_labels(self.parquet, column)
        return [label_part(self.rows.data.column(column), self.rows.features[column], f"split {self.name!r}")]


@dataclass(frozen=True)
class Source:
    """The splits of a data set.

    Attributes:
        train: the train split.
        held_out: the held-out split; None if the data set has none, or training images are to be held out.
        left_out: unused files and splits.
        notes: further remarks for the user.
    """

    train: SplitTable
    held_out: SplitTable | None
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)


def load_source(config: DataConfig) -> Source:
    """Find a data set and read its splits; those of `NAMED` are never taken for folders.

    Raises:
        DataError: the data set does not exist, cannot be read, or has no train split.
    """
    name = config.name
    if name == "digits":
        return _of_tables(digit_tables(), config)
    if name in ARCHIVES:
        listing, splits = archive_splits(name)
        return _of_images(listing, splits, f"data set {name!r}", config)
    folder = Path(name).expanduser()
    if name and name not in HUB_IDS and folder.is_dir():
        return _of_folder(folder.absolute(), config)
    if not name or name.startswith((".", "/", "~")) or folder.is_file():
        raise DataError(f"data folder {name!r} is not there or is not a folder; set data.name to a folder")
    if name not in HUB_IDS and name.count("/") != 1:
        # `datasets` would take a single word for one of its formats, or for a data set of that name in its cache.
        raise DataError(
            f"data set {name!r} is neither {', '.join(NAMED)} nor a folder here; set data.name to one of them, or "
            "to a data set on the Hub, as owner/name"
        )
    try:
        tables = datasets.load_dataset(HUB_IDS.get(name, name))
    except Exception as error:  # builders and the Hub client raise errors of many unrelated classes
        kind = "" if name in HUB_IDS else f"is neither {', '.join(NAMED)} nor a folder here, and "
        remedy = "set data.name to a folder or to a data set within reach"
        raise DataError(
            f"data set {name!r} {kind}could not be loaded from the Hub: {reason_of(error)}; {remedy}"
        ) from error
    return _of_tables(tables, config)


def _of_folder(folder: Path, config: DataConfig) -> Source:
    """Load a folder of image files, of parquet files, or written by `datasets.save_to_disk`."""
    owner = f"folder {config.name!r}"
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:  # broken Arrow files and JSON raise errors of many unrelated classes
            raise DataError(f"{owner} cannot be loaded from disk: {reason_of(error)}; save it anew") from error
        return _of_tables(saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}, config)
    listing = find_files(folder)
    if listing.images and listing.parquet:
        raise DataError(
            f"{owner} holds {len(listing.images)} images and {len(listing.parquet)} parquet files, such as "
            f"{listing.parquet[0]}; move one of the two kinds out of it"
        )
    if listing.images:
        return _of_images(listing, folder_splits(listing, owner, config.test_split), owner, config)
    if listing.parquet:
        return _of_parquet(folder, listing, owner, config)
    raise DataError(f"{owner} cannot be loaded as images or parquet: {_what_else(listing)}")


def _of_images(listing: FoundFiles, splits: dict[str, FolderSplit], owner: str, config: DataConfig) -> Source:
    held_out = _chosen(splits, config)
    other = splits[held_out].images if held_out else None
    refuse_overlap(splits["train"].images, other, owner)
    used = ["train"] + ([held_out] if held_out else [])
    tables = {name: SplitTable(name, image_table(splits[name], listing.metadata, config)) for name in used}
    listing.left_out.splits = {name: len(split.images) for name, split in splits.items() if name not in used}
    return Source(tables["train"], tables.get(held_out), listing.left_out, splits["train"].notes())


def _of_parquet(folder: Path, listing: FoundFiles, owner: str, config: DataConfig) -> Source:
    shards = shards_by_split(listing.parquet, owner, config.test_split)
    files = {split: [folder / path for path in paths] for split, paths in shards.items()}
    held_out = _chosen(files, config)
    used = ["train"] + ([held_out] if held_out else [])
    refuse_shared_files({split: [str(file) for file in files[split]] for split in used}, owner)
    for split in used:
        if not number_of_rows(files[split]):
            raise DataError(f"split {split!r} of {owner} has no rows; add some, or remove its files")
    tables = {split: SplitTable(split, load_parquet(files[split], split), files[split]) for split in used}
    listing.left_out.splits = {name: number_of_rows(paths) for name, paths in files.items() if name not in used}
    return Source(tables["train"], tables.get(held_out), listing.left_out)


def _of_tables(tables: Mapping[str, datasets.Dataset], config: DataConfig) -> Source:
    """Load a data set whose splits are already named."""
    named = {split_name(name): table for name, table in tables.items()}
    if len(named) < len(tables):
        raise DataError(f"data set {config.name!r} has the splits {', '.join(tables)}, several of one kind; rename one")
    held_out = _chosen(named, config)
    left_out = LeftOut(splits={name: len(rows) for name, rows in named.items() if name not in ("train", held_out)})
    return Source(
        SplitTable("train", named["train"]),
        None if held_out is None else SplitTable(held_out, named[held_out]),
        left_out,
    )


def _chosen(splits: Collection[str], config: DataConfig) -> str | None:
    """Choose the held-out split, None with `hold_out`; raise DataError if the data set has no train split."""
    owner = f"data set {config.name!r}"
    if "train" not in splits:
        raise DataError(f"{owner} has no train split, only {', '.join(splits)}; rename one to train")
    return None if config.hold_out else held_out_split(splits, config.test_split, owner)


def _what_else(listing: FoundFiles) -> str:
    """Describe what a folder without images holds, and the remedy."""
    endings = listing.left_out.endings
    if listing.metadata:
        return f"it holds {listed(listing.metadata, 3)} and no image; put the images beside it"
    if not endings:
        hidden = f", but for {listing.left_out.hidden} hidden files" if listing.left_out.hidden else ""
        return f"it is empty{hidden}; set data.name to a folder with images"
    contents = f"it holds {sum(endings.values())} files, of {listed(sorted(endings))}"
    if ".tar" in endings:
        return f"{contents}; set data.streaming to true to read tar shards, or unpack them"
    if archives := [ending for ending in endings if ending in _ARCHIVES]:
        return f"{contents}; unpack the {listed(sorted(archives))} first"
    if ".arrow" in endings:
        return f"{contents}; save it by save_to_disk of `datasets`, whole, or as parquet"
    return f"{contents}, none that an image's name ends in; convert them to PNG, or rename them"


def digit_tables() -> dict[str, datasets.Dataset]:
    """Load scikit-learn's 1,797 digits of 8x8, enlarged to 32x32, in a fixed stratified split of 1,437 and 360."""
    from sklearn.datasets import load_digits  # takes a second, and only the digits need it
    from sklearn.model_selection import train_test_split

    images, targets = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    # PPM is uncompressed: fast to decode, and the fingerprint does not depend on the version of zlib.
    encoded = [b"P5 32 32 255 " + PIL.Image.fromarray(digit).resize((32, 32), BICUBIC).tobytes() for digit in pixels]
    label = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    train, test = train_test_split(np.arange(len(targets)), test_size=360, stratify=targets, random_state=0)
    splits = {}
    for split, rows in (("train", train), ("test", test)):
        columns = {"image": [{"bytes": encoded[row], "path": None} for row in rows], "label": targets[rows]}
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return splits
