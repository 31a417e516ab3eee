"""Read metadata files of images: metadata.csv, .jsonl or .parquet with a column file_name."""

import os
from collections.abc import Collection

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from tokenizer.data.decoding import DataError, reason_of
from tokenizer.data.folders.files import FoundImage
from tokenizer.data.labels import plain
from tokenizer.data.left_out import listed

FILE_NAME = "file_name"


def read_metadata(files: list[str], images: list[FoundImage]) -> tuple[pa.Table, list[int]] | None:
    """Read the metadata of images: a row per image, without file_name, and the images' indices.

    Args:
        files: paths of metadata files; each covers the images in its own folder and below.
        images: all images of one split.

    Returns:
        The rows in the files' order, and the image index of each; None if no file covers these images.

    Raises:
        DataError: a file cannot be read or has no column file_name; an image is missing in it or listed twice; a file
            lists an image that does not exist; files differ in their columns.
    """
    index_of = {os.path.normpath(image.path): index for index, image in enumerate(images)}
    tables, rows, used = [], [], []
    for file in sorted(files):
        folder = os.path.normpath(os.path.dirname(file))  # noqa: PTH120 (paths are compared as text)
        covered = {path for path in index_of if path.startswith(folder + os.sep)}
        if not covered:
            continue
        table = _read(file)
        paths = [_path(folder, name, index_of) for name in table.column(FILE_NAME).to_pylist()]
        is_covered = [path in covered for path in paths]
        unknown = [path for path, known in zip(paths, is_covered, strict=True) if not known]
        if missing := [path for path in unknown if not os.path.exists(path)]:  # noqa: PTH110 (any text may be a name)
            raise DataError(f"{file} lists {len(missing)} images that are not there, such as {missing[0]}; correct it")
        used.append(file)
        tables.append(table.drop_columns([FILE_NAME]).filter(pa.array(is_covered, pa.bool_())))
        rows += [index_of[path] for path, known in zip(paths, is_covered, strict=True) if known]
    if not tables:
        return None
    _check_rows(rows, images, listed(used))
    try:
        return pa.concat_tables(tables), rows
    except pa.ArrowException as error:
        raise DataError(
            f"{listed(used)} have other columns than each other: {reason_of(error)}; write them alike"
        ) from error


def _path(folder: str, name: str, known: Collection[str]) -> str:
    """Return a listed file's path as the search found it; paths written on Windows use other separators."""
    path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118
    elsewhere = os.path.normpath(os.path.join(folder, name.replace("\\", "/")))  # noqa: PTH118
    return elsewhere if path not in known and elsewhere in known else path


def _check_rows(rows: list[int], images: list[FoundImage], files: str) -> None:
    """Raise DataError unless each image has exactly one row."""
    times = [0] * len(images)
    for index in rows:
        times[index] += 1
    if unlisted := [image.path for image, number in zip(images, times, strict=True) if not number]:
        raise DataError(
            f"{files} lists {len(images) - len(unlisted)} of {len(images)} images, not {len(unlisted)} such as "
            f"{unlisted[0]}; add rows for them, or remove them"
        )
    if twice := [image.path for image, number in zip(images, times, strict=True) if number > 1]:
        raise DataError(f"{files} lists {len(twice)} images more than once, such as {twice[0]}; keep one row of each")


def _read(file: str) -> pa.Table:
    """Read a metadata file, with column file_name as text."""
    try:
        if file.lower().endswith(".csv"):
            options = pyarrow.csv.ConvertOptions(column_types={FILE_NAME: pa.string()})
            parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
            table = pyarrow.csv.read_csv(file, parse_options=parse, convert_options=options)
        elif file.lower().endswith(".jsonl"):
            table = pyarrow.json.read_json(file)
        else:
            table = pyarrow.parquet.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {reason_of(error)}; correct or remove it") from error
    if len(set(table.column_names)) < len(table.column_names):
        raise DataError(f"{file} has several columns of one name: {listed(table.column_names)}; rename them")
    if FILE_NAME not in table.column_names:
        columns = listed(table.column_names)
        raise DataError(f"{file} has no column file_name, only {columns}; call the column of the images' paths so")
    columns = {name: plain(table.column(name)) for name in table.column_names}
    try:
        columns[FILE_NAME] = columns[FILE_NAME].cast(pa.string())
    except pa.ArrowException as error:
        raise DataError(f"column {FILE_NAME} of {file} holds {table.schema.field(FILE_NAME).type}, no paths") from error
    if columns[FILE_NAME].null_count:
        raise DataError(f"{file} has rows without a file_name; fill them in, or remove them")
    for name, values in columns.items():
        if pa.types.is_null(values.type):  # the column has no value that would determine its type
            columns[name] = values.cast(pa.string())
    return pa.table(columns)
