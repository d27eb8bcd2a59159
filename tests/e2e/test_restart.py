"""A node is killed and served again: who was connected learns it from their next word, not from a silence."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.identity import NodeLink
from federation.ports import ChannelClosed
from node import api, coding
from node.client import connect
from tests.e2e.box import Box, free_port


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    try:
        yield box
    finally:
        box.close()


async def test_a_client_of_a_killed_node_learns_it_at_once(box: Box) -> None:
    box.good("init", box.conf("a.test").parent, "--name", "a.test", "--listen", f"127.0.0.1:{free_port()}")
    box.serve("a.test")
    link = NodeLink.parse(box.good("link", "-c", box.conf("a.test")).split()[-1])
    wire = await connect(link, "quic")
    box.stop("a.test", signal.SIGKILL)
    box.serve("a.test")
    began = time.monotonic()
    await wire.channel.send(coding.MSGPACK.encode(api.Ping(1)))
    with pytest.raises(ChannelClosed, match="restarted"):
        await wire.channel.recv()
    assert time.monotonic() - began < 5  # a dead connection without a word is noticed after 60 s
    await wire.close()
