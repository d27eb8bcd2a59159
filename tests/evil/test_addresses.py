"""B19: nobody's link, hello, invite, name or redirect makes us connect where it should not.

Whether something was connected to is what a socket there got, or what the endpoint sent: never what a call said.
"""

import asyncio
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from federation import wire
from federation.dialer import Dialer
from federation.identity import NodeKey, NodeLink, check_chain, encode_chain, new_chain
from federation.ports import ChannelClosed
from federation.reach import Reach, may_call, reach_from, reach_of
from node.admin import call
from node.client.websocket import open_websocket
from node.core import rows
from node.core.peers import MeetPeer
from node.node import Node
from tests.node.helpers import config, listening

NEVER = (
    *("0.0.0.0", "0.1.2.3", "169.254.1.1", "169.254.169.254", "224.0.0.251", "239.255.255.250", "255.255.255.255"),
    *("240.0.0.1", "192.0.0.8", "192.88.99.1", "::", "fe80::1", "fe80::1%eth0", "ff02::1", "ff05::2"),
    *("::127.0.0.1", "::10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1"),
    *("2002:7f00:1::1", "2002:a00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "::ffff:169.254.169.254"),
    *("::ffff:0.0.0.0", "::ffff:224.0.0.1"),
)
PRIVATE = (
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.255", "100.64.0.1", "198.18.0.1", "fd00::1", "fc00::1"),
    *("fec0::1", "::ffff:10.0.0.1", "::ffff:192.168.0.1"),
)
LOOPBACK = ("127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1")
PUBLIC = ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "172.32.0.1", "100.128.0.1", "11.0.0.1", "128.0.0.1")


@pytest.mark.parametrize("text", NEVER)
def test_b19_no_hint_leads_there(text: str) -> None:
    assert reach_of(text) is None
    assert not any(may_call(text, widest) for widest in ("public", "private", "loopback"))


@pytest.mark.parametrize(("texts", "reach"), [(PRIVATE, "private"), (LOOPBACK, "loopback"), (PUBLIC, "public")])
def test_b19_other_addresses_are_told_apart(texts: tuple[str, ...], reach: Reach) -> None:
    order = ("public", "private", "loopback")
    for text in texts:
        assert reach_of(text) == reach, text
        for widest in order:
            assert may_call(text, widest) == (order.index(reach) <= order.index(widest)), (text, widest)


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f.1", "2130706433", "017700000001", "1.2.3.4.5", "::g"])
def test_b19_what_is_no_address_is_no_hint_by_itself(text: str) -> None:
    assert not may_call(text, "loopback")


@pytest.mark.parametrize(
    ("remote", "reach"),
    [
        ("127.0.0.1:7701", "loopback"), ("[::1]:7701", "loopback"), ("192.168.1.7:9", "private"),
        ("[fd00::7]:9", "private"), ("8.8.8.8:53", "public"), ("[fe80::1%eth0]:9", "public"), ("memory", "loopback"),
        ("a proxy", "public"), ("nowhere", "public"), ("", "public"),
    ],
)  # fmt: skip
def test_b19_hints_lead_no_further_than_where_they_came_from(remote: str, reach: Reach) -> None:
    assert reach_from(remote) == reach


class Target:
    """A UDP socket on loopback that counts what reaches it."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((host, 0))
        self.socket.setblocking(False)
        self.port = int(self.socket.getsockname()[1])

    def got(self) -> int:
        count = 0
        while True:
            try:
                self.socket.recv(4096)
            except BlockingIOError:
                return count
            count += 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "localhost", "0.0.0.0", "0"])
async def test_b19_not_a_packet_leaves_for_a_forbidden_address(host: str) -> None:
    """However it is spelt: the system's own resolver takes `0x7f.1` for loopback."""
    target = Target()
    async with Dialer() as dialer:
        with pytest.raises(ChannelClosed, match="may not lead there"):
            await dialer.dial((host, target.port), wire.ALPN, 1.0, "private")
        assert dialer.bytes_sent == 0
        with pytest.raises(ChannelClosed):  # the same call without a bound does send: the test can fail
            await dialer.dial(("127.0.0.1", target.port), wire.ALPN, 0.05, "loopback")
        assert dialer.bytes_sent > 0
    assert target.got() > 0
    target.socket.close()


async def test_b19_a_name_is_looked_up_once_and_exactly_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers otherwise the second time (rebinding) is not asked a second time."""
    target = Target()
    answers = [("8.8.8.8", 9), ("127.0.0.1", target.port)]
    asked: list[Any] = []

    async with Dialer() as dialer:
        loop = asyncio.get_running_loop()

        async def resolve(host: str, port: int, **named: Any) -> Any:
            asked.append(host)
            return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", answers[min(len(asked), 2) - 1])]

        sent: list[Any] = []
        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        monkeypatch.setattr(dialer, "send_datagrams", lambda datagrams: sent.extend(to for _, to in datagrams))
        with pytest.raises(ChannelClosed):
            await dialer.dial(("rebind.test", 9), wire.ALPN, 0.05, "public")
        assert asked == ["rebind.test"]
        assert set(sent) == {("8.8.8.8", 9)}
        sent.clear()
        with pytest.raises(ChannelClosed, match="may not lead there"):
            await dialer.dial(("rebind.test", 9), wire.ALPN, 0.05, "public")
        assert sent == []
    target.socket.close()


async def test_b19_of_several_addresses_the_allowed_one_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Dialer() as dialer:
        loop = asyncio.get_running_loop()
        found = [
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, 9)) for host in ("127.0.0.1", "10.1.1.1", "8.8.8.8")
        ]

        async def resolve(*_: Any, **named: Any) -> Any:
            return found

        sent: list[Any] = []
        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        monkeypatch.setattr(dialer, "send_datagrams", lambda datagrams: sent.extend(to for _, to in datagrams))
        with pytest.raises(ChannelClosed):
            await dialer.dial(("mixed.test", 9), wire.ALPN, 0.05, "public")
        assert set(sent) == {("8.8.8.8", 9)}


async def _hello(node: Node, seed: int, remote: str, *addresses: str) -> bytes:
    key = NodeKey(seed.to_bytes(32, "big"))
    chain = new_chain(key, key.public, bytes(32))
    hello = wire.Hello(chain, f"n{seed}.test", bytes(16), "client", bytes(64), addresses)
    await node.host.meet(check_chain(chain), hello, remote)
    await node.peers_changed()
    return check_chain(chain).node


EVERYTHING = (
    "8.8.8.8:1",
    "10.0.0.1:2",
    "127.0.0.1:7701",
    "169.254.169.254:4",
    "[::1]:7701",
    "lan.test:6",
    "[fe80::1]:7",
)


@pytest.mark.parametrize(
    ("remote", "kept"),
    [
        ("8.8.4.4:9", "8.8.8.8:1 lan.test:6"),
        ("192.168.7.7:9", "8.8.8.8:1 10.0.0.1:2 lan.test:6"),
        ("127.0.0.1:7701", "8.8.8.8:1 10.0.0.1:2 127.0.0.1:7701 [::1]:7701 lan.test:6"),
    ],
)
async def test_b19_what_a_hello_leaves_in_the_store(tmp_path: Path, remote: str, kept: str) -> None:
    async with Node.open(config(tmp_path)) as node:
        stranger = await _hello(node, 1, remote, *EVERYTHING)
        assert node.directory.peers[stranger].hints == kept
        assert node.directory.peers[stranger].addresses == ""
        assert node.directory.reach("lan.test:6") == reach_from(remote)


async def test_b19_a_hint_replaces_nothing_an_administrator_gave(tmp_path: Path) -> None:
    async with Node.open(config(tmp_path)) as node:
        key = NodeKey((1).to_bytes(32, "big"))
        chain = new_chain(key, key.public, bytes(32))
        link = NodeLink(check_chain(chain).node, "n1.test", ("127.0.0.1:7701", "lan.test:7701"))
        await call(node.config, "peer.add", {"link": str(link)})
        await _hello(node, 1, "8.8.4.4:9", "8.8.8.8:1", "lan.test:7701", "other.test:1")
        (known,) = node.host.known()
        assert known.addresses == ("127.0.0.1:7701", "lan.test:7701", "8.8.8.8:1", "other.test:1")
        assert [node.directory.reach(address) for address in known.addresses] == [None, None, "public", "public"]


async def test_b19_a_stranger_called_back_gets_us_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole node with the policy `open` and a peer from afar: its hints reach no socket of this machine."""
    target = Target()
    settings = listening(tmp_path, federation={"policy": "open"})
    async with Node.open(settings) as node:
        key = NodeKey((1).to_bytes(32, "big"))
        chain = new_chain(key, key.public, bytes(32))
        meet = MeetPeer(check_chain(chain).node, "n1.test", encode_chain(chain), (f"localhost:{target.port}",))
        peer: rows.Peer = await node.store.submit(meet)
        assert (peer.state, peer.reach) == ("open", "public")
        reasons: asyncio.Queue[str] = asyncio.Queue()
        monkeypatch.setattr(node.service, "_lost", lambda peer, reason: reasons.put_nowait(reason))
        await node.peers_changed()
        async with asyncio.timeout(20):
            assert "may not lead there" in await reasons.get()
    assert target.got() == 0
    target.socket.close()


async def test_b19_a_client_follows_no_redirect() -> None:
    reached: list[str] = []

    async def here(request: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://127.0.0.1:{port}/elsewhere")

    async def elsewhere(request: web.Request) -> web.WebSocketResponse:
        reached.append(request.path)
        served = web.WebSocketResponse()
        await served.prepare(request)
        return served

    app = web.Application()
    app.router.add_get("/v1/ws", here)
    app.router.add_get("/elsewhere", elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    with pytest.raises(ChannelClosed):
        await open_websocket("127.0.0.1", port, 10.0)
    assert reached == []
    async with aiohttp.ClientSession() as session:  # whoever follows gets there: the test can fail
        await (await session.ws_connect(f"http://127.0.0.1:{port}/v1/ws")).close()
    assert reached == ["/elsewhere"]
    await runner.cleanup()
