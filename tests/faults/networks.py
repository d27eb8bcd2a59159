"""N1 to N4, N8, N9: lines that lose, delay, repeat, damage, cut, narrow and move what two nodes say to each other."""

import asyncio
import statistics
import time

from tests.faults.nets import NetTown
from tests.faults.person import Person
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


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def _unharmed(town: Town) -> None:
    """Nothing of the line got through to what reads frames."""
    for node in town.nodes.values():
        assert "refused" not in node.said(), node.said()
        assert "Traceback" not in node.said(), node.said()


async def n1(town: Town, whole: bool) -> None:
    """Loss both ways, at last three of ten."""
    net = _net(town).net
    people = await _people(town)
    for loss, most_s in ((0.01, 5), (0.1, 10), (0.3, 60)) if whole else ((0.1, 10),):
        await net.set(loss=loss)
        before = await net.seen()
        took = await _talk(people, 40 if whole else 3)
        assert _p99(took) < most_s, (loss, took)
        after = await net.seen()
        assert after["lost"] > before["lost"]
        print(loss, len(took), _p99(took), max(took), before, after)
        town.rounds += 1
    _unharmed(town)


async def n2(town: Town, whole: bool) -> None:
    """Late, out of order, twice, and damaged so that only QUIC can tell."""
    net = _net(town).net
    people = await _people(town)
    await net.set(delay_ms=200, jitter_ms=50, reorder=0.25, duplicate=0.05, corrupt=0.01 if whole else 0.05)
    before = await net.seen()
    took = await _talk(people, 60 if whole else 4)
    after = await net.seen()
    print(len(took), _p99(took), max(took), before, after)
    town.rounds += 1
    _unharmed(town)


async def n3(town: Town, whole: bool) -> None:
    """One way is cut: both sides say so, and both find back."""
    net = _net(town).net
    people = await _people(town)
    for way in ("ab", "ba"):
        await net.set(way, cut=True)
        cut = time.monotonic()
        await asyncio.gather(*(_net(town).links(name, "down", 35) for name in "ab"))
        print("down", time.monotonic() - cut)
        people[0].write(people[1].address, 5)
        people[1].write(people[0].address, 5)
        await net.set(way)
        healed = time.monotonic()
        await asyncio.gather(*(_net(town).links(name, "up", 60) for name in "ab"))
        print("up", time.monotonic() - healed)
        await _arrived(people, 60)
        town.rounds += 1
    _unharmed(town)
