"""Applies the SQL migrations: in order, once each, under a lock, and grants the app role what it needs."""

import hashlib
import secrets
from collections.abc import Mapping
from importlib import resources
from typing import Any, LiteralString, cast

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from keyservice.models import Migrated, SchemaState

# Any number that nobody else locks with; two migrations at once wait for each other here.
_LOCK = 5_218_736_409_127_743_981


class MigrationError(Exception):
    """The schema cannot be brought up to date; the message says why and what to do."""


class _Migration(msgspec.Struct, frozen=True):
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrate(connection: psycopg.Connection[Any], *, app_user: str, stack_name: str, litellm_url: str) -> Migrated:
    """Brings the schema up to date in ONE transaction: all of it, or nothing and an exception.

    Changes nothing when the database is newer than these migrations, as in a release that is rolled back: newer schemas
    serve older code. Safe to run twice and at once. Connects directly, not through a proxy (it takes an advisory lock).
    Raises MigrationError when an applied migration's text has changed, the app role does not exist, or PostgreSQL refuses
    a statement; of PostgreSQL's answer it keeps what quotes no row.
    """
    try:
        return _migrate(connection, app_user=app_user, stack_name=stack_name, litellm_url=litellm_url)
    except psycopg.Error as error:
        raise _refused(error) from None


def state(connection: psycopg.Connection[Any], *, app_user: str) -> SchemaState:
    """What `migrate` would do, without doing it. Raises MigrationError when PostgreSQL does not say."""
    try:
        with connection.cursor(row_factory=dict_row) as cursor:
            recorded = _recorded(cursor)
            return SchemaState(
                pending=[] if _is_newer(recorded) else [m.name for m in _migrations() if m.name not in recorded],
                version=max(recorded, default=None),
                problems=_problems(cursor, recorded, app_user=app_user),
            )
    except psycopg.Error as error:
        raise _refused(error) from None


def _refused(error: psycopg.Error) -> MigrationError:
    if error.sqlstate is None:
        return MigrationError(
            f"the connection to PostgreSQL was lost, or the time was over ({type(error).__name__}); nothing was changed"
        )
    refused = error.diag.message_primary or type(error).__name__
    return MigrationError(f"PostgreSQL refused a migration: {refused} (SQLSTATE {error.sqlstate})")


def _migrate(connection: psycopg.Connection[Any], *, app_user: str, stack_name: str, litellm_url: str) -> Migrated:
    with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("/* lock_migrations */ SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        recorded = _recorded(cursor)
        if _is_newer(recorded):
            return Migrated(applied=[], version=max(recorded))
        if not _has_role(cursor, app_user):
            raise MigrationError(f"{_NO_ROLE} and try again")
        cursor.execute(
            """/* create_migrations */
            CREATE TABLE IF NOT EXISTS keyservice_migrations (
                name text PRIMARY KEY,
                checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )"""
        )
        applied = _apply_missing(cursor, recorded)
        _mark_installation(cursor, stack_name=stack_name, litellm_url=litellm_url)
        _grant(cursor, app_user)
        return Migrated(applied=applied, version=_migrations()[-1].name)


def _recorded(cursor: psycopg.Cursor[DictRow]) -> dict[str, str]:
    """The checksum of each migration the database has."""
    table = cursor.execute("/* find_migrations */ SELECT to_regclass('keyservice_migrations') AS found").fetchone()
    if table is None or table["found"] is None:
        return {}
    rows = cursor.execute("/* read_migrations */ SELECT name, checksum FROM keyservice_migrations").fetchall()
    return {row["name"]: row["checksum"] for row in rows}


def _is_newer(recorded: Mapping[str, str]) -> bool:
    return max(recorded, default="") > _migrations()[-1].name


def _problems(cursor: psycopg.Cursor[DictRow], recorded: Mapping[str, str], *, app_user: str) -> list[str]:
    if _is_newer(recorded):
        return []
    problems = [_changed(m) for m in _migrations() if recorded.get(m.name, m.checksum) != m.checksum]
    if not _has_role(cursor, app_user):
        problems.append(_NO_ROLE)
    row = cursor.execute(
        "/* may_create */ SELECT has_schema_privilege(current_schema(), 'CREATE') AS may_create"
    ).fetchone()
    if row is None or not row["may_create"]:
        problems.append("the login in DatabaseMigratorSecretArn may not make tables; grant it CREATE on the schema")
    return problems


def _changed(migration: _Migration) -> str:
    return (
        f"migration {migration.name} was changed after it was applied; "
        "restore its text and put the change into a new migration"
    )


def _apply_missing(cursor: psycopg.Cursor[DictRow], recorded: Mapping[str, str]) -> list[str]:
    applied: list[str] = []
    for migration in _migrations():
        if migration.name in recorded:
            if recorded[migration.name] != migration.checksum:
                raise MigrationError(_changed(migration))
            continue
        cursor.execute(cast(LiteralString, migration.text))
        cursor.execute(
            "/* record_migration */ INSERT INTO keyservice_migrations (name, checksum) VALUES (%s, %s)",
            [migration.name, migration.checksum],
        )
        applied.append(migration.name)
    return applied


def _migrations() -> list[_Migration]:
    files = sorted(
        (file for file in resources.files("keyservice").joinpath("migrations").iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    return [_Migration(name=file.name.removesuffix(".sql"), text=file.read_text("utf-8")) for file in files]


def _mark_installation(cursor: psycopg.Cursor[DictRow], *, stack_name: str, litellm_url: str) -> None:
    """The mark is made once and for all: it begins the alias of every LiteLLM key this database owns."""
    cursor.execute(
        """/* mark_installation */
        INSERT INTO keyservice_installation (mark, stack_name, litellm_url)
        VALUES (%(mark)s, %(stack_name)s, %(litellm_url)s)
        ON CONFLICT DO NOTHING""",
        {"mark": f"lmk-{secrets.token_hex(6)}", "stack_name": stack_name, "litellm_url": litellm_url},
    )


_NO_ROLE = "the app role (parameter DatabaseAppUser) does not exist in PostgreSQL; create it with LOGIN"


def _has_role(cursor: psycopg.Cursor[DictRow], app_user: str) -> bool:
    return (
        cursor.execute("/* find_role */ SELECT 1 FROM pg_roles WHERE rolname = %s", [app_user]).fetchone() is not None
    )


# No DDL; the audit log can be read and appended to, never rewritten.
_GRANTS: tuple[LiteralString, ...] = (
    "GRANT SELECT, INSERT ON users TO {role}",
    "GRANT UPDATE (full_name, last_login_at, sync_status) ON users TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON api_keys, api_key_models TO {role}",
    "GRANT SELECT ON subscriptions, teams, team_members TO {role}",
    "GRANT SELECT, INSERT, UPDATE ON system_settings TO {role}",
    "GRANT SELECT, INSERT ON models TO {role}",
    "GRANT SELECT, INSERT ON audit_logs TO {role}",
    "GRANT SELECT, INSERT, UPDATE ON api_key_tokens, api_key_operations TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON keyservice_findings TO {role}",
    "GRANT SELECT, UPDATE ON keyservice_reconciliation TO {role}",
    "GRANT SELECT, UPDATE ON keyservice_spend_sync TO {role}",
    "GRANT SELECT ON keyservice_installation, keyservice_migrations TO {role}",
)


def _grant(cursor: psycopg.Cursor[DictRow], app_user: str) -> None:
    for grant in _GRANTS:
        cursor.execute(sql.SQL(grant).format(role=sql.Identifier(app_user)))
