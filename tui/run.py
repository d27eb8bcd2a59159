"""The way in from the command line."""

import asyncio
from collections.abc import Awaitable, Callable

from tui.app import ChatApp, RoostApp
from tui.bridge import ChatClient
from tui.demo import DemoApp
from tui.terminal import teach_alt_keys

Factory = Callable[[], Awaitable[ChatClient]]


def run_chat(client_factory: Factory) -> int:
    """One person's chat until they leave; the exit code. What the factory raises goes to the caller."""
    return asyncio.run(_run(ChatApp, client_factory))


def run_demo(left_factory: Factory, right_factory: Factory) -> int:
    """Two people side by side."""
    return asyncio.run(_run(DemoApp, left_factory, right_factory))


async def _run(app: Callable[..., RoostApp], *factories: Factory) -> int:
    """Clients are made on the loop the screen runs on, and closed whatever happens."""
    teach_alt_keys()
    clients: list[ChatClient] = []
    try:
        for factory in factories:
            clients.append(await factory())
        made = app(*clients)
        await made.run_async()
        return made.return_code or 0
    finally:
        for client in reversed(clients):
            await client.close()
