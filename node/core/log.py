"""Appending to our own log, and what every stored event does to mailboxes and queues here."""

from collections.abc import Iterable

from federation.event import Event, Header, Predecessor, Signed, body_hash, event_id, sign_event
from federation.ids import Log, User, digest, direct_conversation, notice_conversation, to_text
from node import api, coding
from node.core import acts, rows
from node.core.context import Context
from node.core.damage import LOST, refused_place
from node.core.view import Key, View


def members(conversation: rows.Conversation) -> tuple[User, ...]:
    """The members of a direct conversation; one when somebody writes to themselves."""
    a, b = User(conversation.node_a, conversation.local_a), User(conversation.node_b, conversation.local_b)
    return (a,) if a == b else (a, b)


def is_with(context: Context, peer: bytes, conversation: bytes, people: Iterable[tuple[bytes, str]]) -> bool:
    """Whether a conversation is one with this peer: of a user of each node, or with nobody in it the two nodes' own."""
    both = [User(*member) for member in people]
    if not both:
        return conversation == notice_conversation(context.node, peer)
    if sorted(member.node for member in both) != sorted((context.node, peer)):
        return False
    return direct_conversation(*both) == conversation


def address(view: View, context: Context, user: User) -> str:
    """A user for people: the node's name here, or its id while it has none."""
    if user.node == context.node:
        return f"{user.local}@{context.name}"
    peer = view.get(rows.Peer, user.node)
    return f"{user.local}@{peer.name if peer and peer.name else to_text(user.node)}"


def append_keys(context: Context, conversation: bytes, people: tuple[User, ...]) -> list[Key]:
    """What `append` and `fan_out` will read."""
    log = Log(conversation, context.node, context.incarnation).key
    keys: list[Key] = [(rows.LogHead, (log,)), (rows.OwnLog, (conversation,)), (rows.Conversation, (conversation,))]
    for user in people:
        if user.node == context.node:
            keys += [(rows.Mailbox, (user.local,)), (rows.Standing, (conversation, user.local))]
            keys.append((rows.Receipt, (log, user.node, user.local)))
        else:
            keys += [(rows.Outbound, (user.node, log)), (rows.Peer, (user.node,)), (rows.Destination, (user.node,))]
    return keys


def predecessor_keys(view: View, context: Context, conversation: bytes) -> list[Key]:
    """What `append` will read beside that: the log that the first event of this life names."""
    if view.get(rows.LogHead, Log(conversation, context.node, context.incarnation).key) is not None:
        return []
    own = view.get(rows.OwnLog, conversation)
    return [] if own is None else [(rows.LogHead, (Log(conversation, context.node, own.incarnation).key,))]


def append(
    view: View,
    context: Context,
    conversation: bytes,
    kind: str,
    body_format: str,
    body: bytes,
    sender: str = "",
    device: bytes = b"",
    target: bytes | None = None,
    expires_ms: int | None = None,
    ext: dict[str, bytes] | None = None,
) -> Event:
    """Sign the next event of our log of this conversation and move the log's head (PROTOCOL.md 4.4)."""
    log = Log(conversation, context.node, context.incarnation)
    head = view.get(rows.LogHead, log.key)
    after = None
    if head is None:
        own = view.get(rows.OwnLog, conversation)
        if own is not None:
            old = view.get(rows.LogHead, Log(conversation, context.node, own.incarnation).key)
            after = Predecessor(own.incarnation, old.seq) if old else None
        view.put(rows.OwnLog(conversation, context.incarnation))
    header = Header(
        version=1,
        conversation=conversation,
        origin=context.node,
        incarnation=context.incarnation,
        seq=head.seq + 1 if head else 1,
        previous=head.head if head else None,
        after=after,
        sender=sender,
        device=device,
        stamp=context.stamp(),
        control=None,
        kind=kind,
        target=target,
        manifest=None,
        body_format=body_format,
        body_hash=body_hash(body),
        body_bytes=len(body),
        expires_ms=expires_ms,
        ext=ext or {},
    )
    event = sign_event(header, body, context.key)
    store(view, context, event, ours=True)
    return event


def store(view: View, context: Context, event: Event, late: bool = False, ours: bool = False) -> None:
    """Keep an event and move its log's head to it. What it deletes loses its body, whichever of them came first."""
    h = event.header
    log = h.log.key
    body = acts.settle(view, event, ours)
    view.put(rows.Place(event.id, log, h.seq, h.conversation))
    view.put(
        rows.StoredEvent(
            log, h.seq, event.id, h.conversation, h.stamp, h.sender, h.device, h.kind,
            event.signed.header, event.signed.signature, body, context.now_ms, int(late), "",
        )
    )  # fmt: skip
    # Our clock goes on from the newest of these after a restart: what it did not follow must not get there.
    stamp = min(h.stamp, context.last_stamp)
    view.put(rows.LogHead(log, h.conversation, h.origin, h.incarnation, h.seq, event.id, stamp))


def size(event: Event) -> int:
    """Bytes that an event takes in a queue or a mailbox."""
    return len(event.signed.header) + len(event.signed.body or b"")


def queue(view: View, peer: bytes, event: Event) -> None:
    """The log is the queue: note that a peer must get it up to this event."""
    key = event.header.log.key
    row = view.get(rows.Outbound, peer, key) or rows.Outbound(peer, key, 0, 0)
    waits(view, row, row._replace(head=event.header.seq, bytes=row.bytes + size(event)))
    view.hint("peer", peer)


def waiting(row: rows.Outbound) -> int:
    """How many events of a log somebody still waits for."""
    return max(0, row.head - max(row.acked, row.given_up))


def waits(view: View, old: rows.Outbound, new: rows.Outbound) -> rows.Outbound:
    """A log's queue changed, and with it what waits for the peer in all; gives the queue as it is now.

    What leaves the queue takes an average share of its bytes along: exact when it is empty, and nothing to look up.
    """
    before, after = waiting(old), waiting(new)
    if after < before:
        new = new._replace(bytes=old.bytes * after // before)
    view.put(new)
    row = view.get(rows.Destination, new.peer) or rows.Destination(new.peer, 0)
    more, bytes_ = row.waiting + after - before, row.bytes + new.bytes - old.bytes
    view.put(rows.Destination(new.peer, max(0, more), max(0, bytes_)))
    return new


def deliver(view: View, context: Context, event: Event, local: str) -> None:
    """One small row in a local member's mailbox."""
    place(view, local, event.header.log.key, event.header.seq, size(event))


def place(view: View, local: str, key: bytes, seq: int, bytes_: int = 0) -> None:
    """The mailbox's next position is for this number of a log, whether or not its event is here."""
    box = view.get(rows.Mailbox, local)
    position = box.position + 1 if box else 1
    waiting, held = (box.items, box.bytes) if box else (0, 0)
    view.put(rows.Mailbox(local, position, waiting + 1, held + bytes_))
    view.put(rows.Item(local, position, key, seq))
    view.hint("mailbox", local)


def show_gap(view: View, conversation: bytes, key: bytes, seq: int, local: str) -> None:
    """Tell the local member that a message is missing: a place in the mailbox, and nothing to show there."""
    standing = view.get(rows.Standing, conversation, local) if local else None
    if standing is not None and standing.state != "declined":
        place(view, local, key, seq)


def lose(view: View, context: Context, log: Log, seq: int, signed: Signed, local: str) -> None:
    """The next number of a log is lost where it came from; its id is in place of the header (PROTOCOL.md 4.13)."""
    head = view.get(rows.LogHead, log.key)
    stamp = head.stamp if head else 0  # right behind the one before it
    view.put(
        rows.StoredEvent(
            log.key, seq, refused_place(log.key, seq, event_id(signed.header)), log.conversation, stamp, "", b"",
            "refused", signed.header, signed.signature, None, context.now_ms, 0, LOST,
        )
    )  # fmt: skip
    view.put(rows.LogHead(log.key, *log, seq, signed.header, stamp))
    show_gap(view, log.conversation, log.key, seq, local)


def fetched(view: View, local: str, position: int) -> None:
    """A device acknowledged the mailbox up to `position`: at most what came after that still waits.

    Any device will do: one that was lost and never comes back must not fill the mailbox, and neither must what was
    fetched long ago. The place of a changing fact counts like a message until the newest position is acknowledged:
    an upper bound, so that no message has to be counted and no other device looked at.
    """
    box = view.get(rows.Mailbox, local)
    if box is not None and box.items > box.position - position:
        left = max(0, box.position - position)
        view.put(box._replace(items=left, bytes=box.bytes * left // box.items))


def is_full(view: View, context: Context, local: str) -> bool:
    """Whether as much waits in a mailbox as may; their own messages too, which their other devices are to get."""
    box = view.get(rows.Mailbox, local)
    return box is not None and (box.items >= context.mailbox_items_max or box.bytes >= context.mailbox_bytes_max)


def fact(view: View, local: str, key: bytes, item: api.Item) -> None:
    """A changing thing moves to the mailbox's newest position."""
    box = view.get(rows.Mailbox, local)
    position = box.position + 1 if box else 1
    view.put(box._replace(position=position) if box else rows.Mailbox(local, position, 0))
    view.put(rows.Fact(local, key, position, coding.encode_item(item)))
    view.hint("mailbox", local)


def watermark(view: View, context: Context, head: rows.LogHead, receipt: rows.Receipt) -> None:
    """Show how far a member is to every other local member of the conversation."""
    conversation = view.get(rows.Conversation, head.conversation)
    if conversation is None:
        return
    member = User(receipt.node, receipt.local)
    item = api.Watermark(
        conversation=to_text(head.conversation),
        origin=to_text(head.origin),
        log=to_text(head.incarnation),
        member=address(view, context, member),
        sent=receipt.sent,
        delivered=receipt.delivered,
        read=receipt.read,
        missing=unpack(receipt.missing),
        at=max(receipt.sent_ms, receipt.delivered_ms, receipt.read_ms),
    )
    key = b"w" + digest("fact", head.log, member.node, member.local.encode())[:16]
    for user in members(conversation):
        if user != member and user.node == context.node:
            fact(view, user.local, key, item)


def conversation_fact(view: View, context: Context, standing: rows.Standing, read: tuple[api.Mark, ...] = ()) -> None:
    """Show a user's standing in a conversation, and their own read marks, to all their devices."""
    conversation = view.get(rows.Conversation, standing.conversation)
    assert conversation is not None
    me = User(context.node, standing.local)
    other = next((m for m in members(conversation) if m != me), me)
    item = api.ConversationState(
        conversation=to_text(standing.conversation),
        other=address(view, context, other),
        state=standing.state,  # type: ignore[arg-type]
        read=read,
        last=standing.last_stamp >> 16,
    )
    marks = b"".join(mark.origin.encode() + mark.log.encode() for mark in read)
    fact(view, standing.local, b"c" + digest("fact", standing.conversation, marks)[:16], item)


def pack(numbers: Iterable[int]) -> bytes:
    return b"".join(n.to_bytes(8, "big") for n in sorted(set(numbers)))


def unpack(raw: bytes) -> tuple[int, ...]:
    return tuple(int.from_bytes(raw[i : i + 8], "big") for i in range(0, len(raw), 8))


def merge(old: rows.Receipt | None, new: rows.Receipt, since: int = 0) -> rows.Receipt:
    """Watermarks merge by maximum, and what one device opened no other makes missing again (PROTOCOL.md 6.2).

    `new` says nothing about numbers up to `since`: what was missing there still is.
    """
    if old is None:
        return new
    was, now = set(unpack(old.missing)), set(unpack(new.missing))
    missing = {
        n for n in was | now if (n in was or n > old.delivered) and (n in now or n > new.delivered or n <= since)
    }
    return rows.Receipt(
        old.log, old.node, old.local,
        max(old.sent, new.sent), max(old.delivered, new.delivered), max(old.read, new.read), pack(missing),
        old.sent_ms if old.sent >= new.sent else new.sent_ms,
        old.delivered_ms if old.delivered >= new.delivered else new.delivered_ms,
        old.read_ms if old.read >= new.read else new.read_ms,
    )  # fmt: skip
