"""What must hold once everything is healed and quiet: nothing lost, nothing twice, one order, told to the sender.

It looks from outside: at what clients were told and have stored, and at the rows and signed headers in the files.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from federation.event import Header, decode_header, event_id
from federation.ids import from_text, to_text
from node import api
from node.client.fold import apply, fold
from node.client.rows import from_node
from node.core.heal import DONE

if TYPE_CHECKING:
    from tests.sim.client import Client, Saying
    from tests.sim.host import Host
    from tests.sim.world import World

Headers = dict[tuple[bytes, bytes, bytes], dict[int, tuple[bytes, Header]]]  # (conversation, origin, incarnation)


@contextmanager
def look(host: "Host") -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(host.folder / "roost.db")
    try:
        yield connection
    finally:
        connection.close()


def sayings(world: "World") -> "list[Saying]":
    return [saying for client in world.clients for saying in client.sayings]


def unfinished(world: "World") -> str:
    """Why the world is not quiet yet, or nothing."""
    for client in world.clients:
        if not client.settled or not client.ready:
            return f"{client.name} waits for answers"
    waiting = Counter(s.accepted.log + s.accepted.conversation for s in sayings(world) if s.accepted)
    for host in world.hosts.values():
        if host.life is None or not host.life.up:
            return f"{host.name} is down"
        if host.life.node.held or host.going_back or host.old:
            return f"{host.name} is held"
        peers = len(world.hosts) - 1
        with look(host) as store:
            rows = store.execute("SELECT count(*) FROM outbound WHERE acked < head").fetchone()[0]
            if rows:
                return f"{host.name} has {rows} logs that a peer did not acknowledge"
            healed = store.execute("SELECT count(*) FROM heals WHERE phase = ?", (DONE,)).fetchone()[0]
            if host.life.node.context.restored and healed < peers:
                return f"{host.name} is healed by {healed} of {peers} peers"
            box = dict(store.execute("SELECT local, position FROM mailboxes"))
            late = [c.name for c in world.clients if c.host is host and c.position < box.get(c.user, 0)]
            if late:
                return f"{late} have not read their mailbox"
    return "" if waiting else "nothing was said"


async def check(world: "World") -> None:
    """Add every broken promise to `world.violations`."""
    found = world.violations
    try:
        _mailboxes(world, found)
        _devices(world, found)
        logs = {name: _logs(host, found) for name, host in world.hosts.items()}
        _same_logs(world, logs, found)
        for client in world.clients:
            await _history(world, client, found)
        _same_histories(world, found)
        for host in world.hosts.values():
            _leftovers(host, found)
            _deletions(host, found)
    except (AssertionError, TimeoutError) as error:
        found.append(f"the check itself was refused: {error!r}")


def _mailboxes(world: "World", found: list[str]) -> None:
    """Exactly once for sender and recipient; nothing else, for nobody else."""
    said = {s.accepted.event: s for s in sayings(world) if s.accepted}
    lost = {to_text(event) for host in world.hosts.values() for event in host.lost}
    unknown = {s.body for s in sayings(world) if s.unknown} | {None}
    deleted = {s.target for s in sayings(world) if s.kind == "delete"}
    if len(said) != sum(1 for s in sayings(world) if s.accepted):
        found.append("two messages were given one event id")
    for s in sayings(world):
        if len(set(s.answers)) > 1 and not s.unknown:
            found.append(f"{s.key}: retries with one key got several events: {s.answers}")
    for client in world.clients:
        bodies = {item.event: item.body for item in client.stored.values() if isinstance(item, api.Message)}
        have = Counter(item.event for item in client.stored.values() if isinstance(item, api.Message))
        due = {event for event, s in said.items() if client.address in (s.sender, s.to)}
        # What was deleted before it arrived is not delivered any more (PROTOCOL.md 4.6).
        early = {e for e in due if {e, said[e].target if said[e].kind == "edit" else None} & (deleted - {None})}
        for event in due - have.keys() - lost - early:
            found.append(f"{client.name} never got {said[event].key}")
        for event, times in have.items():
            if times > 1:
                found.append(f"{client.name} has {said[event].key if event in said else event} {times} times")
            if event not in due and bodies[event] not in unknown:
                found.append(f"{client.name} has {event}, which is not theirs")
        for item in client.stored.values():
            if isinstance(item, api.Message) and item.event in said:
                s = said[item.event]
                gone = item.body is None and {s.accepted and s.accepted.event, s.target} & deleted
                if item.sender != s.sender or (item.body != s.body and not gone):
                    found.append(f"{client.name} has {s.key} with another body or sender")


def _devices(world: "World", found: list[str]) -> None:
    """What one device says in one conversation keeps its order, across node lives too."""
    for client in world.clients:
        by_talk: dict[str, list[str]] = defaultdict(list)
        orders = {i.event: i.order for i in client.stored.values() if isinstance(i, api.Message)}
        for s in client.sayings:
            if s.accepted and s.accepted.event in orders:
                by_talk[s.to].append(orders[s.accepted.event])
        for to, order in by_talk.items():
            if order != sorted(set(order)):
                found.append(f"{client.name} to {to}: said in one order, stored in another")


def _logs(host: "Host", found: list[str]) -> Headers:
    """Every log here is gapless, chained, and a new life names the one before it."""
    logs: Headers = defaultdict(dict)
    with look(host) as store:
        for (raw,) in store.execute("SELECT header FROM events"):
            header = decode_header(raw)
            logs[tuple(header.log)][header.seq] = (event_id(raw), header)  # type: ignore[index]
        found_heads = store.execute("SELECT conversation, origin, incarnation, seq FROM logs")
        heads = {(c, o, i): seq for c, o, i, seq in found_heads}
    for log, events in logs.items():
        numbers = sorted(events)
        if numbers != list(range(1, heads.get(log, 0) + 1)):
            found.append(f"{host.name}: log {log[2].hex()[:6]} has {numbers}, its head is {heads.get(log)}")
        for a, b in pairwise(numbers):
            if events[b][1].previous != events[a][0]:
                found.append(f"{host.name}: log {log[2].hex()[:6]}: {b} does not follow {a}")
    firsts: dict[tuple[bytes, bytes], list[Header]] = defaultdict(list)
    for log, events in logs.items():
        if 1 in events:
            firsts[log[:2]].append(events[1][1])
    restored = {other.keys.identity.node for other in host.world.hosts.values() if other.restores}
    for (_, origin), of_one in firsts.items():
        if origin in restored:
            continue  # it named what its copy knew
        of_one.sort(key=lambda header: header.stamp)
        for old, new in pairwise(of_one):
            last = max(logs[tuple(old.log)])  # type: ignore[index]
            if new.after is None or (new.after.incarnation, new.after.seq) != (old.incarnation, last):
                names = f"{new.incarnation.hex()[:6]} does not name {old.incarnation.hex()[:6]}:{last}"
                found.append(f"{host.name}: log {names}")
        if of_one[0].after is not None:
            found.append(f"{host.name}: log {of_one[0].incarnation.hex()[:6]} names a predecessor that is not there")
    return logs


def _same_logs(world: "World", logs: dict[str, Headers], found: list[str]) -> None:
    """Whoever has a log has what its origin has."""
    origins = {host.keys.identity.node: name for name, host in world.hosts.items()}
    for name, mine in logs.items():
        for log, events in mine.items():
            theirs = logs[origins[log[1]]].get(log, {})
            if not theirs and world.hosts[origins[log[1]]].restores and _all_refused(world.hosts[name], log):
                continue  # nobody but its origin knew what that was
            if {seq: e[0] for seq, e in events.items()} != {seq: e[0] for seq, e in theirs.items()}:
                found.append(f"{name} and {origins[log[1]]} differ in log {log[2].hex()[:6]}")


def _all_refused(host: "Host", log: tuple[bytes, bytes, bytes]) -> bool:
    with look(host) as store:
        query = "SELECT count(*) FROM events WHERE conversation = ? AND refused = ''"
        return bool(store.execute(query, log[:1]).fetchone()[0] == 0)


async def _history(world: "World", client: "Client", found: list[str]) -> None:
    """The states that a sender is shown, and the order that everyone is shown."""
    for to in {s.to: None for s in sayings(world) if s.accepted and client.address in (s.sender, s.to)}:
        others = {s.sender for s in sayings(world) if s.to == to == client.address} or {to}
        for other in sorted(others):
            page: api.History = await client.ask(api.GetHistory, other, None, api.PAGE_MAX)
            client.histories[other] = [m.event for m in page.messages]
            client.shown[other] = _shown(client, page)
            keys = [(m.order, from_text(m.origin, 32), from_text(m.log, 16), m.seq) for m in page.messages]
            if keys != sorted(keys):
                found.append(f"{client.name}: the history with {other} is out of order")
            for message in page.messages:
                if message.sender == client.address:
                    _state(world, message, other, found)


def _shown(client: "Client", page: api.History) -> dict[str, object]:
    """The messages of a page with all that was done to them, as a device shows them."""
    every = {m.event: from_node(m, client.address) for m in (*page.messages, *page.about) if isinstance(m, api.Message)}
    shown: dict[str, object] = {}
    for event, message in every.items():
        if message.kind == "message":
            acts = [m for m in every.values() if m.reply_to == event]
            now = apply(message, fold(message, acts))
            by = [(r.emoji, r.by) for r in now.reactions]
            shown[event] = (now.text, now.deleted, now.edited, [e.text for e in now.edits], by, now.pinned)
    return shown


def _deletions(host: "Host", found: list[str]) -> None:
    """What somebody deleted of their own is nowhere on this node, and neither is what it said before or after."""
    with look(host) as store:
        rows = store.execute("SELECT event, header, body FROM events WHERE refused = ''").fetchall()
    headers = {event: decode_header(header) for event, header, _ in rows}
    bodies = {event: body for event, _, body in rows}
    gone = {(h.target, h.origin, h.sender) for h in headers.values() if h.kind == "delete"}
    for event, h in headers.items():
        about = event if h.kind == "message" else h.target if h.kind == "edit" else None
        if (about, h.origin, h.sender) in gone and bodies[event] is not None:
            found.append(f"{host.name} still has the body of a {h.kind} that was deleted")


def _state(world: "World", message: api.Message, other: str, found: list[str]) -> None:
    """All ends well or is told: delivered or read; failed where nobody is there to get it."""
    key = (message.body or b"?").split()[0].decode()
    at = (message.conversation, message.origin, message.log)
    seen = max((c.read_upto.get(at, 0) for c in world.clients if c.address == other), default=0)
    if other.startswith("nobody@"):
        good: tuple[str, ...] = ("failed",)
    else:
        good = ("read",) if seen >= message.seq else ("delivered", "read")
    if message.body is None:  # a header alone is delivered to nobody
        good += ("sent",)
    if message.state not in good:
        found.append(f"{key} to {other} is {message.state}, not {' or '.join(good)}")


def _same_histories(world: "World", found: list[str]) -> None:
    lost = {to_text(event) for host in world.hosts.values() for event in host.lost}
    maybe = {s.key for s in sayings(world) if s.unknown}
    by_address = defaultdict(list)
    for client in world.clients:
        by_address[client.address].append(client)
    for client in world.clients:
        for other, events in client.histories.items():
            for peer in by_address.get(other, ()):
                if peer.histories.get(client.address, events) != events:
                    found.append(f"{client.name} and {peer.name} see different orders")
                elif peer.shown.get(client.address, client.shown[other]) != client.shown[other]:
                    found.append(f"{client.name} and {peer.name} see different texts")
            said = [s.accepted.event for s in sayings(world)
                    if s.accepted and {s.sender, s.to} == {client.address, other}]  # fmt: skip
            missing, more = set(said) - set(events) - lost, set(events) - set(said)
            if missing or len(set(events)) < len(events) or (more and not maybe):
                found.append(f"{client.name}: the history with {other} is not what was said")


def _leftovers(host: "Host", found: list[str]) -> None:
    """Queues and their counters are empty, no quarrel was recorded, the file is sound."""
    questions: dict[str, Any] = {
        "SELECT count(*) FROM outbound WHERE acked < head": 0,
        "SELECT coalesce(sum(waiting), 0) FROM destinations": 0,
        "SELECT count(*) FROM evidence": 0,
        "PRAGMA quick_check": "ok",
    }
    with look(host) as store:
        for question, good in questions.items():
            answer = store.execute(question).fetchone()[0]
            if answer != good:
                found.append(f"{host.name}: {question} gives {answer}")
