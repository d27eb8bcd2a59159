"""The pinned key: nothing is told to whoever is not the node of the link."""

import hashlib
import secrets
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from federation import identity
from federation.identity import NodeKey
from federation.ports import Binding
from node import api, coding
from node.client import NodeKeyError, Unreachable, greet
from node.client.channels import connect
from tests.client.conftest import Open
from tests.client.fakenode import BOB, FakeNode


async def test_the_right_node_is_greeted(node: FakeNode) -> None:
    wire = await greet(node.dial(), node.link)
    assert wire.welcome.name == "a.test"
    await wire.close()


async def test_another_nodes_key_is_refused_with_words(node: FakeNode) -> None:
    link = node.link
    other = NodeKey(secrets.token_bytes(32))
    node.chain, node.proof_key = identity.new_chain(other, bytes(32), bytes(32)), other
    with pytest.raises(NodeKeyError, match=r"a\.test answered with another node's key.*do not log in"):
        await greet(node.dial(), link)


async def test_a_wrong_proof_is_refused(node: FakeNode) -> None:
    node.proof_key = NodeKey(secrets.token_bytes(32))
    with pytest.raises(NodeKeyError, match="could not prove its key"):
        await greet(node.dial(), node.link)


async def test_a_client_stops_at_a_wrong_key_and_says_so(node: FakeNode, open_client: Open) -> None:
    node.proof_key = NodeKey(secrets.token_bytes(32))
    client = await open_client()
    with pytest.raises(NodeKeyError):
        await client.devices()
    with pytest.raises(NodeKeyError):
        await client.send(BOB, "to whom?")
    with pytest.raises(NodeKeyError):
        await anext(client.events())
    assert client.lights.me == "down"
    assert "could not prove" in client.lights.reason


async def test_nobody_there_says_what_was_tried(node: FakeNode) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers here, and nobody else gets it
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(Unreachable, match=rf"QUIC to {address} .*WebSocket to {address} [^<>]*Check that"):
            await connect(node.link._replace(addresses=(address,)))


@pytest.mark.parametrize("tls", [False, True])
async def test_a_websocket_carries_the_protocol(node: FakeNode, tmp_path: Path, tls: bool) -> None:
    context, key_hash = _certificate(tmp_path) if tls else (None, bytes(32))
    far: list[object] = []

    async def serve(request: web.Request) -> web.WebSocketResponse:
        served = web.WebSocketResponse()
        await served.prepare(request)
        hello = coding.MSGPACK.from_client((await served.receive()).data)
        assert isinstance(hello, api.Hello)
        signed = identity.hello_bytes("server", Binding("tcp", key_hash, b""), bytes(32), hello.nonce)
        welcome = api.Welcome(1, "a.test", identity.encode_chain(node.chain), bytes(32), node.key.sign("hello", signed))
        await served.send_bytes(coding.MSGPACK.encode(welcome))
        await served.send_bytes((await served.receive()).data * 2)
        far.append((await served.receive()).type)
        return served

    app = web.Application()
    app.router.add_get("/v1/ws", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    wire = await connect(node.link._replace(addresses=(f"127.0.0.1:{port}",)), "websocket")
    await wire.channel.send(b"ping")
    assert await wire.channel.recv() == (b"pingping",)
    await wire.close()
    await runner.cleanup()
    assert far == [web.WSMsgType.CLOSE]


def _certificate(folder: Path) -> tuple[ssl.SSLContext, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "roost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "pem").write_bytes(pem + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem")
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return context, hashlib.sha256(public).digest()


async def test_a_device_that_met_the_new_key_trusts_the_old_one_no_more(node: FakeNode, open_client: Open) -> None:
    """Whoever stole it may stand in between; the token is not for them."""
    born, new = node.chain, NodeKey(b"n" * 32)
    client = await open_client()
    await node.until(lambda: len(node.auths) == 1)
    node.chain, node.proof_key = identity.rotate(born, new.public, node.key, "signing"), new
    node.cut()
    await node.until(lambda: len(node.auths) == 2)
    node.chain, node.proof_key = born, node.key
    node.cut()
    with pytest.raises(NodeKeyError, match="has replaced"):
        async for _ in client.events():
            pass
    await client.close()
    node.chain, node.proof_key = identity.rotate(born, new.public, node.key, "signing"), new
    await open_client()
    await node.until(lambda: len(node.auths) == 3)
