"""What azure-eventhub receives, as an event batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from azure.eventhub import EventData
from azure.eventhub.amqp import AmqpMessageBodyType

from scoring.errors import UnreadableSource
from scoring.readings import EventBatch, Partition

_NUMBER, _ENQUEUED = b"x-opt-sequence-number", b"x-opt-enqueued-time"
_DEVICE = b"iothub-connection-device-id"


def event_batch(events: Sequence[EventData], partition: Partition) -> EventBatch:
    """Convert events of one partition, in their order.

    Raises
    ------
    UnreadableSource
        An event without sequence number or enqueued time: no event hub sent it.
    """
    # Read at once: the properties of an event look it all up anew, and time as a datetime.
    found = [event.raw_amqp_message.annotations or {} for event in events]
    try:
        numbers = np.array([one[_NUMBER] for one in found], dtype=np.int64)
        milliseconds = np.array([one[_ENQUEUED] for one in found], dtype=np.int64)
    except KeyError as error:
        message = f"an event of {partition} without {error}"
        raise UnreadableSource(message) from error
    devices = [_text(one.get(_DEVICE)) for one in found]
    return EventBatch(
        partition,
        numbers,
        milliseconds * 1000,
        [_body(event) for event in events],
        devices if any(devices) else None,
    )


def _body(event: EventData) -> bytes:
    message = event.raw_amqp_message
    if message.body_type is AmqpMessageBodyType.DATA:
        return b"".join(message.body)
    if message.body is None:
        return b""
    # Some AMQP clients send a string or a list as value: a reading if it is JSON, else a reject.
    return event.body_as_str().encode()


def _text(name: Any) -> str | None:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
