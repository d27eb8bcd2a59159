"""Values of any msgspec type within its own bounds: whatever a frame's fields become, every frame is tried."""

from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

_TEXT = st.characters(exclude_categories=["Cs"])


def values(type_: Any) -> st.SearchStrategy[Any]:
    return _of(inspect.type_info(type_))


def _of(info: inspect.Type) -> st.SearchStrategy[Any]:
    make = _MAKERS.get(type(info))
    assert make is not None, f"no values for {info}"
    return make(info)


def _int(info: inspect.IntType) -> st.SearchStrategy[int]:
    least = info.ge if info.ge is not None else -(1 << 63)
    most = info.le if info.le is not None else (1 << 63) - 1
    return st.integers(least, most) | st.sampled_from([least, most])


def _str(info: inspect.StrType) -> st.SearchStrategy[str]:
    most = min(info.max_length or 40, 40)
    if info.pattern is not None:
        return st.from_regex(info.pattern.replace(r"\Z", "$"), fullmatch=False).filter(
            lambda text: len(text) <= (info.max_length or 40) and not text.endswith("\n")
        )
    return st.text(_TEXT, min_size=info.min_length or 0, max_size=most)


def _bytes(info: inspect.BytesType) -> st.SearchStrategy[bytes]:
    least = info.min_length or 0
    return st.binary(min_size=least, max_size=max(least, min(info.max_length or 64, 64)))


def _tuple(info: inspect.VarTupleType) -> st.SearchStrategy[Any]:
    most = min(3 if info.max_length is None else info.max_length, 3)
    return st.lists(_of(info.item_type), min_size=info.min_length or 0, max_size=most).map(tuple)


def _dict(info: inspect.DictType) -> st.SearchStrategy[Any]:
    return st.dictionaries(_of(info.key_type), _of(info.value_type), max_size=3)


def _struct(info: inspect.StructType) -> st.SearchStrategy[Any]:
    fields = {field.name: _of(field.type) for field in info.fields}
    return st.fixed_dictionaries(fields).map(lambda made: info.cls(**made))


_MAKERS: dict[type, Callable[[Any], st.SearchStrategy[Any]]] = {
    inspect.IntType: _int,
    inspect.StrType: _str,
    inspect.BytesType: _bytes,
    inspect.BoolType: lambda info: st.booleans(),
    inspect.NoneType: lambda info: st.none(),
    inspect.LiteralType: lambda info: st.sampled_from(info.values),
    inspect.UnionType: lambda info: st.one_of(*map(_of, info.types)),
    inspect.VarTupleType: _tuple,
    inspect.TupleType: lambda info: st.tuples(*map(_of, info.item_types)),
    inspect.DictType: _dict,
    inspect.StructType: _struct,
}


def mutated(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """A seed with a few bytes changed, taken out, or put in, or two seeds joined in the middle."""
    return st.builds(_mutate, st.sampled_from(seeds), st.sampled_from(seeds), st.lists(_CHANGE, max_size=4))


_CHANGE = st.tuples(st.sampled_from("sdij"), st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4))


def _mutate(raw: bytes, other: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    made = bytearray(raw)
    for kind, where, data in changes:
        at = where % (len(made) + 1)
        if kind == "s":
            made[at : at + len(data)] = data
        elif kind == "d":
            del made[at : at + len(data)]
        elif kind == "i":
            made[at:at] = data
        else:
            made[at:] = other[at:]
    return bytes(made)


def encoded(frame: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(frame)
