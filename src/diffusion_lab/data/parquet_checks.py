"""Memory that the columns of a parquet file take when they are read, measured without taking this memory.

A value in a dictionary is stored once and can be repeated by millions of rows, each of which is a copy when it is read.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.files.regular import gigabytes, memory_budget, open_regular

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_A_TIME = 1024
BYTES_PER_ROW = 16
"""Bytes that a row takes in memory in addition to its content."""


def require_small_parquet(file: Path, columns: Sequence[str]) -> int:
    """Raise ValueError unless each row group fits into the memory; return the bytes of all row groups.

    columns: names of the columns that are read; names that the file does not have are ignored.
    """
    import pyarrow.parquet as pq

    with open_regular(file) as stream:
        names = pq.ParquetFile(stream).schema_arrow.names
    columns = [name for name in columns if name in names]
    with open_regular(file) as stream:
        opened = pq.ParquetFile(stream, read_dictionary=_byte_arrays(file, columns), pre_buffer=False)
        total = 0
        for number in range(opened.num_row_groups):
            _require_small_group(file, _stored_bytes(opened.metadata.row_group(number), columns))
            group = 0
            for num_bytes in _decoded_bytes(opened, number, columns):
                group += num_bytes
                _require_small_group(file, group)
            total += group
    return total


def _require_small_group(file: Path, num_bytes: int) -> None:
    if not 0 <= num_bytes <= memory_budget():
        raise ValueError(
            f"{file} must have row groups that take at most {gigabytes(memory_budget())} (1/4 of the memory) when they "
            f"are decompressed, got a row group of at least {gigabytes(abs(num_bytes))}."
        )


def _stored_bytes(group: Any, columns: Sequence[str]) -> int:
    """Return the largest memory that the header of a row group states, for its pages or for its rows."""
    chunks = [group.column(number) for number in range(group.num_columns)]
    read = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]
    sizes = [int(chunk.total_uncompressed_size) for chunk in read]
    if any(size < 0 for size in sizes) or group.num_rows < 0:
        return -1
    num_values = max([group.num_rows, *(chunk.num_values for chunk in read)])
    return max(sum(sizes), BYTES_PER_ROW * int(num_values))


def _byte_arrays(file: Path, columns: Sequence[str]) -> list[str]:
    """Return the paths of the columns of bytes and of text, such as image.bytes.  Refuses columns of lists."""
    import pyarrow.parquet as pq

    with open_regular(file) as stream:
        schema = pq.ParquetFile(stream).schema
    found = [schema.column(number) for number in range(len(schema))]
    read = [column for column in found if column.path.split(".")[0] in columns]
    for column in read:
        if column.max_repetition_level:  # one row can have any number of values
            raise ValueError(f"{file} must have single values in its column {column.path[:100]!r}, got lists.")
    return [column.path for column in read if column.physical_type == "BYTE_ARRAY"]


def _decoded_bytes(opened: Any, number: int, columns: Sequence[str]) -> Iterator[int]:
    """Yield the memory that the values of a row group take, for some rows at a time."""
    for batch in opened.iter_batches(ROWS_AT_A_TIME, row_groups=[number], columns=list(columns), use_threads=False):
        yield sum(_num_bytes(column) for column in batch.columns)


def _num_bytes(array: "pa.Array") -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(array.type):
        return sum(_num_bytes(array.field(k)) for k in range(array.type.num_fields))
    if not pa.types.is_dictionary(array.type):
        return int(array.nbytes)
    lengths = pc.fill_null(pc.binary_length(array.dictionary), 0)
    return int(pc.sum(lengths.take(array.indices)).as_py() or 0) + BYTES_PER_ROW * len(array)


def columns_to_read(file: Path, image_column: str, label_column: str | None) -> list[str]:
    """Return the columns of a parquet file to read: of images and labels, or all columns for an error message.

    All columns are those with a single value in each row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_regular(file) as stream:
        opened = pq.ParquetFile(stream)
        arrow, schema = opened.schema_arrow, opened.schema
    columns = [image_column] if label_column is None else [image_column, label_column]
    if set(columns) <= set(arrow.names):
        kind = arrow.field(image_column).type
        checks = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string)
        if any(check(kind) for check in checks):
            return list(dict.fromkeys(columns))
    found = [schema.column(number) for number in range(len(schema))]
    lists = {column.path.split(".")[0] for column in found if column.max_repetition_level}
    return [name for name in arrow.names if name not in lists]
