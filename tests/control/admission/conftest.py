"""A moment, and certificates of that time."""

from datetime import UTC, datetime, timedelta

import pytest

from distserve.operator.certificates import Term

NAMES = ("localhost", "operator.system.svc")


@pytest.fixture
def names() -> tuple[str, ...]:
    return NAMES


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def term() -> Term:
    return Term(life=timedelta(days=90), settle=timedelta(minutes=5))
