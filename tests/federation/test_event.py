"""An event: exact bytes, one encoding, and no bit that may change (PROTOCOL.md 4)."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import ProtocolError
from federation.event import (
    BODY_BYTES_MAX,
    HEADER_BYTES_MAX,
    SEQ_MAX,
    Header,
    Media,
    Predecessor,
    Signed,
    body_hash,
    decode_header,
    next_stamp,
    read_event,
    sign_event,
    signature_holds,
    stamp_ms,
)
from tests.federation import vectors as v

replace = msgspec.structs.replace
encode = msgspec.msgpack.Encoder(order="deterministic").encode
hashes = st.binary(min_size=32, max_size=32)
lives = st.binary(min_size=16, max_size=16)
seqs = st.integers(1, SEQ_MAX)
shorts = st.text("abcxyz019._/-", max_size=32)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Any header that the rules allow."""
    seq, life = draw(st.just(1) | seqs), draw(lives)
    after = st.none() | st.builds(Predecessor, lives.filter(lambda other: other != life), seqs)
    sender = draw(st.just("") | st.text("abc019", min_size=1, max_size=64))
    return replace(
        v.header(),
        conversation=draw(hashes),
        origin=draw(hashes),
        incarnation=life,
        seq=seq,
        previous=None if seq == 1 else draw(hashes),
        after=draw(after) if seq == 1 else None,
        sender=sender,
        device=draw(st.just(b"") | lives) if sender else b"",
        stamp=draw(st.integers(0, 2**63 - 1)),
        control=draw(st.none() | hashes),
        kind="message" if sender else draw(st.sampled_from(["notices", "later/kind", ""])),
        target=draw(st.none() | hashes),
        manifest=draw(st.none() | hashes),
        body_format=draw(shorts),
        body_hash=draw(hashes),
        body_bytes=draw(st.integers(0, BODY_BYTES_MAX)),
        media=tuple(draw(st.lists(st.builds(Media, hashes, st.integers(0, SEQ_MAX)), max_size=3))),
        expires_ms=draw(st.none() | st.integers(0, SEQ_MAX)),
        ext=draw(st.dictionaries(shorts, st.binary(max_size=40), max_size=4)),
    )


@given(headers())
def test_a_header_survives_its_bytes(header: Header) -> None:
    assert decode_header(encode(header)) == header


@given(st.data())
def test_bytes_that_are_read_as_a_header_are_written_so(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([v.EVENT.signed.header, v.FULL.signed.header])))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    found = v.read_or_refused(decode_header, bytes(raw), "bad_event")
    assert found is None or encode(found) == raw


@pytest.mark.parametrize("event", [v.EVENT, v.FULL], ids=["plain", "full"])
def test_every_flipped_bit_is_refused(event: object) -> None:
    assert isinstance(event, type(v.EVENT))
    assert event.signed.body is not None
    parts = (event.signed.header, event.signed.signature, event.signed.body)
    for which, part in enumerate(parts):
        for bit in range(len(part) * 8):
            flipped = bytearray(part)
            flipped[bit // 8] ^= 1 << bit % 8
            signed = Signed(*(bytes(flipped) if n == which else p for n, p in enumerate(parts)))
            try:
                assert not signature_holds(read_event(signed), v.FIRST.public), (which, bit)
            except ProtocolError:
                pass


def test_the_key_of_another_node_and_a_cut_signature_do_not_hold() -> None:
    assert signature_holds(v.EVENT, v.FIRST.public)
    assert not signature_holds(v.EVENT, v.SECOND.public)
    for size in (0, 1, 32, 63):
        signed = replace(v.EVENT.signed, signature=v.EVENT.signed.signature[:size])
        assert not signature_holds(read_event(signed), v.FIRST.public)


def test_an_event_without_its_body_still_verifies() -> None:
    event = read_event(replace(v.EVENT.signed, body=None))
    assert signature_holds(event, v.FIRST.public)
    assert event.id == v.EVENT.id


@pytest.mark.parametrize("body", [b"", v.BODY + b"\0", v.BODY[:-1], b"another one!!"])
def test_another_body_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"4\.6") as caught:
        read_event(replace(v.EVENT.signed, body=body))
    assert caught.value.code == "bad_body"


NEXT = replace(v.header(), seq=2, previous=v.b(1))
WRONG: dict[str, Header] = {
    "first with previous": replace(v.header(), previous=v.b(1)),
    "second without previous": replace(NEXT, previous=None),
    "second with a predecessor": replace(NEXT, after=Predecessor(v.b(8, 16), 1)),
    "its own predecessor": replace(v.header(), after=Predecessor(v.header().incarnation, 1)),
    "predecessor without events": replace(v.header(), after=Predecessor(v.b(8, 16), 0)),
    "seq 0": replace(NEXT, seq=0),
    "seq too high": replace(NEXT, seq=SEQ_MAX + 1),
    "negative stamp": replace(NEXT, stamp=-1),
    "stamp of 64 bits": replace(NEXT, stamp=1 << 63),
    "version 2": replace(NEXT, version=2),
    "short conversation": replace(NEXT, conversation=v.b(1, 31)),
    "long origin": replace(NEXT, origin=v.b(1, 33)),
    "short device": replace(NEXT, device=v.b(1, 3)),
    "device without sender": replace(NEXT, sender="", kind="x"),
    "message of nobody": replace(NEXT, sender="", device=b""),
    "notices of a user": replace(NEXT, kind="notices"),
    "look-alike sender": replace(NEXT, sender="аlice"),
    "capital sender": replace(NEXT, sender="Alice"),
    "sender with an end of line": replace(NEXT, sender="alice\n"),
    "kind with an end of line": replace(NEXT, kind="message\n"),
    "long kind": replace(NEXT, kind="m" * 33),
    "format with capitals": replace(NEXT, body_format="Text"),
    "body too long": replace(NEXT, body_bytes=BODY_BYTES_MAX + 1),
    "33 media": replace(NEXT, media=(Media(v.b(1), 1),) * 33),
    "negative media": replace(NEXT, media=(Media(v.b(1), -1),)),
    "17 extensions": replace(NEXT, ext={f"k{n}": b"" for n in range(17)}),
    "long extension": replace(NEXT, ext={"k": bytes(1025)}),
    "extension key with an end of line": replace(NEXT, ext={"k\n": b""}),
    "header over its limit": replace(NEXT, ext={f"k{n}": bytes(1024) for n in range(8)}),
}


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
def test_what_no_header_may_say(header: Header) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_header(encode(header))
    assert caught.value.code == "bad_event"


def test_a_header_of_just_the_limit_is_read() -> None:
    ext = {f"k{n}": bytes(900) for n in range(8)}
    ext["k8"] = bytes(HEADER_BYTES_MAX - len(encode(replace(NEXT, ext=ext))) - 6)  # its key, and the head of its value
    assert len(encode(replace(NEXT, ext=ext))) == HEADER_BYTES_MAX, len(ext["k8"])
    assert decode_header(encode(replace(NEXT, ext=ext))).ext == ext


RAW = v.EVENT.signed.header
SECOND_ENCODINGS = {
    "array32": b"\xdd\0\0\0\x14" + RAW[3:],
    "long version": RAW[:3] + b"\xcc\x01" + RAW[4:],
    "float version": RAW[:3] + b"\xcb\x3f\xf0" + bytes(6) + RAW[4:],
    "bin16": RAW[:4] + b"\xc5\0\x20" + RAW[6:],
    "defaults left out": b"\xdc\0\x11" + RAW[3:-3],
    "a tail": RAW + b"\0",
    "a field more": b"\xdc\0\x15" + RAW[3:] + b"\xc0",
    "a key twice": RAW[:-1] + b"\x82\xa1a\xc4\0\xa1a\xc4\0",
    "keys out of order": RAW[:-1] + b"\x82\xa1b\xc4\0\xa1a\xc4\0",
    "2^32 elements": b"\xdd\xff\xff\xff\xff",
    "2^32 bytes": b"\xdc\0\x14\x01\xc6\xff\xff\xff\xff",
    "2^32 keys": RAW[:-1] + b"\xdf\xff\xff\xff\xff",
    "deep": b"\x91" * HEADER_BYTES_MAX,
    "deep inside": RAW[:-3] + b"\x91" * 4000,
    "deeper than the limit": b"\x91" * 100_000,
    "not UTF-8": RAW.replace(b"alice", b"al\xffce"),
    "surrogate": RAW.replace(b"alice", b"a\xed\xa0\x80e"),
    "nil": b"\xc0",
    "empty": b"",
}


@pytest.mark.parametrize("raw", SECOND_ENCODINGS.values(), ids=SECOND_ENCODINGS)
def test_a_header_has_one_encoding(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_header(raw)
    assert caught.value.code == "bad_event"


def test_an_event_of_our_own_reads_back() -> None:
    body = bytes(BODY_BYTES_MAX)
    event = sign_event(replace(v.header(body), body_hash=body_hash(body)), body, v.FIRST)
    assert read_event(event.signed) == event
    assert event.header.log == (v.TALK, v.NODE, v.b(6, 16))


@given(st.integers(0, 2**47), st.integers(0, 2**62))
def test_stamps_only_rise_and_never_fall_behind_the_clock(now_ms: int, last: int) -> None:
    stamp = next_stamp(now_ms, last)
    assert stamp > last
    assert stamp_ms(stamp) >= now_ms
