"""A store that was set back: it is held, and after that gets back from its peers what they have of it.

The log is the queue here too: a peer queues for the restored node what that node's own logs lack, beside its own
logs from where the copy ends, and all of it travels as ever (PROTOCOL.md 10.2, 10.3).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from federation.errors import ProtocolError
from federation.event import KINDS, NOTICES, Event, Signed, is_lost, read_event, signature_holds
from federation.ids import Log, notice_conversation
from federation.wire import LogAck, Receipt, Segment, Verdict, decode_notices
from node.core import acts, log, rows
from node.core.context import Context
from node.core.quota import charge
from node.core.view import Key, View

HOME, DONE = 1, 2  # phases of a `rows.Heal`: our own logs came home; the peer sends its own again
HELD, HELD_STAMP = "held", "held stamp"  # names of `rows.Meta`


@dataclass(frozen=True, slots=True)
class Hold:
    """This store is an old copy: remember it over a restart. `stamp` is of an event of ours that is not here."""

    reason: str
    stamp: int
    while_held: ClassVar = True

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> None:
        view.put(rows.Meta(HELD, self.reason.encode()))
        view.put(rows.Meta(HELD_STAMP, self.stamp.to_bytes(8, "big")))


@dataclass(frozen=True, slots=True)
class Healed:
    """A phase with one peer is over; it need not be done again after a restart."""

    peer: bytes
    phase: int

    def keys(self, context: Context) -> Iterable[Key]:
        return ()

    def decide(self, view: View, context: Context) -> None:
        view.put(rows.Heal(self.peer, context.restored, self.phase))


def waits_for_home(view: View, context: Context, peer: bytes) -> bool:
    """Whether what the peer sends must wait: it may be about logs of ours that are not home yet."""
    if not context.restored:
        return False
    row = view.get(rows.Heal, peer)
    return row is None or row.restored != context.restored or row.phase < HOME


@dataclass(frozen=True, slots=True)
class Rewind:
    """A restored peer has less than it acknowledged: our logs by key, and what it has of each (PROTOCOL.md 10.2)."""

    peer: bytes
    logs: Mapping[bytes, int]

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Destination, (self.peer,)
        yield from ((rows.Outbound, (self.peer, key)) for key in self.logs)

    def decide(self, view: View, context: Context) -> None:
        for key, seq in self.logs.items():
            row = view.get(rows.Outbound, self.peer, key)
            if row is not None and seq < row.acked:
                log.waits(view, row, row._replace(acked=seq))


@dataclass(frozen=True, slots=True)
class GiveBack:
    """A restored peer lacks events of its own logs: queue them for it (PROTOCOL.md 10.2)."""

    peer: bytes
    logs: Mapping[bytes, int]

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Destination, (self.peer,)
        yield rows.Conversation, (notice_conversation(context.node, self.peer),)
        for key in self.logs:
            yield rows.Outbound, (self.peer, key)
            yield rows.LogHead, (key,)

    def decide(self, view: View, context: Context) -> None:
        notices = notice_conversation(context.node, self.peer)
        for key, seq in self.logs.items():
            head, row = view.get(rows.LogHead, key), view.get(rows.Outbound, self.peer, key)
            if head is None or head.origin != self.peer or head.seq <= seq:
                continue
            if head.conversation == notices and view.get(rows.Conversation, notices) is None:
                view.put(rows.Conversation(notices, "notices", context.node, "", self.peer, ""))
            row = row or rows.Outbound(self.peer, key, 0, 0)
            log.waits(view, row, row._replace(head=head.seq, acked=seq))


@dataclass(frozen=True, slots=True)
class TakeBack:
    """A segment of our own log, from a peer that kept it (PROTOCOL.md 10.3)."""

    peer: bytes
    segment: Segment

    @property
    def _log(self) -> Log:
        return Log(self.segment.conversation, self.segment.origin, self.segment.incarnation)

    def keys(self, context: Context) -> Iterable[Key]:
        conversation = self.segment.conversation
        yield rows.Peer, (self.peer,)
        yield rows.LogHead, (self._log.key,)
        yield rows.OwnLog, (conversation,)
        yield rows.Conversation, (conversation,)
        yield rows.Destination, (self.peer,)
        yield rows.Outbound, (self.peer, self._log.key)
        for node, local in self.segment.members:
            if node == context.node:
                yield rows.Account, (local,)
                yield rows.Mailbox, (local,)
                yield rows.Standing, (conversation, local)

    def decide(self, view: View, context: Context) -> LogAck:
        verdicts: tuple[Verdict, ...] = ()
        peer = view.get(rows.Peer, self.peer)
        self._want(view, context)
        for number, signed in enumerate(self.segment.events):
            head = view.get(rows.LogHead, self._log.key)
            seq = self.segment.first + number
            if seq <= (head.seq if head else 0):
                continue
            try:
                if peer is None or peer.state not in ("accepted", "open"):
                    raise ProtocolError("not_accepted", "not accepted here", "3.4")
                if is_lost(signed) and seq == (head.seq if head else 0) + 1:
                    self._lose(view, context, seq, signed)
                    continue
                event = self._check(context, signed, seq, head)
                self._take(view, context, event)
            except ProtocolError as error:  # never final: an origin does not refuse its own log
                verdicts = (Verdict(seq, "later", error.code, str(error)[:200]),)
                break
        head = view.get(rows.LogHead, self._log.key)
        return LogAck(*self._log, head.seq if head else 0, verdicts)

    def _want(self, view: View, context: Context) -> None:
        """What our own notices are about, asked for in one round."""
        acts.came(view, self.segment.events)
        receipts = [r for signed in self.segment.events for r in _receipts(self.segment, signed)]
        view.want(
            *((rows.Receipt, (self._theirs(r), context.node, r.member)) for r in receipts),
            *((rows.Account, (r.member,)) for r in receipts),
        )

    def _theirs(self, receipt: Receipt) -> bytes:
        return Log(receipt.conversation, self.peer, receipt.incarnation).key

    def _lose(self, view: View, context: Context, seq: int, signed: Signed) -> None:
        """Nobody has it any more. We did not sign that: it is believed only of earlier lives with this very peer."""
        ours = self._log.incarnation == context.incarnation
        if ours or not log.is_with(context, self.peer, self.segment.conversation, self.segment.members):
            raise ProtocolError("not_member", "this node did not ask for it", "10.3")
        peer = view.get(rows.Peer, self.peer)
        assert peer is not None
        charged = charge(peer, len(signed.header) + len(signed.signature), context.now_ms, context.peer_quota)
        if charged is None:
            raise ProtocolError("rate_limited", "this node was told of enough lost events", "4.13")
        view.put(charged)
        local = next((local for node, local in self.segment.members if node == context.node), "")
        log.lose(view, context, self._log, seq, signed, local)
        row = view.get(rows.Outbound, self.peer, self._log.key) or rows.Outbound(self.peer, self._log.key, 0, 0)
        log.waits(view, row, row._replace(head=seq))

    def _check(self, context: Context, signed: Signed, seq: int, head: rows.LogHead | None) -> Event:
        event = read_event(signed)
        h = event.header
        if h.log != self._log or h.seq != seq:
            raise ProtocolError("bad_event", "the event is not of the log it was sent in", "5.2")
        if (seq - 1, h.previous) != ((head.seq, head.head) if head else (0, None)):
            raise ProtocolError("gap", "the event does not follow what is here", "4.4")
        if not any(signature_holds(event, key) for key in context.keys):
            raise ProtocolError("bad_signature", "this node did not sign the event", "4.5")
        if h.stamp >= context.restored or h.incarnation == context.incarnation or h.kind not in KINDS:
            raise ProtocolError("not_member", "this node did not ask for it", "10.3")
        if h.kind == NOTICES:
            there = h.conversation == notice_conversation(context.node, self.peer)
        else:
            there = (context.node, h.sender) in self.segment.members and log.is_with(
                context, self.peer, h.conversation, self.segment.members
            )
        if not there:
            raise ProtocolError("not_member", "the conversation is not one with this peer", "4.12")
        return event

    def _take(self, view: View, context: Context, event: Event) -> None:
        h = event.header
        own = view.get(rows.OwnLog, h.conversation)
        newest = view.get(rows.LogHead, Log(h.conversation, context.node, own.incarnation).key) if own else None
        if own is None or (own.incarnation != context.incarnation and (newest is None or newest.stamp < h.stamp)):
            view.put(rows.OwnLog(h.conversation, h.incarnation))
        context.merge(h.stamp)
        if h.kind == NOTICES:
            if view.get(rows.Conversation, h.conversation) is None:
                view.put(rows.Conversation(h.conversation, "notices", context.node, "", self.peer, ""))
            log.store(view, context, event)
            for receipt in _receipts(self.segment, event.signed):
                self._receipt(view, context, receipt)
        else:
            self._message(view, context, event)
        log.queue(view, self.peer, event)  # the peer has it: its answers of then come again

    def _message(self, view: View, context: Context, event: Event) -> None:
        h = event.header
        _reserve(view, context, h.sender)
        if view.get(rows.Conversation, h.conversation) is None:
            (a, a_local), (b, b_local) = sorted(self.segment.members)
            view.put(rows.Conversation(h.conversation, "direct", a, a_local, b, b_local))
        standing = view.get(rows.Standing, h.conversation, h.sender)
        late = standing is not None and h.stamp < standing.last_stamp
        log.store(view, context, event, late=late)
        stamp = max(h.stamp, standing.last_stamp if standing else 0)
        new = rows.Standing(h.conversation, h.sender, "open", stamp)
        view.put(new)
        if standing is None or standing.state != "open":
            log.conversation_fact(view, context, new)
        log.deliver(view, context, event, h.sender)

    def _receipt(self, view: View, context: Context, r: Receipt) -> None:
        """Our own word of then. The log that it is about may not be here yet, and is sent again after this."""
        _reserve(view, context, r.member)
        key = self._theirs(r)
        new = rows.Receipt(
            key,
            context.node,
            r.member,
            r.delivered,
            r.delivered,
            r.read,
            log.pack(r.missing),
            r.at_ms,
            r.at_ms,
            r.at_ms,
        )
        view.put(log.merge(view.get(rows.Receipt, key, context.node, r.member), new))


def _receipts(segment: Segment, signed: Signed) -> tuple[Receipt, ...]:
    if segment.members or signed.body is None:
        return ()
    try:
        return decode_notices(signed.body).receipts
    except ProtocolError:
        return ()


def _reserve(view: View, context: Context, local: str) -> None:
    """The account was made after the copy. Its name is taken for ever: an administrator opens it again."""
    if view.get(rows.Account, local) is None:
        view.put(rows.Account(local, "", "", "disabled", "strangers", context.now_ms))
