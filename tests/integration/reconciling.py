"""How the tests of reconcile drive it, and what they put in its way."""

import secrets
from typing import Any
from uuid import UUID

from psycopg import sql

from keyservice.models import Deadline, FindingKind, IssuedKey, NewApiKey, ReconcileReport
from keyservice.provenance import Deployment
from keyservice.reconciliation import ReconcileRules, Reconciliation
from keyservice.report_archive import ReportArchive
from tests.integration.service import Service, caller, hash_of
from tests.support.fixtures import LITELLM_URL, STACK_NAME

# Of one run, where the test is not about running out of it.
PLENTY_SECONDS = 60.0


class Reconciler:
    """A service whose keys nobody else's test has: its mark is its own."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.mark = f"lmk-{secrets.token_hex(6)}"
        service.rows("UPDATE keyservice_installation SET mark = %s", [self.mark])

    def run(
        self,
        *,
        fresh: bool = False,
        seconds: float = PLENTY_SECONDS,
        archive: ReportArchive | None = None,
        **rules: Any,
    ) -> ReconcileReport:
        """In mode `heal`, and without a drain unless told otherwise; `fresh` gives it connections of its own."""
        deployment = Deployment(
            stack_name=rules.pop("stack_name", STACK_NAME), litellm_url=rules.pop("litellm_url", LITELLM_URL)
        )
        chosen = {
            "mode": "heal",
            "deployment": deployment,
            "drain_seconds": 0.0,
            "max_heals": 10,
            "reserve_seconds": 0.0,
        } | rules
        reconciliation = Reconciliation(
            database=self.service.connect_database() if fresh else self.service.database,
            litellm=self.service.connect_litellm() if fresh else self.service.gateway,
            rules=ReconcileRules(**chosen),
            archive=archive,
        )
        return reconciliation.run(deadline=Deadline(seconds))

    # What may be wrong.

    def revive(self, issued: IssuedKey, **settings: Any) -> str:
        """A key in LiteLLM as the service makes it, with this secret; its hash."""
        ours = {
            "key_alias": f"{self.mark}:{issued.id}:1",
            "metadata": {"keyservice": {"mark": self.mark, "api_key_id": str(issued.id)}, "user": {}},
            "models": ["gpt-4o"],
        }
        return self.service.make_gateway_key(issued.key, **(ours | settings))

    def make_orphan(self, **settings: Any) -> str:
        """A key that was deleted and is in LiteLLM all the same; its hash."""
        issued = self.service.create()
        self.service.delete(issued.id)
        return self.revive(issued, **settings)

    def make_stranger(self, **settings: Any) -> str:
        """A key of somebody else's, with any secret; its hash."""
        return self.service.make_gateway_key(f"sk-stranger-{secrets.token_hex(16)}", **settings)

    def make_unknown(self) -> str:
        """A key that bears our mark in full, and of which the database knows nothing; its hash."""
        return self.make_stranger(
            key_alias=f"{self.mark}:{secrets.token_hex(4)}:1", metadata={"keyservice": {"mark": self.mark}}
        )

    def make_missing(self) -> IssuedKey:
        """A live key that LiteLLM has lost."""
        issued = self.service.create()
        self.lose(hash_of(issued.key))
        return issued

    def make_drift(self, **changes: Any) -> IssuedKey:
        """A live key whose settings somebody changed in LiteLLM."""
        issued = self.service.create()
        self.change(hash_of(issued.key), **(changes or {"max_budget": 1000.0}))
        return issued

    def create_meanwhile(self) -> IssuedKey:
        """Through another execution environment."""
        wanted = NewApiKey(model_ids=["gpt-4o"], name="made meanwhile")
        creation = self.service.creation(fresh=True)
        return creation.create(caller(), wanted, idempotency_key=None, deadline=Deadline(PLENTY_SECONDS)).key

    def delete_meanwhile(self, key_id: UUID) -> None:
        """Through another execution environment."""
        self.service.deletion(fresh=True).delete(caller(), str(key_id), deadline=Deadline(PLENTY_SECONDS))

    def lose(self, token_hash: str) -> None:
        self._tell("/key/delete", {"keys": [token_hash]})

    def change(self, token_hash: str, **changes: Any) -> None:
        self._tell("/key/update", {"key": token_hash, **changes})

    def _tell(self, path: str, body: dict[str, Any]) -> None:
        answer = self.service._ask("POST", path, body=body)
        assert answer.status_code == 200, answer.text

    def dump(self) -> None:
        """Keeps every table as it is now."""
        self.service.rows("CREATE SCHEMA dumped")
        for table in self._tables():
            self.service._admin.execute(
                sql.SQL("CREATE TABLE dumped.{0} AS TABLE public.{0}").format(sql.Identifier(table))
            )

    def restore(self) -> None:
        """Every table as it was at the dump, without any trigger."""
        with self.service._admin.transaction():
            self.service.rows("SET LOCAL session_replication_role = replica")
            for table in self._tables():
                named = sql.Identifier(table)
                self.service._admin.execute(sql.SQL("DELETE FROM public.{}").format(named))
                self.service._admin.execute(sql.SQL("INSERT INTO public.{0} TABLE dumped.{0}").format(named))

    def _tables(self) -> list[str]:
        rows = self.service.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
        return [row["tablename"] for row in rows]

    # What is left.

    def audits(self, action: str) -> list[dict[str, Any]]:
        return self.service.rows(
            "SELECT user_id, resource_id, success, metadata FROM audit_logs WHERE action = %s ORDER BY created_at",
            [action],
        )

    def heal_audits(self) -> list[str]:
        rows = self.service.rows(
            """
            SELECT action FROM audit_logs
            WHERE action IN ('API_KEY_ORPHAN_DELETED', 'API_KEY_DRIFT_CORRECTED', 'API_KEY_MISSING', 'API_KEY_FOUND')
            ORDER BY action
            """
        )
        return [row["action"] for row in rows]

    def row(self, key_id: UUID) -> tuple[bool, str, str | None]:
        """is_active, sync_status, sync_error"""
        [row] = self.service.rows("SELECT is_active, sync_status, sync_error FROM api_keys WHERE id = %s", [key_id])
        return row["is_active"], row["sync_status"], row["sync_error"]

    def token_state(self, token_hash: str) -> str:
        return self.service.value("SELECT state FROM api_key_tokens WHERE hash = %s", [token_hash])

    def is_live(self, token_hash: str) -> bool:
        return self.service.is_live(token_hash)


def seen(report: ReconcileReport) -> dict[FindingKind, list[str]]:
    """The hashes by kind; no kind without any."""
    return {kind: summary.hashes for kind, summary in report.findings.items()}
