from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.servers import KINDS, fresh_database, lay_tables
from tuner.manager import StudyManager


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    with fresh_database(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'tuner.db'}"


@pytest.fixture
def manager(url: str, tmp_path: Path) -> Iterator[StudyManager]:
    lay_tables(url)
    with StudyManager(url, tmp_path / "artifacts", patience_s=20) as manager:
        yield manager
