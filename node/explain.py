"""`roost why`: everything this node knows about one message's way, in the order it happened."""

from typing import TYPE_CHECKING

from federation.event import stamp_ms
from federation.ids import Log, User, to_text
from node import api
from node.core import render, rows
from node.queues import when, why_waiting
from node.storage import reads

if TYPE_CHECKING:
    from node.node import Node


async def explain(node: "Node", event: bytes) -> api.Why:
    """Raises `ApiError` when there is no such event here."""
    found = await node.store.read(reads.event_by_id, event)
    if found is None:
        raise api.ApiError("not_found", "no such message here")
    placed, conversation = found
    row = placed.event
    receipts, failed, outbound, _ = await node.store.read(reads.progress, node.us.node, row.log)
    address = node.directory.address
    sender = User(placed.origin, row.sender)
    own = placed.origin == node.us.node
    hops = [api.Hop(stamp_ms(row.stamp), "written", f"by {address(*sender)} on device {to_text(row.device)[:8]}")]
    hops.append(api.Hop(row.arrived_ms, "accepted" if own else "received", f"stored on {node.us.name}"))
    for queue in outbound:
        if queue.acked >= row.seq or queue.given_up < row.seq:
            hops.append(_link_hop(node, queue, row.seq, Log(row.conversation, placed.origin, placed.incarnation)))
    to = render.recipients(conversation, sender, row, receipts, failed, address)
    for recipient in to:
        if recipient.state not in ("accepted", "sent"):
            hops.append(api.Hop(recipient.at, recipient.state, f"{recipient.address} {recipient.reason}".strip()))
    waiting = next((h.detail for h in hops if h.what == "waiting"), "")
    summary = "; ".join(f"{r.address}: {r.state}" for r in to) + (f" ({waiting})" if waiting else "")
    return api.Why(to_text(event), summary, tuple(hops))


def _link_hop(node: "Node", queue: rows.Outbound, seq: int, log: Log) -> api.Hop:
    """One peer that must get it: acknowledged, or why not yet and when it is tried next."""
    name = node.directory.name_of(queue.peer)
    if queue.acked >= seq:
        return api.Hop(0, "sent", f"{name} stored it")
    before = seq - queue.acked - 1
    behind = f"; {before} of this conversation wait before it" if before > 0 else ""
    running = node.service.links.get(queue.peer)
    if running is None or not running.state.up:
        reason, wait_ms = why_waiting(node, queue.peer)
        reason += f"; {when(wait_ms)}" if wait_ms is not None else ""
    elif log in node.host.paused:
        reason = f"{name} said later: {node.host.paused[log]}"
    else:
        reason = f"on its way to {name} over {running.transport}"
    return api.Hop(0, "waiting", reason + behind)
