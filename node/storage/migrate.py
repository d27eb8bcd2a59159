"""Bring a database to this version's schema at start; refuse one that is newer than the code."""

import threading

from sqlalchemy import Connection, inspect, text

# Alembic keeps the migration that runs in a module of its own: two nodes of one process must take turns.
_ONE_AT_A_TIME = threading.Lock()
HEAD = "0007"
REVISIONS = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
)  # oldest first; a database at any other revision was made by a newer Roost


class NewerDatabase(Exception):
    """The database was written by a newer version; nothing was touched."""


def version(connection: Connection) -> str | None:
    """The schema that a database has; none before it has any."""
    if not inspect(connection).has_table("schema_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM schema_version")).scalar()
    return None if found is None else str(found)


def migrate(connection: Connection) -> None:
    """Idempotent; runs inside the caller's transaction. Alembic is loaded only when there is work for it."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7701)"))
    found = version(connection)
    if found == HEAD:
        return
    if found is not None and found not in REVISIONS:
        raise NewerDatabase(f"the database has schema {found}, this version of Roost knows up to {HEAD}")
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "node:storage/migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _ONE_AT_A_TIME:
        command.upgrade(config, "head")
