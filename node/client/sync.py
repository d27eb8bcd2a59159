"""The client's one supervised task: connect, resume, send, receive, store, publish, acknowledge, reconnect."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from federation.identity import decode_chain, replaces
from federation.ports import ChannelClosed
from node import api
from node.client import marks
from node.client.drain import Drain
from node.client.errors import Ended, Lost, NodeKeyError, StoreError, Unreachable
from node.client.feed import Me
from node.client.hub import Hub
from node.client.keep import Keeper
from node.client.model import Change, Lights
from node.client.outbox import Row
from node.client.rows import set_fact
from node.client.session import Session
from node.client.signs import Signs
from node.client.store import Store
from node.client.wire import Connect

AUTH_S = 15.0
LIVE_S = 15.0  # how long a request waits for a connection
RETRY_S_MAX = 60.0
FIRST_RETRY_S = 0.25
STEADY_S = 5.0  # a connection that lived so long was a success: the next retry is fast again
WAKE_S = 0.5  # a new message tries again at once, but not more often than this
READS_MAX = 64  # marks per request
logger = logging.getLogger(__name__)


def full_jitter(cap_s: float) -> float:
    return random.uniform(0, cap_s)


class Sync:
    """Owns the connection. Everything that fails for good ends up in `hub.error`, and every call raises it."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        me: Me,
        cursor: marks.Cursor,
        chain: bytes,
        connect: Connect,
        token: str,
        jitter: Callable[[float], float],
    ) -> None:
        self._store, self._hub = store, hub
        self._chain, self._connect, self._token, self._jitter = chain, connect, token, jitter
        self.lights = Lights(me_since=_now_ms())
        self._session: Session | None = None
        self._drain: Drain | None = None
        self._keeper = Keeper(store, hub, me, cursor)
        self.consumed = self._keeper.consumed
        self.signs = Signs(hub)
        self.display_name = ""  # as of the newest connection
        self._failures = 0
        self._reason = ""
        self._changed = asyncio.Event()  # connected, or failed to
        self._wake = asyncio.Event()
        self._reads = asyncio.Event()
        self._reads_told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._supervise())

    # --- for the client -----------------------------------------------------------------------------------
    @property
    def is_up(self) -> bool:
        return self._session is not None

    def queued(self, row: Row) -> None:
        """A message is in the outbox."""
        if self._drain is not None:
            self._drain.put(row)
        else:
            self._wake.set()

    def refusal(self, target: str) -> api.ApiError | None:
        """Why the node takes nothing for this target now."""
        return self._drain.refusal(target) if self._drain is not None else None

    def seen(self) -> None:
        """Read marks are in the store."""
        self._reads_told.clear()
        self._reads.set()

    async def live(self) -> Session:
        """The session; `Unreachable` when an attempt after this call fails too."""
        failures = self._failures
        self._wake.set()
        try:
            async with asyncio.timeout(LIVE_S):
                while self._session is None:
                    if self._hub.error is not None:
                        raise self._hub.error
                    if self._failures > failures or self._hub.closed:
                        raise Unreachable(self._reason or "the client is closed")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise Unreachable(self._reason or f"no connection to the node within {LIVE_S:g} s") from None
        return self._session

    async def close(self) -> None:
        """Tell the node what was consumed and read (bounded), then end the connection."""
        session = self._session
        if session is not None:
            if self._reads.is_set():
                try:
                    async with asyncio.timeout(1.0):
                        await self._reads_told.wait()
                except TimeoutError:
                    pass
            await session.flush()
        self._hub.end(None)
        self._changed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.signs.close()
        await self._keeper.flush()

    # --- the supervised task ------------------------------------------------------------------------------
    async def _supervise(self) -> None:
        loop, tries = asyncio.get_running_loop(), 0
        while True:
            self._light("connecting", self._reason)
            began = loop.time()
            self._wake.clear()  # before the attempt: what is queued while it fails tries again at once
            try:
                await self._once()
            except (Unreachable, Lost, ChannelClosed) as error:
                self._reason = str(error)
            except api.ApiError as error:
                self._reason = error.message
                if not error.retry:
                    return self._fail(error)
            except (Ended, NodeKeyError, StoreError) as error:
                return self._fail(error)
            except Exception as error:
                logger.exception("a mistake in the client ended it")
                return self._fail(error)
            self._failures += 1
            self._changed.set()
            self._light("down", self._reason)
            tries = 0 if loop.time() - began > STEADY_S else tries + 1
            await self._pause(tries)

    def _fail(self, error: Exception) -> None:
        self._light("down", str(error))
        self._hub.end(error)
        self._changed.set()

    async def _pause(self, tries: int) -> None:
        pause = self._jitter(FIRST_RETRY_S if tries <= 1 else min(RETRY_S_MAX, 2.0 ** (tries - 2)))
        soonest = asyncio.get_running_loop().time() + min(WAKE_S, pause)
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
            await asyncio.sleep(max(0.0, soonest - asyncio.get_running_loop().time()))
        except TimeoutError:
            pass

    async def _once(self) -> None:
        wire = await self._connect()
        session = Session(wire, self._peer, self.signs.take)
        running = asyncio.create_task(session.run())
        tasks: list[asyncio.Task[None]] = [running]
        keeping: asyncio.Task[None] | None = None
        try:
            await self._keep_chain(wire.welcome.chain)
            await self._auth(session)
            drain = Drain(self._store, session, self._jitter)
            keeping = asyncio.create_task(self._keeper.run(session, drain))
            tasks += [asyncio.create_task(drain.run()), asyncio.create_task(self._tell(session))]
            self._up(session, drain)
            await asyncio.wait([*tasks, keeping], return_when=asyncio.FIRST_COMPLETED)
            # The other tasks only notice that the session ended: its own reason comes first.
            for task in [running, keeping, *tasks]:
                if task.done():
                    task.result()
        finally:
            self._session = self._drain = None
            self.signs.down()
            self._keeper.begin(None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if keeping is not None:
                session.ended = True  # what was received is still stored and told before the end
                session.fed.set()
                await asyncio.gather(keeping, return_exceptions=True)
            await wire.close()

    async def _keep_chain(self, chain: bytes) -> None:
        """The newest key chain that was seen; whoever has a key from before it is not told a word (PROTOCOL.md 3.3)."""
        if chain == self._chain:
            return
        if self._chain and not replaces(decode_chain(chain), decode_chain(self._chain)):
            raise NodeKeyError(
                "the node answered with a key that it has replaced: somebody may have stolen that one; nothing was "
                "told to them, try another network and tell the administrator"
            )
        await self._store.run(lambda db: set_fact(db, "chain", chain))
        self._chain = chain

    async def _auth(self, session: Session) -> None:
        cursor = self._keeper.cursor
        resume = api.Cursor(cursor.store, cursor.consumed) if cursor.store else None
        try:
            async with asyncio.timeout(AUTH_S):
                ready = await session.request(api.Auth(id=1, token=self._token, resume=resume))
        except TimeoutError:
            raise Lost(f"the node did not answer the login within {AUTH_S:g} s") from None
        if not isinstance(ready, api.Ready):
            raise Lost("the node answered the login with something else")
        self.display_name = ready.display_name
        if not cursor.store:
            await self._keeper.restart(ready.acked.store, ready.acked.position)
        elif ready.acked.store != cursor.store or ready.head < cursor.stored:
            await self._keeper.restart(ready.acked.store, 0)
            raise Lost("the node's store was replaced: starting again from its beginning")
        self._keeper.begin(session)

    def _up(self, session: Session, drain: Drain) -> None:
        self._session, self._drain = session, drain
        self.signs.up(session)
        self._reason = ""
        self._reads.set()  # marks made while offline
        self._light("up", session.why)
        self._changed.set()

    # --- read marks ---------------------------------------------------------------------------------------
    async def _tell(self, session: Session) -> None:
        """Read marks, also those made while offline."""
        while True:
            await self._reads.wait()
            reads = await self._store.run(lambda db: marks.untold(db, READS_MAX))
            if not reads:
                self._reads.clear()
                self._reads_told.set()
                continue
            for read in reads:
                try:
                    await session.request(read)
                except api.ApiError as error:
                    if error.retry:
                        await asyncio.sleep(self._jitter(RETRY_S_MAX))
                        continue
                    logger.info("a read mark was refused: %s", error)
                await self._store.run(lambda db, told=read: marks.told(db, told))  # type: ignore[misc]

    # --- lights -------------------------------------------------------------------------------------------
    def _light(self, me: Literal["up", "down", "connecting"], reason: str) -> None:
        if me == self.lights.me and reason == self.lights.reason:
            return
        same = (me == "up") == (self.lights.me == "up")  # each try in between is no news of how long it lasts
        since = self.lights.me_since if same else _now_ms()
        peers = self.lights.peers if me == "up" else {}  # what the node last said is old news now
        self.lights = Lights(me, since, peers, reason)
        self._hub.publish([Change("lights")])

    def _peer(self, light: api.PeerLight) -> None:
        peers = {**self.lights.peers, light.node: (light.state, light.since)}
        self.lights = msgspec.structs.replace(self.lights, peers=peers)
        self._hub.publish([Change("lights")])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
