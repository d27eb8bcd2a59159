"""Search of a town: everything that can happen, in every order, up to a bound; and that the nodes agree afterwards."""

import random
from typing import NamedTuple

from federation import control, groups
from tests.explore.world import Town, World, Wrong

ROUNDS_MAX = 40
STEPS_MAX = 250


class Found(NamedTuple):
    worlds: int  # different ones that were seen
    healed: int  # of these, in how many everybody was brought together
    whole: bool  # nothing was left out


def explore(town: Town, start: World, worlds_max: int, heal_every: int = 50) -> Found:
    """Visit worlds, the nearest first. `Wrong`, with how it came about, where one is not as it should be."""
    came: dict[World, tuple[World, str] | None] = {start: None}
    edge, healed = [start], 0
    while edge and len(came) < worlds_max:
        later: list[World] = []
        for world in edge:
            if len(came) >= worlds_max:
                break
            what = ""
            try:
                for what, after in town.next(world):
                    if after not in came:
                        came[after] = (world, what)
                        later.append(after)
                        if len(came) % heal_every == 0:
                            healed += 1
                            heal(town, after)
            except Wrong as error:
                raise Wrong(f"{error}\n" + "\n".join([*_way(came, world), what])) from None
        edge = later
    for world in edge[:200] if len(came) < worlds_max else edge[-200:]:
        healed += 1
        heal(town, world)
    return Found(len(came), healed, len(came) < worlds_max)


def _way(came: dict[World, tuple[World, str] | None], world: World) -> list[str]:
    way: list[str] = []
    while (step := came[world]) is not None:
        world = step[0]
        way.append(step[1])
    return way[::-1]


def heal(town: Town, world: World) -> World:
    """Let everything that is under way arrive, and time pass, until all is quiet: then all have the same state."""
    way: list[str] = []
    try:
        for number in world.todo:
            world = town.take(world._replace(todo=()), town.todo[number][0], ("propose", number))
        for turn in range(ROUNDS_MAX):
            before = world
            world = _settle(town, world, way)
            if _agreed(town, world) and not any(_busy(town, world, node) for node in town.living):
                break
            leaders = [node for node in town.living if town.local(world, node).desk.leads]
            ticking = (
                leaders if turn % 2 and leaders else town.living
            )  # else those who wait want to lead again and again
            for node in ticking:
                way.append(f"tick {town.sites[node].letter}")
                world = _settle(town, town.take(world, node, ("long tick",)), way)
            if world == before and ticking is town.living:
                break
        return _check(town, world)
    except Wrong as error:
        raise Wrong(f"{error}\nwhile healing:\n" + "\n".join(way[-60:])) from None


def _settle(town: Town, world: World, way: list[str]) -> World:
    count = len(town.sites)
    for _ in range(2000):
        queue = next((n for n, waiting in enumerate(world.queues) if waiting), None)
        if queue is None:
            return world
        sender, receiver = divmod(queue, count)
        message, *rest = world.queues[queue]
        way.append(f"{town.sites[sender].letter}>{town.sites[receiver].letter} {town.name(message)}")
        queues = (*world.queues[:queue], tuple(rest), *world.queues[queue + 1 :])
        world = town.take(world._replace(queues=queues), receiver, ("feed", sender, message))
    raise Wrong("they never stop talking")


def _agreed(town: Town, world: World) -> bool:
    return len({groups.encode_state(town.tip(town.local(world, n).log).state) for n in town.living}) == 1


def _busy(town: Town, world: World, node: int) -> bool:
    local = town.local(world, node)
    return bool(local.desk.waiting or local.desk.asked or local.desk.amnesia)


def _check(town: Town, world: World) -> World:
    if not _agreed(town, world):
        raise Wrong("the nodes never agree")
    if any(_busy(town, world, node) for node in town.living):
        raise Wrong("something waits for ever")
    if town.sure:
        log = {control.read_entry(c.entry).proposed.id for c in town.local(world, 0).log}
        if any(proposed.id not in log for _, proposed in town.todo):
            raise Wrong("a proposal came to nothing")
    if town.many:
        here = {(i, control.entry_hash(c.entry)) for i, c in enumerate(town.local(world, 0).log, 1)}
        if not world.certified <= here:
            raise Wrong("a certified entry is lost")
    return world


def wander(town: Town, start: World, walks: int, seed: int = 1) -> None:
    """Go on at random until nothing more can happen, many times: further than all orders can be followed.

    On each walk some lines are slow: what goes over them arrives when nothing else can happen.
    """
    chance = random.Random(seed)
    for walk in range(walks):
        world, way, share = start, [], (0, 0.2, 0.5)[walk % 3]
        slow = tuple(f"{a.letter}>{b.letter}" for a in town.sites for b in town.sites if chance.random() < share)
        try:
            while len(way) < STEPS_MAX and (nexts := list(town.next(world))):
                quick = [one for one in nexts if not one[0].startswith(slow)] or nexts
                what, world = quick[chance.randrange(len(quick))]
                way.append(what)
            heal(town, world)
        except Wrong as error:
            raise Wrong(f"{error}\n" + "\n".join(way)) from None


def follow(town: Town, world: World, *names: str) -> World:
    """The world after these things happened, each the first whose name begins so."""
    for name in names:
        nexts = list(town.next(world))
        found = next((after for what, after in nexts if what.startswith(name)), None)
        assert found is not None, f"{name} cannot happen here, only {[what for what, _ in nexts]}"
        world = found
    return world
