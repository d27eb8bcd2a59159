"""Client: what a bot, a screen, the command line and an embedding app hold."""

import asyncio
import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal, Self

from federation.errors import AddressError
from federation.identity import NodeLink
from federation.ids import Address
from node import api
from node.client import marks, outbox, rows
from node.client import profile as profiles
from node.client.acting import Acts, encoded
from node.client.asks import Asks
from node.client.errors import Lost, NodeKeyError, Unreachable
from node.client.events import Events
from node.client.feed import Me
from node.client.hub import Hub, Screen, is_reached
from node.client.model import ACTS, Change, Conversation, Lights, Message, State
from node.client.outbox import Draft
from node.client.profile import Device, Profile
from node.client.store import Store
from node.client.sync import Sync, full_jitter
from node.client.wire import Connect, Wire, checked

KEY_BYTES = 16


class Client(Asks, Acts):
    """One device of a user. Works offline: sends wait in the outbox, reads come from the local store."""

    def __init__(self, who: Profile | Device, store: Store, hub: Hub, sync: Sync) -> None:
        """Use `open`, `open_profile`, `login` or `register`."""
        self.address, self.device = who.address, who.device
        self._profile = who if isinstance(who, Profile) else None
        self._store, self._hub, self._sync = store, hub, sync
        self._live = sync.live
        self._closing: asyncio.Task[None] | None = None

    # --- opening and closing ------------------------------------------------------------------------------
    @classmethod
    async def open(
        cls,
        who: Profile | Device,
        *,
        connect: Connect,
        token: str,
        store: Path | None,
        jitter: Callable[[float], float] = full_jitter,
    ) -> Self:
        """Open the local store (None: in memory, without a thread) and start connecting; does not wait for it."""
        opened = await Store.open(store)
        try:
            cursor, chain = await opened.run(lambda db: (marks.cursor(db), marks.chain(db)))
        except BaseException:
            await opened.close()
            raise
        hub, me = Hub(cursor.stored), Me(who.address, who.device)
        sync = Sync(opened, hub, me, cursor, chain, connect, token, jitter)
        client = cls(who, opened, hub, sync)
        sync.start()
        return client

    @classmethod
    async def open_profile(cls, name: str) -> Self:
        """The client of a profile of this machine; works offline."""
        return await cls._open_profile(profiles.open_profile(name))

    @classmethod
    async def _open_profile(cls, profile: Profile) -> Self:
        link = profile.link
        try:
            return await cls.open(profile, connect=lambda: _dial(link), token=profile.facts.token, store=profile.store)
        except BaseException:
            profile.release()
            raise

    @classmethod
    async def login(cls, profile: str, address: str, link: str, password: str, device_name: str) -> Self:
        """Make this machine a device of an account and keep it as a profile."""
        who, where = Address.parse(address), NodeLink.parse(link)
        if who.node != where.name:
            raise AddressError(f"{who} does not live on {where.name}: give the link of their own node")
        return await cls._become(profile, where, who.local, password, device_name, None)

    @classmethod
    async def register(cls, profile: str, invite: str, name: str, password: str, device_name: str) -> Self:
        """Make an account with an invite (`ROOST-LINK#CODE`), and this machine its first device."""
        where, code = profiles.parse_invite(invite)
        return await cls._become(profile, where, name, password, device_name, code)

    @classmethod
    async def _become(
        cls, name: str, link: NodeLink, user: str, password: str, device_name: str, invite: str | None
    ) -> Self:
        where, lock = profiles.create(name)
        try:
            facts = await profiles.become(await _dial(link), user, password, device_name, invite)
            kept = profiles.Facts(str(link), facts.address, facts.device, facts.token, facts.seed)
            profile = profiles.save(name, where, lock, kept)
        except BaseException:
            profiles.abandon(where, lock)
            raise
        return await cls._open_profile(profile)

    async def close(self) -> None:
        """Tell the node what was processed (bounded), then release everything; the outbox stays on disk."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await self._sync.close()
            await self._store.close()
        finally:
            if self._profile is not None:
                self._profile.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def logout(self, forget: bool = False) -> bool:
        """Revoke this device, close, and delete its profile; with `forget` also where its node does not answer or is
        another one by now. Whether the device is revoked."""
        revoked = True
        try:
            await self.revoke_device(self.device)
        except Lost:
            pass  # the node closes a revoked device's connection, perhaps before the answer
        except api.ApiError as error:
            if error.code not in ("bad_token", "not_found") and not forget:
                raise
            revoked = error.code in ("bad_token", "not_found")
        except (NodeKeyError, Unreachable):
            if not forget:
                raise
            revoked = False
        await self.close()
        if self._profile is not None:
            self._profile.forget()
        return revoked

    @property
    def lights(self) -> Lights:
        return self._sync.lights

    async def display_name(self) -> str:
        """The name that the node shows with the address; empty when none was set."""
        await self._live()
        return self._sync.display_name

    async def set_profile(
        self,
        display_name: str | None = None,
        requests: Literal["strangers", "everyone"] | None = None,
        presence: Literal["contacts", "nobody"] | None = None,
    ) -> None:
        """What is given changes: the shown name; whose first message asks before it is a conversation; who is shown
        that one is there, or types."""
        change = api.SetProfile(id=1, display_name=display_name, requests=requests, presence=presence)
        await self._ask(change, api.Done)
        if display_name is not None:
            self._sync.display_name = display_name

    # --- signs of life ------------------------------------------------------------------------------------
    async def typing(self, conversation: str, on: bool = True) -> None:
        """Show the others in a conversation (an id or an address) that a person types here.

        It is said again every few seconds, until `on=False`, a message sent there, or half a minute without a call.
        """
        self._sync.signs.types(conversation, False)
        await self._ask(api.Typing(id=1, conversation=conversation, on=on), api.Done)
        self._sync.signs.types(conversation, on)

    async def presence(self, state: Literal["online", "away"]) -> None:
        """A person is before this device, or is not; said again while they are, at least every five minutes.

        Remembered for the next connection where there is none now.
        """
        if self._sync.signs.present(state):
            await self._ask(api.SetPresence(id=1, state=state), api.Done)

    @property
    def presences(self) -> dict[str, str]:
        """Contacts who are `online` or `away`, by address, once this device said its own `presence`."""
        return self._sync.signs.presences

    # --- sending ------------------------------------------------------------------------------------------
    async def send(
        self, to: str, text: str, *, key: str | None = None, reply_to: str | None = None, thread: str | None = None
    ) -> Message:
        """Queue a message for an address or a conversation id; it is on disk when this returns.

        `reply_to` is the id of the message that it answers, `thread` that of the first one of its thread.
        """
        return await self._queue(to, encoded(text), "text", key, reply_to, thread=thread)

    async def send_body(self, to: str, body: bytes, format: str = "text", key: str | None = None) -> Message:
        """Queue any bytes."""
        return await self._queue(to, body, format, key, None)

    async def _queue(
        self, to: str, body: bytes, format: str, key: str | None, reply_to: str | None, kind: str = "message",
        thread: str | None = None, undo: bool = False,
    ) -> Message:  # fmt: skip
        if self._hub.error is not None:
            raise self._hub.error
        if len(body) > api.BODY_BYTES_MAX:
            raise api.ApiError("too_large", f"a message has at most {api.BODY_BYTES_MAX} bytes, this has {len(body)}")
        if key is not None and not 1 <= len(key) <= 64:
            raise api.ApiError("bad_request", "a key has 1 to 64 characters")
        about = api.Send(
            id=1, key=key or "new", to=to, body=body, format=format, target=reply_to, kind=kind, thread=thread
        )
        checked(about)
        draft = Draft(
            key or secrets.token_hex(KEY_BYTES), str(Address.parse(to)) if "@" in to else to, body, format, reply_to,
            self.address, self.device, time.time_ns() // 1_000_000, kind, thread, undo,
        )  # fmt: skip
        connected = self._sync.is_up
        self._sync.signs.sent(to)
        future = self._store.submit(lambda db: outbox.put(db, draft, connected))
        # A callback and not the lines after `await`: a caller that is cancelled now has queued it all the same.
        future.add_done_callback(self._queued)
        return (await asyncio.shield(future)).message

    def _queued(self, future: "asyncio.Future[outbox.Queued]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        queued = future.result()
        if queued.row is not None:
            is_act = queued.message.kind in ACTS
            self._hub.publish([Change("state" if is_act else "message", queued.message)])
            act = queued.message if is_act else None
            self._hub.publish([Change("update", m, act=act) for m in queued.changed])
            self._sync.queued(queued.row)

    async def wait(self, key: str, state: State, timeout: float) -> Message:
        """The message once it got so far, or failed or is void; `TimeoutError` when that takes too long.

        `ApiError` then instead, if the node refuses it for now (`storage_full`, `busy`): it is tried again.
        """
        wanted = rows.RANK[state]
        message = self._hub.recent(key) or await self._store.run(lambda db: rows.by_key(db, key))
        if message is None:
            raise api.ApiError("not_found", f"there is no message with key {key!r} in this profile")
        if is_reached(message, wanted):
            return message
        if self._hub.error is not None:
            raise self._hub.error
        future = self._hub.expect(key, wanted)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            if (refusal := await self._refusal(key)) is not None:
                raise refusal from None
            raise TimeoutError(f"the message is not yet {state} after {timeout:g} s") from None
        finally:
            self._hub.drop(key, future)

    async def _refusal(self, key: str) -> api.ApiError | None:
        message = await self._store.run(lambda db: rows.by_key(db, key))
        if message is None or message.state != "queued":
            return None
        target, _, _ = await self._store.run(lambda db: outbox.content(db, key))
        why = self._sync.refusal(target)
        return api.ApiError(why.code, why.message, why.retry_after_ms) if why is not None else None

    async def retry(self, key: str) -> Message:
        """Send a failed message again: under its key if the node never took it, else as a new one."""
        message = await self._store.run(lambda db: rows.by_key(db, key))
        if message is None or message.state not in ("failed", "void"):
            raise api.ApiError("not_found", f"there is no failed message with key {key!r} in this profile")
        target, body, format = await self._store.run(lambda db: outbox.content(db, key))
        fresh = None if message.id is not None else key
        about = message.kind, message.thread, message.undo
        return await self._queue(target, body, format, fresh, message.reply_to, *about)

    async def withdraw(self, key: str) -> bool:
        """Take back a message that is queued or was refused; whether it was only here, and is gone now."""
        gone = await self._store.run(lambda db: outbox.withdraw(db, key))
        if gone is None:
            return False
        self._hub.forget(key)
        self._hub.publish([Change("update", m) for m in gone[1]])
        self._hub.publish([Change("conversation", detail="everything")])
        return True

    # --- what comes ---------------------------------------------------------------------------------------
    def events(self, kinds: Collection[str] | None = None, from_start: bool = False) -> Events:
        """Changes from where this profile stopped, each acknowledged once the next is asked for.

        `from_start`: first all messages that this device has. Own messages of this device are not among them.
        """
        return Events(self._store, self._hub, Me(self.address, self.device), kinds, from_start, self._sync.consumed)

    def changes(self) -> Screen:
        """For screens: the newest of each thing. What is stored counts as delivered while one is open."""
        return Screen(self._hub)

    async def conversations(self) -> list[Conversation]:
        """From the local store, newest first; also those whose first message the node did not take yet."""
        return await self._store.run(rows.conversations)

    async def messages(self, conversation: str, before: int | str | None = None, limit: int = 200) -> list[Message]:
        """From the local store, oldest first; `before` is a message's key or id, or a stamp in ms."""
        return await self._store.run(lambda db: rows.page(db, conversation, before, limit))

    async def read(self, conversation: str) -> None:
        """A person has seen everything of the conversation that is here; told to the node when connected."""
        await self._see(lambda db: marks.see_all(db, conversation), conversation)

    async def mark_read(self, message: Message) -> None:
        """A person has seen this message and those before it in its log."""
        if not message.mine and message.log:
            await self._see(lambda db: marks.see_message(db, message), message.conversation)

    async def _see(self, job: Callable[..., None], conversation: str) -> None:
        await self._store.run(job)
        self._sync.seen()
        found = await self._store.run(lambda db: rows.conversations(db, [conversation]))
        self._hub.publish([Change("conversation", conversation=c) for c in found])


async def _dial(link: NodeLink) -> Wire:
    from node.client.channels import connect  # only here: an embedded client needs no network

    return await connect(link)
