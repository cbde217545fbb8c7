"""Pools of connections, multiplied by workers; the driver is real and never connects."""

from __future__ import annotations

from typing import Any

import pytest
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import NullPool, StaticPool, create_engine

from flask_workersize.doctor.engines import pools_multiplied
from tests.doctor.cases import case, sized
from tests.plain import SECRET

SERVER = f"mysql+pymysql://lms:{SECRET}@db.example/{SECRET}"


def told(uri: str | None = None, **config: Any) -> list[str]:
    """Return the findings for an app with Flask-SQLAlchemy, and hold them to be no secret."""
    app = sized(SQLALCHEMY_DATABASE_URI=uri, **config)
    if uri or config:
        SQLAlchemy(app)
    found = list(pools_multiplied(case(app)))
    assert {finding.level for finding in found} <= {"multiplies"}
    text = [str(finding) for finding in found]
    assert SECRET not in " ".join(text)
    assert "db.example" not in " ".join(text)
    return text


def test_pool_of_the_default_size_is_multiplied_by_workers() -> None:
    (line,) = told(SERVER)
    assert line.startswith("Flask-SQLAlchemy (mysql) has a pool in each worker: ")
    assert "4 workers × (pool_size 5 + max_overflow 10) can open 60 connections" in line
    assert "max_connections" in line
    assert "SQLALCHEMY_ENGINE_OPTIONS" in line


def test_pool_of_another_size() -> None:
    (line,) = told(SERVER, SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 2, "max_overflow": 0})
    assert "4 workers × (pool_size 2 + max_overflow 0) can open 8 connections" in line


@pytest.mark.parametrize("options", [{"pool_size": 0}, {"max_overflow": -1}])
def test_pool_without_an_end(options: dict[str, int]) -> None:
    (line,) = told(SERVER, SQLALCHEMY_ENGINE_OPTIONS=options)
    assert "4 workers can open connections without limit" in line


def test_bind_is_named_by_its_key() -> None:
    lines = told(SERVER, SQLALCHEMY_BINDS={"marks": SERVER, "log": "sqlite://"})
    assert len(lines) == 2
    (line,) = [line for line in lines if "bind" in line]
    assert line.startswith('Flask-SQLAlchemy, bind "marks" (mysql) has a pool')
    assert "SQLALCHEMY_BINDS" in line


def test_engine_of_the_app_s_own_is_told_too() -> None:
    engine = create_engine(SERVER, pool_size=1)
    (line,) = told()
    assert line.startswith("SQLAlchemy (mysql) has a pool in each worker: ")
    assert "create_engine()" in line
    engine.dispose()


@pytest.mark.parametrize("pool", [NullPool, StaticPool])
def test_engine_that_keeps_no_pool_is_no_finding(pool: Any) -> None:
    assert told(SERVER, SQLALCHEMY_ENGINE_OPTIONS={"poolclass": pool}) == []


def test_sqlite_and_no_database_are_no_finding(tmp_path: Any) -> None:
    assert told(f"sqlite:///{tmp_path / 'lms.db'}") == []
    assert told("sqlite://") == []
    assert told() == []
