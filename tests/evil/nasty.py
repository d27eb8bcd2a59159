"""Bytes that broke other people's parsers, for links and clients in both encodings. No frame of ours is among them."""

from federation import wire
from tests.federation import vectors as v

DEEP = 100_000
_ping = wire.encode(wire.Ping(1))  # 82 a1 74 a4 "ping" a6 "number" 01
_lead = _ping[:-1]

MSGPACK: dict[str, bytes] = {
    "nothing": b"",
    "nil": b"\xc0",
    "never used": b"\xc1",
    "lists in lists": b"\x91" * DEEP,
    "maps in maps": b"\x81\xa1t" * (DEEP // 3),
    "lists in a value": _lead + b"\x91" * DEEP + b"\x01",
    "a list of 2^32-1": _lead + b"\xdd\xff\xff\xff\xff",
    "a map of 2^32-1": b"\xdf\xff\xff\xff\xff",
    "a text of 2^31": _lead + b"\xdb\x80\x00\x00\x00",
    "bytes of 2^32-1": _lead + b"\xc6\xff\xff\xff\xff",
    "an extension": _lead + b"\xc7\xff\x01" + bytes(255),
    "a timestamp": _lead + b"\xd6\xff" + bytes(4),
    "not a number": _lead + b"\xcb\x7f\xf8" + bytes(6),
    "a fraction": _lead + b"\xcb\x3f\xf8" + bytes(6),
    "a whole number as a float": _lead + b"\xcb\x3f\xf0" + bytes(6),
    "2^64-1": _lead + b"\xcf" + b"\xff" * 8,
    "-2^63": _lead + b"\xd3\x80" + bytes(7),
    "a key twice": b"\x83" + _ping[1:] + _ping[8:],
    "a type twice": b"\x83" + _ping[1:8] + _ping[1:],
    "an unknown key": b"\x83" + _ping[1:] + b"\xa1x\x01",
    "an unknown type": b"\x81\xa1t\xa4nope",
    "no type": b"\x81" + _ping[8:],
    "a key that is a number": b"\x81\x01\x01",
    "bad UTF-8": b"\x82\xa1t\xa2\xff\xfe" + _ping[8:],
    "a lone surrogate": b"\x82\xa1t\xa3\xed\xa0\x80" + _ping[8:],
    "an overlong NUL": b"\x82\xa1t\xa2\xc0\x80" + _ping[8:],
    "a NUL": b"\x82\xa1t\xa5ping\x00" + _ping[8:],
    "cut short": _ping[:-1],
    "something after it": _ping + b"\x00",
    "text instead": b'{"t":"ping","number":1}',
}
# Only the links' encoding is one for each value (PROTOCOL.md 5.1); a client may write numbers long (7.1).
LINK: dict[str, bytes] = MSGPACK | {
    "a number written long": _lead + b"\xcc\x01",
    "a length written long": b"\xde\x00\x02" + _ping[1:],
    "keys in another order": b"\x82" + _ping[8:] + _ping[1:8],
    "a text as bytes": b"\x82\xa1t\xc4\x04ping" + _ping[8:],
    "every key of a hello twice": b"\x90" + wire.encode(v.FRAMES["hello"])[1:] * 2,
}
JSON: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "lists in lists": b"[" * DEEP,
    "lists in lists, closed": b"[" * (DEEP // 2) + b"]" * (DEEP // 2),
    "maps in maps": b'{"t":' * (DEEP // 5),
    "lists in a value": b'{"t":"ping","id":' + b"[" * DEEP,
    "lists in an unknown key": b'{"t":"ping","id":1,"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "a number of 5,000 digits": b'{"t":"ping","id":' + b"9" * 5000 + b"}",
    "a number of 100,000 digits": b'{"t":"ping","id":' + b"9" * 100_000 + b"}",
    "an exponent": b'{"t":"ping","id":1e3}',
    "a huge exponent": b'{"t":"ping","id":1e999999999}',
    "not a number": b'{"t":"ping","id":NaN}',
    "infinity": b'{"t":"ping","id":-Infinity}',
    "a fraction": b'{"t":"ping","id":1.0}',
    "a key twice": b'{"t":"ping","id":1,"id":2}',
    "a key twice, once escaped": b'{"t":"ping","id":1,"\\u0069d":2}',
    "a type twice": b'{"t":"ping","t":"ping","id":1}',
    "a key twice inside": b'{"t":"auth","id":1,"token":"x","resume":{"store":"a","position":1,"position":2}}',
    "a lone surrogate": b'{"t":"auth","id":1,"token":"\\ud800"}',
    "a surrogate in UTF-8": b'{"t":"auth","id":1,"token":"\xed\xa0\x80"}',
    "bad UTF-8": b'{"t":"auth","id":1,"token":"\xff"}',
    "a raw NUL": b'{"t":"auth","id":1,"token":"\x00"}',
    "a comment": b'{"t":"ping","id":1/**/}',
    "a comma too many": b'{"t":"ping","id":1,}',
    "single quotes": b"{'t':'ping','id':1}",
    "a byte order mark": b'\xef\xbb\xbf{"t":"ping","id":1}',
    "something after it": b'{"t":"ping","id":1} x',
    "two frames": b'{"t":"ping","id":1}{"t":"ping","id":2}',
    "text as a number": b'{"t":"ping","id":"1"}',
    "no such base64": b'{"t":"send","id":1,"key":"k","to":"a","body":"%%%%"}',
    "an unknown key": b'{"t":"ping","id":1,"x":1}',
    "an unknown type": b'{"t":"nope","id":1}',
}
LENGTHS = {"2^20+1": (1 << 20) + 1, "2^31": 1 << 31, "2^32-1": (1 << 32) - 1}
