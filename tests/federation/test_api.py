"""Client frames in both encodings: what is read, and what an enemy may send (PROTOCOL.md 7)."""

import json
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.event import sign_event
from federation.identity import NodeKey, verify
from node import api, coding
from node.core import render, rows
from tests.federation import vectors as v

CODECS = pytest.mark.parametrize("codec", [coding.JSON, coding.MSGPACK], ids=["json", "msgpack"])
encode = msgspec.msgpack.encode


@CODECS
@pytest.mark.parametrize("name", v.CLIENT_FRAMES)
def test_client_frames_survive(codec: coding.Codec, name: str) -> None:
    frame = v.CLIENT_FRAMES[name]
    assert codec.from_client(codec.encode(frame)) == frame


@CODECS
@pytest.mark.parametrize("name", v.NODE_FRAMES)
def test_node_frames_survive(codec: coding.Codec, name: str) -> None:
    frame = v.NODE_FRAMES[name]
    assert codec.from_node(codec.encode(frame)) == frame


def test_golden_frames_are_read() -> None:
    golden = v.read()
    for name, frame in v.CLIENT_FRAMES.items():
        assert coding.JSON.from_client(golden[f"api.client.{name}.json"].encode()) == frame
        assert coding.MSGPACK.from_client(bytes.fromhex(golden[f"api.client.{name}.msgpack"])) == frame


numbers = st.integers(1, (1 << 53) - 1)
requests = st.one_of(
    st.builds(api.Ping, numbers),
    st.builds(api.Send, numbers, st.text(min_size=1, max_size=64), st.text(max_size=320), st.binary(max_size=99)),
    st.builds(api.Ack, numbers, st.lists(numbers, max_size=64).map(tuple)),
    st.builds(api.Auth, numbers, st.text(max_size=64), st.builds(api.Cursor, st.text(max_size=64), numbers)),
    st.builds(
        api.Read,
        *(numbers, st.text(max_size=64)),
        st.lists(st.builds(api.Mark, st.text(max_size=9), st.text(max_size=9), numbers), max_size=64).map(tuple),
    ),
)


@CODECS
@given(requests)
def test_any_request_survives(codec: coding.Codec, request: api.FromClient) -> None:
    assert codec.from_client(codec.encode(request)) == request


@CODECS
@given(st.data())
def test_mutated_frames_are_read_or_refused_and_nothing_else(codec: coding.Codec, data: st.DataObject) -> None:
    raw = bytearray(codec.encode(data.draw(st.sampled_from(list(v.CLIENT_FRAMES.values())))))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    for read in (codec.from_client, codec.from_node):
        v.read_or_refused(read, bytes(raw), "bad_frame")


JSON_BOMBS = {
    "empty": "",
    "not JSON": "ping",
    "null": "null",
    "a list": '[{"t":"ping","id":1}]',
    "a tail": '{"t":"ping","id":1}{}',
    "a key twice": '{"t":"ping","id":1,"id":2}',
    "a key twice, escaped": r'{"t":"ping","id":1,"\u0069d":2}',
    "a type twice": '{"t":"ping","id":1,"t":"ping"}',
    "a key twice, inside": '{"t":"auth","id":1,"token":"x","resume":{"store":"a","store":"a","position":1}}',
    "a key twice, in a list": '{"t":"read","id":1,"conversation":"c","marks":'
    '[{"origin":"o","log":"l","seq":1},{"origin":"o","log":"l","seq":1,"seq":2}]}',
    "NaN": '{"t":"ping","id":NaN}',
    "Infinity": '{"t":"ping","id":Infinity}',
    "1e400": '{"t":"ping","id":1e400}',
    "a fraction": '{"t":"ping","id":1.0}',
    "an exponent": '{"t":"ping","id":1e2}',
    "zero": '{"t":"ping","id":0}',
    "negative": '{"t":"ping","id":-1}',
    "2^53": '{"t":"ping","id":9007199254740992}',
    "5000 digits": '{"t":"ping","id":' + "9" * 5000 + "}",
    "a text": '{"t":"ping","id":"1"}',
    "unknown field": '{"t":"ping","id":1,"x":1}',
    "unknown field, shouting": '{"t":"ping","id":1,"' + r"\u001b[31m\n\u202e" * 9999 + '":1}',
    "unknown type": '{"t":"bomb","id":1}',
    "a node's frame": '{"t":"welcome","id":1}',
    "surrogate": r'{"t":"decline","id":1,"conversation":"\ud800"}',
    "deep": "[" * 100_000,
    "deep maps": '{"t":' * 100_000,
    "deep and unknown": '{"t":"ping","id":1,"x":' + "[" * 100_000 + "]" * 100_000 + "}",
    "not base64": '{"t":"send","id":1,"key":"k","to":"a","body":"a-_="}',
    "base64 without padding": '{"t":"send","id":1,"key":"k","to":"a","body":"aGk"}',
    "body too long": '{"t":"send","id":1,"key":"k","to":"a","body":"' + "A" * 87_384 + '"}',
    "no key": '{"t":"send","id":1,"key":"","to":"a","body":""}',
    "long password": '{"t":"login","id":1,"user":"u","password":"' + "p" * 1025 + '"}',
}


@pytest.mark.parametrize("text", JSON_BOMBS.values(), ids=JSON_BOMBS)
def test_a_json_bomb_is_a_typed_refusal(text: str) -> None:
    assert v.read_or_refused(coding.JSON.from_client, text.encode(), "bad_frame") is None


def test_json_that_is_not_utf_8_is_refused() -> None:
    for raw in (b'{"t":"decline","id":1,"conversation":"\xff"}', b'\xef\xbb\xbf{"t":"ping","id":1}', b"\xff\xfe{\0"):
        assert v.read_or_refused(coding.JSON.from_client, raw, "bad_frame") is None


@pytest.mark.parametrize("stamp", [0, 1, (1 << 53) + 1, (1 << 63) - 1])
def test_a_reader_that_has_only_doubles_loses_nothing(stamp: int) -> None:
    """JavaScript's JSON.parse, for one."""
    header = sign_event(v.header(), v.BODY, NodeKey(b"k" * 32)).signed.header
    row = rows.StoredEvent(
        b"l" * 32, 1, b"e" * 32, b"c" * 32, stamp, "bob", b"d" * 16, "message", header, b"", v.BODY, 0, 0, ""
    )
    raw = coding.JSON.encode(
        render.message(b"n" * 32, b"i" * 16, row, v.header(), lambda node, local: f"{local}@b.test")
    )
    assert json.loads(raw, parse_int=lambda text: int(float(text))) == json.loads(raw)
    assert int(json.loads(raw)["order"], 16) == stamp


@given(st.lists(st.integers(0, (1 << 63) - 1)))
def test_orders_sort_as_the_stamps_they_stand_for(stamps: list[int]) -> None:
    assert sorted(map(api.order, stamps)) == [api.order(stamp) for stamp in sorted(stamps)]


def test_no_number_of_the_schema_goes_past_a_double() -> None:
    def numbers(at: object) -> Iterator[int]:
        for part in at.values() if isinstance(at, dict) else at if isinstance(at, list) else ():
            yield from numbers(part)
        if isinstance(at, dict):
            yield from (at[key] for key in ("maximum", "minimum") if key in at)

    assert max(numbers(json.loads(coding.schema()))) == (1 << 53) - 1


MARKS = b"\x84\xa1t\xa4read\xa2id\x01\xacconversation\xa1c\xa5marks"
MSGPACK_BOMBS = {
    "empty": b"",
    "a tail": encode({"t": "ping", "id": 1}) + b"\0",
    "a key twice": b"\x83\xa1t\xa4ping\xa2id\x01\xa2id\x02",
    "a key twice, map16": b"\xde\0\x03\xa1t\xa4ping\xa2id\x01\xa2id\x02",
    "a key twice, map32": b"\xdf\0\0\0\x03\xa1t\xa4ping\xa2id\x01\xa2id\x01",
    "a type twice": b"\x83\xa1t\xa4ping\xa1t\xa4ping\xa2id\x01",
    "a key twice, in a list": MARKS + b"\x91\x84\xa6origin\xa1o\xa3log\xa1l\xa3seq\x01\xa3seq\x02",
    "a key twice, in array32": MARKS + b"\xdd\0\0\0\x01\x84\xa6origin\xa1o\xa3log\xa1l\xa3seq\x01\xa3seq\x02",
    "NaN": b"\x82\xa1t\xa4ping\xa2id\xcb\x7f\xf8" + bytes(6),
    "2^32 keys": b"\xdf\xff\xff\xff\xff",
    "2^32 elements": MARKS + b"\xdd\xff\xff\xff\xff",
    "2^32 bytes": b"\x82\xa1t\xa4ping\xa2id\xc6\xff\xff\xff\xff",
    "deep": b"\x91" * 100_000,
    "deep maps": b"\x81\xa1t" * 100_000,
    "deep and unknown": b"\x83\xa1t\xa4ping\xa2id\x01\xa1x" + b"\x91" * 100_000,
    "not UTF-8": b"\x83\xa1t\xa7decline\xa2id\x01\xacconversation\xa1\xff",
    "time": b"\x82\xa1t\xa4ping\xa2id\xd6\xff" + bytes(4),
    "too many marks": encode(
        {"t": "read", "id": 1, "conversation": "c", "marks": [{"origin": "o", "log": "l", "seq": 1}] * 65}
    ),
}


@pytest.mark.parametrize("raw", MSGPACK_BOMBS.values(), ids=MSGPACK_BOMBS)
def test_a_msgpack_bomb_is_a_typed_refusal(raw: bytes) -> None:
    assert v.read_or_refused(coding.MSGPACK.from_client, raw, "bad_frame") is None


def test_clients_in_other_languages_may_order_and_write_as_they_like() -> None:
    expected = api.Send(7, "k", "bob@b.example", b"hi")
    text = b' {"id": 7, "body": "aGk=", "format": "text", "to": "bob@b.example", "key": "k", "t": "send"} '
    assert coding.JSON.from_client(text) == expected
    pairs = {"id": 7, "body": b"hi", "format": "text", "to": "bob@b.example", "key": "k", "t": "send"}
    assert coding.MSGPACK.from_client(encode(pairs)) == expected
    long = b"\xdf\0\0\0\x02\xd9\x02id" + b"\xcf" + bytes(7) + b"\x07" + b"\xd9\x01t\xd9\x04ping"
    assert coding.MSGPACK.from_client(long) == api.Ping(7)


def test_a_client_reads_results_of_a_newer_node() -> None:
    raw = b'{"t":"reply","id":1,"result":{"t":"done","new":1}}'
    assert coding.JSON.from_node(raw) == api.Reply(1, api.Done())


def test_a_login_proof_is_for_this_node_connection_and_user() -> None:
    proof = v.FIRST.sign("device-login", api.login_bytes(v.NODE, v.b(15), "alice"))
    assert verify(v.FIRST.public, "device-login", api.login_bytes(v.NODE, v.b(15), "alice"), proof)
    assert not verify(v.FIRST.public, "device-login", api.login_bytes(v.OTHER, v.b(15), "alice"), proof)
    assert not verify(v.FIRST.public, "device-login", api.login_bytes(v.NODE, v.b(16), "alice"), proof)
    assert not verify(v.FIRST.public, "device-login", api.login_bytes(v.NODE, v.b(15), "alic"), proof)


def test_every_code_has_a_meaning_and_says_whether_to_try_again() -> None:
    assert api.ApiError("busy", "stopping").retry
    assert not api.ApiError("conflict", "used before").retry
    assert set(json.loads(coding.schema())["codes"]) == set(api.CODES)


def test_stored_items_come_back_with_their_position() -> None:
    item = api.Failure("e", "c", "bob@b.example", "declined", "no", 5)
    assert coding.decode_item(coding.encode_item(item), 9) == msgspec.structs.replace(item, position=9)
