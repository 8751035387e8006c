"""How the tests of adoption drive it, and the keys that LiteMaaS has made."""

import secrets
from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID, uuid4

from keyservice.adoption import Adoption, AdoptionRules
from keyservice.models import AdoptionMode, AdoptionReport, Deadline
from keyservice.provenance import Deployment
from tests.integration.service import LEASE_SECONDS, Service, hash_of

PLENTY_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class LiteMaaSKey:
    id: UUID
    secret: str

    @property
    def hash(self) -> str:
        return hash_of(self.secret)


class LiteMaaS:
    """What an old LiteMaaS of either era does beside the service, in its own words to PostgreSQL and LiteLLM."""

    def __init__(self, service: Service, *, has_plaintext: bool) -> None:
        self.service = service
        self.has_plaintext = has_plaintext

    def make_key(self, *, is_there: bool = True, **columns: Any) -> LiteMaaSKey:
        """Of Alice's; in LiteLLM unless told otherwise."""
        secret = f"sk-{secrets.token_urlsafe(16)}"
        if is_there:
            self.make_gateway_key(secret)
        key = LiteMaaSKey(id=uuid4(), secret=secret)
        told = {"lite_llm_key_value": secret} if self.has_plaintext else {"lite_llm_key_id": hash_of(secret)}
        row = {"id": key.id, "name": "old", "key_hash": hash_of(secret), "key_prefix": secret[:7], **told, **columns}
        self.insert(row)
        return key

    def make_gateway_key(self, secret: str) -> str:
        return self.service.make_gateway_key(
            secret, key_alias=f"old_{secrets.token_hex(4)}", metadata={"created_by": "litemaas"}, models=["gpt-4o"]
        )

    def insert(self, row: dict[str, Any]) -> None:
        names = ", ".join(row)
        values = ", ".join(f"%({name})s" for name in row)
        self._run(
            f"INSERT INTO api_keys (user_id, subscription_id, {names})"
            f" SELECT u.id, s.id, {values} FROM users AS u JOIN subscriptions AS s ON s.user_id = u.id"
            " WHERE u.oauth_id = 'alice' AND s.model_id = 'gpt-4o'",
            row,
        )

    def delete(self, key: LiteMaaSKey) -> None:
        self.service.rows("DELETE FROM api_keys WHERE id = %s", [key.id])

    def rotate(self, key: LiteMaaSKey, *, gateway_works: bool = True) -> str:
        """The new secret. When LiteLLM fails, LiteMaaS makes one up and keeps the old one where it stores secrets."""
        secret = f"sk-{secrets.token_urlsafe(16)}" if gateway_works else f"sk-{secrets.token_hex(32)}"
        if gateway_works:
            self.service._ask("POST", "/key/delete", body={"keys": [key.secret]})
            self.service.make_gateway_key(secret, metadata={"litemaas_key_id": str(key.id)}, models=[])
            self.service.rows("UPDATE api_keys SET lite_llm_key_value = %s WHERE id = %s", [secret, key.id])
        self.service.rows(
            "UPDATE api_keys SET key_hash = %s, key_prefix = %s WHERE id = %s", [hash_of(secret), secret[:7], key.id]
        )
        return secret

    def _run(self, statement: str, parameters: dict[str, Any]) -> None:
        self.service._admin.execute(statement.encode(), parameters)


class Adopter:
    """The job, as the role that owns the tables."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.database = service.connect_database(
            service.database_settings(secret_arn=service.cloud.migrator_secret_arn)
        )

    def run(
        self, mode: AdoptionMode = "adopt", *, seconds: float = PLENTY_SECONDS, stack_name: str | None = None
    ) -> AdoptionReport:
        deployment = self.service.deployment
        adoption = Adoption(
            database=self.database,
            litellm=self.service.connect_litellm(),
            rules=AdoptionRules(
                deployment=Deployment(
                    stack_name=stack_name or deployment.stack_name, litellm_url=deployment.litellm_url
                ),
                lease_seconds=LEASE_SECONDS,
                gateway_seconds=5.0,
                reserve_seconds=0.0,
                pages_at_once=1,
            ),
        )
        return adoption.run(mode=mode, deadline=Deadline(seconds))

    def row(self, key: LiteMaaSKey) -> dict[str, Any]:
        [row] = self.service.rows("SELECT * FROM api_keys WHERE id = %s", [key.id])
        return row

    def tokens(self, key: LiteMaaSKey) -> list[tuple[str, str]]:
        """Hash and state, oldest first."""
        rows = self.service.rows(
            "SELECT hash, state FROM api_key_tokens WHERE api_key_id = %s ORDER BY number", [key.id]
        )
        return [(row["hash"], row["state"]) for row in rows]

    def audits(self, key: LiteMaaSKey, action: LiteralString = "API_KEY_ADOPT") -> list[dict[str, Any]]:
        return self.service.rows(
            "SELECT user_id, success, metadata FROM audit_logs WHERE resource_id = %s AND action = %s",
            [str(key.id), action],
        )

    def everything(self) -> dict[str, list[Any]]:
        """Every row of the tables that adoption changes."""
        tables: list[LiteralString] = ["api_keys", "api_key_models", "api_key_tokens", "audit_logs"]
        queries: list[LiteralString] = ["SELECT t::text FROM " + table + " AS t ORDER BY 1" for table in tables]
        return {table: self.service.rows(query) for table, query in zip(tables, queries, strict=True)}


def outcomes(report: AdoptionReport) -> dict[str, list[UUID]]:
    """The ids by outcome."""
    return {outcome: rows.ids for outcome, rows in report.rows.items()}
