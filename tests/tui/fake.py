"""A client that lives in memory, for tests and for looking: `python -m tests.tui.fake [demo]`."""

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator

import msgspec

from node.client.model import Change, Conversation, Lights, Message, Presence, Reaction, State, Typing

STEPS: tuple[State, ...] = ("accepted", "sent", "delivered", "read")


class FakeClient:
    """Keeps messages in lists; `step` moves a message's state, `receive` makes one arrive."""

    def __init__(self, address: str = "alice@a.test", start_ms: int = 1_764_000_000_000) -> None:
        self.address = address
        self.lights = Lights("up", start_ms, {"b.test": ("up", start_ms)})
        self.rooms: dict[str, Conversation] = {}
        self.logs: dict[str, list[Message]] = {}
        self.reads: list[str] = []
        self.retried: list[str] = []
        self.accepted: list[str] = []
        self.declined: list[str] = []
        self.typed: list[tuple[str, bool]] = []
        self.shown: list[str] = []
        self.sent: list[Message] = []
        self.error: Exception | None = None  # raised by the next send
        self.other: FakeClient | None = None  # who gets what is sent, in the demo
        self.acts: list[tuple[str, str, str]] = []  # what was done, to which text, and what was said
        self.now_ms = start_ms
        self.is_closed = False
        self._numbers = itertools.count(1)
        self._news: asyncio.Queue[Change | None] = asyncio.Queue()

    # -- what the terminal client calls

    async def conversations(self) -> list[Conversation]:
        return [*self.rooms.values(), *(self._waiting(address) for address in self._begun())]

    async def messages(self, conversation: str, before: int | None = None, limit: int = 200) -> list[Message]:
        room = next((room for room, c in self.rooms.items() if c.title == conversation), conversation)
        log = self.logs.get(room, [])
        return [m for m in log if before is None or m.stamp < before][-limit:]

    async def send(self, to: str, text: str, *, key: str | None = None, reply_to: str | None = None) -> Message:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        # As the real one: until the node took the first message, the address stands for the conversation.
        known = (room for room, c in self.rooms.items() if to in (room, c.title))
        room = next(known, to)
        self.logs.setdefault(room, [])
        message = self._message(room, self.address, text, key, mine=True)
        self._store(message)
        self.sent.append(message)
        self._news.put_nowait(Change("message", message))
        if self.other is not None:
            asyncio.get_running_loop().call_later(0.4, self._carry, message)
        return message

    async def reply(self, to: Message, text: str) -> Message:
        self.acts.append(("reply", to.text, text))
        return await self.send(to.conversation, text, reply_to=to.id)

    async def edit(self, message: Message, text: str) -> Message:
        return self._done("edit", message, text, text=text, edited=1)

    async def delete(self, message: Message) -> Message:
        return self._done("delete", message, "", text="", deleted=True)

    async def react(self, message: Message, emoji: str) -> Message:
        mine = (*message.reactions, Reaction(emoji, (self.address,), True))
        return self._done("react", message, emoji, reactions=mine)

    async def unreact(self, message: Message, emoji: str) -> Message:
        left = tuple(r for r in message.reactions if r.emoji != emoji)
        return self._done("unreact", message, emoji, reactions=left)

    async def pin(self, message: Message) -> Message:
        return self._done("pin", message, "", pinned=self.address)

    async def unpin(self, message: Message) -> Message:
        return self._done("unpin", message, "", pinned="")

    def _done(self, what: str, message: Message, said: str, **fields: object) -> Message:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.acts.append((what, message.text, said))
        return self.change(message.key, **fields)

    def change(self, key: str, **fields: object) -> Message:
        """A message looks otherwise from now on."""
        log = next(log for log in self.logs.values() if any(m.key == key for m in log))
        at = next(i for i, m in enumerate(log) if m.key == key)
        log[at] = msgspec.structs.replace(log[at], **fields)
        self._news.put_nowait(Change("update", log[at]))
        return log[at]

    async def retry(self, key: str) -> None:
        self.retried.append(key)
        self.step(key, "queued")

    async def withdraw(self, key: str) -> bool:
        for log in self.logs.values():
            for message in log:
                if message.key == key and message.id is None:
                    log.remove(message)
                    self.everything()
                    return True
        return False

    async def read(self, conversation: str) -> None:
        self.reads.append(conversation)
        last = self.logs[conversation][-1].stamp if self.logs[conversation] else 0
        self._room(conversation, unread=0, read_upto=last)
        if self.other is not None:
            for message in self.other.logs.get(conversation, []):
                if message.mine and message.state == "delivered":
                    self.other.step(message.key, "read")

    async def accept(self, conversation: str) -> None:
        self.accepted.append(conversation)
        self._room(conversation, request=False)

    async def decline(self, conversation: str) -> None:
        self.declined.append(conversation)
        del self.rooms[conversation]
        self._news.put_nowait(Change("conversation"))

    async def typing(self, conversation: str, on: bool = True) -> None:
        self.typed.append((conversation, on))

    async def presence(self, state: str) -> None:
        self.shown.append(state)

    async def changes(self) -> AsyncIterator[Change]:
        while (change := await self._news.get()) is not None:
            yield change

    async def close(self) -> None:
        self.is_closed = True
        self._news.put_nowait(None)

    # -- what a test does

    def add_room(self, title: str, **fields: object) -> str:
        room = "~".join(sorted((self.address, title)))
        self.rooms[room] = msgspec.structs.replace(Conversation(room, title), **fields)
        self.logs.setdefault(room, [])
        return room

    def history(self, room: str, texts: list[str], sender: str | None = None, gap_ms: int = 60_000) -> list[Message]:
        """Messages that were there before the start."""
        who = sender or self.rooms[room].title
        made = []
        for text in texts:
            self.now_ms += gap_ms
            message = self._message(room, who, text, mine=who == self.address)
            if message.mine:
                message = msgspec.structs.replace(message, id=message.key, state="read")
            made.append(message)
        self.logs[room].extend(made)
        self.rooms[room] = msgspec.structs.replace(self.rooms[room], last_text=texts[-1], last_stamp=made[-1].stamp)
        return made

    def receive(self, room: str, text: str, *, stamp: int | None = None, late: bool = False) -> Message:
        self.now_ms += 1000
        message = self._message(room, self.rooms[room].title, text)
        message = msgspec.structs.replace(message, stamp=stamp or message.stamp, late=late)
        self._store(message)
        self.rooms[room] = msgspec.structs.replace(self.rooms[room], unread=self.rooms[room].unread + 1)
        self._news.put_nowait(Change("message", message))
        return message

    def step(self, key: str, state: State, reason: str = "") -> None:
        if state == "accepted":
            self._begin(key)
        has_left = state not in ("queued", "failed")
        for log in self.logs.values():
            for at, message in enumerate(log):
                if message.key == key:
                    log[at] = msgspec.structs.replace(message, state=state, reason=reason, id=message.id)
                    if has_left and message.id is None:
                        log[at] = msgspec.structs.replace(log[at], id=f"e-{key}")
                    self._news.put_nowait(Change("state", log[at]))

    def light(self, me: str, **peers: tuple[str, int]) -> None:
        self.lights = msgspec.structs.replace(self.lights, me=me, peers=peers or self.lights.peers)
        self._news.put_nowait(Change("lights"))

    def sign(self, sign: Typing | Presence) -> None:
        self._news.put_nowait(Change("typing" if isinstance(sign, Typing) else "presence", sign=sign))

    def everything(self) -> None:
        self._news.put_nowait(Change("conversation", detail="everything"))

    # -- inside

    def _message(self, room: str, sender: str, text: str, key: str | None = None, *, mine: bool = False) -> Message:
        key = key or f"{self.address}-{next(self._numbers)}"
        state: State = "queued" if mine else ""
        return Message(None if mine else key, key, room, sender, "main", text, self.now_ms, mine, state)

    def _begin(self, key: str) -> None:
        """The first accepted message makes the conversation."""
        for address in self._begun():
            if any(m.key == key for m in self.logs[address]):
                waiting = self.logs.pop(address)
                room = self.add_room(address, last_text=waiting[-1].text, last_stamp=waiting[-1].stamp)
                self.logs[room].extend(msgspec.structs.replace(m, conversation=room) for m in waiting)
                self._news.put_nowait(Change("conversation", conversation=self.rooms[room]))

    def _begun(self) -> list[str]:
        return [room for room, log in self.logs.items() if log and "~" not in room]

    def _waiting(self, address: str) -> Conversation:
        last = self.logs[address][-1]
        return Conversation(address, address, last_text=last.text, last_stamp=last.stamp)

    def _store(self, message: Message) -> None:
        log = self.logs[message.conversation]
        log.append(message)
        log.sort(key=lambda m: m.stamp)
        if message.conversation in self.rooms:
            self._room(message.conversation, last_text=log[-1].text, last_stamp=log[-1].stamp)

    def _room(self, room: str, **fields: object) -> None:
        self.rooms[room] = msgspec.structs.replace(self.rooms[room], **fields)
        self._news.put_nowait(Change("conversation", conversation=self.rooms[room]))

    def _carry(self, message: Message) -> None:
        other, later = self.other, asyncio.get_running_loop().call_later
        assert other is not None
        self.step(message.key, "accepted")
        room = "~".join(sorted((self.address, other.address)))
        if room not in other.rooms:
            other.add_room(self.address)
        other.now_ms = int(time.time() * 1000)
        later(0.4, self.step, message.key, "sent")
        later(0.8, other.receive, room, message.text)
        later(0.9, self.step, message.key, "delivered")


def furnished() -> FakeClient:
    """Some rooms to look at."""
    client = FakeClient(start_ms=int(time.time() * 1000) - 26 * 3_600_000)
    bob = client.add_room("bob@b.test")
    client.history(bob, [f"message number {n} of a long talk" for n in range(300)])
    client.history(bob, ["what did you think of the plan?", "I would start with the storage part"], client.address)
    client.history(
        bob,
        [
            "Good. Long lines wrap at the width of the window, and words stay whole wherever they can: "
            "the quick brown fox jumps over the lazy dog, twice, and then goes home.\nSecond line of the same post.",
            "漢字も表示できます 👍🏽 and café",
            "\x1b[31mred?\x1b[0m \x07bell \u202egnp.exe\u202c \x1b]0;title\x07done",
        ],
    )
    failed = client.history(bob, ["this one did not get through"], client.address)[0]
    client.step(failed.key, "failed", "bob's mailbox is full")
    client.rooms[bob] = msgspec.structs.replace(client.rooms[bob], unread=0)
    carol = client.add_room("carol@very-long-node-name.example.org", request=True)
    client.history(carol, ["Hi, we met at the fair. Look: http://x.test \x1b[2J"])
    dave = client.add_room("dave@b.test")
    log = client.history(dave, [f"news {n}" for n in range(60)])
    client.rooms[dave] = msgspec.structs.replace(client.rooms[dave], unread=40, read_upto=log[19].stamp)
    client.lights = msgspec.structs.replace(client.lights, peers={"b.test": ("up", client.now_ms)})
    return client


def pair() -> tuple[FakeClient, FakeClient]:
    now = int(time.time() * 1000)
    left, right = FakeClient("alice@a.test", now), FakeClient("bob@b.test", now)
    left.other, right.other = right, left
    right.lights = Lights("up", now, {"a.test": ("up", now)})
    return left, right


def main() -> int:
    from tui.run import run_chat, run_demo

    async def one() -> FakeClient:
        client = furnished()
        client.other = FakeClient("bob@b.test")
        return client

    if sys.argv[1:] == ["demo"]:
        made = iter(pair())

        async def side() -> FakeClient:
            return next(made)

        return run_demo(side, side)
    return run_chat(one)


if __name__ == "__main__":
    sys.exit(main())
