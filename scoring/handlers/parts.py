"""Spread the windows of a run over its parts, each sensor whole."""

import io
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.aggregates import Partials
from scoring.predictions import INPUT_SCHEMA, PREDICTION_SCHEMA, Status, write_table
from scoring.runs import Part, ScoringRun, part_of
from scoring.suspects import Sensor, Suspect, may_try

ROW_GROUP = 16_384
"""Rows of a part that are gathered before they are compressed."""


@dataclass(slots=True)
class _Filling:
    """A part of suspects that is being filled: of those that the same run has made suspects."""

    place: int
    run_number: int
    rows: int = 0
    sensors: int = 0


class Suspects:
    """Keeps the suspects of earlier runs apart from all other sensors.

    They are numbered behind the others, and among themselves those behind that failed last: what
    an engine takes last is what may make it give up. Those of one run take turns.

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
        self._run = run
        self._now = now
        # Who names a device wants it tried, whatever becomes of the run.
        self._is_named = run.rescore and bool(run.devices)
        self._may_try = may_try(self._known.values(), now)
        self._aside: set[Sensor] = set()
        self._placed: dict[Sensor, _Filling] = {}
        self._filling: dict[tuple[int, int, int], _Filling] = {}
        self._parts: list[_Filling] = []

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
        if sensor not in self._aside and sensor not in self._placed:
            # Its first window decides for all of them.
            if self._is_tried(suspect, start):
                return None
            self._aside.add(sensor)
        if sensor not in self._aside:
            return None
        return f"set aside after {suspect.failures} failed runs: {suspect.cause}"

    def place(self, sensor: Sensor) -> int:
        """Return which of the suspects' parts a suspect's window belongs to, counted from 0."""
        filling = self._placed.get(sensor)
        if filling is None:
            filling = self._placed[sensor] = self._part_for(self._known[sensor])
            filling.sensors += 1
        filling.rows += 1
        return filling.place

    def tried(self) -> list[Suspect]:
        """Return those that the run tries although they were set aside, as tried now."""
        placed = (self._known[sensor] for sensor in self._placed)
        return [
            replace(one, tried_at=self._now, tried_in=self._run.number)
            for one in placed
            if one.set_aside_at is not None
        ]

    def order(self) -> list[int]:
        """Return the suspects' parts in the order in which the engine is to take them."""
        parts, count = self._parts, len(self._parts)

        def rank(place: int) -> tuple[int, int]:
            return parts[place].run_number, (place + self._run.number) % count

        return sorted(range(count), key=rank)

    def _is_tried(self, suspect: Suspect, first_start: int) -> bool:
        if suspect.set_aside_at is None or self._is_named:
            return True
        return self._may_try and (self._run.rescore or suspect.is_due(first_start, self._now))

    def _part_for(self, suspect: Suspect) -> _Filling:
        limits = (suspect.rows, suspect.sensors, suspect.run_number)
        filling = self._filling.get(limits)
        if filling is None or filling.rows >= suspect.rows or filling.sensors >= suspect.sensors:
            filling = self._filling[limits] = _Filling(len(self._parts), suspect.run_number)
            self._parts.append(filling)
        return filling


class Parts:
    """The parts of a run as compressed Parquet in memory.

    Parameters
    ----------
    count
        Parts that the sensors above suspicion are spread over, by their names: a sensor is in the
        same part whoever exports the run, and however its windows come. Each run begins with
        another part, so that one that the engine gives up at is not always its first.
    """

    def __init__(self, run: ScoringRun, count: int, suspects: Suspects) -> None:
        self._shift = run.number
        self._suspects = suspects
        self._count = count
        self._waiting: dict[int, list[pa.Table]] = defaultdict(list)
        self._sinks: dict[int, tuple[io.BytesIO, pq.ParquetWriter]] = {}
        self._rows: dict[int, int] = defaultdict(int)
        self._aside: list[tuple[str, str, int, str]] = []

    @property
    def written(self) -> list[Part]:
        """The parts that have rows, in order."""
        parts = [Part(number, self._rows[key]) for number, key in self._numbered()]
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
        sinks = {number: self._sinks[key][0] for number, key in self._numbered()}
        return [
            (
                part,
                write_table(_answers(self._aside))
                if part.is_aside
                else sinks[part.number].getvalue(),
            )
            for part in self.written
        ]

    def _numbered(self) -> list[tuple[int, int]]:
        """Return the number of each part that has rows, and where its rows are gathered."""
        ordinary = [(key, key) for key in self._rows if key < self._count]
        first = self._count + 1
        return ordinary + [
            (first + turn, first + place) for turn, place in enumerate(self._suspects.order())
        ]

    def _numbers(self, windows: Partials) -> np.ndarray:
        """Part of each window, -1 for one that is set aside; int64, shape (windows,)."""
        numbers = (part_numbers(windows, self._count) + self._shift) % self._count
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
