"""Event bytes to merged partials, and the ingest handler whole, against two references.

The references do the same work: Bytewax 0.21 folds tumbling windows with 10 s of lateness (left out
where it is not installed: it has no wheel for Python 3.13); and a loop of json.loads over a dict of
running aggregates, the shortest thing that people write. Figures are the best of several rounds,
taken in turn.

Run: ``python benchmarks/ingest.py [--batches N] [--rounds N]``
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from scoring import instants
from scoring.adapters.blobs import FolderBlobs
from scoring.adapters.sql.database import Database
from scoring.adapters.sql.ingest import SqlIngestStore
from scoring.adapters.sql.migrations import migrate
from scoring.aggregates import WindowTable, aggregate
from scoring.handlers.ingest import Ingest
from scoring.readings import EventBatch, Partition, ReadingDecoder
from scoring.windows import Windowing, last_final_start

BATCH = 1_000
KEYS = 1_000
WINDOW = 10 * instants.SECOND
LATENESS = 10 * instants.SECOND
SKEW = 300 * instants.SECOND
START = instants.of(datetime(2026, 1, 5, tzinfo=UTC))


def event_batch(number: int, rejects: int = 1) -> EventBatch:
    """Make a second of 1,000 sensors, a reading each, `rejects` of them unreadable."""
    base = START + number * instants.SECOND
    bodies = [
        b'{"device":"d0001","sensor":"s1","ts":"2026-01-05T00:00:00Z","value":NaN}'
        if i < rejects
        else json.dumps(
            {
                "device": f"d{i % (KEYS // 4):04}",
                "sensor": f"s{i // (KEYS // 4)}",
                "ts": instants.text(base + i * 1000),
                "value": round(20 + 5 * math.sin(number + i), 3),
            }
        ).encode()
        for i in range(BATCH)
    ]
    numbers = np.arange(number * BATCH, (number + 1) * BATCH)
    return EventBatch(
        Partition("bench", "0"), numbers, np.full(BATCH, base + 2 * instants.SECOND), bodies
    )


def ours(batches: list[EventBatch]) -> int:
    """Decode, validate, aggregate, merge; windows that are final leave the state."""
    decoder, table, done, watermark = ReadingDecoder(), WindowTable(), 0, 0
    for batch in batches:
        readings, _ = decoder.decode(batch)
        table.add(aggregate(readings, WINDOW))
        reached = max(watermark, int(readings.event_time.max()))
        if reached // WINDOW > watermark // WINDOW:
            done += len(table.take(last_final_start(reached - LATENESS, WINDOW)))
        watermark = reached
    return done + len(table)


def loop(batches: list[EventBatch]) -> int:
    """json.loads and a dict, with the same checks."""
    state: dict[tuple[str, str, int], list[Any]] = {}
    rejects = 0
    for batch in batches:
        for body, enqueued in zip(batch.bodies, batch.enqueued_times.tolist(), strict=True):
            try:
                event = json.loads(body)
                device, sensor, value = event["device"], event["sensor"], event["value"]
                moment = datetime.fromisoformat(event["ts"])
            except (ValueError, KeyError, TypeError):
                rejects += 1
                continue
            at = round(moment.timestamp() * 1e6)
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
                or not isinstance(device, (str, int))
                or not isinstance(sensor, (str, int))
                or at - enqueued > SKEW
            ):
                rejects += 1
                continue
            key = (str(device), str(sensor), at - at % WINDOW)
            state[key] = _fold(state.get(key), value, at)
    return len(state)


def _fold(old: list[Any] | None, value: float, at: int) -> list[Any]:
    """One reading into [count, mean, M2, min, max, last, last time] (Welford)."""
    if old is None:
        return [1, value, 0.0, value, value, value, at]
    count, mean, m2, low, high, last, last_time = old
    count += 1
    delta = value - mean
    mean += delta / count
    m2 += delta * (value - mean)
    if at >= last_time:
        last, last_time = value, at
    return [count, mean, m2, min(low, value), max(high, value), last, last_time]


def bytewax(batches: list[EventBatch]) -> int:
    """Tumbling windows of Bytewax; it is given msgspec's decoder, the quickest there is."""
    import bytewax.operators as op
    import bytewax.operators.windowing as win
    import msgspec
    from bytewax.dataflow import Dataflow
    from bytewax.testing import TestingSink, TestingSource, run_main

    class Reading(msgspec.Struct):
        device: str
        sensor: str
        ts: datetime
        value: float

    decode = msgspec.json.Decoder(Reading).decode

    def read(body: bytes) -> Reading | None:
        try:
            return decode(body)
        except msgspec.MsgspecError:
            return None

    def fold(state: list[Any] | None, reading: Reading) -> list[Any]:
        return _fold(state, reading.value, instants.of(reading.ts))

    def merged(left: list[Any] | None, right: list[Any] | None) -> list[Any] | None:
        return left or right

    out: list[Any] = []
    flow = Dataflow("bench")
    bodies = [body for batch in batches for body in batch.bodies]
    stream = op.input("in", flow, TestingSource(bodies, batch_size=BATCH))
    readings = op.filter_map("decode", stream, read)
    keyed = op.key_on("key", readings, lambda r: f"{r.device}/{r.sensor}")
    clock = win.EventClock(
        ts_getter=lambda r: r.ts, wait_for_system_duration=timedelta(microseconds=LATENESS)
    )
    windower = win.TumblingWindower(
        length=timedelta(microseconds=WINDOW), align_to=datetime(2026, 1, 1, tzinfo=UTC)
    )
    windows = win.fold_window("fold", keyed, clock, windower, lambda: None, fold, merged)
    op.output("out", windows.down, TestingSink(out))
    run_main(flow)
    return len(out)


def handler(batches: list[EventBatch]) -> int:
    """Run the ingest handler: ledger, rejects, raw segments, a durable SQLite commit a batch."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database.file(Path(folder) / "store.db")
        migrate(database)
        ingest = Ingest(
            SqlIngestStore(database),
            FolderBlobs(Path(folder)),
            ReadingDecoder(),
            Windowing(WINDOW, LATENESS, LATENESS),
        )
        begin = time.perf_counter()
        for batch in batches:
            ingest(batch)
        seconds = time.perf_counter() - begin
        database.close()
    handler_seconds.append(seconds)
    return len(batches)


handler_seconds: list[float] = []


def _timed(work: Callable[[list[EventBatch]], int], batches: list[EventBatch]) -> float:
    begin = time.perf_counter()
    work(batches)
    return time.perf_counter() - begin


def main() -> None:
    """Measure in turn, print rates and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    batches = [event_batch(number) for number in range(options.batches)]
    events = options.batches * BATCH
    works = {"ours": ours, "json.loads": loop}
    if find_spec("bytewax") is not None:
        works["Bytewax"] = bytewax
    best = dict.fromkeys(works, math.inf)
    for _ in range(options.rounds):
        for name, work in works.items():
            best[name] = min(best[name], _timed(work, batches))
    assert len({work(batches) for work in works.values()}) == 1, "they count other windows"
    print(f"event bytes to merged partials, {BATCH} events a batch, {KEYS} keys, 0.1 % rejects")
    for name, seconds in best.items():
        ratio = seconds / best["ours"]
        print(f"  {name:<12}{events / seconds:>12,.0f} events/s   ours is {ratio:.1f} x")
    if "Bytewax" not in works:
        print("  Bytewax     not measured: it is not installed, having no wheel for Python 3.13")
    for _ in range(options.rounds):
        handler(batches)
    seconds = min(handler_seconds)
    print(f"  {'handler':<12}{events / seconds:>12,.0f} events/s   with ledger, segments, SQLite")


if __name__ == "__main__":
    main()
