"""Rows that came back from the disk otherwise than they were written: noticed whenever they are read.

A field that is damaged gets the value that gives least away (a disabled account, a peer to be accepted again) where
there is such a value; a row that cannot do without the field counts as not there. An event carries its own hash, so
of events every flipped bit is noticed.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from federation.errors import AddressError, ProtocolError
from federation.event import Header, body_hash, event_id, peek_header
from federation.identity import check_chain, decode_chain, split_host_port
from federation.ids import Log, User, check_domain, check_local_name, digest, direct_conversation, notice_conversation
from node.core import rows

R = TypeVar("R", bound=tuple[Any, ...])
Check = Callable[[Any], bool]
NUMBER_MAX, STAMP_MAX = (1 << 53) - 1, (1 << 63) - 1
LOST = "lost"  # the origin does not have it any more (PROTOCOL.md 4.13)
# Events that do not stand: the final verdicts of PROTOCOL.md 5.4 under which one is remembered.
REFUSALS = (
    "unknown_user", "declined", "unknown_kind", "bad_event", "bad_body", "bad_notices", "bad_signature", "clock",
    "not_member", "not_yours", "too_many",
)  # fmt: skip


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def is_stamp(value: Any) -> bool:
    """Whether it may be a stamp of PROTOCOL.md 4.9."""
    return type(value) is int and 0 <= value <= STAMP_MAX


def _text(value: Any) -> bool:
    return type(value) is str


def _bytes(value: Any) -> bool:
    return type(value) is bytes


def _sized(*sizes: int) -> Check:
    return lambda value: type(value) is bytes and len(value) in sizes


def _one_of(*values: str) -> Check:
    return lambda value: type(value) is str and value in values


def _tries(check: Callable[[Any], Any]) -> Check:
    def holds(value: Any) -> bool:
        try:
            return type(value) is str and bool(check(value))
        except AddressError:
            return False

    return holds


_name = _tries(check_local_name)
_domain = _tries(check_domain)
_addresses = _tries(lambda text: all(map(split_host_port, text.split())) or not text)
_hash, _log, _incarnation = _sized(32), _sized(16), _sized(16)


def _no_name_or(check: Check) -> Check:
    return lambda value: value == "" or check(value)


def _missing(value: Any) -> bool:
    return type(value) is bytes and len(value) % 8 == 0


def _places(value: Any) -> bool:
    return type(value) is bytes and len(value) % rows.PLACE_BYTES == 0


def _flag(value: Any) -> bool:
    return type(value) is int and value in (0, 1)


_BY_TYPE: dict[str, Check] = {
    "int": _number, "str": _text, "bytes": _bytes, "bytes | None": lambda value: value is None or _bytes(value),
}  # fmt: skip
_BY_NAME: dict[str, Check] = {
    "stamp": is_stamp, "last_stamp": is_stamp, "node": _hash, "peer": _hash, "origin": _hash, "conversation": _hash,
    "head": _hash, "event": _hash, "target": _hash, "log": _log, "incarnation": _incarnation, "local": _name,
    "signature": _sized(64),
}  # fmt: skip
_EXACT: dict[tuple[type, str], Check] = {
    (rows.Account, "state"): _one_of("active", "disabled", "deleted"),
    (rows.Account, "requests"): _one_of("strangers", "everyone"),
    (rows.Account, "presence"): _one_of("contacts", "nobody"),
    (rows.Block, "local"): _no_name_or(_name),
    (rows.Block, "other"): _no_name_or(_name),
    (rows.Device, "signing_key"): _sized(32),
    (rows.Device, "token_hash"): _hash,
    (rows.Invite, "code_hash"): _hash,
    (rows.Peer, "name"): _no_name_or(_domain),
    (rows.Peer, "state"): _one_of("accepted", "pending", "open", "blocked"),
    (rows.Peer, "addresses"): _addresses,
    (rows.Conversation, "kind"): _one_of("direct", "notices"),
    (rows.Conversation, "node_a"): _hash,
    (rows.Conversation, "node_b"): _hash,
    (rows.Conversation, "local_a"): _no_name_or(_name),
    (rows.Conversation, "local_b"): _no_name_or(_name),
    (rows.Standing, "state"): _one_of("open", "request", "declined"),
    (rows.Outbound, "head"): _number,
    (rows.Heal, "restored"): is_stamp,
    (rows.StoredEvent, "late"): _flag,
    (rows.Aimed, "deleted"): _flag,
    (rows.Aimed, "edits"): _places,
    (rows.Aimed, "marks"): _places,
    (rows.Receipt, "missing"): _missing,
}
_DEFAULTS: dict[tuple[type, str], Any] = {
    (rows.Account, "password"): "",  # no login by password until a new one is set
    (rows.Account, "display_name"): "",
    (rows.Account, "state"): "disabled",
    (rows.Account, "requests"): "everyone",
    (rows.Account, "created_ms"): 0,
    (rows.Account, "presence"): "nobody",
    (rows.Account, "blocks"): 1,  # they are looked up
    (rows.Block, "added_ms"): 0,
    (rows.Device, "name"): "",
    (rows.Device, "created_ms"): 0,
    (rows.Device, "seen_ms"): 0,
    (rows.Device, "revoked_ms"): 1,
    (rows.Device, "acked"): 0,  # it gets again what it has
    (rows.Invite, "created_ms"): 0,
    (rows.Invite, "expires_ms"): 0,
    (rows.Invite, "used_by"): "?",
    (rows.Invite, "revoked_ms"): 1,
    (rows.Peer, "name"): "",
    (rows.Peer, "state"): "pending",
    (rows.Peer, "addresses"): "",
    (rows.Heal, "restored"): 0,
    (rows.Heal, "phase"): 0,
    (rows.Peer, "hints"): "",
    (rows.Peer, "reach"): "public",
    (rows.Peer, "chain"): b"",  # the next hello proves itself by the node id
    (rows.Peer, "added_ms"): 0,
    (rows.Peer, "contact_ms"): 0,
    (rows.Peer, "used"): 0,
    (rows.Peer, "used_ms"): 0,
    (rows.Mailbox, "bytes"): 0,
    (rows.Outbound, "bytes"): 0,
    (rows.Outbound, "given_up"): 0,
    (rows.Destination, "bytes"): 0,
    (rows.Standing, "state"): "request",  # asks again, and shows no sign of life until then
    (rows.Standing, "last_stamp"): 0,
    (rows.Receipt, "sent"): 0,
    (rows.Receipt, "delivered"): 0,
    (rows.Receipt, "read"): 0,
    (rows.Receipt, "missing"): b"",
    (rows.Receipt, "sent_ms"): 0,
    (rows.Receipt, "delivered_ms"): 0,
    (rows.Receipt, "read_ms"): 0,
    (rows.Failed, "code"): "failed",
    (rows.Failed, "reason"): "",
    (rows.Failed, "at_ms"): 0,
    (rows.Evidence, "at_ms"): 0,
    (rows.Aimed, "deleted"): 1,  # what may be deleted is not kept
    (rows.Aimed, "edits"): b"",
    (rows.Aimed, "marks"): b"",
}


@lru_cache(1024)
def _chain_holds(node: bytes, chain: bytes) -> bool:
    try:
        return check_chain(decode_chain(chain)).node == node
    except ProtocolError:
        return False


def _is_its_conversation(row: rows.Conversation) -> bool:
    a, b = User(row.node_a, row.local_a), User(row.node_b, row.local_b)
    if row.kind == "notices":
        return not a.local and not b.local and notice_conversation(a.node, b.node) == row.conversation
    return direct_conversation(a, b) == row.conversation


# What the fields of a row say of each other.
_WHOLE: dict[type, Callable[[Any], str]] = {
    rows.LogHead: lambda r: "" if Log(r.conversation, r.origin, r.incarnation).key == r.log else "log",
    rows.Conversation: lambda r: "" if _is_its_conversation(r) else "conversation",
    rows.Peer: lambda r: "" if not r.chain or _chain_holds(r.node, r.chain) else "chain",
    rows.StoredEvent: lambda r: "" if opened(r) is not None else "event",
    rows.Evidence: lambda r: "" if event_id(r.header) == r.event else "event",
}


def _check(row: type, name: str, kind: Any) -> Check:
    kind = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return _EXACT.get((row, name)) or _BY_NAME.get(name) or _BY_TYPE[kind]


_CHECKS: dict[type, tuple[Check, ...]] = {
    row: tuple(_check(row, name, kind) for name, kind in row.__annotations__.items()) for row in rows.KEYS
}


def mend(row: type[R], values: Sequence[Any]) -> tuple[R | None, tuple[str, ...]]:
    """The row that these values make, as far as they can be believed, and which fields could not be.

    None where a field is damaged that nothing can stand in for.
    """
    make: Callable[[Any], R] = row._make  # type: ignore[attr-defined]
    bad = [i for i, check in enumerate(_CHECKS[row]) if not check(values[i])]
    if not bad:
        made = make(values)
        whole = _WHOLE.get(row)
        if whole is None or not (name := whole(made)):
            return made, ()
        if (row, name) not in _DEFAULTS:
            return None, (name,)
        return made._replace(**{name: _DEFAULTS[row, name]}), (name,)  # type: ignore[attr-defined]
    names = list(row.__annotations__)
    fields = tuple(names[i] for i in bad)
    if any((row, name) not in _DEFAULTS for name in fields):
        return None, fields
    mended = list(values)
    for i in bad:
        mended[i] = _DEFAULTS[row, names[i]]
    again, more = mend(row, mended)
    return again, (*fields, *more)


def opened(row: rows.StoredEvent) -> Header | None:
    """An event's header where all that is stored is what was signed; none where any of it is damaged.

    The signature itself is not looked at here: that costs more than all the rest, and whoever gets it checks it.
    """
    if row.refused:
        return None if refused_place(row.log, row.seq, event_id(row.header)) != row.event else _NO_HEADER
    if event_id(row.header) != row.event:
        return None
    try:
        header = peek_header(row.header)
    except ProtocolError:
        return None
    said = (header.seq, header.conversation, header.stamp, header.sender, header.device, header.kind)
    if said != (row.seq, row.conversation, row.stamp, row.sender, row.device, row.kind) or header.log.key != row.log:
        return None
    if row.body is not None and (len(row.body) != header.body_bytes or body_hash(row.body) != header.body_hash):
        return None
    return header


def refused_place(log: bytes, seq: int, event: bytes) -> bytes:
    """The id of its own under which a refused event is kept: a replayed one must not occupy another's place."""
    return digest("refused", log, seq.to_bytes(8, "big"), event)


_NO_HEADER = Header(
    1, bytes(32), bytes(32), bytes(16), 1, None, None, "", b"", 0, None, "refused", None, None, "", bytes(32), 0
)
