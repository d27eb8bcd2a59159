"""A few nodes and what is under way between them, as one value; and everything that can happen to it next.

Each node runs the real `Step` over a durable desk and log, committed together or not at all. The channels keep their
order, lose and repeat. Time stands still while messages arrive; at a tick everything that could have waited has.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import msgspec

from federation import control, cuts, desk, forks, groups
from federation.control import Certified, Proposed
from federation.desk import Desk, Done, News, Place, To, Want
from federation.errors import ProtocolError
from federation.groups import Tip
from federation.ids import User
from federation.stewards import Step
from tests.explore.kit import NOW_MS, Site, propose

T = TypeVar("T")
LATER_MS = 700_000  # longer than a steward or a proposal waits
LONG_MS = 2 * 3600_000  # longer than anything waits, shorter than what clocks may differ
QUEUE_MAX = 30


class Wrong(AssertionError):
    """Something that must not happen, did."""


class Local(NamedTuple):
    """What one node has on disk."""

    desk: Desk
    log: tuple[Certified, ...]
    branch: tuple[Certified, ...] = ()  # of another branch, as far as it came


class Budget(NamedTuple):
    """How often each of these may still happen."""

    ticks: int = 0
    losses: int = 0
    repeats: int = 0
    restores: int = 0
    copies: int = 0
    takeovers: int = 0


class World(NamedTuple):
    locals: tuple[int, ...]
    queues: tuple[tuple[int, ...], ...]  # by sender * nodes + receiver
    copies: tuple[int, ...]  # what a node would be restored from
    todo: tuple[int, ...]  # proposals not made yet
    budget: Budget
    certified: frozenset[tuple[int, bytes]]  # all that ever were: index and hash


class Machine(NamedTuple):
    """What is explored; a broken one replaces a part."""

    step: type[Step] = Step
    restored: Callable[[Desk, int], Desk] = desk.restored
    outweighs: Callable[[forks.Weight, forks.Weight], bool] = lambda theirs, ours: theirs > ours
    rebase: Callable[[tuple[Certified, ...], tuple[Certified, ...]], tuple[Proposed, ...]] = forks.rebase


class Town:
    """The nodes, and a memory of every local step that was ever taken."""

    def __init__(
        self,
        sites: list[Site],
        log: list[Certified],
        todo: list[tuple[str, Proposed]],
        machine: Machine,
        sure: bool = True,
        dead: str = "",
    ):
        self.sites, self.machine, self.sure = sites, machine, sure  # sure: every proposal must become an entry
        self.living = [n for n, s in enumerate(sites) if s.letter not in dead]  # the others hear nothing
        self.at = {s.node: n for n, s in enumerate(sites)}
        self.todo = [(next(n for n, s in enumerate(sites) if s.letter == letter), p) for letter, p in todo]
        self.many = len(forks.replay(None, log).state.stewards) > 2
        self._locals: list[Local] = []
        self._known: dict[bytes, int] = {}
        self._messages: list[desk.Message] = []
        self._message_ids: dict[bytes, int] = {}
        self._tips: dict[tuple[bytes, int], Tip] = {}
        self._taken: dict[
            tuple[object, ...], tuple[int, tuple[tuple[int, int], ...], frozenset[tuple[int, bytes]]]
        ] = {}
        self.born = self._local(Local(Desk(), tuple(log)))
        self.first = {(i, control.entry_hash(c.entry)) for i, c in enumerate(log, 1)}

    def start(self, budget: Budget) -> World:
        count = len(self.sites)
        born = (self.born,) * count
        queues: tuple[tuple[int, ...], ...] = ((),) * (count * count)
        return World(born, queues, born, tuple(range(len(self.todo))), budget, frozenset(self.first))

    # --- interning ------------------------------------------------------------------------------------------------
    def _local(self, local: Local) -> int:
        d = local.desk
        waiting = tuple(msgspec.structs.replace(w, since_ms=NOW_MS) for w in d.waiting)
        d = msgspec.structs.replace(
            d, since_ms=d.since_ms and NOW_MS, waiting=waiting, restored_ms=NOW_MS if d.amnesia else 0, said_ms=NOW_MS
        )
        parts = (local.log, local.branch)
        key = desk.encode_desk(d) + b"|".join(b"".join(map(control.encode, part)) for part in parts)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = len(self._locals)
            self._locals.append(Local(d, local.log, local.branch))
        return found

    def _message(self, message: desk.Message) -> int:
        key = control.encode(message)
        found = self._message_ids.get(key)
        if found is None:
            found = self._message_ids[key] = len(self._messages)
            self._messages.append(message)
        return found

    def tip(self, log: tuple[Certified, ...]) -> Tip:
        """The tip after a log that was checked when it was taken."""
        last = log[-1]
        key = (control.entry_hash(last.entry), last.certificate.term)
        if key not in self._tips:
            below = self.tip(log[:-1]) if len(log) > 1 else None
            self._tips[key] = groups.check_certified(below, last.entry, last.certificate)
        return self._tips[key]

    def local(self, world: World, node: int) -> Local:
        return self._locals[world.locals[node]]

    # --- what can happen ------------------------------------------------------------------------------------------
    def next(self, world: World) -> Iterator[tuple[str, World]]:
        count, budget = len(self.sites), world.budget
        for queue, waiting in enumerate(world.queues):
            if not waiting:
                continue
            sender, receiver = divmod(queue, count)
            said = f"{self.sites[sender].letter}>{self.sites[receiver].letter} {self.name(waiting[0])}"
            rest = world._replace(queues=_put(world.queues, queue, waiting[1:]))
            yield said, self.take(rest, receiver, ("feed", sender, waiting[0]))
            if budget.losses:
                yield f"lost {said}", rest._replace(budget=budget._replace(losses=budget.losses - 1))
            if budget.repeats:
                again = world._replace(budget=budget._replace(repeats=budget.repeats - 1))
                yield f"twice {said}", self.take(again, receiver, ("feed", sender, waiting[0]))
        for number in world.todo:
            node = self.todo[number][0]
            rest = world._replace(todo=tuple(n for n in world.todo if n != number))
            yield f"proposal {number}", self.take(rest, node, ("propose", number))
        for node in self.living:
            one = self.sites[node]
            if budget.ticks:
                rest = world._replace(budget=budget._replace(ticks=budget.ticks - 1))
                after = self.take(rest, node, ("tick",))
                if after != rest:
                    yield f"tick {one.letter}", after
            if budget.copies and world.copies[node] != world.locals[node]:
                rest = world._replace(copies=_put(world.copies, node, world.locals[node]))
                yield f"copy {one.letter}", rest._replace(budget=budget._replace(copies=budget.copies - 1))
            if budget.restores and world.copies[node] != world.locals[node]:
                rest = world._replace(budget=budget._replace(restores=budget.restores - 1))
                yield f"restore {one.letter}", self.restore(rest, node)
            if budget.takeovers:
                rest = world._replace(budget=budget._replace(takeovers=budget.takeovers - 1))
                after = self.take(rest, node, ("takeover",))
                if after != rest:
                    yield f"takeover {one.letter}", after

    def name(self, message: int) -> str:
        said = self._messages[message]
        return f"{type(said).__name__}{getattr(said, 'term', '')}"

    def restore(self, world: World, node: int) -> World:
        old = self._locals[world.copies[node]]
        new = self._local(old._replace(desk=self.machine.restored(old.desk, NOW_MS), branch=()))
        return world._replace(locals=_put(world.locals, node, new))

    def take(self, world: World, node: int, what: tuple[object, ...]) -> World:
        """One step of one node, from memory where it was taken before."""
        key = (node, world.locals[node], *what)
        if key not in self._taken:
            self._taken[key] = _Shell(self, node, self._locals[world.locals[node]]).run(what)
        local, said, done = self._taken[key]
        queues = list(world.queues)
        for receiver, message in said:
            if receiver not in self.living:
                continue
            queue = node * len(self.sites) + receiver
            if len(queues[queue]) < QUEUE_MAX and (not queues[queue] or queues[queue][-1] != message):
                queues[queue] = (*queues[queue], message)
        found = world._replace(locals=_put(world.locals, node, local), queues=tuple(queues))
        if done - world.certified:
            found = found._replace(certified=world.certified | done)
            if self.many and len({index for index, _ in found.certified}) < len(found.certified):
                raise Wrong("two entries are certified for one index")
        return found


class _Shell:
    """What a node does around a step: it keeps the log."""

    def __init__(self, town: Town, node: int, local: Local) -> None:
        self.town, self.node, self.me = town, node, town.sites[node]
        self.desk, self.log, self.branch = local
        self.said: list[tuple[int, int]] = []
        self.done: set[tuple[int, bytes]] = set()

    def run(self, what: tuple[object, ...]) -> tuple[int, tuple[tuple[int, int], ...], frozenset[tuple[int, bytes]]]:
        match what:
            case ("feed", int(sender), int(message)):
                self._feed(sender, self.town._messages[message])
            case ("propose", int(number)):
                self._step(lambda step: step.propose(self.town.todo[number][1]))
            case ("tick",):
                self._step(lambda step: step.tick(), NOW_MS + LATER_MS)
            case ("long tick",):
                self._step(lambda step: step.tick(), NOW_MS + LONG_MS)
            case ("takeover",):
                self._takeover()
        return self.town._local(Local(self.desk, self.log, self.branch)), tuple(self.said), frozenset(self.done)

    def _place(self, now_ms: int) -> Place:
        now_ms += self.node  # no two clocks are alike, and so no two entries
        return Place(self.me.node, self.me.key, now_ms, self.town.tip(self.log), lambda node: ())

    def _step(self, act: Callable[[Step], None], now_ms: int = NOW_MS) -> None:
        step = self.town.machine.step(self.desk, self._place(now_ms))
        act(step)
        self.desk = step.desk
        for output in step.outputs:
            match output:
                case Done(certified=certified):
                    self._moved(certified, now_ms)
                    self._tell(News(self._group, certified))
                case To(node=node, message=message):
                    self._say(node, message)

    @property
    def _group(self) -> bytes:
        return self.town.tip(self.log).state.group

    def _say(self, node: bytes, message: desk.Message) -> None:
        if node in self.town.at and node != self.me.node:
            self.said.append((self.town.at[node], self.town._message(message)))

    def _tell(self, message: desk.Message) -> None:
        for one in self.town.sites:
            self._say(one.node, message)

    def _moved(self, certified: Certified, now_ms: int) -> None:
        before = self.town.tip(self.log).state
        self.log = (*self.log, certified)
        index = self.town.tip(self.log).state.index
        self.done.add((index, control.entry_hash(certified.entry)))
        self.branch = ()
        proposed = control.read_entry(certified.entry).proposed
        self._step(lambda step: step.moved(before, proposed), now_ms)

    def _takeover(self) -> None:
        tip = self.town.tip(self.log)
        proposed = propose(self.me, control.Takeover(), tip.state.group, tip.state.index)
        try:
            self._step(lambda step: step.takeover(proposed))
        except ProtocolError:
            pass

    def _feed(self, sender: int, message: desk.Message) -> None:
        node = self.town.sites[sender].node
        match message:
            case Want(index=index):
                for certified in self.log[index:]:
                    self._say(node, News(self._group, certified))
            case News(certified=certified):
                self._news(node, certified)
            case _:
                self._step(lambda step: step.feed(node, message))

    def _hash_at(self, index: int) -> bytes | None:
        return control.entry_hash(self.log[index - 1].entry) if 0 < index <= len(self.log) else None

    def _news(self, sender: bytes, certified: Certified) -> None:
        tip = self.town.tip(self.log)
        entry = control.read_entry(certified.entry)
        if self.branch and entry.previous == control.entry_hash(self.branch[-1].entry):
            self._compare(sender, (*self.branch, certified))
            return
        match forks.meet(tip, certified, self._hash_at):
            case "next":
                self._moved(certified, NOW_MS)
            case "gap":
                self._say(sender, Want(self._group, 0 if entry.index <= tip.state.index + 1 else tip.state.index))
            case "branch":
                self._compare(sender, (certified,))

    def _compare(self, sender: bytes, branch: tuple[Certified, ...]) -> None:
        base = control.read_entry(branch[0].entry).index - 1
        below = self.town.tip(self.log[:base])
        if forks.is_lie(below.state):
            raise Wrong("a majority certified two entries for one index")
        ours = self.log[base:]
        if not self.town.machine.outweighs(forks.weigh(below, branch)[1], forks.weigh(below, ours)[1]):
            if len(branch) == 1:
                for certified in ours:
                    self._say(sender, News(self._group, certified))
            self.branch = branch
            return
        again = self.town.machine.rebase(ours, branch)
        self.log, self.branch = (*self.log[:base], *branch), ()
        self._step(lambda step: step.rebased(again))
        self._still_out(ours)

    def _still_out(self, lost: tuple[Certified, ...]) -> None:
        state = self.town.tip(self.log).state
        out = cuts.provisional(state, [w.proposed for w in self.desk.waiting], NOW_MS)
        for certified in lost:
            user = cuts.loser(control.read_entry(certified.entry).proposed)
            if user is not None and state.member(user) is not None and user not in out:
                raise Wrong(f"{User(*user).local} is back, since a branch lost")


def _put(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    return (*values[:at], value, *values[at + 1 :])
