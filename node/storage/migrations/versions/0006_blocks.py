"""Whom a user, or the whole node, wants nothing of; who is shown signs of life."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "blocks",
        sa.Column("local", sa.String, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("node", sa.LargeBinary, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("other", sa.String, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("added_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.add_column("accounts", sa.Column("presence", sa.String, nullable=False, server_default="contacts"))
    op.add_column("accounts", sa.Column("blocks", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    raise RuntimeError("a database is not downgraded: restore the backup that was taken before the upgrade")
