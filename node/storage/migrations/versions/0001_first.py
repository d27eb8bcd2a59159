"""The first schema, written out: it must never follow what `node.storage.schema` becomes."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# name, width of the primary key, columns
TABLES = (
    ("meta", 1, "name str, value bytes"),
    ("accounts", 1, "local str, password str, display_name str, state str, requests str, created_ms int"),
    ("devices", 1, "device bytes, local str, name str, token_hash bytes, signing_key bytes, created_ms int, "
                   "seen_ms int, revoked_ms int, acked int"),
    ("invites", 1, "code_hash bytes, created_ms int, expires_ms int, used_by str, revoked_ms int"),
    ("peers", 1, "node bytes, name str, state str, addresses str, chain bytes, added_ms int, contact_ms int"),
    ("conversations", 1, "conversation bytes, kind str, node_a bytes, local_a str, node_b bytes, local_b str"),
    ("standings", 2, "conversation bytes, local str, state str, last_stamp int"),
    ("logs", 1, "log bytes, conversation bytes, origin bytes, incarnation bytes, seq int, head bytes, stamp int"),
    ("own_logs", 1, "conversation bytes, incarnation bytes"),
    ("events", 2, "log bytes, seq int, event bytes, conversation bytes, stamp int, sender str, device bytes, kind str, "
                  "header bytes, signature bytes, body bytes?, arrived_ms int, late small, refused str"),
    ("sent_keys", 2, "device bytes, key str, request_hash bytes, log bytes, seq int"),
    ("mailboxes", 1, "local str, position int, items int"),
    ("items", 2, "local str, position int, log bytes, seq int"),
    ("facts", 2, "local str, fact bytes, position int, item bytes"),
    ("outbound", 2, "peer bytes, log bytes, head int, acked int"),
    ("destinations", 1, "peer bytes, waiting int"),
    ("receipts", 3, "log bytes, node bytes, local str, sent int, delivered int, read int, missing bytes, sent_ms int, "
                    "delivered_ms int, read_ms int"),
    ("failures", 4, "log bytes, seq int, node bytes, local str, code str, reason str, at_ms int"),
    ("evidence", 1, "event bytes, log bytes, seq int, header bytes, signature bytes, at_ms int"),
)  # fmt: skip
# name, table, columns, unique, condition
INDEXES = (
    ("events_by_id", "events", "event", True, ""),
    ("events_by_order", "events", "conversation stamp", False, ""),
    ("facts_by_position", "facts", "local position", False, ""),
    ("outbound_work", "outbound", "peer log", False, "acked < head"),
    ("devices_by_token", "devices", "token_hash", True, ""),
    ("devices_by_local", "devices", "local", False, ""),
    ("standings_by_local", "standings", "local", False, ""),
    ("logs_by_conversation", "logs", "conversation", False, ""),
    ("peers_name", "peers", "name", True, "name <> ''"),
)
TYPES = {"str": sa.String, "int": sa.BigInteger, "small": sa.SmallInteger, "bytes": sa.LargeBinary}


def upgrade() -> None:
    for name, width, columns in TABLES:
        made: list[sa.Column[Any]] = [
            sa.Column(column, TYPES[kind.rstrip("?")], nullable=kind.endswith("?"),
                      primary_key=place < width, autoincrement=False)
            for place, (column, kind) in enumerate(pair.split() for pair in columns.split(", "))
        ]  # fmt: skip
        op.create_table(name, *made, sqlite_with_rowid=name == "events")
    for name, table, columns, unique, condition in INDEXES:
        where = sa.text(condition) if condition else None
        op.create_index(name, table, columns.split(), unique=unique, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    raise RuntimeError("a database is not downgraded: restore the backup that was taken before the upgrade")
