"""One PostgreSQL connection per execution environment; a stale one is reopened before anything is sent."""

import select
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, LiteralString, NamedTuple, override

import certifi
import psycopg
from psycopg import errors as pg
from psycopg.abc import PQGen
from psycopg.rows import DictRow, dict_row

from keyservice.database_login import login
from keyservice.errors import DatabaseUnavailable, OutcomeUnknown
from keyservice.parameters import leave_types_to_statements, positional
from keyservice.secret_values import SecretValues
from keyservice.settings import DatabaseSettings

CONNECT_TIMEOUT_SECONDS = 3
STATEMENT_TIMEOUT_SECONDS = 5.5  # a little more than the server's own statement_timeout, for a server that hangs

type Rows = list[DictRow]


class Statement(NamedTuple):
    """Literal SQL that starts with its name as a comment, and its named parameters.

    It is prepared once for each connection, unless the best way to carry it out depends on the parameters: on which of
    its filters is set, or how far a page lies behind.
    """

    sql: LiteralString
    parameters: Mapping[str, Any] = MappingProxyType({})
    is_prepared: bool = True


class Database:
    """Runs statements; each `round_trip` is one network round trip and one transaction."""

    def __init__(self, settings: DatabaseSettings, secret_values: SecretValues) -> None:
        self._settings = settings
        self._secret_values = secret_values
        self._connection: _Connection | None = None

    def round_trip(self, *statements: Statement) -> list[Rows]:
        """The rows of each statement; all commit together or none does.

        Several statements go as one pipeline on the autocommit connection: PostgreSQL runs them as one
        transaction up to the Sync, and each sees what the ones before it, and whoever they waited for, did.
        A deadlock (40P01) is repeated once: nothing of the first try remains.
        Raises DatabaseUnavailable when nothing was changed, OutcomeUnknown when the connection broke after
        sending, and psycopg's own error for a constraint that the caller has to name.
        """
        try:
            return self._attempt(statements)
        except pg.DeadlockDetected:
            pass
        try:
            return self._attempt(statements)
        except pg.DeadlockDetected as error:
            raise DatabaseUnavailable from error

    def open(self) -> None:
        """Connects, unless there is a usable connection. Raises DatabaseUnavailable."""
        self._usable_connection()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, statements: tuple[Statement, ...]) -> list[Rows]:
        connection = self._usable_connection()
        try:
            # One statement as well: outside a pipeline preparing it would be a round trip of its own.
            with connection.pipeline():
                cursors = [_executed(connection, statement) for statement in statements]
            # Fetched after the pipeline has ended: fetching inside it would send a Sync, and so commit, early.
            return [_fetched(cursor) for cursor in cursors]
        except (pg.QueryCanceled, pg.LockNotAvailable) as error:
            raise DatabaseUnavailable from error
        except (pg.ReadOnlySqlTransaction, pg.FeatureNotSupported) as error:
            # A failover left this connection on a replica, or a column that a prepared statement gives is of another
            # type now.
            self.close()
            raise DatabaseUnavailable from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            if isinstance(error, pg.DeadlockDetected):
                raise
            self.close()
            raise OutcomeUnknown from error

    def _usable_connection(self) -> "_Connection":
        # A connection that the server ended while this environment was frozen still says `closed = False`,
        # but its socket is readable. Nothing has been sent yet, so opening another one is safe.
        if self._connection is not None and (self._connection.closed or _is_readable(self._connection)):
            self.close()
        if self._connection is None:
            self._connection = connect(self._settings, self._secret_values)
            leave_types_to_statements(self._connection)
            # Each statement says for itself whether it is to be prepared.
            self._connection.prepare_threshold = 1 if self._settings.prepares_statements else None
        return self._connection


class _Connection(psycopg.Connection[DictRow]):
    """Gives up on a server that accepted a statement and never answers."""

    statement_timeout_seconds: float | None = STATEMENT_TIMEOUT_SECONDS

    @override
    def wait[T](self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        return super().wait(gen, interval, timeout or self.statement_timeout_seconds)


def connect(settings: DatabaseSettings, secret_values: SecretValues) -> _Connection:
    """A new autocommit connection, TLS verify-full (libpq ignores sslmode on a unix socket only).

    Nothing is prepared on it by itself: a migration of several commands cannot be. When the password was refused it is
    read again once: it may have been rotated. Raises DatabaseUnavailable.
    """
    try:
        return _open(settings, secret_values)
    except psycopg.OperationalError as error:
        if error.pgconn is None or not error.pgconn.used_password:
            raise DatabaseUnavailable from error
    secret_values.refresh(settings.secret_arn)
    try:
        return _open(settings, secret_values)
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable from error


def _open(settings: DatabaseSettings, secret_values: SecretValues) -> _Connection:
    return _Connection.connect(
        **connection_parameters(settings, secret_values),
        autocommit=True,
        prepare_threshold=None,
        row_factory=dict_row,
    )


def connection_parameters(settings: DatabaseSettings, secret_values: SecretValues) -> dict[str, Any]:
    """libpq's keywords; no `options`, which RDS Proxy refuses: timeouts are set on the role. Raises SecretUnavailable."""
    user, password = login(settings, secret_values)
    return {
        "host": settings.host,
        "port": settings.port,
        "dbname": settings.name,
        "user": user,
        "password": password.reveal(),
        "sslmode": "verify-full",
        "sslrootcert": settings.ca_bundle or certifi.where(),
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "tcp_user_timeout": 5000,
        "keepalives_idle": 30,
        "application_name": "keyservice",
    }


def is_ready(parameters: Mapping[str, Any]) -> bool:
    """Whether a new connection with these parameters answers a query."""
    try:
        with _Connection.connect(**parameters, autocommit=True, row_factory=dict_row) as connection:
            connection.execute("/* check_health */ SELECT 1")
    except psycopg.Error:
        return False
    return True


def _executed(connection: _Connection, statement: Statement) -> psycopg.Cursor[DictRow]:
    sql, names = positional(statement.sql)
    cursor = psycopg.RawCursor(connection)
    return cursor.execute(sql, [statement.parameters[name] for name in names], prepare=statement.is_prepared)


def _is_readable(connection: _Connection) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _fetched(cursor: psycopg.Cursor[DictRow]) -> Rows:
    # Not cursor.description, which describes every column.
    return cursor.fetchall() if cursor.pgresult is not None and cursor.pgresult.nfields else []
