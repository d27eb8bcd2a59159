"""Edits, deletions, reactions and pins through the real store: whose they may be, and what a deletion leaves."""

from typing import Any

import pytest

from federation.event import Event, Header, Signed, body_hash, sign_event
from federation.ids import User, direct_conversation, from_text
from federation.wire import LogAck, Segment
from node.api import ApiError
from node.core import acts
from node.core.receive import Receive
from node.core.send import Send
from node.storage import outgoing, reads
from tests.contract.bench import DEVICE, NOW_MS, Bench, Far

Act = tuple[str, bytes, bytes | None]  # kind, body, target


class Talk:
    """Far's log of one conversation with alice, which goes on from segment to segment."""

    def __init__(self, bench: Bench, far: Far, sender: str = "bob", life: bytes = b"", other: str = "alice") -> None:
        self.bench, self.far, self.sender = bench, far, sender
        self.life = life or far.incarnation
        self.members = tuple(sorted((User(far.node, sender), bench.user(other))))
        self.conversation = direct_conversation(*self.members)
        self.events: list[Event] = []

    def write(self, kind: str, body: bytes = b"", target: bytes | None = None, **more: Any) -> Event:
        """The log's next event; it is not sent yet."""
        seq = len(self.events) + 1
        header = Header(
            version=1, conversation=self.conversation, origin=self.far.node, incarnation=self.life, seq=seq,
            previous=self.events[-1].id if self.events else None, after=None, sender=self.sender, device=DEVICE,
            stamp=(NOW_MS << 16) + seq, control=None, kind=kind, target=target, manifest=None, body_format="text",
            body_hash=body_hash(body), body_bytes=len(body), **more,
        )  # fmt: skip
        self.events.append(sign_event(header, body, self.far.key))
        return self.events[-1]

    def segment(self, first: int = 1) -> Segment:
        signed = tuple(event.signed for event in self.events[first - 1 :])
        return Segment(self.conversation, self.far.node, self.life, first, self.members, signed)

    async def send(self, first: int = 1) -> LogAck:
        ack: LogAck = await self.bench.do(Receive(self.far.node, self.segment(first)))
        return ack


def codes(ack: LogAck) -> list[tuple[int, str, str]]:
    return [(v.seq, v.verdict, v.code) for v in ack.verdicts]


async def friends(bench: Bench) -> Far:
    far = Far()
    await bench.people("alice", "ann")
    await bench.befriend(far)
    return far


async def body_of(bench: Bench, event: bytes) -> bytes | None:
    found = await bench.store.read(reads.event_by_id, event)
    assert found is not None
    body: bytes | None = found[0].event.body
    return body


async def send(bench: Bench, kind: str, target: str, body: bytes = b"", sender: str = "alice", to: str = "ann") -> Any:
    send.number += 1  # type: ignore[attr-defined]
    key = f"act-{send.number}"  # type: ignore[attr-defined]
    return await bench.do(Send(sender, DEVICE, key, bench.user(to), kind, "text", body, from_text(target, 32)))


send.number = 0  # type: ignore[attr-defined]


async def test_a_deletion_drops_the_message_and_all_that_it_said_before(bench: Bench) -> None:
    await bench.people("alice", "ann")
    said = await bench.do(bench.send("1", bench.user("ann"), b"secret"))
    edit = await send(bench, "edit", said.event, b"another secret")
    own = await send(bench, "reaction", said.event, b"<3")  # is not what was said
    like = await send(bench, "reaction", said.event, b"+1", sender="ann", to="alice")
    gone = await send(bench, "delete", said.event)
    ids = [from_text(x.event, 32) for x in (said, edit, own, like, gone)]
    assert [await body_of(bench, event) for event in ids] == [None, None, b"<3", b"+1", b""]
    page = await bench.store.read(reads.history, bench.context.node, from_text(said.conversation, 32), None, 9, 9999)
    assert [p.event.kind for p in page.page] == [
        "message",
        "edit",
        "reaction",
        "reaction",
        "delete",
    ]  # headers stay and verify


async def test_a_deletion_that_came_first_drops_what_comes(bench: Bench) -> None:
    """Also what stands in another log of the same node, and in the same segment."""
    far = await friends(bench)
    old, new = Talk(bench, far), Talk(bench, far, life=b"n" * 16)
    said = old.write("message", b"secret")
    edit = old.write("edit", b"worse", said.id)
    other = old.write("message", b"kept")
    new.write("delete", b"", said.id)
    assert codes(await new.send()) == []
    assert codes(await old.send()) == []
    assert [await body_of(bench, e.id) for e in (said, edit, other)] == [None, None, b"kept"]
    now = old.write("message", b"and this")
    old.write("delete", b"", now.id)
    assert codes(await old.send(4)) == []
    assert await body_of(bench, now.id) is None


async def test_what_is_deleted_leaves_the_queue_as_a_header(bench: Bench) -> None:
    far = await friends(bench)
    bob = User(far.node, "bob")
    said = await bench.do(bench.send("1", bob, b"secret"))
    await bench.do(Send("alice", DEVICE, "2", bob, "delete", "text", b"", from_text(said.event, 32)))
    runs, _, _ = await bench.store.read(outgoing.pending, far.node, b"", {}, frozenset(), 100, 1 << 20)
    sent: list[Signed] = [signed for run in runs for signed in run.events]
    assert [signed.body for signed in sent] == [None, b""]


async def test_nobody_edits_or_deletes_what_is_not_theirs(bench: Bench) -> None:
    far = await friends(bench)
    talk = Talk(bench, far)
    theirs = talk.write("message", b"bob's")
    await talk.send()
    mine = await bench.do(bench.send("1", User(far.node, "bob"), b"alice's"))
    for kind, body in (("edit", b"I am stupid"), ("delete", b"")):
        talk.write(kind, body, from_text(mine.event, 32))
        with pytest.raises(ApiError) as refused:
            await bench.do(Send("alice", DEVICE, kind, User(far.node, "bob"), kind, "text", body, theirs.id))
        assert refused.value.code == "not_yours"
    assert codes(await talk.send(2)) == [(2, "refused", "not_yours"), (3, "refused", "not_yours")]
    assert codes(await talk.send(2)) == [(2, "refused", "not_yours"), (3, "refused", "not_yours")]
    assert await body_of(bench, from_text(mine.event, 32)) == b"alice's"
    assert await body_of(bench, theirs.id) == b"bob's"


async def test_a_deletion_of_somebody_elses_that_came_first_counts_for_nothing(bench: Bench) -> None:
    """Their node may deliver before the target's does: what is not theirs is then not known yet."""
    far = await friends(bench)
    bob, eve = Talk(bench, far), Talk(bench, far, "eve")
    said = bob.write("message", b"bob's")
    eve.write("delete", b"", said.id)  # in another conversation, and of another's message
    eve.write("edit", b"eve's", said.id)
    await eve.send()
    await bob.send()
    assert await body_of(bench, said.id) == b"bob's"
    own = eve.write("message", b"eve's")
    await eve.send(3)
    other = Talk(bench, far, "eve", life=b"o" * 16, other="ann")
    other.write("delete", b"", own.id)  # her own, but of another conversation
    assert codes(await other.send()) == []
    assert await body_of(bench, own.id) == b"eve's"


async def test_a_target_is_a_message_of_the_same_conversation(bench: Bench) -> None:
    await bench.people("alice", "ann", "eve")
    said = await bench.do(bench.send("1", bench.user("ann"), b"between us"))
    like = await send(bench, "reaction", said.event, b"+1")
    for kind, target, body in (
        ("reaction", said.event, b"+1"), ("message", said.event, b"re"), ("pin", said.event, b""),
        ("edit", said.event, b"x"), ("delete", said.event, b""),
    ):  # fmt: skip
        with pytest.raises(ApiError) as refused:
            await send(bench, kind, target, body, sender="alice", to="eve")
        assert (refused.value.code, refused.value.message) == ("not_found", "no such message in this conversation")
    with pytest.raises(ApiError) as refused:
        await send(bench, "reaction", like.event, b"+1")
    assert refused.value.code == "not_found"
    await send(bench, "delete", said.event)
    for kind, body in (("edit", b"back"), ("reaction", b"+1"), ("delete", b"")):
        with pytest.raises(ApiError) as refused:
            await send(bench, kind, said.event, body)
        assert (refused.value.code, refused.value.message) == ("not_found", "that message was deleted")


@pytest.mark.parametrize(
    ("kind", "body", "more"),
    [
        ("delete", b"x", {}), ("pin", b"x", {}), ("reaction", b"", {}), ("reaction", b"x" * 33, {}),
        ("edit", b"x", {"ext": {"undo": b""}}), ("reaction", b"x", {"ext": {"undo": b"1"}}),
        ("message", b"x", {"ext": {"thread": b"short"}}), ("reaction", b"x", {"ext": {"thread": bytes(32)}}),
    ],
)  # fmt: skip
async def test_a_header_that_makes_no_sense_is_refused(bench: Bench, kind: str, body: bytes, more: Any) -> None:
    far = await friends(bench)
    talk = Talk(bench, far)
    said = talk.write("message", b"hi")
    talk.write(kind, body, said.id, **more)
    talk.write("edit", b"no target")
    assert codes(await talk.send()) == [(2, "refused", "bad_event"), (3, "refused", "bad_event")]


async def test_acts_of_one_person_on_one_message_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "OF_ONE_MAX", 2)
    far = await friends(bench)
    talk = Talk(bench, far)
    said = talk.write("message", b"hi")
    for body in (b"1", b"2", b"3"):
        talk.write("edit", body, said.id)
    talk.write("delete", b"", said.id)
    assert codes(await talk.send()) == [(4, "refused", "too_many")]
    assert await body_of(bench, said.id) is None
    mine = await bench.do(bench.send("1", bench.user("ann")))
    await send(bench, "edit", mine.event, b"1")
    await send(bench, "edit", mine.event, b"2")
    with pytest.raises(ApiError) as refused:
        await send(bench, "edit", mine.event, b"3")
    assert refused.value.code == "too_large"


async def test_statements_do_not_grow_with_the_acts_of_a_segment(bench: Bench) -> None:
    """Reactions and deletions, each about another message, some with edits that came before them."""
    far = await friends(bench)

    async def count(many: int, life: bytes) -> int:
        first, second = Talk(bench, far, life=life), Talk(bench, far, life=life.upper())
        for n in range(many):
            said = first.write("message", b"%d" % n)
            first.write("edit", b"edited", said.id)
            second.write("reaction", b"+1", said.id)
            second.write("delete", b"", said.id)
        await first.send()
        with bench.counting() as seen:
            assert codes(await second.send()) == []
        assert await body_of(bench, first.events[1].id) is None
        return len(seen)

    assert await count(1, b"u" * 16) == await count(60, b"v" * 16)


async def test_history_gives_what_was_done_to_the_messages_of_a_page(bench: Bench) -> None:
    """An edit may stand pages away from its message."""
    await bench.people("alice", "ann")
    sent = [await bench.do(bench.send(f"{n}", bench.user("ann"), b"%d" % n)) for n in range(6)]
    edit = await send(bench, "edit", sent[0].event, b"edited")
    conversation = from_text(sent[0].conversation, 32)
    before = from_text(sent[2].event, 32)
    page = await bench.store.read(reads.history, bench.context.node, conversation, before, 9, 1 << 20)
    assert [p.event.body for p in page.page] == [b"0", b"1"]
    assert [(p.event.event, p.event.body) for p in page.about] == [(from_text(edit.event, 32), b"edited")]
    page = await bench.store.read(reads.history, bench.context.node, conversation, None, 9, 1 << 20)
    assert (len(page.page), page.about) == (7, [])
    for n in range(9):
        await send(bench, "edit", sent[1].event, b"%d" % n * 900)
    page = await bench.store.read(reads.history, bench.context.node, conversation, before, 9, 20_000)
    assert [p.event.body for p in page.about] == [b"7" * 900, b"8" * 900]  # the newest, as far as there is room
