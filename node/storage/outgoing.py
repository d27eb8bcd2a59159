"""What a link may send next: the log is the queue."""

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, select

from federation import wire
from federation.event import Signed
from node.core import rows
from node.storage.damaged import made, rebuilt, run
from node.storage.direct import Prepared
from node.storage.schema import TABLES

events, logs = TABLES[rows.StoredEvent], TABLES[rows.LogHead]
outbound, conversations = TABLES[rows.Outbound], TABLES[rows.Conversation]
BATCH_BYTES_MAX = 1 << 20
LOGS_MAX = 64  # logs of one peer looked at together
END = b"\xff" * 33  # past every log key

_ANY = (
    select(*outbound.c, *logs.c, *conversations.c)
    .join(logs, logs.c.log == outbound.c.log)
    .join(conversations, conversations.c.conversation == logs.c.conversation)
    .where(outbound.c.peer == bindparam("peer"), outbound.c.acked < outbound.c.head)
)
_UNACKED = Prepared(
    _ANY.where(outbound.c.log > bindparam("after"), outbound.c.log <= bindparam("upto"))
    .order_by(outbound.c.log)
    .limit(LOGS_MAX)
)
_OF_ONE = Prepared(_ANY.where(logs.c.conversation == bindparam("conversation")).order_by(logs.c.stamp).limit(LOGS_MAX))
_RUN = Prepared(
    select(events)
    .where(events.c.log == bindparam("log"), events.c.seq > bindparam("after"))
    .order_by(events.c.seq)
    .limit(bindparam("count"))
)


class Unacked(NamedTuple):
    """A log that a peer did not acknowledge to its end."""

    outbound: rows.Outbound
    head: rows.LogHead
    conversation: rows.Conversation

    @property
    def lives(self) -> tuple[bytes, bytes]:
        """What the logs of one node's lives have in common; another's come to it when it lost its own."""
        return self.head.conversation, self.head.origin


def unacked(connection: Connection, peer: bytes, after: bytes, upto: bytes = END) -> tuple[list[Unacked], bytes, bool]:
    """A page of them by log key, past `after` and up to `upto`, without what is too damaged to be sent; the last key
    looked at, and whether the page was full."""
    found = list(_UNACKED(connection, peer=peer, after=after, upto=upto))
    return _whole(connection, found), found[-1][1] if found else after, len(found) == LOGS_MAX


def _siblings(connection: Connection, peer: bytes, conversation: bytes) -> list[Unacked]:
    """All of one conversation."""
    return _whole(connection, list(_OF_ONE(connection, peer=peer, conversation=conversation)))


def _whole(connection: Connection, found: list[Any]) -> list[Unacked]:
    a, b = len(outbound.c), len(outbound.c) + len(logs.c)
    out: list[Unacked] = []
    for v in found:
        last = v[1]
        queue, head, of = made(rows.Outbound, v[:a]), made(rows.LogHead, v[a:b]), made(rows.Conversation, v[b:])
        if head is None:
            head = rebuilt(connection, rows.LogHead, (last,))  # type: ignore[assignment]
        if queue is not None and head is not None and of is not None:
            out.append(Unacked(queue, head, of))
    return out


class Run(NamedTuple):
    """What to send of one log."""

    of: Unacked
    after: int
    events: list[Signed]


def pending(
    connection: Connection,
    peer: bytes,
    turn: bytes,
    sent: Mapping[bytes, int],
    resting: Set[bytes],
    events_max: int,
    bytes_max: int,
) -> tuple[list[Run], bytes, bool]:
    """What to send to a peer next: a fair share of each log that has something past `sent` and does not rest.

    Logs take turns by key, from past `turn` on and once around; of one conversation's logs the one of an earlier life
    goes first, to its end, lest what somebody wrote later arrive first. Returns the runs, whose turn it was last, and
    whether more could be sent at once if there were room.
    """
    ready: list[Unacked] = []
    seen: list[Unacked] = []
    for start, upto in ((turn, END), (b"", turn)):
        while True:  # past pages of logs that rest or are on their way: none of them holds up the ones behind it
            page, start, full = unacked(connection, peer, start, upto)
            seen += page
            ready += [u for u in page if u.head.log not in resting and sent.get(u.head.log, 0) < u.outbound.head]
            turn = start if page or full else turn
            if ready or not full:
                break
        if full:
            break  # the next look goes on from here
    if full:
        seen += [u for of in {u.conversation.conversation for u in ready} for u in _siblings(connection, peer, of)]
    oldest: dict[tuple[bytes, bytes], int] = {}
    for u in seen:
        if u.head.log in resting or sent.get(u.head.log, 0) < u.outbound.head:
            oldest[u.lives] = min(u.head.stamp, oldest.get(u.lives, u.head.stamp))
    later = [u for u in ready if u.head.stamp > oldest[u.lives]]
    ready = [u for u in ready if u.head.stamp == oldest[u.lives]]
    share = max(1, min(events_max // max(1, len(ready)), wire.EVENTS_MAX))
    runs: list[Run] = []
    more = False
    for u in ready:
        if events_max <= 0 or bytes_max <= 0:
            return runs, runs[-1].of.head.log, True
        after = max(u.outbound.acked, sent.get(u.head.log, 0))
        found = log_run(connection, u.head, after, min(share, events_max, u.outbound.head - after), bytes_max)
        if found:
            runs.append(Run(u, after, found))
            events_max -= len(found)
            bytes_max -= sum(len(e.header) + len(e.body or b"") for e in found)
            more = more or after + len(found) < u.outbound.head
    return runs, turn, more or full or bool(later and runs)


def log_run(
    connection: Connection, head: rows.LogHead, after: int, limit: int, bytes_max: int = BATCH_BYTES_MAX
) -> list[Signed]:
    """The next events of our log past a number, in order: one, and more up to about `bytes_max` and half of
    BATCH_BYTES_MAX.

    In place of each that is damaged or missing stands what says so (PROTOCOL.md 4.13).
    """
    size = 0
    found: list[Any] = []
    upto = min(after + limit, head.seq)
    for values in _RUN(connection, log=head.log, after=after, count=limit):
        number, header, body = values[1], values[8], values[10]
        if type(number) is not int or number > upto:
            break
        size += sum(len(part) for part in (header, body) if type(part) is bytes) + 100
        if size > min(bytes_max, BATCH_BYTES_MAX // 2) and found:
            upto = number - 1
            break
        found.append(values)
    return run(connection, head, after, found, upto)
