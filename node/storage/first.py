"""What must be whole before a node can start: what the store says of itself, and the names of peers."""

import logging

from sqlalchemy import Connection, and_, literal, literal_column, select
from sqlalchemy.types import NullType

from federation.ids import INCARNATION_BYTES, NODE_ID_BYTES
from node.core import damage, rows
from node.storage.schema import TABLES

log = logging.getLogger("roost.store")
meta, logs, own, peers = (TABLES[row] for row in (rows.Meta, rows.LogHead, rows.OwnLog, rows.Peer))


def mend_start(connection: Connection, node: bytes, fresh: bytes) -> None:
    """Make again what is damaged there, where the logs say that the store is this node's. `fresh` is a new id."""
    found = {name: value for name, value in connection.execute(select(meta))}
    if found:
        owner, store = found.get("node"), found.get("store")
        if owner != node and (not _sized(owner, NODE_ID_BYTES) or _ours(connection, node)):
            _put(connection, "node", node)
        if not _sized(store, INCARNATION_BYTES):
            # Cursors of the old id mean nothing from now on: each device gets again what it did not acknowledge.
            _put(connection, "store", fresh)
    # A peer whose id is damaged is found by nobody: its name must be free for the administrator to add it again.
    for values in connection.execute(select(peers).where(peers.c.name != "")).all():
        made, _ = damage.mend(rows.Peer, values)
        if made is None:
            key = literal_column("node") == literal(values[0], NullType())
            connection.execute(peers.update().where(key).values(name=""))


def _sized(value: object, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size


def _ours(connection: Connection, node: bytes) -> bool:
    """Whether this node wrote one of the logs here."""
    query = (
        select(own.c.conversation)
        .join(logs, and_(logs.c.conversation == own.c.conversation, logs.c.incarnation == own.c.incarnation))
        .where(logs.c.origin == node)
    )
    return connection.execute(query.limit(1)).first() is not None


def _put(connection: Connection, name: str, value: bytes) -> None:
    log.warning("the store's own %s was damaged or missing, and is made again", name)
    connection.execute(meta.delete().where(meta.c.name == name))
    connection.execute(meta.insert().values(name=name, value=value))
