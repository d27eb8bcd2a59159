"""The admin socket of a running node, and the closed store, by the same call."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from node.admin import LINE_BYTES_MAX, OPERATIONS, AdminError, _near, call
from node.node import Node
from tests.node.helpers import config


def deep(tmp_path: Path) -> Path:
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    assert len(str(folder)) > 108
    return folder


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
async def test_the_same_call_with_and_without_a_node(tmp_path: Path, running: bool) -> None:
    settings = config(deep(tmp_path))

    async def work() -> None:
        assert (await call(settings, "user.add", {"name": "alice", "password": "pw"}))["address"] == "alice@a.test"
        (user,) = await call(settings, "user.list", {})
        assert (user["name"], user["state"]) == ("alice", "active")
        with pytest.raises(AdminError) as taken:
            await call(settings, "user.add", {"name": "alice", "password": "pw"})
        assert taken.value.code == "name_taken"
        assert (await call(settings, "status", {}))["users"] == 1

    if running:
        async with Node.open(settings) as node:
            await work()
            assert node.store.commits >= 2  # it was done here and not beside us
    else:
        await work()
    async with Node.open(settings) as node:
        assert (await call(settings, "status", {}))["node"] in str(node.link)


async def test_a_socket_left_by_a_crash_is_no_node(tmp_path: Path) -> None:
    import socket

    settings = config(tmp_path)
    settings.data_path.mkdir(parents=True)
    with _near(settings) as path, socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    assert (settings.data_path / "admin.sock").exists()
    assert await call(settings, "user.list", {}) == []
    async with Node.open(settings):
        assert await call(settings, "user.list", {}) == []
    assert not (settings.data_path / "admin.sock").exists()


@pytest.mark.parametrize(
    ("op", "args", "code"),
    [
        ("nothing", {}, "bad_request"),
        ("user.add", {}, "bad_request"),
        ("user.disable", {"name": "nobody"}, "not_found"),
        ("peer.add", {"link": "nonsense"}, "bad_request"),
        ("peer.block", {"node": "nobody.test"}, "not_found"),
        ("why", {"event": "nonsense"}, "bad_request"),
        ("why", {"event": "a" * 52}, "not_found"),
    ],
)
async def test_refusals_have_a_code(tmp_path: Path, op: str, args: dict[str, str], code: str) -> None:
    async with Node.open(config(tmp_path)) as node:
        with pytest.raises(AdminError) as refused:
            await call(node.config, op, args)
        assert refused.value.code == code


async def test_a_line_without_an_end_is_refused_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Node.open(config(tmp_path)) as node:
        with _near(node.config) as path:
            reader, writer = await asyncio.open_unix_connection(path)
        async with asyncio.timeout(20):
            writer.write(b"x" * (LINE_BYTES_MAX + 1))
            answer = msgspec.json.decode(await reader.readline())
            assert (answer["ok"], answer["code"]) == (False, "too_large")
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert await call(node.config, "check", {}) == {"ok": True}
    assert caplog.text == ""


async def test_an_answer_may_be_longer_than_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Node.open(config(tmp_path)) as node:

        async def long(node: Node, args: dict[str, str]) -> str:
            return "x" * (2 * LINE_BYTES_MAX)

        monkeypatch.setitem(OPERATIONS, "check", long)
        assert len(await call(node.config, "check", {})) == 2 * LINE_BYTES_MAX


@pytest.mark.parametrize(
    "line",
    [
        b"not json", b"[]", b'{"op": 1}', b'{"args": {}}', b'{"op": "user.add", "args": []}',
        b'{"op": "status", "args": 5}',
        b'{"op": "user.add", "args": {"name": 5, "password": "x"}}', b'{"op": "why", "args": {"event": 5}}',
        b'{"op": "invite.new", "args": {"expires_s": "soon"}}', b'{"op": ["status"]}',
    ],
)  # fmt: skip
async def test_nonsense_on_the_socket_is_answered(tmp_path: Path, line: bytes) -> None:
    async with Node.open(config(tmp_path)) as node:
        with _near(node.config) as path:
            reader, writer = await asyncio.open_unix_connection(path)
        async with asyncio.timeout(20):
            for sent in (line, b'{"op": "check", "args": {}}'):
                writer.write(sent + b"\n")
                answer = msgspec.json.decode(await reader.readline())
                if sent == line:
                    assert answer["ok"] is False, answer
                    assert answer["code"] in ("bad_frame", "bad_request", "failed")
        assert answer == {"ok": True, "result": {"ok": True}}
        writer.close()
        await writer.wait_closed()
