"""A node whose store was set back notices it, is held, and gets back from its peers what they have of it."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from federation import wire
from federation.event import Event, Header, body_hash, sign_event
from federation.identity import NodeKey
from federation.ids import User, direct_conversation
from node import api, witness
from node.admin import AdminError, call
from node.api import ApiError
from node.config import Config
from node.core.peers import ChangePeer
from node.node import Node
from node.storage import life
from tests.node.helpers import WAIT_S, Client, again, befriend, connect, listening, stranger


async def held(node: Node) -> str:
    async with asyncio.timeout(WAIT_S):
        while not node.held:
            node.changed.clear()
            await node.changed.wait()
    return node.held


def bodies(client: Client) -> list[bytes | None]:
    return [item.body for item in client.items if isinstance(item, api.Message)]


async def talk(alice: Client, bob: Client, *words: bytes) -> list[str]:
    """Alice says them, Bob answers each; both were delivered and Bob's last was read."""
    events = []
    for word in words:
        said = await alice.send("bob@b.test", word)
        await bob.message(word)
        back = await bob.send("alice@a.test", b"re " + word)
        got = await alice.message(b"re " + word)
        await alice.ask(api.Read, got.conversation, (api.Mark(got.origin, got.log, got.seq),))
        await alice.state(said.event, "delivered")
        await bob.state(back.event, "read")
        events += [said.event, back.event]
    return events


def set_back(config: Config, copy: Path) -> None:
    shutil.rmtree(config.data_path)
    shutil.copytree(copy, config.data_path)


async def test_a_whole_data_directory_that_was_set_back_heals_from_its_peer(tmp_path: Path) -> None:
    """No witness tells: it was set back with the rest. The peer does, and has what was lost."""
    a_config, b_config, copy = listening(tmp_path, "a.test"), listening(tmp_path, "b.test"), tmp_path / "copy"
    async with Node.open(b_config) as b:
        await b.create_user("bob", "pw")
        async with Node.open(a_config) as a:
            await a.create_user("alice", "pw")
            await befriend(a, b)
            alice, bob = await connect(a, "alice"), await connect(b, "bob")
            events = await talk(alice, bob, b"before")
        shutil.copytree(a_config.data_path, copy)
        async with Node.open(a_config) as a:
            alice = await again(a, alice)
            events += await talk(alice, bob, b"lost 1", b"lost 2")
            await a.create_user("carol", "pw")  # made after the copy
            carol = await connect(a, "carol")
            hers = await carol.send("bob@b.test", b"carol was here")
            await bob.message(b"carol was here")
            await bob.send("carol@a.test", b"hello carol")
            await carol.message(b"hello carol")
            await bob.ask(api.Decline, "carol@a.test")
            refused = await carol.send("bob@b.test", b"one more")
            await carol.state(refused.event, "failed")
            nobody = await alice.send("nobody@b.test", b"is anybody there?")  # the peer never knew what that was
            await alice.state(nobody.event, "failed")
            invite = (await call(a_config, "invite.new", {}))["invite"]
        set_back(a_config, copy)
        async with Node.open(a_config) as a:
            assert "a peer has events of this node" in await held(a)
            assert (await call(a_config, "status", {}))["held"] == a.held
            old = await again(a, alice)  # reads go on
            assert len((await old.ask(api.GetHistory, "bob@b.test")).messages) == 2
            with pytest.raises(ApiError, match="roost restore --accept") as refusal:
                await old.send("bob@b.test", b"no")
            assert refusal.value.code == "held"
            with pytest.raises(ApiError, match="old copy"):
                await (await stranger(a)).login("alice")
        async with Node.open(a_config) as a:  # a restart does not change it
            assert a.held
            await call(a_config, "restore.accept", {})
            assert not a.held
            with pytest.raises(ApiError, match="token is not valid"):
                await again(a, alice)
            alice = await connect(a, "alice")
            await alice.message(b"re lost 2")
            await alice.message(b"lost 2")
            history = await alice.ask(api.GetHistory, "bob@b.test")
            assert [m.event for m in history.messages] == events
            for event in events[::2]:
                await alice.state(event, "delivered")
            await bob.state(events[-1], "read")
            await call(a_config, "user.passwd", {"name": "carol", "password": "pw"})
            await call(a_config, "user.enable", {"name": "carol"})
            carol = await connect(a, "carol")
            await carol.message(b"hello carol")
            mine = (await carol.ask(api.GetHistory, "bob@b.test")).messages
            assert [(m.event, m.body) for m in mine[::2]] == [(hers.event, b"carol was here"), (refused.event, None)]
            await carol.state(hers.event, "delivered")
            assert (await carol.state(refused.event, "failed")).reason.startswith("declined")
            events = await talk(alice, bob, b"after")
            assert bodies(bob).count(b"lost 1") == bodies(alice).count(b"re lost 1") == 1
            with pytest.raises(ApiError, match="invite"):
                await (await stranger(a)).register(invite.partition("#")[2], "dave")
            assert witness.read(a_config.data_path) is not None
        async with Node.open(a_config) as a:  # and it stays so
            assert not a.held
            await talk(await again(a, alice), bob, b"again")
            assert not a.held


async def some_lives(config: Config, count: int = 2) -> None:
    for _ in range(count):
        async with Node.open(config):
            pass


async def test_a_store_behind_its_witness_is_held_at_once(tmp_path: Path) -> None:
    config = listening(tmp_path)
    await some_lives(config)
    copy = (config.data_path / "roost.db").read_bytes()
    await some_lives(config, 1)
    (config.data_path / "roost.db").write_bytes(copy)
    async with Node.open(config) as node:
        assert "knows of start 3, the store only of 2" in node.held
        await call(config, "restore.accept", {})
    async with Node.open(config) as node:
        assert (node.held, node.life) == ("", 5)


async def test_a_store_that_lost_the_end_of_its_last_life_is_held(tmp_path: Path) -> None:
    config = listening(tmp_path)
    async with Node.open(config) as node:
        await node.create_user("alice", "pw")
        await node.create_user("bob", "pw")
    async with Node.open(config) as node:
        copy = {file.name: file.read_bytes() for file in config.data_path.glob("roost.db*")}
        await (await connect(node, "alice")).send("bob@a.test", b"hi")
    for file in config.data_path.glob("roost.db*"):
        file.unlink()
    for name, content in copy.items():
        (config.data_path / name).write_bytes(content)
    async with Node.open(config) as node:
        assert "newer messages than the store has" in node.held


async def test_a_store_without_its_witness_is_held_but_not_a_new_one(tmp_path: Path) -> None:
    config = listening(tmp_path)
    await some_lives(config)
    (config.data_path / witness.FILE).unlink()
    async with Node.open(config) as node:
        assert "the witness file is missing" in node.held
        with pytest.raises(ApiError, match="old copy"):
            await node.create_user("alice", "pw")


async def test_a_start_that_died_before_its_witness_is_no_old_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = listening(tmp_path)
    await some_lives(config)
    with monkeypatch.context() as broken:
        broken.setattr(witness, "write", lambda folder, seen: None)
        await some_lives(config, 1)
    await some_lives(config)
    async with Node.open(config) as node:
        assert node.held == ""


async def test_a_copied_folder_is_held_while_the_original_is_there_and_a_moved_one_is_not(tmp_path: Path) -> None:
    config = listening(tmp_path)
    await some_lives(config)
    other = listening(tmp_path / "elsewhere")
    shutil.copytree(config.data_path, other.data_path)
    async with Node.open(config) as node, Node.open(other) as copy:
        assert "is a copy of" in copy.held
        assert node.held == ""
    shutil.rmtree(other.data_path)
    config.data_path.rename(other.data_path)
    async with Node.open(other) as moved:
        assert moved.held == ""


async def test_two_copies_that_run_at_once_notice_each_other_by_their_peer(tmp_path: Path) -> None:
    """On machines that know nothing of each other: whoever comes second is shown what the first one said."""
    a_config, b_config, copy = listening(tmp_path, "a.test"), listening(tmp_path, "b.test"), listening(tmp_path / "far")
    async with Node.open(b_config) as b:
        await b.create_user("bob", "pw")
        async with Node.open(a_config) as a:
            await a.create_user("alice", "pw")
            await befriend(a, b)
        shutil.copytree(a_config.data_path, copy.data_path)
        (copy.data_path / witness.FILE).write_text(
            (copy.data_path / witness.FILE).read_text().replace(str(a_config.data_path), "/another/machine")
        )
        async with Node.open(a_config) as a:
            alice, bob = await connect(a, "alice"), await connect(b, "bob")
            await alice.send("bob@b.test", b"one")
            await bob.message(b"one")
            async with Node.open(copy) as twin:
                assert "a peer has events of this node" in await held(twin)
                await alice.send("bob@b.test", b"two")
                await bob.message(b"two")
                assert a.held == ""


async def test_a_node_that_is_not_held_has_nothing_to_accept(tmp_path: Path) -> None:
    config = listening(tmp_path)
    async with Node.open(config):
        with pytest.raises(AdminError, match="not held"):
            await call(config, "restore.accept", {})


async def test_a_build_that_ignores_its_witness_goes_on_from_an_old_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the tests above: they fail without the look at the file."""
    config = listening(tmp_path)
    await some_lives(config)
    copy = (config.data_path / "roost.db").read_bytes()
    await some_lives(config, 1)
    (config.data_path / "roost.db").write_bytes(copy)
    monkeypatch.setattr(life, "judge", lambda *args: "")
    async with Node.open(config) as node:
        assert node.held == ""


def own(node: Node, peer: bytes, key: NodeKey, stamp: int, **more: Any) -> tuple[Event, wire.Segment]:
    """An event that says to be of this node, from a life that it does not know."""
    members = tuple(sorted((User(node.us.node, "alice"), User(peer, "bob"))))
    named: dict[str, Any] = {
        "version": 1, "conversation": direct_conversation(*members), "origin": node.us.node, "incarnation": b"o" * 16,
        "seq": 1, "previous": None, "after": None, "sender": "alice", "device": b"", "stamp": stamp, "control": None,
        "kind": "message", "target": None, "manifest": None, "body_format": "text", "body_hash": body_hash(b"x"),
        "body_bytes": 1, "expires_ms": None,
    }  # fmt: skip
    event = sign_event(Header(**named | more), b"x", key)
    h = event.header
    return event, wire.Segment(h.conversation, h.origin, h.incarnation, h.seq, members, (event.signed,))


async def test_nobody_is_held_without_a_signature_of_its_own(tmp_path: Path) -> None:
    async with Node.open(listening(tmp_path)) as node:
        peer, stamp, other = b"p" * 32, node.system.wall_ms() << 16, NodeKey(b"o" * 32)
        forged, _ = own(node, peer, other, stamp)
        foreign, _ = own(node, peer, node.us.key, stamp, origin=peer)
        for event in (forged, foreign):
            assert await node.host.shown(peer, wire.Newest(event.signed.header, event.signed.signature))
        assert await node.host.shown(peer, wire.Newest(b"no header", bytes(64)))
        assert node.held == ""
        ours, _ = own(node, peer, node.us.key, stamp)
        assert not await node.host.shown(peer, wire.Newest(ours.signed.header, ours.signed.signature))
        assert node.held


async def test_only_what_this_node_signed_and_lost_is_taken_back(tmp_path: Path) -> None:
    async with Node.open(listening(tmp_path)) as node:
        await node.create_user("alice", "pw")
        peer, stamp, key = b"p" * 32, node.system.wall_ms() << 16, node.us.key
        await node.store.submit(ChangePeer(peer, "accepted", "p.test"))
        node.context.restored = stamp + 10
        bad = {
            "forged": own(node, peer, NodeKey(b"o" * 32), stamp),
            "of after the restore": own(node, peer, key, stamp + 10),
            "of this life": own(node, peer, key, stamp, incarnation=node.us.incarnation),
            "past a gap": own(node, peer, key, stamp, seq=2, previous=b"h" * 32),
            "of another conversation": own(node, peer, key, stamp, conversation=b"c" * 32),
            "of somebody else": own(node, peer, key, stamp, sender="carol"),
        }
        for what, (_, segment) in bad.items():
            ack = await node.host.receive(peer, segment)
            assert (ack.seq, [v.verdict for v in ack.verdicts]) == (0, ["later"]), what
        _, segment = own(node, peer, key, stamp)
        for _ in range(2):
            ack = await node.host.receive(peer, segment)
            assert (ack.seq, ack.verdicts) == (1, ())
        alice = await connect(node, "alice")
        await alice.message(b"x")
        assert bodies(alice) == [b"x"]
