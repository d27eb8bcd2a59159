"""A profile's client and a node's administration, as the commands see them: no network, no store."""

import asyncio
import types
from collections.abc import AsyncIterator
from typing import Any

from node import api
from node.client.model import STATES, Change, Message

MINE = Message(None, "k", "conv", "alice@a.test", "dev", "hi", 1_700_000_000_000, True, "queued")
THEIRS = Message("ev1", "ev1", "conv", "bob@b.test", "dev2", "hello", 1_700_000_000_000, False)


class FakeClient:
    """Remembers what was asked; messages reach `reaches`, or fail with `fails`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.sent: dict[str, Message] = {}
        self.reaches = "read"
        self.fails: Exception | None = None
        self.refuses: Exception | None = None
        self.can_withdraw = True
        self.changes: list[Change] = []
        self.acknowledged: list[Change] = []
        self.address, self.device = "alice@a.test", "dev"
        self.closed = 0
        self.shown = "Alice"

    async def open_profile(self, name: str) -> "FakeClient":
        self.calls.append(("open", name))
        return self

    async def login(self, *args: str) -> "FakeClient":
        self.calls.append(("login", *args))
        return self

    async def register(self, *args: str) -> "FakeClient":
        self.calls.append(("register", *args))
        return self

    async def send(self, to: str, text: str, key: str | None = None, reply_to: str | None = None) -> Message:
        if self.refuses:
            raise self.refuses
        key = key or f"auto-{len(self.sent)}"
        self.calls.append(("send", to, text, key, reply_to))
        self.sent[key] = Message(None, key, "conv", self.address, self.device, text, 0, True, "queued")
        return self.sent[key]

    async def _act(self, key: str | None, *call: str) -> Message:
        if self.refuses:
            raise self.refuses
        key = key or f"auto-{len(self.sent)}"
        self.calls.append(call)
        self.sent[key] = Message(None, key, "conv", self.address, self.device, "", 0, True, "queued", kind=call[0])
        return self.sent[key]

    async def edit(self, id: str, text: str, key: str | None = None) -> Message:
        return await self._act(key, "edit", id, text)

    async def delete(self, id: str, key: str | None = None) -> Message:
        return await self._act(key, "delete", id)

    async def react(self, id: str, emoji: str, key: str | None = None) -> Message:
        return await self._act(key, "react", id, emoji)

    async def unreact(self, id: str, emoji: str, key: str | None = None) -> Message:
        return await self._act(key, "unreact", id, emoji)

    async def pin(self, id: str, key: str | None = None) -> Message:
        return await self._act(key, "pin", id)

    async def unpin(self, id: str, key: str | None = None) -> Message:
        return await self._act(key, "unpin", id)

    async def wait(self, key: str, state: str, timeout: float) -> Message:
        message = self.sent[key]
        if state == "queued":
            return message
        if self.fails:
            raise self.fails
        reaches = self.reaches
        if reaches in STATES and STATES.index(reaches) < STATES.index(state):
            self.sent[key] = _with(message, reaches)
            raise TimeoutError
        return _with(message, reaches)

    async def withdraw(self, key: str) -> Message | None:
        self.calls.append(("withdraw", key))
        return self.sent[key] if self.can_withdraw else None

    async def events(self, kinds: tuple[str, ...], from_start: bool) -> AsyncIterator[Change]:
        self.calls.append(("events", kinds, from_start))
        for change in self.changes:
            yield change
            self.acknowledged.append(change)
        await asyncio.Event().wait()

    async def history(self, target: str, limit: int) -> list[Message]:
        self.calls.append(("history", target, limit))
        if self.refuses:
            raise self.refuses
        return [THEIRS, MINE][-limit:]

    async def messages(self, target: str, limit: int) -> list[Message]:
        return [MINE][:limit]

    async def state(self, id: str) -> api.States:
        return api.States(id, (api.Recipient("bob@b.test", "failed", 7, "declined"),))

    async def why(self, id: str) -> api.Why:
        return api.Why(id, "waits for b.test", (api.Hop(7, "accepted", "\x1b[31mred"), api.Hop(0, "sent")))

    async def mark_read(self, message: Message) -> None:
        self.calls.append(("read", message.id))

    async def set_profile(self, name: str | None, requests: str | None, presence: str | None) -> None:
        self.calls.append(("set_profile", name, requests, presence))
        self.shown = self.shown if name is None else name

    async def display_name(self) -> str:
        return self.shown

    async def accept(self, target: str) -> None:
        self.calls.append(("accept", target))

    async def block(self, who: str) -> None:
        self.calls.append(("block", who))

    async def unblock(self, who: str) -> None:
        self.calls.append(("unblock", who))

    async def blocked(self) -> list[api.BlockState]:
        return [api.BlockState("bob@b.test", 7), api.BlockState("c.test", 8)]

    async def typing(self, conversation: str, on: bool = True) -> None:
        self.calls.append(("typing", conversation, on))

    async def close(self) -> None:
        self.closed += 1


def _with(message: Message, state: str) -> Message:
    return Message(
        "ev-" + message.key, message.key, message.conversation, message.sender, message.device, message.text,
        5, True, state, reason="too late" if state == "failed" else "", origin="o", log="l", seq=3,
    )  # type: ignore[arg-type]  # fmt: skip


class FakeAdmin(types.ModuleType):
    """Answers operations from a table; an exception in it is raised."""

    def __init__(self) -> None:
        super().__init__("node.admin")
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    class AdminError(Exception):
        def __init__(self, code: str, message: str) -> None:
            super().__init__(message)
            self.code = code

    async def call(self, config: object, op: str, args: dict[str, Any]) -> Any:
        self.asked.append((op, args))
        answer = self.answers.get(op, {})
        if isinstance(answer, Exception):
            raise answer
        return answer
