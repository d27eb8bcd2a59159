"""Plain questions to the node: what has an answer and needs no store."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import structs

from node import api
from node.client.errors import Lost, Unreachable
from node.client.fold import apply, fold, mentions, quoted
from node.client.model import ACTS, Conversation, Message
from node.client.rows import QUEUED_ORDER, by_id, from_damaged, from_node, marks, only_here, pieces
from node.client.session import Session
from node.client.store import Store

R = TypeVar("R", bound=api.Result)


class Asks:
    """Base of `Client`; every method raises `ApiError`, `Unreachable` or `Lost`."""

    address: str
    device: str
    _store: Store
    _live: Callable[[], Awaitable[Session]]

    async def _ask(self, request: api.AnyRequest, kind: type[R], repeat: bool = True) -> R:
        """`repeat`: asking twice changes nothing, so a lost connection is worth a second try."""
        try:
            result = await (await self._live()).request(request)
        except Lost:
            if not repeat:
                raise
            result = await (await self._live()).request(request)
        if not isinstance(result, kind):
            raise Unreachable(f"the node answered with {type(result).__name__} instead of {kind.__name__}")
        return result

    async def history(self, target: str, limit: int = 200) -> list[Message]:
        """The newest messages of a conversation (an id or an address) from the node, oldest first.

        With them, what was written here and the node does not have: refused, or still queued.
        """
        here = await self._store.run(lambda db: only_here(db, target))
        pages: list[tuple[api.Message | api.Damaged, ...]] = []
        about: list[api.Message] = []
        before, left, more = None, limit, True
        while left > 0 and more:
            request = api.GetHistory(id=1, conversation=target, before=before, limit=min(left, api.PAGE_MAX))
            page = await self._ask(request, api.History)
            if not page.messages:
                break
            pages.append(page.messages)
            about += page.about
            before = next((m.event for m in page.messages if m.event), None)
            left -= sum(isinstance(m, api.Damaged) or m.kind not in ACTS for m in page.messages)
            more = page.more and before is not None
        every = [item for page_ in reversed(pages) for item in page_]
        ours = [m for m in every if isinstance(m, api.Message) and m.device == self.device]
        keys = await self._keys([m.event for m in ours])
        for item in ours:  # some got there meanwhile; before its reply is stored, only the text tells which
            key = keys.get(item.event)
            queued = (m for m in here if (m.key == key if key else (m.kind, m.text.encode()) == (item.kind, item.body)))
            if (same := next(queued, None)) is not None:
                keys[item.event] = same.key
                here.remove(same)
        found: list[Message] = []
        order = next((int(m.order, 16) for m in every if isinstance(m, api.Message)), 0)
        for each in every:
            order = int(each.order, 16) if isinstance(each, api.Message) else order
            if isinstance(each, api.Damaged):
                found.append(from_damaged(each, order))
            else:
                found.append(from_node(each, self.address, keys.get(each.event)))
        found += [m for m in here if m.kind not in ACTS or m.state == "queued"]
        acts = [from_node(item, self.address) for item in about]
        shown = sorted(self._folded(found, acts), key=lambda m: m.order or QUEUED_ORDER)[-limit:]
        return await self._quoted(shown)

    def _folded(self, found: list[Message], more: list[Message]) -> list[Message]:
        """The messages among these, with what the acts among these and `more` did to them."""
        of: dict[str | None, dict[str, Message]] = {}
        for act in (*found, *more):
            if act.kind in ACTS:
                of.setdefault(act.reply_to, {})[act.id or act.key] = act
        replies = Counter(m.thread for m in found if m.thread and not m.deleted)
        out = []
        for m in found:
            if m.kind in ACTS:
                continue
            now = apply(m, fold(m, of.get(m.id, {}).values() if m.id else (), replies=replies[m.id or ""]))
            named = not m.mine and mentions(now.text, self.address)
            out.append(structs.replace(now, mentions_me=named))
        return out

    async def _quoted(self, found: list[Message]) -> list[Message]:
        """With what each answers, from among these or from the store."""
        here: dict[str | None, Message] = {m.id: m for m in found if m.id}
        away = [m.reply_to for m in found if m.reply_to and m.reply_to not in here]
        if away:
            here |= await self._store.run(lambda db: {m.id: m for piece in pieces(away) for m in by_id(db, piece)})
        return [
            structs.replace(m, quote=quoted(here[m.reply_to])) if m.reply_to in here and not m.deleted else m
            for m in found
        ]

    async def _keys(self, events: list[str]) -> dict[str, str]:
        """This device's own keys of its messages."""
        if not events:
            return {}
        return await self._store.run(
            lambda db: {
                event: key
                for piece in pieces(events)
                for event, key in db.execute(f"SELECT id, key FROM message WHERE id IN ({marks(len(piece))})", piece)
            }
        )

    async def state(self, event_id: str) -> api.States:
        return await self._ask(api.GetState(id=1, event=event_id), api.States)

    async def why(self, event_id: str) -> api.Why:
        return await self._ask(api.GetWhy(id=1, event=event_id), api.Why)

    async def requests(self) -> list[Conversation]:
        """People who wrote first and wait for an answer, the latest first."""
        found: list[api.ConversationState] = []
        after, more = None, True
        while more:
            request = api.GetConversations(id=1, requests_only=True, after=after, limit=api.PAGE_MAX)
            page = await self._ask(request, api.Conversations)
            found += page.conversations
            after, more = (found[-1].conversation, page.more) if page.conversations else (None, False)
        found.sort(key=lambda c: c.last, reverse=True)
        return [Conversation(c.conversation, c.other, last_stamp=c.last, request=True) for c in found]

    async def accept(self, conversation: str) -> None:
        await self._ask(api.Accept(id=1, conversation=conversation), api.Done)

    async def decline(self, conversation: str) -> None:
        await self._ask(api.Decline(id=1, conversation=conversation), api.Done)

    async def block(self, who: str) -> None:
        """Nothing of theirs comes any more, and nothing goes to them: an address, or a node for all its users."""
        await self._ask(api.Block(id=1, who=who), api.Done)

    async def unblock(self, who: str) -> None:
        await self._ask(api.Unblock(id=1, who=who), api.Done)

    async def blocked(self) -> list[api.BlockState]:
        return list((await self._ask(api.GetBlocks(id=1), api.Blocks)).blocks)

    async def devices(self) -> list[api.DeviceState]:
        return list((await self._ask(api.GetDevices(id=1), api.Devices)).devices)

    async def rename_device(self, device: str, name: str) -> None:
        await self._ask(api.RenameDevice(id=1, device=device, name=name), api.Done)

    async def revoke_device(self, device: str) -> None:
        """Its token is dead at once. Revoking this very device is logging out."""
        await self._ask(api.RevokeDevice(id=1, device=device), api.Done, repeat=False)
