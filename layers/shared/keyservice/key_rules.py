"""The rules that every key has to keep, made or changed: their SQL, and how they are told to whoever breaks one."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, LiteralString
from uuid import UUID

import msgspec

from keyservice.errors import InvalidRequest, Violation


class RuleViolation(msgspec.Struct, frozen=True):
    """A rule of the database's that a request breaks; `bound` is the limit, or the models concerned."""

    field: str
    code: Literal[
        "inactiveUser",
        "inactiveOwner",
        "readOnly",
        "inactive",
        "notFound",
        "notActive",
        "notEntitled",
        "notSelected",
        "notMember",
        "notLinked",
        "maximum",
        "past",
        "tooFar",
        "required",
        "keyLimit",
    ]
    bound: Any = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Every rule the request breaks; the audit record of it is written. `user_id`: whose key it is, or would be."""

    user_id: UUID
    rules: list[RuleViolation]


# The administrators' defaults and maximums, one row.
CONFIGURED: LiteralString = """configured AS (
    SELECT coalesce(s.value -> 'defaults', '{}') AS defaults, coalesce(s.value -> 'maximums', '{}') AS maximums
    FROM (VALUES (true)) AS always (is_there)
    LEFT JOIN system_settings AS s ON s.key = 'api_key_defaults'
)"""

# Models that LiteLLM serves and the database does not know yet.
DISCOVERED: LiteralString = """discovered AS (
    INSERT INTO models (id, name, provider)
    SELECT d.id, d.name, left(d.provider, 100)
    FROM jsonb_to_recordset(%(gateway_models)s::jsonb) AS d (id text, name text, provider text)
    WHERE d.id = ANY (%(model_ids)s::text[])
    ON CONFLICT DO NOTHING
)"""


def inconsistencies(*, model_ids: Sequence[str] | None, money: Iterable[tuple[str, float | None]]) -> list[Violation]:
    """What is wrong with well-typed settings before any rule of the database is asked; `money` by its field's name."""
    violations: list[Violation] = []
    if model_ids is not None and len(set(model_ids)) < len(model_ids):
        violations.append(Violation("modelIds", "must not name a model twice", "uniqueItems"))
    violations.extend(
        Violation(field, "must not have more than 2 decimals", "multipleOf")
        for field, amount in money
        if amount is not None and round(amount, 2) != amount
    )
    return violations


def refusal_of(broken: Sequence[RuleViolation], *, model_access: Literal["subscription", "any"]) -> InvalidRequest:
    """Names every rule that is broken."""
    violations = [Violation(rule.field, _sentence(rule, model_access=model_access), rule.code) for rule in broken]
    return InvalidRequest(
        "; ".join(violation.message for violation in violations),
        violations=violations,
        details={"field": broken[0].field, "suggestion": _suggestion(broken[0])},
    )


def _sentence(rule: RuleViolation, *, model_access: Literal["subscription", "any"]) -> str:
    match rule.code, rule.field:
        case "notEntitled", _ if model_access == "any":
            return f"The following models do not exist: {', '.join(rule.bound)}"
        case "notEntitled", _:
            return f"You do not have active subscriptions for the following models: {', '.join(rule.bound)}"
        case "notActive", _:
            return f"Cannot create API key for {rule.bound} subscription"
        case "inactiveOwner", _:
            return "userId: this user's account is not active"
        case "notMember", _:
            return "teamId: there is no such team, or its money may not be spent by this user"
        case "notLinked", _:
            return "teamId: LiteLLM does not know this team yet. Ask an administrator"
        case "notSelected", _:
            return f"{rule.field}: must only name models that the key may use"
        case "keyLimit", _:
            return f"Maximum {rule.bound} active API keys allowed per user"
        case "maximum", "expiresAt":
            return f"expiresAt: exceeds maximum expiration of {rule.bound} days"
        case "required", "expiresAt":
            return f"expiresAt: a maximum expiration of {rule.bound} days is configured; 'Never' is not allowed"
        case "required", _:
            return f"{rule.field}: a maximum of {rule.bound} is configured; 'Unlimited' is not allowed"
        case "past", _:
            return "expiresAt: must be in the future"
        case "tooFar", _:
            return "expiresAt: must be within 10 years"
        case _:
            return f"{rule.field}: exceeds maximum {rule.bound}"


def _suggestion(rule: RuleViolation) -> str:
    match rule.code:
        case "notEntitled":
            return "Please ensure you have active subscriptions for all selected models"
        case "notActive":
            return "Subscription must be active to create API keys"
        case "keyLimit":
            return f"Please delete some existing API keys before creating new ones. Current limit: {rule.bound}"
        case _:
            return "Please check your input and try again"
