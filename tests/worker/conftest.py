"""The event hub of the function apps under test."""

from collections.abc import Iterator

import pytest

from tests.amqp.hub import Hub
from tests.amqp.server import AmqpServer
from tests.worker.host import HUB, SETTINGS

CREATED = 1_546_300_800_000
"""2019-01-01, epoch milliseconds: before all events that the tests deliver."""


@pytest.fixture(scope="session", autouse=True)
def event_hub() -> Iterator[None]:
    """Serve the hub that the settings name; it holds no event: the tests deliver them."""
    with AmqpServer(Hub(HUB, 32, lambda: CREATED)) as server:
        before, SETTINGS["EVENT_HUB"] = SETTINGS["EVENT_HUB"], server.connection_string
        yield
        SETTINGS["EVENT_HUB"] = before
