"""A seeded event loop with virtual time, and the clock and chance that nodes get from it.

Nothing waits: when no callback is ready, time jumps to the next timer. Tasks are numbered, so that a set of tasks
is walked in the same order in every run; threads are refused, because their timing cannot be replayed.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from pathlib import Path
from random import Random
from typing import Any

from node.system import System

EPOCH_MS = 1_800_000_000_000  # where every simulated wall clock starts
OWNER: ContextVar[Any] = ContextVar("sim_owner", default=None)  # the node life that a task belongs to


class Stuck(Exception):
    """Nothing is ready and no timer is set: the run would wait for ever."""


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """A task that knows its number; hashing by number and not by address makes runs repeatable."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class _Jump(selectors.SelectSelector):
    """In place of waiting for sockets: move the clock."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        super().__init__()
        self._advance = advance

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing is ready and no timer is set")
        if timeout > 0:
            self._advance(timeout)
        return []


class SimLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual seconds since the run began."""

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = 0
        super().__init__(_Jump(self._advance))
        self.set_task_factory(self._new_task)

    def _advance(self, seconds: float) -> None:
        self._now += seconds

    def time(self) -> float:
        return self._now

    def _new_task(
        self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], context: Context | None = None
    ) -> SimTask:
        task = SimTask.__new__(SimTask)
        self._numbers += 1
        task.number = self._numbers  # before __init__, which puts the task into a set
        task.__init__(work, loop=loop, context=context)  # type: ignore[misc]
        owner = context[OWNER] if context is not None and OWNER in context else OWNER.get()
        if owner is not None:
            owner.adopt(task)
        return task

    def run_in_executor(self, executor: Any, work: Any, *args: Any) -> Any:
        raise RuntimeError("a thread in the simulator: its timing could not be replayed")


class SimSystem(System):
    """Virtual time with a clock error of its own, seeded chance, passwords without the slow hash."""

    def __init__(self, loop: SimLoop, chance: Random, skew_ms: int) -> None:
        super().__init__()
        self._loop, self._chance, self._skew_ms = loop, chance, skew_ms

    def monotonic_ms(self) -> int:
        return int(self._loop.time() * 1000)

    def awake_ms(self) -> int:
        return self.monotonic_ms()

    def disk(self, path: Path) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def wall_ms(self) -> int:
        return EPOCH_MS + self._skew_ms + int(self._loop.time() * 1000)

    def chance(self) -> float:
        return self._chance.random()

    def random(self, size: int) -> bytes:
        return self._chance.randbytes(size)

    async def hash_password(self, password: str) -> str:
        return f"sim:{password}"

    async def check_password(self, hashed: str, password: str) -> bool:
        return hashed == f"sim:{password}"


async def jump(seconds: float) -> None:
    """Let so much virtual time go by."""
    assert isinstance(asyncio.get_running_loop(), SimLoop)
    await asyncio.sleep(seconds)


def run(work: Coroutine[Any, Any, None]) -> None:
    """On a virtual clock of its own, without a simulated world around it."""
    loop = SimLoop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()
