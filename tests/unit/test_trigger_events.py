"""What the Functions host hands over becomes an event batch, through azure-functions' decoding."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from azure.functions import EventHubEvent
from azure.functions.eventhub import EventHubTriggerConverter
from azure.functions.meta import Datum

from scoring import instants
from scoring.adapters.event_hub.trigger import trigger_batch
from scoring.errors import UnreadableSource
from scoring.readings import EventBatch, Partition, ReadingDecoder

HUB = "readings"
MOMENT = "2026-11-22T23:00:00"
MICROSECONDS = instants.of(datetime(2026, 11, 22, 23, tzinfo=UTC))


def properties(number: int, enqueued: str = MOMENT, **others: Any) -> dict[str, Any]:
    """Make an event's system properties as the host serialises them."""
    return {
        "SequenceNumber": number,
        "Offset": str(number * 40),
        "EnqueuedTimeUtc": enqueued,
        "PartitionKey": f"device-{number}",
    } | others


def context(partition: str = "3") -> Datum:
    value = {"PartitionId": partition, "EventHubName": HUB, "ConsumerGroup": "$Default"}
    return Datum(json.dumps(value), "json")


def many(bodies: list[bytes], system: list[dict[str, Any]], **changed: Datum) -> Any:
    """Decode what a trigger of cardinality many gets."""
    keys = [one["PartitionKey"] for one in system if one["PartitionKey"] is not None]
    metadata = {
        "PartitionContext": context(),
        "SystemPropertiesArray": Datum(json.dumps(system), "json"),
        "PropertiesArray": Datum(json.dumps([{} for _ in system]), "json"),
        # The host leaves nulls out, so that keys and events do not match.
        "PartitionKeyArray": Datum(json.dumps(keys), "json"),
    } | changed
    data = Datum(SimpleNamespace(bytes=bodies), "collection_bytes")
    return EventHubTriggerConverter.decode(data, trigger_metadata=metadata)


def one(body: bytes, system: dict[str, Any]) -> Any:
    """Decode what a trigger of cardinality one gets."""
    metadata = {
        "PartitionContext": context("0"),
        "SystemProperties": Datum(json.dumps(system), "json"),
        **{key: Datum(json.dumps(value), "json") for key, value in system.items()},
    }
    return EventHubTriggerConverter.decode(Datum(body, "bytes"), trigger_metadata=metadata)


def converted(bodies: list[bytes], system: list[dict[str, Any]]) -> EventBatch:
    return trigger_batch(many(bodies, system), HUB)


def test_events_keep_their_numbers_times_bodies_and_order() -> None:
    batch = converted([b"a", b"b", b"c"], [properties(number) for number in (41, 42, 43)])

    assert batch.partition == Partition(HUB, "3")
    assert batch.sequence_numbers.tolist() == [41, 42, 43]
    assert batch.enqueued_times.tolist() == [MICROSECONDS] * 3
    assert batch.bodies == [b"a", b"b", b"c"]
    assert batch.sequence_numbers.dtype == np.int64
    assert batch.enqueued_times.dtype == np.int64
    assert batch.connection_device_ids is None


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("2026-11-22T23:00:00", 0),
        ("2026-11-22T23:00:00.5", 500_000),
        ("2026-11-22T23:00:00.123", 123_000),
        ("2026-11-22T23:00:00.1234567", 123_456),
        ("2026-11-22T23:00:00Z", 0),
        ("2026-11-22T23:00:00.123Z", 123_000),
        ("2026-11-22T23:00:00.1234567Z", 123_456),
        ("2026-11-22T23:00:00.123+00:00", 123_000),
    ],
)
def test_enqueued_times_are_utc_with_or_without_zone_and_fraction(text: str, fraction: int) -> None:
    batch = converted([b"a", b"b"], [properties(1, text), properties(2)])

    assert batch.enqueued_times.tolist() == [MICROSECONDS + fraction, MICROSECONDS]


def test_events_without_partition_key_stay_with_their_own_numbers() -> None:
    system = [properties(7, PartitionKey=None), properties(8), properties(9, PartitionKey=None)]

    batch = converted([b"a", b"b", b"c"], system)

    assert list(zip(batch.sequence_numbers.tolist(), batch.bodies, strict=True)) == [
        (7, b"a"), (8, b"b"), (9, b"c"),
    ]  # fmt: skip


def test_bodies_that_are_empty_or_no_text_come_through_byte_by_byte() -> None:
    bodies = [b"", b"\xff\xfe\x00", b'{"device":"d\xe9"}', b"[1,2"]

    assert converted(bodies, [properties(number) for number in range(4)]).bodies == bodies


def test_iot_hub_names_the_sender_of_each_event_that_has_one() -> None:
    named = {"iothub-connection-device-id": "pump-7", "iothub-enqueuedtime": MOMENT}

    batch = converted([b"a", b"b"], [properties(1, **named), properties(2)])

    assert batch.connection_device_ids == ["pump-7", None]


def test_a_reading_without_device_gets_iot_hubs_name_of_the_sender() -> None:
    body = b'{"sensor":"temperature","ts":"2026-11-22T22:59:58Z","value":20.5}'
    batch = converted([body], [properties(1, **{"iothub-connection-device-id": "pump-7"})])

    readings, rejects = ReadingDecoder().decode(batch)

    assert (readings.device, rejects) == (["pump-7"], [])


def test_application_properties_do_not_matter() -> None:
    wrong = Datum(json.dumps([{"SequenceNumber": 99, "PartitionId": "9"}]), "json")

    batch = trigger_batch(many([b"a"], [properties(5)], PropertiesArray=wrong), HUB)

    assert (batch.partition.id, batch.sequence_numbers.tolist()) == ("3", [5])


def test_the_metadata_of_a_whole_batch_is_read_once() -> None:
    reads: list[int] = []

    class Counting(Datum):
        @property
        def python_value(self) -> Any:
            reads.append(1)
            return super().python_value

    counted = Counting(context().value, "json")
    trigger_batch(
        many([b"a"] * 50, [properties(n) for n in range(50)], PartitionContext=counted), HUB
    )

    assert len(reads) == 1


def test_a_batch_of_one_event_is_a_batch() -> None:
    assert converted([b"a"], [properties(0)]).sequence_numbers.tolist() == [0]


def test_one_event_of_a_trigger_of_cardinality_one_is_converted_alike() -> None:
    event = one(b"a", properties(12, "2026-11-22T23:00:00.25Z"))

    batch = trigger_batch([event], HUB)

    assert batch.partition == Partition(HUB, "0")
    assert batch.sequence_numbers.tolist() == [12]
    assert batch.enqueued_times.tolist() == [MICROSECONDS + 250_000]
    assert batch.bodies == [b"a"]


def test_one_event_of_iot_hub_names_its_sender() -> None:
    event = one(b"a", properties(12, **{"iothub-connection-device-id": "pump-7"}))

    assert trigger_batch([event], HUB).connection_device_ids == ["pump-7"]


@pytest.mark.parametrize("field", ["SequenceNumber", "EnqueuedTimeUtc"])
def test_events_that_cannot_be_placed_are_refused(field: str) -> None:
    system = [properties(1), properties(2) | {field: None}]

    with pytest.raises(UnreadableSource, match="readings/3"):
        converted([b"a", b"b"], system)


@pytest.mark.parametrize("told", [None, "{}", "null"])
def test_a_batch_of_an_unknown_partition_is_refused(told: str | None) -> None:
    events = many([b"a"], [properties(1)], PartitionContext=Datum(told, "json"))

    with pytest.raises(UnreadableSource, match="PartitionContext"):
        trigger_batch(events, HUB)


def test_an_event_that_no_trigger_made_is_refused() -> None:
    with pytest.raises(UnreadableSource, match="PartitionContext"):
        trigger_batch([EventHubEvent(body=b"a")], HUB)
