"""Sent, delivered, read: watermarks that only rise, and how the other side learns of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from federation import wire
from federation.ids import INCARNATION_BYTES, NODE_ID_BYTES, Log, User, from_text, notice_conversation, to_text
from node import api
from node.api import ApiError
from node.core import log, rows
from node.core.authorize import authorize, block_keys, is_blocked
from node.core.context import Context
from node.core.view import Key, View


@dataclass(frozen=True, slots=True)
class Seen:
    """A local member's progress over one log."""

    log: Log
    delivered: int = 0
    read: int = 0
    missing: tuple[int, ...] = ()
    since: int = 0  # says nothing about `missing` up to here


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """A device stored and opened its feed up to `position`; a person saw what `read` says."""

    local: str
    device: bytes
    position: int
    seen: tuple[Seen, ...]

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Device, (self.device,)
        yield rows.Account, (self.local,)
        yield rows.Mailbox, (self.local,)
        for seen in self.seen:
            key = seen.log.key
            yield rows.LogHead, (key,)
            yield rows.Receipt, (key, context.node, self.local)
            yield rows.Standing, (seen.log.conversation, self.local)
            yield rows.Conversation, (seen.log.conversation,)
            if seen.log.origin != context.node:
                notices = notice_conversation(context.node, seen.log.origin)
                yield from log.append_keys(context, notices, (User(seen.log.origin, ""),))

    def decide(self, view: View, context: Context) -> api.Done:
        authorize(view, context, self.local, "receipts")
        for seen in self.seen:  # before anything else is looked up: others' logs must not cost more than none
            standing = view.get(rows.Standing, seen.log.conversation, self.local)
            if view.get(rows.LogHead, seen.log.key) is None or standing is None:
                raise ApiError("not_found", "no such log in a conversation of yours")
        device = view.get(rows.Device, self.device)
        if device is not None and self.position > device.acked:
            view.put(device._replace(acked=self.position, seen_ms=context.now_ms))
            log.fetched(view, self.local, self.position)
        own = (view.get(rows.Conversation, s.log.conversation) for s in self.seen if s.log.origin == context.node)
        view.want(*_mailboxes(context, own), *self._blocks(view, context))
        marks = [mark for seen in self.seen if (mark := _progress(view, context, self.local, seen))]
        if marks:
            conversation = self.seen[0].log.conversation
            standing = view.get(rows.Standing, conversation, self.local)
            if standing is not None:
                log.conversation_fact(view, context, standing, tuple(marks))
        return api.Done()

    def _blocks(self, view: View, context: Context) -> Iterable[Key]:
        """Asked for together, as the mailboxes are."""
        account = view.get(rows.Account, self.local)
        assert account is not None
        for seen in self.seen:
            for other in _others(view, context, self.local, seen.log.conversation):
                yield from block_keys(context, account, other)


def _others(view: View, context: Context, local: str, conversation: bytes) -> list[User]:
    row = view.get(rows.Conversation, conversation)
    return [m for m in log.members(row) if m != User(context.node, local)] if row is not None else []


def _hears_nothing(view: View, context: Context, local: str, conversation: bytes) -> bool:
    """Whether the other member of a direct conversation is blocked by this one."""
    account = view.get(rows.Account, local)
    assert account is not None
    return any(is_blocked(view, context, account, m) for m in _others(view, context, local, conversation))


def _progress(view: View, context: Context, local: str, seen: Seen) -> api.Mark | None:
    """Raise one watermark; gives the read mark for the user's other devices when that moved.

    While they block the other one nothing moves: it could only be shown to go back.
    """
    if _hears_nothing(view, context, local, seen.log.conversation):
        return None
    head = view.get(rows.LogHead, seen.log.key)
    standing = view.get(rows.Standing, seen.log.conversation, local)
    assert head is not None
    assert standing is not None
    old = view.get(rows.Receipt, head.log, context.node, local)
    delivered, read = min(max(seen.delivered, seen.read), head.seq), min(seen.read, head.seq)
    now = context.now_ms
    new = rows.Receipt(
        head.log, context.node, local, delivered, delivered, read, log.pack(seen.missing), now, now, now
    )  # fmt: skip
    receipt = log.merge(old, new, seen.since)
    if old is not None and receipt == old:
        return None
    view.put(receipt)
    if standing.state == "open":  # a request gives no sign of life until it is accepted
        tell(view, context, head, receipt)
    moved = read > (old.read if old else 0)
    return api.Mark(to_text(head.origin), to_text(head.incarnation), read) if moved else None


def _mailboxes(context: Context, conversations: Iterable[rows.Conversation | None]) -> list[Key]:
    """The local members' mailboxes: asked for together, since a round per conversation would be too many."""
    people = {member for row in conversations if row is not None for member in log.members(row)}
    return [(rows.Mailbox, (user.local,)) for user in people if user.node == context.node]


def tell(view: View, context: Context, head: rows.LogHead, receipt: rows.Receipt) -> None:
    """Tell the log's own node, or the local members when that is us."""
    if head.origin == context.node:
        log.watermark(view, context, head, receipt)
        return
    at_ms = max(receipt.delivered_ms, receipt.read_ms)
    missing = log.unpack(receipt.missing)[: wire.EXCEPTIONS_MAX]
    view.notice(
        head.origin,
        wire.Receipt(
            head.conversation, head.incarnation, receipt.local, receipt.delivered, receipt.read, missing, at_ms
        ),
    )


class CloseNotices:
    """The last command of every batch: one notices event per peer for all it had to tell (PROTOCOL.md 6.1)."""

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> None:
        own = {peer: notice_conversation(context.node, peer) for peer in view.notices}
        view.want(*(key for peer, of in own.items() for key in log.append_keys(context, of, (User(peer, ""),))))
        view.want(*(key for of in own.values() for key in log.predecessor_keys(view, context, of)))
        for peer, receipts in view.notices.items():
            newest = {(r.conversation, r.incarnation, r.member): r for r in receipts}
            conversation = own[peer]
            if view.get(rows.Conversation, conversation) is None:
                view.put(rows.Conversation(conversation, "notices", context.node, "", peer, ""))
            values = list(newest.values())
            for start in range(0, len(values), wire.RECEIPTS_MAX):
                body = wire.encode(wire.Notices(tuple(values[start : start + wire.RECEIPTS_MAX])))
                event = log.append(view, context, conversation, "notices", "notices", body)
                log.queue(view, peer, event)


def want_receipts(view: View, context: Context, peer: bytes, receipts: Sequence[wire.Receipt]) -> list[bytes]:
    """Ask for all that `receipts_arrived` will read, in two rounds however many there are; the keys of their logs."""
    logs = [Log(r.conversation, context.node, r.incarnation).key for r in receipts]
    view.want(
        *((rows.LogHead, (key,)) for key in logs),
        *((rows.Conversation, (r.conversation,)) for r in receipts),
        *((rows.Receipt, (key, peer, r.member)) for key, r in zip(logs, receipts, strict=True)),
    )
    view.want(*_mailboxes(context, (view.get(rows.Conversation, r.conversation) for r in receipts)))
    return logs


def receipts_arrived(view: View, context: Context, peer: bytes, receipts: tuple[wire.Receipt, ...]) -> int:
    """A peer's word about its own users only, clamped to what our log has (PROTOCOL.md 6.2); how many said anything."""
    logs = want_receipts(view, context, peer, receipts)
    moved = 0
    for key, r in zip(logs, receipts, strict=True):
        head, conversation = view.get(rows.LogHead, key), view.get(rows.Conversation, r.conversation)
        if head is None or conversation is None or conversation.kind != "direct":
            continue
        if User(peer, r.member) not in log.members(conversation):
            continue
        delivered, read = min(r.delivered, head.seq), min(r.read, head.seq)
        new = rows.Receipt(
            key, peer, r.member, delivered, delivered, read, log.pack(r.missing), r.at_ms, r.at_ms, r.at_ms
        )
        old = view.get(rows.Receipt, key, peer, r.member)
        receipt = log.merge(old, new)
        if receipt != old:
            moved += 1
            view.put(receipt)
            log.watermark(view, context, head, receipt)
    return moved


@dataclass(frozen=True, slots=True)
class PeerAcked:
    """A peer committed a log of ours up to `ack.seq`, with verdicts (PROTOCOL.md 5.3, 5.4)."""

    peer: bytes
    ack: wire.LogAck

    def keys(self, context: Context) -> Iterable[Key]:
        key = Log(self.ack.conversation, self.ack.origin, self.ack.incarnation).key
        yield rows.Outbound, (self.peer, key)
        yield rows.Destination, (self.peer,)
        yield rows.LogHead, (key,)
        yield rows.Conversation, (self.ack.conversation,)
        yield rows.Peer, (self.peer,)

    def decide(self, view: View, context: Context) -> int:
        """The acknowledged number that now holds."""
        key = Log(self.ack.conversation, self.ack.origin, self.ack.incarnation).key
        outbound, head = view.get(rows.Outbound, self.peer, key), view.get(rows.LogHead, key)
        conversation = view.get(rows.Conversation, self.ack.conversation)
        if outbound is None or head is None or conversation is None:
            return 0
        acked = max(outbound.acked, min(self.ack.seq, outbound.head))
        if any((v.verdict, v.code) == ("later", "gap") for v in self.ack.verdicts):
            acked = min(self.ack.seq, outbound.head)  # it lost what it once acknowledged: offer it again
        if acked != outbound.acked:
            outbound = log.waits(view, outbound, outbound._replace(acked=acked))
        if head.origin != context.node:  # it was restored, and has its own log again (PROTOCOL.md 10.3)
            if acked == outbound.head:
                view.delete(outbound)
            return acked
        refused = [v for v in self.ack.verdicts if v.verdict == "refused" and v.seq <= acked]
        there = [m for m in log.members(conversation) if m.node == self.peer and conversation.kind == "direct"]
        view.want(
            *((rows.StoredEvent, (key, v.seq)) for v in refused),
            *((rows.Failed, (key, v.seq, *member)) for v in refused for member in there),
        )
        for member in there:
            for verdict in refused:
                code = verdict.code if verdict.code in wire.REFUSALS else "refused"  # not one that means more here
                fail(view, context, key, verdict.seq, member, code, verdict.reason)
            self._sent(view, context, head, member, acked)
        return acked

    def _sent(self, view: View, context: Context, head: rows.LogHead, member: User, acked: int) -> None:
        old = view.get(rows.Receipt, head.log, member.node, member.local)
        new = rows.Receipt(head.log, member.node, member.local, acked, 0, 0, b"", context.now_ms, 0, 0)
        receipt = log.merge(old, new)
        if receipt != old:
            view.put(receipt)
            log.watermark(view, context, head, receipt)


def fail(view: View, context: Context, key: bytes, seq: int, member: User, code: str, reason: str) -> None:
    """A final refusal: kept, and shown to the sender with its reason."""
    event = view.get(rows.StoredEvent, key, seq)
    if event is None or view.get(rows.Failed, key, seq, member.node, member.local) is not None:
        return
    view.put(rows.Failed(key, seq, member.node, member.local, code, reason, context.now_ms))
    item = api.Failure(
        event=to_text(event.event),
        conversation=to_text(event.conversation),
        member=log.address(view, context, member),
        code=code,
        reason=reason,
        at=context.now_ms,
    )
    log.fact(view, event.sender, b"f" + event.event[:16], item)


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Direct messages of a log, up to number `last`, are not waited for any more: they failed, as their senders see.

    The peer still gets their headers, since a log has no gaps (PROTOCOL.md 4.6).
    """

    peer: bytes
    log: bytes
    last: int
    code: str
    reason: str

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Outbound, (self.peer, self.log)
        yield rows.LogHead, (self.log,)
        yield rows.Destination, (self.peer,)
        yield rows.Peer, (self.peer,)

    def decide(self, view: View, context: Context) -> int:
        """How many failed."""
        queue, head = view.get(rows.Outbound, self.peer, self.log), view.get(rows.LogHead, self.log)
        conversation = view.get(rows.Conversation, head.conversation) if head is not None else None
        if queue is None or head is None or conversation is None or conversation.kind != "direct":
            return 0
        done = max(queue.acked, queue.given_up)
        numbers = range(done + 1, min(self.last, queue.head) + 1)
        there = [member for member in log.members(conversation) if member.node == self.peer]
        view.want(
            *((rows.Receipt, (self.log, *member)) for member in there),
            *((rows.StoredEvent, (self.log, seq)) for seq in numbers),
            *((rows.Failed, (self.log, seq, *member)) for seq in numbers for member in there),
        )
        had = (view.get(rows.Receipt, self.log, *member) for member in there)
        if head.origin != context.node or any(receipt.sent > done for receipt in had if receipt is not None):
            return 0  # it was restored: what goes to it again did not fail
        for seq in numbers:
            for member in there:
                fail(view, context, self.log, seq, member, self.code, self.reason)
        if numbers:
            log.waits(view, queue, queue._replace(given_up=numbers[-1]))
        return len(numbers)


@dataclass(frozen=True, slots=True)
class Consent:
    """The recipient accepts or declines a conversation; accepting lets the receipts go out that were held back."""

    local: str
    conversation: bytes
    accept: bool
    logs: tuple[bytes, ...]  # keys of the conversation's logs, as read just before
    opened: bool = False  # they answered, which accepts it: only the receipts are left

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Account, (self.local,)
        yield rows.Standing, (self.conversation, self.local)
        yield rows.Conversation, (self.conversation,)
        for key in self.logs:
            yield rows.LogHead, (key,)
            yield rows.Receipt, (key, context.node, self.local)

    def decide(self, view: View, context: Context) -> api.Done:
        authorize(view, context, self.local, "requests")
        standing = view.get(rows.Standing, self.conversation, self.local)
        if standing is None:
            raise ApiError("not_found", "no such request")
        if self.accept and _hears_nothing(view, context, self.local, self.conversation):
            raise ApiError("blocked", "the other one is blocked; unblock them first")
        state = "open" if self.accept else "declined"
        if (standing.state != state) != self.opened:
            if not self.opened:
                standing = standing._replace(state=state)
                view.put(standing)
                log.conversation_fact(view, context, standing)
            for key in self.logs if self.accept else ():
                head, receipt = view.get(rows.LogHead, key), view.get(rows.Receipt, key, context.node, self.local)
                if head is not None and receipt is not None:
                    tell(view, context, head, receipt)
        return api.Done()


def parse_mark(conversation: bytes, mark: api.Mark) -> Seen:
    """A client's read mark; `ApiError` when its ids are not ids."""
    try:
        origin, log_ = from_text(mark.origin, NODE_ID_BYTES), from_text(mark.log, INCARNATION_BYTES)
    except ValueError as error:
        raise ApiError("bad_request", str(error)) from None
    return Seen(Log(conversation, origin, log_), read=mark.seq, since=mark.seq)
