"""The cases, what each needs, and the broken builds that it must tell from the good one."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.faults import crashes, disks, networks, power
from tests.faults.nets import NetTown
from tests.faults.town import Town


class Case(NamedTuple):
    title: str
    run: Callable[[Town, bool], Awaitable[None]]
    caught: tuple[str, ...]  # broken builds that fail it
    nodes: str = "ab"
    needs: tuple[str, ...] = ("strace",)
    before: Callable[[Town], None] | None = None  # the first start
    town: type[Town] = Town
    sets: dict[str, str] = {}  # for a few rounds
    few: bool = True  # whether it is among those that `make test` runs a few rounds of


NETNS = ("ip", "netns")
QUICK = {"link.ping_ms": "500", "link.dead_after_ms": "2000"}

CASES = {
    "C1": Case("killed at the Nth fdatasync", crashes.c1, ("idempotency_ignored",)),
    "C2": Case("killed at the Nth send to a client or a peer", crashes.c2, ("acknowledges_before_commit",)),
    "C3": Case("receiver killed between commit and acknowledgement", crashes.c3,
               ("dedupe_off", "high_water_mark_apart"), needs=()),
    "C4": Case("power cut at every sync and every word", power.c4, ("commits_without_sync",), "a"),
    "C6": Case("killed at the Nth write to the database", crashes.c6, ("acknowledges_before_commit",)),
    "C6 first": Case("killed at the Nth write of the first start", crashes.c6_first_start, ()),
    "C8": Case("random kills of three nodes", crashes.c8, ("acknowledges_before_commit",), "abc", ()),
    "C10": Case("a client killed between OK and its own store", crashes.c10, ("idempotency_ignored",)),
    "D1": Case("the disk fills, and empties", disks.d1, (), needs=("mount",), before=disks.small_disk),
    "D2": Case("no space at the Nth write", disks.d2, ("acknowledges_before_commit",)),
    "D3": Case("the Nth sync fails", disks.d3, ("acknowledges_before_commit",)),
    "D4": Case("the disk becomes read-only, or unreadable", disks.d4, ()),
    "D5": Case("half a second for each sync", disks.d5, ()),
    "D6": Case("clocks an hour, a jump, ten years off", disks.d6, (), needs=()),
    "D7": Case("few descriptors, many strangers", disks.d7, (), needs=()),
    "D9": Case("another process holds the database", disks.d9, (), needs=()),
    "N1": Case("1, 10 and 30 % of the packets are lost", networks.n1, ("lost_for_good",), "abc", NETNS,
               town=NetTown, few=False),
    "N2": Case("packets late, out of order, twice, damaged", networks.n2, ("unauthenticated",), "ab", NETNS,
               town=NetTown),
    "N3": Case("one way is cut", networks.n3, ("never_dead",), "ab", NETNS, town=NetTown, sets=QUICK),
    "N4": Case("the longest packet changes", networks.n4, ("long_segments",), "ab", NETNS, town=NetTown, few=False),
    "N8": Case("the line comes and goes; another port", networks.n8, ("stays_put",), "ab", NETNS,
               town=NetTown, few=False),
    "N9": Case("a line of 64 kbit/s full of text", networks.n9, ("all_at_once",), "ab", NETNS, town=NetTown, few=False),
}  # fmt: skip
