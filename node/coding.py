"""The two encodings of the client protocol, strict both ways, and its machine-readable schema (PROTOCOL.md 7.1)."""

import json

import msgspec

from node.api import CODES, ApiError, FromClient, FromNode, Item


def _check_json_keys(raw: bytes) -> None:
    json.loads(raw, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise msgspec.DecodeError("Object contains a key twice")


_raw_map = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
_raw_array = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def _check_msgpack_keys(raw: bytes | memoryview) -> None:
    """Compares the count each map announces with the keys it has; runs after the typed decode, so depth is known."""
    first = raw[0]
    if 0x80 <= first <= 0x8F or first in (0xDE, 0xDF):
        size_bytes = {0xDE: 2, 0xDF: 4}.get(first, 0)
        announced = int.from_bytes(raw[1 : 1 + size_bytes], "big") if size_bytes else first & 0x0F
        values = list(_raw_map(raw).values())
        if len(values) != announced:
            raise msgspec.DecodeError("Object contains a key twice")
    elif 0x90 <= first <= 0x9F or first in (0xDC, 0xDD):
        values = _raw_array(raw)
    else:
        return
    for value in values:
        _check_msgpack_keys(memoryview(value))


class Codec:
    """One of the two encodings, for one direction; `decode` raises `ApiError("bad_frame")` only."""

    def __init__(self, text: bool) -> None:
        module = msgspec.json if text else msgspec.msgpack
        self.encode = module.Encoder().encode
        self._from_client = module.Decoder(FromClient).decode
        self._from_node = module.Decoder(FromNode).decode
        self._check_keys = _check_json_keys if text else _check_msgpack_keys

    def from_client(self, raw: bytes) -> FromClient:
        """Refuses a repeated key too, which the typed decoder would let the last one win (PROTOCOL.md 7.1)."""
        try:
            frame: FromClient = self._from_client(raw)
            self._check_keys(raw)
            return frame
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ApiError("bad_frame", f"the frame cannot be read: {str(error)[:120]!r}") from None

    def from_node(self, raw: bytes) -> FromNode:
        try:
            return self._from_node(raw)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ApiError("bad_frame", f"the node's frame cannot be read: {str(error)[:120]!r}") from None


JSON = Codec(text=True)
MSGPACK = Codec(text=False)
_item = msgspec.msgpack.Decoder(Item)


def encode_item(item: Item) -> bytes:
    """A feed item as it is kept in the store (MessagePack, position left out)."""
    raw: bytes = MSGPACK.encode(item)
    return raw


def decode_item(raw: bytes, position: int) -> Item:
    item: Item = msgspec.structs.replace(_item.decode(raw), position=position)
    return item


def schema() -> bytes:
    """The JSON schema of both directions, for clients in other languages."""
    (client, node), components = msgspec.json.schema_components([FromClient, FromNode], ref_template="#/$defs/{name}")
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Roost client protocol 1",
        "from_client": client,
        "from_node": node,
        "codes": {code: {"retry": retry, "meaning": meaning} for code, (retry, meaning) in CODES.items()},
        "$defs": components,
    }
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=1) + b"\n"


if __name__ == "__main__":
    import sys

    sys.stdout.buffer.write(schema())
