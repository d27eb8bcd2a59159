"""Every test of this folder runs on SQLite in a file and on PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.bench import Bench


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'roost.db'}"
    url: str = request.getfixturevalue("empty_postgres")
    return url


@pytest.fixture
async def bench(database: str) -> AsyncIterator[Bench]:
    bench = Bench(database)
    await bench.open()
    yield bench
    await bench.close()
