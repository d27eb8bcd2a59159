"""`roost tail`: what arrives, one line each, acknowledged only after the line is out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from cyclopts import App, Parameter

from node.cli import output
from node.cli.outcome import CliError, Exit
from node.cli.session import Json, Profile, opened
from node.cli.shapes import KINDS, change_object, change_text
from node.client.model import Change

ACK_S = 0.1  # how long the iterator gets to note that the last line is out; `close` then sends it


def add_to(app: App) -> None:
    app.command(tail)


async def tail(
    *,
    profile: Profile,
    count: Annotated[int | None, Parameter(help="Stop after this many lines.")] = None,
    timeout: Annotated[float | None, Parameter(help="Stop when nothing came for so many seconds.")] = None,
    kinds: Annotated[str, Parameter(help=f"Which of {','.join(KINDS)}.")] = "message,update",
    from_start: Annotated[bool, Parameter(negative="", help="Everything this device has, not only news.")] = False,
    read: Annotated[bool, Parameter(negative="", help="Tell the senders that it was read.")] = False,
    json: Json = False,
) -> int:
    """Print what arrives, going on where this profile stopped."""
    wanted = parse_kinds(kinds)
    if (count is not None and count < 1) or (timeout is not None and timeout <= 0):
        raise CliError(Exit.USAGE, "usage", "--count and --timeout have to be above 0", "leave them out for no limit")
    async with opened(profile) as client:

        async def show(change: Change) -> bool:
            value = change_object(change) if change.kind in wanted else None
            if value is None:
                return False
            output.obj(value) if json else output.line(change_text(change))
            if read and change.kind == "message" and change.message and not change.message.mine:
                await client.mark_read(change.message)
            return True

        printed = await follow(client.events(wanted, from_start), show, count, timeout)
    if count is not None and printed < count:
        message = (
            f"{printed} of {count} came, then nothing for {timeout:g} s" if timeout else f"{printed} of {count} came"
        )
        raise CliError(Exit.UNKNOWN, "timeout", message, "run it again: it goes on where it stopped")
    return Exit.REACHED


def parse_kinds(text: str) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not wanted or any(kind not in KINDS for kind in wanted):
        raise CliError(Exit.USAGE, "usage", f"--kinds {text!r} is not known", f"choose from {','.join(KINDS)}")
    return wanted


async def follow(
    changes: AsyncIterator[Change],
    show: Callable[[Change], Awaitable[bool]],
    count: int | None,
    idle_s: float | None,
) -> int:
    """Shows changes until enough were shown or nothing came for a while; returns how many were.

    Asking for the next change is what acknowledges the one before, so after the last one it asks once more
    and throws the answer away: that one was not acknowledged and comes again next time.
    """
    shown = 0
    loop = asyncio.get_running_loop()
    last = loop.time()
    while count is None or shown < count:
        left_s = None if idle_s is None else max(last + idle_s - loop.time(), 0.001)
        try:
            change = await asyncio.wait_for(anext(changes), left_s)
        except (TimeoutError, StopAsyncIteration):
            return shown
        if await show(change):
            shown, last = shown + 1, loop.time()
    try:
        await asyncio.wait_for(anext(changes), ACK_S)
    except (TimeoutError, StopAsyncIteration):
        pass
    return shown
