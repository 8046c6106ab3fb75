"""What tests change of azure-eventhub: how long it sleeps."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from azure.eventhub import _client_base
from azure.eventhub._pyamqp import _connection, client, session


@contextmanager
def hurried() -> Iterator[None]:
    """Have the SDK look at its sockets fifty times as often.

    It sleeps a tenth of a second between two looks for an answer, and awaits several for each
    connection: four fifths of the time of a test that opens a few.
    """
    often = mock.Mock(wraps=time, sleep=lambda seconds: time.sleep(seconds / 50))
    with ExitStack() as patches:
        for module in (_client_base, _connection, client, session):
            patches.enter_context(mock.patch.object(module, "time", often))
        yield
