"""What a client may ask besides sending: one handler per request type of the client protocol."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from federation.identity import verify
from federation.ids import DEVICE_ID_BYTES, User, to_text
from federation.ports import FRAME_BYTES_MAX
from node import api, blocks
from node.api import ApiError
from node.core import render, rows
from node.core.log import members
from node.core.people import AddAccount, AddDevice, ChangeAccount, ChangeDevice
from node.core.progress import Acknowledge, Consent, parse_mark
from node.directory import conversation_id, device_id, event_id
from node.storage import reads
from node.system import token_hash

if TYPE_CHECKING:
    from node.session import Session

TOKEN_BYTES = 32
HISTORY_BYTES_MAX = FRAME_BYTES_MAX - 1024  # of a page, in JSON


async def handle(session: "Session", frame: Any) -> Any:
    """The result of a request. Who looks things up does one after the other, on all their connections together: the
    readers of the store are few, and a page of history must not wait behind hundreds of somebody else's. A connection
    that takes no answers waits outside."""
    handler = HANDLERS[type(frame)]
    if not isinstance(frame, LOOKS):
        return await handler(session, frame)
    turn = session.node.turns.setdefault(session.logged_in().local, asyncio.Lock())
    while True:
        await session.caught_up()
        async with turn:
            if not session.is_behind:
                return await handler(session, frame)


async def login(session: "Session", frame: api.Login) -> api.LoggedIn:
    """A wrong name and a wrong password get one answer, after the same work."""
    node = session.node
    account = await node.store.read(reads.account, frame.user)
    if not await node.check_password(account, frame.user, frame.password):
        raise ApiError("bad_login", "name or password is wrong")
    checked = account.password if account is not None and node.authenticate is None else None
    return await _new_device(session, frame.user, frame, checked)


async def register(session: "Session", frame: api.Register) -> api.LoggedIn:
    node = session.node
    if node.config.registration != "invite":
        raise ApiError("forbidden", "this node makes no accounts by invite; ask its administrator for one")
    _proved(session, frame)  # before the invite is used up
    hashed = await node.system.hash_password(frame.password)
    await node.store.submit(AddAccount(frame.user, hashed, token_hash(frame.invite)))
    return await _new_device(session, frame.user, frame)


def _proved(session: "Session", frame: "api.Login | api.Register") -> None:
    signed = api.login_bytes(session.node.us.node, session.nonce, frame.user)
    if not verify(frame.signing_key, "device-login", signed, frame.proof):
        raise ApiError("bad_request", "the device's signing key did not prove itself")


async def _new_device(
    session: "Session", user: str, frame: "api.Login | api.Register", password: str | None = None
) -> api.LoggedIn:
    _proved(session, frame)
    node = session.node
    token = to_text(node.system.random(TOKEN_BYTES))
    device = node.system.random(DEVICE_ID_BYTES)
    made = AddDevice(device, user, frame.device_name, token_hash(token), frame.signing_key, password)
    await node.store.submit(made)
    return api.LoggedIn(f"{user}@{node.us.name}", to_text(device), token)


async def ping(session: "Session", frame: api.Ping) -> api.Done:
    return api.Done()


async def read(session: "Session", frame: api.Read) -> api.Done:
    device = session.logged_in()
    conversation = session.node.conversation(device.local, frame.conversation)
    seen = tuple(parse_mark(conversation, mark) for mark in frame.marks)
    await session.node.store.submit(Acknowledge(device.local, device.device, 0, seen))
    return api.Done()


async def history(session: "Session", frame: api.GetHistory) -> api.History:
    node, device = session.node, session.logged_in()
    conversation = node.conversation(device.local, frame.conversation)
    row = await node.store.read(reads.conversation_of, device.local, conversation)
    if row is None:
        if "@" not in frame.conversation:
            raise ApiError("not_found", "no such conversation, or you are not in it")
        return api.History(())  # with that person nothing was said yet
    before = event_id(frame.before) if frame.before else None
    bounds = (frame.limit, HISTORY_BYTES_MAX)
    read = await node.store.read(reads.history, node.us.node, conversation, before, *bounds)

    def shown(p: reads.Placed | reads.Broken) -> api.Message | api.Damaged:
        if isinstance(p, reads.Broken):
            return render.damaged(p.why, *p[2:])
        state = reason = ""
        address = node.directory.address
        if p.origin == node.us.node and p.event.sender == device.local:
            me = User(p.origin, device.local)
            to = render.recipients(row, me, p.event, read.receipts, read.failed, address)
            state, reason = (to[0].state, to[0].reason) if to else ("accepted", "")
        return render.message(p.origin, p.incarnation, p.event, p.header, address, 0, state, reason)

    about = tuple(item for item in map(shown, read.about) if isinstance(item, api.Message))
    return api.History(tuple(map(shown, read.page)), read.more, about)


async def conversations(session: "Session", frame: api.GetConversations) -> api.Conversations:
    node, device = session.node, session.logged_in()
    me = User(node.us.node, device.local)
    after = conversation_id(frame.after) if frame.after else b""
    page, marks, more = await node.store.read(
        reads.standings_of, me.node, me.local, frame.requests_only, after, frame.limit
    )
    out = []
    for standing, row in page:
        other = next((m for m in members(row) if m != me), me) if row is not None else None
        read_upto = tuple(api.Mark(to_text(o), to_text(i), seq) for o, i, seq in marks.get(standing.conversation, ()))
        out.append(
            api.ConversationState(
                to_text(standing.conversation),
                node.directory.address(*other) if other is not None else "",
                standing.state,  # type: ignore[arg-type]
                read_upto,
                standing.last_stamp >> 16,
            )
        )
    return api.Conversations(tuple(out), more)


async def accept(session: "Session", frame: api.Accept) -> api.Done:
    return await _consent(session, frame.conversation, True)


async def decline(session: "Session", frame: api.Decline) -> api.Done:
    return await _consent(session, frame.conversation, False)


async def _consent(session: "Session", text: str, yes: bool) -> api.Done:
    device = session.logged_in()
    conversation = session.node.conversation(device.local, text)
    if await session.node.store.read(reads.conversation_of, device.local, conversation) is None:
        raise ApiError("not_found", "no such request")
    logs = await session.node.store.read(reads.logs_of, conversation)
    await session.node.store.submit(Consent(device.local, conversation, yes, tuple(log.log for log in logs)))
    session.node.ephemerals.changed(device.local)
    return api.Done()


async def state(session: "Session", frame: api.GetState) -> api.States:
    device = session.logged_in()
    placed, row = await _visible(session, device.local, frame.event)
    us = session.node.us.node
    receipts, failed, _, _ = await session.node.store.read(reads.progress, us, placed.event.log)
    sender = User(placed.origin, placed.event.sender)
    to = render.recipients(row, sender, placed.event, receipts, failed, session.node.directory.address)
    return api.States(frame.event, to, to_text(row.conversation))


async def why(session: "Session", frame: api.GetWhy) -> api.Why:
    device = session.logged_in()
    placed, _ = await _visible(session, device.local, frame.event)
    return await session.node.why(placed.event.event)


async def _visible(session: "Session", local: str, text: str) -> tuple[reads.Placed, rows.Conversation]:
    """An event of a conversation of this user; anything else is uniformly not found."""
    found = await session.node.store.read(reads.event_by_id, event_id(text), User(session.node.us.node, local))
    if found is None:
        raise ApiError("not_found", "no such message here, or not one of yours")
    return found


async def devices(session: "Session", frame: api.GetDevices) -> api.Devices:
    device = session.logged_in()
    found = await session.node.store.read(reads.devices_of, device.local)
    return api.Devices(tuple(render.device(row, device.device) for row in found))


async def rename_device(session: "Session", frame: api.RenameDevice) -> api.Done:
    await session.node.store.submit(ChangeDevice(session.logged_in().local, device_id(frame.device), frame.name))
    return api.Done()


async def revoke_device(session: "Session", frame: api.RevokeDevice) -> api.Done:
    await session.node.store.submit(ChangeDevice(session.logged_in().local, device_id(frame.device), revoke=True))
    return api.Done()


async def set_profile(session: "Session", frame: api.SetProfile) -> api.Done:
    local = session.logged_in().local
    change = ChangeAccount(
        local, display_name=frame.display_name, requests=frame.requests, presence=frame.presence
    )  # fmt: skip
    await session.node.store.submit(change)
    if frame.presence is not None:
        session.node.ephemerals.changed(local)
    return api.Done()


async def block(session: "Session", frame: api.Block) -> api.Done:
    await blocks.change(session.node, session.logged_in().local, frame.who, True)
    return api.Done()


async def unblock(session: "Session", frame: api.Unblock) -> api.Done:
    await blocks.change(session.node, session.logged_in().local, frame.who, False)
    return api.Done()


async def get_blocks(session: "Session", frame: api.GetBlocks) -> api.Blocks:
    return api.Blocks(await blocks.show(session.node, session.logged_in().local))


async def typing(session: "Session", frame: api.Typing) -> api.Done:
    local = session.logged_in().local
    await session.node.ephemerals.typing(local, frame.conversation, frame.on)
    return api.Done()


async def presence(session: "Session", frame: api.SetPresence) -> api.Done:
    await session.node.ephemerals.claim(session, session.logged_in().local, frame.state)
    return api.Done()


LOOKS = (
    api.GetHistory, api.GetConversations, api.GetState, api.GetWhy, api.GetDevices, api.GetBlocks, api.Typing,
    api.SetPresence,
)  # fmt: skip
HANDLERS: dict[type, Callable[[Any, Any], Awaitable[Any]]] = {
    api.Login: login,
    api.Register: register,
    api.Ping: ping,
    api.Read: read,
    api.GetHistory: history,
    api.GetConversations: conversations,
    api.Accept: accept,
    api.Decline: decline,
    api.GetState: state,
    api.GetWhy: why,
    api.GetDevices: devices,
    api.RenameDevice: rename_device,
    api.RevokeDevice: revoke_device,
    api.SetProfile: set_profile,
    api.Block: block,
    api.Unblock: unblock,
    api.GetBlocks: get_blocks,
    api.Typing: typing,
    api.SetPresence: presence,
}
