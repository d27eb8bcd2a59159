"""Builds that are wrong on purpose: a simulator that cannot tell them from the good one proves nothing."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from federation.event import read_event
from node.core import log, rows
from node.core.heal import Rewind
from node.core.receive import Receive
from node.core.send import Send
from node.healing import Healing
from node.storage import life
from node.storage.runner import InlineRunner

EARLY_S = 0.5  # how long the early runner lets a transaction lie


class EarlyRunner(InlineRunner):
    """Answers before it commits: what was promised in the last moments dies with the process."""

    _open: Any = None
    _timer: Any = None

    async def write(self, work: Callable[[Any], Any], small: bool = False) -> Any:
        await self._pause("before commit")
        if self._open is None:
            self._open = self._engine.connect()
            self._open.begin()
            self._timer = asyncio.get_running_loop().call_later(EARLY_S, self._commit)
        result = work(self._open)
        await self._pause("after commit")
        return result

    async def read(self, work: Callable[[Any], Any], hot: bool = False) -> Any:
        await self._pause("read")
        if self._open is not None:
            return work(self._open)
        with self._engine.begin() as connection:
            return work(connection)

    def _commit(self) -> None:
        if self._open is not None:
            self._open.commit()
            self._open.close()
            self._open = None

    async def close(self) -> None:
        if self._open is not None:
            self._timer.cancel()
            self._open.rollback()
            self._open.close()
        await super().close()


def _redeliver(self: Receive, view: Any, context: Any, seq: int, signed: Any, *rest: Any) -> Any:
    """In place of `Receive._repeat`: what came again is new again."""
    local = self._local(context)
    if local and view.get(rows.Conversation, self.segment.conversation) is not None:
        log.deliver(view, context, read_event(signed), local)
    return []


@contextmanager
def acknowledges_before_commit() -> Iterator[Any]:
    yield EarlyRunner


@contextmanager
def dedupe_off() -> Iterator[Any]:
    with patch.object(Receive, "_repeat", _redeliver):
        yield InlineRunner


@contextmanager
def high_water_mark_not_stored() -> Iterator[Any]:
    """A peer's event is kept, and how far its log is here is not."""
    real = log.store

    def store(view: Any, context: Any, event: Any, *args: Any, **named: Any) -> None:
        head = view.get(rows.LogHead, event.header.log.key)
        real(view, context, event, *args, **named)
        if event.header.origin != context.node and head is not None:
            view.put(head)

    with patch.object(log, "store", store):
        yield InlineRunner


@contextmanager
def idempotency_ignored() -> Iterator[Any]:
    """A retry with the same key is a new message."""
    real = Send.decide

    def decide(self: Send, view: Any, context: Any) -> Any:
        if view.get(rows.SentKey, self.device, self.key) is None:
            return real(self, view, context)
        return real(replace(self, key=f"{self.key} again at {context.now_ms}"), view, context)

    with patch.object(Send, "decide", decide):
        yield InlineRunner


@contextmanager
def tokens_survive_a_restore() -> Iterator[Any]:
    """What was revoked after the copy revives with it."""
    real = life.accept

    def accept(connection: Any, *args: Any) -> Any:
        live = connection.exec_driver_sql("SELECT device FROM devices WHERE revoked_ms = 0").all()
        stamp = real(connection, *args)
        for (device,) in live:
            connection.exec_driver_sql("UPDATE devices SET revoked_ms = 0 WHERE device = ?", (device,))
        return stamp

    with patch.object(life, "accept", accept):
        yield InlineRunner


@contextmanager
def what_was_acknowledged_is_not_sent_again() -> Iterator[Any]:
    with patch.object(Rewind, "decide", lambda self, view, context: None):
        yield InlineRunner


@contextmanager
def own_events_are_not_given_back() -> Iterator[Any]:
    def nothing(self: Healing, peer: bytes, ask: Any) -> Any:
        return asyncio.sleep(0)

    with patch.object(Healing, "_bring_home", nothing):
        yield InlineRunner


BUILDS = {
    build.__name__: build
    for build in (
        acknowledges_before_commit,
        dedupe_off,
        high_water_mark_not_stored,
        idempotency_ignored,
        tokens_survive_a_restore,
        what_was_acknowledged_is_not_sent_again,
        own_events_are_not_given_back,
    )
}
