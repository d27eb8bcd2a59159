"""`roost send`: one message, or one a line from stdin, and an honest outcome for each."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from node.cli import output
from node.cli.account_commands import checked_target
from node.cli.outcome import CliError, Exit, Problem, explain, worst
from node.cli.session import Json, Profile, opened, stdin_lines
from node.cli.shapes import sent_object
from node.client.model import STATES, Message, State

if TYPE_CHECKING:
    from node.client import Client

Wait = Literal["accepted", "sent", "delivered", "read"]
PENDING_MAX = 4096  # messages handed over whose outcome is not printed yet; stdin waits beyond
_NEVER_LEFT = Problem(
    Exit.UNREACHABLE,
    "unreachable",
    "the message never left this machine and was taken back",
    "check that the node runs, then send it again",
)


def add_to(app: App) -> None:
    app.command(send)


async def send(
    to: Annotated[str, Parameter(help="An address, or a conversation id.")],
    text: Annotated[str, Parameter(allow_leading_hyphen=True, help="The message; - takes one a line from stdin.")],
    /,
    *,
    profile: Profile,
    wait: Annotated[Wait, Parameter(help="The state to wait for.")] = "accepted",
    timeout: Annotated[float, Parameter(help="Seconds to wait, for each message.")] = 30,
    key: Annotated[str | None, Parameter(help="Makes repeating safe; with - it is KEY-1, KEY-2, ...")] = None,
    reply_to: Annotated[str | None, Parameter(help="The id of the message this answers.")] = None,
    json: Json = False,
) -> int:
    """Send messages and wait until they got as far as asked."""
    if not 0 < timeout < float("inf"):
        raise CliError(Exit.USAGE, "usage", "--timeout has to be above 0", "give seconds")
    to = checked_target(to)
    async with opened(profile) as client:
        desk = Desk(client, to, wait, timeout, reply_to)
        texts = stdin_lines() if text == "-" else _one(text)
        codes = []
        async with aclosing(desk.send_all(texts, key, numbered=text == "-")) as outcomes:
            async for outcome in outcomes:
                codes.append(outcome.exit)
                print_outcome(outcome, to, json)
    return worst(codes)


async def _one(text: str) -> AsyncIterator[str]:
    yield text


@dataclass
class Outcome:
    """One message as far as it got, and what went wrong if it is not where it should be."""

    message: Message
    problem: Problem | None = None

    @property
    def exit(self) -> Exit:
        return self.problem.exit if self.problem else Exit.REACHED


@dataclass
class _Handed:
    outcome: Outcome
    deadline: float


class Desk:
    """Hands messages to the client in order, without waiting in between; gives their outcomes in order."""

    def __init__(self, client: "Client", to: str, wait: State, timeout_s: float, reply_to: str | None = None) -> None:
        self._client, self._to, self._wait, self._timeout_s = client, to, wait, timeout_s
        self._reply_to = reply_to
        self._unsettled: dict[str, None] = {}  # keys, in order; taken back when we stop before their outcome

    async def send_all(
        self, texts: AsyncIterator[str], key: str | None, numbered: bool
    ) -> AsyncGenerator[Outcome, None]:
        handed: asyncio.Queue[_Handed | Exception | None] = asyncio.Queue(PENDING_MAX)
        feeder = asyncio.create_task(self._feed(texts, key, numbered, handed))
        try:
            while (entry := await handed.get()) is not None:
                if isinstance(entry, Exception):
                    raise entry
                yield await self.settle(entry.outcome, entry.deadline)
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)
            for pending in list(self._unsettled):
                await self._client.withdraw(pending)

    async def _feed(
        self,
        texts: AsyncIterator[str],
        key: str | None,
        numbered: bool,
        handed: "asyncio.Queue[_Handed | Exception | None]",
    ) -> None:
        number = 0
        try:
            async for text in texts:
                if numbered and not text:
                    continue  # an empty line is no message
                number += 1
                outcome = await self.hand_over(text, f"{key}-{number}" if key and numbered else key)
                await handed.put(_Handed(outcome, asyncio.get_running_loop().time() + self._timeout_s))
            await handed.put(None)
        except Exception as error:
            await handed.put(error)

    async def hand_over(self, text: str, key: str | None) -> Outcome:
        """Puts a message into the outbox."""
        return await self.hand(self._client.send(self._to, text, key=key, reply_to=self._reply_to), text, key)

    async def hand(self, queueing: Awaitable[Message], text: str, key: str | None) -> Outcome:
        """What goes into the outbox; a refusal there is an outcome like any other."""
        try:
            message = await queueing
        except Exception as error:
            problem = explain_or_raise(error)
            return Outcome(Message(None, key or "", "", "", "", text, 0, True, "failed", problem.message), problem)
        self._unsettled[message.key] = None
        return Outcome(message)

    async def settle(self, outcome: Outcome, deadline: float) -> Outcome:
        """Waits until the message got as far as asked, was refused, or time is over."""
        if outcome.problem:
            return outcome
        message, problem = outcome.message, None
        left_s = max(deadline - asyncio.get_running_loop().time(), 0.001)
        try:
            message = await self._client.wait(message.key, self._wait, left_s)
        except Exception as error:
            problem = explain_or_raise(error)
            message = await self._now(message)
        outcome = await self._judge(message, problem)
        self._unsettled.pop(message.key, None)
        return outcome

    async def _now(self, message: Message) -> Message:
        """The message as it stands; `queued` is reached by everything, so this does not wait."""
        try:
            now: Message = await self._client.wait(message.key, "queued", 0.001)
            return now
        except Exception as error:
            explain_or_raise(error)
            return message

    async def _judge(self, message: Message, problem: Problem | None) -> Outcome:
        if message.state in ("failed", "void"):
            more = (
                f"`roost why {message.id} --profile PROFILE` tells more"
                if message.id
                else "correct it and send it again"
            )
            refused = Problem(Exit.REFUSED, message.state, message.reason or "refused", more)
            return Outcome(message, problem if problem and problem.exit is Exit.REFUSED else refused)
        if problem is None and reached(message.state, self._wait):
            return Outcome(message)
        if problem is not None and problem.exit is Exit.REFUSED:
            if message.state == "queued" and not await self._client.withdraw(message.key):
                problem = _still_there(problem, message.key)
            return Outcome(message, problem)
        if message.state in ("", "queued") and await self._client.withdraw(message.key):
            return Outcome(message, _NEVER_LEFT)
        state = "not known to be accepted" if message.state in ("", "queued") else message.state
        return Outcome(
            message,
            Problem(
                Exit.UNKNOWN,
                problem.code if problem and problem.exit is Exit.UNKNOWN else "timeout",
                f"the message with key {message.key} is {state}, not yet {self._wait}",
                f"repeat with --key {message.key}: that is safe",
            ),
        )


def _still_there(refusal: Problem, key: str) -> Problem:
    """Refused, and kept to be tried again: an earlier try may have got through without an answer."""
    words = f"{refusal.message}; the message with key {key} waits in the outbox"
    return Problem(Exit.UNKNOWN, refusal.code, words, f"{refusal.next}, or repeat with --key {key}: that is safe")


def reached(state: State, wanted: State) -> bool:
    return state in STATES and STATES.index(state) >= STATES.index(wanted)


def explain_or_raise(error: Exception) -> Problem:
    """What happened to one message; whatever concerns the whole command goes on upwards."""
    problem = explain(error) if not isinstance(error, AssertionError | TypeError | AttributeError) else None
    if problem is None or problem.exit in (Exit.BUG, Exit.USAGE, Exit.STORE):
        raise error
    return problem


def print_outcome(outcome: Outcome, to: str, json: bool) -> None:
    problem = outcome.problem
    if json:
        error = {"error": {"code": problem.code, "message": problem.message}} if problem else {}
        output.obj(sent_object(outcome.message, to) | error)
    elif problem is None or problem.exit is Exit.UNKNOWN:
        message = outcome.message
        output.line(f"{message.id or 'no id yet'}  {message.state}  key {output.safe(message.key)}")
    if problem:
        output.complain(problem)
