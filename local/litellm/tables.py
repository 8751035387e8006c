"""What LiteLLM keeps in its database: live keys, deleted keys, users, teams."""

import json
import sqlite3
import uuid
from collections import defaultdict

from local.litellm.durations import now
from local.litellm.refusals import Row, missing_key


class StateFile:
    """Every row as JSON in SQLite: survives a kill of this process, not a loss of power."""

    def __init__(self, path: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = OFF")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS rows (place INTEGER PRIMARY KEY, kind TEXT, id TEXT, json TEXT, UNIQUE (kind, id))"
        )

    def read(self, kind: str) -> list[Row]:
        rows = self.connection.execute("SELECT json FROM rows WHERE kind = ? ORDER BY place", (kind,))
        return [json.loads(text) for (text,) in rows]

    def write(self, kind: str, row_id: str, row: Row) -> None:
        self.connection.execute(
            "INSERT INTO rows (kind, id, json) VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET json = excluded.json",
            (kind, row_id, json.dumps(row)),
        )

    def remove(self, kind: str, row_id: str) -> None:
        self.connection.execute("DELETE FROM rows WHERE kind = ? AND id = ?", (kind, row_id))


class Tables:
    """Live keys by token in the order of their creation; of the deletions of one token only the latest is kept."""

    def __init__(self, *, state_path: str | None) -> None:
        self._state = StateFile(state_path or ":memory:")
        self.keys = {row["token"]: row for row in self._state.read("key")}
        self.deleted = {row["token"]: row for row in self._state.read("deleted")}
        self.users = {row["user_id"]: row for row in self._state.read("user")}
        self.teams = {row["team_id"]: row for row in self._state.read("team")}
        self._tokens_of_alias: defaultdict[str | None, set[str]] = defaultdict(set)
        for row in self.keys.values():
            self._tokens_of_alias[row["key_alias"]].add(row["token"])

    def live_key(self, token: str) -> Row:
        if token not in self.keys:
            raise missing_key()
        return self.keys[token]

    def tokens_with_alias(self, alias: str) -> frozenset[str]:
        return frozenset(self._tokens_of_alias.get(alias, ()))

    def save_key(self, row: Row) -> None:
        self._forget_alias(row["token"])
        self.keys[row["token"]] = row
        self._tokens_of_alias[row["key_alias"]].add(row["token"])
        self._state.write("key", row["token"], row)

    def archive_key(self, row: Row, *, deleted_by: str, deleted_by_api_key: str, changed_by: str | None) -> None:
        archived = row | {
            "id": str(uuid.uuid4()),
            "deleted_at": now().isoformat(),
            "deleted_by": deleted_by,
            "deleted_by_api_key": deleted_by_api_key,
            "litellm_changed_by": changed_by,
        }
        # Taken out first, so that the latest deletion stands last, as the latest key does among the live ones.
        self.deleted.pop(row["token"], None)
        self.deleted[row["token"]] = archived
        self._forget_alias(row["token"])
        self.keys.pop(row["token"], None)
        self._state.write("deleted", row["token"], archived)
        self._state.remove("key", row["token"])

    def save_user(self, row: Row) -> None:
        self.users[row["user_id"]] = row
        self._state.write("user", row["user_id"], row)

    def save_team(self, row: Row) -> None:
        self.teams[row["team_id"]] = row
        self._state.write("team", row["team_id"], row)

    def _forget_alias(self, token: str) -> None:
        if token in self.keys:
            self._tokens_of_alias[self.keys[token]["key_alias"]].discard(token)
