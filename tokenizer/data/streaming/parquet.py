"""Parquet shards: a block is a row group; the footer gives the number of its rows."""

from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenizer.data.columns import find_columns
from tokenizer.data.config import DataConfig
from tokenizer.data.decoding import DataError
from tokenizer.data.labels import as_integers
from tokenizer.data.streaming.shards import Block, Shard, ShardFile, checked


@dataclass(eq=False)
class ParquetShard(Shard):
    """A parquet file with a column of encoded images, as `datasets` writes it or as plain bytes."""

    metadata: pq.FileMetaData
    row_groups: np.ndarray  # indices of the row groups with rows
    image_field: str
    label_column: str | None

    def read(self, block: int) -> Block:
        """Read a row group."""
        return checked(lambda: self._read(int(self.row_groups[block])), self.file)

    def _read(self, row_group: int) -> Block:
        columns = [self.image_field] + ([self.label_column] if self.label_column else [])
        with self.file.open() as file:
            table = pq.ParquetFile(file, metadata=self.metadata).read_row_group(row_group, columns, use_threads=False)
        images = table.column(self.image_field.partition(".")[0])
        if pa.types.is_struct(images.type):
            images = pa.compute.struct_field(images, "bytes")
        labels = np.zeros(len(images), np.int64)
        if self.label_column:
            labels = self._in_range(_integers(table.column(self.label_column), self.file))
        return Block([image.as_buffer() if image.is_valid else None for image in images], labels)

    def read_labels(self) -> np.ndarray:
        """Read the label column alone."""
        if self.label_column is None:
            return np.zeros(int(self.counts.sum()), np.int64)
        return self._in_range(checked(lambda: _label_column(self.file, self.metadata, self.label_column), self.file))

    def _in_range(self, labels: np.ndarray) -> np.ndarray:
        """Return the labels; raise DataError if they contradict the range in the footer, which gives the classes."""
        low, high = self.label_range
        if len(labels) and not low <= labels.min() <= labels.max() <= high:
            raise self.file.broken(f"it has labels outside {low}..{high}, which its footer gives")
        return labels

    def image_layout(self) -> tuple[bytes, tuple[int, int]]:
        """Return the columns and the byte range of the images of every row group, and the range of the middle one."""
        column_index = _column_paths(self.metadata).index(self.image_field)
        spans = []
        for group in self.row_groups.tolist():
            column = self.metadata.row_group(group).column(column_index)
            first = column.data_page_offset
            if column.has_dictionary_page:
                first = min(first, column.dictionary_page_offset)
            spans.append((first, first + column.total_compressed_size))
        return f"{self.image_field}\0{self.label_column}\0{spans}".encode(), spans[len(spans) // 2]


def index_parquet(file: ShardFile, config: DataConfig) -> ParquetShard:
    """Build the shard from its footer; raise DataError if it has none, or no usable image and label columns."""

    def footer() -> tuple[pq.FileMetaData, pa.Schema]:
        with file.open() as opened:
            parquet = pq.ParquetFile(opened)
            return parquet.metadata, parquet.schema_arrow

    metadata, schema = checked(footer, file)
    features = datasets.Features.from_arrow_schema(schema)
    image_column, label_column = find_columns(features, config, f"shard {file.name}")
    image_type = schema.field(image_column).type
    nested = pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0
    stored = image_type.field("bytes").type if nested else image_type
    if not (pa.types.is_binary(stored) or pa.types.is_large_binary(stored)):
        raise DataError(f"column {image_column!r} of shard {file.name} holds {image_type}, no images; name another")
    class_names, label_range = None, None
    if label_column is not None:
        if not pa.types.is_integer(schema.field(label_column).type):
            found = f"label column {label_column!r} of shard {file.name} holds {schema.field(label_column).type}"
            raise DataError(f"{found}, not integers; set data.label_column")
        class_names = getattr(features[label_column], "names", None)
        label_range = checked(lambda: _label_range(file, metadata, label_column), file)
    counts = np.array([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)], np.int64)
    kept = np.flatnonzero(counts)
    return ParquetShard(
        file,
        counts[kept],
        label_range,
        class_names,
        metadata=metadata,
        row_groups=kept,
        image_field=f"{image_column}.bytes" if nested else image_column,
        label_column=label_column,
    )


def _label_range(file: ShardFile, metadata: pq.FileMetaData, column: str) -> tuple[int, int] | None:
    """Return the smallest and largest label: from the footer, or from the column if the footer lacks them."""
    if metadata.num_rows == 0:
        return None
    column_index = _column_paths(metadata).index(column)
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    statistics = [group.column(column_index).statistics for group in groups if group.num_rows]
    if all(
        part is not None and part.has_min_max and part.has_null_count and not part.null_count for part in statistics
    ):
        return min(part.min for part in statistics), max(part.max for part in statistics)
    labels = _label_column(file, metadata, column)
    return int(labels.min()), int(labels.max())


def _column_paths(metadata: pq.FileMetaData) -> list[str]:
    return [metadata.schema.column(index).path for index in range(metadata.num_columns)]


def _label_column(file: ShardFile, metadata: pq.FileMetaData, column: str) -> np.ndarray:
    with file.open() as opened:
        return _integers(pq.ParquetFile(opened, metadata=metadata).read([column]).column(column), file)


def _integers(labels: pa.ChunkedArray, file: ShardFile) -> np.ndarray:
    if labels.null_count:
        row = pa.compute.index(pa.compute.is_null(labels), True).as_py()
        raise DataError(f"shard {file.name} has no label in row {row}; label or remove the row")
    return as_integers(labels, f"shard {file.name}")
