"""The function app under Microsoft's worker: indexing, and events a second through the trigger.

``python benchmarks/worker.py [EVENT_BATCHES]``; of 1,000 events each, into SQLite.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.worker.host import (
    SETTINGS,
    Answer,
    Call,
    Worker,
    event_batch,
    system_properties,
    version,
)

EVENTS = 1000
DEVICES = 200
INDEXINGS = 5


def indexing(settings: dict[str, str]) -> None:
    """Time the worker's indexing in fresh processes."""
    times = []
    for _ in range(INDEXINGS):
        with Worker(settings) as worker:
            times.append(worker.seconds)
    print(f"indexing: median {sorted(times)[INDEXINGS // 2]:.3f} s of {INDEXINGS}, at most 0.5 s")


def made(number: int, partition: str, zone: str = "") -> Call:
    """Make one event batch: one reading a device and second.

    Parameters
    ----------
    zone
        What enqueued times end with; the host leaves the Z out.
    """
    first = number * EVENTS
    bodies, system = [], []
    for event in range(first, first + EVENTS):
        second = event // DEVICES
        moment = f"2020-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        device = f"device-{event % DEVICES}"
        reading = {"device": device, "sensor": "s1", "ts": moment + "Z", "value": event / 7}
        bodies.append(json.dumps(reading).encode())
        system.append(system_properties(event, f"{moment}.123{zone}", device))
    return event_batch(bodies, system, partition)


def through(worker: Worker, batches: int, partition: str = "0", zone: str = "") -> None:
    """Time event batches one after the other, as the host sends those of one partition."""
    calls = [made(number, partition, zone) for number in range(batches)]
    answers: list[Answer] = [worker.invoke("ingest_readings", call) for call in calls]
    assert not any(answer.error for answer in answers)
    whole = sum(answer.seconds for answer in answers) / batches * 1000
    own = sum(answer.facts("ingest.batch")["milliseconds"] for answer in answers) / batches
    print(
        f"{EVENTS * batches:,} events: {EVENTS / whole * 1000:,.0f} events/s; {whole:.0f} ms an"
        f" event batch: our handler {own:.0f} ms, worker, azure-functions and our conversion"
        f" {whole - own:.0f} ms"
    )


def where(worker: Worker) -> None:
    """Show where the time of one event batch goes."""
    answer = worker.invoke("ingest_readings", made(0, "3"), profile=True)
    assert not answer.error
    print("where the time goes (cProfile, cumulative; slower than without):")
    print("\n".join(answer.result.splitlines()[6:]))


def main() -> None:
    batches = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    print(f"Python {sys.version.split()[0]}, azure-functions-runtime {version()}")
    with TemporaryDirectory() as folder:
        settings = SETTINGS | {"SCORING_DATA": folder}
        indexing(settings)
        with Worker(settings) as worker:
            first = worker.invoke("ingest_readings", made(0, "0"))
            print(f"first event batch, which loads and opens everything: {first.seconds:.2f} s")
            print("as the host has them, enqueued times without zone:")
            through(worker, batches, "1")
            print("were they with a Z, of which azure-functions tries fewer formats:")
            through(worker, batches, "2", "Z")
            where(worker)


if __name__ == "__main__":
    main()
