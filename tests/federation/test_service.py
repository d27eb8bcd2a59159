"""The shell around the link: who dials when, which link stays, how it ends. Time is a number; nothing sleeps."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from federation import memory, wire
from federation.event import Signed
from federation.identity import Identity, NodeKey, check_chain, new_chain
from federation.ids import Log
from federation.link import Link, Met, Output, Send, Settings, Standing, Us
from federation.ports import Channel, ChannelClosed
from federation.running import Ask, Found, Known, Look
from federation.service import Service

CAP_MS = 60_000
CHANCE = 0.5
WAIT_S = 5.0  # no test waits this long unless something is broken


def us(number: int, node_order: int = 0) -> Us:
    """Node ids are hashes, so an order among them is looked for: `node_order` picks by the first byte."""
    for salt in itertools.count():
        key = NodeKey(bytes([number]) * 32)
        chain = new_chain(key, key.public, salt.to_bytes(32, "big"))
        node = check_chain(chain).node
        if node_order == 0 or (node[0] < 128) == (node_order < 0):
            return Us(chain, key, node, f"n{number}.test", bytes([number]) * 16, ())
    raise AssertionError


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000_000
        self._drawn = itertools.count()

    def monotonic_ms(self) -> int:
        return self.ms

    def wall_ms(self) -> int:
        return self.ms

    def chance(self) -> float:
        return CHANCE

    def random(self, size: int) -> bytes:
        return next(self._drawn).to_bytes(size, "big")


class Host:
    """Peers, logs and what happened, in dictionaries; `changed` is set whenever anything happens."""

    def __init__(self, own: bytes) -> None:
        self.own = own
        self.peers: dict[bytes, Known] = {}
        self.lights: list[tuple[bytes, str]] = []
        self.logs: dict[Log, list[Signed]] = {}
        self.acks: dict[Log, int] = {}
        self.received: list[tuple[bytes, Log, int]] = []
        self.changed = asyncio.Event()
        self.may_commit_acks = asyncio.Event()
        self.may_commit_acks.set()
        self.held_of: dict[bytes, wire.Newest] = {}
        self.shown_to: list[wire.Newest] = []
        self.may_look = asyncio.Event()
        self.may_look.set()
        self.well = True
        self.recalls: list[wire.Recall] = []
        self.to_ask: list[wire.Recall] = []
        self.answers: list[wire.Recalled] = []
        self.signs: list[wire.Ephemeral] = []

    def known(self) -> Sequence[Known]:
        return list(self.peers.values())

    async def meet(self, identity: Identity, hello: wire.Hello, remote: str) -> Standing:
        await asyncio.sleep(0)  # a real host waits for its commit
        known = self.peers.get(identity.node)
        return known.state if known else "pending"

    async def pending(self, peer: bytes, look: Look) -> Found:
        room, segments, more = look.events, [], False
        for log, events in self.logs.items():
            after = max(self.acks.get(log, 0), look.sent.get(log, 0))
            run = events[after : after + min(room, wire.EVENTS_MAX)]
            room -= len(run)
            more = more or after + len(run) < len(events)
            if run:
                segments.append(wire.Segment(*log, after + 1, (), tuple(run)))
        await asyncio.sleep(0)
        return Found(segments, b"", more)

    async def receive(self, peer: bytes, segment: wire.Segment) -> wire.LogAck:
        await asyncio.sleep(0)
        log = Log(segment.conversation, segment.origin, segment.incarnation)
        self.received += [(peer, log, segment.first + i) for i in range(len(segment.events))]
        self.changed.set()
        return wire.LogAck(*log, segment.first + len(segment.events) - 1)

    async def acked(self, peer: bytes, ack: wire.LogAck) -> int:
        await self.may_commit_acks.wait()
        self.acks[Log(ack.conversation, ack.origin, ack.incarnation)] = ack.seq
        self.changed.set()
        return ack.seq

    async def newest(self, peer: bytes) -> wire.Newest | None:
        return self.held_of.get(peer)

    async def shown(self, peer: bytes, newest: wire.Newest) -> bool:
        self.shown_to.append(newest)
        await self.may_look.wait()
        return self.well

    def restored(self) -> bool:
        return bool(self.to_ask)

    async def recalled(self, peer: bytes, recall: wire.Recall) -> wire.Recalled:
        self.recalls.append(recall)
        for log in self.acks:
            self.acks[log] = 0
        return wire.Recalled(recall.upto, len(self.acks))

    async def heal(self, peer: bytes, ask: Ask) -> None:
        for recall in self.to_ask:
            self.answers.append(await ask(recall))
            self.changed.set()

    def passed(self, peer: bytes, signs: Sequence[wire.Ephemeral]) -> None:
        self.signs += signs
        self.changed.set()

    def light(self, peer: bytes, state: str, since_ms: int) -> None:
        self.lights.append((peer, state))
        self.changed.set()

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not true():
                self.changed.clear()
                await self.changed.wait()


Rule = Callable[[], Awaitable[None]]


class Net:
    """Nodes on memory channels. `rules[name]` runs before a call to that name goes through, and may refuse it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.nodes: dict[str, Node] = {}
        self.rules: dict[str, Rule] = {}
        self.accepting: set[asyncio.Task[None]] = set()
        self.pairs: list[tuple[memory.MemoryChannel, memory.MemoryChannel]] = []

    def node(self, who: Us) -> "Node":
        node = self.nodes[who.name] = Node(self, who)
        return node

    async def dial(self, address: str, timeout: float) -> Channel:
        name = address.partition(":")[0]
        if name in self.rules:
            await self.rules[name]()
        ours, theirs = memory.pair()
        self.pairs.append((ours, theirs))
        self.accepting.add(asyncio.ensure_future(self.nodes[name].service.accept(theirs)))
        return ours

    @property
    def serving(self) -> int:
        return sum(not task.done() for task in self.accepting)


class Node:
    def __init__(self, net: Net, who: Us) -> None:
        self.us, self.id = who, who.node
        self.host = Host(who.node)
        self.service = Service(who, self.host, net.clock, net.dial, Settings(), CAP_MS)

    def knows(self, other: "Node", state: Standing = "accepted", dials: bool = True) -> None:
        addresses = (f"{other.us.name}:7701",) if dials else ()
        self.host.peers[other.id] = Known(other.id, other.us.name, state, addresses)

    def up(self, other: "Node") -> bool:
        link = self.service.links.get(other.id)
        return link is not None and link.state.up

    async def until_up(self, other: "Node") -> None:
        await self.host.until(lambda: self.up(other))


@asynccontextmanager
async def running(net: Net) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(node.service.run()) for node in net.nodes.values()]
    try:
        yield
    finally:
        for node in net.nodes.values():
            await node.service.stop()
        for task in [*tasks, *net.accepting]:
            task.cancel()
        await asyncio.gather(*tasks, *net.accepting, return_exceptions=True)


async def quiet() -> None:
    """Let everything that can run without time passing run."""
    for _ in range(300):
        await asyncio.sleep(0)


def events(count: int, body_bytes: int = 20) -> list[Signed]:
    return [Signed(b"h%d" % i, bytes(64), b"x" * body_bytes) for i in range(count)]


def log_of(node: Node, number: int = 0) -> Log:
    return Log(bytes([number]) * 32, node.id, node.us.incarnation)


async def test_a_dialled_link_carries_events_and_their_acknowledgements() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    a.host.logs[log_of(a)] = events(3)
    async with running(net):
        await a.host.until(lambda: a.host.acks.get(log_of(a)) == 3)
        assert b.up(a)
        assert b.host.received == [(a.id, log_of(a), n) for n in (1, 2, 3)]
        b.host.logs[log_of(b)] = events(2)
        b.service.poke(a.id)
        await b.host.until(lambda: b.host.acks.get(log_of(b)) == 2)
        assert a.host.received == [(b.id, log_of(b), n) for n in (1, 2)]
        assert ("up" in [state for _, state in a.host.lights], len(net.pairs)) == (True, 1)


async def test_more_than_a_frame_and_a_window_of_work_arrives_once_and_whole() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    for number in range(12):
        a.host.logs[log_of(a, number)] = events(14, 60_000)  # 840 kB a log, 10 MB in all
    async with running(net):
        await a.host.until(lambda: len(a.host.acks) == 12 and set(a.host.acks.values()) == {14})
    assert len(net.pairs) == 1
    assert sorted(b.host.received) == [(a.id, log_of(a, n), s) for n in range(12) for s in range(1, 15)]


async def test_what_was_acknowledged_is_not_sent_again_while_the_acknowledgement_is_stored() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    a.host.may_commit_acks.clear()
    a.host.logs[log_of(a)] = events(3)
    async with running(net):
        await b.host.until(lambda: b.host.received)
        await quiet()
        a.host.logs[log_of(a)] += events(1)
        a.service.poke(b.id)
        await quiet()
        a.host.may_commit_acks.set()
        await a.host.until(lambda: a.host.acks.get(log_of(a)) == 4)
        await quiet()
    assert [seq for _, _, seq in b.host.received] == [1, 2, 3, 4]


@pytest.mark.parametrize("smaller", [0, 1])
@pytest.mark.parametrize("first", [0, 1, None], ids=["a first", "b first", "together"])
async def test_of_two_calls_at_once_one_link_stays_on_both_sides(smaller: int, first: int | None) -> None:
    net = Net()
    a, b = net.node(us(1, 1 if smaller else -1)), net.node(us(2, -1 if smaller else 1))
    a.knows(b)
    b.knows(a)
    begun, gates = asyncio.Barrier(2), {a: asyncio.Event(), b: asyncio.Event()}

    def rule(caller: Node) -> Rule:
        async def wait() -> None:
            if len(net.pairs) < 2:
                await begun.wait()
                await gates[caller].wait()

        return wait

    net.rules = {b.us.name: rule(a), a.us.name: rule(b)}
    async with running(net):
        for node in ((a, b) if first == 0 else (b, a)) if first is not None else ():
            gates[node].set()
            await quiet()
        for gate in gates.values():
            gate.set()
        await a.host.until(lambda: len(net.pairs) == 2)
        await quiet()
        assert len(net.pairs) == 2  # nobody had to call again
        assert net.serving == 1
        assert a.up(b)
        assert b.up(a)
        dialler, called = (b, a) if smaller else (a, b)
        assert dialler.service.links[called.id].state.dialled
        assert not called.service.links[dialler.id].state.dialled
        a.host.logs[log_of(a)] = events(1)
        a.service.poke(b.id)
        await a.host.until(lambda: a.host.acks.get(log_of(a)) == 1)


async def test_a_peer_that_restarted_replaces_its_old_link() -> None:
    net = Net()
    low, high = us(1, -1), us(2, 1)
    a, b = net.node(low), net.node(high)
    a.knows(b)
    b.knows(a, dials=False)
    async with running(net):
        await a.until_up(b)
        again = net.node(high._replace(incarnation=b"n" * 16))  # a calls b, and the smaller id's calls win
        again.knows(a)
        restarted = asyncio.ensure_future(again.service.run())
        await again.until_up(a)
        await quiet()
        assert a.up(again)
        assert not a.service.links[b.id].state.dialled
        await again.service.stop()
        restarted.cancel()
        await asyncio.gather(restarted, return_exceptions=True)


class Deaf:
    """A rule under which nobody answers; counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self) -> None:
        self.calls += 1
        raise ChannelClosed("no answer")


async def fail(net: Net, node: Node, peer: Node, failures: int) -> int:
    """Wait for one more failed call; returns the wait it brought, and lets it pass."""
    await node.host.until(
        lambda: peer.id in node.service.backoffs and node.service.backoffs[peer.id].failures == failures
    )
    wait_ms = node.service.backoffs[peer.id].next_ms - net.clock.ms
    net.clock.ms += wait_ms
    return wait_ms


async def test_the_back_off_grows_to_its_cap_and_is_waited_out() -> None:
    net, deaf = Net(), Deaf()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    net.rules[b.us.name] = deaf
    async with running(net):
        for failures in range(1, 11):
            waited_ms = await fail(net, a, b, failures)
            ceiling = min(CAP_MS, 1000 << (failures - 1))
            assert waited_ms == int(ceiling * (0.1 + 0.9 * CHANCE))
            net.clock.ms -= 1
            a.service.poke(b.id)
            await quiet()
            assert deaf.calls == failures  # not a ms too early
            net.clock.ms += 1
            a.service.poke(b.id)
        assert "no answer" in a.service.backoffs[b.id].reason


async def test_a_call_from_the_peer_resets_the_back_off_and_stops_our_calls() -> None:
    net, deaf = Net(), Deaf()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    net.rules[b.us.name] = deaf
    async with running(net):
        for failures in range(1, 6):
            await fail(net, a, b, failures)
            a.service.poke(b.id)
        await a.host.until(lambda: a.service.backoffs[b.id].failures == 6)
        b.knows(a)
        b.service.peers_changed()
        await a.until_up(b)
        assert a.service.backoffs[b.id].failures == 0
        assert a.service.backoffs[b.id].next_ms == 0
        before = deaf.calls
        net.clock.ms += CAP_MS
        a.service.poke(b.id)
        a.service._wake.set()
        await quiet()
        assert deaf.calls == before


async def test_a_peer_that_blocks_us_is_called_ever_less_often() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, "blocked")
    async with running(net):
        waits = []
        for failures in range(1, 9):
            waits.append(await fail(net, a, b, failures))
            a.service.poke(b.id)
        assert waits[-1] == int(CAP_MS * (0.1 + 0.9 * CHANCE))
        assert "does not link" in a.service.backoffs[b.id].reason


async def test_an_administrators_change_does_not_wait_out_the_back_off() -> None:
    net, deaf = Net(), Deaf()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    net.rules[b.us.name] = deaf
    async with running(net):
        await a.host.until(lambda: deaf.calls and a.service.backoffs[b.id].failures)
        del net.rules[b.us.name]
        a.service.peers_changed()
        await a.until_up(b)


async def test_an_acceptance_brings_a_waiting_link_up() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    async with running(net):
        await a.host.until(lambda: net.pairs)
        await quiet()
        assert a.id in b.service.links
        assert not a.up(b)
        b.knows(a, dials=False)
        b.service.peers_changed()
        await a.until_up(b)
        assert len(net.pairs) == 1


async def test_a_stranger_leaves_nothing_behind() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    async with running(net):
        await a.host.until(lambda: net.pairs)
        await quiet()
        assert a.id in b.service.links
        net.pairs[0][0].cut()
        await b.host.until(lambda: a.id not in b.service.links)
        assert not b.service.backoffs


async def test_blocking_a_peer_closes_its_link_at_once() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b, dials=False)
    b.knows(a)
    async with running(net):
        await b.until_up(a)
        a.knows(b, "blocked")
        a.service.peers_changed()
        await b.host.until(lambda: b.host.lights[-1] == (a.id, "down"))
        await quiet()
        assert not a.service.links
        assert not b.service.links
        assert net.serving == 0
        assert "does not link" in b.service.backoffs[a.id].reason


async def test_a_cut_link_is_dialled_again() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    async with running(net):
        await a.until_up(b)
        net.pairs[0][0].cut()
        await fail(net, a, b, 1)
        assert "connection lost" in a.service.backoffs[b.id].reason
        a.service.poke(b.id)
        await a.until_up(b)
        assert len(net.pairs) == 2


async def test_two_nodes_that_dial_each_other_pause_after_their_link_broke() -> None:
    """Else a fault that ends every link is tried again as fast as the machine can."""
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a)
    async with running(net):
        await a.until_up(b)
        await b.until_up(a)
        await quiet()
        links = len(net.pairs)
        for ours, _ in net.pairs:
            ours.cut()
        await quiet()
        assert len(net.pairs) == links
        assert min(n.service.backoffs[p.id].next_ms for n, p in ((a, b), (b, a))) > net.clock.ms


async def test_stop_says_goodbye_and_leaves_nothing_behind() -> None:
    net = Net()
    a, b, c = net.node(us(1)), net.node(us(2)), net.node(us(3))
    a.knows(c)  # a link that a dialled and one that it was called on
    a.knows(b)
    b.knows(a)
    c.knows(a, dials=False)

    async def a_does_not_get_through() -> None:
        raise ChannelClosed("no way")

    net.rules[b.us.name] = a_does_not_get_through
    before = asyncio.all_tasks()
    runs = [asyncio.ensure_future(n.service.run()) for n in (a, b, c)]
    await a.until_up(b)
    await a.until_up(c)
    calls = len(net.pairs)
    net.rules[a.us.name] = Deaf()
    await a.service.stop()
    await b.host.until(lambda: a.id not in b.service.links)
    await c.host.until(lambda: a.id not in c.service.links)
    await b.host.until(lambda: b.service.backoffs[a.id].failures)
    assert "the node is stopping" in b.service.backoffs[a.id].reason
    a.service.peers_changed()  # a hint that comes too late
    a.service.poke(b.id)
    await quiet()
    assert len(net.pairs) == calls  # a node that stops calls nobody
    assert not a.service.links
    ours, theirs = memory.pair()
    await a.service.accept(theirs)  # and takes no call
    assert await ours.recv() == []
    for task in runs[1:]:
        task.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    await asyncio.gather(b.service.stop(), c.service.stop())
    await asyncio.gather(*net.accepting)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(("bound", "most"), [("RECEIVING_EVENTS_MAX", 4), ("RECEIVING_BYTES_MAX", 1000)])
async def test_a_peer_that_ignores_its_window_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    monkeypatch.setattr(f"federation.running.{bound}", most)
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    a.host.logs[log_of(a)] = events(4, most // 5)
    async with running(net):
        await a.host.until(lambda: a.host.acks.get(log_of(a)) == 4)
        a.host.logs[log_of(a)] += events(5, most // 4)
        a.service.poke(b.id)
        await a.host.until(lambda: not a.up(b))
        await quiet()
        assert "more unacknowledged events" in a.service.backoffs[b.id].reason


async def unread(net: Net, a: Node) -> memory.MemoryChannel:
    """A peer of `a` that stops reading once the link is up, and `a` with more for it than the channel takes."""
    ours, theirs = memory.pair()
    net.accepting.add(asyncio.ensure_future(a.service.accept(theirs)))
    link = Link(us(2), ours.binding, True, bytes(32), net.clock.ms, Settings(), a.id)

    async def carry(outputs: Sequence[Output]) -> None:
        for out in outputs:
            if isinstance(out, Send):
                await ours.send(wire.encode(out.frame))
            elif isinstance(out, Met):
                await carry(link.stand("accepted"))

    await carry(link.start())
    while not link.up:
        for raw in await ours.recv():
            await carry(link.feed(wire.decode(raw), net.clock.ms))
    a.host.logs[log_of(a)] = events(8, 60_000)
    a.service.poke(us(2).node)
    await quiet()
    assert ours._in.bytes > memory.BACKLOG_BYTES_MAX
    return ours


async def test_a_node_that_is_held_back_still_reads() -> None:
    """Two that both have much to say would else wait for each other, each with a ping to answer, for ever."""
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b, dials=False)
    async with running(net):
        channel = await unread(net, a)
        segment = wire.Segment(*log_of(b), 1, (), tuple(events(1)))
        await channel.send(wire.encode(wire.Ping(1)), wire.encode(wire.Events((segment,))))
        await a.host.until(lambda: a.host.received)


async def test_a_peer_that_neither_reads_nor_speaks_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.service = Service(a.us, a.host, net.clock, None, Settings(ping_ms=10, dead_after_ms=50), CAP_MS)
    a.knows(b, dials=False)
    async with running(net):
        channel = await unread(net, a)
        ticks = itertools.count(net.clock.ms)  # a ms a look; the first ping waits behind the rest
        monkeypatch.setattr(net.clock, "monotonic_ms", lambda: next(ticks))
        await a.host.until(lambda: not a.service.links)
        assert channel._in.broken or channel._in.ended


async def test_stopping_does_not_wait_for_a_peer_that_does_not_read() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b, dials=False)
    async with running(net):
        await unread(net, a)
        async with asyncio.timeout(WAIT_S):
            await a.service.stop()


def newest(node: Node) -> wire.Newest:
    return wire.Newest(b"a header of " + node.us.name.encode(), bytes(64))


async def test_nothing_flows_before_what_the_other_side_shows_was_looked_at() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    b.host.held_of[a.id] = newest(a)
    a.host.logs[log_of(a)] = events(1)
    a.host.may_look.clear()
    async with running(net):
        await b.host.until(lambda: b.service.links.get(a.id))
        await quiet()
        assert a.host.shown_to == [newest(a)]
        assert (b.host.received, a.up(b)) == ([], False)
        a.host.may_look.set()
        await a.host.until(lambda: a.host.acks.get(log_of(a)) == 1)


async def test_a_link_that_is_not_up_when_the_node_is_held_does_not_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    real = a.host.meet

    async def meet(identity: Identity, hello: wire.Hello, remote: str) -> Standing:
        await a.service.hold()  # another peer has just proved that it must be
        return await real(identity, hello, remote)

    monkeypatch.setattr(a.host, "meet", meet)
    async with running(net):
        await a.host.until(lambda: {"up", "down"} & {state for _, state in a.host.lights})
        assert (b.id, "up") not in a.host.lights
        assert not a.service.links


async def test_a_node_that_is_an_old_copy_ends_the_link_and_says_why() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    b.host.held_of[a.id] = newest(a)
    a.host.well = False
    async with running(net):
        await b.host.until(lambda: "down" in [state for _, state in b.host.lights])
        await quiet()
        assert not a.service.links
        assert not a.up(b)
    assert "up" not in [state for _, state in a.host.lights]


async def test_a_held_node_neither_calls_nor_answers_until_it_is_released() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a)
    async with running(net):
        await a.until_up(b)
        await a.service.hold()
        await quiet()
        assert not a.service.links
        assert "old copy" in b.service.backoffs[a.id].reason
        calls = len(net.pairs)
        b.service.peers_changed()
        await b.host.until(lambda: len(net.pairs) > calls and not b.service.links and net.serving == 0)
        assert not a.service.links
        a.service.release()
        await a.until_up(b)


async def test_a_recall_is_answered_and_what_was_acknowledged_goes_out_again() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    a.host.logs[log_of(a)] = events(2)
    async with running(net):
        await a.host.until(lambda: a.host.acks.get(log_of(a)) == 2)
    b.host.to_ask = [wire.Recall("mine", b"", bytes(16), ()), wire.Recall("yours", bytes(16), b"\xff" * 16, ())]
    again = Net()
    a2, b2 = again.node(a.us), again.node(b.us)
    a2.host, a2.service._host, b2.host, b2.service._host = a.host, a.host, b.host, b.host
    async with running(again):
        await b.host.until(lambda: len(b.host.answers) == 2)
        await b.host.until(lambda: len(b.host.received) >= 4)
    assert a.host.recalls == b.host.to_ask
    assert b.host.answers == [wire.Recalled(bytes(16), 1), wire.Recalled(b"\xff" * 16, 1)]


async def test_a_peer_is_called_back_where_its_hello_says_and_not_at_once_again() -> None:
    """PROTOCOL.md 5.13."""
    net = Net()
    a = net.node(us(1)._replace(addresses=("n1.test:7701", "gone.test:7701")))
    b = net.node(us(2))

    async def gone() -> None:
        raise ChannelClosed("nobody there")

    net.rules["gone.test"] = gone
    a.knows(b)
    b.knows(a, dials=False)
    async with running(net):
        await a.until_up(b)
        calls = len(net.pairs)
        _, probed = await a.service.links[b.id].probe()
        assert list(probed.calls) == [
            ("n1.test:7701", ""), ("gone.test:7701", "nobody there"),
        ]  # fmt: skip
        assert len(net.pairs) == calls + 1
        _, probed = await a.service.links[b.id].probe()
        assert probed.calls == ()
        assert b.service.refused["call backs"] == 1
        one, other = await asyncio.gather(a.service.links[b.id].probe(), a.service.links[b.id].probe())
        assert one == other, "one question at a time"
        assert a.up(b)


async def test_a_second_probe_before_the_answer_ends_the_link() -> None:
    net = Net()
    a, b = net.node(us(1)), net.node(us(2))
    a.knows(b)
    b.knows(a, dials=False)
    async with running(net):
        await a.until_up(b)
        link = a.service.links[b.id]
        await link._channel.send(wire.encode(wire.Probe(1)), wire.encode(wire.Probe(2)))
        with pytest.raises(ChannelClosed):
            await link.probe()
        assert b.service.refused["probes"] == 1


async def test_another_node_at_one_address_does_not_hide_the_next() -> None:
    """A peer's old address belongs to somebody else now (PROTOCOL.md 5.11)."""
    net = Net()
    a, b, c = net.node(us(1)), net.node(us(2)), net.node(us(3))
    a.knows(b)
    a.host.peers[b.id] = a.host.peers[b.id]._replace(addresses=("n3.test:7701", "n2.test:7701"))
    b.knows(a, dials=False)
    c.knows(a, dials=False)
    async with running(net):
        await a.until_up(b)
        assert c.id not in a.service.links
