"""Golden bytes of PROTOCOL.md, and one example of each thing that travels.

`ROOST_GOLDEN=1 pytest tests/federation/test_wire.py` writes `vectors.json` anew: only for a new protocol version.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from federation import control, desk, groups, wire
from federation.errors import ProtocolError
from federation.event import Event, Header, Media, Predecessor, sign_event
from federation.event import body_hash as hash_of
from federation.identity import NodeKey, NodeLink, check_chain, encode_chain, hello_bytes, new_chain, rotate
from federation.ids import Log, User, digest, direct_conversation, notice_conversation, to_text
from federation.ports import Binding
from node import api, coding

T = TypeVar("T")
FILE = Path(__file__).with_name("vectors.json")


def b(number: int, size: int = 32) -> bytes:
    """Distinct bytes that are easy to find in a hex dump."""
    return bytes([number]) * size


FIRST, SECOND, THIRD, RECOVERY = (NodeKey(b(n)) for n in (1, 2, 3, 4))
BORN = new_chain(FIRST, RECOVERY.public, b(5))
ROTATED = rotate(BORN, SECOND.public, FIRST, "signing")
RECOVERED = rotate(ROTATED, THIRD.public, RECOVERY, "recovery")
NODE, OTHER = check_chain(BORN).node, b(0x22)
ALICE, BOB = User(NODE, "alice"), User(OTHER, "bob")
TALK = direct_conversation(ALICE, BOB)
LINK = NodeLink(NODE, "lab.example", ("192.0.2.7:7701", "[2001:db8::7]:7701"))

BODY = b"hello, \xc3\xa9t\xc3\xa9"


def header(body: bytes = BODY) -> Header:
    return Header(
        *(1, TALK, NODE, b(6, 16), 1, None, None, "alice", b(7, 16), (1_700_000_000_000 << 16) + 3, None),
        *("message", None, None, "text", hash_of(body), len(body)),
    )


def full_header() -> Header:
    return msgspec.structs.replace(
        *(header(),),
        after=Predecessor(b(8, 16), 41),
        control=b(9),
        target=b(10),
        manifest=b(11),
        media=(Media(b(12), 70_000),),
        expires_ms=1_700_000_060_000,
        ext={"b": b"\x01", "a": b""},
    )


EVENT: Event = sign_event(header(), BODY, FIRST)
FULL: Event = sign_event(full_header(), BODY, FIRST)
UNDONE: Event = sign_event(
    msgspec.structs.replace(header(b"+1"), kind="reaction", target=EVENT.id, ext={"undo": b""}),
    b"+1",
    FIRST,
)
BINDINGS = {
    "quic": Binding("quic", b(13), b(14)),
    "tcp": Binding("tcp", b(13), b""),
    "memory": Binding("memory", b(13), b(14)),
}
PROOF = FIRST.sign("hello", hello_bytes("client", BINDINGS["quic"], b(15), b(16)))
RECEIPT = wire.Receipt(TALK, b(6, 16), "bob", 9, 7, (3, 5), 1_700_000_000_000)
NOTICES = wire.Notices((RECEIPT,))
FRAMES: dict[str, wire.AnyFrame] = {
    "offer": wire.Offer(1, 1, b(15)),
    "hello": wire.Hello(ROTATED, "lab.example", b(6, 16), "client", PROOF, LINK.addresses, OTHER),
    "standing": wire.Standing("accepted", wire.Newest(EVENT.signed.header, EVENT.signed.signature)),
    "events": wire.Events((wire.Segment(TALK, NODE, b(6, 16), 1, tuple(sorted((ALICE, BOB))), (EVENT.signed,)),)),
    "acks": wire.Acks((wire.LogAck(TALK, NODE, b(6, 16), 2, (wire.Verdict(2, "refused", "declined", "no"),)),)),
    "recall": wire.Recall("mine", b"", b(255, 16), ((Log(TALK, NODE, b(6, 16)).key, 7),)),
    "recalled": wire.Recalled(b(255, 16), 1),
    "probe": wire.Probe(1_700_000_000_000),
    "probed": wire.Probed(1_700_000_000_001, (("lab.example:7701", ""), ("192.0.2.7:7701", "no answer"))),
    "ephemerals": wire.Ephemerals(
        (wire.Ephemeral(TALK, "alice", "typing", 6000), wire.Ephemeral(TALK, "alice", "offline", 0))
    ),
    "ping": wire.Ping(300),
    "pong": wire.Pong(0),
    "goodbye": wire.Goodbye("restart", "back soon"),
}
PROPOSAL = control.Proposal(
    *(1, b"", NODE, "alice", b(7, 16), THIRD.public, 0, b(18, 16), 1_700_000_000_000),
    control.Create("ops", control.Card("lab.example", encode_chain(BORN))),
)  # fmt: skip
_raw = control.encode(PROPOSAL)
PROPOSED = control.Proposed(
    _raw, THIRD.sign("proposal", _raw), control.vouch(FIRST, NODE, "alice", b(7, 16), THIRD.public)
)
STATE = groups.created(PROPOSED)
ENTRY = control.encode(
    control.Entry(1, STATE.group, 1, None, PROPOSED, (), 1_700_000_000_000, groups.state_hash(STATE))
)
_vote = control.certify(FIRST, STATE.group, 0, 1, control.entry_hash(ENTRY))
CERTIFIED = control.Certified(ENTRY, control.Certificate(0, (control.Vouched(NODE, _vote),)))
MESSAGES: dict[str, desk.Message] = {
    "propose": desk.Propose(STATE.group, PROPOSED),
    "rejected": desk.Rejected(STATE.group, PROPOSED.id, "stale", "it changed"),
    "campaign": desk.Campaign(STATE.group, 4, 1, control.entry_hash(ENTRY)),
    "promise": desk.Promise(STATE.group, 4, 4, 1, control.entry_hash(ENTRY), 3, ENTRY),
    "ask": desk.Ask(STATE.group, 4, ENTRY),
    "vote": desk.Vote(STATE.group, 0, 1, control.entry_hash(ENTRY), _vote),
    "nay": desk.Nay(STATE.group, 5),
    "tally": desk.Tally(STATE.group, PROPOSED.id, NODE),
    "tallied": desk.Tallied(STATE.group, PROPOSED.id, (control.Cut(b(6, 16), 3),)),
    "want": desk.Want(STATE.group, 0),
    "entry": desk.News(STATE.group, CERTIFIED),
}
_ids = (to_text(EVENT.id), to_text(TALK), to_text(NODE), to_text(b(6, 16)))
CLIENT_FRAMES: dict[str, api.FromClient] = {
    "hello": api.Hello(1, 1, b(16)),
    "login": api.Login(1, "alice", "secret", "laptop", FIRST.public, b(17, 64)),
    "auth": api.Auth(2, "token", api.Cursor("store", 4), False),
    "send": api.Send(3, "key-1", "bob@other.example", BODY),
    "send.act": api.Send(3, "key-2", "bob@other.example", b"+1", "text", "reaction", _ids[0], undo=True),
    "ack": api.Ack(7, (2, 5)),
    "read": api.Read(4, _ids[1], (api.Mark(_ids[2], _ids[3], 3), api.Mark(_ids[2], "b", 1))),
    "typing": api.Typing(6, _ids[1], False),
    "presence": api.SetPresence(7, "away"),
    "block": api.Block(8, "bob@other.example"),
    "ping": api.Ping(5),
}
NODE_FRAMES: dict[str, api.FromNode] = {
    "welcome": api.Welcome(1, "lab.example", encode_chain(ROTATED), b(15), PROOF),
    "reply": api.Reply(3, api.Accepted(*_ids, 1, 1_700_000_000_000)),
    "error": api.Error("conflict", "used before", 3),
    "feed": api.Feed("store", (api.Watermark(*_ids[1:], "bob@other.example", 9, 8, 7, (3,), 11, 12),)),
    "light": api.PeerLight("other.example", "up", 11),
    "ephemeral": api.Ephemeral(_ids[1], "bob@other.example", "typing", 6000),
    "goodbye": api.Goodbye("busy", "stopping"),
}


def make() -> dict[str, str]:
    """Name to hex, or to the text itself where the form is text."""
    found = {
        "digest.no-parts": digest("event").hex(),
        "digest.parts": digest("event", b"", b"a", b"bc").hex(),
        "id.text": to_text(NODE),
        "id.text16": to_text(b(6, 16)),
        "genesis": BORN.genesis.hex(),
        "node": NODE.hex(),
        "chain.born": encode_chain(BORN).hex(),
        "chain.rotated": encode_chain(ROTATED).hex(),
        "chain.recovered": encode_chain(RECOVERED).hex(),
        "link": str(LINK),
        "conversation.direct": TALK.hex(),
        "conversation.notices": notice_conversation(NODE, OTHER).hex(),
        "log.key": Log(TALK, NODE, b(6, 16)).key.hex(),
        "notices": wire.encode(NOTICES).hex(),
        "login": FIRST.sign("device-login", api.login_bytes(NODE, b(15), "alice")).hex(),
    }
    for name, event in (("event", EVENT), ("event.full", FULL), ("event.act", UNDONE)):
        found[f"{name}.header"] = event.signed.header.hex()
        found[f"{name}.id"] = event.id.hex()
        found[f"{name}.signature"] = event.signed.signature.hex()
    for kind, binding in BINDINGS.items():
        found[f"hello.{kind}.server"] = hello_bytes("server", binding, b(15), b(16)).hex()
        found[f"hello.{kind}.client"] = hello_bytes("client", binding, b(16), b(15)).hex()
    found["group.id"] = STATE.group.hex()
    found["group.proposal"] = PROPOSED.raw.hex()
    found["group.proposed"] = control.encode(PROPOSED).hex()
    found["group.entry"] = ENTRY.hex()
    found["group.entry.id"] = control.entry_hash(ENTRY).hex()
    found["group.certificate"] = control.encode(CERTIFIED.certificate).hex()
    found["group.state"] = groups.encode_state(STATE).hex()
    found["group.link"] = digest("link", b(19, 16)).hex()
    found |= {f"group.message.{name}": control.encode(message).hex() for name, message in MESSAGES.items()}
    found |= {f"frame.{name}": wire.encode(frame).hex() for name, frame in FRAMES.items()}
    for side, frames in (("client", CLIENT_FRAMES), ("node", NODE_FRAMES)):
        for name, frame in frames.items():
            found[f"api.{side}.{name}.json"] = coding.JSON.encode(frame).decode()
            found[f"api.{side}.{name}.msgpack"] = coding.MSGPACK.encode(frame).hex()
    return found


def write() -> None:
    FILE.write_text(json.dumps(make(), indent=1) + "\n")


def read() -> dict[str, str]:
    found: dict[str, str] = json.loads(FILE.read_text())
    return found


def read_or_refused(decode: Callable[[bytes], T], raw: bytes, code: str) -> T | None:
    """The value, or none where it was refused with this code and a text that is safe to show."""
    try:
        return decode(raw)
    except (ProtocolError, api.ApiError) as error:
        refusal: ProtocolError | api.ApiError = error
    assert refusal.code == code
    assert str(refusal).isprintable()
    assert len(str(refusal)) < 400
    return None
