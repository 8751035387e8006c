"""The SQL that runbooks tell people to run is SQL that this database takes."""

import re
from pathlib import Path
from textwrap import dedent
from typing import LiteralString, cast

import psycopg
import pytest

from tests.architecture.translation import ROOT
from tests.support.fixtures import Database

RUNBOOKS = sorted((ROOT / "docs/runbooks").glob("*.md"))
# What a person fills in; text and ids alike take it.
SOMETHING = "'00000000-0000-4000-8000-000000000000'"


def statements(document: Path) -> list[str]:
    blocks = re.findall(r"(?ms)^ *```sql\n(.*?)^ *```", document.read_text())
    text = re.sub(r"'(…|<[^>]*>)'", SOMETHING, "\n".join(dedent(block) for block in blocks))
    bare = re.sub(r"(?m)^--.*$", "", text)
    return [statement.strip() for statement in bare.split(";") if statement.strip()]


@pytest.mark.parametrize("document", RUNBOOKS, ids=lambda path: path.stem)
def test_each_statement_about_rows_can_be_planned(database: Database, document: Path):
    with psycopg.connect(database.migrator_dsn) as owner:
        for statement in statements(document):
            match statement.split():
                case "SELECT" | "INSERT" | "UPDATE" | "DELETE", *_:
                    owner.execute(cast(LiteralString, f"EXPLAIN {statement}"))
                case "CREATE", "TEMPORARY", *_:
                    # Those after it read it.
                    owner.execute(cast(LiteralString, statement))
                case _:
                    pass


def test_uninstalling_takes_away_what_is_ours_and_leaves_litemaas_working(database: Database):
    taken_away = [s for s in statements(ROOT / "docs/runbooks/uninstall.md") if s.startswith("DROP")]

    with psycopg.connect(database.migrator_dsn) as owner:
        for statement in taken_away:
            owner.execute(cast(LiteralString, statement))
        owner.execute(
            "INSERT INTO users (username, email, oauth_provider, oauth_id) VALUES ('u', 'u@e', 'openshift', 'u')"
        )
        owner.execute("DELETE FROM api_keys")
        owner.execute("DELETE FROM users")

    with psycopg.connect(database.admin_dsn) as admin:
        tables = admin.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        )
        functions = admin.execute("SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace")
        assert {name for (name,) in tables} == {
            "api_key_models",
            "api_keys",
            "audit_logs",
            "models",
            "subscriptions",
            "system_settings",
            "team_members",
            "teams",
            "users",
        }
        assert functions.fetchone() == (0,)
