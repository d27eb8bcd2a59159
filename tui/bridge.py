"""The seam to the SDK: the only module of the terminal client that calls it.

`node.client.Client` satisfies `ChatClient`; so does the fake of the tests. Everything that may go wrong on the
other side becomes one line for a person here, with the next step.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, Protocol, TypeVar

from node.api import ApiError
from node.client.errors import ClientError, Lost, ProfileInUse, StoreError, Unreachable
from node.client.model import Change, Conversation, Lights, Message
from tui import model, text

T = TypeVar("T")
PAGE_MESSAGES = 200

_NEXT_STEPS = {
    "unknown_node": "check the part after @, or ask an administrator to add that node",
    "unknown_user": "check the part before @",
    "too_large": "send it in parts",
    "not_yours": "answer it instead",
    "declined": "reach the person another way",
    "mailbox_full": "it can be retried later",
    "bad_token": "log in again: roost login",
    "blocked": "`roost blocks` shows whom you blocked; else ask your administrator",
}


class ChatClient(Protocol):
    """What the terminal client needs from the SDK."""

    @property
    def address(self) -> str: ...

    @property
    def lights(self) -> Lights: ...

    async def conversations(self) -> list[Conversation]: ...

    async def messages(
        self, conversation: str, before: int | None = None, limit: int = PAGE_MESSAGES
    ) -> list[Message]: ...

    async def send(self, to: str, text: str, *, key: str | None = None, reply_to: str | None = None) -> Message: ...

    async def reply(self, to: Message, text: str) -> Message: ...

    async def edit(self, message: Message, text: str) -> Message: ...

    async def delete(self, message: Message) -> Message: ...

    async def react(self, message: Message, emoji: str) -> Message: ...

    async def unreact(self, message: Message, emoji: str) -> Message: ...

    async def pin(self, message: Message) -> Message: ...

    async def unpin(self, message: Message) -> Message: ...

    async def retry(self, key: str) -> object: ...

    async def withdraw(self, key: str) -> bool: ...

    async def read(self, conversation: str) -> object: ...

    async def accept(self, conversation: str) -> object: ...

    async def decline(self, conversation: str) -> object: ...

    async def typing(self, conversation: str, on: bool = True) -> object: ...

    async def presence(self, state: Literal["online", "away"]) -> object: ...

    def changes(self) -> AsyncIterator[Change]: ...

    async def close(self) -> object: ...


def explain(error: Exception) -> str:
    """One line: what happened, and what to do."""
    told = text.line(str(error), 200) or type(error).__name__
    if isinstance(error, ApiError):
        step = _NEXT_STEPS.get(error.code, "try again in a moment" if error.retry else "")
        return f"{told}; {step}" if step else told
    if isinstance(error, Unreachable | Lost):
        return f"{told}; it is tried again by itself"
    if isinstance(error, ProfileInUse | StoreError):
        return f"{told}; leave with Ctrl+Q and start again"
    if isinstance(error, TimeoutError):
        return "the node did not answer in time; try again"
    return told


class Bridge:
    """One client, asked on behalf of one screen."""

    def __init__(self, client: ChatClient, problem: Callable[[str], None]) -> None:
        self._client = client
        self._problem = problem
        self._sending = asyncio.Lock()  # first in, first out: two quick messages keep their order

    @property
    def address(self) -> str:
        return self._client.address

    @property
    def lights(self) -> Lights:
        return self._client.lights

    async def watch(self, changed: Callable[[Change], None]) -> None:
        """Report changes until the client ends."""
        try:
            async for change in self._client.changes():
                changed(change)
        except (ClientError, ApiError, OSError) as error:
            self._problem(f"no more news from the client: {explain(error)}")

    async def conversations(self) -> list[Conversation] | None:
        found = await self._try("the list could not be read", self._client.conversations())
        return None if found is None else model.ordered(found)

    async def messages(self, conversation: str, before: int | None = None) -> list[Message] | None:
        asked = self._client.messages(conversation, before, PAGE_MESSAGES)
        return await self._try("messages could not be read", asked)

    async def send(self, to: str, body: str) -> Message | None:
        async with self._sending:
            return await self._try("not sent", self._client.send(to, body))

    async def reply(self, to: Message, body: str) -> Message | None:
        async with self._sending:
            return await self._try("not sent", self._client.reply(to, body))

    async def edit(self, message: Message, body: str) -> bool:
        return await self._done("not edited", self._client.edit(message, body))

    async def delete(self, message: Message) -> None:
        await self._try("not deleted", self._client.delete(message))

    async def react(self, message: Message, emoji: str) -> bool:
        """The same one again takes it back."""
        undo = model.is_reacted(message, emoji)
        asked = self._client.unreact(message, emoji) if undo else self._client.react(message, emoji)
        return await self._done("not reacted", asked)

    async def pin(self, message: Message) -> None:
        """Or unpin what is pinned."""
        asked = self._client.unpin(message) if message.pinned else self._client.pin(message)
        await self._try("not unpinned" if message.pinned else "not pinned", asked)

    async def retry(self, key: str) -> None:
        await self._try("not retried", self._client.retry(key))

    async def withdraw(self, key: str) -> bool:
        return bool(await self._try("not taken back", self._client.withdraw(key)))

    async def read(self, conversation: str) -> None:
        await self._try("the read mark was not moved", self._client.read(conversation))

    async def accept(self, conversation: str) -> bool:
        return await self._done("not accepted", self._client.accept(conversation))

    async def decline(self, conversation: str) -> bool:
        return await self._done("not declined", self._client.decline(conversation))

    async def typing(self, conversation: str, on: bool) -> None:
        await self._unheard(self._client.typing(conversation, on))

    async def presence(self, state: Literal["online", "away"]) -> None:
        await self._unheard(self._client.presence(state))

    async def _unheard(self, asked: Awaitable[object]) -> None:
        """Of signs of life nobody is told that they got lost."""
        try:
            await asked
        except (ClientError, ApiError, OSError, ValueError, TimeoutError):
            pass

    async def _done(self, what: str, asked: Awaitable[object]) -> bool:
        async def told() -> bool:
            await asked
            return True

        return bool(await self._try(what, told()))

    async def _try(self, what: str, asked: Awaitable[T]) -> T | None:
        try:
            return await asked
        except (ClientError, ApiError, OSError, ValueError) as error:  # ValueError: an address not in the grammar
            self._problem(f"{what}: {explain(error)}")
            return None
