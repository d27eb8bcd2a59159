"""One simulated machine: a database file that stays, and node lives that come and go on it."""

import asyncio
import sqlite3
from contextlib import closing, suppress
from contextvars import Context, copy_context
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from federation.ports import Channel, ChannelClosed
from node import keys
from node.api import ApiError
from node.config import Config, Link
from node.core.peers import ChangePeer
from node.hold import accept, hold
from node.node import Node
from node.storage.migrate import migrate
from node.storage.runner import InlineRunner
from node.storage.writer import StoreFailed
from tests.sim.loop import OWNER, SimSystem

if TYPE_CHECKING:
    from tests.sim.world import World

_template: list[bytes] = []
KNOWS_S = 15  # after this the administrator knows, whoever did not say it


def template(folder: Path) -> bytes:
    """A migrated, empty database; made once per process."""
    if not _template:

        async def pause(point: str) -> None: ...

        async def make() -> None:
            runner = InlineRunner(folder / "template.db", pause)
            await runner.write(migrate)
            await runner.close()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(make())
        loop.close()
        _template.append((folder / "template.db").read_bytes())
    return _template[0]


class Life:
    """One process life of a node: everything that must vanish when the process dies."""

    def __init__(self, host: "Host", world: "World") -> None:
        self.host, self.world = host, world
        self.tasks: set[Any] = set()
        self.dead = self.up = False
        self.ended = asyncio.Event()
        self.armed: tuple[str, int] | None = None
        self.context: Context = copy_context()
        self.context.run(OWNER.set, self)
        self.runner = world.runner_type(host.folder / "roost.db", self.pause)
        config = Config(name=host.name, data_dir=str(host.folder), advertise=(host.address,), link=host.link)
        self.node: Node = self.context.run(Node, config, host.keys, host.system, self.runner)

    def adopt(self, task: Any) -> None:
        if self.dead:
            task.cancel()
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def spawn(self, work: Any) -> Any:
        return self.world.loop.create_task(work, context=self.context)

    async def start(self) -> None:
        await self.node.start(self.world.net.dialler(self.host, self))
        self._watch("receive", "received")
        self._watch("acked", "acknowledged")
        plan = self.world.plan  # smaller than a configuration may say
        self.node.service._settings = self.node.service._settings._replace(window_bytes=plan.window_bytes)
        self.node.store._context.mailbox_items_max = plan.mailbox
        self.node.own(self.node.service.run(), "federation")
        self.up = True

    def _watch(self, call: str, point: str) -> None:
        """Crash points that the store does not see: stored and not acknowledged; acknowledged and not forgotten."""
        real = getattr(self.node.host, call)

        async def watched(*args: Any) -> Any:
            if point == "acknowledged":
                await self.reach(point)
            result = await real(*args)
            if point == "received":
                await self.reach(point)
            return result

        setattr(self.node.host, call, watched)

    async def pause(self, point: str) -> None:
        """The runner calls this around every transaction."""
        if self.dead:
            raise asyncio.CancelledError
        full = self.up and point == "before commit" and self.world.loop.time() < self.host.full_until
        if full and self.host.chance.random() < 0.7:  # small things still find a place now and then
            raise OSError("database or disk is full")
        if point != "read":
            await asyncio.sleep(self.host.chance.random() * self.world.plan.disk_s)
        elif self.host.chance.random() < 0.1:
            await asyncio.sleep(self.host.chance.random() * 0.01)
        await self.reach(point)

    async def reach(self, point: str) -> None:
        if self.armed is None or self.armed[0] != point:
            return
        self.armed = (point, self.armed[1] - 1)
        if self.armed[1] <= 0:
            self.crash(f"crashes: {point}")
            await asyncio.get_running_loop().create_future()

    def crash(self, text: str) -> None:
        """The process is gone: no goodbye, no commit, no clean-up."""
        if self.dead:
            return
        self.world.note(self.host.name, text)
        self.dead, self.up = True, False
        self.world.net.drop_life(self)
        for channel in self.host.doors:
            channel.cut("the node's process died")
        self.host.doors.clear()
        for task in sorted(self.tasks, key=lambda task: task.number):
            task.cancel()
        self.ended.set()

    async def stop(self) -> None:
        """The orderly end, for comparison: nothing of it may be needed."""
        self.world.note(self.host.name, "stops")
        self.up = False
        closing = self.spawn(self.node.close())
        await asyncio.wait([closing], timeout=60)
        if not closing.done():
            stacks = [f"{frame.f_code.co_qualname}:{frame.f_lineno}" for frame in closing.get_stack()]
            self.world.violations.append(f"{self.host.name} does not stop: {stacks}")
        self.crash("is down")


class Host:
    """The machine: its name, its disk, its clock."""

    def __init__(self, world: "World", name: str, chance: Random) -> None:
        self.world, self.name, self.chance = world, name, chance
        self.address = f"{name}:7701"
        self.folder = world.folder / name
        self.folder.mkdir()
        (self.folder / "roost.db").write_bytes(template(world.folder))
        self.keys = keys.create(self.folder, chance.randbytes)
        self.system = SimSystem(world.loop, chance, world.plan.skew_ms[name])
        plan = world.plan
        self.link = Link(backoff_cap_ms=plan.cap_ms, window_events=plan.window_events, ping_ms=plan.ping_ms)
        self.doors: list[Any] = []
        self.life: Life | None = None
        self.downtime = self.full_until = 0.0
        self.lives = 0
        self.copy: dict[str, bytes] = {}  # of the store's files, from an earlier moment
        self.going_back = self.told = False
        self.old = False  # its store is a copy that was not accepted yet
        self.restores = 0  # accepted ones
        self.lost: set[bytes] = set()  # events of then that neither the copy nor a peer had

    async def run(self) -> None:
        """One life after the other."""
        while not self.world.over:
            self.life = life = Life(self, self.world)
            self.lives += 1
            starting = life.spawn(life.start())
            await asyncio.wait([starting])
            if not life.dead:
                starting.result()
                self.world.note(self.name, f"is up, incarnation {life.node.us.incarnation.hex()[:6]}")
            await life.ended.wait()
            if life.tasks:
                _, left = await asyncio.wait(list(life.tasks), timeout=10)
                self.world.violations += [f"{self.name}: does not end when cancelled: {task}" for task in left]
            await life.runner.close()
            await asyncio.sleep(0 if self.world.healed else self.downtime)
            if self.going_back:
                self._go_back()

    # --- a restore ----------------------------------------------------------------------------------------------------
    def take_copy(self) -> None:
        """Between two transactions: none is open while the loop does something else."""
        self.copy = {file.name: file.read_bytes() for file in self.folder.glob("roost.db*") if file.suffix != ".db-shm"}
        self.world.note(self.name, "is copied")

    def set_back(self, told: bool) -> None:
        """The disk is lost and the copy takes its place; `told`: by `roost restore`, which says so to the node."""
        if not self.copy:
            return
        self.going_back, self.told = True, told
        if self.life is not None and not self.life.dead:
            self.life.crash("loses its disk")

    def _go_back(self) -> None:
        before = self._events(self.folder)
        for file in self.folder.glob("roost.db*"):
            file.unlink()
        for name, content in self.copy.items():
            (self.folder / name).write_bytes(content)
        elsewhere = [self._events(host.folder) for host in self.world.hosts.values() if host is not self]
        self.lost |= before.difference(self._events(self.folder), *elsewhere)
        self.going_back, self.old = False, True
        self.world.note(self.name, f"is set back; {len(self.lost)} events are lost for good")
        self.world.tasks.append(asyncio.ensure_future(self._accept()))

    @staticmethod
    def _events(folder: Path) -> set[bytes]:
        with closing(sqlite3.connect(folder / "roost.db")) as store:
            return {event for (event,) in store.execute("SELECT event FROM events WHERE refused = ''")}

    async def _accept(self) -> None:
        """The administrator: hears from the node that it is held, or knows; and accepts."""
        wait = 0 if self.told else KNOWS_S
        while True:
            await asyncio.sleep(1)
            wait -= 1
            if self.life is None or not self.life.up:
                continue
            node = self.life.node
            try:
                if not node.held and wait <= 0:
                    await self.life.spawn(hold(node, "the administrator knows"))
                if node.held:
                    self.world.note(self.name, f"is held: {node.held}")
                    await self.life.spawn(accept(node))
                    self.restores, self.old = self.restores + 1, False
                    self.world.note(self.name, "was accepted")
                    return
            except (ApiError, StoreFailed, asyncio.CancelledError):
                continue  # no room, or it died meanwhile

    def connect(self) -> Channel:
        """A client's connection to the life that is up now."""
        if self.life is None or not self.life.up:
            raise ChannelClosed("nobody listens")
        channel = self.life.context.run(self.life.node.connect_inside)
        self.doors.append(channel)
        return channel

    async def furnish(self, users: list[str], peers: "list[Host]") -> None:
        """Accounts and neighbours, before anything breaks."""
        assert self.life is not None
        for user in users:
            await self.life.node.create_user(user, "secret")
        for peer in peers:
            await self.decide(peer, "accepted")

    async def decide(self, peer: "Host", state: str) -> None:
        """The administrator does, if the node is there to be told and has room to write it down."""
        if self.life is not None and self.life.up:
            change = ChangePeer(peer.keys.identity.node, state, peer.name, (peer.address,))
            with suppress(ApiError, StoreFailed):
                await self.life.node.store.submit(change)
