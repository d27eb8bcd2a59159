"""What will happen in one run, drawn from its seed before it starts: who is there, who writes, what breaks when."""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

POINTS = ("before commit", "after commit", "received", "acknowledged")
KINDS = ("crash at",) * 3 + ("crash", "stop", "cut", "half-open", "partition", "blackhole", "client")
NAMES = ("ash.sim", "birch.sim", "cedar.sim")


class Writes(NamedTuple):
    at: float
    client: int
    to: str
    key: str


class Fault(NamedTuple):
    """`point`, `other` and `seconds` mean something for some kinds only."""

    at: float
    kind: str
    host: str
    other: str
    seconds: float
    point: str
    count: int


@dataclass(frozen=True)
class Plan:
    hosts: tuple[str, ...]
    users: tuple[tuple[str, str, int], ...]  # (user, host, device number)
    writes: tuple[Writes, ...]
    faults: tuple[Fault, ...]
    seconds: float
    skew_ms: dict[str, int]
    cap_ms: int
    disk_s: float
    forget_answer: float
    forget_feed: float
    window_events: int


def draw(chance: Random) -> Plan:
    """Two or three nodes, one or two users on each, a busy minute."""
    hosts = NAMES[: chance.choice((2, 2, 2, 3))]
    users: list[tuple[str, str, int]] = []
    for host in hosts:
        for user in ("ann", "bob")[: chance.choice((1, 1, 1, 2))]:
            users.append((user, host, 1))
    if chance.random() < 0.3:
        users.append((*users[chance.randrange(len(users))][:2], 2))
    seconds = chance.uniform(10, 50)
    skew = {host: chance.randint(-3000, 3000) for host in hosts}
    if chance.random() < 0.1:
        skew[hosts[0]] = chance.choice((-1, 1)) * 400_000
    return Plan(
        hosts, tuple(users), _writes(chance, users, seconds), _faults(chance, hosts, seconds), seconds, skew,
        chance.choice((2_000, 20_000, 60_000)), chance.choice((0.0005, 0.01, 0.2)),
        chance.choice((0, 0.1)), chance.choice((0, 0.1)), chance.choice((1, 3, 256)),
    )  # fmt: skip


def _writes(chance: Random, users: list[tuple[str, str, int]], seconds: float) -> tuple[Writes, ...]:
    """Bursts: what races is what is written together. Few pairs talk, so that logs get long."""
    addresses = sorted({f"{user}@{host}" for user, host, _ in users})
    friends = {a: chance.sample([b for b in addresses if b != a], min(2, len(addresses) - 1)) for a in addresses}
    moments = [chance.uniform(0, seconds) for _ in range(6)]
    writes = []
    for number in range(chance.randint(8, 15)):
        client = chance.randrange(len(users))
        me = f"{users[client][0]}@{users[client][1]}"
        to = chance.choice(friends[me])
        if chance.random() < 0.03:
            to = f"nobody@{to.partition('@')[2]}"
        at = chance.choice(moments) + chance.choice((0, 0.01, 0.5)) * chance.random()
        writes.append(Writes(at, client, to, f"m{number}"))
    return tuple(sorted(writes))


def _faults(chance: Random, hosts: tuple[str, ...], seconds: float) -> tuple[Fault, ...]:
    faults = []
    for _ in range(chance.randint(3, 6)):
        host, other = chance.sample(hosts, 2)
        faults.append(
            Fault(
                chance.uniform(0, seconds), chance.choice(KINDS), host, other,
                chance.choice((0.05, 3.0, 20.0)) * chance.random() + 0.01, chance.choice(POINTS), chance.randint(1, 4),
            )
        )  # fmt: skip
    return tuple(sorted(faults))
