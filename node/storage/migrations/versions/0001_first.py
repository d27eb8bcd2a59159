"""The first schema: every table of `node.storage.schema` as it was at version 0.1."""

from alembic import op

from node.storage.schema import metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    raise RuntimeError("a database is not downgraded: restore the backup that was taken before the upgrade")
