"""The files of a run: input parts (windows to score) and prediction parts (their scores)."""

import io
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scoring.errors import InvalidPart

FEATURES = ("mean", "std", "min", "max", "last", "count")
"""What a model may be scored on: columns of an input part, all float64 but count."""

_NAME = pa.dictionary(pa.int32(), pa.string())
_INSTANT = pa.timestamp("us", tz="UTC")

INPUT_SCHEMA = pa.schema(
    [
        pa.field("device", _NAME, nullable=False),
        pa.field("sensor", _NAME, nullable=False),
        pa.field("window_start", _INSTANT, nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("std", pa.float64(), nullable=False),
        pa.field("min", pa.float64(), nullable=False),
        pa.field("max", pa.float64(), nullable=False),
        pa.field("last", pa.float64(), nullable=False),
    ]
)
"""One row a window, ordered by device, sensor and window start. ``std`` is of the population."""

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("device", _NAME, nullable=False),
        pa.field("sensor", _NAME, nullable=False),
        pa.field("window_start", _INSTANT, nullable=False),
        # Minus scikit-learn's decision function: higher is more anomalous. Null if not scored.
        pa.field("anomaly_score", pa.float64()),
        pa.field("is_anomaly", pa.bool_()),
        pa.field("status", _NAME, nullable=False),
        pa.field("reason", _NAME),
    ]
)
"""One row for every input row, in the same order."""


class Status(StrEnum):
    """What became of one input row."""

    SCORED = "scored"
    NO_MODEL = "no_model"
    MODEL_FAILED = "model_failed"
    INVALID_FEATURES = "invalid_features"


@dataclass(frozen=True, slots=True)
class PartSummary:
    """Row counts of one prediction part; ``scored + not_scored == rows``."""

    rows: int
    scored: int
    anomalies: int
    not_scored: int


def write_table(table: pa.Table) -> bytes:
    """Parquet bytes of a part (zstd); equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


_ROWS_A_BYTE = 100
"""Rows that a byte of a part may stand for: runs of one value take next to nothing."""

_FEW_ROWS = 1_000_000
"""So many rows may be read of any part."""

_BYTES_A_ROW = 4_096
"""Unpacked bytes that a row may take: names of 128 characters, and a reason of some hundred."""


def _open(data: bytes | pa.Buffer, name: str, rows: int | None) -> pq.ParquetFile:
    """Open a part whose own words about its size are bearable; nothing of it is unpacked yet."""
    file = pq.ParquetFile(pa.BufferReader(data))
    said = file.metadata
    if rows is not None and said.num_rows != rows:
        message = f"{name} has {said.num_rows} rows where {rows} are expected"
        raise InvalidPart(message)
    if said.num_rows > max(_FEW_ROWS, _ROWS_A_BYTE * len(data)):
        message = f"{name} says that its {len(data)} bytes hold {said.num_rows} rows"
        raise InvalidPart(message)
    # Not by column: pyarrow ends the process over a column whose statistics are damaged.
    groups = range(said.num_row_groups)
    unpacked = sum(max(0, said.row_group(group).total_byte_size) for group in groups)
    if unpacked > _BYTES_A_ROW * max(said.num_rows, 1_000):
        message = f"{name} says that its {said.num_rows} rows unpack to {unpacked} bytes"
        raise InvalidPart(message)
    return file


def read_table(
    data: bytes | pa.Buffer, schema: pa.Schema, name: str, rows: int | None = None
) -> pa.Table:
    """Read a part and check that it has the schema's columns, types and no nulls where none may be.

    Parameters
    ----------
    name
        Says which part is wrong, in the error.
    rows
        What the part has to have, where that is known.

    Raises
    ------
    InvalidPart
        Not Parquet, of another number of rows, or too many for its size, a missing column, another
        type, or a null in a column that has none.
    """
    try:
        file = _open(data, name, rows)
        if set(file.schema_arrow.names) - set(schema.names):
            # What is not asked for is not unpacked either.
            columns = [one for one in file.schema_arrow.names if one in schema.names]
            table = file.read(columns=columns)
        else:
            table = file.read()
        # Parquet's own reader takes bytes that are no UTF-8 for text.
        table.validate(full=True)
        names = table.column_names
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        # ValueError: column names that are no UTF-8 either.
        message = f"{name} is not a readable Parquet file: {error}"
        raise InvalidPart(message) from error
    if twice := [field.name for field in schema if names.count(field.name) > 1]:
        message = f"{name} has column {', '.join(twice)} twice"
        raise InvalidPart(message)
    if missing := [field.name for field in schema if field.name not in names]:
        message = f"{name} has no column {', '.join(missing)}"
        raise InvalidPart(message)
    try:
        table = table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        message = f"{name} does not have the agreed column types: {error}"
        raise InvalidPart(message) from error
    if nulls := [f.name for f in schema if not f.nullable and table[f.name].null_count]:
        message = f"{name} has empty values in {', '.join(nulls)}"
        raise InvalidPart(message)
    return table


def read_predictions(data: bytes, name: str, rows: int | None = None) -> pa.Table:
    """Read a prediction part; a scored row has a finite score and a label, any other has neither.

    Raises
    ------
    InvalidPart
        As `read_table`, or a row has an unknown status, or says ``scored`` and lacks score or
        label, or says otherwise and has one of them.
    """
    table = read_table(data, PREDICTION_SCHEMA, name, rows)
    if unknown := sorted(set(table["status"].unique().to_pylist()) - set(Status)):
        message = f"{name} has rows of unknown status: {', '.join(unknown)}"
        raise InvalidPart(message)
    score, label = table["anomaly_score"], table["is_anomaly"]
    agrees = pc.if_else(
        pc.equal(table["status"], Status.SCORED),
        pc.and_(pc.fill_null(pc.is_finite(score), fill_value=False), pc.is_valid(label)),
        pc.and_(pc.is_null(score), pc.is_null(label)),
    )
    if not pc.all(agrees, min_count=0).as_py():
        message = f"{name} has rows whose status and score contradict each other"
        raise InvalidPart(message)
    return table


def summarise(predictions: pa.Table) -> PartSummary:
    """Count what a prediction part says."""
    scored = pc.sum(pc.equal(predictions["status"], Status.SCORED)).as_py() or 0
    anomalies = pc.sum(predictions["is_anomaly"]).as_py() or 0
    rows = predictions.num_rows
    return PartSummary(rows, scored, anomalies, rows - scored)
