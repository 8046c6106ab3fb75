"""The files of a run: what a part may hold, and what it says in sum."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.errors import InvalidPart
from scoring.predictions import (
    FEATURES,
    INPUT_SCHEMA,
    PREDICTION_SCHEMA,
    PartSummary,
    Status,
    read_predictions,
    read_table,
    summarise,
    write_table,
)

NAME = "predictions/r/part-00000.parquet"
Row = tuple[float | None, bool | None, str]
"""Anomaly score, label and status of one prediction."""


def table(schema: pa.Schema, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    return pa.table({f.name: pa.array(columns[f.name]).cast(f.type) for f in schema}, schema=schema)


def predictions(*rows: Row) -> pa.Table:
    count = len(rows)
    columns = {
        "device": pa.array(["pump"] * count, pa.string()),
        "sensor": pa.array(["heat"] * count, pa.string()),
        "window_start": pa.array(range(count), pa.int64()),
        "anomaly_score": pa.array([row[0] for row in rows], pa.float64()),
        "is_anomaly": pa.array([row[1] for row in rows], pa.bool_()),
        "status": pa.array([row[2] for row in rows], pa.string()),
        "reason": pa.array([None] * count, pa.string()),
    }
    return table(PREDICTION_SCHEMA, columns)


def inputs() -> pa.Table:
    return table(
        INPUT_SCHEMA,
        {
            "device": ["pump", "pump"],
            "sensor": ["heat", "heat"],
            "window_start": [0, 300_000_000],
            "count": [3, 4],
            "mean": [1.5, 2.5],
            "std": [0.5, 0.25],
            "min": [1.0, 2.0],
            "max": [2.0, 3.0],
            "last": [1.75, 2.75],
        },
    )


def parquet(some: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(some, sink)
    return sink.getvalue()


def read(*rows: Row) -> pa.Table:
    return read_predictions(write_table(predictions(*rows)), NAME)


def test_a_part_is_read_as_it_was_written() -> None:
    for some, schema in ((inputs(), INPUT_SCHEMA), (predictions((1, True, "scored")),) * 2):
        expected = schema if isinstance(schema, pa.Schema) else PREDICTION_SCHEMA
        assert read_table(write_table(some), expected, NAME).equals(some)
        assert read_table(pa.py_buffer(write_table(some)), expected, NAME).equals(some)


def test_equal_tables_give_equal_bytes() -> None:
    assert write_table(inputs()) == write_table(inputs())


def test_a_part_without_rows_is_a_part() -> None:
    assert summarise(read()) == PartSummary(0, 0, 0, 0)


def test_plain_strings_other_columns_and_another_order_are_accepted() -> None:
    plain = predictions((0.5, True, "scored"))
    for place, column in enumerate(("device", "sensor", "status", "reason")):
        at = plain.column_names.index(column)
        plain = plain.set_column(at, column, plain[column].cast(pa.string()))
        assert place < plain.num_columns
    shuffled = plain.append_column("more", pa.array([1])).select([7, 6, 5, 4, 3, 2, 1, 0])

    found = read_predictions(parquet(shuffled), NAME)

    assert found.schema.equals(PREDICTION_SCHEMA)
    assert summarise(found) == PartSummary(1, 1, 1, 0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"PAR1",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"device,sensor\n",
    ],
)
def test_what_is_not_parquet_is_refused_by_name(damage: Callable[[bytes], bytes]) -> None:
    data = damage(write_table(predictions((0.5, True, "scored"))))

    with pytest.raises(InvalidPart, match=f"{NAME} is not a readable Parquet file"):
        read_predictions(data, NAME)


def test_a_part_of_another_number_of_rows_is_refused_before_it_is_unpacked() -> None:
    data = write_table(predictions(*[(0.5, True, "scored")] * 3))

    with pytest.raises(InvalidPart, match=f"{NAME} has 3 rows where 2 are expected"):
        read_predictions(data, NAME, 2)
    assert read_predictions(data, NAME, 3).num_rows == 3


def test_a_small_part_of_very_many_rows_is_refused_before_it_is_unpacked() -> None:
    many = pa.table({"device": pa.array(["d"] * 20_000_000).dictionary_encode()})
    data = parquet(many)
    assert len(data) < 100_000

    with pytest.raises(InvalidPart, match=r"bytes hold 20000000 rows"):
        read_table(data, PREDICTION_SCHEMA, NAME)


def test_a_part_of_few_rows_that_unpack_to_very_much_is_refused_unread() -> None:
    one = predictions((0.5, True, "scored"))
    data = parquet(one.append_column("more", pa.array(["x" * 50_000_000])))

    with pytest.raises(InvalidPart, match="its 1 rows unpack to 5"):
        read_predictions(data, NAME)


def test_a_column_name_that_is_no_text_is_refused_by_name() -> None:
    data = write_table(predictions((1, True, "scored"))).replace(
        b"anomaly_score", b"\xffnomaly_score"
    )

    with pytest.raises(InvalidPart, match="part-00042"):
        read_table(data, PREDICTION_SCHEMA, "part-00042")


@given(st.data())
def test_a_damaged_part_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    content = bytearray(write_table(predictions((1, True, "scored"))))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidPart):
        read_table(bytes(content), PREDICTION_SCHEMA, "part-00042")


def test_missing_columns_are_named_all_at_once() -> None:
    some = inputs().drop_columns(["std", "last"])

    with pytest.raises(InvalidPart, match=f"{NAME} has no column std, last"):
        read_table(parquet(some), INPUT_SCHEMA, NAME)


@pytest.mark.parametrize(
    ("column", "values"),
    [("mean", ["a", "b"]), ("count", [1.5, 2.0]), ("window_start", ["x", "y"])],
)
def test_a_column_of_another_type_is_refused(column: str, values: list[object]) -> None:
    some = inputs()
    some = some.set_column(some.column_names.index(column), column, pa.array(values))

    with pytest.raises(InvalidPart, match="does not have the agreed column types"):
        read_table(parquet(some), INPUT_SCHEMA, NAME)


@pytest.mark.parametrize("column", INPUT_SCHEMA.names)
def test_no_value_of_an_input_part_may_be_missing(column: str) -> None:
    some = inputs()
    place, kind = some.column_names.index(column), INPUT_SCHEMA.field(column).type
    some = some.set_column(
        place, pa.field(column, kind), pa.array([some[column][0].as_py(), None], kind)
    )

    with pytest.raises(InvalidPart, match=NAME):
        read_table(parquet(some), INPUT_SCHEMA, NAME)


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.SCORED])
def test_a_row_that_was_not_scored_has_neither_score_nor_label(status: Status) -> None:
    assert read((None, None, status), (0.5, False, "scored")).num_rows == 2
    for score, label in ((0.5, True), (0.5, None), (None, False), (float("nan"), None)):
        with pytest.raises(InvalidPart, match="status and score contradict each other"):
            read((0.5, False, "scored"), (score, label, status))


@pytest.mark.parametrize(
    ("score", "label"),
    [
        *[(None, True), (0.5, None), (None, None)],
        *[(float("nan"), True), (float("inf"), True), (float("-inf"), False)],
    ],
)
def test_a_scored_row_has_a_finite_score_and_a_label(
    score: float | None, label: bool | None
) -> None:
    with pytest.raises(InvalidPart, match="status and score contradict each other"):
        read((score, label, "scored"), (0.5, False, "scored"))


@pytest.mark.parametrize("status", ["", "Scored", "skipped"])
def test_a_row_of_an_unknown_status_is_refused(status: str) -> None:
    with pytest.raises(InvalidPart, match=f"unknown status: {status}"):
        read((None, None, status))


def test_a_summary_counts_every_row_once() -> None:
    found = read(
        (0.5, True, "scored"),
        (-0.5, False, "scored"),
        # The label is the estimator's own: the sign of the score does not decide it.
        (0.0, True, "scored"),
        (None, None, "no_model"),
        (None, None, "model_failed"),
        (None, None, "invalid_features"),
    )

    assert summarise(found) == PartSummary(rows=6, scored=3, anomalies=2, not_scored=3)


def test_every_feature_is_a_column_of_an_input_part() -> None:
    assert set(FEATURES) <= set(inputs().column_names)


def test_a_column_that_stands_twice_is_refused() -> None:
    table = pa.table(
        [*PREDICTION_SCHEMA.empty_table().columns, pa.array([], pa.string())],
        names=[*PREDICTION_SCHEMA.names, "device"],
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)

    with pytest.raises(InvalidPart, match="column device twice"):
        read_table(sink.getvalue(), PREDICTION_SCHEMA, "part")
