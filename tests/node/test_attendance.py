"""What devices add up to, and what is known of others, on a clock that is a number."""

from federation import wire
from federation.ids import User
from node.core.ephemeral import ACTIVE_MS, PRESENCE_MS, Attendance, Presences, Said

CONVERSATION = b"c" * 32


def said(number: int = 0, node: bytes = b"n" * 32) -> Said:
    return Said(User(node, f"u{number}"), CONVERSATION)


def sign(kind: str, holds_ms: int = PRESENCE_MS) -> wire.Ephemeral:
    return wire.Ephemeral(CONVERSATION, "u", kind, holds_ms)  # type: ignore[arg-type]


def test_one_device_before_a_person_is_enough() -> None:
    there = Attendance()
    assert there.state("alice", 0) == "offline"
    assert there.claim("alice", "phone", "away", 0)
    assert there.state("alice", 0) == "away"
    assert there.claim("alice", "laptop", "online", 10)
    assert not there.claim("alice", "phone", "away", 20), "nothing is new"
    assert there.state("alice", 20) == "online"
    assert there.leave("laptop") == "alice"
    assert there.moved("alice", 30)
    assert there.state("alice", 30) == "away"
    assert there.leave("phone") == "alice"
    assert there.moved("alice", 40)
    assert (there.state("alice", 40), len(there), there.leave("phone")) == ("offline", 0, None)


def test_a_device_that_says_nothing_for_five_minutes_is_before_nobody() -> None:
    there = Attendance()
    there.claim("alice", "laptop", "online", 1000)
    assert not there.moved("alice", 1000 + ACTIVE_MS - 1)
    assert there.moved("alice", 1000 + ACTIVE_MS)
    assert not there.moved("alice", 1000 + 2 * ACTIVE_MS), "that is told once"
    assert there.state("alice", 1000 + 9 * ACTIVE_MS) == "away"
    assert there.claim("alice", "laptop", "online", 1000 + 9 * ACTIVE_MS)


def test_what_is_known_of_others_ends_in_time_or_with_their_node() -> None:
    known = Presences(10)
    assert known.put(said(1), sign("online", 5000), ("bob",), 0)
    assert not known.put(said(1), sign("away", 5000), ("bob",), 1000)
    assert known.put(said(2, b"o" * 32), sign("online", 10 * PRESENCE_MS), ("bob",), 0)
    found = known.get(said(1), 5999)
    assert found is not None
    assert (found.kind, found.hearers) == ("away", ("bob",))
    assert known.get(said(1), 6000) is None
    assert [s for s, _ in known.forget(6000)] == [said(1)]
    assert known.forget(PRESENCE_MS - 1) == []
    assert [s for s, _ in known.forget(PRESENCE_MS - 1, b"o" * 32)] == [said(2, b"o" * 32)]
    known.put(said(3), sign("online", 10 * PRESENCE_MS), (), 0)
    assert [s for s, _ in known.forget(PRESENCE_MS)] == [said(3)], "no peer's word holds longer"
    known.put(said(4), sign("online"), (), 0)
    known.put(said(4), sign("offline", 0), (), 1)
    assert len(known) == 0


def test_the_longest_unheard_is_forgotten_first() -> None:
    known = Presences(3)
    for number in (1, 2, 3, 1, 4):
        known.put(said(number), sign("online"), (), 0)
    assert (len(known), known.dropped, known.get(said(2), 0)) == (3, 1, None)
