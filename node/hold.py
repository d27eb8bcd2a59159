"""A node whose store is an old copy: held until its administrator accepts the loss, then healed by its peers."""

import asyncio
import logging
from typing import TYPE_CHECKING

from federation.event import next_stamp
from federation.ids import INCARNATION_BYTES, to_text
from node import keys, witness
from node.api import ApiError
from node.core.heal import Hold
from node.storage import life, reads
from node.storage.first import mend_start
from node.storage.migrate import migrate
from node.storage.writer import StoreFailed

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from node.node import Node

log = logging.getLogger("roost.node")
NEXT = "`roost restore --accept -c FILE` goes on from here"


def first_look(node: "Node", connection: "Connection") -> life.Begun:
    """The first transaction: bring the schema up, and see whose store this is and whether it is the newest."""
    migrate(connection)
    us, store, folder = node.us, node.system.random(INCARNATION_BYTES), node.config.data_path
    mend_start(connection, us.node, store)
    before = node.watched[-1] if node.watched else None
    copied = witness.copied_from(folder, before)
    try:
        return life.begin(connection, us.node, us.incarnation, store, bool(node.watched), before, copied)
    except life.WrongNode:
        raise ValueError(
            f"it belongs to another node key than {keys.FILE}; restore that file from your backup, "
            "or give this node a store of its own"
        ) from None


def refusal() -> ApiError:
    return ApiError("held", f"this node runs on an old copy of its store and takes nothing until its administrator "
                            f"accepts that: {NEXT}")  # fmt: skip


async def hold(node: "Node", reason: str, stamp: int = 0) -> None:
    """From now on nothing is sent and nothing taken; reads go on. A restart does not change it."""
    if node.held:
        return
    quiet(node, reason)
    node.own(node.service.hold(), "hold")
    node.changed.set()
    try:
        await node.store.submit(Hold(reason, stamp))
    except (ApiError, StoreFailed) as error:
        log.warning("that this node is held could not be stored: %s", error)  # a peer will show it again


def quiet(node: "Node", reason: str) -> None:
    log.warning("held: %s; %s", reason, NEXT)
    node.held = reason
    node.store.refuse = refusal()


async def accept(node: "Node") -> None:
    """Go on from this copy. Tokens and unused invites die; links come up, and what peers have comes back."""
    if not node.held:
        raise ApiError("bad_request", "this node is not held: its store is the newest that anybody knows of")
    context, now = node.context, node.system.wall_ms()
    store, stamp = node.system.random(INCARNATION_BYTES), next_stamp(now, context.last_stamp)
    stamp = await node.store.alone(lambda connection: life.accept(connection, store, stamp, now))
    context.store, context.restored = store, stamp
    context.last_stamp = max(context.last_stamp, stamp)
    node.store_text, node.held, node.store.refuse = to_text(store), "", None
    await watch(node)
    for session in [s for group in node.sessions.values() for s in group]:
        session.end("bad_token", "the node was restored from an older copy; log in again")
    node.service.release()
    node.changed.set()
    log.warning("the restored copy was accepted: peers give back what they have")


async def watch(node: "Node") -> None:
    """Tell the witness file where the store is now. Not while the store is behind it."""
    if not node.watched or node.held:
        return
    folder, before = node.config.data_path, node.watched[-1]

    def work(connection: "Connection") -> witness.Witness:  # in a thread that is there already
        seen = witness.seen(node.us.node, node.life, node.us.incarnation, reads.newest_stamp(connection), folder)
        if seen != before:
            witness.write(folder, seen)
        return seen

    try:
        node.watched[-1] = await node.store.read(work)
    except OSError as error:
        log.error("the witness file was not written: %s", error)


async def keep_watch(node: "Node") -> None:
    commits = -1
    while True:
        if node.store.commits != commits:
            commits = node.store.commits
            await watch(node)
        await asyncio.sleep(witness.WITNESS_S)
