"""B1: every decoder that reads what somebody else wrote, as a table: how it reads, how it refuses, what it reads well.

`again` writes a value as bytes once more. For a decoder that is `strict` those are the very bytes it was read from: one
encoding for each value. For the others they read as the same value.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from federation import control, desk, event, groups, identity, lineage, wire
from federation.errors import AddressError, ProtocolError
from federation.identity import Chain, NodeLink
from federation.ids import Address, check_domain, check_local_name, from_text, to_text
from node import admin, api, coding, config_file
from node.client.profile import parse_invite
from node.config import ConfigError
from tests.evil import nasty
from tests.federation import vectors as v

INPUT_BYTES_MAX = 128 << 10
CORPUS = Path(__file__).with_name("corpus")


class Decoder(NamedTuple):
    read: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...]
    again: Callable[[Any], bytes] | None
    strict: bool
    seeds: tuple[bytes, ...]


def _text(read: Callable[[str], Any]) -> Callable[[bytes], Any]:
    """Of what is text everywhere before it gets there."""
    return lambda raw: read(raw.decode("utf-8", "replace"))


def _written(value: object) -> bytes:
    return str(value).encode()


def _genesis(raw: bytes) -> bytes:
    identity.check_chain(Chain(raw))
    return raw


def _chain(raw: bytes) -> Chain:
    chain = identity.decode_chain(raw)
    try:
        identity.check_chain(chain)
    except ProtocolError:
        pass  # read, and not believed
    return chain


def _event(raw: bytes) -> event.Event:
    """A header with a body, as `read_event` gets them."""
    cut = int.from_bytes(raw[:2], "big")
    return event.read_event(event.Signed(raw[2 : 2 + cut], bytes(64), raw[2 + cut :]))


def _whole(made: event.Event) -> bytes:
    return len(made.signed.header).to_bytes(2, "big") + made.signed.header + (made.signed.body or b"")


def _config(text: str) -> Any:
    return config_file.parse(Path("node.yaml"), text[:2048])  # YAML is slow, and only its owner writes it


def _frames(made: dict[str, Any], codec: coding.Codec) -> tuple[bytes, ...]:
    return tuple(codec.encode(frame) for frame in made.values())


_links = (str(v.LINK), str(v.LINK._replace(addresses=())), str(v.LINK._replace(addresses=("[fe80::1%eth0]:7",))))
_names = ("lab.example", "xn--caf-dma.example", "a", "a-b.c", "xn--a.test", "аdmin.test", "a..b", "EXAMPLE", "a.test.")
_yaml = (
    'name: a.test\nlisten: "0.0.0.0:7701"\nlimits: {sessions: 10}\nadvertise: ["a.test:7701"]\n',
    "name: a.test\nname: b.test\n",
    "a: &a [x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n",
    "? [a, b]\n: 1\n",
    "name: a\0test\n",
    "name: !!python/object/apply:os.system [x]\n",
    "name: 2026-01-01\nlisten: 12:30:45\n<<: {a: 1}\n",
)
_admin = (
    b'{"op":"status","args":{}}',
    b'{"op":"user.add","args":{"name":"a","password":"b"}}',
    b'{"op":1}',
    b'{"op":"why","args":' + b"[" * 2000,
)
DECODERS: dict[str, Decoder] = {
    "frame": Decoder(
        wire.decode, (ProtocolError,), wire.encode, True,
        (*map(wire.encode, v.FRAMES.values()), *nasty.LINK.values()),
    ),
    "notices": Decoder(
        wire.decode_notices, (ProtocolError,), wire.encode, True, (wire.encode(v.NOTICES), wire.encode(wire.Notices()))
    ),
    "header": Decoder(
        event.decode_header, (ProtocolError,), event._encoder.encode, True,
        (v.EVENT.signed.header, v.FULL.signed.header),
    ),
    "event": Decoder(_event, (ProtocolError,), _whole, True, (_whole(v.EVENT), _whole(v.FULL))),
    "chain": Decoder(
        _chain, (ProtocolError,), identity.encode_chain, True,
        tuple(map(identity.encode_chain, (v.BORN, v.ROTATED, v.RECOVERED))),
    ),
    "genesis": Decoder(_genesis, (ProtocolError,), lambda raw: raw, True, (v.BORN.genesis,)),
    "link": Decoder(
        _text(NodeLink.parse), (AddressError,), lambda link: _written(NodeLink.parse(str(link))), False,
        tuple(link.encode() for link in _links),
    ),
    "invite": Decoder(
        _text(parse_invite), (AddressError,), lambda found: f"{found[0]}#{found[1]}".encode(), False,
        tuple(f"{link}#{to_text(bytes(20))}".encode() for link in _links),
    ),
    "proposal": Decoder(control.read_proposal, (ProtocolError,), control.encode, True, (v.PROPOSED.raw,)),
    "entry": Decoder(control.read_entry, (ProtocolError,), control.encode, True, (v.ENTRY,)),
    "group message": Decoder(
        desk.read_message, (ProtocolError,), control.encode, True, tuple(map(control.encode, v.MESSAGES.values()))
    ),
    "group state": Decoder(
        groups.decode_state, (ProtocolError,), groups.encode_state, True, (groups.encode_state(v.STATE),)
    ),
    "lineage": Decoder(
        lineage.read_lineage, (ProtocolError,), lineage.encode_lineage, True,
        (lineage.encode_lineage(lineage.Lineage(v.CERTIFIED, (), v.CERTIFIED, (v.PROPOSED.raw,))),),
    ),
    "address": Decoder(
        _text(Address.parse), (AddressError,), _written, True, tuple(f"alice@{name}".encode() for name in _names)
    ),
    "local name": Decoder(_text(check_local_name), (AddressError,), _written, True, (b"alice", b"a.b-c_d", b"a..b")),
    "node name": Decoder(_text(check_domain), (AddressError,), _written, True, tuple(n.encode() for n in _names)),
    "host and port": Decoder(
        _text(identity.split_host_port), (AddressError,),
        lambda at: f"[{at[0]}]:{at[1]}".encode() if ":" in at[0] else f"{at[0]}:{at[1]}".encode(), False,
        (b"192.0.2.7:7701", b"[2001:db8::7]:7701", b"[fe80::1%eth0]:1", b"a:65535", b"a:00"),
    ),
    "id": Decoder(
        _text(lambda text: from_text(text, 32)), (ValueError,), lambda raw: to_text(raw).encode(), False,
        (to_text(v.NODE).encode(), to_text(v.NODE).upper().encode()),
    ),
    "client json": Decoder(
        coding.JSON.from_client, (api.ApiError,), coding.JSON.encode, False,
        (*_frames(v.CLIENT_FRAMES, coding.JSON), *nasty.JSON.values()),
    ),
    "client msgpack": Decoder(
        coding.MSGPACK.from_client, (api.ApiError,), coding.MSGPACK.encode, False,
        (*_frames(v.CLIENT_FRAMES, coding.MSGPACK), *nasty.MSGPACK.values()),
    ),
    "node json": Decoder(
        coding.JSON.from_node, (api.ApiError,), coding.JSON.encode, False,
        (*_frames(v.NODE_FRAMES, coding.JSON), *nasty.JSON.values()),
    ),
    "node msgpack": Decoder(
        coding.MSGPACK.from_node, (api.ApiError,), coding.MSGPACK.encode, False,
        (*_frames(v.NODE_FRAMES, coding.MSGPACK), *nasty.MSGPACK.values()),
    ),
    "admin": Decoder(admin.read_request, (admin.AdminError,), msgspec.json.encode, False, _admin),
    "config": Decoder(_text(_config), (ConfigError,), None, False, tuple(text.encode() for text in _yaml)),
}  # fmt: skip


def check(name: str, raw: bytes) -> bool:
    """Whether it was read; raises what a decoder must never raise, and `AssertionError` for what it must not do."""
    decoder = DECODERS[name]
    try:
        value = decoder.read(raw)
    except decoder.refusals as error:
        said = str(error)
        assert len(said) < 500, f"a refusal of {len(said)} characters"
        assert said.isprintable(), f"a refusal that is not safe to show: {said!r}"
        return False
    if decoder.again is None:
        return True
    written = decoder.again(value)
    if decoder.strict:
        assert written == raw or (written.decode("utf-8", "ignore") == raw.decode("utf-8", "replace")), "two encodings"
    else:
        assert decoder.read(written) == value, "it reads as something else once it was written again"
    return True


def inputs(name: str) -> list[bytes]:
    """The seeds, and what was found and kept: one file an input."""
    folder = CORPUS / name.replace(" ", "_")
    kept = sorted(folder.glob("*.bin")) if folder.exists() else []
    return [*DECODERS[name].seeds, *(file.read_bytes() for file in kept)]
