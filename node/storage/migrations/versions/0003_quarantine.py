"""Events of peers that could not be processed are kept for the administrator."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "quarantine",
        sa.Column("log", sa.LargeBinary, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("event", sa.LargeBinary, nullable=False),
        sa.Column("peer", sa.LargeBinary, nullable=False),
        sa.Column("error", sa.String, nullable=False),
        sa.Column("tries", sa.BigInteger, nullable=False),
        sa.Column("segment", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "quarantine_sizes",
        sa.Column("peer", sa.LargeBinary, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("events", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    raise RuntimeError("a database is not downgraded: restore the backup that was taken before the upgrade")
