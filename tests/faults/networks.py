"""N1 to N4, N8, N9: lines that lose, delay, repeat, damage, cut, narrow and move what two nodes say to each other."""

import asyncio
import statistics
import time
from typing import Any

from tests.faults.nets import Net, NetTown
from tests.faults.person import Person, Wrong
from tests.faults.town import Town

USERS = {"a": "ann", "b": "ben", "c": "cem"}


def _net(town: Town) -> NetTown:
    assert isinstance(town, NetTown)
    return town


async def _people(town: Town) -> list[Person]:
    return [await town.person(USERS[name], name) for name in town.nodes]


async def _talk(people: list[Person], seconds: float, most_s: float = 60, few: int = 3) -> list[float]:
    """Everybody writes to everybody until the time is over, a few more whenever all is there; how long each took."""
    until = time.monotonic() + seconds
    start = [len(person.attempts) for person in people]
    while time.monotonic() < until:
        for person in people:
            for other in people:
                if other is not person:
                    person.write(other.address, few)
        await _arrived(people, most_s)
    return [s for person, n in zip(people, start, strict=True) for s in _took(person, people, n)]


async def _arrived(people: list[Person], most_s: float) -> None:
    await asyncio.gather(*(person.answered(most_s) for person in people))
    for person in people:
        await person.has([a.event for other in people for a in other.attempts if a.to == person.address], most_s)


def _took(writer: Person, people: list[Person], first: int = 0) -> list[float]:
    """Seconds from writing to arrival on the other node."""
    at = {person.address: person for person in people}
    return [at[a.to].when_s[a.event] - a.wrote_s for a in writer.attempts[first:]]


def _in_time(took: list[float], most_s: float) -> None:
    if (p99 := sorted(took)[len(took) * 99 // 100]) > most_s:
        raise Wrong(f"one of a hundred takes longer than {p99:.1f} s")


def _unharmed(town: Town) -> None:
    """Nothing of the line got through to what reads frames."""
    for node in town.nodes.values():
        assert "refused" not in node.said(), node.said()
        assert "Traceback" not in node.said(), node.said()


async def _stood(net: Net, before: dict[str, int], calls: int) -> None:
    """The links stood: not more than so many calls, which may replace one another, since then."""
    after = await net.seen()
    made = sum(after[kind] - before[kind] for kind in ("quic calls", "tcp calls"))
    if made > calls:
        raise Wrong(f"{made} calls: the links do not stand")


async def n1(town: Town, whole: bool) -> None:
    """Loss both ways, at last three of ten."""
    net = _net(town).net
    people = await _people(town)
    for loss, most_s in ((0.01, 5), (0.1, 10), (0.3, 60)) if whole else ((0.1, 10),):
        before = await net.set(loss=loss)
        _in_time(await _talk(people, 25 if whole else 3, 2 * most_s), most_s)
        assert (await net.seen())["lost"] > before["lost"]
        await _stood(net, before, len(people))
        town.rounds += 1
    _unharmed(town)


async def n2(town: Town, whole: bool) -> None:
    """Late, out of order, twice, and damaged so that only QUIC can tell."""
    net = _net(town).net
    people = await _people(town)
    before = await net.set(delay_ms=200, jitter_ms=50, reorder=0.25, duplicate=0.05, corrupt=0.01 if whole else 0.05)
    _in_time(await _talk(people, 30 if whole else 3, 20), 10)
    after = await net.seen()
    assert all(after[what] > before[what] for what in ("early", "doubled", "damaged")), after
    await _stood(net, before, 1)
    town.rounds += 1
    _unharmed(town)


async def n3(town: Town, whole: bool) -> None:
    """One way is cut: both sides say so, and both find back."""
    net = _net(town).net
    people = await _people(town)
    for way in ("ab", "ba"):
        await net.set(way, cut=True)
        await _both(town, "down", 35 if whole else 12)
        people[0].write(people[1].address, 5)
        people[1].write(people[0].address, 5)
        await net.set(way)
        await _both(town, "up", 60)
        await _arrived(people, 60)
        town.rounds += 1
    _unharmed(town)


async def _both(town: Town, wanted: str, seconds: float) -> list[dict[str, Any]]:
    """What a and b say of their link, once both say what is wanted."""
    found = await asyncio.gather(*(_net(town).links(name, wanted, seconds) for name in "ab"))
    return [peers[0] for peers in found]


async def n4(town: Town, whole: bool) -> None:
    """The longest packet of a line changes under way; at last it is less than QUIC needs, and nobody says so."""
    net = _net(town).net
    people = await _people(town)
    for mtu in (1500, 1200, 1280):
        net.mtu(mtu)
        _in_time(await _talk(people, 10 if whole else 3), 10)
        town.rounds += 1
    net.mtu(1500)
    await net.set(mtu=1100)
    people[0].write(people[1].address, 100)
    people[1].write(people[0].address, 100)
    await _both(town, "down", 40)
    found = await _both(town, "up", 40)
    if not all("over QUIC" in peer["transport"] for peer in found):
        raise Wrong(f"they do not say why TCP carries the link: {found}")
    await _arrived(people, 60)
    town.rounds += 1
    _unharmed(town)


async def n8(town: Town, whole: bool) -> None:
    """The line comes and goes; then a NAT box in front of a gives it another port under way."""
    net = _net(town).net
    people = await _people(town)
    before = await net.set(flap_s=5)
    _in_time(await _talk(people, 40 if whole else 10), 15)
    await _stood(net, before, 2)
    town.rounds += 1
    await net.set("ab", nat=1000)
    await net.set("ba")
    a = town.nodes["a"]
    await a.stop()
    assert await a.serve(), a.said()
    await _both(town, "up", 60)
    before = await net.seen()
    for port in (1000, 2000, 3000):
        await net.set("ab", nat=port)
        await _talk(people, 5 if whole else 2, 15)
        town.rounds += 1
    await _stood(net, before, 0)
    _unharmed(town)


async def n9(town: Town, whole: bool) -> None:
    """A line of 64 kbit/s, full of what two have to say: what two others say does not wait behind it."""
    net = _net(town).net
    people = await _people(town)
    ada, bob = await town.person("ada", "a"), await town.person("bob", "b")
    await net.set(bits_per_s=64_000, queue_bytes=8000)
    people[0].write(people[1].address, 150, size=4000)
    await people[0].answered()
    for _ in range(30):
        ada.write(bob.address)
        await _arrived([ada, bob], 60)
    if all(a.event in people[1].arrived for a in people[0].attempts):
        raise Wrong("the line was not full to the end")
    took = _took(ada, [bob], 1)  # the first one meets a link that does not know its line yet
    _in_time(took, 5)
    if statistics.median(took) > 2:
        raise Wrong(f"half of it takes longer than {statistics.median(took):.1f} s")
    await _arrived(people, 180)
    town.rounds += 1
    _unharmed(town)
