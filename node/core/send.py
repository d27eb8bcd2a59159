"""A local user sends: one decision from request to accepted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from federation.event import ACTS, BODY_FORMATS, KINDS, THREAD, UNDO, Event, act_problem
from federation.ids import User, digest, direct_conversation, to_text
from node.api import Accepted, ApiError
from node.core import acts, log, rows
from node.core.authorize import Authored, authorize, block_keys
from node.core.context import Context
from node.core.view import Key, View


@dataclass(frozen=True, slots=True)
class Send:
    """One event of a direct conversation; `key` makes repeating it safe (PROTOCOL.md 7.5)."""

    grows: ClassVar[bool] = True  # not taken while the disk has no room

    sender: str
    device: bytes
    key: str
    to: User | bytes  # a user, or the id of a conversation the sender is in
    kind: str
    body_format: str
    body: bytes
    target: bytes | None = None
    expires_ms: int | None = None
    thread: bytes | None = None
    undo: bool = False

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.SentKey, (self.device, self.key)
        yield rows.Account, (self.sender,)
        if isinstance(self.to, bytes):
            yield rows.Conversation, (self.to,)
            return
        if self.to.node == context.node:
            yield rows.Account, (self.to.local,)
        else:
            yield rows.Block, ("", *self.to)
        me = User(context.node, self.sender)
        yield from log.append_keys(context, direct_conversation(me, self.to), (me, self.to))
        yield from ((rows.Place, (event,)) for event in self._about)

    @property
    def _about(self) -> list[bytes]:
        return [event for event in (self.target, self.thread) if event is not None]

    def _other(self, view: View, me: User) -> User:
        if isinstance(self.to, User):
            return self.to
        row = view.get(rows.Conversation, self.to)
        if row is None or me not in log.members(row):
            raise ApiError("not_found", "no such conversation, or you are not in it; write to an address first")
        return next((m for m in log.members(row) if m != me), me)

    def decide(self, view: View, context: Context) -> Accepted:
        me = User(context.node, self.sender)
        other = self._other(view, me)
        conversation = direct_conversation(me, other)
        said = [conversation, self.kind.encode(), self.body_format.encode(), self.target or b"", self.body]
        if self.expires_ms is not None:  # left out when there is none, as it was when older keys were used
            said.append(self.expires_ms.to_bytes(8, "big"))
        if self.thread is not None or self.undo:
            said += [b"thread", self.thread or b"", b"undo" if self.undo else b""]
        request = digest("request", *said)
        used = view.get(rows.SentKey, self.device, self.key)
        if used is not None:
            return self._repeat(view, context, used, request)
        account = view.get(rows.Account, self.sender)
        blocks = block_keys(context, account, other) if account is not None else ()
        keys = [*log.append_keys(context, conversation, (me, other)), *blocks]
        acts.want(view, [acts.Deed(conversation, self.kind, event, me) for event in self._about], keys)
        authorize(view, context, self.sender, "send", other)
        if len(self.body) > context.message_bytes_max:
            limit = f"a message has at most {context.message_bytes_max} bytes here, this has {len(self.body)}"
            raise ApiError("too_large", limit)
        if self.kind not in KINDS or self.kind == "notices" or self.body_format not in BODY_FORMATS:
            raise ApiError("bad_request", f"kind {self.kind!r} with format {self.body_format!r} cannot be sent")
        ext = self._act(view, context, conversation, me)
        _open(view, context, conversation, me, other)
        event = log.append(
            view, context, conversation, self.kind, self.body_format, self.body,
            self.sender, self.device, self.target, self.expires_ms, ext,
        )  # fmt: skip
        view.put(rows.SentKey(self.device, self.key, request, event.header.log.key, event.header.seq))
        self._fan_out(view, context, event, me, other)
        return _accepted(
            event.id, conversation, context, event.header.incarnation, event.header.seq, event.header.stamp
        )

    def _act(self, view: View, context: Context, conversation: bytes, me: User) -> dict[str, bytes]:
        """What the event says beside its body; `ApiError` where it is about something that it may not be about."""
        ext = ({THREAD: self.thread} if self.thread is not None else {}) | ({UNDO: b""} if self.undo else {})
        for event in self._about:
            if acts.target(view, conversation, event) is None:
                raise ApiError("not_found", "no such message in this conversation")
        if wrong := act_problem(self.kind, self.target, self.body_format, len(self.body), ext):
            raise ApiError("bad_request", wrong)
        if self.kind in ACTS and self.target is not None:
            found = acts.target(view, conversation, self.target)
            assert found is not None
            authorize(view, context, self.sender, self.kind, Authored(conversation, found[1]))
            if acts.is_deleted(view, conversation, self.target, found[1]):
                raise ApiError("not_found", "that message was deleted")
            if acts.is_full(view, conversation, self.kind, self.target, me):
                raise ApiError(
                    "too_large", f"nobody edits one message or reacts to it more than {acts.OF_ONE_MAX} times"
                )
        return ext

    def _fan_out(self, view: View, context: Context, event: Event, me: User, other: User) -> None:
        key, seq = event.header.log.key, event.header.seq
        log.deliver(view, context, event, me.local)
        if other.node != context.node:
            log.queue(view, other.node, event)
        elif other != me:
            log.deliver(view, context, event, other.local)
            new = rows.Receipt(key, context.node, other.local, seq, 0, 0, b"", context.now_ms, 0, 0)
            receipt = log.merge(view.get(rows.Receipt, key, context.node, other.local), new)
            view.put(receipt)
            head = view.get(rows.LogHead, key)
            assert head is not None
            log.watermark(view, context, head, receipt)

    def _repeat(self, view: View, context: Context, used: rows.SentKey, request: bytes) -> Accepted:
        if used.request_hash != request:
            raise ApiError("conflict", f"key {self.key!r} was used for another message; nothing was stored")
        event = view.get(rows.StoredEvent, used.log, used.seq)
        head = view.get(rows.LogHead, used.log)
        if event is None or head is None:
            raise ApiError("damaged", "it was accepted before, and is damaged here now; nothing more was stored")
        return _accepted(event.event, event.conversation, context, head.incarnation, used.seq, event.stamp)


def _accepted(
    event: bytes, conversation: bytes, context: Context, incarnation: bytes, seq: int, stamp: int
) -> Accepted:
    return Accepted(
        to_text(event), to_text(conversation), to_text(context.node), to_text(incarnation), seq, stamp >> 16
    )


def _open(view: View, context: Context, conversation: bytes, me: User, other: User) -> None:
    """The conversation exists and the sender wants it; whether the other does is theirs to say."""
    if view.get(rows.Conversation, conversation) is None:
        a, b = sorted((me, other))
        view.put(rows.Conversation(conversation, "direct", a.node, a.local, b.node, b.local))
    stamp = context.last_stamp
    mine = view.get(rows.Standing, conversation, me.local)
    if mine is None or mine.state != "open":
        if mine is not None:
            view.hint("opened", conversation + me.local.encode())
        mine = rows.Standing(conversation, me.local, "open", stamp)
        view.put(mine)
        log.conversation_fact(view, context, mine)
    if other.node == context.node and other != me:
        theirs = view.get(rows.Standing, conversation, other.local)
        if theirs is None:
            account = view.get(rows.Account, other.local)
            assert account is not None
            state = "request" if account.requests == "everyone" else "open"
            theirs = rows.Standing(conversation, other.local, state, stamp)
            view.put(theirs)
            log.conversation_fact(view, context, theirs)
