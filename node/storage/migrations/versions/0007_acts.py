"""Edits, deletions, reactions and pins, by the event that they are about."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "aimed",
        sa.Column("target", sa.LargeBinary, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("conversation", sa.LargeBinary, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("node", sa.LargeBinary, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("local", sa.String, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("deleted", sa.BigInteger, nullable=False),
        sa.Column("edits", sa.LargeBinary, nullable=False),
        sa.Column("marks", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    raise RuntimeError("a database is not downgraded: restore the backup that was taken before the upgrade")
