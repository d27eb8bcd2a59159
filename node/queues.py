"""`roost queue`: what waits for other nodes and why, trying it now, giving it up."""

import math
from typing import TYPE_CHECKING, Any

from federation.ids import to_text
from node.storage import waits

if TYPE_CHECKING:
    from node.node import Node

SOON_MS = 100  # nobody needs to know of a shorter wait
FOREVER_MS = 1 << 62
NOTHING = waits.Waiting(0, 0, 0)


def why_waiting(node: "Node", peer: bytes) -> tuple[str, int | None]:
    """Why what waits for a peer is not there yet, for people; and in how many ms it is tried again, where that is
    known."""
    name = node.directory.name_of(peer)
    known, running, backoff = (
        node.directory.peers.get(peer),
        node.service.links.get(peer),
        node.service.backoffs.get(peer),
    )
    if not node.service.can_call:
        return "this node does not run", None
    if node.held:
        return f"this node sends nothing: {node.held}", None
    if running is not None and running.state.up:
        if not (paused := running.state.paused):
            return f"on its way to {name} over {running.transport}", None
        until, reason = min(paused.values())
        wait = max(0, until - node.system.monotonic_ms())
        return f"{name} wants {len(paused)} of its conversations later ({reason})", wait
    if known is not None and known.state == "blocked":
        return f"{name} is blocked here", None
    if known is not None and known.state == "pending":
        return f"{name} is not accepted here", None
    if running is not None:
        return f"{name} has not accepted this node yet; its administrator sees that it asks", None
    if backoff is not None and backoff.next_ms:
        wait = max(0, backoff.next_ms - node.system.monotonic_ms())
        return f"{name} does not answer ({backoff.reason or 'no link'})", wait
    return f"{name} was not reached yet", None


def when(wait_ms: int) -> str:
    """The next try, for people."""
    return f"next try in {wait_ms / 1000:.1f} s" if wait_ms >= SOON_MS else "it is called now"


Waiting = dict[bytes, waits.Waiting]


def _which(node: "Node", text: str, waiting: Waiting) -> bytes:
    """A peer by name or id; one that was removed by the id that the list shows. `ApiError`."""
    removed = {to_text(peer): peer for peer in waiting if peer not in node.directory.peers}
    return removed[text] if text in removed else node.directory.find(text).node


async def show(node: "Node", args: dict[str, Any]) -> list[dict[str, Any]]:
    """A record for each peer for which anything waits; for the one that is asked about also when nothing does."""
    waiting = await node.store.read(waits.waiting)
    found = [_which(node, args["peer"], waiting)] if args.get("peer") else sorted(waiting)
    records = []
    for peer in found:
        queue = waiting.get(peer, NOTHING)
        known, running = node.directory.peers.get(peer), node.service.links.get(peer)
        reason, wait_ms = why_waiting(node, peer) if queue.events else ("nothing waits", None)
        records.append(
            {
                "peer": node.directory.name_of(peer),
                "state": known.state if known is not None else "removed",
                "link": "up" if running is not None and running.state.up else "down",
                "waiting": queue.events,
                "bytes": queue.bytes,
                "oldest": queue.oldest_ms,
                "next_s": None if wait_ms is None else math.ceil(wait_ms / 1000),
                "reason": reason,
            }
        )
    return records


async def flush(node: "Node", args: dict[str, Any]) -> dict[str, Any]:
    """Try now: no back-off, and nothing rests that a peer wanted later."""
    waiting = await node.store.read(waits.waiting)
    found = [_which(node, args["peer"], waiting)] if args.get("peer") else sorted(waiting)
    if not node.service.can_call:
        return {"flushed": []}
    for peer in found:
        node.service.flush(peer)
    return {"flushed": [node.directory.name_of(peer) for peer in found]}


async def expire(node: "Node", args: dict[str, Any]) -> dict[str, Any]:
    """Give up the messages that wait for a peer: their senders see each of them failed."""
    peer = _which(node, args["peer"], await node.store.read(waits.waiting))
    reason = f"given up by the administrator of {node.us.name}"
    failed = await node.upkeep.give_up(peer, FOREVER_MS, "expired", reason)
    left = (await node.store.read(waits.waiting)).get(peer, NOTHING)
    return {"peer": node.directory.name_of(peer), "failed": failed, "left": left.events}
