"""The first look at a store when a node starts: bring the schema up, and see whose store it is."""

import logging
from collections.abc import Callable

from sqlalchemy import Connection, and_, literal, literal_column, select
from sqlalchemy.types import NullType

from federation.ids import INCARNATION_BYTES, NODE_ID_BYTES
from node import keys
from node.core import damage, rows
from node.storage.migrate import migrate
from node.storage.schema import TABLES

log = logging.getLogger("roost.store")
meta, logs, own, peers = (TABLES[row] for row in (rows.Meta, rows.LogHead, rows.OwnLog, rows.Peer))


def first_look(connection: Connection, node: bytes, random: Callable[[int], bytes]) -> bytes:
    """The store's own id. Raises `ValueError` for the store of another node.

    What is damaged here is made again where the logs say that the store is this node's.
    """
    migrate(connection)
    found = {name: value for name, value in connection.execute(select(meta))}
    store, owner = found.get("store"), found.get("node")
    if owner != node:
        if found and not _ours(connection, node) and _sized(owner, NODE_ID_BYTES):
            # Its users, logs and peers belong to that identity: under another one nothing here would hold.
            raise ValueError(
                f"it belongs to another node key than {keys.FILE}; restore that file from your backup, "
                "or give this node a store of its own"
            )
        _put(connection, "node", node, mended=bool(found))
    if not isinstance(store, bytes) or len(store) != INCARNATION_BYTES:
        # Cursors of the old id mean nothing from now on: each device gets again what it did not acknowledge.
        store = random(INCARNATION_BYTES)
        _put(connection, "store", store, mended=bool(found))
    _free_names(connection)
    return store


def _free_names(connection: Connection) -> None:
    """A peer whose id is damaged is found by nobody: its name must be free for the administrator to add it again."""
    for values in connection.execute(select(peers).where(peers.c.name != "")).all():
        made, _ = damage.mend(rows.Peer, values)
        if made is None:
            connection.execute(
                peers.update().where(literal_column("node") == literal(values[0], NullType())).values(name="")
            )


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


def _put(connection: Connection, name: str, value: bytes, mended: bool) -> None:
    if mended:
        log.warning("the store's own %s was damaged or missing, and is made again", name)
    connection.execute(meta.delete().where(meta.c.name == name))
    connection.execute(meta.insert().values(name=name, value=value))
