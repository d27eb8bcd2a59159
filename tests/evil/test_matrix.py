"""A1, A2: who may do what, as one exact table (matrix.txt), the same through every door; nothing is allowed by default.

The rows are made from the frame types of the client protocol, of links and of the admin socket: a new one without a
sample here, or without a row in the table, fails. `ROOST_MATRIX=1 pytest tests/evil/test_matrix.py` writes the table
anew; whoever does so answers for each cell that changed.
"""

import itertools
import os
import stat
import typing
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from federation import wire
from federation.ids import User, direct_conversation, to_text
from federation.ports import ChannelClosed
from node import api
from node.admin import OPERATIONS, AdminError, call
from node.api import ApiError
from node.core.peers import ChangePeer
from node.core.people import AddAccount, AddInvite, ChangeAccount, ChangeDevice
from node.core.progress import Consent
from node.core.send import Send
from node.node import Node
from node.session import Session
from node.system import token_hash
from tests.evil import kit
from tests.evil.kit import OpenDoor, Peer
from tests.node.helpers import Client, listening

FILE = Path(__file__).with_name("matrix.txt")
ACTORS = ("anonymous", "user", "member", "other", "blocked", "disabled", "deleted", "revoked")
PEERS = ("stranger", "pending", "accepted", "blocked", "wrong")
DOORS = ("memory", "quic", "msgpack", "json")
_numbers = itertools.count(1)


@dataclass
class World:
    """Made anew for each cell: `user` wrote `sent` to `member`; `other` has to do with neither."""

    node: Node
    actor: str
    names: dict[str, str] = field(default_factory=dict)
    devices: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    invite: str = ""
    sent: Any = None

    @classmethod
    async def make(cls, node: Node, actor: str) -> "World":
        number = next(_numbers)
        world = cls(node, actor, {name: f"{name}{number}" for name in ACTORS}, invite=f"invite-{number}")
        for name in ACTORS[1:]:
            await node.store.submit(AddAccount(world.names[name], ""))
            world.devices[name] = await kit.device(node, world.names[name])
        member = User(node.us.node, world.names["member"])
        blocked = world.names["blocked"], world.devices["blocked"][0]
        await node.store.submit(Send(*blocked, "first", member, "message", "text", b"hi"))
        declined = direct_conversation(User(node.us.node, blocked[0]), member)
        await node.store.submit(Consent(member.local, declined, False, ()))
        user = world.names["user"], world.devices["user"][0]
        world.sent = await node.store.submit(Send(*user, "k", member, "message", "text", b"hi"))
        await node.store.submit(AddInvite(token_hash(world.invite), node.system.wall_ms() + 10**6))
        await node.store.submit(ChangeAccount(world.names["disabled"], state="disabled"))
        await node.store.submit(ChangeAccount(world.names["deleted"], state="deleted"))
        await node.store.submit(ChangeDevice(world.names["revoked"], world.devices["revoked"][0], revoke=True))
        return world

    @property
    def me(self) -> str:
        return self.names[self.actor] if self.actor != "anonymous" else self.names["user"]

    @property
    def token(self) -> str:
        return self.devices[self.actor][1] if self.actor in self.devices else "made up"

    def address(self, name: str) -> str:
        return f"{self.names[name]}@a.test"

    @property
    def mark(self) -> api.Mark:
        return api.Mark(self.sent.origin, self.sent.log, self.sent.seq)

    def proof(self, client: Client, user: str) -> bytes:
        return kit.DEVICE_KEY.sign("device-login", client.login_bytes(user))

    def register(self, client: Client, invite: str) -> api.Register:
        name = f"new{self.invite}"
        return api.Register(9, invite, name, "pw", "d", kit.DEVICE_KEY.public, self.proof(client, name))

    def act(self, about: Any, kind: str, body: bytes = b"", to: str = "") -> api.Send:
        return api.Send(
            9, "key", to or self.sent.conversation, body, "text", kind, (about and about.event) or to_text(bytes(32))
        )

    def device(self, name: str) -> str:
        return to_text(self.devices[name][0])


Make = Callable[[World, Client], Any]
_KEY = kit.DEVICE_KEY.public
# For each frame: what is asked, named by its type and, where there are several, by what is different.
CLIENT: dict[type, dict[str, Make]] = {
    api.Hello: {"": lambda w, c: api.Hello(1, 1, bytes(32))},
    api.Ack: {"": lambda w, c: api.Ack(1)},
    api.Login: {
        "": lambda w, c: api.Login(9, w.me, "pw", "d", _KEY, w.proof(c, w.me)),
        "wrong password": lambda w, c: api.Login(9, w.me, "no", "d", _KEY, w.proof(c, w.me)),
        "wrong proof": lambda w, c: api.Login(9, w.me, "pw", "d", _KEY, bytes(64)),
    },
    api.Register: {
        "": lambda w, c: w.register(c, w.invite),
        "wrong invite": lambda w, c: w.register(c, "made up"),
    },
    api.Auth: {"": lambda w, c: api.Auth(9, w.token)},
    api.Send: {
        "to member": lambda w, c: api.Send(9, "key", w.address("member"), b"x"),
        "to conversation": lambda w, c: api.Send(9, "key", w.sent.conversation, b"x"),
        "to deleted": lambda w, c: api.Send(9, "key", w.address("deleted"), b"x"),
        "edit of user": lambda w, c: w.act(w.sent, "edit", b"x"),
        "edit unknown": lambda w, c: w.act(None, "edit", b"x"),
        "delete of user": lambda w, c: w.act(w.sent, "delete"),
        "reaction": lambda w, c: w.act(w.sent, "reaction", b"+1"),
        "reaction elsewhere": lambda w, c: w.act(w.sent, "reaction", b"+1", w.address("user")),
        "pin": lambda w, c: w.act(w.sent, "pin"),
        "unpin": lambda w, c: w.act(w.sent, "unpin"),
        "reply": lambda w, c: w.act(w.sent, "message", b"x"),
        "reply elsewhere": lambda w, c: w.act(w.sent, "message", b"x", w.address("member")),
        "as a node": lambda w, c: api.Send(9, "key", w.address("member"), b"x", "notices", "notices"),
    },
    api.Read: {"": lambda w, c: api.Read(9, w.sent.conversation, (w.mark,))},
    api.GetHistory: {"": lambda w, c: api.GetHistory(9, w.sent.conversation)},
    api.GetConversations: {"": lambda w, c: api.GetConversations(9)},
    api.Accept: {"": lambda w, c: api.Accept(9, w.sent.conversation)},
    api.Decline: {"": lambda w, c: api.Decline(9, w.sent.conversation)},
    api.GetState: {"": lambda w, c: api.GetState(9, w.sent.event)},
    api.GetWhy: {"": lambda w, c: api.GetWhy(9, w.sent.event)},
    api.GetDevices: {"": lambda w, c: api.GetDevices(9)},
    api.RenameDevice: {"of user": lambda w, c: api.RenameDevice(9, w.device("user"), "new")},
    api.RevokeDevice: {"of user": lambda w, c: api.RevokeDevice(9, w.device("user"))},
    api.SetProfile: {"": lambda w, c: api.SetProfile(9, "Me")},
    api.Block: {"of user": lambda w, c: api.Block(9, w.address("user"))},
    api.Unblock: {"nobody": lambda w, c: api.Unblock(9, w.address("user"))},
    api.GetBlocks: {"": lambda w, c: api.GetBlocks(9)},
    api.Typing: {
        "in conversation": lambda w, c: api.Typing(9, w.sent.conversation),
        "to member": lambda w, c: api.Typing(9, w.address("member")),
    },
    api.SetPresence: {"": lambda w, c: api.SetPresence(9, "online")},
    api.Ping: {"": lambda w, c: api.Ping(9)},
}  # fmt: skip


def tag(kind: type) -> str:
    return str(kind.__struct_config__.tag)  # type: ignore[attr-defined]


def rows_of(samples: dict[type, dict[str, Any]]) -> list[str]:
    return [f"{tag(kind)} {name}".strip() for kind, made in samples.items() for name in made]


async def outcome(client: Client, frame: Any) -> str:
    """`ok`, or the code of the refusal, or `end CODE` where the connection is over."""
    try:
        if isinstance(frame, api.Ack | api.Hello):
            await client.tell(frame)
            await client.ask(api.Ping)
        else:
            await client.tell(frame)
            await client.answer(9)
    except ApiError as error:
        return error.code
    except (AssertionError, ChannelClosed):
        return f"end {client.goodbye.code if client.goodbye else ''}".strip()
    return "ok"


async def client_cell(node: Node, open_door: OpenDoor, door: str, actor: str, make: Make) -> str:
    world = await World.make(node, actor)
    channel = await open_door(door)
    client = await kit.client(channel, door == "json")
    client.acks = False
    client.ids = itertools.count(100)
    if actor != "anonymous":
        client.token = world.token
        with suppress(ApiError):  # those who may not are then as good as anonymous
            await client.auth()
    got = await outcome(client, make(world, client))
    await channel.close()
    return got


# --- links ----------------------------------------------------------------------------------------------------------
def _acks(peer: Peer, node: Node) -> wire.Acks:
    return wire.Acks((wire.LogAck(bytes(32), node.us.node, bytes(16), 1),))


def _events(peer: Peer, node: Node) -> wire.Events:
    to = User(node.us.node, "bob")
    segment = peer.segment(to, peer.event(to))
    if peer.name == "wrong":  # a log of another node than the one that the link is with
        other = Peer(peer.channel, 900)
        segment = other.segment(to, other.event(to))
    return wire.Events((segment,))


LINK: dict[type, dict[str, Callable[[Peer, Node], Any]]] = {
    wire.Offer: {"": lambda p, n: wire.Offer(1, 1, bytes(32))},
    wire.Hello: {"": lambda p, n: p.hello(to=bytes(32) if p.name == "wrong" else None)},
    wire.Standing: {"": lambda p, n: wire.Standing("accepted")},
    wire.Events: {"": _events},
    wire.Acks: {"": _acks},
    wire.Recall: {
        "mine": lambda p, n: wire.Recall("mine", b"", bytes(16), ()),
        "yours": lambda p, n: wire.Recall("yours", b"", bytes(16), ()),
    },
    wire.Recalled: {"unasked": lambda p, n: wire.Recalled(bytes(16), 0)},
    wire.Probe: {"": lambda p, n: wire.Probe(1)},
    wire.Probed: {"unasked": lambda p, n: wire.Probed(1, ())},
    wire.Ephemerals: {"": lambda p, n: wire.Ephemerals((wire.Ephemeral(bytes(32), "x", "typing", 1),))},
    wire.Ping: {"": lambda p, n: wire.Ping(1)},
    wire.Pong: {"": lambda p, n: wire.Pong(1)},
    wire.Goodbye: {"": lambda p, n: wire.Goodbye("restart")},
}


async def link_cell(node: Node, open_door: OpenDoor, door: str, actor: str, make: Callable[[Peer, Node], Any]) -> str:
    """`wrong` is an accepted peer that speaks of what is not its own, and in its hello to another node."""
    peer = Peer(await open_door(door, wire.ALPN), 2000 + next(_numbers))
    if actor in ("accepted", "wrong", "blocked"):
        state = "blocked" if actor == "blocked" else "accepted"
        await node.store.submit(ChangePeer(peer.node, state, f"{peer.name[:-5]}x.test"))
        await node.peers_changed()
    peer.name = "wrong" if actor == "wrong" else peer.name
    await peer.offer()
    hello = make in LINK[wire.Hello].values()
    try:
        if actor != "stranger" and not (hello and actor == "wrong"):
            await peer.tell(peer.hello(name=f"p{next(_numbers)}.test"))
            standing = await peer.until(wire.Standing)
            if standing.state == "blocked":
                return "end blocked"
            await peer.tell(wire.Standing("accepted"))
        frame = make(peer, node)
        await peer.tell(msgspec.structs.replace(frame, name="p.test") if isinstance(frame, wire.Hello) else frame)
        if isinstance(frame, wire.Events):
            acks = await peer.until(wire.Acks, wire.Goodbye)
            return "ok" if isinstance(acks, wire.Acks) else f"end {acks.code}"
        if hello and actor == "stranger":
            return f"standing {(await peer.until(wire.Standing)).state}"
        if isinstance(frame, wire.Ping):
            got = await peer.until(wire.Pong, wire.Goodbye)
        else:
            await peer.tell(wire.Ping(5))
            got = await peer.until(wire.Pong, wire.Goodbye)
        return "ok" if isinstance(got, wire.Pong) else f"end {got.code}"
    except ChannelClosed:
        return "end"
    finally:
        await peer.channel.close()


# --- the admin socket -----------------------------------------------------------------------------------------------
ADMIN: dict[str, dict[str, Any]] = {
    "status": {}, "link": {}, "check": {}, "user.list": {}, "invite.list": {}, "peer.list": {}, "invite.new": {},
    "user.add": {"name": "fresh", "password": "pw"}, "user.passwd": {"name": "?", "password": "pw"},
    "user.disable": {"name": "?"}, "user.enable": {"name": "?"}, "user.delete": {"name": "?"},
    "invite.revoke": {"id": "?"}, "peer.add": {"link": "?"}, "peer.accept": {"node": "known.test"},
    "peer.block": {"node": "known.test"}, "peer.remove": {"node": "known.test"}, "why": {"event": "?"},
    "restore.accept": {}, "backup": {"file": "/", "text": ""},
    "doctor": {}, "queue.list": {}, "queue.flush": {}, "queue.expire": {"peer": "known.test"},
    "block.list": {}, "block.add": {"who": "x@known.test"}, "block.remove": {"who": "x@known.test"},
    "verify": {}, "quarantine.list": {}, "quarantine.replay": {"id": "?"}, "quarantine.drop": {"id": "?"},
}  # fmt: skip


async def admin_cell(node: Node, op: str, args: dict[str, Any]) -> str:
    number = next(_numbers)
    name = f"user{number}"
    await node.store.submit(AddAccount(name, ""))
    user, _ = await kit.device(node, name)
    sent = await node.store.submit(Send(name, user, "k", User(node.us.node, name), "message", "text", b"x"))
    await node.store.submit(ChangePeer(bytes([7]) * 32, "accepted", "known.test"))
    await node.peers_changed()
    invite = (await call(node.config, "invite.new", {}))["id"]
    link = str(node.link._replace(node=number.to_bytes(32, "big"), name=f"l{number}.test"))
    given = {"invite.revoke": {"id": invite}, "peer.add": {"link": link}, "why": {"event": sent.event}}
    try:
        if args.get("name") == "?":
            args = args | {"name": name}
        await call(node.config, op, given.get(op, args))
    except AdminError as error:
        return error.code
    return "ok"


# --- the table ------------------------------------------------------------------------------------------------------
def read_table() -> dict[str, dict[str, dict[str, str]]]:
    """Section -> row -> column -> cell."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    columns: list[str] = []
    for line in FILE.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, *cells = (cell.strip() for cell in line.split("|"))
        if name.startswith("["):
            columns, rows = cells, found.setdefault(name.strip("[]"), {})
        else:
            assert len(cells) == len(columns), f"a cell is missing: {line}"
            rows[name] = dict(zip(columns, cells, strict=True))
    return found


def write_section(name: str, rows: dict[str, dict[str, str]]) -> None:
    columns = list(next(iter(rows.values())))
    lines = [[f"[{name}]", *columns], *([row, *cells.values()] for row, cells in rows.items())]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    text = "\n".join(
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    old = FILE.read_text() if FILE.exists() else ""
    head, mark, rest = old.partition(f"[{name}]")
    _, gap, tail = rest.partition("\n\n[")
    FILE.write_text(head + text + "\n" + ("\n[" + tail if gap else "") if mark else old + "\n" + text + "\n")


def compare(section: str, got: dict[str, dict[str, str]]) -> None:
    if os.environ.get("ROOST_MATRIX"):
        write_section(section, got)
    assert got == read_table()[section]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(listening(tmp_path)) as node:

        async def check(user: str, password: str) -> bool:
            return password == "pw"

        node.authenticate = check  # hashing a password takes a tenth of a second, on purpose
        node.system.hash_password = _quick  # type: ignore[method-assign]
        yield node


async def _quick(password: str) -> str:
    return "hashed"


def test_a1_every_operation_has_a_sample() -> None:
    """A new frame, link frame or admin operation without one fails here, and without a row in the table below."""
    assert set(CLIENT) == set(typing.get_args(api.FromClient))
    assert set(LINK) == set(typing.get_args(wire.AnyFrame))
    assert set(ADMIN) == set(OPERATIONS)


@pytest.mark.parametrize("door", DOORS)
async def test_a1_a2_clients(node: Node, door: str) -> None:
    got: dict[str, dict[str, str]] = {}
    async with kit.served(node) as open_door:
        for kind, samples in CLIENT.items():
            for name, make in samples.items():
                row = f"{tag(kind)} {name}".strip()
                got[row] = {actor: await client_cell(node, open_door, door, actor, make) for actor in ACTORS}
    compare("client", got)


@pytest.mark.parametrize("door", ["memory", "quic", "tcp"])
async def test_a1_a2_links(node: Node, door: str) -> None:
    await node.create_user("bob")
    got: dict[str, dict[str, str]] = {}
    async with kit.served(node) as open_door:
        for kind, samples in LINK.items():
            for name, make in samples.items():
                row = f"{tag(kind)} {name}".strip()
                got[row] = {actor: await link_cell(node, open_door, door, actor, make) for actor in PEERS}
    compare("link", got)


async def test_a1_a2_administrators(node: Node) -> None:
    """The admin socket is a file that only the node's own user may open; no other door takes its requests."""
    got: dict[str, dict[str, str]] = {}
    async with kit.served(node) as open_door:
        for op, args in ADMIN.items():
            cells = {"admin": await admin_cell(node, op, args)}
            raw = msgspec.json.encode({"op": op, "args": args})
            for door in ("json", "quic"):
                client = await kit.client(await open_door(door), door == "json")
                await client.channel.send(raw)
                goodbye = await client.ended()
                cells[f"client over {door}"] = f"end {goodbye.code if goodbye else ''}".strip()
            peer = Peer(await open_door("quic", wire.ALPN), 900)
            await peer.offer()
            await peer.raw(raw)
            cells["peer"] = f"end {await peer.end()}"
            got[op] = cells
    assert stat.S_IMODE((node.config.data_path / "admin.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(node.config.data_path.stat().st_mode) == 0o700
    compare("admin", got)


def _live() -> list[tuple[str, Make]]:
    made = [(f"{tag(kind)} {name}".strip(), make) for kind, samples in CLIENT.items() for name, make in samples.items()]
    return [(row, make) for row, make in made if not row.startswith(("hello", "login", "register", "auth", "ping"))]


@pytest.mark.parametrize("how", ["disabled", "deleted", "revoked"])
@pytest.mark.parametrize(("row", "make"), _live(), ids=[row for row, _ in _live()])
async def test_a1_a_right_that_was_lost_is_lost_on_open_connections(node: Node, how: str, row: str, make: Make) -> None:
    """What is read after the loss is refused, even while the goodbye still waits to leave."""
    world = await World.make(node, "user")
    client = await kit.client(node.connect_inside(), token=world.devices["user"][1])
    client.acks, client.ids = False, itertools.count(100)
    (session,) = node.sessions[world.names["user"]]
    frame = make(world, client)
    if how == "revoked":
        await node.store.submit(ChangeDevice(world.names["user"], world.devices["user"][0], revoke=True))
    else:
        await node.store.submit(ChangeAccount(world.names["user"], state=how))  # type: ignore[arg-type]
    before = node.store.commands
    assert await answer_of(session, frame) == "bad_token"
    assert node.store.commands == before
    goodbye = await client.ended()
    assert goodbye is not None
    assert goodbye.code == "bad_token"


async def answer_of(session: Session, frame: Any) -> str:
    """The code of the answer that the session makes, whether or not it can still leave."""
    made: list[Any] = []
    push = session._push

    def note(answer: Any) -> int:
        made.append(answer)
        return push(answer)

    session._push = note  # type: ignore[method-assign]
    before = set(session._tasks)
    try:
        session._take(frame, 10)
    except ApiError as error:  # an acknowledgement has no answer: the connection ends
        return error.code
    for task in session._tasks - before:
        await task
    return str(next(getattr(frame, "code", "ok") for frame in made))
