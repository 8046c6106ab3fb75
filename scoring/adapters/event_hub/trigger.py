"""What the Functions host hands to an Event Hubs trigger, as an event batch."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from scoring import instants
from scoring.errors import UnreadableSource
from scoring.readings import EventBatch, Partition

if TYPE_CHECKING:
    from azure.functions import EventHubEvent

_DEVICE = "connection-device-id"
"""IoT Hub's name of the sender, as azure-functions calls it: without ``iothub-``."""


def trigger_batch(events: "Sequence[EventHubEvent]", hub: str) -> EventBatch:
    """Convert the events of one trigger call, of cardinality many, or one event in a list.

    Parameters
    ----------
    events
        At least one; all of one partition, for the host never mixes them.
    hub
        The event hub's name, as everywhere else in this system.

    Raises
    ------
    UnreadableSource
        The host told no partition, sequence number or enqueued time: the trigger is set up wrong.
    """
    # Each event's `metadata` parses all of the batch's again: it is read once, of one of them.
    partition = Partition(hub, _partition_id(events[0].metadata or {}))
    # These were decoded from SystemPropertiesArray when the list was made: reading them is cheap.
    numbers, times = [e.sequence_number for e in events], [e.enqueued_time for e in events]
    if None in numbers or None in times:
        message = f"events of {partition} without sequence number or enqueued time"
        raise UnreadableSource(message)
    devices = [e.iothub_metadata.get(_DEVICE) if e.iothub_metadata else None for e in events]
    return EventBatch(
        partition,
        np.array(numbers, dtype=np.int64),
        np.array([_instant(time) for time in times if time], dtype=np.int64),
        [e.get_body() or b"" for e in events],
        devices if any(devices) else None,
    )


def _partition_id(metadata: Any) -> str:
    try:
        return str(metadata["PartitionContext"]["PartitionId"])
    except (KeyError, TypeError) as error:
        message = "the Functions host told no PartitionContext with a PartitionId"
        raise UnreadableSource(message) from error


def _instant(time: datetime) -> int:
    """Read an enqueued time, which is UTC also where it has no zone: the host leaves the Z out."""
    return instants.of(time if time.tzinfo else time.replace(tzinfo=UTC))
