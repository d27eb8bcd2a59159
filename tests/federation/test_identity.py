"""Who a node is: chains, forged ones too, signatures, hellos and links (PROTOCOL.md 2 and 3)."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import AddressError, ProtocolError
from federation.identity import (
    ROTATIONS_MAX,
    Chain,
    Genesis,
    NodeKey,
    NodeLink,
    Rotation,
    check_chain,
    decode_chain,
    encode_chain,
    hello_bytes,
    new_chain,
    replaces,
    rotate,
    split_host_port,
    verify,
)
from federation.ids import digest, to_text
from federation.ports import Binding
from tests.federation import vectors as v

ID = to_text(v.NODE)
replace = msgspec.structs.replace


def test_a_node_keeps_its_id_through_rotations() -> None:
    found = [check_chain(chain) for chain in (v.BORN, v.ROTATED, v.RECOVERED)]
    assert {identity.node for identity in found} == {digest("node", v.BORN.genesis)}
    assert [identity.key for identity in found] == [v.FIRST.public, v.SECOND.public, v.THIRD.public]
    assert [identity.number for identity in found] == [0, 1, 2]


def test_the_recovery_key_takes_over_from_a_stolen_key() -> None:
    stolen = rotate(v.BORN, NodeKey(v.b(66)).public, v.FIRST, "signing")
    saved = rotate(v.BORN, v.SECOND.public, v.RECOVERY, "recovery")
    assert check_chain(saved).key == v.SECOND.public
    assert check_chain(stolen).node == check_chain(saved).node  # a fork: one number, two keys


def test_a_chain_gives_way_to_its_continuation_and_to_the_recovery_key_only() -> None:
    thief = NodeKey(v.b(66))
    stolen = rotate(v.BORN, thief.public, v.FIRST, "signing")  # with the first key, after it was rotated away
    longer = rotate(rotate(stolen, thief.public, thief, "signing"), thief.public, thief, "signing")
    saved = rotate(v.BORN, v.SECOND.public, v.RECOVERY, "recovery")
    assert [replaces(v.ROTATED, known) for known in (v.BORN, v.ROTATED, v.RECOVERED)] == [True, True, False]
    assert [replaces(new, v.ROTATED) for new in (stolen, longer, saved, v.RECOVERED)] == [False, False, True, True]
    assert [replaces(new, saved) for new in (v.BORN, stolen, longer, v.ROTATED)] == [False] * 4
    assert replaces(saved, longer)  # however far the thief went on


def forged(number: int = 1, by: str = "signing", signature: bytes = v.b(0, 64)) -> Chain:
    return Chain(v.BORN.genesis, (Rotation(number, v.SECOND.public, by, signature),))  # type: ignore[arg-type]


GOOD = v.ROTATED.rotations[0]
FORGED = {
    "no signature": forged(),
    "signed by a stranger": rotate(v.BORN, v.SECOND.public, v.THIRD, "signing"),
    "signed by the new key": rotate(v.BORN, v.SECOND.public, v.SECOND, "signing"),
    "recovery signed by the signing key": rotate(v.BORN, v.SECOND.public, v.FIRST, "recovery"),
    "signing by the recovery key": rotate(v.BORN, v.SECOND.public, v.RECOVERY, "signing"),
    "signed by the key before last": rotate(v.ROTATED, v.THIRD.public, v.FIRST, "signing"),
    "another new key": Chain(v.BORN.genesis, (replace(GOOD, signing_key=v.THIRD.public),)),
    "another number": Chain(v.BORN.genesis, (replace(GOOD, number=2),)),
    "twice": Chain(v.BORN.genesis, (GOOD, GOOD)),
    "out of order": Chain(v.BORN.genesis, v.RECOVERED.rotations[::-1]),
    "one left out": Chain(v.BORN.genesis, v.RECOVERED.rotations[1:]),
    "of another node": Chain(new_chain(v.FIRST, v.RECOVERY.public, v.b(77)).genesis, (GOOD,)),
    "truncated": Chain(v.BORN.genesis, (replace(GOOD, signature=GOOD.signature[:63]),)),
    "with a tail": Chain(v.BORN.genesis, (replace(GOOD, signature=GOOD.signature + b"x"),)),
    "short key": Chain(v.BORN.genesis, (replace(GOOD, signing_key=b"short"),)),
}


@pytest.mark.parametrize("chain", FORGED.values(), ids=FORGED)
def test_a_forged_rotation_refuses_the_chain(chain: Chain) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_chain(chain)
    assert (caught.value.code, caught.value.rule) == ("bad_identity", "2.3")


@pytest.mark.parametrize(
    "genesis",
    [
        b"",
        b"\x90",
        v.BORN.genesis + b"\0",
        v.BORN.genesis[:-1],
        b"\x94\xcc\x01" + v.BORN.genesis[2:],  # the version, written long
        b"\x94\x02" + v.BORN.genesis[2:],
        msgspec.msgpack.encode(Genesis(1, v.b(1, 31), v.b(2), v.b(3))),
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 200,
    ],
)
def test_a_genesis_has_one_encoding(genesis: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_chain(Chain(genesis))
    assert caught.value.rule == "2.1"


@given(st.data())
def test_any_flipped_bit_of_a_chain_is_refused_or_is_another_node(data: st.DataObject) -> None:
    raw = bytearray(encode_chain(v.RECOVERED))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolError) as caught:
        check_chain(decode_chain(bytes(raw)))
    assert caught.value.code == "bad_identity"


@given(st.binary(max_size=300))
def test_bytes_that_are_read_as_a_chain_are_written_so(raw: bytes) -> None:
    for tried in (raw, encode_chain(v.ROTATED)[: len(raw)] + raw, encode_chain(v.BORN)[:-1] + raw):
        found = v.read_or_refused(decode_chain, tried, "bad_identity")
        assert found is None or encode_chain(found) == tried


def test_a_chain_of_too_many_rotations_or_a_second_encoding_is_not_read() -> None:
    long = encode_chain(Chain(v.BORN.genesis, (GOOD,) * (ROTATIONS_MAX + 1)))
    born = encode_chain(v.BORN)
    for raw in (long, born[:-1] + b"\xdc\0\0", born[:-1].replace(b"\x92", b"\x91", 1), b"\x91" * 100_000):
        with pytest.raises(ProtocolError, match=r"2\.2"):
            decode_chain(raw)


def test_a_signature_is_for_one_key_one_domain_and_these_bytes() -> None:
    signature = v.FIRST.sign("event", b"data")
    assert verify(v.FIRST.public, "event", b"data", signature)
    assert not verify(v.SECOND.public, "event", b"data", signature)
    assert not verify(v.FIRST.public, "hello", b"data", signature)
    assert not verify(v.FIRST.public, "event", b"date", signature)
    assert not verify(bytes(32), "event", b"data", signature)


def test_no_other_length_of_key_or_signature_verifies() -> None:
    signature = v.FIRST.sign("event", b"data")
    for cut in range(64):
        assert not verify(v.FIRST.public, "event", b"data", signature[:cut])
    for key in (b"", v.FIRST.public[:31], v.FIRST.public + b"\0"):  # libsodium would read past its end
        assert not verify(key, "event", b"data", signature)


def test_the_head_of_the_data_cannot_hide_in_the_signature() -> None:
    tail = b"roost/event/1\0data"  # what verify would put behind the signature
    signature = v.FIRST.sign("event", b"innocent " + tail)
    assert not verify(v.FIRST.public, "event", b"data", signature + b"roost/event/1\0innocent ")


def test_a_hello_holds_for_one_channel_one_role_and_one_pair_of_nonces() -> None:
    made = [
        hello_bytes(role, Binding(kind, key, exporter), one, other)
        for role in ("server", "client")
        for kind in ("quic", "tcp", "memory")
        for key in (v.b(1), v.b(2))
        for exporter in (v.b(3), v.b(4), b"")
        for one, other in ((v.b(5), v.b(6)), (v.b(6), v.b(5)))
    ]
    assert len(set(made)) == len(made)


LINKS = {
    "nothing": "",
    "another scheme": f"https://{ID}@lab.example",
    "no id": "roost://lab.example",
    "no name": f"roost://{ID}@",
    "short id": f"roost://{ID[:-1]}@lab.example",
    "capital id": f"roost://{ID.upper()}@lab.example",
    "capital name": f"roost://{ID}@Lab.example",
    "cyrillic name": f"roost://{ID}@lаb.example",
    "port": f"roost://{ID}@lab.example:7701",
    "password": f"roost://{ID}:x@lab.example",
    "path": f"roost://{ID}@lab.example/x",
    "fragment": f"roost://{ID}@lab.example#x",
    "other parameter": f"roost://{ID}@lab.example?at=a:1&x=1",
    "empty address": f"roost://{ID}@lab.example?at=",
    "address without port": f"roost://{ID}@lab.example?at=host",
    "escaped address": f"roost://{ID}@lab.example?at=%68ost:1",
    "bare v6": f"roost://{ID}@lab.example?at=::1:7",
    "open bracket": f"roost://{ID}@[lab.example",
    "line end inside": f"roost://{ID}@lab\n.example",
    "tab inside": f"roost://{ID}@lab.example?at=ho\tst:1",
    "script": f"roost://{ID}@lab.example?at=<script>:1",
    "nine addresses": f"roost://{ID}@lab.example?" + "&".join(["at=a:1"] * 9),
    "a million addresses": f"roost://{ID}@lab.example?" + "&".join(["at=a:1"] * 100_000),
}


@pytest.mark.parametrize("text", LINKS.values(), ids=LINKS)
def test_what_is_not_a_link_is_refused_with_what_one_looks_like(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        NodeLink.parse(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 320


@pytest.mark.parametrize("addresses", [(), ("a:0",), v.LINK.addresses, ("[fe80::1%eth0]:7",), ("a:1",) * 8])
def test_a_link_survives_its_text(addresses: tuple[str, ...]) -> None:
    link = NodeLink(v.NODE, "xn--caf-dma.example", addresses)
    assert NodeLink.parse(f" {link}\n") == link


@pytest.mark.parametrize(
    "text", ["", ":1", "a", "a:", "a:x", "a:65536", "a:01", "a:-1", "a:٣", "[]:1", "[a:1", "a b:1"]
)
def test_what_is_not_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        split_host_port(text)
    assert split_host_port("[2001:db8::7]:65535") == ("2001:db8::7", 65535)
    assert split_host_port("host-1.example:0") == ("host-1.example", 0)
