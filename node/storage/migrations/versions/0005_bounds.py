"""Bounds in bytes: of mailboxes, of what waits for a peer, and of what a peer makes us store; what was given up."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
ADDED = (
    ("mailboxes", "bytes"),
    ("outbound", "bytes"),
    ("outbound", "given_up"),
    ("destinations", "bytes"),
    ("peers", "used"),
    ("peers", "used_ms"),
)


def upgrade() -> None:
    for table, column in ADDED:
        op.add_column(table, sa.Column(column, sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    raise RuntimeError("a database is not downgraded: restore the backup that was taken before the upgrade")
