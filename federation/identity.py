"""Who a node is: genesis record, key chain, node link, and the proofs of the hello (PROTOCOL.md 2 and 3).

Signing happens only through the typed, domain-separated calls of `NodeKey`; nothing signs bytes that a
peer has put together.
"""

import hashlib
import re
from ipaddress import IPv6Address, ip_address
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
from nacl.bindings import crypto_sign, crypto_sign_BYTES, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from federation.errors import AddressError, ProtocolError
from federation.ids import NODE_ID_BYTES, check_domain, digest, from_text, to_text
from federation.ports import Binding

SIGNATURE_BYTES = 64
KEY_BYTES = 32
ROTATIONS_MAX = 256
EVENT_KEYS_MAX = 8  # the newest of a chain
ADDRESSES_MAX = 8

Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
Role = Literal["server", "client"]


class Genesis(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The record a node id is the hash of (PROTOCOL.md 2.1)."""

    version: Literal[1]
    signing_key: Key  # first Ed25519 public key
    recovery_key: Key  # public half of an offline key that may sign one rotation when the first is lost
    salt: Key  # so that one key pair made twice still makes two nodes


class Rotation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One link of the key chain: `signing_key` replaces the key before it (PROTOCOL.md 2.3)."""

    number: Annotated[int, msgspec.Meta(ge=1, le=ROTATIONS_MAX)]
    signing_key: Key
    by: Literal["signing", "recovery"]
    signature: Signature


class Chain(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node's whole public identity: exact genesis bytes and every rotation since."""

    genesis: Annotated[bytes, msgspec.Meta(max_length=256)]
    rotations: Annotated[tuple[Rotation, ...], msgspec.Meta(max_length=ROTATIONS_MAX)] = ()


class Identity(NamedTuple):
    """A verified chain: the node id and the key that speaks for it now."""

    node: bytes
    key: bytes
    number: int  # rotations so far


_HOST_PORT = re.compile(
    r"(?:(?P<host>[0-9A-Za-z][0-9A-Za-z._-]{0,252})|\[(?P<v6>[0-9A-Fa-f:.]{2,45}(?:%[0-9A-Za-z._-]{1,16})?)\])"
    r":(?P<port>0|[1-9][0-9]{0,4})"
)

_encoder = msgspec.msgpack.Encoder()
_genesis = msgspec.msgpack.Decoder(Genesis)
_chain = msgspec.msgpack.Decoder(Chain)


def verify(key: bytes, domain: str, data: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over this domain and these exact bytes (Ed25519, RFC 8032).

    The lengths are checked here because libsodium would read past a short key, and would take the tail of a
    long signature for the head of the data.
    """
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + _signed(domain, data), key)
    except (BadSignatureError, ValueError):
        return False
    return True


def _signed(domain: str, data: bytes) -> bytes:
    return f"roost/{domain}/1\0".encode() + data


class NodeKey:
    """The private signing key of a node or device; signs only what this module or `event` has encoded."""

    def __init__(self, seed: bytes) -> None:
        self.public, self._secret = crypto_sign_seed_keypair(seed)

    def sign(self, domain: str, data: bytes) -> bytes:
        """64 bytes over a domain tag and data; domains are listed in PROTOCOL.md 2.5."""
        return crypto_sign(_signed(domain, data), self._secret)[:crypto_sign_BYTES]

    def secret(self, purpose: str) -> bytes:
        """32 bytes that only who has the key can know, the same in each process life; not for signing."""
        return hashlib.sha256(self.sign("secret", purpose.encode())).digest()  # a signature that never leaves


def new_chain(signing: NodeKey, recovery_public: bytes, salt: bytes) -> Chain:
    """The chain of a node that is born now."""
    return Chain(_encoder.encode(Genesis(1, signing.public, recovery_public, salt)))


def rotate(chain: Chain, new_key: bytes, signer: NodeKey, by: Literal["signing", "recovery"]) -> Chain:
    """The chain with one more rotation, signed by the current signing key or the recovery key."""
    number = len(chain.rotations) + 1
    signature = signer.sign("rotation", _rotation_bytes(chain, number, new_key))
    return Chain(chain.genesis, (*chain.rotations, Rotation(number, new_key, by, signature)))


def _rotation_bytes(chain: Chain, number: int, new_key: bytes) -> bytes:
    previous = chain.rotations[number - 2].signature if number > 1 else b""
    return digest("rotation", chain.genesis, previous, number.to_bytes(4, "big"), new_key)


def check_chain(chain: Chain) -> Identity:
    """The identity a chain proves, or `ProtocolError` (PROTOCOL.md 2.2 and 2.3)."""
    try:
        genesis = _genesis.decode(chain.genesis)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("bad_identity", "the genesis record cannot be read", "2.1") from None
    if _encoder.encode(genesis) != chain.genesis:
        raise ProtocolError("bad_identity", "the genesis record has a second encoding", "2.1")
    key = genesis.signing_key
    for number, rotation in enumerate(chain.rotations, 1):
        signer = key if rotation.by == "signing" else genesis.recovery_key
        data = _rotation_bytes(chain, number, rotation.signing_key)
        if rotation.number != number or not verify(signer, "rotation", data, rotation.signature):
            raise ProtocolError("bad_identity", f"key rotation {number} is not signed by its predecessor", "2.3")
        key = rotation.signing_key
    return Identity(digest("node", chain.genesis), key, len(chain.rotations))


def event_keys(chain: Chain) -> tuple[bytes, ...]:
    """The keys that may have signed an event of this chain's node, newest first (PROTOCOL.md 4.5).

    The chain was checked. One that is made to be tried in vain must not cost much: they are few.
    """
    keys = (_genesis.decode(chain.genesis).signing_key, *(rotation.signing_key for rotation in chain.rotations))
    return keys[::-1][:EVENT_KEYS_MAX]


def replaces(new: Chain, known: Chain) -> bool:
    """Whether a chain that holds may take the place of the one known for its node (PROTOCOL.md 2.2).

    Length says nothing: whoever stole a key that was rotated away can make a chain as long as they like.
    """
    for theirs, ours in zip(new.rotations, known.rotations, strict=False):
        if theirs != ours:
            return (theirs.by, ours.by) == ("recovery", "signing")
    return len(new.rotations) >= len(known.rotations)


def encode_chain(chain: Chain) -> bytes:
    return _encoder.encode(chain)


def decode_chain(raw: bytes) -> Chain:
    try:
        chain = _chain.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("bad_identity", "the key chain cannot be read", "2.2") from None
    if _encoder.encode(chain) != raw:
        raise ProtocolError("bad_identity", "the key chain has a second encoding", "2.2")
    return chain


def hello_bytes(role: Role, binding: Binding, own_nonce: bytes, other_nonce: bytes) -> bytes:
    """What a hello signs (PROTOCOL.md 3.2): over QUIC the TLS exporter, over TCP both nonces, always the TLS key.

    A relay that ends TLS itself has another exporter and another TLS key, so a forwarded hello is worthless.
    """
    return digest(
        "hello", role.encode(), binding.kind.encode(), binding.key_hash, binding.exporter, own_nonce, other_nonce
    )


class NodeLink(NamedTuple):
    """What one administrator gives another: `roost://NODE-ID@NAME?at=HOST:PORT` (PROTOCOL.md 2.4)."""

    node: bytes
    name: str
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        query = urlencode([("at", a) for a in self.addresses], safe=":[]", quote_via=quote)
        return f"roost://{to_text(self.node)}@{self.name}" + (f"?{query}" if query else "")

    @classmethod
    def parse(cls, text: str) -> "NodeLink":
        """Raises `AddressError` that says what a link looks like; one not spelt as we print it is refused."""
        text = text.strip()
        try:
            parts = urlsplit(text)
            node = from_text(parts.username or "", NODE_ID_BYTES)
            addresses = tuple(value for key, value in parse_qsl(parts.query) if key == "at")
            if parts.scheme != "roost" or len(addresses) > ADDRESSES_MAX:
                raise ValueError
            for address in addresses:
                split_host_port(address)
            link = cls(node, check_domain(parts.hostname or ""), addresses)
            if str(link) != text:  # a port, a password, a path, capitals, or what urlsplit drops in silence
                raise ValueError
            return link
        except AddressError:
            raise
        except ValueError:
            raise AddressError(
                f"{text[:80]!r} is not a node link: it looks like roost://NODE-ID@NAME?at=HOST:PORT "
                "(the other administrator prints it with `roost link`)"
            ) from None


def _is_ipv6(text: str) -> bool:
    try:
        return bool(IPv6Address(text))
    except ValueError:
        return False


def split_host_port(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` in parts; `AddressError` otherwise (PROTOCOL.md 2.4)."""
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65535 or not (match["host"] or _is_ipv6(match["v6"])):
        raise AddressError(f"{text[:80]!r} is not HOST:PORT, for example 192.0.2.7:7701")
    return match["host"] or match["v6"], int(match["port"])


def origin(remote: str) -> bytes:
    """Who counts as one stranger's address: an IPv4 address, or all of one IPv6 network, as one host may have it."""
    host = remote.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).packed[:8]
    except ValueError:
        return host.encode()


def address_text(addr: tuple[Any, ...] | None) -> str:
    """`192.0.2.7:7701`, `[2001:db8::1]:7701`; for people."""
    if addr is None:
        return "nowhere"
    host = str(addr[0]).removeprefix("::ffff:")
    return f"[{host}]:{addr[1]}" if ":" in host else f"{host}:{addr[1]}"
