"""`roost pipe`: JSON lines both ways, for programs in any language."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from cyclopts import App

from node.cli import output
from node.cli.account_commands import checked_target
from node.cli.outcome import CliError, Exit, Problem, explain
from node.cli.send import Desk
from node.cli.session import Profile, opened, stdin_lines
from node.cli.shapes import KINDS, change_object, history_object, sent_object
from node.client.model import Message

if TYPE_CHECKING:
    from node.client import Client

IN_FLIGHT_MAX = 256  # commands not answered yet; stdin waits beyond
READ_BACK_MAX = 200  # how far `read` looks for the newest message that is not one's own
SEND_S = 30.0  # how long a message may take to be accepted, and how long the end waits for it


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of input; `key` comes back in the answer, and makes repeating a send safe."""

    op: Literal["send", "read", "history", "state", "accept", "decline"]
    to: str = ""
    text: str = ""
    reply_to: str | None = None
    key: str | None = None
    conversation: str = ""
    id: str = ""
    limit: int = 200


_NEEDS = {
    "send": ("to", "text"), "read": ("conversation",), "history": ("conversation",), "state": ("id",),
    "accept": ("conversation",), "decline": ("conversation",),
}  # fmt: skip


def add_to(app: App) -> None:
    app.command(pipe)


async def pipe(*, profile: Profile) -> int:
    """Speak JSON lines: commands on stdin; events, states, results and errors on stdout. Ends with stdin.

    In: {"op":"send","to":...,"text":...,"key":...}, {"op":"read","conversation":...},
    {"op":"history","conversation":...,"limit":...}, {"op":"state","id":...},
    {"op":"accept"|"decline","conversation":...}.
    """
    async with opened(profile) as client:
        return await Pipe(client).run(stdin_lines())


class Pipe:
    def __init__(self, client: "Client") -> None:
        self._client = client
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest: dict[str, Message] = {}  # what `read` marks, per conversation seen here

    async def run(self, lines: AsyncIterator[str]) -> int:
        events = asyncio.create_task(self._events())
        commands = asyncio.create_task(self._commands(lines))
        try:
            await asyncio.wait({events, commands}, return_when=asyncio.FIRST_COMPLETED)
            if events.done():
                events.result()  # raises what ended the feed
            await commands
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            pending = [events, commands, *self._tasks]
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        return Exit.REACHED

    async def _events(self) -> None:
        async for change in self._client.events(KINDS, False):
            if (value := change_object(change)) is None:
                continue
            if change.kind == "message" and change.message and not change.message.mine:
                self._newest[change.message.conversation] = change.message
            output.obj(value)

    async def _commands(self, lines: AsyncIterator[str]) -> None:
        async for text in lines:
            if not text.strip():
                continue
            while len(self._tasks) >= IN_FLIGHT_MAX:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            try:
                command = parse(text)
                # Sends enter the outbox here, in the order of the lines; only outcomes are waited for aside.
                work = await self._send(command) if command.op == "send" else self._ask(command)
            except Exception as error:
                _error(None, explain(error))
                continue
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, command: Command) -> Any:
        to = checked_target(command.to)
        desk = Desk(self._client, to, "accepted", SEND_S, command.reply_to)
        outcome = await desk.hand_over(command.text, command.key)

        async def finish() -> None:
            try:
                done = await desk.settle(outcome, asyncio.get_running_loop().time() + SEND_S)
            except Exception as error:
                _error(command, explain(error))
                return
            if done.problem:
                _error(msgspec.structs.replace(command, key=done.message.key), done.problem)
            else:
                output.obj({"kind": "result", "op": "send", **sent_object(done.message, to)})

        return finish()

    async def _ask(self, command: Command) -> None:
        try:
            answer = await self._answer(command)
        except Exception as error:
            _error(command, explain(error))
        else:
            output.obj({"kind": "result", "op": command.op, "key": command.key, **answer})

    async def _answer(self, command: Command) -> dict[str, Any]:
        client, conversation = self._client, checked_target(command.conversation)
        if command.op == "history":
            messages = await client.history(conversation, command.limit)
            return {"conversation": conversation, "messages": [history_object(m) for m in messages]}
        if command.op == "state":
            states = await client.state(command.id)
            return {"id": command.id, "to": [msgspec.to_builtins(r) for r in states.to]}
        if command.op == "read":
            newest = self._newest.get(conversation)
            if newest is None:
                theirs = [m for m in await client.history(conversation, READ_BACK_MAX) if not m.mine]
                newest = theirs[-1] if theirs else None
            if newest is not None:
                await client.mark_read(newest)
        elif command.op == "accept":
            await client.accept(conversation)
        else:
            await client.decline(conversation)
        return {"conversation": conversation}


def parse(text: str) -> Command:
    try:
        command = msgspec.json.decode(text, type=Command)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CliError(
            Exit.USAGE, "bad_request", f"the line cannot be read: {error}", "see `roost pipe --help`"
        ) from None
    missing = [name for name in _NEEDS[command.op] if not getattr(command, name)]
    if missing or command.limit < 1:
        what = f"{command.op} needs {' and '.join(missing)}" if missing else "limit is below 1"
        raise CliError(Exit.USAGE, "bad_request", what, "see `roost pipe --help`")
    return command


def _error(command: Command | None, problem: Problem) -> None:
    origin = {"op": command.op, "key": command.key} if command else {}
    output.obj({"kind": "error", **origin, "code": problem.code, "message": problem.message})
