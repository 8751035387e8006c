"""The two database roles an operator makes before the first deployment."""

from dataclasses import dataclass

import psycopg
from psycopg import sql

from local.postgres import PostgresServer

MIGRATOR = "keyservice_migrator"
APP = "keyservice_app"

# As in stacks/roles.sql.
_APP_SETTINGS = {
    "statement_timeout": "5s",
    "lock_timeout": "4s",
    "idle_in_transaction_session_timeout": "10s",
    "jit": "off",
    "random_page_cost": "1.1",
    "work_mem": "64MB",
}


@dataclass(frozen=True, kw_only=True)
class Passwords:
    migrator: str
    app: str


def create_roles(server: PostgresServer) -> Passwords:
    """The migrator shall own the database; the app gets its rights from the migrations. Twice changes nothing."""
    passwords = Passwords(migrator=server.create_login(MIGRATOR), app=server.create_login(APP))
    with psycopg.connect(server.admin_dsn(), autocommit=True) as connection:
        for name, value in _APP_SETTINGS.items():
            connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(
                    sql.Identifier(APP), sql.Identifier(name), sql.Literal(value)
                )
            )
    return passwords
