"""The tables, one per row type of `node.core.rows`, for SQLite and PostgreSQL alike."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    text,
)

from node.core import rows

metadata = MetaData()
NULLABLE = {(rows.StoredEvent, "body")}
_TYPES = {"str": String, "int": BigInteger, "bytes": LargeBinary, "bytes | None": LargeBinary}
NAMES: dict[type, str] = {
    rows.Meta: "meta",
    rows.Account: "accounts",
    rows.Device: "devices",
    rows.Invite: "invites",
    rows.Peer: "peers",
    rows.Conversation: "conversations",
    rows.Standing: "standings",
    rows.LogHead: "logs",
    rows.OwnLog: "own_logs",
    rows.StoredEvent: "events",
    rows.SentKey: "sent_keys",
    rows.Mailbox: "mailboxes",
    rows.Item: "items",
    rows.Fact: "facts",
    rows.Outbound: "outbound",
    rows.Destination: "destinations",
    rows.Receipt: "receipts",
    rows.Failed: "failures",
    rows.Evidence: "evidence",
    rows.Heal: "heals",
    rows.Quarantine: "quarantine",
    rows.QuarantineSize: "quarantine_sizes",
    rows.Block: "blocks",
    rows.Aimed: "aimed",
}
THROUGH: dict[type, str] = {rows.Place: NAMES[rows.StoredEvent]}  # rows that are found in another row's table


def _table(row: type) -> Table:
    fields: dict[str, type] = row.__annotations__
    key = list(fields)[: rows.KEYS[row]]
    columns: list[Column[Any]] = [
        Column(
            name,
            SmallInteger if name == "late" else _TYPES[kind if isinstance(kind, str) else _spell(kind)],
            primary_key=name in key,
            autoincrement=False,
            nullable=(row, name) in NULLABLE,
        )
        for name, kind in fields.items()
    ]
    return Table(NAMES[row], metadata, *columns, sqlite_with_rowid=row is rows.StoredEvent)


def _spell(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


TABLES: dict[type, Table] = {row: _table(row) for row in NAMES}
events, facts, outbound = TABLES[rows.StoredEvent], TABLES[rows.Fact], TABLES[rows.Outbound]
devices, standings, logs = TABLES[rows.Device], TABLES[rows.Standing], TABLES[rows.LogHead]

Index("events_by_id", events.c.event, unique=True)
Index("events_by_order", events.c.conversation, events.c.stamp)
Index("facts_by_position", facts.c.local, facts.c.position)
Index(
    "outbound_work", outbound.c.peer, outbound.c.log, sqlite_where=text("acked < head"),
    postgresql_where=text("acked < head"),
)  # fmt: skip
Index("devices_by_token", devices.c.token_hash, unique=True)
Index("devices_by_local", devices.c.local)
Index("standings_by_local", standings.c.local)
Index("logs_by_conversation", logs.c.conversation)
Index("logs_by_origin", logs.c.origin)
# Many may have no name here: strangers that call themselves what is taken.
Index(
    "peers_name", TABLES[rows.Peer].c.name, unique=True, sqlite_where=text("name <> ''"),
    postgresql_where=text("name <> ''"),
)  # fmt: skip
