"""Spread the windows of a run over its parts, each sensor whole."""

import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.aggregates import Partials
from scoring.predictions import INPUT_SCHEMA, PREDICTION_SCHEMA, Status, write_table
from scoring.runs import Part, ScoringRun, part_of
from scoring.suspects import Sensor, Suspect

ROW_GROUP = 16_384
"""Rows of a part that are gathered before they are compressed."""


@dataclass(slots=True)
class _Filling:
    """A part of suspects that is being filled."""

    number: int
    rows: int = 0
    sensors: int = 0


class Suspects:
    """Keeps the suspects of earlier runs apart from all other sensors.

    They are numbered behind the others: what an engine takes last is what may make it give up.

    Parameters
    ----------
    known
        The suspects of any fleet.
    now
        Epoch microseconds UTC.
    """

    def __init__(self, run: ScoringRun, known: Mapping[Sensor, Suspect], now: int) -> None:
        self._known = {
            sensor: suspect
            for sensor, suspect in known.items()
            if suspect.fleet_version == run.fleet_version
        }
        self._tries_all = run.rescore
        self._now = now
        self._aside: set[Sensor] = set()
        self._placed: dict[Sensor, _Filling] = {}
        self._filling: dict[tuple[int, int], _Filling] = {}
        self._parts = 0

    def __bool__(self) -> bool:
        return bool(self._known)

    def is_suspect(self, sensor: Sensor) -> bool:
        """Return whether a sensor is a suspect to the run's fleet."""
        return sensor in self._known

    def reason_aside(self, sensor: Sensor, start: int) -> str | None:
        """Return why a suspect's window is set aside; None for one that is to be scored.

        To be asked of a sensor's windows in their order.
        """
        suspect = self._known[sensor]
        if sensor not in self._aside | self._placed.keys():
            # Its first window decides for all of them.
            if self._tries_all or not suspect.is_set_aside(start, self._now):
                return None
            self._aside.add(sensor)
        if sensor not in self._aside:
            return None
        return f"set aside after {suspect.failures} failed runs: {suspect.cause}"

    def place(self, sensor: Sensor) -> int:
        """Return the place of a suspect's window among the parts of suspects, counted from 0."""
        filling = self._placed.get(sensor)
        if filling is None:
            filling = self._placed[sensor] = self._part_for(self._known[sensor])
            filling.sensors += 1
        filling.rows += 1
        return filling.number

    def _part_for(self, suspect: Suspect) -> _Filling:
        limits = (suspect.rows, suspect.sensors)
        filling = self._filling.get(limits)
        if filling is None or filling.rows >= suspect.rows or filling.sensors >= suspect.sensors:
            filling = self._filling[limits] = _Filling(self._parts)
            self._parts += 1
        return filling


class Parts:
    """The parts of a run as compressed Parquet in memory.

    Parameters
    ----------
    count
        Parts that the sensors above suspicion are spread over, by their names: a sensor is in the
        same part whoever exports it, and however its windows come.
    """

    def __init__(self, count: int, suspects: Suspects) -> None:
        self._suspects = suspects
        self._count = count
        self._waiting: dict[int, list[pa.Table]] = defaultdict(list)
        self._sinks: dict[int, tuple[io.BytesIO, pq.ParquetWriter]] = {}
        self._rows: dict[int, int] = defaultdict(int)
        self._aside: list[tuple[str, str, int, str]] = []

    @property
    def written(self) -> list[Part]:
        """The parts that have rows, in order."""
        parts = [Part(number, rows) for number, rows in self._rows.items()]
        if self._aside:
            parts.append(Part(self._count, len(self._aside), is_aside=True))
        return sorted(parts, key=lambda part: part.number)

    def add(self, windows: Partials) -> None:
        """Take a set of windows, ordered by device, sensor and start."""
        numbers = self._numbers(windows)
        table = input_table(windows)
        for number in np.unique(numbers[numbers >= 0]).tolist():
            rows = table.take(np.flatnonzero(numbers == number))
            self._rows[number] += rows.num_rows
            self._waiting[number].append(rows)
            if sum(waiting.num_rows for waiting in self._waiting[number]) >= ROW_GROUP:
                self._compress(number)

    def finished(self) -> list[tuple[Part, bytes]]:
        """Close the files; gives each part that has rows with its bytes."""
        for number in [number for number, tables in self._waiting.items() if tables]:
            self._compress(number)
        for _, writer in self._sinks.values():
            writer.close()
        return [(part, self._bytes_of(part)) for part in self.written]

    def _numbers(self, windows: Partials) -> np.ndarray:
        """Part of each window, -1 for one that is set aside; int64, shape (windows,)."""
        numbers = part_numbers(windows, self._count)
        if not self._suspects:
            return numbers
        for row, (device, sensor, start) in enumerate(windows.keys):
            key = (device, sensor)
            if not self._suspects.is_suspect(key):
                continue
            if reason := self._suspects.reason_aside(key, start):
                numbers[row] = -1
                self._aside.append((device, sensor, start, reason))
            else:
                # Behind the part of what is set aside.
                numbers[row] = self._count + 1 + self._suspects.place(key)
        return numbers

    def _bytes_of(self, part: Part) -> bytes:
        if part.is_aside:
            return write_table(_answers(self._aside))
        return self._sinks[part.number][0].getvalue()

    def _compress(self, number: int) -> None:
        if number not in self._sinks:
            sink = io.BytesIO()
            self._sinks[number] = sink, pq.ParquetWriter(sink, INPUT_SCHEMA, compression="zstd")
        tables = pa.concat_tables(self._waiting.pop(number)).unify_dictionaries()
        self._sinks[number][1].write_table(tables)


def _answers(aside: list[tuple[str, str, int, str]]) -> pa.Table:
    """Make the prediction part of windows that are set aside."""
    device, sensor, start, reason = zip(*aside, strict=True)
    columns = {
        "device": pa.array(device, pa.string()).dictionary_encode(),
        "sensor": pa.array(sensor, pa.string()).dictionary_encode(),
        "window_start": pa.array(start, pa.int64()),
        "anomaly_score": pa.nulls(len(aside), pa.float64()),
        "is_anomaly": pa.nulls(len(aside), pa.bool_()),
        "status": pa.array([Status.MODEL_FAILED.value] * len(aside)).dictionary_encode(),
        "reason": pa.array(reason, pa.string()).dictionary_encode(),
    }
    return pa.table(columns).cast(PREDICTION_SCHEMA)


def part_numbers(windows: Partials, count: int) -> np.ndarray:
    """Part of each window; int64, shape (windows,)."""
    known: dict[tuple[str, str], int] = {}
    numbers = np.empty(len(windows), dtype=np.int64)
    for row, (device, sensor, _) in enumerate(windows.keys):
        number = known.get((device, sensor))
        if number is None:
            number = known[device, sensor] = part_of(device, sensor, count)
        numbers[row] = number
    return numbers


def input_table(windows: Partials) -> pa.Table:
    """Windows as rows of an input part."""
    device, sensor, start = zip(*windows.keys, strict=True)
    columns = {
        "device": pa.array(device, pa.string()).dictionary_encode(),
        "sensor": pa.array(sensor, pa.string()).dictionary_encode(),
        "window_start": pa.array(start, pa.int64()),
        "count": windows.count,
        "mean": windows.mean,
        "std": windows.std(),
        "min": windows.min,
        "max": windows.max,
        "last": windows.last,
    }
    return pa.table(columns).cast(INPUT_SCHEMA)
