"""Clients and a scripted node; after each test nothing is left of them."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from node.client import Client
from node.client.profile import Device
from tests.client.fakenode import ALICE, TOKEN, FakeNode

Open = Callable[..., Awaitable[Client]]


def _left() -> tuple[int, int, int]:
    return len(asyncio.all_tasks()), threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.fixture
async def node() -> AsyncIterator[FakeNode]:
    node = FakeNode()
    yield node
    await node.close()


@pytest.fixture
async def open_client(node: FakeNode, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens clients over one store; `path=None` for one in memory. All are closed, and must leave nothing."""
    before = _left()
    clients: list[Client] = []

    async def open_it(path: Path | None = tmp_path / "cache.db", token: str = TOKEN) -> Client:
        client = await Client.open(
            Device(ALICE, "dev-1"), connect=node.connect, token=token, store=path, jitter=lambda cap: 0.002
        )
        clients.append(client)
        return client

    yield open_it
    for client in clients:
        await client.close()
    await node.close()
    assert _left() == before, "tasks, threads, file descriptors"
