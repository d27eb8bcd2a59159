"""The scripted conversation of `roost demo --script`: a few messages, and how long each state took."""

import asyncio
import time
from typing import TYPE_CHECKING

from node.cli import output
from node.client.model import STATES, State

if TYPE_CHECKING:
    from node.client import Client

LINES = (
    (0, "Hello Bob, this left my node a moment ago."),
    (1, "Hello Alice! It is on my node now, signed by yours."),
    (0, "Do you see it when I have read yours?"),
    (1, "Yes: accepted, sent, delivered, read. Each is true when it shows."),
    (0, "And if your node sleeps?"),
    (1, "Then yours keeps it, and `roost why` tells you what it waits for."),
)
SHOWN = STATES[1:]  # from `accepted` on
STATE_S = 5.0  # how long one message may take to be read
_WIDTH = max(len(text) for _, text in LINES)


async def converse(left: "Client", left_address: str, right: "Client", right_address: str) -> bool:
    """Holds the conversation and prints it as a table; whether everything was read."""
    clients, addresses = (left, right), (left_address, right_address)
    readers = [asyncio.create_task(_read_all(client)) for client in clients]
    output.line(f"{'from':<6}  {'text':<{_WIDTH}}" + "".join(f"  {state + ' ms':>12}" for state in SHOWN))
    all_read = True
    try:
        for side, text in LINES:
            took = await _say(clients[side], addresses[1 - side], text)
            cells = "".join(f"  {'-' if ms is None else f'{ms:.1f}':>12}" for ms in took)
            output.line(f"{addresses[side].partition('@')[0]:<6}  {text:<{_WIDTH}}{cells}")
            all_read = all_read and took[-1] is not None
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return all_read


async def _read_all(client: "Client") -> None:
    """A person who reads whatever arrives at once."""
    async for change in client.events(("message",), True):
        if change.message and not change.message.mine:
            await client.mark_read(change.message)


async def _say(client: "Client", to: str, text: str) -> list[float | None]:
    """Milliseconds until each state was seen, none where it was not."""
    begin = time.perf_counter()
    message = await client.send(to, text)

    async def until(state: State) -> float | None:
        try:
            reached = await client.wait(message.key, state, STATE_S)
        except TimeoutError:
            return None
        return (time.perf_counter() - begin) * 1000 if reached.state not in ("failed", "void") else None

    return list(await asyncio.gather(*(until(state) for state in SHOWN)))
