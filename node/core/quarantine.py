"""What a peer sent and this node fails to process: kept whole and out of the way (PROTOCOL.md 4.14)."""

from collections.abc import Iterable
from dataclasses import dataclass

from federation import wire
from federation.errors import ProtocolError
from federation.event import event_id
from federation.ids import Log
from federation.wire import LogAck, Segment, Verdict
from node.api import ApiError
from node.core import log, rows
from node.core.context import Context
from node.core.receive import KEPT, QUARANTINED, Receive, Refuse
from node.core.view import Key, View

TRIES = 5
EVENTS_MAX, BYTES_MAX = 256, 8 << 20  # of one peer; beyond it the log waits, as if no try had been the last


def _size(view: View, peer: bytes, events: int, size_bytes: int) -> rows.QuarantineSize:
    old = view.get(rows.QuarantineSize, peer) or rows.QuarantineSize(peer, 0, 0)
    return rows.QuarantineSize(peer, max(0, old.events + events), max(0, old.size_bytes + size_bytes))


@dataclass(frozen=True, slots=True)
class Isolate:
    """Take one event out of the way for good; the log goes on. `segment` holds this event alone."""

    peer: bytes
    segment: Segment
    error: str
    tries: int

    @property
    def _log(self) -> Log:
        return Log(self.segment.conversation, self.segment.origin, self.segment.incarnation)

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.LogHead, (self._log.key,)
        yield rows.Quarantine, (self._log.key, self.segment.first)
        yield rows.QuarantineSize, (self.peer,)
        for node, local in self.segment.members:
            if node == context.node:
                yield rows.Standing, (self.segment.conversation, local)
                yield rows.Mailbox, (local,)

    def decide(self, view: View, context: Context) -> LogAck:
        key, seq = self._log.key, self.segment.first
        head = view.get(rows.LogHead, key)
        known = head.seq if head else 0
        if seq != known + 1:
            raise ApiError("conflict", f"the log is at {known} here, not before {seq}")
        raw = wire.encode_segment(self.segment)
        size = _size(view, self.peer, 1, len(raw))
        if size.events > EVENTS_MAX or size.size_bytes > BYTES_MAX:
            raise ApiError("storage_full", "the quarantine is full of this peer's events: `roost quarantine list`")
        event = event_id(self.segment.events[0].header)
        view.put(size)
        view.put(rows.Quarantine(key, seq, event, self.peer, self.error[:500], self.tries, raw, context.now_ms))
        view.put(rows.LogHead(key, *self._log, seq, event, head.stamp if head else 0))
        view.hint("quarantine", self.peer)
        for node, local in self.segment.members:
            if node == context.node:
                log.show_gap(view, self.segment.conversation, key, seq, local)
        return LogAck(*self._log, seq, (Verdict(seq, "refused", QUARANTINED, KEPT),))


@dataclass(frozen=True, slots=True)
class Release:
    """An administrator takes one out: to process it again, or to drop it for good. Gives what it was."""

    log: bytes
    seq: int
    replay: bool

    def keys(self, context: Context) -> Iterable[Key]:
        yield rows.Quarantine, (self.log, self.seq)
        yield rows.LogHead, (self.log,)

    def decide(self, view: View, context: Context) -> rows.Quarantine:
        held = view.get(rows.Quarantine, self.log, self.seq)
        if held is None:
            raise ApiError("not_found", "it is not in quarantine; `roost quarantine list` shows what is")
        if self.replay:
            try:
                receive = Receive(held.peer, wire.decode_segment(held.segment))
                view.want(*receive.keys(context), (rows.QuarantineSize, (held.peer,)))
                receive.replay(view, context)
            except (Refuse, ProtocolError) as error:
                raise ApiError("bad_request", f"it cannot be processed: {error.code}: {error}") from None
        view.delete(held)
        view.put(_size(view, held.peer, -1, -len(held.segment)))
        return held
