"""B4 to B8 and B11: what a peer forges, repeats, claims, or signs although it is nonsense."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from federation import wire
from federation.dialer import Dialer
from federation.endpoint import Endpoint, TlsIdentity
from federation.errors import ProtocolError
from federation.event import MESSAGE, Media, Signed
from federation.identity import NodeKey, NodeLink, encode_chain, split_host_port
from federation.ids import Log, User, direct_conversation, to_text
from federation.ports import Channel, ChannelClosed
from node import api
from node.admin import call
from node.core import rows
from node.core.context import Context
from node.core.peers import ChangePeer
from node.core.receive import Receive
from node.core.view import Command, Missing, View
from node.node import Node
from node.storage.schema import TABLES
from tests.evil import kit
from tests.evil.kit import Peer
from tests.node.helpers import config, listening

LINKS = ("memory", "quic", "tcp")
DAY_MS = 24 * 3_600_000


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(listening(tmp_path)) as node:
        await node.create_user("bob")
        yield node


async def accept(node: Node, peer: Peer) -> None:
    await node.store.submit(ChangePeer(peer.node, "accepted", peer.name))
    await node.peers_changed()


@asynccontextmanager
async def linked(node: Node, door: str = "memory", seed: int = 1) -> AsyncIterator[Peer]:
    """An accepted peer with its link up."""
    async with kit.served(node) as open_door:
        peer = Peer(await open_door(door, wire.ALPN), seed)
        await accept(node, peer)
        yield await peer.greet()
        await peer.channel.close()


def bob(node: Node) -> User:
    return User(node.us.node, "bob")


async def dump(node: Node, *without: type) -> dict[str, list[Any]]:
    """Every row of the store, but what only says when we last heard of a peer."""

    def read(connection: Any) -> dict[str, list[Any]]:
        found = {}
        for row, table in TABLES.items():
            if row not in without:
                names = [c for c in table.c if c.name not in ("contact_ms", "seen_ms", "hints")]
                found[table.name] = sorted(map(tuple, connection.execute(table.select().with_only_columns(*names))))
        found["meta"] = [fact for fact in found["meta"] if fact[0] != "life"]  # each start is another one
        return found

    return await node.store.read(read)


async def bodies(node: Node) -> list[bytes | None]:
    stored = (await dump(node))["events"]
    columns = [c.name for c in TABLES[rows.StoredEvent].c]
    place, refused = columns.index("body"), columns.index("refused")
    return [row[place] for row in stored if not row[refused]]


# --- B4: changed bits -----------------------------------------------------------------------------------------------
class Store:
    """A decision over a few rows and nothing else: the same code that a node runs, without its store."""

    def __init__(self, *known: tuple[Any, ...]) -> None:
        self.rows = {(type(row), row[: rows.KEYS[type(row)]]): row for row in known}
        key = NodeKey(b"k" * 32)
        self.node = b"n" * 32
        self.context = Context(self.node, "a.test", key, b"i" * 16, b"s" * 16)
        self.context.now_ms = 1_700_000_000_000

    def decide(self, command: Command) -> tuple[Any, View]:
        view = View()
        for key in command.keys(self.context):
            view.loaded[key] = self.rows.get(key)
        while True:
            try:
                outcome = command.decide(view, self.context)
                view.accept()
                return outcome, view
            except Missing as error:
                view.restart()
                view.loaded |= {key: self.rows.get(key) for key in error.keys}


def _flips(raw: bytes) -> Iterator[bytes]:
    for place in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            yield bytes(changed)


def _offered() -> tuple[Store, Peer, wire.Segment]:
    peer = Peer(None)  # type: ignore[arg-type]
    store = Store(
        rows.Account("bob", "", "", "active", "strangers", 0),
        rows.Peer(peer.node, peer.name, "accepted", "", encode_chain(peer.chain), 0, 0),
    )
    to = User(store.node, "bob")
    event = peer.event(to, b"the very text", media=(Media(b"m" * 32, 70_000),), ext={"a": b"\x01"}, expires_ms=5)
    return store, peer, peer.segment(to, event)


def test_b4_every_changed_bit_of_an_event_is_refused() -> None:
    store, peer, segment = _offered()
    ack, view = store.decide(Receive(peer.node, segment))
    assert (ack.seq, ack.verdicts) == (1, ())  # as it is, it stands
    (signed,) = segment.events
    assert signed.body is not None
    tried = 0
    for name in ("header", "signature", "body"):
        for raw in _flips(getattr(signed, name)):
            changed = msgspec.structs.replace(segment, events=(msgspec.structs.replace(signed, **{name: raw}),))
            ack, view = store.decide(Receive(peer.node, changed))
            assert [v.verdict for v in ack.verdicts] == ["refused"], (name, raw)
            kept = [row for (kind, _), row in view.changed.items() if kind is rows.StoredEvent]
            assert all(row is not None and row[-1] and row[10] is None for row in kept)
            assert not [kind for kind, _ in view.changed if kind in (rows.Item, rows.Mailbox, rows.Conversation)]
            tried += 1
    assert tried == 8 * (len(signed.header) + 64 + len(signed.body))


def test_b4_every_changed_bit_of_the_frame_around_it_is_refused() -> None:
    """What is not signed is checked against what is: members, log and numbers of the segment."""
    store, peer, segment = _offered()
    raw = wire.encode(wire.Events((segment,)))
    stored = 0
    for changed in _flips(raw):
        try:
            frame = wire.decode(changed)
        except ProtocolError:
            continue
        assert isinstance(frame, wire.Events)
        for part in frame.segments:
            if part.origin != peer.node:
                continue  # the link ends (PROTOCOL.md 5.9)
            _, view = store.decide(Receive(peer.node, part))
            stored += any(kind is rows.Item for kind, _ in view.changed)
    assert stored == 0


# --- B5: replay -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("door", LINKS)
async def test_b5_a_thousand_repeats_are_one_message(node: Node, door: str) -> None:
    async with linked(node, door) as peer:
        segment = peer.segment(bob(node), peer.event(bob(node), b"once"))
        assert await peer.verdict(segment) == "stored"
        before = await dump(node)
        for _ in range(10):
            acks = await peer.offer_events(*[segment] * 100)
            assert {(ack.seq, ack.verdicts) for ack in acks} == {(1, ())}
        assert await dump(node) == before


async def test_b5_repeats_on_another_link_and_in_another_life(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with Node.open(settings) as node:
        await node.create_user("bob")
        async with linked(node) as peer:
            segment = peer.segment(bob(node), peer.event(bob(node), b"once"))
            assert await peer.verdict(segment) == "stored"
        before = await dump(node)
        async with linked(node) as peer:
            assert await peer.verdict(segment) == "stored"
        assert await dump(node) == before
    async with Node.open(settings) as node:
        async with linked(node) as peer:
            assert await peer.verdict(segment) == "stored"
        assert await dump(node) == before


async def test_b5_an_event_is_worth_nothing_in_another_place(node: Node, tmp_path: Path) -> None:
    """In another conversation, from another peer, at another node: nothing is stored and nobody is told."""
    await node.create_user("ann")
    ann = User(node.us.node, "ann")
    async with linked(node) as peer, linked(node, seed=2) as second:
        event = peer.event(bob(node), b"for bob")
        assert await peer.verdict(peer.segment(bob(node), event)) == "stored"
        before = await bodies(node)
        assert await peer.verdict(peer.segment(ann, event)) == "bad_event"
        assert await second.verdict(second.segment(bob(node), event)) == "bad_event"
        third = await second.verdict(second.segment(ann, second.event(bob(node), b"for bob")))
        assert third == "bad_event"
        assert await bodies(node) == before
    async with Node.open(config(tmp_path, "c.test")) as other:
        await other.create_user("bob")
        async with linked(other) as peer:
            assert await peer.verdict(peer.segment(bob(node), event)) == "not_member"
            assert await peer.verdict(peer.segment(bob(other), event)) == "bad_event"
        assert await bodies(other) == []


@pytest.mark.parametrize("door", LINKS)
async def test_b5_a_recorded_hello_opens_nothing(node: Node, door: str) -> None:
    async with kit.served(node) as open_door:
        first = Peer(await open_door(door, wire.ALPN))
        await accept(node, first)
        await first.offer()
        recorded = first.hello()
        await first.tell(recorded)
        await first.until(wire.Standing)
        second = Peer(await open_door(door, wire.ALPN))
        await second.offer()  # with the same nonce as before
        await second.tell(recorded)
        assert await second.end() == "bad_proof"


# --- B6: signatures and keys ----------------------------------------------------------------------------------------
def _wrong(peer: Peer, to: User) -> dict[str, Signed]:
    good, other = peer.event(to).signed, NodeKey(b"x" * 32)
    replace = msgspec.structs.replace
    return {
        "of another key": peer.event(to, signer=other).signed,
        "of zeros": replace(good, signature=bytes(64)),
        "of another event": replace(good, signature=peer.event(to, b"other").signed.signature),
        "for another use": replace(good, signature=peer.key.sign("hello", good.header)),
        "without a domain": replace(good, signature=peer.key.sign("", good.header)),
    }


@pytest.mark.parametrize("what", list(_wrong(Peer(None), User(b"n" * 32, "bob"))))  # type: ignore[arg-type]
async def test_b6_a_wrong_signature_is_refused_for_good(node: Node, what: str) -> None:
    async with linked(node) as peer:
        segment = peer.segment(bob(node), _wrong(peer, bob(node))[what])
        for _ in range(2):
            (ack,) = await peer.offer_events(segment)
            assert (ack.seq, [(v.verdict, v.code) for v in ack.verdicts]) == (1, [("refused", "bad_signature")])
        assert await bodies(node) == []
        await peer.settle()


@pytest.mark.parametrize("size", [0, 1, 63, 65, 128])
async def test_b6_a_signature_of_another_length_is_no_frame(node: Node, size: int) -> None:
    async with linked(node) as peer:
        signed = msgspec.structs.replace(peer.event(bob(node)).signed, signature=bytes(size))
        await peer.tell(wire.Events((peer.segment(bob(node), signed),)))
        assert await peer.end() == "bad_frame"


HELLOS: dict[str, tuple[str, Any]] = {
    "another key signs": ("bad_proof", lambda p: p.hello(signer=NodeKey(b"x" * 32))),
    "another node's chain": ("bad_proof", lambda p: p.hello(chain=Peer(p.channel, 5).chain)),
    "the wrong role": ("bad_proof", lambda p: p.hello(role="server")),
    "no proof": ("bad_proof", lambda p: p.hello(proof=bytes(64))),
    "for another node": ("wrong_node", lambda p: p.hello(to=b"x" * 32)),
    "a broken chain": ("bad_identity", lambda p: p.hello(chain=msgspec.structs.replace(p.chain, genesis=b"\x94"))),
    "no name": ("bad_frame", lambda p: p.hello(name="")),
    "a name in Cyrillic": ("bad_frame", lambda p: p.hello(name="аdmin.test")),
}


@pytest.mark.parametrize("door", LINKS)
@pytest.mark.parametrize("what", HELLOS)
async def test_b6_a_hello_that_is_not_proved_ends_the_link_and_is_logged(
    node: Node, what: str, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, make = HELLOS[what]
    before = await dump(node)
    async with kit.served(node) as open_door:
        peer = Peer(await open_door(door, wire.ALPN))
        await peer.offer()
        told = asyncio.Event()
        monkeypatch.setattr("federation.running.log.warning", lambda *said: told.set())
        await peer.tell(make(peer))
        assert await peer.end() == code
        await peer.channel.close()
        async with asyncio.timeout(kit.WAIT_S):
            await told.wait()
    assert await dump(node) == before
    assert not node.service.links


async def test_b6_a_relay_with_a_certificate_of_its_own_gets_nothing(tmp_path: Path, node: Node) -> None:
    """Whatever authority vouches for it: what is signed names the TLS session, and the relay's two differ."""
    seen: list[str] = []
    target = split_host_port(node.config.listen or "")
    async with Dialer() as onward:

        async def relay(alpn: str, here: Channel) -> None:
            there = await onward.dial(target, alpn)

            async def pump(source: Channel, sink: Channel) -> None:
                try:
                    while frames := await source.recv():
                        seen.extend(type(wire.decode(raw)).__name__ for raw in frames)
                        await sink.send(*frames)
                except ChannelClosed:
                    pass
                await sink.close()

            await asyncio.gather(pump(here, there), pump(there, here))

        endpoint = await Endpoint.open("127.0.0.1", 0, TlsIdentity.generate(), relay)
        async with Node.open(listening(tmp_path, "b.test")) as other:
            reasons: asyncio.Queue[str] = asyncio.Queue()
            other.service._lost = lambda peer, reason: reasons.put_nowait(reason)  # type: ignore[method-assign]
            link = NodeLink(node.us.node, "a.test", (f"127.0.0.1:{endpoint.port}",))
            await call(node.config, "peer.add", {"link": str(other.link._replace(addresses=()))})
            await call(other.config, "peer.add", {"link": str(link)})
            async with asyncio.timeout(kit.WAIT_S):
                reason = await reasons.get()
            assert "not proved over this channel" in reason
            assert not other.service.links
        await endpoint.close()
    assert "Hello" in seen
    assert "Standing" not in seen


# --- B7: the verdict is final ---------------------------------------------------------------------------------------
async def test_b7_what_was_refused_stays_refused(tmp_path: Path) -> None:
    settings = config(tmp_path)
    async with Node.open(settings) as node:
        await node.create_user("bob")
        late = User(node.us.node, "late")
        async with linked(node) as peer:
            segment = peer.segment(late, peer.event(late, b"too early"))
            assert await peer.verdict(segment) == "unknown_user"
            await node.create_user("late")  # now there is such a user
            assert await peer.verdict(segment) == "unknown_user"
            before = await dump(node, rows.Peer)
    async with Node.open(settings) as node:
        async with linked(node) as peer:
            assert await peer.verdict(segment) == "unknown_user"
        assert await dump(node, rows.Peer) == before
        assert await bodies(node) == []


async def test_b7_a_number_has_one_event(node: Node) -> None:
    async with linked(node) as peer:
        first, second = peer.event(bob(node), b"one"), peer.event(bob(node), b"two")
        assert await peer.verdict(peer.segment(bob(node), first)) == "stored"
        for _ in range(2):
            assert await peer.verdict(peer.segment(bob(node), second)) == "equivocation"
        assert await peer.verdict(peer.segment(bob(node), first)) == "stored"
        assert await bodies(node) == [b"one"]
        assert [row[0] for row in (await dump(node))["evidence"]] == [second.id]


# --- B8: claims, answers unasked, and what we sign ------------------------------------------------------------------
async def test_b8_nobody_gets_a_name_that_is_another_nodes(node: Node) -> None:
    honest = Peer(None, 7, "honest.test")  # type: ignore[arg-type]
    await accept(node, honest)
    async with kit.served(node) as open_door:
        for number, claimed in enumerate(("a.test", "honest.test", to_text(honest.node)), 20):
            peer = Peer(await open_door("memory", wire.ALPN), number, claimed)
            await peer.offer()
            await peer.tell(peer.hello())
            assert (await peer.until(wire.Standing)).state == "pending"
            await node.peers_changed()
            assert node.directory.peers[peer.node].name == ""
    assert node.directory.node_of("a.test") == node.us.node
    assert node.directory.node_of("honest.test") == honest.node


def _claims(peer: Peer, node: Node) -> dict[str, tuple[str, wire.Segment]]:
    """Events that say to be from somebody else; each signed by the peer's own key."""
    to, ann = bob(node), User(node.us.node, "ann")
    conversation = direct_conversation(ann, to)
    members = tuple(sorted((ann, to)))
    inner = peer.event(to, b"from ann", "ann", origin=node.us.node, conversation=conversation)
    return {
        "from our own user, in our log": ("not_member", peer.segment(to, inner, origin=node.us.node)),
        "from our own user, in its log": ("bad_event", peer.segment(to, inner)),
        "our users' conversation": (
            "not_member",
            peer.segment(to, peer.event(to, sender="ann", conversation=conversation), sender="ann",
                         conversation=conversation, members=members),
        ),
        "a third node's log": ("not_member", Peer(peer.channel, 99).segment(to, Peer(peer.channel, 99).event(to))),
        "a sender who is no name": ("bad_event", peer.segment(to, peer.event(to, sender="Eve"), sender="Eve")),
        "a sender with an address": ("bad_event", peer.segment(to, peer.event(to, sender="a@b"), sender="a@b")),
        "a node as sender": ("bad_event", peer.segment(to, peer.event(to, sender=""), sender="")),
        "notices with a sender": ("bad_event", peer.notices(node.us.node)),
        "a message in the notices": (
            "not_member",
            peer.notices(node.us.node, kind=MESSAGE, sender="eve", body_format="text"),
        ),
        "an event in an event": (
            "stored",  # a text like any other: what is inside of it is believed by nobody
            peer.segment(to, peer.event(to, msgspec.msgpack.encode(inner.signed))),
        ),
    }  # fmt: skip


CLAIMS = (
    "from our own user, in our log", "from our own user, in its log", "our users' conversation", "a third node's log",
    "a sender who is no name", "a sender with an address", "a node as sender", "a message in the notices",
    "an event in an event",
)  # fmt: skip


@pytest.mark.parametrize("what", CLAIMS)
async def test_b8_a_forged_sender_is_nobody(node: Node, what: str) -> None:
    await node.create_user("ann")
    async with linked(node) as peer:
        code, segment = _claims(peer, node)[what]
        await peer.tell(wire.Events((segment,)))
        answer = await peer.until(wire.Acks, wire.Goodbye)
        if isinstance(answer, wire.Goodbye):
            assert answer.code == code
        else:
            assert next((v.code for v in answer.logs[0].verdicts), "stored") == code
        _, token = await kit.device(node, "bob")
        reader = await kit.client(node.connect_inside(), token=token, feed=False)
        pages = (await reader.ask(api.GetConversations)).conversations
        assert {page.other for page in pages} <= {f"eve@{peer.name}"}


UNASKED: dict[str, tuple[str, Any]] = {
    "an acknowledgement": ("bad_ack", lambda p, n: wire.Acks((wire.LogAck(b"c" * 32, n.us.node, b"i" * 16, 9),))),
    "a refusal": (
        "bad_ack",
        lambda p, n: wire.Acks(
            (wire.LogAck(b"c" * 32, n.us.node, b"i" * 16, 9, (wire.Verdict(9, "refused", "declined"),)),)
        ),
    ),
    "a pong": ("", lambda p, n: wire.Pong(7)),
    "a standing again": ("", lambda p, n: wire.Standing("accepted")),
    "a hello": ("bad_frame", lambda p, n: p.hello()),
    "an offer": ("bad_frame", lambda p, n: wire.Offer(1, 1, b"n" * 32)),
}


@pytest.mark.parametrize("what", UNASKED)
async def test_b8_an_answer_that_nobody_asked_for_changes_nothing(node: Node, what: str) -> None:
    code, make = UNASKED[what]
    async with linked(node) as peer:
        before = await dump(node)
        await peer.tell(make(peer, node))
        if code:
            assert await peer.end() == code
        else:
            await peer.settle()
        assert await dump(node) == before


async def test_b8_receipts_about_others_users_and_logs_are_not_believed(node: Node) -> None:
    await node.create_user("ann")
    _, token = await kit.device(node, "ann")
    ann = await kit.client(node.connect_inside(), token=token, feed=False)
    sent = await ann.send("bob@a.test", b"hi")
    log = Log(direct_conversation(User(node.us.node, "ann"), bob(node)), node.us.node, node.us.incarnation)
    async with linked(node) as peer:
        before = await dump(node, rows.StoredEvent, rows.LogHead, rows.Peer)
        receipts = [
            wire.Receipt(conversation, incarnation, member, 1, 1)
            for conversation in (log.conversation, b"?" * 32)
            for incarnation in (log.incarnation, b"?" * 16)
            for member in ("bob", "ann", "", "nobody")
        ]
        assert await peer.verdict(peer.notices(node.us.node, *receipts)) == "stored"
        assert await dump(node, rows.StoredEvent, rows.LogHead, rows.Peer) == before
    (to,) = (await ann.ask(api.GetState, sent.event)).to
    assert to.state != "read"


async def test_b8_nothing_is_signed_for_a_peer(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that our key signs while somebody tries everything: one hello for each channel, with its own nonce in it."""
    signed: list[tuple[str, bytes]] = []
    real = NodeKey.sign

    def sign(key: NodeKey, domain: str, data: bytes) -> bytes:
        if key is node.us.key:
            signed.append((domain, data))
        return real(key, domain, data)

    monkeypatch.setattr(NodeKey, "sign", sign)
    hellos = 0
    for what in CLAIMS:
        async with linked(node, seed=3) as peer:
            hellos += 1
            await peer.tell(wire.Events((_claims(peer, node)[what][1],)))
            await peer.until(wire.Acks, wire.Goodbye)
    for _, make in UNASKED.values():
        async with linked(node, seed=3) as peer:
            hellos += 1
            await peer.tell(make(peer, node))
            await peer.tell(wire.Ping(1))
            await peer.until(wire.Pong, wire.Goodbye)
    assert [domain for domain, _ in signed] == ["hello"] * hellos
    assert all(len(data) == 32 for _, data in signed)  # a digest of ours over the binding and both nonces


# --- B11: signed nonsense -------------------------------------------------------------------------------------------
NOW = 1_700_000_000_000
NONSENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "year 9999": ("bad_event", {"stamp": 253_370_764_800_000 << 16}),
    "the last stamp there is": ("clock", {"stamp": (1 << 63) - 1}),
    "1970": ("stored", {"stamp": 0}),
    "a kind nobody knows": ("unknown_kind", {"kind": "group.takeover"}),
    "a format nobody knows": ("stored", {"body_format": "olm/9"}),
    "expired long ago": ("stored", {"expires_ms": 0}),
    "an answer to nothing": ("stored", {"target": b"?" * 32}),
    "media of petabytes": ("stored", {"media": tuple(Media(bytes([n]) * 32, (1 << 53) - 1) for n in range(32))}),
    "all extensions there can be": ("stored", {"ext": {f"{n:032}": bytes(200) for n in range(16)}}),
    "a body of another size": ("bad_body", {"body_bytes": 7}),
    "a body that is another": ("bad_body", {"body_hash": b"?" * 32}),
    "a predecessor that is itself": ("bad_event", {"after": None, "previous": b"?" * 32}),
    "a device of no size": ("bad_event", {"device": b"d"}),
    "a sender of 64 letters": ("bad_event", {"sender": "e" * 64}),
    "the last number there is": ("bad_event", {"seq": (1 << 53) - 1, "previous": b"?" * 32}),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_b11_signed_nonsense_harms_nobody_and_the_link_moves_on(node: Node, what: str) -> None:
    code, fields = NONSENSE[what]
    fields = {"sender": "eve"} | fields
    async with linked(node) as peer:
        odd = peer.event(bob(node), b"odd", **fields)
        assert await peer.verdict(peer.segment(bob(node), odd)) == code
        good = peer.event(bob(node), b"good", seq=2, previous=odd.id)
        assert await peer.verdict(peer.segment(bob(node), good, first=2)) == "stored"
        _, token = await kit.device(node, "bob")
        reader = await kit.client(node.connect_inside(), token=token)
        assert (await reader.message(b"good")).sender == f"eve@{peer.name}"
        page = await reader.ask(api.GetHistory, f"eve@{peer.name}")
        assert [m.body for m in page.messages][-1 if what != "1970" else 1] == b"good"


BROKEN: dict[str, Any] = {
    "a name of 900 kB": lambda h: h | {"sender": "e" * 900_000},
    "a negative size": lambda h: h | {"body_bytes": -1},
    "a negative number": lambda h: h | {"seq": -1},
    "a stamp of 64 bits": lambda h: h | {"stamp": (1 << 64) - 1},
    "a fraction": lambda h: h | {"seq": 1.0},
    "33 media": lambda h: h | {"media": [(b"m" * 32, 1)] * 33},
    "17 extensions": lambda h: h | {"ext": {f"k{n}": b"" for n in range(17)}},
    "an extension of 1025 bytes": lambda h: h | {"ext": {"k": bytes(1025)}},
    "a version to come": lambda h: h | {"version": 2},
    "a name with a newline": lambda h: h | {"sender": "eve\n"},
    "a kind with a newline": lambda h: h | {"kind": "message\n"},
    "one field more": lambda h: h | {"more": 1},
}


@pytest.mark.parametrize("what", BROKEN)
async def test_b11_a_header_that_is_none_is_refused_and_the_link_moves_on(node: Node, what: str) -> None:
    async with linked(node) as peer:
        header = msgspec.structs.asdict(peer.event(bob(node), b"odd").header)
        raw = msgspec.msgpack.encode(
            [msgspec.to_builtins(v, builtin_types=(bytes,)) for v in BROKEN[what](header).values()]
        )
        signed = Signed(raw, peer.key.sign("event", raw), b"odd")
        await peer.tell(wire.Events((peer.segment(bob(node), signed),)))
        answer = await peer.until(wire.Acks, wire.Goodbye)
        if len(raw) > 8192:
            assert answer == wire.Goodbye("bad_frame", answer.reason)  # type: ignore[union-attr]
            return
        assert isinstance(answer, wire.Acks)
        assert [(v.verdict, v.code) for v in answer.logs[0].verdicts] == [("refused", "bad_event")]
        await peer.settle()
        assert await bodies(node) == []


async def test_b11_a_body_of_receipts_beyond_all_bounds_is_refused(node: Node) -> None:
    async with linked(node) as peer:
        receipts = [wire.Receipt(b"c" * 32, b"i" * 16, "eve", 1, 1)] * 513
        assert await peer.verdict(peer.notices(node.us.node, *receipts)) == "bad_notices"
        await peer.settle()
