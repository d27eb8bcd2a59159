"""Many clients in one process: `python -m tests.load.crowd '{...}'`, told and asked line by line over stdin and stdout.

Each keeps one WebSocket, as cheaply as Python can, since the driver shares the machine with what it measures; it
acknowledges its feed, answers pings, and comes back by itself after a break, as the SDK does: with full jitter below
a ceiling that doubles.
"""

import asyncio
import base64
import os
import ssl
import sys
from collections import Counter
from typing import Any

import msgspec

from node import api, coding
from node.client.sync import FIRST_RETRY_S, RETRY_S_MAX, full_jitter

BINARY, CLOSE, PING, PONG = 0x82, 8, 9, 0x8A
CONNECT_S = 30.0
ADDRESSES = 100  # that they come from: a node bounds what one address may begin


class Orders(msgspec.Struct, frozen=True):
    """Who is in the crowd: devices with the tokens `token-FIRST` and so on."""

    port: int
    first: int
    count: int
    parallel: int  # connections begun at once, when they first come
    tls: bool = False
    flood: str = ""  # an address: each sends there without end, 256 unanswered at a time, whatever it is told
    hurry: float = 1.0  # times what the SDK waits before it comes back


def frame(head: int, payload: bytes) -> bytes:
    """A client's frame; the mask is zero, which is a mask too and costs nothing."""
    size = len(payload)
    if size < 126:
        return bytes((head, 0x80 | size)) + bytes(4) + payload
    if size < 1 << 16:
        return bytes((head, 0x80 | 126)) + size.to_bytes(2, "big") + bytes(4) + payload
    return bytes((head, 0x80 | 127)) + size.to_bytes(8, "big") + bytes(4) + payload


class Link(asyncio.Protocol):
    """One connection: `ready` once logged in, `gone` once lost."""

    def __init__(self, token: str) -> None:
        loop = asyncio.get_running_loop()
        self._token = token
        self._buffer = b""
        self._upgraded = False
        self.ready: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[str] = loop.create_future()
        self.why = "lost"
        self.pong: asyncio.Future[None] | None = None
        self.flooding, self._next = "", 10
        self.answers: Counter[str] = Counter()  # to the flood, by code

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        key = base64.b64encode(os.urandom(16))
        transport.write(
            b"GET /v1/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
        )
        self._write(api.Hello(api.VERSION, api.VERSION, bytes(32)))
        self._write(api.Auth(1, self._token))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.gone.done():
            self.gone.set_result(self.why)

    def ask(self) -> "asyncio.Future[None]":
        self.pong = asyncio.get_running_loop().create_future()
        self._write(api.Ping(2))
        return self.pong

    def flood(self, to: str) -> None:
        self.flooding = to
        for _ in range(api.REQUESTS_IN_FLIGHT_MAX):
            self._more()

    def _more(self) -> None:
        self._next += 1
        self._write(api.Send(self._next, f"{self._next}-{self.flooding}", self.flooding, bytes(100)))

    def close(self) -> None:
        self._transport.abort()

    def _write(self, what: Any) -> None:
        self._transport.write(frame(BINARY, coding.MSGPACK.encode(what)))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        start, end = 0, len(data)
        if not self._upgraded:
            start = data.find(b"\r\n\r\n") + 4
            if start < 4:
                self._buffer = data
                return
            if b" 101 " not in data[:20]:
                self.why = data[:40].decode(errors="replace")
                return self._transport.abort()
            self._upgraded = True
        while end - start >= 2:
            size, skip = data[start + 1], 2
            if size >= 126:
                skip = 4 if size == 126 else 10
                size = int.from_bytes(data[start + 2 : start + skip], "big")
            if end - start < skip + size:
                break
            self._frame(data[start], data[start + skip : start + skip + size])
            start += skip + size
        self._buffer = data[start:]

    def _frame(self, head: int, payload: bytes) -> None:
        if head == BINARY:
            self._take(coding.MSGPACK.from_node(payload))
        elif head & 15 == PING:
            self._transport.write(frame(PONG, payload))
        elif head & 15 == CLOSE:
            self._transport.close()

    def _take(self, got: api.FromNode) -> None:
        if isinstance(got, api.Feed):
            self._write(api.Ack(got.items[-1].position))
        elif isinstance(got, api.Reply | api.Error) and self.flooding and (got.id or 0) >= 10:
            self.answers["accepted" if isinstance(got, api.Reply) else got.code] += 1
            self._more()
        elif isinstance(got, api.Reply) and got.id == 1 and not self.ready.done():
            self.ready.set_result(None)
        elif isinstance(got, api.Reply) and self.pong is not None and not self.pong.done():
            self.pong.set_result(None)
        elif isinstance(got, api.Error | api.Goodbye):
            self.why = got.code
            if isinstance(got, api.Error):
                self._transport.abort()


class Person(Link):
    """A client for a test of its own: sends, keeps what arrived, and tells when something did."""

    address = ""  # where the test wants to know it

    def __init__(self, token: str) -> None:
        super().__init__(token)
        self._sent: dict[int, asyncio.Future[str]] = {}
        self.bodies: list[bytes] = []
        self.arrived = asyncio.Event()

    @classmethod
    async def come(cls, port: int, token: str) -> "Person":
        """Connected without TLS, and logged in."""
        loop = asyncio.get_running_loop()
        _, self = await loop.create_connection(lambda: cls(token), "127.0.0.1", port)
        await asyncio.wait((self.ready, self.gone), return_when=asyncio.FIRST_COMPLETED)
        assert self.ready.done(), self.why
        return self

    def send(self, to: str, body: bytes) -> "asyncio.Future[str]":
        """Resolves with `accepted`, or with the code of the refusal."""
        number = 10 + len(self._sent)
        future = self._sent[number] = asyncio.get_running_loop().create_future()
        self._write(api.Send(number, f"{self._token}-{number}", to, body))
        return future

    async def until(self, count: int, within_s: float) -> None:
        """So many messages arrived."""
        async with asyncio.timeout(within_s):
            while len(self.bodies) < count:
                self.arrived.clear()
                await self.arrived.wait()

    def pause(self, paused: bool) -> None:
        (self._transport.pause_reading if paused else self._transport.resume_reading)()

    def _take(self, got: api.FromNode) -> None:
        if isinstance(got, api.Feed):
            self.bodies += [i.body for i in got.items if isinstance(i, api.Message) and i.body is not None]
            self.arrived.set()
        if isinstance(got, api.Reply | api.Error) and (sent := self._sent.get(got.id or 0)) is not None:
            sent.set_result("accepted" if isinstance(got, api.Reply) else got.code)
            return
        super()._take(got)


class Crowd:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._tls = _anybody() if orders.tls else None
        self._first = asyncio.Semaphore(orders.parallel)
        self._over = asyncio.Event()
        self._changed = asyncio.Event()
        self._up: dict[int, Link] = {}
        self._ends: Counter[str] = Counter()  # why connections ended, or did not come about

    async def _keep(self, number: int) -> None:
        """One client for as long as the crowd is there."""
        async with self._first:
            link = await self._open(number)
        tries = 0
        while True:
            if link is not None:
                await self._stay(number, link)
                tries = 0
            ceiling = FIRST_RETRY_S if tries == 0 else min(RETRY_S_MAX, 2.0 ** (tries - 1))
            pause = full_jitter(ceiling * self._orders.hurry)
            tries += 1
            try:
                async with asyncio.timeout(pause):
                    await self._over.wait()
                return
            except TimeoutError:
                link = await self._open(number)

    async def _open(self, number: int) -> Link | None:
        loop, link = asyncio.get_running_loop(), Link(f"token-{number}")
        try:
            async with asyncio.timeout(CONNECT_S):
                where = (f"127.0.0.{2 + number % ADDRESSES}", 0)
                await loop.create_connection(
                    lambda: link, "127.0.0.1", self._orders.port, ssl=self._tls, local_addr=where
                )
                await asyncio.wait((link.ready, link.gone), return_when=asyncio.FIRST_COMPLETED)
        except OSError as error:  # of a timeout too
            self._ends[type(error).__name__] += 1
            return None
        if not link.ready.done():
            self._ends[link.why] += 1
            return None
        return link

    async def _stay(self, number: int, link: Link) -> None:
        self._up[number] = link
        if self._orders.flood:
            link.flood(self._orders.flood)
        self._changed.set()
        self._ends[await link.gone] += 1
        del self._up[number]
        self._changed.set()

    async def _until(self, up: bool) -> None:
        while len(self._up) != (self._orders.count if up else 0):
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Answers `up` once all are connected, `down` once none is, `ping` once all were answered; `end` ends it."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        first, count = self._orders.first, self._orders.count
        tasks = [asyncio.ensure_future(self._keep(number)) for number in range(first, first + count)]
        while (line := (await reader.readline()).strip()) not in (b"", b"end"):
            began = loop.time()
            slowest = 0.0
            if line == b"ping":
                for link in list(self._up.values()):
                    asked = loop.time()
                    await link.ask()
                    slowest = max(slowest, loop.time() - asked)
            else:
                await self._until(line == b"up")
            answers = sum((link.answers for link in self._up.values()), Counter())
            said = {
                "up": len(self._up),
                "answers": dict(answers),
                "s": loop.time() - began,
                "slowest_s": slowest,
                "ends": dict(self._ends),
            }
            sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
            sys.stdout.flush()
        self._over.set()
        for link in list(self._up.values()):
            link.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


if __name__ == "__main__":
    asyncio.run(Crowd(msgspec.json.decode(sys.argv[1], type=Orders)).run())
