"""Reads of block lists."""

from sqlalchemy import Connection, and_, or_, select

from federation.ids import User
from node.core import rows
from node.storage.damaged import each
from node.storage.schema import TABLES

blocks, standings, conversations = TABLES[rows.Block], TABLES[rows.Standing], TABLES[rows.Conversation]
ASKED_MAX = 1000  # that are declined at once with a block


def of(connection: Connection, local: str) -> list[rows.Block]:
    """A user's list; the node's own with an empty name."""
    query = select(blocks).where(blocks.c.local == local).order_by(blocks.c.node, blocks.c.other)
    return each(rows.Block, connection.execute(query))


def asked(connection: Connection, local: str, other: User) -> list[bytes]:
    """The conversations in which that user, or with an empty name anybody of that node, waits for an answer."""
    c = conversations.c
    sides = ((c.node_a, c.local_a), (c.node_b, c.local_b))
    them = [and_(node == other.node, *([who == other.local] if other.local else [])) for node, who in sides]
    query = (
        select(standings.c.conversation)
        .join(conversations, c.conversation == standings.c.conversation)
        .where(standings.c.local == local, standings.c.state == "request", or_(*them))
        .limit(ASKED_MAX)
    )
    return [conversation for (conversation,) in connection.execute(query)]
