"""A peer's segment arrives: verify, store, deliver, and say what became of each event."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from federation.errors import ProtocolError
from federation.event import (
    KINDS,
    NOTICES,
    Event,
    Signed,
    event_id,
    is_lost,
    read_event,
    signature_holds,
    stamp_ms,
)
from federation.identity import check_chain, decode_chain, event_keys
from federation.ids import Log, User, direct_conversation, notice_conversation
from federation.wire import LogAck, Receipt, Segment, Verdict, decode_notices
from node.core import acts, log, rows
from node.core.authorize import is_blocked
from node.core.context import FUTURE_MS_MAX, Context
from node.core.damage import LOST, refused_place
from node.core.heal import waits_for_home
from node.core.progress import receipts_arrived, want_receipts
from node.core.quota import charge
from node.core.view import Key, View

KEYS_CACHED_MAX = 256  # of at most 30 kB each
CONVERSATION_BYTES = 1024  # what a new conversation costs beside its first message
NOTICE_BYTES = 1024  # a receipt that says something new may take so much
TOO_MUCH = "this node stored enough from yours that nobody asked for; some of it is forgiven each day"


@lru_cache(KEYS_CACHED_MAX)
def _keys(chain: bytes) -> tuple[bytes, ...]:
    """A peer's keys, newest first: a long chain costs more to check than a segment, and all wait for it."""
    decoded = decode_chain(chain)
    check_chain(decoded)
    return event_keys(decoded)


REPLAYED = rows.LogHead(b"", b"", b"", b"", 0, b"", 0)  # the one before it was looked at when it came
QUARANTINED = "quarantined"
KEPT = "that node could not process it; it is kept there, and its administrator may deliver it yet"


WRONG_ACTS = {
    "not_yours": "only who wrote a message may edit or delete it (PROTOCOL.md 4.16)",
    "too_many": f"more than {acts.OF_ONE_MAX} edits, reactions and pins of one person on one message",
}


class Refuse(Exception):
    """This event never stands here: final, the log advances (PROTOCOL.md 5.4)."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Later(Refuse):
    """Not now: this log pauses, and it is offered again (PROTOCOL.md 5.4)."""


@dataclass(frozen=True, slots=True)
class Receive:
    """One segment from the peer that the link has proved to be `peer`."""

    peer: bytes
    segment: Segment

    @property
    def grows(self) -> bool:
        """Not taken while the disk has no room; what a peer acknowledges of ours is."""
        return bool(self.segment.members)

    @property
    def _log(self) -> Log:
        return Log(self.segment.conversation, self.segment.origin, self.segment.incarnation)

    def _local(self, context: Context) -> str:
        return next((local for node, local in self.segment.members if node == context.node), "")

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Peer, (self.peer,)
        yield rows.LogHead, (self._log.key,)
        yield rows.Conversation, (self.segment.conversation,)
        if context.restored:
            yield rows.Heal, (self.peer,)
        if local := self._local(context):
            yield rows.Account, (local,)
            yield rows.Mailbox, (local,)
            yield rows.Standing, (self.segment.conversation, local)
            for node, other in self.segment.members:
                if node == self.peer:
                    yield rows.Block, ("", node, other)

    def decide(self, view: View, context: Context) -> LogAck:
        """The cumulative acknowledgement for this log (PROTOCOL.md 5.3)."""
        peer = view.get(rows.Peer, self.peer)
        verdicts: list[Verdict] = []
        if peer is None or peer.state not in ("accepted", "open"):
            verdicts.append(Verdict(self.segment.first, "later", "not_accepted", "not accepted here yet"))
            return self._ack(view, verdicts)
        if waits_for_home(view, context, self.peer):
            verdicts.append(Verdict(self.segment.first, "later", "restoring", "restored: its own logs come home first"))
            return self._ack(view, verdicts)
        self._want(view, context)
        keys = _keys(peer.chain)
        for number, signed in enumerate(self.segment.events):
            head = view.get(rows.LogHead, self._log.key)
            known = head.seq if head else 0
            seq = self.segment.first + number
            if seq <= known:
                verdicts += self._repeat(view, context, seq, signed, keys)
                continue
            try:
                if seq > known + 1:
                    raise Later("gap", f"have {known}, was offered {seq}")
                if is_lost(signed):
                    self._lose(view, context, seq, signed)
                    verdicts.append(Verdict(seq, "refused", LOST, "its node has lost this event"))
                    continue
                event = self._check(view, context, signed, seq, head, keys)
                self._take(view, context, event, peer)
            except Later as error:
                verdicts.append(Verdict(seq, "later", error.code, error.reason[:200]))
                break
            except (Refuse, ProtocolError) as error:
                if not self._charge(view, context, len(signed.header) + len(signed.signature)):
                    verdicts.append(Verdict(seq, "later", "rate_limited", TOO_MUCH))
                    break
                verdicts.append(Verdict(seq, "refused", error.code, str(error)[:200]))
                self._remember(view, context, signed, seq, error.code)
        return self._ack(view, verdicts)

    def _lose(self, view: View, context: Context, seq: int, signed: Signed) -> None:
        """Nobody signed that it is lost, and it costs its origin nothing: it may not be said of others, or for ever."""
        if not log.is_with(context, self.peer, self.segment.conversation, self.segment.members):
            raise Refuse("not_member", "the conversation is not one with this peer")
        local = self._local(context)
        if local and log.is_full(view, context, local):
            raise Later("mailbox_full", "the recipient's mailbox is full")
        if not self._charge(view, context, len(signed.header) + len(signed.signature)):
            raise Later("rate_limited", TOO_MUCH)
        log.lose(view, context, self._log, seq, signed, local)

    def _charge(self, view: View, context: Context, cost: int) -> bool:
        """Whether the peer may make us store this much more that nobody here asked for; then it has done so."""
        peer = view.get(rows.Peer, self.peer)
        assert peer is not None
        charged = charge(peer, cost, context.now_ms, context.peer_quota)
        if charged is not None:
            view.put(charged)
        return charged is not None

    def replay(self, view: View, context: Context) -> None:
        """Process the one event of this segment again, which was put aside under its number; the log stays where it is.

        Raises `Refuse` and `ProtocolError`.
        """
        peer, head = view.get(rows.Peer, self.peer), view.get(rows.LogHead, self._log.key)
        if peer is None or head is None:
            raise Refuse("not_accepted", "its node is not known here any more")
        signed, seq = self.segment.events[0], self.segment.first
        event = self._check(view, context, signed, seq, REPLAYED, _keys(peer.chain))
        self._take(view, context, event, peer)
        view.put(head)

    def _want(self, view: View, context: Context) -> None:
        """Ask at once for what each event would ask for alone: what is a repeat, and what notices are about."""
        log_, first = self._log.key, self.segment.first
        head = view.get(rows.LogHead, log_)
        upto = min(head.seq if head else 0, first + len(self.segment.events) - 1)
        fresh = self.segment.events[max(0, upto + 1 - first) :]
        view.want(*((rows.StoredEvent, (log_, seq)) for seq in range(first, upto + 1)))
        gone = [seq for seq in range(first, upto + 1) if view.get(rows.StoredEvent, log_, seq) is None]
        view.want(*((rows.Quarantine, (log_, seq)) for seq in gone))
        acts.came(view, fresh)
        if self.segment.conversation != notice_conversation(context.node, self.peer):
            return
        receipts: list[Receipt] = []
        for signed in fresh:
            try:
                receipts += decode_notices(signed.body or b"").receipts
            except ProtocolError:
                continue  # refused below
        want_receipts(view, context, self.peer, receipts)

    def _ack(self, view: View, verdicts: list[Verdict]) -> LogAck:
        head = view.get(rows.LogHead, self._log.key)
        return LogAck(*self._log, head.seq if head else 0, tuple(verdicts))

    def _check(
        self, view: View, context: Context, signed: Signed, seq: int, head: rows.LogHead | None, keys: tuple[bytes, ...]
    ) -> Event:
        event = read_event(signed)
        header = event.header
        if header.log != self._log or header.seq != seq or header.origin != self.peer:
            raise Refuse("bad_event", "the event is not of the log it was sent in")
        if head is not REPLAYED and header.previous != (head.head if head else None):
            raise Refuse("bad_event", "the event does not follow the one before it")
        if not any(signature_holds(event, key) for key in keys):
            raise Refuse("bad_signature", "the event is not signed by its origin's key")
        if stamp_ms(header.stamp) > context.now_ms + FUTURE_MS_MAX:
            raise Refuse("clock", "the stamp is more than a day ahead; check the clocks of both nodes")
        if header.kind not in KINDS:
            raise Refuse("unknown_kind", f"this version does not know events of kind {header.kind!r}")
        return event

    def _take(self, view: View, context: Context, event: Event, peer: rows.Peer) -> None:
        header = event.header
        if header.kind == NOTICES:
            self._notices(view, context, event)
            return
        me, local = User(self.peer, header.sender), self._local(context)
        both = tuple(sorted((me, User(context.node, local))))
        if not local or self.segment.members != both or direct_conversation(*both) != header.conversation:
            raise Refuse("not_member", "the sender is not a member of this conversation")
        if code := acts.refusal(view, header):
            raise Refuse(code, WRONG_ACTS[code])
        if event.signed.body is None:  # given up before it came (PROTOCOL.md 4.6): kept for the log's sake
            if not self._charge(view, context, log.size(event)):
                raise Later("rate_limited", TOO_MUCH)
            log.store(view, context, event)
            return
        account = view.get(rows.Account, local)
        if account is None or account.state == "deleted":
            raise Refuse("unknown_user", f"{context.name} has no user {local}")
        standing = view.get(rows.Standing, header.conversation, local)
        if (standing is not None and standing.state == "declined") or is_blocked(view, context, account, me):
            raise Refuse("declined", "the recipient does not take messages from this sender")
        if log.is_full(view, context, local):
            raise Later("mailbox_full", "the recipient's mailbox is full")
        cost = (log.size(event) if standing is None or standing.state == "request" else 0) + (
            CONVERSATION_BYTES if standing is None else 0
        )
        if cost and not self._charge(view, context, cost):
            raise Later("rate_limited", TOO_MUCH)
        if view.get(rows.Conversation, header.conversation) is None:
            a, b = sorted((me, User(context.node, local)))
            view.put(rows.Conversation(header.conversation, "direct", a.node, a.local, b.node, b.local))
        late = standing is not None and header.stamp < standing.last_stamp
        context.merge(header.stamp)
        log.store(view, context, event, late=late)
        if standing is None:
            ask = account.requests == "everyone" or peer.state == "open"
            standing = rows.Standing(header.conversation, local, "request" if ask else "open", header.stamp)
            view.put(standing)
            log.conversation_fact(view, context, standing)
        elif not late:
            view.put(standing._replace(last_stamp=header.stamp))
        log.deliver(view, context, event, local)

    def _notices(self, view: View, context: Context, event: Event) -> None:
        header = event.header
        own = notice_conversation(context.node, self.peer)
        if header.conversation != own or header.sender or self.segment.members:
            raise Refuse("not_member", "notices travel only in the two nodes' own conversation")
        notices = decode_notices(event.signed.body or b"")
        moved = receipts_arrived(view, context, self.peer, notices.receipts)
        cost = log.size(event) - NOTICE_BYTES * moved  # news is bounded by what our users sent there
        if cost > 0 and not self._charge(view, context, cost):
            raise Later("rate_limited", TOO_MUCH)
        log.store(view, context, event)

    def _remember(self, view: View, context: Context, signed: Signed, seq: int, code: str) -> None:
        """A verdict is final: the next offer of the same bytes meets the same answer."""
        event = event_id(signed.header)
        head = view.get(rows.LogHead, self._log.key)
        place = refused_place(self._log.key, seq, event)
        stamp = head.stamp if head else 0  # the log's newest: what the header says is nothing to go by
        view.put(
            rows.StoredEvent(
                self._log.key, seq, place, self.segment.conversation, stamp, "", b"", "refused",
                signed.header, signed.signature, None, context.now_ms, 0, code,
            )
        )  # fmt: skip
        view.put(rows.LogHead(self._log.key, *self._log, seq, event, stamp))

    def _lies(self, signed: Signed, seq: int, keys: tuple[bytes, ...]) -> bool:
        """Whether the origin really signed this for the same number of the same log."""
        try:
            event = read_event(signed)
        except ProtocolError:
            return False
        if event.header.log != self._log or event.header.seq != seq:
            return False
        return any(signature_holds(event, key) for key in keys)

    def _repeat(self, view: View, context: Context, seq: int, signed: Signed, keys: tuple[bytes, ...]) -> list[Verdict]:
        """The same number again: the same event meets the same answer, and another one proves that the origin
        lies (PROTOCOL.md 4.11). A refusal is said again: its first acknowledgement may have been lost."""
        stored = view.get(rows.StoredEvent, self._log.key, seq)
        other = event_id(signed.header)
        if stored is None:
            held = view.get(rows.Quarantine, self._log.key, seq)
            return [] if held is None else [Verdict(seq, "refused", QUARANTINED, KEPT)]
        if is_lost(signed) and not stored.refused:
            return []  # it is here
        if stored.refused == LOST:
            return [Verdict(seq, "refused", LOST, "its node said that it has lost this event")]
        if event_id(stored.header) != other:
            proof = len(signed.header) + len(signed.signature)
            # Else it proves nothing, or as much as is here already, and would only fill the disk.
            if self._lies(signed, seq, keys) and self._charge(view, context, proof):
                view.put(rows.Evidence(other, self._log.key, seq, signed.header, signed.signature, context.now_ms))
                view.hint("evidence", self.peer)
            return [Verdict(seq, "refused", "equivocation", "another event was received under this number before")]
        if stored.refused:
            return [Verdict(seq, "refused", stored.refused, "refused when it was first offered")]
        return []
