"""Load a folder of parquet files as a table per split; `split_names` decides which files belong to a split."""

import glob
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from tokenizer.data.decoding import DataError, reason_of
from tokenizer.data.labels import LabelPart, label_part


def load_parquet(files: list[Path], split: str) -> datasets.Dataset:
    """Read the parquet files of one split as one table.

    Raises:
        DataError: a file is broken, or its columns differ from the first file's.
    """
    files = [file for file in files if _metadata(file).num_rows]
    try:
        # `datasets` treats file names as glob patterns.
        paths = [glob.escape(str(file)) for file in files]
        table = datasets.load_dataset("parquet", data_files={"files": paths}, split="files")
    except Exception as error:  # builders raise errors of many unrelated classes
        raise DataError(
            f"the parquet files of split {split!r}, such as {files[0]}, cannot be read together: {reason_of(error)}; "
            "write them with the same columns"
        ) from error
    if len(table) != number_of_rows(files):
        raise DataError(f"{files[0].parent} has a name that stands for other folders too; rename it")
    return table


def number_of_rows(files: list[Path]) -> int:
    """Count the rows of files by their footers."""
    return sum(_metadata(file).num_rows for file in files)


def parquet_labels(files: list[Path], column: str) -> list[LabelPart]:
    """Read the label column of each file separately, as each may number the classes in its own order."""
    parts = []
    for file in files:
        try:
            schema = pq.read_schema(file)
            if column not in schema.names:
                raise DataError(f"{file} has no column {column!r}, as other files have; write them alike")
            feature = datasets.Features.from_arrow_schema(schema)[column]
            values = pq.read_table(file, columns=[column]).column(column)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise DataError(f"column {column!r} of {file} cannot be read: {reason_of(error)}; replace it") from error
        parts.append(label_part(values, feature, f"{file}"))
    return parts


def _metadata(file: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read as Parquet: {reason_of(error)}; replace or remove it") from error
