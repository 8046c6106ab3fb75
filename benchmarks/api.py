"""How quickly the API answers from a store with a million windows and 100,000 anomalies.

There are another 100,000 devices with 500,000 sensors of which the counts alone are kept, as if a
fleet's windows were scored. Every list is asked for its first page, for its largest one, for pages
far into it, and with its filters; in process, over ASGI, one request at a time. ``/api/health``
looks at nothing: its time is what FastAPI costs. SQLite first, then a PostgreSQL server that is
started here, if it is installed.

    python benchmarks/api.py [--windows 1000000] [--database-url postgresql://...]
"""

import argparse
import asyncio
import tempfile
from collections.abc import Iterator
from itertools import islice
from time import perf_counter
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
from sqlalchemy import Table, insert, text

from scoring import instants
from scoring.adapters.sql import schema
from scoring.adapters.sql.database import Database
from scoring.api import create_api
from scoring.bootstrap import App
from scoring.settings import Settings
from tests.servers import postgresql
from tests.services import postgresql_programs

MINUTE = 60 * instants.SECOND
BEGIN = 1_767_571_200 * instants.SECOND
SENSORS = 4
PER_SENSOR = 250
PER_RUN = 25
CHUNK = 10_000
SHARE = 0.1
PARTS = 20
LARGE = 1_200
"""Rows of the lists that the windows alone leave short: more than the largest page."""
COUNTED, COUNTED_SENSORS = 100_000, 5
"""Devices, and the sensors of each, that have counts and no windows."""
WIDE, LONG = "device-wide", "device-with-a-past"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, default=300, help="a kind of request")
    parser.add_argument("--database-url", help="of an empty database, to measure only this one")
    options = parser.parse_args()
    if options.database_url:
        bench(options.database_url, options.windows, options.requests)
        return
    print("SQLite")
    bench("", options.windows, options.requests)
    if postgresql_programs() is None:
        print("PostgreSQL is skipped: no initdb on the PATH nor below /usr/lib/postgresql")
        return
    print("PostgreSQL")
    with postgresql() as server:
        bench(server.url(), options.windows, options.requests)


def bench(url: str, windows: int, requests: int) -> None:
    """Fill a database and measure; without a URL a SQLite file."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"SCORING_DATA": folder, "SCORING_WINDOW": "1min", "SCORING_DATABASE": url}
        with App(Settings.load(given)) as app:
            begin = perf_counter()
            devices = max(1, windows // (SENSORS * PER_SENSOR))
            anomalies = fill(app.database, devices)
            print(
                f"{devices * SENSORS * PER_SENSOR:,} windows of {devices:,} devices,"
                f" {anomalies:,} anomalies; filled in {perf_counter() - begin:.0f} s"
            )
            asyncio.run(measure(app, devices, requests))


def fill(database: Database, devices: int) -> int:
    """Fill the tables as ingest and index would leave them."""
    random = np.random.default_rng(1)
    labels = random.random((devices, SENSORS, PER_SENSOR)) < SHARE
    runs = PER_SENSOR // PER_RUN
    insert_all(database, schema.runs, map(run_row, range(1, runs + LARGE + 1)))
    per_run = devices * SENSORS * PER_RUN // PARTS
    insert_all(
        database,
        schema.run_parts,
        (
            {"run_number": n + 1, "part": p, "rows": per_run, "etag": "t",
             "indexed_rows": per_run, "scored": per_run, "anomalies": 1}
            for n in range(runs + LARGE) for p in range(PARTS)
        ),
    )  # fmt: skip
    insert_all(database, schema.window_partials, windows(devices))
    insert_all(database, schema.predictions, predictions(labels))
    fill_counts(database, {name(d): labels[d].sum(axis=1) for d in range(devices)})
    others = random.binomial(PER_SENSOR, SHARE, (COUNTED, COUNTED_SENSORS))
    fill_counts(database, {f"counted-{d:06}": some for d, some in enumerate(others)})
    insert_all(database, schema.rejects, rejects())
    insert_all(database, schema.window_partials, uncommon_windows())
    insert_all(database, schema.partitions, map(partition_row, range(LARGE)))
    insert_all(
        database,
        schema.epochs,
        ({"partition": f"hub/{number}", "epoch": 0, "first_sequence": 0, "high_water": 10**6,
          "first_enqueued": BEGIN, "last_enqueued": BEGIN} for number in range(LARGE)),
    )  # fmt: skip
    insert_all(
        database,
        schema.gaps,
        ({"partition": f"hub/{number}", "epoch": 0, "first_sequence": 100 * gap,
          "last_sequence": 100 * gap + 9, "state": ("open", "repaired", "lost")[gap % 3]}
         for number in range(0, LARGE, 4) for gap in range(12)),
    )  # fmt: skip
    analyse(database)
    return int(labels.sum())


def fill_counts(database: Database, anomalies: dict[str, np.ndarray]) -> None:
    """Fill the counts of devices, given the anomalies of each of their sensors."""
    insert_all(
        database,
        schema.sensor_counts,
        (
            {"device": device, "sensor": f"s{s}", "scored": PER_SENSOR, "not_scored": 0,
             "anomalies": int(number)}
            for device, numbers in anomalies.items() for s, number in enumerate(numbers)
        ),
    )  # fmt: skip
    insert_all(
        database,
        schema.device_counts,
        (
            {"device": device, "scored": PER_SENSOR * len(numbers), "not_scored": 0,
             "anomalies": int(numbers.sum())}
            for device, numbers in anomalies.items()
        ),
    )  # fmt: skip


def analyse(database: Database) -> None:
    """Do what autovacuum does in its time."""
    with database.engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text("VACUUM ANALYZE"))


def name(device: int) -> str:
    return f"device-{device:06}"


def run_row(number: int) -> dict[str, Any]:
    return {
        "number": number, "run_id": run_id(number), "state": "completed", "trigger": "timer",
        "fleet_version": "f1", "last_start": BEGIN, "created_at": BEGIN, "ended_at": BEGIN,
        "export": "e", "cause": "", "devices": "[]", "rescore": False,
    }  # fmt: skip


def run_id(number: int) -> str:
    return f"r20260105T000000Z-{number:06x}"


def partition_row(number: int) -> dict[str, Any]:
    return {
        "partition": f"hub/{number}", "watermark": BEGIN, "last_enqueued": BEGIN, "ended": False,
        "events": 10**6, "readings": 10**6, "rejects": 3125, "late": 0,
    }  # fmt: skip


def windows(devices: int) -> Iterator[dict[str, Any]]:
    for device in range(devices):
        for sensor in range(SENSORS):
            for start in range(PER_SENSOR):
                yield window(name(device), f"s{sensor}", start, device % 32)


def uncommon_windows() -> Iterator[dict[str, Any]]:
    """Give one device many sensors, and one sensor a long past."""
    for number in range(LARGE):
        yield window(WIDE, f"s{number:06}", 0, 0)
        yield window(LONG, "s0", -number, 0)


def window(device: str, sensor: str, start: int, partition: int) -> dict[str, Any]:
    return {
        "device": device, "sensor": sensor, "window_start": BEGIN + start * MINUTE,
        "partition": f"hub/{partition}", "count": 12, "mean": 1.5, "m2": 0.5, "min": 1.0,
        "max": 2.0, "last": 1.25, "last_time": BEGIN, "claimed_by": 1 + max(start, 0) // PER_RUN,
    }  # fmt: skip


def predictions(labels: np.ndarray) -> Iterator[dict[str, Any]]:
    for (device, sensor, start), label in np.ndenumerate(labels):
        yield {
            "device": name(device), "sensor": f"s{sensor}",
            "window_start": BEGIN + start * MINUTE, "run_number": 1 + start // PER_RUN,
            "part": device % 20, "anomaly_score": 0.5 if label else -0.5,
            "is_anomaly": bool(label), "status": "scored", "reason": None,
        }  # fmt: skip


def rejects() -> Iterator[dict[str, Any]]:
    for number in range(100_000):
        yield {
            "partition": f"hub/{number % 32}", "epoch": 0, "sequence_number": number,
            "position": 0, "enqueued_time": BEGIN, "replayed": False, "connection_device_id": None,
            "reason": ("not_json", "bad_value", "bad_time")[number % 3], "detail": "it is not",
            "body": b'{"device":"d1"',
        }  # fmt: skip


def insert_all(database: Database, table: Table, rows: Any) -> None:
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        with database.write() as connection:
            connection.execute(insert(table), chunk)


async def measure(app: App, devices: int, requests: int) -> None:
    """Ask for everything in turn, so that what disturbs disturbs all alike."""
    random = np.random.default_rng(2)
    transport = httpx.ASGITransport(create_api(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        kinds = {
            what: [f"/api{path}" for path in paths]
            for what, paths in (asked(random, devices) | largest()).items()
        }
        for what in ("anomalies", "devices", "devices?order=anomalies", "rejects"):
            kinds[f"{what}, deep"] = await deep(client, f"/api/{what}")
        times: dict[str, list[float]] = {what: [] for what in kinds}
        for turn in range(requests + 5):
            for what, paths in kinds.items():
                begin = perf_counter()
                response = await client.get(paths[turn % len(paths)])
                if turn >= 5:
                    times[what].append((perf_counter() - begin) * 1000)
                assert response.status_code == 200, response.text
    reference = float(np.median(times["health"]))
    print(f"{'':38}{'p50 ms':>9}{'p99 ms':>9}{'x health':>9}")
    for what, measured in times.items():
        p50, p99 = np.percentile(measured, [50, 99])
        print(f"{what:38}{p50:9.2f}{p99:9.2f}{p50 / reference:9.1f}")


def asked(random: np.random.Generator, devices: int) -> dict[str, list[str]]:
    some = [name(int(device)) for device in random.integers(0, devices, 50)]
    sensors = [f"s{n}" for n in range(SENSORS)]
    runs = [run_id(n + 1) for n in range(PER_SENSOR // PER_RUN)]
    span = urlencode({"since": instants.text(BEGIN + 100 * MINUTE),
                      "until": instants.text(BEGIN + 110 * MINUTE)})  # fmt: skip
    return {
        "health": ["/health"],
        "runs": ["/runs"],
        "run": [f"/runs/{one}" for one in runs],
        "sensors of a run": [f"/runs/{one}/sensors" for one in runs],
        "anomalies": ["/anomalies"],
        "anomalies of a device": [f"/anomalies?device={one}" for one in some],
        "anomalies of a device's sensor": [f"/anomalies?device={one}&sensor=s1" for one in some],
        "anomalies of a sensor": [f"/anomalies?sensor={one}" for one in sensors],
        "anomalies of a run": [f"/anomalies?run={one}" for one in runs],
        "anomalies of a span": [f"/anomalies?{span}"],
        "anomalies of a run and device": [
            f"/anomalies?run={runs[n % len(runs)]}&device={one}" for n, one in enumerate(some)
        ],
        "devices": ["/devices"],
        "devices?order=anomalies": ["/devices?order=anomalies"],
        "sensors of a device": [f"/devices/{one}/sensors" for one in some],
        "windows of a sensor": [f"/devices/{one}/sensors/s2/windows" for one in some],
        "windows of a span": [f"/devices/{one}/sensors/s2/windows?{span}" for one in some],
        "rejects": ["/rejects"],
        "rejects of a reason": ["/rejects?reason=bad_time"],
        "partitions": ["/partitions"],
    }


def largest() -> dict[str, list[str]]:
    """Give the largest page of each list that has as many rows."""
    span = urlencode({"until": instants.text(BEGIN + 110 * MINUTE)})
    paths = {
        "runs": "/runs",
        "sensors of a run": f"/runs/{run_id(3)}/sensors",
        "anomalies": "/anomalies",
        "anomalies of a sensor": "/anomalies?sensor=s1",
        "anomalies of a run": f"/anomalies?run={run_id(3)}",
        "anomalies of a span": f"/anomalies?{span}",
        "devices": "/devices",
        "devices?order=anomalies": "/devices?order=anomalies",
        "sensors of a device": f"/devices/{WIDE}/sensors",
        "windows of a sensor": f"/devices/{LONG}/sensors/s0/windows",
        "rejects": "/rejects",
        "rejects of a reason": "/rejects?reason=bad_time",
        "partitions": "/partitions",
    }
    return {
        f"{what}, 1000 rows": [f"{path}{'&' if '?' in path else '?'}limit=1000"]
        for what, path in paths.items()
    }


async def deep(client: httpx.AsyncClient, path: str) -> list[str]:
    """Give the address of a page far into a list."""
    sign = "&" if "?" in path else "?"
    found = path
    for _ in range(60):
        more = f"{sign}cursor={found.partition('cursor=')[2]}" if "cursor=" in found else ""
        answer = (await client.get(f"{path}{more or ''}{'&' if more else sign}limit=150")).json()
        if answer["next_cursor"] is None:
            break
        found = f"{path}{sign}cursor={answer['next_cursor']}"
    return [found]


if __name__ == "__main__":
    main()
