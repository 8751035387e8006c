"""Builds the parts of the service once per execution environment; the only reader of os.environ.

Each part is built and imported when it is first asked for: a function pays for what it uses.
"""

import os
from functools import cache
from typing import TYPE_CHECKING

from keyservice.database import Database
from keyservice.secret_values import SecretValues
from keyservice.settings import Settings

if TYPE_CHECKING:
    from keyservice.audit_trail import AuditTrail
    from keyservice.creation import KeyCreation
    from keyservice.deletion import KeyDeletion
    from keyservice.health import HealthCheck
    from keyservice.key_defaults import Defaults
    from keyservice.key_statistics import Statistics
    from keyservice.listing import KeyListing
    from keyservice.litellm import LiteLLM
    from keyservice.operations import Operations
    from keyservice.schema import Migrated
    from keyservice.settlement import Settlement
    from keyservice.validation import KeyValidation


@cache
def settings() -> Settings:
    return Settings(variables=dict(os.environ))


@cache
def secret_values() -> SecretValues:
    return SecretValues()


@cache
def database() -> Database:
    return Database(settings().database, secret_values())


@cache
def litellm() -> "LiteLLM":
    from keyservice.litellm import LiteLLM

    return LiteLLM(
        url=settings().text("LITELLM_URL"),
        secret_arn=settings().text("LITELLM_SECRET_ARN"),
        secret_values=secret_values(),
    )


@cache
def key_creation() -> "KeyCreation":
    from keyservice.creation import CreateRules, KeyCreation
    from keyservice.derivation import KeyDeriver

    return KeyCreation(
        database=database(),
        litellm=litellm(),
        deriver=KeyDeriver(mac_key_arn=settings().text("MAC_KEY_ARN")),
        rules=CreateRules(
            model_access=settings().model_access,
            max_active_keys=settings().integer("MAX_ACTIVE_KEYS"),
            lease_seconds=settings().lease_seconds,
            drain_seconds=settings().seconds("GATEWAY_DRAIN_SECONDS"),
            resume_seconds=settings().seconds("RESUME_SECONDS"),
        ),
    )


@cache
def key_deletion() -> "KeyDeletion":
    from keyservice.deletion import DeleteRules, KeyDeletion

    return KeyDeletion(
        database=database(),
        litellm=litellm(),
        rules=DeleteRules(
            lease_seconds=settings().lease_seconds,
            gateway_cache_seconds=settings().seconds("GATEWAY_CACHE_SECONDS"),
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
            lease_seconds=settings().lease_seconds,
            gateway_seconds=settings().seconds("LITELLM_BUDGET_SECONDS"),
            reserve_seconds=settings().seconds("SETTLE_RESERVE_SECONDS"),
            first_wait_seconds=settings().seconds("SETTLE_FIRST_WAIT_SECONDS"),
            longest_wait_seconds=settings().seconds("SETTLE_LONGEST_WAIT_SECONDS"),
            keeps_expired_rows=settings().expiry_mode == "deactivate",
        ),
    )


@cache
def health_check() -> "HealthCheck":
    from keyservice.health import HealthCheck

    return HealthCheck(
        settings=settings().database, secret_values=secret_values(), litellm_url=settings().text("LITELLM_URL")
    )


def migrate_schema() -> "Migrated":
    """A connection of its own each time: migrations run once per deployment, as the role that owns the tables."""
    from keyservice.database import connect
    from keyservice.schema import migrate

    with connect(settings().database, secret_values()) as connection:
        return migrate(
            connection,
            app_user=settings().text("DATABASE_APP_USER"),
            stack_name=settings().text("STACK_NAME"),
            litellm_url=settings().text("LITELLM_URL"),
        )
