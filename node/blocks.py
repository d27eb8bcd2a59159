"""Block lists as people say them: addresses and names of nodes, of one user or of the whole node."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from node import api
from node.api import ApiError
from node.core.blocks import ChangeBlock
from node.storage import blocks

if TYPE_CHECKING:
    from node.node import Node


async def change(node: "Node", local: str, who: str, on: bool) -> None:
    """`local` empty: the administrator's word, for all users of this node."""
    other = node.directory.whom(who)
    asked = await node.store.read(blocks.asked, local, other) if on and local else []
    await node.store.submit(ChangeBlock(local, other, on, tuple(asked)))
    if local:
        node.ephemerals.changed(local)


async def show(node: "Node", local: str) -> tuple[api.BlockState, ...]:
    found = await node.store.read(blocks.of, local)
    name = node.directory.name_of
    return tuple(
        api.BlockState(node.directory.address(b.node, b.other) if b.other else name(b.node), b.added_ms) for b in found
    )


# --- the administrator ----------------------------------------------------------------------------------------------
async def _add(node: "Node", args: dict[str, Any]) -> Any:
    return await _for_all(node, args["who"], True)


async def _remove(node: "Node", args: dict[str, Any]) -> Any:
    return await _for_all(node, args["who"], False)


async def _for_all(node: "Node", who: str, on: bool) -> Any:
    if "@" not in who:
        raise ApiError("bad_request", f"{who[:80]!r} is no address; `roost peer block` refuses a whole node")
    await change(node, "", who, on)
    return {"who": who}


async def _list(node: "Node", args: dict[str, Any]) -> Any:
    return [{"who": block.who, "since": block.since} for block in await show(node, "")]


Operation = Callable[["Node", dict[str, Any]], Awaitable[Any]]
OPERATIONS: dict[str, Operation] = {"block.add": _add, "block.remove": _remove, "block.list": _list}
