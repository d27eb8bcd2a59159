"""What every suite shares: a scratch PostgreSQL database, made once per session and dropped at its end."""

import asyncio
import os
import uuid
from collections.abc import Iterator

import asyncpg
import pytest
from sqlalchemy.engine import URL, make_url

PLACES = ("postgresql://root@127.0.0.1/test", "postgresql://postgres@127.0.0.1/test")


def _dsn(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


async def _run(url: URL, *statements: str) -> None:
    connection = await asyncpg.connect(_dsn(url), timeout=5)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _reachable() -> tuple[URL | None, str]:
    given = os.environ.get("ROOST_TEST_POSTGRES")
    reason = ""
    for place in [given] if given else PLACES:
        url = make_url(place)
        try:
            asyncio.run(_run(url, "SELECT 1"))
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            reason = f"no PostgreSQL at {url}: {error}"
        else:
            return url, ""
    return None, reason


@pytest.fixture(scope="session")
def scratch_postgres() -> Iterator[URL]:
    """An empty database of this test session's own."""
    server, reason = _reachable()
    if server is None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    name = f"roost_{uuid.uuid4().hex[:12]}"
    asyncio.run(_run(server, f"CREATE DATABASE {name}"))
    yield server.set(drivername="postgresql+asyncpg", database=name)
    asyncio.run(_run(server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty_postgres(scratch_postgres: URL) -> str:
    """The scratch database with nothing in it, as the `database` setting spells it."""
    asyncio.run(_run(scratch_postgres, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public"))
    return scratch_postgres.render_as_string(hide_password=False)
