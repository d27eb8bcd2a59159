"""L9: one user and one peer at a hundred times what they may; the others hardly notice."""

import asyncio
from pathlib import Path

import pytest

from node.admin import call
from node.config import Config, Limits
from node.node import Node
from tests.load import kit
from tests.load.crowd import Person
from tests.load.kit import all_of, crowds, furnish, middle, p99, served, show, size
from tests.node.helpers import listening

PER_S = 50
MESSAGES = 40  # of a round; all rounds together are less than the ten seconds' worth that may come at once
ROUNDS = 5


async def refused(config: Config, bound: str) -> int:
    (row,) = [row for row in (await call(config, "status", {}))["bounds"] if row["name"] == bound]
    return int(row["refused"])


async def round_of(quiet: Person, other: Person, count: int = MESSAGES) -> list[float]:
    took, loop = [], asyncio.get_running_loop()
    for _ in range(count):
        began, before = loop.time(), len(other.bodies)
        sent = quiet.send("other@a.test", b"quiet")
        await other.until(before + 1, 30)
        took.append(loop.time() - began)
        assert await sent == "accepted", "whoever keeps to the rate is not refused"
    return took


@pytest.mark.timeout(300 if kit.FULL else 120)
async def test_l9_a_noisy_user_and_a_noisy_peer_are_told_and_others_served(tmp_path: Path) -> None:
    a_config = listening(tmp_path, "a.test", limits=Limits(requests_per_second=PER_S, peer_events_per_second=PER_S))
    b_config = listening(tmp_path, "b.test", limits=Limits(requests_per_second=10**6))
    await furnish(a_config, ["noisy", "quiet", "other", "sink"], 3)
    await furnish(b_config, ["noisy"], 1)
    async with Node.open(a_config, listen=False) as a, Node.open(b_config, listen=False) as b:
        links = str(a.link), str(b.link)
    await call(a_config, "peer.add", {"link": links[1]})
    await call(b_config, "peer.add", {"link": links[0]})
    assert a_config.listen_at is not None
    assert b_config.listen_at is not None
    port, far_port = a_config.listen_at[1], b_config.listen_at[1]
    async with served(a_config, b_config):
        quiet, other = await Person.come(port, "token-1"), await Person.come(port, "token-2")
        alone = [await round_of(quiet, other) for _ in range(ROUNDS)]
        async with (
            crowds(1, 1, port=port, parallel=1, flood="sink@a.test") as users,
            crowds(1, 1, port=far_port, parallel=1, flood="sink@a.test") as peers,
        ):
            await all_of([*users, *peers], "up", 30)
            other.bodies.clear()
            crowded = []
            for _ in range(ROUNDS):
                crowded.append(await round_of(quiet, other))
            (said,), (far,) = await all_of(users, "up", 30), await all_of(peers, "up", 30)
            async with asyncio.timeout(30):
                while not (peer := await refused(a_config, "events of a peer a second")):
                    await round_of(quiet, other, 1)
        for person in (quiet, other):
            person.close()
    best = min(map(p99, alone)), min(map(p99, crowded))
    half = min(map(middle, crowded)) / min(map(middle, alone))
    show("L9", user=said["answers"], peer_sent=far["answers"], peer_refused=peer, p50=f"x{half:.2f}",
         p99=f"x{best[1] / best[0]:.2f}")  # fmt: skip
    assert said["answers"]["rate_limited"] > size(2_000, 200)
    assert not kit.FULL or best[1] <= 2 * best[0]
