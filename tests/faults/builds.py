"""`python -m tests.faults.builds NAME serve ...`: the same command, wrong on purpose or with a shifted clock.

A suite that cannot tell the broken builds from the good one proves nothing. `NAME` may be several, with `+` between.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

from aioquic.quic import crypto
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStreamSender

from federation import link, running, websocket, wire
from federation.link import Link
from federation.quic import Connection
from node.cli.app import main
from node.core import rows
from node.storage import batch, runner
from node.storage.runner import Owned, SqliteRunner
from node.system import System
from tests.sim import broken

HELD = ExitStack()
TAG_BYTES = 16  # of every cipher of QUIC's
EARLY_S = 0.3  # how long the early build lets a transaction lie


def acknowledges_before_commit() -> None:
    """What was promised in the last moments dies with the process."""
    real_begin, real_commit = Owned.begin, Owned.commit
    lies: dict[Owned, threading.Timer] = {}
    turn = threading.RLock()

    def begin(self: Owned) -> Any:
        with turn:
            return self._connection if self in lies else real_begin(self)

    def commit(self: Owned) -> None:
        if self._begin == runner.BEGIN[False]:
            return real_commit(self)

        def late() -> None:
            with turn:
                del lies[self]
                real_commit(self)

        with turn:
            if self not in lies:
                lies[self] = threading.Timer(EARLY_S, late)
                lies[self].daemon = True
                lies[self].start()
        return None

    Owned.begin, Owned.commit = begin, commit  # type: ignore[method-assign]
    # Readers must see what the open transaction holds, or nothing would be pushed before its late commit.
    SqliteRunner.read = lambda self, work, hot=False: _inside(self, work)  # type: ignore[method-assign]


async def _inside(self: SqliteRunner, work: Callable[[Any], Any]) -> Any:
    return await self.write(work, small=True)


def commits_without_sync() -> None:
    """WAL with synchronous=NORMAL: a commit waits for nothing that would survive the power going."""
    real = runner.sqlite_engine

    def engine(*args: Any, **named: Any) -> Any:
        from sqlalchemy import event

        made = real(*args, **named)
        event.listen(made, "connect", lambda raw, record: raw.execute("PRAGMA synchronous=NORMAL"))
        return made

    runner.sqlite_engine = engine


def dies_before_acknowledging() -> None:
    """Not wrong, only unlucky: a receiver that is killed between its commit and its word about it, each time at
    the so manieth (`DIES_AT`) of its life."""
    left = int(os.environ["DIES_AT"])
    real = wire.encode

    def encode(frame: Any) -> bytes:
        nonlocal left
        if isinstance(frame, wire.Acks):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(frame)

    running.wire.encode = encode  # type: ignore[attr-defined]


def high_water_mark_apart() -> None:
    """How far a log is here is committed before its events are; killed in between, at the so manieth (`DIES_AT`)."""
    left = int(os.environ.get("DIES_AT", "0"))
    real = batch.write

    def write(connection: Any, statements: Any, view: Any) -> None:
        nonlocal left
        heads = {key: row for key, row in view.changed.items() if key[0] is rows.LogHead}
        if heads:
            real(connection, statements, SimpleNamespace(changed=heads))
            connection.exec_driver_sql("COMMIT")
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        real(connection, statements, view)

    batch.write = write  # type: ignore[assignment]


def _patched(name: str) -> Callable[[], None]:
    def apply() -> None:
        HELD.enter_context(broken.BUILDS[name]())

    return apply


def lost_for_good() -> None:
    """What a packet carried that was lost is never sent again."""
    real = QuicStreamSender.on_data_delivery

    def on_data_delivery(self: Any, delivery: Any, *range_: Any) -> None:
        real(self, QuicDeliveryState.ACKED, *range_)

    QuicStreamSender.on_data_delivery = on_data_delivery  # type: ignore[method-assign]


class Unauthenticated:
    """In place of a cipher: what comes is taken as it is."""

    def __init__(self, *_: Any) -> None: ...

    def encrypt(self, data: bytes, *_: Any) -> bytes:
        return data + bytes(TAG_BYTES)

    def decrypt(self, data: bytes, *_: Any) -> bytes:
        return data[:-TAG_BYTES]


def unauthenticated() -> None:
    crypto.AEAD = Unauthenticated  # type: ignore[attr-defined,misc]


def never_dead() -> None:
    """Silence on a link means nothing."""
    real = Link.tick

    def tick(self: Link, now_ms: int) -> Any:
        if self.peer is not None:
            self._heard = now_ms
        return real(self, now_ms)

    Link.tick = tick  # type: ignore[method-assign]


def stays_put() -> None:
    """Who calls from another port is answered at the old one."""
    real = Connection.receive
    places: dict[Connection, Any] = {}

    def receive(self: Connection, data: bytes, addr: Any) -> None:
        real(self, data, places.setdefault(self, addr))

    Connection.receive = receive  # type: ignore[method-assign]


def long_segments() -> None:
    """TCP sends what its own way out takes at once."""
    websocket.SEGMENT_BYTES = 1460


def all_at_once() -> None:
    """As much as the window allows is sent into a line that may be slow."""
    Link._learn = lambda *_: None  # type: ignore[method-assign,assignment]
    link.PACE_FIRST_BYTES = 4 << 20


def shifted_clock() -> None:
    """`CLOCK`: seconds to add, or `jitter` for another hour each second."""
    shift, real = os.environ["CLOCK"], System.wall_ms

    def wall_ms(self: System) -> int:
        if shift == "jitter":
            return real(self) + (self.monotonic_ms() // 1000 * 7919 % 7200 - 3600) * 1000
        return real(self) + int(shift) * 1000

    System.wall_ms = wall_ms  # type: ignore[method-assign]


BUILDS: dict[str, Callable[[], None]] = {
    "acknowledges_before_commit": acknowledges_before_commit,
    "commits_without_sync": commits_without_sync,
    "dies_before_acknowledging": dies_before_acknowledging,
    "shifted_clock": shifted_clock,
    "lost_for_good": lost_for_good,
    "unauthenticated": unauthenticated,
    "never_dead": never_dead,
    "high_water_mark_apart": high_water_mark_apart,
    "stays_put": stays_put,
    "all_at_once": all_at_once,
    "long_segments": long_segments,
    **{name: _patched(name) for name in ("dedupe_off", "idempotency_ignored")},
}

if __name__ == "__main__":
    for name in sys.argv.pop(1).split("+"):
        BUILDS[name]()
    sys.exit(main())
