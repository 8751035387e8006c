"""Builds the parts of the service once per execution environment; the only reader of os.environ.

Each part is built and imported when it is first asked for: a function pays for what it uses.
"""

import os
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from keyservice.aws import Aws, import_session
from keyservice.errors import Unavailable
from keyservice.models import Deadline
from keyservice.secret_values import SecretValues
from keyservice.settings import Settings, SettingsError

if TYPE_CHECKING:
    from keyservice.adoption import Adoption
    from keyservice.alteration import KeyAlteration
    from keyservice.audit_trail import AuditTrail
    from keyservice.creation import KeyCreation
    from keyservice.database import Database
    from keyservice.deletion import KeyDeletion
    from keyservice.ending import EndRules
    from keyservice.health import HealthCheck
    from keyservice.key_defaults import Defaults
    from keyservice.key_statistics import Statistics
    from keyservice.listing import KeyListing
    from keyservice.litellm import LiteLLM
    from keyservice.litemaas_tokens import LiteMaaSTokens
    from keyservice.operations import Operations
    from keyservice.provenance import Deployment
    from keyservice.reconciliation import Reconciliation
    from keyservice.retirement import SecretRetirement
    from keyservice.revelation import SecretRevelation
    from keyservice.rotation import KeyRotation
    from keyservice.schema import Migrated, SchemaState
    from keyservice.settlement import ExpiryCleanup, Settlement
    from keyservice.spend import SpendSync
    from keyservice.validation import KeyValidation


@cache
def settings() -> Settings:
    return Settings(variables=dict(os.environ))


@cache
def aws() -> Aws:
    return Aws(settings().aws)


@cache
def secret_values() -> SecretValues:
    return SecretValues(aws())


@cache
def database() -> "Database":
    from keyservice.database import Database

    return Database(settings().database, secret_values())


@cache
def litellm(*, connections: int = 1) -> "LiteLLM":
    """`connections`: how many threads may ask at once."""
    from keyservice.litellm import LiteLLM

    return LiteLLM(
        url=settings().text("LITELLM_URL"),
        secret_arn=settings().text("LITELLM_SECRET_ARN"),
        secret_values=secret_values(),
        connections=connections,
    )


@cache
def litemaas_tokens() -> "LiteMaaSTokens":
    from keyservice.litemaas_tokens import LiteMaaSTokens

    return LiteMaaSTokens(secret_arn=settings().text("LITEMAAS_TOKEN_SECRET_ARN"), secret_values=secret_values())


@cache
def key_creation() -> "KeyCreation":
    from keyservice.creation import CreateRules, KeyCreation
    from keyservice.derivation import KeyDeriver

    return KeyCreation(
        database=database(),
        litellm=litellm(),
        deriver=KeyDeriver(mac_key_arn=settings().text("MAC_KEY_ARN"), aws=aws()),
        rules=CreateRules(
            model_access=settings().model_access,
            max_active_keys=settings().integer("MAX_ACTIVE_KEYS"),
            lease_seconds=settings().lease_seconds,
            drain_seconds=settings().seconds("GATEWAY_DRAIN_SECONDS"),
            resume_seconds=settings().seconds("RESUME_SECONDS"),
        ),
    )


@cache
def key_rotation() -> "KeyRotation":
    from keyservice.derivation import KeyDeriver
    from keyservice.rotation import KeyRotation, RotateRules

    return KeyRotation(
        database=database(),
        litellm=litellm(),
        deriver=KeyDeriver(mac_key_arn=settings().text("MAC_KEY_ARN"), aws=aws()),
        retirement=secret_retirement(),
        rules=RotateRules(
            lease_seconds=settings().lease_seconds,
            drain_seconds=settings().seconds("GATEWAY_DRAIN_SECONDS"),
            resume_seconds=settings().seconds("RESUME_SECONDS"),
        ),
    )


@cache
def secret_retirement() -> "SecretRetirement":
    from keyservice.retirement import SecretRetirement

    return SecretRetirement(
        database=database(),
        litellm=litellm(),
        rules=_end_rules(),
    )


def _end_rules() -> "EndRules":
    from keyservice.ending import EndRules

    return EndRules(
        lease_seconds=settings().lease_seconds,
        gateway_cache_seconds=settings().seconds("GATEWAY_CACHE_SECONDS"),
    )


@cache
def secret_revelation() -> "SecretRevelation":
    from keyservice.derivation import KeyDeriver
    from keyservice.revelation import SecretRevelation

    return SecretRevelation(
        database=database(),
        deriver=KeyDeriver(mac_key_arn=settings().text("MAC_KEY_ARN"), aws=aws()),
        policy=settings().reveal_policy,
    )


@cache
def key_deletion() -> "KeyDeletion":
    from keyservice.deletion import KeyDeletion

    return KeyDeletion(
        database=database(),
        litellm=litellm(),
        rules=_end_rules(),
    )


@cache
def key_alteration() -> "KeyAlteration":
    from keyservice.alteration import AlterationRules, KeyAlteration

    return KeyAlteration(
        database=database(),
        litellm=litellm(),
        rules=AlterationRules(
            model_access=settings().model_access,
            owners_may_reset_spend=settings().owners_may_reset_spend,
            lease_seconds=settings().lease_seconds,
            drain_seconds=settings().seconds("GATEWAY_DRAIN_SECONDS"),
        ),
    )


@cache
def key_listing() -> "KeyListing":
    from keyservice.listing import KeyListing

    return KeyListing(database=database())


@cache
def key_statistics() -> "Statistics":
    from keyservice.key_statistics import Statistics

    return Statistics(database=database())


@cache
def key_validation() -> "KeyValidation":
    from keyservice.validation import KeyValidation

    return KeyValidation(database=database())


@cache
def key_defaults() -> "Defaults":
    from keyservice.key_defaults import Defaults

    return Defaults(database=database())


@cache
def audit_trail() -> "AuditTrail":
    from keyservice.audit_trail import AuditTrail

    return AuditTrail(database=database())


@cache
def operations() -> "Operations":
    from keyservice.operations import Operations

    return Operations(database=database())


@cache
def settlement() -> "Settlement":
    from keyservice.settlement import Settlement, SettleRules

    return Settlement(
        database=database(),
        litellm=litellm(),
        rules=SettleRules(
            deployment=deployment(),
            lease_seconds=settings().lease_seconds,
            drain_seconds=settings().seconds("GATEWAY_DRAIN_SECONDS"),
            gateway_seconds=settings().seconds("LITELLM_BUDGET_SECONDS"),
            reserve_seconds=settings().seconds("SETTLE_RESERVE_SECONDS"),
            first_wait_seconds=settings().seconds("SETTLE_FIRST_WAIT_SECONDS"),
            longest_wait_seconds=settings().seconds("SETTLE_LONGEST_WAIT_SECONDS"),
            keeps_expired_rows=settings().expiry_mode == "deactivate",
        ),
    )


@cache
def expiry_cleanup() -> "ExpiryCleanup":
    from keyservice.settlement import CleanupRules, ExpiryCleanup

    return ExpiryCleanup(
        database=database(),
        litellm=litellm(),
        rules=CleanupRules(
            deployment=deployment(),
            lease_seconds=settings().lease_seconds,
            keeps_expired_rows=settings().expiry_mode == "deactivate",
        ),
    )


@cache
def spend_sync() -> "SpendSync":
    from keyservice.spend import SpendRules, SpendSync

    pages_at_once = settings().integer("SPEND_PAGES_AT_ONCE")
    return SpendSync(
        database=database(),
        litellm=litellm(connections=pages_at_once),
        rules=SpendRules(
            lease_seconds=settings().lease_seconds,
            gateway_seconds=settings().seconds("LITELLM_BUDGET_SECONDS"),
            reserve_seconds=settings().seconds("SPEND_RESERVE_SECONDS"),
            pages_at_once=pages_at_once,
        ),
    )


@cache
def adoption() -> "Adoption":
    from keyservice.adoption import Adoption, AdoptionRules

    pages_at_once = settings().integer("ADOPTION_PAGES_AT_ONCE")
    return Adoption(
        database=database(),
        litellm=litellm(connections=pages_at_once),
        rules=AdoptionRules(
            deployment=deployment(),
            lease_seconds=settings().lease_seconds,
            gateway_seconds=settings().seconds("LITELLM_BUDGET_SECONDS"),
            reserve_seconds=settings().seconds("ADOPTION_RESERVE_SECONDS"),
            pages_at_once=pages_at_once,
        ),
    )


@cache
def health_check() -> "HealthCheck":
    from keyservice.health import HealthCheck

    return HealthCheck(
        settings=settings().database, secret_values=secret_values(), litellm_url=settings().text("LITELLM_URL")
    )


@cache
def deployment() -> "Deployment":
    from keyservice.provenance import Deployment

    return Deployment(stack_name=settings().text("STACK_NAME"), litellm_url=settings().text("LITELLM_URL"))


@cache
def reconciliation() -> "Reconciliation":
    from keyservice.reconciliation import ReconcileRules, Reconciliation
    from keyservice.report_archive import ReportArchive

    bucket = settings().reconcile_bucket
    return Reconciliation(
        database=database(),
        litellm=litellm(),
        rules=ReconcileRules(
            mode=settings().reconcile_mode,
            deployment=deployment(),
            drain_seconds=settings().seconds("GATEWAY_DRAIN_SECONDS"),
            max_heals=settings().integer("RECONCILE_MAX_HEALS"),
            reserve_seconds=settings().seconds("RECONCILE_RESERVE_SECONDS"),
        ),
        archive=None if bucket is None else ReportArchive(bucket),
    )


def migrate_schema(deadline: Deadline) -> "Migrated":
    """A connection of its own each time: migrations run once per deployment, as the role that owns the tables."""
    from keyservice.database import connect
    from keyservice.schema import migrate

    with connect(settings().database, secret_values()) as connection:
        connection.statement_timeout_seconds = (
            deadline.remaining_seconds()
        )  # an index of a large table may need minutes
        return migrate(
            connection,
            app_user=settings().text("DATABASE_APP_USER"),
            stack_name=settings().text("STACK_NAME"),
            litellm_url=settings().text("LITELLM_URL"),
        )


def schema_state() -> "SchemaState":
    """What `migrate_schema` would do."""
    from keyservice import schema
    from keyservice.database import connect

    with connect(settings().database, secret_values()) as connection:
        return schema.state(connection, app_user=settings().text("DATABASE_APP_USER"))


# A function whose environments start from a snapshot of the first one (Lambda SnapStart).


def is_snapshot_taken() -> bool:
    return os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"


def prepare_snapshot() -> None:
    """Imports what this function is going to need, and leaves nothing open and nothing secret behind: a connection would
    be shared by all environments, and a secret kept for as long as the version lives."""
    import_session()
    for part in _parts():
        with suppress(SettingsError):  # a part this function is not configured for
            part()
    for part in (aws, database, litellm):
        if part.cache_info().currsize:
            part().close()
    for part in _parts():
        part.cache_clear()


def open_afresh() -> None:
    """Reads the settings as they are now, and connects; a database that is away is the first request's to report."""
    for part in _parts():
        part.cache_clear()
    with suppress(SettingsError, Unavailable):
        database().open()


def _parts() -> list[Any]:
    return [part for part in globals().values() if hasattr(part, "cache_clear")]
