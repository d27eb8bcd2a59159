"""What a peer's own hello says of its addresses is kept apart from what an administrator gave."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("peers", sa.Column("hints", sa.String, nullable=False, server_default=""))
    op.add_column("peers", sa.Column("reach", sa.String, nullable=False, server_default="public"))


def downgrade() -> None:
    raise RuntimeError("a database is not downgraded: restore the backup that was taken before the upgrade")
