"""Applies the SQL migrations: in order, once each, under a lock, and grants the app role what it needs.

Somebody may be reading and writing LiteMaaS's tables meanwhile. What needs them to itself, if only for an instant, waits
for them no longer than that somebody can bear; what takes long, an index, is built beside all other work.
"""

import hashlib
import itertools
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any, LiteralString, cast

import msgspec
import psycopg
from psycopg import errors as pg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from keyservice.models import Migrated, SchemaState

# Any number that nobody else locks with; two migrations at once wait for each other here.
_LOCK = 5_218_736_409_127_743_981
_POLL_SECONDS = 0.1
_TABLE = "keyservice_migrations"
# Whoever asks for a table that a migration waits for waits behind it.
_LOCK_TIMEOUT_MILLISECONDS = 2000
_ATTEMPTS = 10
_PAUSE_SECONDS = 1.0
# Plaintext secrets of LiteMaaS's: the one column of its keys that the app role has no right to.
_PLAINTEXT_COLUMN = "lite_llm_key_value"

_CONCURRENTLY = ".concurrently"
_INDEX = re.compile(r"CREATE INDEX CONCURRENTLY IF NOT EXISTS (\w+)\s+ON\s")
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)


class MigrationError(Exception):
    """The schema cannot be brought up to date; the message says why and what to do."""


class _Migration(msgspec.Struct, frozen=True):
    """`is_concurrent`: made of CREATE INDEX CONCURRENTLY alone, which PostgreSQL refuses inside a transaction."""

    name: str
    text: str
    is_concurrent: bool

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def statements(self) -> list[str]:
        """Of a concurrent one, which has no semicolon inside a statement."""
        return [part.strip() for part in _COMMENT.sub("", self.text).split(";") if part.strip()]


def migrate(connection: psycopg.Connection[Any], *, app_user: str, stack_name: str, litellm_url: str) -> Migrated:
    """Brings the schema up to date. All that changes tables is ONE transaction up to the next migration that builds
    indexes: all of it, or nothing and an exception. An index that an earlier run did not finish is built anew.

    Changes nothing when the database is newer than these migrations, as in a release that is rolled back: newer schemas
    serve older code. Safe to run twice and at once. The connection is in autocommit and direct, not through a proxy (a
    lock of the session is taken). Raises MigrationError when an applied migration's text has changed, the app role does
    not exist, a table stays in use, or PostgreSQL refuses a statement; of PostgreSQL's answer it keeps what quotes no row.
    """
    try:
        with _alone(connection):
            recorded = _recorded(connection)
            if _is_newer(recorded):
                return Migrated(applied=[], version=max(recorded))
            if not _has_role(connection, app_user):
                raise MigrationError(f"{_NO_ROLE} and try again")
            applied = [
                name
                for is_concurrent, group in itertools.groupby(_migrations(), key=lambda one: one.is_concurrent)
                for name in (_build(connection, group) if is_concurrent else _apply(connection, group))
            ]
            _briefly(connection, lambda cursor: _mark_and_grant(cursor, app_user, stack_name, litellm_url))
        return Migrated(applied=applied, version=_migrations()[-1].name)
    except psycopg.Error as error:
        raise _refused(error) from None


def state(connection: psycopg.Connection[Any], *, app_user: str) -> SchemaState:
    """What `migrate` would do, without doing it. Raises MigrationError when PostgreSQL does not say."""
    try:
        recorded = _recorded(connection)
        return SchemaState(
            pending=[] if _is_newer(recorded) else [m.name for m in _migrations() if m.name not in recorded],
            version=max(recorded, default=None),
            problems=_problems(connection, recorded, app_user=app_user),
        )
    except psycopg.Error as error:
        raise _refused(error) from None


def _refused(error: psycopg.Error) -> MigrationError:
    if error.sqlstate is None:
        return MigrationError(
            f"the connection to PostgreSQL was lost, or the time was over ({type(error).__name__}); run it again: it goes "
            "on with what is missing"
        )
    refused = error.diag.message_primary or type(error).__name__
    return MigrationError(f"PostgreSQL refused a migration: {refused} (SQLSTATE {error.sqlstate})")


def _recorded(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """The checksum of each migration the database has."""
    with connection.cursor(row_factory=dict_row) as cursor:
        if not _answer(connection, "/* find_migrations */ SELECT to_regclass(%s) IS NOT NULL AS answer", [_TABLE]):
            return {}
        rows = cursor.execute("/* read_migrations */ SELECT name, checksum FROM keyservice_migrations").fetchall()
    return {row["name"]: row["checksum"] for row in rows}


def _is_newer(recorded: Mapping[str, str]) -> bool:
    return max(recorded, default="") > _migrations()[-1].name


def _problems(connection: psycopg.Connection[Any], recorded: Mapping[str, str], *, app_user: str) -> list[str]:
    if _is_newer(recorded):
        return []
    problems = [_changed(m) for m in _migrations() if recorded.get(m.name, m.checksum) != m.checksum]
    if not _has_role(connection, app_user):
        problems.append(_NO_ROLE)
    may_create = "/* may_create */ SELECT has_schema_privilege(current_schema(), %s) AS answer"
    if not _answer(connection, may_create, ["CREATE"]):
        problems.append("the login in DatabaseMigratorSecretArn may not make tables; grant it CREATE on the schema")
    return problems


def _changed(migration: _Migration) -> str:
    return (
        f"migration {migration.name} was changed after it was applied; "
        "restore its text and put the change into a new migration"
    )


@contextmanager
def _alone(connection: psycopg.Connection[Any]) -> Generator[None]:
    """Asks for the lock again and again: a statement that waits for it has a snapshot, which building an index would wait
    for in its turn. The lock is held as long as the server is still at work for a run that itself has gone."""
    while not _answer(connection, "/* lock_migrations */ SELECT pg_try_advisory_lock(%s) AS answer", [_LOCK]):
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("/* unlock_migrations */ SELECT pg_advisory_unlock(%s)", [_LOCK])


def _apply(connection: psycopg.Connection[Any], migrations: Iterable[_Migration]) -> list[str]:
    """The names of those that were missing; all in one transaction."""
    wanted = list(migrations)

    def apply(cursor: psycopg.Cursor[DictRow]) -> list[str]:
        cursor.execute(
            """/* create_migrations */
            CREATE TABLE IF NOT EXISTS keyservice_migrations (
                name text PRIMARY KEY,
                checksum text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now()
            )"""
        )
        missing = _missing(connection, wanted)
        for migration in missing:
            cursor.execute(cast(LiteralString, migration.text))
            _record(cursor, migration)
        return [migration.name for migration in missing]

    return _briefly(connection, apply)


def _build(connection: psycopg.Connection[Any], migrations: Iterable[_Migration]) -> list[str]:
    """The names of those that were missing. Each index is built by itself, and one that is there already stays; what an
    earlier run left unfinished is of no use to anybody, and would be taken for the index."""
    with connection.cursor(row_factory=dict_row) as cursor:
        missing = _missing(connection, migrations)
        for migration in missing:
            for statement in migration.statements:
                _drop_unfinished(cursor, statement)
                cursor.execute(cast(LiteralString, statement))
            _record(cursor, migration)
    return [migration.name for migration in missing]


def _drop_unfinished(cursor: psycopg.Cursor[DictRow], statement: str) -> None:
    found = _INDEX.match(statement)
    if found is None:
        raise MigrationError(f"not a statement that builds an index beside other work: {statement.splitlines()[0]}")
    unfinished = cursor.execute(
        """/* find_unfinished */
        SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND NOT indisvalid""",
        [found[1]],
    ).fetchone()
    if unfinished is not None:
        cursor.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(found[1])))


def _briefly[T](connection: psycopg.Connection[Any], work: Callable[[psycopg.Cursor[DictRow]], T]) -> T:
    """One transaction that gives up, and lets everybody else go first, when it would have to wait long for a table."""
    for _ in range(_ATTEMPTS):
        try:
            with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
                cursor.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(_LOCK_TIMEOUT_MILLISECONDS)))
                return work(cursor)
        except (pg.LockNotAvailable, pg.DeadlockDetected):
            time.sleep(_PAUSE_SECONDS)
    raise MigrationError(
        "a table that a migration changes stays in use, and nothing was changed; see pg_stat_activity for the "
        "transaction that has been open for long, end it, and try again"
    )


def _missing(connection: psycopg.Connection[Any], migrations: Iterable[_Migration]) -> list[_Migration]:
    recorded = _recorded(connection)
    missing: list[_Migration] = []
    for migration in migrations:
        if migration.name not in recorded:
            missing.append(migration)
        elif recorded[migration.name] != migration.checksum:
            raise MigrationError(_changed(migration))
    return missing


def _record(cursor: psycopg.Cursor[DictRow], migration: _Migration) -> None:
    cursor.execute(
        "/* record_migration */ INSERT INTO keyservice_migrations (name, checksum) VALUES (%s, %s)",
        [migration.name, migration.checksum],
    )


def _migrations() -> list[_Migration]:
    files = sorted(
        (file for file in resources.files("keyservice").joinpath("migrations").iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    stems = [(file.name.removesuffix(".sql"), file.read_text("utf-8")) for file in files]
    return [
        _Migration(name=stem.removesuffix(_CONCURRENTLY), text=text, is_concurrent=stem.endswith(_CONCURRENTLY))
        for stem, text in stems
    ]


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


def _has_role(connection: psycopg.Connection[Any], app_user: str) -> bool:
    return _answer(
        connection, "/* find_role */ SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s) AS answer", [app_user]
    )


def _answer(connection: psycopg.Connection[Any], query: LiteralString, parameters: list[Any]) -> bool:
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(query, parameters).fetchone()
    return row is not None and row["answer"]


# No DDL; the audit log can be read and appended to, never rewritten.
_GRANTS: tuple[LiteralString, ...] = (
    "GRANT SELECT, INSERT ON users TO {role}",
    "GRANT UPDATE (full_name, last_login_at, sync_status) ON users TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON api_key_models TO {role}",
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


# Of LiteMaaS's plaintext secrets this role sees nothing: it has rights to the columns, not to the table.
_GRANTS_ON_KEYS: tuple[LiteralString, ...] = (
    "REVOKE ALL ON api_keys FROM {role}",
    "GRANT DELETE, SELECT ({columns}), INSERT ({columns}), UPDATE ({columns}) ON api_keys TO {role}",
)


def _mark_and_grant(cursor: psycopg.Cursor[DictRow], app_user: str, stack_name: str, litellm_url: str) -> None:
    _mark_installation(cursor, stack_name=stack_name, litellm_url=litellm_url)
    role = sql.Identifier(app_user)
    for grant in _GRANTS:
        cursor.execute(sql.SQL(grant).format(role=role))
    rows = cursor.execute(
        """/* read_key_columns */
        SELECT attname::text AS name FROM pg_attribute
        WHERE attrelid = 'api_keys'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> %s""",
        [_PLAINTEXT_COLUMN],
    ).fetchall()
    columns = sql.SQL(", ").join(sql.Identifier(row["name"]) for row in rows)
    for grant in _GRANTS_ON_KEYS:
        cursor.execute(sql.SQL(grant).format(role=role, columns=columns))
