"""The lock of a study in a database server: held by a session there, and given up when the server ends that."""

from __future__ import annotations

import hashlib

import sqlalchemy as sql

KEEPALIVES = {"idle": 30, "interval": 10, "count": 3}
"""By which PostgreSQL notices in a minute that a coordinator's host has vanished."""
HELD = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND (classid::bigint << 32 | objid::bigint) = :key"
)
"""The session that has a lock."""


def take(connection: sql.Connection, study: str) -> bool:
    """Lock a study for a connection's session, unless another one has."""
    match connection.dialect.name:
        case "postgresql":
            for name, value in KEEPALIVES.items():
                connection.execute(sql.text(f"SET tcp_keepalives_{name} = {value}"))
            return bool(connection.scalar(sql.text("SELECT pg_try_advisory_lock(:key)"), {"key": _number(study)}))
        case "mysql" | "mariadb":
            return bool(connection.scalar(sql.text("SELECT GET_LOCK(:key, 0)"), {"key": _name(study)}))
    return True  # SQLite: the file beside it is locked


def is_taken(connection: sql.Connection, study: str) -> bool:
    """Whether a session has the lock of a study."""
    match connection.dialect.name:
        case "postgresql":
            return connection.scalar(sql.text(HELD), {"key": _number(study)}) is not None
        case "mysql" | "mariadb":
            return connection.scalar(sql.text("SELECT IS_USED_LOCK(:key)"), {"key": _name(study)}) is not None
    return False


def session(connection: sql.Connection) -> int | None:
    """The number of a connection's session on the server, where there is a server."""
    asked = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}
    asked["mariadb"] = asked["mysql"]
    query = asked.get(connection.dialect.name)
    return None if query is None else connection.scalar(sql.text(query))


def end_session(connection: sql.Connection, study: str, session: int | None) -> None:
    """End a session of ours whose connection was lost on our side alone, if it still has the lock of a study."""
    if connection.dialect.name == "postgresql" and session is not None:
        query = f"SELECT pg_terminate_backend(pid) FROM ({HELD}) AS holder WHERE pid = :session"
        connection.execute(sql.text(query), {"key": _number(study), "session": session})


def _number(study: str) -> int:
    return int.from_bytes(_digest(study)[:8], "big", signed=True)


def _name(study: str) -> str:
    return _digest(study).hex()[:60]


def _digest(study: str) -> bytes:
    return hashlib.sha256(f"moopt study {study}".encode()).digest()
