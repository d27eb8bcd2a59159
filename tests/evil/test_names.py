"""B9: names that look like others'. Refused or the same account; there is never a second one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation import wire
from federation.errors import AddressError
from federation.ids import Address, check_domain, check_local_name
from node.admin import AdminError, call
from node.api import ApiError
from node.node import Node
from tests.evil import kit
from tests.evil.kit import Peer
from tests.node.helpers import config

LOOKALIKES = {
    "Cyrillic": "аlice",
    "Greek": "αlice",
    "a capital": "Alice",
    "all capitals": "ALICE",
    "a dotless i": "alıce",
    "a capital I with a dot": "alİce",
    "fullwidth": "ａｌｉｃｅ",
    "mathematical": "𝐚lice",
    "a zero-width space": "al\u200bice",
    "a zero-width joiner": "al\u200dice",
    "a soft hyphen": "al\u00adice",
    "right-to-left override": "\u202eecila",
    "a combining accent": "alice\u0301",
    "composed": "alicé",
    "a variation selector": "alice\ufe0f",
    "a tag": "alice\U000e0061",
    "a space after it": "alice ",
    "a space before it": " alice",
    "a no-break space": "alice\u00a0",
    "a newline": "alice\n",
    "a NUL": "alice\0",
    "a long s": "aliſe",
    "a Kelvin sign": "\u212aate",
    "percent": "al%69ce",
    "an A-label": "xn--lice-5na@",
    "an address": "alice@a.test",
    "a dot at the end": "alice.",
    "two dots": "al..ice",
    "nothing": "",
    "65 letters": "a" * 65,
}
NODES = {
    "Cyrillic": "а.test",
    "a capital": "A.test",
    "a dot at the end": "a.test.",
    "a fullwidth dot": "a．test",
    "an ideographic dot": "a。test",
    "a U-label": "bücher.test",
    "an A-label that decodes to nothing": "xn--.test",
    "an A-label of plain letters": "xn--a-.test",
    "an A-label of capitals": "xn--Bcher-kva.test",
    "an A-label that is not IDNA 2008": "xn--n3h.test",
    "a hidden joiner": "xn--ab-m1t.test",
    "an underscore": "a_b.test",
    "a hyphen at the end": "a-.test",
    "nothing": "",
    "an empty label": "a..test",
    "254 characters": ".".join(["a" * 63] * 4)[:254],
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node.open(config(tmp_path)) as node:
        node.system.hash_password = _quick  # type: ignore[method-assign]
        await node.create_user("alice", "pw")
        yield node


async def _quick(password: str) -> str:
    return "hashed"


@pytest.mark.parametrize("what", LOOKALIKES)
async def test_b9_no_door_makes_a_second_alice(node: Node, what: str) -> None:
    name = LOOKALIKES[what]
    with pytest.raises(AdminError) as refused:
        await call(node.config, "user.add", {"name": name, "password": "pw"})
    assert refused.value.code == "bad_request"
    code = (await call(node.config, "invite.new", {}))["invite"].partition("#")[2]
    client = await kit.client(node.connect_inside())
    if len(name) <= 64:  # a longer one is no frame
        with pytest.raises(ApiError) as at_the_door:
            await client.register(code, name)
        assert at_the_door.value.code == "bad_request"
        with pytest.raises(ApiError) as at_login:
            await client.login(name)
        assert at_login.value.code in ("bad_login", "bad_request")
    assert [user["name"] for user in await call(node.config, "user.list", {})] == ["alice"]
    made = await client.register(code, "bob")  # the invite is not used up
    assert made.address == "bob@a.test"


@pytest.mark.parametrize("what", [w for w in LOOKALIKES if w != "an address"])
async def test_b9_nothing_is_sent_to_who_only_looks_like_alice(node: Node, what: str) -> None:
    _, token = await kit.device(node, "alice")
    alice = await kit.client(node.connect_inside(), token=token, feed=False)
    for to in (f"{LOOKALIKES[what]}@a.test", f"{LOOKALIKES[what]}@b.test"):
        with pytest.raises(ApiError) as refused:
            await alice.send(to, b"x")
        assert refused.value.code == "bad_request"


@pytest.mark.parametrize("what", NODES)
async def test_b9_no_node_is_called_what_only_looks_like_another(node: Node, what: str) -> None:
    name = NODES[what]
    with pytest.raises(AddressError):
        check_domain(name)
    _, token = await kit.device(node, "alice")
    alice = await kit.client(node.connect_inside(), token=token, feed=False)
    if len(name) < 250:
        with pytest.raises(ApiError) as refused:
            await alice.send(f"alice@{name}", b"x")
        assert refused.value.code == "bad_request"
    if len(name) <= 253:
        async with kit.served(node) as open_door:
            peer = Peer(await open_door("memory", wire.ALPN), name=name or "?")
            await peer.offer()
            await peer.tell(peer.hello(name=name))
            assert await peer.end() == "bad_frame"
    assert not node.directory.peers


async def test_b9_a_deleted_name_is_never_given_again(node: Node) -> None:
    await call(node.config, "user.delete", {"name": "alice"})
    code = (await call(node.config, "invite.new", {}))["invite"].partition("#")[2]
    client = await kit.client(node.connect_inside())
    with pytest.raises(ApiError) as refused:
        await client.register(code, "alice")
    assert refused.value.code == "name_taken"


@given(st.text(max_size=12))
def test_b9_a_name_that_is_taken_is_plain_and_itself(text: str) -> None:
    """No two different texts are one name, since nothing is folded, and what is a name is plain ASCII."""
    for check in (check_local_name, check_domain):
        try:
            found = check(text)
        except AddressError:
            continue
        assert found == text
        assert text.isascii()
        assert text == text.lower().strip()


def test_b9_addresses_have_one_spelling() -> None:
    for name in LOOKALIKES.values():
        with pytest.raises(AddressError):
            Address.parse(f"{name}@a.test")
    assert str(Address.parse("alice@a.test")) == "alice@a.test"
