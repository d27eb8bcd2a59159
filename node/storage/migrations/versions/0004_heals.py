"""How far a restored node is with each peer, and whose logs are here."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "heals",
        sa.Column("peer", sa.LargeBinary, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("restored", sa.BigInteger, nullable=False),
        sa.Column("phase", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("logs_by_origin", "logs", ["origin"])


def downgrade() -> None:
    raise RuntimeError("a database is not downgraded: restore the backup that was taken before the upgrade")
