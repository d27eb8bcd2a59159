"""What will happen in one run, drawn from its seed before it starts: who is there, who writes, what breaks when."""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

POINTS = ("before commit", "after commit", "received", "acknowledged")
KINDS = ("crash at",) * 3 + (
    *("crash", "stop", "cut", "half-open", "partition", "blackhole", "client", "block", "full"),
)
RESTORES = 0.2  # of all runs: a node's store is set back to an earlier moment
SAID = ("message",) * 6 + ("edit", "edit", "reaction", "delete", "pin")
BURST = 300  # messages at once: more than any window
NAMES = ("ash.sim", "birch.sim", "cedar.sim")


class Writes(NamedTuple):
    at: float
    client: int
    to: str
    key: str
    kind: str = "message"  # an act is about what its device has then; a message, where it has nothing


class Fault(NamedTuple):
    """`point`, `other` and `seconds` mean something for some kinds only; of a restore they say how old the copy is."""

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
    dawdle: float  # how often a device acknowledges only after a while
    window_events: int
    window_bytes: int
    ping_ms: int
    backlog: int  # bytes that a channel takes ahead of its reader
    mailbox: int  # messages that it holds
    patient: bool  # a device waits for an answer before it says more: what was refused for now is not overtaken


def draw(chance: Random) -> Plan:
    """Two or three nodes, one or two users on each, a busy minute."""
    hosts = NAMES[: chance.choice((2, 2, 2, 3))]
    users: list[tuple[str, str, int]] = []
    for host in hosts:
        for user in ("ann", "bob")[: chance.choice((1, 1, 1, 2))]:
            users.append((user, host, 1))
    for number in range(2, 2 + chance.choice((0, 0, 1, 2))):  # devices that read the same mailbox
        users.append((*users[chance.randrange(len(hosts))][:2], number))
    seconds = chance.uniform(10, 50)
    skew = {host: chance.randint(-3000, 3000) for host in hosts}
    if chance.random() < 0.1:
        skew[hosts[0]] = chance.choice((-1, 1)) * 400_000
    writes, faults = _writes(chance, users, seconds), _faults(chance, hosts, seconds)
    if chance.random() < RESTORES:
        at, host = chance.uniform(1, seconds), chance.choice(hosts)
        faults = tuple(
            sorted((*faults, Fault(at, "restore", host, "", chance.uniform(0.5, at), "", chance.randint(0, 1))))
        )
    mailbox = chance.choice((3, 500_000, 500_000, 500_000))
    patient = mailbox < BURST or any(fault.kind == "full" for fault in faults)
    window, window_bytes = chance.choice((1, 3, 256)), chance.choice((1_000, 4 << 20))
    ping, backlog = chance.choice((1_000, 10_000)), chance.choice((2_000, 256 << 10))
    if not patient and chance.random() < 0.2:
        writes = tuple(sorted((*writes, *_burst(chance, users, seconds))))
        window, window_bytes, ping, backlog = 32, 4 << 20, 1_000, 2_000  # both directions are full when a ping comes
    return Plan(
        hosts, tuple(users), writes, faults, seconds, skew,
        chance.choice((2_000, 20_000, 60_000)), chance.choice((0.0005, 0.01, 0.2)),
        chance.choice((0, 0.1)), chance.choice((0, 0.1)), chance.choice((0.3, 0.9)),
        window, window_bytes, ping, backlog, mailbox, patient,
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
        writes.append(Writes(at, client, to, f"m{number}", chance.choice(SAID)))
    return tuple(sorted(writes))


def _burst(chance: Random, users: list[tuple[str, str, int]], seconds: float) -> list[Writes]:
    """Two of different nodes say very much to each other at once."""
    here = chance.randrange(len(users))
    there = chance.choice([n for n, user in enumerate(users) if user[1] != users[here][1]])
    at = chance.uniform(0, seconds)
    return [
        Writes(at, one, f"{users[other][0]}@{users[other][1]}", f"b{one}.{n}")
        for one, other in ((here, there), (there, here))
        for n in range(BURST)
    ]


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
