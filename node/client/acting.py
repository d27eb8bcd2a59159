"""What a person does to a message: answer, edit, delete, react, pin. All of it goes through the outbox."""

from typing import Protocol

from node import api
from node.client import acts, rows
from node.client.model import Message
from node.client.store import Store


class Queue(Protocol):
    """`Client._queue`."""

    async def __call__(
        self, to: str, body: bytes, format: str, key: str | None, reply_to: str | None, kind: str = "message",
        thread: str | None = None, undo: bool = False,
    ) -> Message: ...  # fmt: skip


class Acts:
    """Base of `Client`. Each method takes a message or its id, works offline with what is here, and gives what was
    queued: its `key` is what `Client.wait` takes, its `state` is a message's. Raises `ApiError`."""

    _store: Store
    _queue: Queue

    async def state(self, event_id: str) -> api.States:
        raise NotImplementedError

    async def reply(self, to: Message | str, text: str, *, key: str | None = None) -> Message:
        """Answer a message, in its thread if it is in one."""
        event, where, about = await self._about(to)
        thread = about.thread if about is not None else None
        return await self._queue(where, encoded(text), "text", key, event, thread=thread)

    async def edit(self, message: Message | str, text: str, *, key: str | None = None) -> Message:
        """Say something else instead."""
        event, where, about = await self._about(message)
        if about is not None and not about.mine:
            raise api.ApiError("not_yours", "only who wrote a message may edit it")
        return await self._queue(where, encoded(text), "text", key, event, "edit")

    async def delete(self, message: Message | str, *, key: str | None = None) -> Message:
        """Take it back for everybody: every node drops its text. There is no way back."""
        event, where, _ = await self._about(message)
        return await self._queue(where, b"", "text", key, event, "delete")

    async def react(self, message: Message | str, emoji: str, *, key: str | None = None) -> Message:
        """Add an emoji; once more changes nothing."""
        return await self._react(message, emoji, key, False)

    async def unreact(self, message: Message | str, emoji: str, *, key: str | None = None) -> Message:
        """Take an emoji of one's own back."""
        return await self._react(message, emoji, key, True)

    async def _react(self, message: Message | str, emoji: str, key: str | None, undo: bool) -> Message:
        body = encoded(emoji)
        if not 1 <= len(body) <= api.REACTION_BYTES_MAX or not emoji.isprintable() or emoji.isspace():
            raise api.ApiError("bad_request", f"a reaction is one emoji of at most {api.REACTION_BYTES_MAX} bytes")
        event, where, _ = await self._about(message)
        return await self._queue(where, body, "text", key, event, "reaction", undo=undo)

    async def pin(self, message: Message | str, *, key: str | None = None) -> Message:
        """Put it on the conversation's list of pinned messages."""
        event, where, _ = await self._about(message)
        return await self._queue(where, b"", "text", key, event, "pin")

    async def unpin(self, message: Message | str, *, key: str | None = None) -> Message:
        event, where, _ = await self._about(message)
        return await self._queue(where, b"", "text", key, event, "unpin")

    async def pinned(self, conversation: str) -> list[Message]:
        """From the local store, in order."""
        return await self._store.run(lambda db: acts.pinned(db, rows.names(db, conversation)))

    async def thread(self, first: Message | str) -> list[Message]:
        """From the local store: a thread's first message and what belongs to it, in order."""
        id = first.id if isinstance(first, Message) else first
        return await self._store.run(lambda db: acts.thread(db, id)) if id else []

    async def _about(self, message: Message | str) -> tuple[str, str, Message | None]:
        """Id and conversation of a message, and the message if it is here; else its node is asked where it is."""
        if isinstance(message, Message):
            if message.id is None:
                raise api.ApiError("not_found", "your node does not have that message yet; wait until it has")
            return message.id, message.conversation, message
        found = next(iter(await self._store.run(lambda db: rows.by_id(db, [message]))), None)
        if found is not None:
            return message, found.conversation, found
        return message, (await self.state(message)).conversation, None


def encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise api.ApiError("bad_request", "the text has characters that are not Unicode") from None
