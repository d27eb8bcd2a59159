"""The cases, what each needs, and the broken builds that it must tell from the good one."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.faults import crashes, disks, power
from tests.faults.town import Town


class Case(NamedTuple):
    title: str
    run: Callable[[Town, bool], Awaitable[None]]
    caught: tuple[str, ...]  # broken builds that fail it
    nodes: str = "ab"
    needs: tuple[str, ...] = ("strace",)
    before: Callable[[Town], None] | None = None  # the first start


CASES = {
    "C1": Case("killed at the Nth fdatasync", crashes.c1, ("idempotency_ignored",)),
    "C2": Case("killed at the Nth send to a client or a peer", crashes.c2, ("acknowledges_before_commit",)),
    "C3": Case("receiver killed between commit and acknowledgement", crashes.c3,
               ("dedupe_off", "high_water_mark_not_stored"), needs=()),
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
}  # fmt: skip
