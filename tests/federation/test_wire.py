"""Link frames: golden bytes, one encoding, limits, and bytes from an enemy (PROTOCOL.md 5 and 6)."""

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import wire
from federation.errors import ProtocolError
from federation.event import Signed
from federation.identity import Rotation
from tests.federation import vectors as v

replace = msgspec.structs.replace

if os.environ.get("ROOST_GOLDEN"):
    v.write()

GOLDEN = v.read()
MADE = v.make()


def test_every_golden_vector_is_made_and_kept() -> None:
    assert sorted(MADE) == sorted(GOLDEN)


@pytest.mark.parametrize("name", MADE)
def test_the_bytes_are_what_they_were(name: str) -> None:
    assert MADE[name] == GOLDEN[name]


def test_there_is_a_golden_frame_of_every_type() -> None:
    tags = {frame.__struct_config__.tag for frame in v.FRAMES.values()}
    assert tags == {kind.__struct_config__.tag for kind in wire.Frame.__subclasses__()} == set(v.FRAMES)


@pytest.mark.parametrize("name", v.FRAMES)
def test_golden_frames_are_read(name: str) -> None:
    assert wire.decode(bytes.fromhex(GOLDEN[f"frame.{name}"])) == v.FRAMES[name]


def sized(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


counts, seqs = st.integers(0, (1 << 53) - 1), st.integers(1, (1 << 53) - 1)
texts = st.text(max_size=64)
signed = st.builds(Signed, st.binary(max_size=50), sized(64), st.none() | st.binary(max_size=50))
members = st.lists(st.tuples(sized(32), texts), max_size=2).map(tuple)
segments = st.builds(
    wire.Segment,
    *(sized(32), sized(32), sized(16), seqs, members),
    st.lists(signed, min_size=1, max_size=3).map(tuple),
)
verdicts = st.builds(
    wire.Verdict, seqs, st.sampled_from(["refused", "later"]), st.text(max_size=32), st.text(max_size=200)
)
acks = st.builds(wire.LogAck, sized(32), sized(32), sized(16), counts, st.lists(verdicts, max_size=3).map(tuple))
receipts = st.builds(
    wire.Receipt,
    *(sized(32), sized(16), texts, counts, counts, st.lists(seqs, max_size=64).map(tuple), counts),
)
hellos = st.builds(
    wire.Hello,
    *(st.sampled_from([v.BORN, v.ROTATED, v.RECOVERED]), st.text(max_size=253), sized(16)),
    *(st.sampled_from(["server", "client"]), sized(64), st.lists(texts, max_size=8).map(tuple)),
    st.none() | sized(32),
)
frames: st.SearchStrategy[wire.AnyFrame] = st.one_of(
    st.builds(wire.Offer, st.integers(1, 65535), st.integers(1, 65535), sized(32)),
    hellos,
    st.builds(wire.Standing, st.sampled_from(["accepted", "pending", "blocked"])),
    st.builds(wire.Events, st.lists(segments, min_size=1, max_size=3).map(tuple)),
    st.builds(wire.Acks, st.lists(acks, min_size=1, max_size=3).map(tuple)),
    st.builds(wire.Ping, counts),
    st.builds(wire.Pong, counts),
    st.builds(wire.Goodbye, st.text(max_size=32), st.text(max_size=200)),
)


@given(frames)
def test_a_frame_survives_its_bytes(frame: wire.AnyFrame) -> None:
    assert wire.decode(wire.encode(frame)) == frame


@given(st.lists(receipts, max_size=4).map(lambda found: wire.Notices(tuple(found))))
def test_notices_survive_their_bytes(notices: wire.Notices) -> None:
    assert wire.decode_notices(wire.encode(notices)) == notices


def mutated(data: st.DataObject, raw: bytes) -> bytes:
    found = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(found)))
        found[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    return bytes(found)


@given(st.data())
def test_bytes_that_are_read_as_a_frame_are_written_so(data: st.DataObject) -> None:
    raw = mutated(data, wire.encode(data.draw(st.sampled_from(list(v.FRAMES.values())))))
    found = v.read_or_refused(wire.decode, raw, "bad_frame")
    assert found is None or wire.encode(found) == raw


@given(st.data())
def test_bytes_that_are_read_as_notices_are_written_so(data: st.DataObject) -> None:
    raw = mutated(data, wire.encode(v.NOTICES))
    found = v.read_or_refused(wire.decode_notices, raw, "bad_notices")
    assert found is None or wire.encode(found) == raw


PING = b"\x82\xa1t\xa4ping\xa6number"
BOMBS = {
    "empty": b"",
    "nil": b"\xc0",
    "a tail": PING + b"\x01\0",
    "cut": PING,
    "a field twice": b"\x83" + PING[1:] + b"\x01\xa6number\x02",
    "a field twice, the same": b"\x83" + PING[1:] + b"\x01\xa6number\x01",
    "a type twice": b"\x83" + PING[1:] + b"\x01\xa1t\xa4ping",
    "two types": b"\x83\xa1t\xa4ping\xa1t\xa4pong\xa6number\x01",
    "another order": b"\x82\xa6number\x01\xa1t\xa4ping",
    "long number": PING + b"\xcd\0\x01",
    "signed number": PING + b"\xd0\x01",
    "float": PING + b"\xcb\x3f\xf0" + bytes(6),
    "NaN": PING + b"\xcb\x7f\xf8" + bytes(6),
    "negative": PING + b"\xff",
    "2^53": PING + b"\xcf\0\x20" + bytes(6),
    "2^64-1": PING + b"\xcf" + b"\xff" * 8,
    "true": PING + b"\xc3",
    "time": PING + b"\xd6\xff" + bytes(4),
    "extension": PING + b"\xc9\xff\xff\xff\xff\x05",
    "unknown field": b"\x83" + PING[1:] + b"\x01\xa1x\x01",
    "unknown field, deep": b"\x83" + PING[1:] + b"\x01\xa1x" + b"\x91" * 100_000,
    "unknown field, shouting": b"\x83" + PING[1:] + b"\x01\xda\xff\xff" + b"\x1b[31m\n\xe2\x80\xae" * 8192,
    "unknown type": b"\x82\xa1t\xa4bomb\xa6number\x01",
    "type of a number": b"\x82\xa1t\x01\xa6number\x01",
    "type of a map": b"\x82\xa1t" + b"\x81\xa1t" * 100_000,
    "no type": b"\x81\xa6number\x01",
    "not UTF-8": b"\x82\xa1t\xa8standing\xa5state\xa1\xff",
    "2^32 keys": b"\xdf\xff\xff\xff\xff",
    "2^32 elements": b"\x82\xa1t\xa6events\xa8segments\xdd\xff\xff\xff\xff",
    "2^32 bytes": b"\x84\xa1t\xa5offer\xabversion_min\x01\xabversion_max\x01\xa5nonce\xc6\xff\xff\xff\xff",
    "2^32 characters": b"\x82\xa1t\xdb\xff\xff\xff\xff",
    "deep": b"\x91" * (1 << 20),
    "deep maps": b"\x81\xa1t" * 100_000,
    "deep segments": b"\x82\xa1t\xa6events\xa8segments" + b"\x91" * 100_000,
}


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_a_typed_refusal(raw: bytes) -> None:
    for decode in (wire.decode, wire.decode_notices):
        with pytest.raises(ProtocolError) as caught:
            decode(raw)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400


offer, hello = wire.Offer(1, 1, v.b(15)), v.FRAMES["hello"]
segment = wire.Segment(v.TALK, v.NODE, v.b(6, 16), 1, (), (v.EVENT.signed,))
ack = wire.LogAck(v.TALK, v.NODE, v.b(6, 16), 2)
BEYOND: dict[str, wire.AnyFrame] = {
    "version 0": replace(offer, version_min=0),
    "version 65536": replace(offer, version_max=65536),
    "nonce": replace(offer, nonce=v.b(1, 31)),
    "proof": replace(hello, proof=v.b(1, 63)),
    "role": replace(hello, role="admin"),
    "name": replace(hello, name="a" * 254),
    "to": replace(hello, to=v.b(1, 33)),
    "addresses": replace(hello, addresses=("a:1",) * 9),
    "address": replace(hello, addresses=("a" * 261,)),
    "genesis": replace(hello, chain=replace(v.BORN, genesis=bytes(257))),
    "rotation 0": replace(hello, chain=replace(v.BORN, rotations=(Rotation(0, v.b(1), "signing", v.b(1, 64)),))),
    "standing": wire.Standing("friends"),  # type: ignore[arg-type]
    "newest": wire.Standing("accepted", wire.Newest(bytes(8193), v.b(1, 64))),
    "newest signature": wire.Standing("accepted", wire.Newest(b"", v.b(1, 63))),
    "whose": wire.Recall("theirs", b"", v.b(1, 16), ()),  # type: ignore[arg-type]
    "after": wire.Recall("mine", v.b(1, 17), v.b(1, 16), ()),
    "upto": wire.Recall("mine", b"", v.b(1, 15), ()),
    "recall 0": wire.Recall("mine", b"", v.b(1, 16), ((v.b(1, 16), 0),)),
    "recalled logs": wire.Recall("mine", b"", v.b(1, 16), ((v.b(1, 16), 1),) * (wire.RECALLED_MAX + 1)),
    "probe before 1970": wire.Probe(-1),
    "probed addresses": wire.Probed(1, (("a:1", ""),) * 9),
    "probed address": wire.Probed(1, (("a" * 261, ""),)),
    "probed reason": wire.Probed(1, (("a:1", "r" * 201),)),
    "no segments": wire.Events(()),
    "segments": wire.Events((segment,) * (wire.SEGMENTS_MAX + 1)),
    "no events": wire.Events((replace(segment, events=()),)),
    "events": wire.Events((replace(segment, events=segment.events * (wire.EVENTS_MAX + 1)),)),
    "first 0": wire.Events((replace(segment, first=0),)),
    "three members": wire.Events((replace(segment, members=(v.ALICE,) * 3),)),
    "member": wire.Events((replace(segment, members=((v.NODE, "a" * 65),)),)),
    "header": wire.Events((replace(segment, events=(Signed(bytes(8193), v.b(1, 64), b""),)),)),
    "body": wire.Events((replace(segment, events=(Signed(b"", v.b(1, 64), bytes(65537)),)),)),
    "signature": wire.Events((replace(segment, events=(Signed(b"", v.b(1, 63), b""),)),)),
    "no acks": wire.Acks(()),
    "negative ack": wire.Acks((replace(ack, seq=-1),)),
    "verdict": wire.Acks((replace(ack, verdicts=(wire.Verdict(1, "maybe", ""),)),)),  # type: ignore[arg-type]
    "code": wire.Acks((replace(ack, verdicts=(wire.Verdict(1, "later", "c" * 33),)),)),
    "reason": wire.Goodbye("", "r" * 201),
}


@pytest.mark.parametrize("frame", BEYOND.values(), ids=BEYOND)
def test_what_no_frame_may_hold(frame: wire.AnyFrame) -> None:
    with pytest.raises(ProtocolError, match=r"5\.1"):
        wire.decode(wire.encode(frame))


@pytest.mark.parametrize(
    "notices",
    [
        wire.Notices((v.RECEIPT,) * (wire.RECEIPTS_MAX + 1)),
        wire.Notices((replace(v.RECEIPT, missing=(1,) * (wire.EXCEPTIONS_MAX + 1)),)),
        wire.Notices((replace(v.RECEIPT, missing=(0,)),)),
        wire.Notices((replace(v.RECEIPT, read=-1),)),
        wire.Notices((replace(v.RECEIPT, member="m" * 65),)),
    ],
)
def test_what_no_notices_may_hold(notices: wire.Notices) -> None:
    with pytest.raises(ProtocolError, match=r"6\.1"):
        wire.decode_notices(wire.encode(notices))


def test_notices_have_one_encoding() -> None:
    raw = wire.encode(v.NOTICES)
    for other in (b"\xdc\0\x01" + raw[1:], b"\x91\xdc\0\x01" + raw[2:], raw[:1] + b"\x91\x96" + raw[3:-9]):
        assert v.read_or_refused(wire.decode_notices, other, "bad_notices") is None
