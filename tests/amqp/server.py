"""The server: connections, sessions and links of AMQP 1.0, as far as azure-eventhub uses them.

Runs in a thread of a test, or as a process of its own: ``python -m tests.amqp.server --port N``.
It honours link credit but not session windows, for the SDK renews its own in time; and it grants
none for requests before the first one came, for the SDK does not wait for it.
"""

import argparse
import asyncio
import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.amqp import codec
from tests.amqp.codec import Described, Symbol, UByte, UInt, ULong, UShort
from tests.amqp.hub import DEFAULT_GROUP, Hub, Swallow

T = TypeVar("T")

HOST = "127.0.0.1"
STOLEN, NOT_FOUND, BUSY = "amqp:link:stolen", "amqp:not-found", "com.microsoft:server-busy"
OUT_OF_RANGE = "com.microsoft:argument-out-of-range"
TOO_LARGE, FORCED = "amqp:link:message-size-exceeded", "amqp:link:detach-forced"
_MAX_FRAME, _WINDOW, _CREDIT = 65_536, 2**31 - 1, 1_000
_RPC = ("$cbs", "$management")


@dataclass(slots=True)
class _Link:
    """A link, from the server's side; `credit` and `next` are those of its sender.

    Attributes
    ----------
    next
        Number of the event that a receiver gets next.
    """

    channel: int
    handle: int
    is_receiver: bool
    address: str
    hub: str = ""
    partition: str | None = None
    group: str = ""
    epoch: int | None = None
    credit: int = 0
    delivered: int = 0
    next: int = 0
    payload: bytearray = field(default_factory=bytearray)


class _Refused(Exception):
    """A link that cannot be; carries the error's condition and its description."""


@dataclass(slots=True)
class Faults:
    """What the server does wrong on purpose.

    Attributes
    ----------
    reject_sends
        How many of the next sends are refused with `reject_with`.
    lose_sends
        How many of the next sends are kept, but the connection breaks before the answer.
    refuse_links
        Condition that every new link to a hub is refused with.
    """

    deny_tokens: bool = False
    reject_sends: int = 0
    reject_with: str = BUSY
    lose_sends: int = 0
    refuse_links: str = ""


class _Connection:
    """One client: reads its frames and answers them, in the order they come."""

    def __init__(
        self, server: "AmqpServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.links: dict[tuple[int, int], _Link] = {}
        self.deliveries: dict[int, int] = {}
        self.max_frame = _MAX_FRAME

    async def serve(self) -> None:
        """Handle frames until the client leaves."""
        if await self.reader.readexactly(8) == codec.SASL_HEADER:
            mechanisms = [Symbol("MSSBCBS"), Symbol("ANONYMOUS")]
            self.writer.write(codec.SASL_HEADER)
            self.send(0, codec.SASL_MECHANISMS, [mechanisms])
            await self._read_frame()
            self.send(0, codec.SASL_OUTCOME, [UByte(0), None])
            await self.reader.readexactly(8)
        self.writer.write(codec.PROTOCOL_HEADER)
        while True:
            channel, body = await self._read_frame()
            if not body:
                continue
            (descriptor, fields), end = codec.decode(body)
            if descriptor == codec.CLOSE:
                return self.send(0, codec.CLOSE, [None])
            self._handle(channel, descriptor, fields, body[end:])
            self.server.note_change()

    async def _read_frame(self) -> tuple[int, bytes]:
        head = await self.reader.readexactly(8)
        size, offset = int.from_bytes(head[:4], "big"), head[4] * 4
        body = await self.reader.readexactly(size - 8)
        return int.from_bytes(head[6:], "big"), body[offset - 8 :]

    def send(self, channel: int, descriptor: int, fields: list[Any]) -> None:
        """Send a performative; all of its fields must be given, for the SDK counts on it."""
        self.writer.write(codec.frame(channel, descriptor, fields))

    def _handle(self, channel: int, descriptor: int, fields: list[Any], payload: bytes) -> None:
        match descriptor:
            case codec.OPEN:
                self._open(fields)
            case codec.BEGIN:
                self._begin(channel)
            case codec.ATTACH:
                self._attach(channel, fields)
            case codec.FLOW:
                self._flow(channel, fields)
            case codec.TRANSFER:
                self._transfer(channel, fields, payload)
            case codec.DETACH:
                if self.links.pop((channel, int(fields[0])), None):
                    self.send(channel, codec.DETACH, [fields[0], True, None])
            case codec.END:
                for key in [key for key in self.links if key[0] == channel]:
                    del self.links[key]
                self.send(channel, codec.END, [None])

    def _open(self, fields: list[Any]) -> None:
        self.max_frame = int(fields[2] or _MAX_FRAME) if len(fields) > 2 else _MAX_FRAME
        own: list[Any] = [UInt(_MAX_FRAME), UShort(65_535), None, None, None, None, None, {}]
        self.send(0, codec.OPEN, ["event-hub", HOST, *own])

    def _begin(self, channel: int) -> None:
        self.deliveries[channel] = 0
        window = UInt(_WINDOW)
        own: list[Any] = [UShort(channel), UInt(0), window, window, UInt(65_535), None, None, {}]
        self.send(channel, codec.BEGIN, own)

    def _attach(self, channel: int, fields: list[Any]) -> None:
        name, handle, is_receiver = fields[0], int(fields[1]), bool(fields[2])
        terminus = fields[5] if is_receiver else fields[6]
        address = str(terminus.value[0])
        link = _Link(channel, handle, is_receiver, address)
        properties = (fields[13] if len(fields) > 13 else None) or {}
        try:
            self._place(link, terminus.value, properties)
        except _Refused as refused:
            self._answer_attach(link, name)
            return self.detach(link, *refused.args)
        self.links[channel, handle] = link
        self._answer_attach(link, name)
        if not is_receiver and address not in _RPC:
            self._grant(link)

    def _place(self, link: _Link, terminus: list[Any], properties: dict[str, Any]) -> None:
        """Find what a link's address means, and whether the link can be had.

        Raises
        ------
        _Refused
            No such hub or partition, or a receiver of a higher epoch is there.
        """
        if link.address in _RPC:
            return
        if self.server.faults.refuse_links:
            raise _Refused(self.server.faults.refuse_links, "refused on purpose")
        path = link.address.partition("://")[2].split("/")[1:]
        named = dict(zip(path[1::2], path[2::2], strict=False))
        link.hub, link.partition = path[0], named.get("Partitions")
        link.group = named.get("ConsumerGroups", "")
        hub = self.server.hubs.get(link.hub)
        if hub is None or (link.partition is not None and link.partition not in hub.partitions):
            raise _Refused(NOT_FOUND, f"The messaging entity '{link.address}' could not be found.")
        if link.is_receiver and link.partition is not None:
            epoch = properties.get("com.microsoft:epoch")
            link.epoch = None if epoch is None else int(epoch)
            self._claim(link)
            filters = (terminus[7] if len(terminus) > 7 else None) or {}
            selector = next((one.value for one in filters.values()), None)
            try:
                link.next = hub.position(link.partition, selector)
            except ValueError as error:
                raise _Refused(OUT_OF_RANGE, str(error)) from error

    def _claim(self, link: _Link) -> None:
        """Take a partition over from receivers of a lower epoch, or be refused by a higher one."""
        rivals = [
            (connection, one)
            for connection, one in self.server.receivers(link.hub, str(link.partition))
            if one.group == link.group
        ]
        highest = max((one.epoch for _, one in rivals if one.epoch is not None), default=None)
        if link.epoch is None and highest is not None:
            text = f"At least one receiver for the endpoint is created with epoch of '{highest}'"
            raise _Refused(STOLEN, f"{text}, and so non-epoch receiver is not allowed.")
        if link.epoch is not None and highest is not None and highest > link.epoch:
            raise _Refused(
                STOLEN, f"Receiver 'nil' with a higher epoch '{highest}' already exists."
            )
        if link.epoch is not None:
            for connection, one in rivals:
                text = f"New receiver 'nil' with higher epoch of '{link.epoch}' is created"
                connection.detach(one, STOLEN, text)

    def _answer_attach(self, link: _Link, name: str) -> None:
        node = [link.address, UInt(0), Symbol("session-end"), UInt(0), False, None]
        source = Described(codec.SOURCE, [*node, None, {}, None, None, None])
        target = Described(codec.TARGET, [*node, None])
        settling = [UByte(2), UByte(0)]
        size = ULong(self.server.max_message_size)
        fields = [name, UInt(link.handle), not link.is_receiver, *settling, source, target]
        fields += [{}, False, UInt(0), size, None, None, {}]
        self.send(link.channel, codec.ATTACH, fields)

    def detach(self, link: _Link, condition: str, text: str) -> None:
        """End a link with an error."""
        self.links.pop((link.channel, link.handle), None)
        error = Described(codec.ERROR, [Symbol(condition), text, {}])
        self.send(link.channel, codec.DETACH, [UInt(link.handle), True, error])

    def _grant(self, link: _Link) -> None:
        """Let a sender send more."""
        link.credit = _CREDIT
        window, zero = UInt(_WINDOW), UInt(0)
        counts = [UInt(link.handle), UInt(link.delivered), UInt(link.credit), None]
        self.send(link.channel, codec.FLOW, [zero, window, zero, window, *counts, False, False, {}])

    def _flow(self, channel: int, fields: list[Any]) -> None:
        link = self.links.get((channel, int(fields[4]))) if fields[4] is not None else None
        if link and link.is_receiver and fields[6] is not None:
            # Credit counts from what the receiver had seen when it gave it.
            link.credit = int(fields[5] or 0) + int(fields[6]) - link.delivered
            self.pump(link)

    def _transfer(self, channel: int, fields: list[Any], payload: bytes) -> None:
        link = self.links.get((channel, int(fields[0])))
        if link is None:
            return
        link.payload += payload
        if fields[5]:
            return
        whole, link.payload = bytes(link.payload), bytearray()
        link.delivered, link.credit = link.delivered + 1, link.credit - 1
        if link.address in _RPC:
            # The SDK sleeps after each frame: what it waits for comes first.
            self._answer(link, codec.decode_message(whole))
            self._settle(channel, fields[1], None)
        else:
            self._take(link, fields, whole)
        if link.credit <= _CREDIT // 2:
            self._grant(link)

    def _settle(self, channel: int, delivery: int, error: tuple[str, str] | None) -> None:
        state = Described(codec.ACCEPTED, [])
        if error:
            state = Described(
                codec.REJECTED, [Described(codec.ERROR, [Symbol(error[0]), error[1], {}])]
            )
        ends = [UInt(delivery), UInt(delivery)]
        self.send(channel, codec.DISPOSITION, [True, *ends, True, state, False])

    def _take(self, link: _Link, fields: list[Any], payload: bytes) -> None:
        """Keep the events of a transfer, or refuse them."""
        faults = self.server.faults
        if len(payload) > self.server.max_message_size:
            return self._settle(link.channel, fields[1], (TOO_LARGE, "the message is too large"))
        if faults.reject_sends:
            faults.reject_sends -= 1
            return self._settle(link.channel, fields[1], (faults.reject_with, "on purpose"))
        is_batch = int(fields[3] or 0) == codec.BATCH_FORMAT
        self.server.keep(link.hub, link.partition, payload, is_batch=is_batch)
        if faults.lose_sends:
            faults.lose_sends -= 1
            return self.writer.transport.abort()
        return self._settle(link.channel, fields[1], None)

    def _answer(self, link: _Link, request: codec.Message) -> None:
        """Answer a request to ``$cbs`` or ``$management`` on the link beside it."""
        back = next(
            one
            for one in self.links.values()
            if one.is_receiver and (one.channel, one.address) == (link.channel, link.address)
        )
        status, text, value = self.server.answer(link.address, request.application_properties)
        properties = [None] * 5 + [request.properties[0]] + [None] * 7
        answers = {"status-code": status, "status-description": text}
        payload = codec.encode(Described(codec.PROPERTIES, properties))
        payload += codec.encode(Described(codec.APPLICATION_PROPERTIES, answers))
        payload += codec.encode(Described(codec.VALUE, value))
        self._deliver(back, payload)

    def _deliver(self, link: _Link, payload: bytes) -> None:
        delivery = self.deliveries[link.channel]
        self.deliveries[link.channel] += 1
        link.delivered, link.credit = link.delivered + 1, link.credit - 1
        self.writer.writelines(
            codec.transfers(link.channel, link.handle, delivery, payload, self.max_frame)
        )

    def pump(self, link: _Link) -> None:
        """Send a receiver what there is for it, as far as its credit goes."""
        hub = self.server.hubs.get(link.hub)
        if hub is None or link.partition is None or self.writer.is_closing():
            return
        for event in hub.partitions[link.partition].since(link.next):
            if link.credit <= 0:
                return
            if not hub.is_swallowed(link.group, link.partition, event.number):
                self._deliver(link, event.payload)
            link.next = event.number + 1


class AmqpServer:
    """Event hubs on loopback; what they hold outlives `stop`, as it does a broker's outage.

    Its methods may be called from any thread.

    Parameters
    ----------
    hubs
        By their names.
    port
        0 takes a free one, and keeps it.
    max_message_size
        Bytes of a send at most.
    """

    def __init__(self, *hubs: Hub, port: int = 0, max_message_size: int = 1024 * 1024) -> None:
        self.hubs = {hub.name: hub for hub in hubs}
        self.faults = Faults()
        self.max_message_size = max_message_size
        self.port = port
        self._connections: set[_Connection] = set()
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._listener: asyncio.Server | None = None

    @property
    def connection_string(self) -> str:
        """What clients connect with."""
        key = "SharedAccessKeyName=tests;SharedAccessKey=c2VjcmV0"
        return f"Endpoint=sb://{HOST}:{self.port};{key};UseDevelopmentEmulator=true"

    def start(self) -> None:
        """Listen."""
        listener = socket.create_server((HOST, self.port))
        self.port = listener.getsockname()[1]
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, sock=listener), self._loop
        ).result()

    def stop(self) -> None:
        """Listen no more, and cut all connections."""
        if self._listener:
            self.call(self._listener.close)
            self._listener = None
        self.disconnect()

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self.wait_until(lambda: not self._connections)
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread:
            self._thread.join()
        self._loop.close()

    def __enter__(self) -> "AmqpServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        self._connections.add(connection)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await connection.serve()
        self._connections.discard(connection)
        writer.close()
        self.note_change()

    def call(self, do: Callable[[], T]) -> T:
        """Do something in the server's thread; gives its result."""

        async def run() -> T:
            return do()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def note_change(self) -> None:
        """Wake those who wait for something."""
        with self._changed:
            self._changed.notify_all()

    def wait_until(self, holds: Callable[[], bool], timeout: float = 20) -> None:
        """Wait until a condition about the server holds; fails after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(holds, timeout):
                message = "the server never came into the state that was waited for"
                raise AssertionError(message)

    def receivers(self, hub: str, partition: str) -> list[tuple[_Connection, _Link]]:
        """Give the links that read a partition."""
        return [
            (connection, link)
            for connection in list(self._connections)
            for link in list(connection.links.values())
            if link.is_receiver and (link.hub, link.partition) == (hub, partition)
        ]

    def pump(self, hub: str, partition: str) -> None:
        """Send a partition's receivers what is new."""
        for connection, link in self.receivers(hub, partition):
            connection.pump(link)

    def keep(self, hub: str, partition: str | None, payload: bytes, *, is_batch: bool) -> None:
        """Keep what a sender sent: one event, or many of one partition."""
        outer = codec.decode_message(payload)
        inner = [codec.decode_message(one) for one in outer.data] if is_batch else [outer]
        place = partition
        for message in inner:
            for key, value in outer.annotations.items():
                message.annotations.setdefault(key, value)
            place = self.hubs[hub].receive(message, place)
        if place is not None:
            self.pump(hub, place)

    def answer(self, address: str, asked: dict[str, Any]) -> tuple[int, str, Any]:
        """Answer a request: status, description and value."""
        if address == "$cbs":
            return (401, "InvalidSignature", None) if self.faults.deny_tokens else (202, "OK", None)
        hub = self.hubs.get(asked["name"])
        if hub is None:
            return 404, f"The messaging entity '{asked['name']}' could not be found.", None
        if asked["type"] == "com.microsoft:eventhub":
            return 200, "OK", hub.properties()
        if asked["partition"] not in hub.partitions:
            return 404, f"The partition '{asked['partition']}' could not be found.", None
        return 200, "OK", hub.partition_properties(asked["partition"])

    def append(
        self, hub: str, partition: str, bodies: list[bytes], annotations: dict[str, Any]
    ) -> None:
        """Let a hub take events that nobody sent, with annotations such as IoT Hub's."""

        def take() -> None:
            for body in bodies:
                self.hubs[hub].append(partition, body, annotations)
            self.pump(hub, partition)

        self.call(take)

    def drop_before(self, hub: str, partition: str, number: int) -> None:
        """Let the retention of a partition drop the events below a sequence number."""
        self.call(lambda: self.hubs[hub].partitions[partition].drop_before(number))

    def swallow(self, hub: str, swallowed: Swallow) -> None:
        """Never give some events to the receivers of one consumer group."""
        self.call(lambda: self.hubs[hub].swallowed.append(swallowed))

    def recreate(self, hub: str) -> None:
        """Delete a hub and make it again: it is empty, and its numbers begin at 0."""

        def replace() -> None:
            old = self.hubs[hub]
            self.hubs[hub] = Hub(hub, len(old.partitions), old.clock)
            for connection in self._connections:
                for link in [one for one in connection.links.values() if one.hub == hub]:
                    connection.detach(link, FORCED, "the hub was deleted")

        self.call(replace)

    def disconnect(self) -> None:
        """Cut all connections, as a network does that fails."""

        def cut() -> None:
            for connection in self._connections:
                connection.writer.transport.abort()

        self.call(cut)

    def control(self, line: str) -> object:
        """Do what a line of JSON asks for, such as ``{"do": "disconnect"}``."""
        asked = json.loads(line)
        do, hub = asked.pop("do"), asked.pop("hub", "")
        match do:
            case "swallow":
                self.swallow(hub, Swallow(**asked))
            case "drop_before":
                self.drop_before(hub, **asked)
            case "recreate":
                self.recreate(hub)
            case "disconnect":
                self.disconnect()
            case "ends":
                return {key: one.end for key, one in self.hubs[hub].partitions.items()}
            case _:
                message = f"unknown: {do}"
                raise ValueError(message)
        return None


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM end the process as Ctrl-C does, but without a word."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with suppress(KeyboardInterrupt):
        yield


def main() -> None:
    """Serve until SIGTERM; prints the port, then answers lines of JSON on standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--hub", action="append", help=f"name; groups such as {DEFAULT_GROUP}: any")
    parser.add_argument("--partitions", type=int, default=4)
    options = parser.parse_args()
    hubs = [Hub(name, options.partitions) for name in options.hub or ["readings"]]
    with AmqpServer(*hubs, port=options.port) as server, _terminable():
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        for line in sys.stdin:
            sys.stdout.write(json.dumps(server.control(line)) + "\n")
            sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main()
