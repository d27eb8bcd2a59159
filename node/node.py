"""The node: puts store, sessions and federation together, owns their tasks, and ends them.

    async with Node.open(Config(name="lab.example", data_dir="lab")) as node: ...

An embedded node takes no signals, configures no logging, reads no environment and never exits the process.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from federation.identity import NodeLink, event_keys, origin
from federation.ids import CONVERSATION_ID_BYTES, INCARNATION_BYTES, User, direct_conversation, to_text
from federation.link import Settings, Us
from federation.memory import pair
from federation.ports import Channel
from federation.service import Dial, Service
from node import api, keys, witness
from node.api import ApiError
from node.config import Config
from node.core import rows
from node.core.bucket import Buckets
from node.core.context import Context
from node.core.people import AddAccount
from node.core.progress import CloseNotices, Consent
from node.core.view import Hint
from node.datadir import lock, open_keys, private
from node.directory import Directory, conversation_id
from node.ephemerals import Ephemerals
from node.errors import NewerDatabase, NodeDamaged, NodeError, NodeFailed, StoreDamaged, StoreUnusable
from node.explain import explain
from node.hold import first_look, hold, keep_watch, quiet, watch
from node.host import Host
from node.session import Session
from node.storage import reads
from node.storage.migrate import NewerDatabase as _NewerSchema
from node.storage.runner import Runner, open_runner, said, store_name
from node.storage.writer import Store, StoreFailed, malformed
from node.system import System
from node.upkeep import Upkeep, set_limits
from node.witness import Witness

if TYPE_CHECKING:
    from node.client import Client
    from node.doors import Doors

log = logging.getLogger("roost.node")
# One connection in so many may be without a login, and one in so many of those from one address; so many always may.
STRANGERS_SHARE, STRANGERS_MIN = 4, 16
BURST_S = 10  # seconds of a rate that may come at once
REFUSED_MAX = 256  # connections over the limit that are being told so; further ones are closed without a word
Authenticate = Callable[[str, str], Awaitable[bool]]


class Node:
    """One running node. Use `Node.open`."""

    def __init__(self, config: Config, node_keys: keys.NodeKeys, system: System, runner: Runner) -> None:
        self.config, self.system, self._runner = config, system, runner
        self.us = Us(node_keys.chain, node_keys.key, node_keys.identity.node, config.name,
                     system.random(INCARNATION_BYTES), config.hints)  # fmt: skip
        self.directory, self.ephemerals = Directory(self.us.node, config.name), Ephemerals(self)
        self.sessions: dict[str, set[Session]] = {}  # logged in, by user
        self.connections: set[Session] = set()  # all that came through a door
        self.strangers: dict[Session, bytes] = {}  # those of them that did not log in, and where they are
        self.refused: set[Session] = set()  # those over the limits, while they are told
        self.turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of users who look something up
        self.lights: dict[str, tuple[str, int]] = {}
        self.doors: Doors | None = None  # none: nobody can call
        self.refusals: Counter[str] = Counter()  # of connections and requests, by the name of their bound
        rate = config.limits.requests_per_second
        self.rates = Buckets(rate, rate * BURST_S)  # of users
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.authenticate: Authenticate | None = None
        self.store: Store
        self.host: Host
        self.service: Service
        self.held = ""  # why the store is an old copy that was not accepted yet (`node.hold`)
        self.changed = asyncio.Event()  # `held` did
        self.watched: list[Witness | None] = []  # what the witness file says, where one is kept
        self.context: Context
        self.life = 0  # number of this start
        self.store_text, self.store_name = "", store_name(config.database_url)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._clients: list[Client] = []
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._session_tasks: set[asyncio.Task[None]] = set()

    # --- life ---------------------------------------------------------------------------------------------------------
    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: Config, authenticate: Authenticate | None = None, listen: bool = True, system: System | None = None
    ) -> "AsyncIterator[Node]":
        """Start, run the body, stop. `listen=False` opens the store only, for administration beside no server."""
        held = lock(config.data_path)
        try:
            node_keys = open_keys(config.data_path)
            if not config.database:
                private(config.data_path)
            try:
                runner = open_runner(config.database_url)
            except ModuleNotFoundError as error:
                raise StoreUnusable(
                    f"the store {store_name(config.database_url)} needs the package {error.name}; "
                    "install it, or roost with its extra `postgres`"
                ) from None
            node = cls(config, node_keys, system or System(), runner)
            node.authenticate = authenticate
            node.watched = [witness.read(config.data_path)]
            try:
                await node.start(None)
                await watch(node)
                node.own(keep_watch(node), "witness")
                if listen:
                    from node.doors import open_doors

                    await open_doors(node)
                yield node
            finally:
                await node.close()
        finally:
            os.close(held)

    async def start(self, dial: Dial | None) -> None:
        """Bring the store up and federation with it. Raises a `NodeError`."""
        try:
            begun = await self._runner.write(partial(first_look, self))
        except _NewerSchema as error:
            raise NewerDatabase(f"the store {self.store_name}: {error}; install the newer version") from None
        except Exception as error:
            kind, words = (StoreDamaged, "is damaged") if malformed(error) else (StoreUnusable, "cannot be opened")
            raise kind(f"the store {self.store_name} {words}: {said(error)}") from error
        self.store_text, self.life = to_text(begun.store), begun.life
        self.context = context = Context(
            self.us.node, self.us.name, self.us.key, self.us.incarnation, begun.store,
            policy=self.config.federation.policy,
        )  # fmt: skip
        set_limits(context, self.config.limits)
        self.store = Store(self._runner, context, [CloseNotices()], self.system.wall_ms, self._committed, self._fail)
        context.keys, context.restored = event_keys(self.us.chain), begun.restored
        context.last_stamp = await self.store.read(reads.newest_stamp)
        self.directory.load(await self.store.read(reads.all_peers))
        self.host = Host(self.store, context, self.directory, self._light, partial(hold, self), self.system,
                         self.config.limits, self.ephemerals.arrived)  # fmt: skip
        link = self.config.link
        settings = Settings(link.ping_ms, link.dead_after_ms, link.window_events, link.window_bytes)
        self.service = Service(self.us, self.host, self.system, dial, settings, link.backoff_cap_ms)
        self.upkeep = Upkeep(self)
        self._store_task = self.own(self.store.run(), "store")
        self.own(self.upkeep.run(), "upkeep")
        self.own(self.ephemerals.run(), "ephemerals")
        if begun.held:
            quiet(self, begun.held)
            self.service.held = True

    def own(self, work: "Any", name: str) -> "asyncio.Task[Any]":
        """Run a task for as long as the node lives; its failure is the node's."""
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)

        def done(task: "asyncio.Task[Any]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s failed: %s", name, said(error))
                self._fail(error)

        task.add_done_callback(done)
        return task

    def on_close(self, closer: Callable[[], Awaitable[None]]) -> None:
        self._closers.append(closer)

    def report(self, error: BaseException) -> None:
        """A bug in one request: told in the log, never to the network."""
        log.error("a request failed by a bug: %r", error, exc_info=error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            words = f"the store failed: {error}; nothing accepted before is lost"
            self.failed.set_exception((NodeDamaged if malformed(error) else NodeFailed)(words))
            self.failed.exception()  # an embedder that never looks is not warned at garbage collection
        for session in [s for group in self.sessions.values() for s in group]:
            session.end("busy", "the node stopped because its store failed")

    def _check(self) -> None:
        """Raise what a call of the host program has to know."""
        if self.failed.cancelled():
            raise NodeError("the node is closed; open it again")
        if self.failed.done():
            raise NodeFailed(str(self.failed.exception()))

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Around a call of the host program, which hears of the store as `NodeFailed`."""
        self._check()
        try:
            yield
        except StoreFailed:
            self._check()
            raise

    async def stopped(self) -> None:
        """Wait until the node fails; raises `NodeFailed`."""
        await asyncio.shield(self.failed)

    async def close(self) -> None:
        """Stop in the order that loses nothing: clients, doors, links, then the store."""
        for client in self._clients:
            await client.close()
        if hasattr(self, "service"):
            await self.service.stop()
        for closer in reversed(self._closers):
            await closer()
        for task in list(self._session_tasks):
            task.cancel()
        await asyncio.gather(*self._session_tasks, return_exceptions=True)
        if hasattr(self, "_store_task"):
            self.store.stop()
            await asyncio.gather(self._store_task, return_exceptions=True)
            if not self.failed.done():
                await watch(self)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.close()
        self.system.close()
        if not self.failed.done():
            self.failed.cancel()

    # --- hints --------------------------------------------------------------------------------------------------------
    def _committed(self, hints: Iterable[Hint]) -> None:
        for kind, key in hints:
            if kind == "mailbox":
                for session in self.sessions.get(str(key), ()):
                    if session.feed is not None:
                        session.feed.wake.set()
            elif kind == "peer":
                self.service.poke(key if isinstance(key, bytes) else b"")
            elif kind == "peers":
                self.own(self.peers_changed(), "peers")
            elif kind == "met":  # whatever anybody's hello says, no other peer is called sooner for it
                self.own(self._load_peers(), "peers")
            elif kind == "opened" and isinstance(key, bytes):
                self.own(self._release(key[:CONVERSATION_ID_BYTES], key[CONVERSATION_ID_BYTES:].decode()), "receipts")
            elif kind == "account":
                self._end_sessions(str(key), None, "the account is disabled")
            elif kind == "device":
                self._end_sessions("", key, "the device was revoked")
            elif kind == "quarantine" and isinstance(key, bytes):
                log.warning("an event of %s is in quarantine: `roost quarantine list`", self.directory.name_of(key))
            elif kind == "evidence":
                log.warning("%s sent two events under one number: kept as evidence", key)

    async def _load_peers(self) -> None:
        await self.directory.follow(partial(self.store.read, reads.all_peers))

    async def _release(self, conversation: bytes, local: str) -> None:
        """Receipts that a request held back. Lost in a crash, the next ones of the same logs say it too."""
        self.ephemerals.changed(local)
        logs = await self.store.read(reads.logs_of, conversation)
        with suppress(ApiError, StoreFailed):
            await self.store.submit(Consent(local, conversation, True, tuple(log.log for log in logs), opened=True))

    async def peers_changed(self) -> None:
        await self._load_peers()
        self.service.peers_changed()

    def _end_sessions(self, local: str, device: "str | bytes | None", reason: str) -> None:
        for group in list(self.sessions.values()):
            for session in list(group):
                mine = session.device
                if mine is not None and (mine.local == local or mine.device == device):
                    session.end("bad_token", reason)

    def _light(self, peer: bytes, state: str, since_ms: int) -> None:
        self.ephemerals.link(peer, state)
        known, name = self.directory.peers.get(peer), self.directory.name_of(peer)
        if name not in self.lights and (known is None or known.state not in ("accepted", "open")):
            return  # a stranger: everybody's screens are not for whoever knocks
        self.lights[name] = (state, since_ms)
        for session in [s for group in self.sessions.values() for s in group]:
            session.light(name, state, since_ms)

    # --- sessions -----------------------------------------------------------------------------------------------------
    async def serve(self, channel: Channel, is_text: Callable[[], bool] = lambda: False) -> None:
        """Serve one client connection to its end; the doors call this.

        `is_text` says, once the first frame came, whether the client speaks JSON. Over `limits.sessions` the client
        is told `busy`. Who did not log in counts too, and has a bound below that: strangers cannot take every place,
        and those of one address not every place of strangers. Behind a proxy all come from one address.
        """
        session = Session(self, channel, is_text)
        limit = self.config.limits.sessions
        strangers = max(limit // STRANGERS_SHARE, STRANGERS_MIN)
        proxied = channel.binding.kind == "tcp" and self.config.tls.behind_proxy
        where = b"" if proxied else origin(channel.remote)
        crowded = not proxied and list(self.strangers.values()).count(where) >= strangers // STRANGERS_SHARE
        if crowded or len(self.connections) >= limit or len(self.strangers) >= strangers:
            self.refusals["connections without a login" if len(self.connections) < limit else "connections"] += 1
            if len(self.refused) >= REFUSED_MAX:
                self.refusals["untold"] += 1
            else:
                self.refused.add(session)
                try:
                    await session.refuse("busy", "too many clients are connected; try again later")
                finally:
                    self.refused.discard(session)
            return
        self.connections.add(session)
        self.strangers[session] = where
        try:
            await session.run()
        finally:
            self.connections.discard(session)
            self.strangers.pop(session, None)

    def join(self, session: Session) -> None:
        assert session.device is not None
        self.sessions.setdefault(session.device.local, set()).add(session)

    def leave(self, session: Session) -> None:
        if session.device is not None:
            group = self.sessions.get(session.device.local, set())
            group.discard(session)
            if not group:
                self.sessions.pop(session.device.local, None)

    def recipient(self, text: str) -> User | bytes:
        """Whom a send goes to: the user of an address, or a conversation id."""
        return self.directory.user(text) if "@" in text else conversation_id(text)

    # --- for embedders and administrators -----------------------------------------------------------------------------
    @property
    def link(self) -> NodeLink:
        """What other administrators and new devices need."""
        return NodeLink(self.us.node, self.us.name, self.us.addresses)

    async def create_user(self, name: str, password: str = "") -> str:
        """A new user; without a password it can be used from inside only. Returns the name."""
        with self._working():
            hashed = await self.hash_password(password) if password else ""
            account: rows.Account = await self.store.submit(AddAccount(name, hashed))
            return account.local

    async def hash_password(self, password: str) -> str:
        """What is kept of a password that somebody can log in with."""
        if not password or len(password) > api.PASSWORD_CHARS_MAX:
            raise ApiError("bad_request", f"a password has 1 to {api.PASSWORD_CHARS_MAX} characters")
        return await self.system.hash_password(password)

    async def check_password(self, account: rows.Account | None, user: str, password: str) -> bool:
        """By the host application where it gave `authenticate`, else by the stored hash."""
        if self.authenticate is not None:
            good = await self.authenticate(user, password)
            if good and account is None:
                await self._first_login(user)
            return good
        return await self.system.check_password(account.password if account else "", password)

    async def _first_login(self, user: str) -> None:
        try:
            await self.store.submit(AddAccount(user, ""))
        except ApiError as error:
            if error.code != "name_taken":  # another device of the same person was first
                raise

    def conversation(self, local: str, text: str) -> bytes:
        """A conversation by its id, or by the other member's address."""
        if "@" in text:
            return direct_conversation(User(self.us.node, local), self.directory.user(text))
        return conversation_id(text)

    async def why(self, event: bytes) -> api.Why:
        return await explain(self, event)

    async def client(self, user: str, device: str = "main") -> "Client":
        """A client in this process: no port, no socket; the same stored device each time it is asked for."""
        from node.embed import open_client

        with self._working():
            client = await open_client(self, user, device)
        self._clients.append(client)
        return client

    def connect_inside(self) -> Channel:
        """A client's end of an in-process connection."""
        self._check()
        ours, theirs = pair()
        task = asyncio.ensure_future(Session(self, theirs, lambda: False).run())  # our own process: not counted
        self._session_tasks.add(task)
        task.add_done_callback(self._session_tasks.discard)
        return ours
