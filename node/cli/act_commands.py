"""`roost edit`, `delete`, `react`, `pin` and `unpin`: what is done to a message, with an outcome as of `send`."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from node.cli import output
from node.cli.account_commands import MessageId
from node.cli.outcome import CliError, Exit
from node.cli.send import Desk, Wait
from node.cli.session import Json, Profile, opened
from node.cli.shapes import act_object
from node.client.model import Message

if TYPE_CHECKING:
    from node.client import Client

For = Annotated[Wait, Parameter(help="The state to wait for.")]
Seconds = Annotated[float, Parameter(help="Seconds to wait.")]
Key = Annotated[str | None, Parameter(help="Makes repeating safe.")]
Act = Callable[["Client"], Awaitable[Message]]


def add_to(app: App) -> None:
    commands: tuple[Callable[..., Any], ...] = (edit, delete, react, pin, unpin)
    for command in commands:
        app.command(command)


async def edit(
    id: MessageId,
    text: Annotated[str, Parameter(allow_leading_hyphen=True, help="What it says from now on.")],
    /,
    *,
    profile: Profile,
    wait: For = "accepted",
    timeout: Seconds = 30,
    key: Key = None,
    json: Json = False,
) -> int:
    """Change what a message of yours says; everybody sees that it was edited."""
    return await _do(lambda c: c.edit(id, text, key=key), id, text, profile, wait, timeout, key, json)


async def delete(
    id: MessageId,
    /,
    *,
    profile: Profile,
    wait: For = "accepted",
    timeout: Seconds = 30,
    key: Key = None,
    json: Json = False,
) -> int:
    """Take back a message of yours: every node drops its text. There is no way back."""
    return await _do(lambda c: c.delete(id, key=key), id, "", profile, wait, timeout, key, json)


async def react(
    id: MessageId,
    emoji: Annotated[str, Parameter(help="One emoji, or a short text such as +1.")],
    /,
    *,
    profile: Profile,
    undo: Annotated[bool, Parameter(negative="", help="Take it back.")] = False,
    wait: For = "accepted",
    timeout: Seconds = 30,
    key: Key = None,
    json: Json = False,
) -> int:
    """Put an emoji on a message."""

    def act(client: "Client") -> Awaitable[Message]:
        return client.unreact(id, emoji, key=key) if undo else client.react(id, emoji, key=key)

    return await _do(act, id, emoji, profile, wait, timeout, key, json)


async def pin(
    id: MessageId,
    /,
    *,
    profile: Profile,
    wait: For = "accepted",
    timeout: Seconds = 30,
    key: Key = None,
    json: Json = False,
) -> int:
    """Put a message on its conversation's list of pinned ones."""
    return await _do(lambda c: c.pin(id, key=key), id, "", profile, wait, timeout, key, json)


async def unpin(
    id: MessageId,
    /,
    *,
    profile: Profile,
    wait: For = "accepted",
    timeout: Seconds = 30,
    key: Key = None,
    json: Json = False,
) -> int:
    """Take a message off the list of pinned ones."""
    return await _do(lambda c: c.unpin(id, key=key), id, "", profile, wait, timeout, key, json)


async def _do(
    act: Act, target: str, text: str, profile: str, wait: Wait, timeout_s: float, key: str | None, json: bool
) -> int:
    if not 0 < timeout_s < float("inf"):
        raise CliError(Exit.USAGE, "usage", "--timeout has to be above 0", "give seconds")
    async with opened(profile) as client:
        desk = Desk(client, "", wait, timeout_s)
        handed = await desk.hand(act(client), text, key)
        outcome = await desk.settle(handed, asyncio.get_running_loop().time() + timeout_s)
    done, problem = outcome.message, outcome.problem
    if json:
        error = {"error": {"code": problem.code, "message": problem.message}} if problem else {}
        output.obj(act_object(done, target) | error)
    elif problem is None or problem.exit is Exit.UNKNOWN:
        output.line(f"{done.id or 'no id yet'}  {done.state}  key {output.safe(done.key)}")
    if problem:
        output.complain(problem)
    return outcome.exit
