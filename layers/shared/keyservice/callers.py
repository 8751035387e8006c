"""Who calls, from the claims of a token that API Gateway, or the Lambda authorizer before it, has verified."""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from keyservice.errors import Unauthorized
from keyservice.models import Actor, Caller, parse_uuid
from keyservice.settings import ClaimNames

_MAX_LENGTH = 255  # the columns are varchar(255)
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # PostgreSQL's text takes neither U+0000 nor half a surrogate pair
_ROLES = ("user", "readonly", "admin", "admin-readonly")


def caller_from_claims(claims: Mapping[str, Any], *, authorization: str, names: ClaimNames, actor: Actor) -> Caller:
    """A caller is the issuer's name and the subject. A username or email that the token lacks, or that does not fit
    the column, becomes `{provider}:{sub}`. `authorization` is the header that API Gateway has verified.
    Raises Unauthorized without a usable subject.

    A subject that is the id of a row says nothing else: names and roles are the row's. LiteMaaS itself never took the
    roles of its tokens for granted, and whoever lost a role would otherwise keep it until the token ends.
    """
    subject = _text(claims, names.subject)
    if subject is None:
        raise Unauthorized("The token has no usable subject")
    if names.subject_column == "id":
        return _existing_user(subject, actor=actor)
    substitute = _fitting(f"{names.provider}:{subject}")
    return Caller(
        provider=names.provider,
        subject=subject,
        username=_text(claims, names.username) or substitute,
        email=_text(claims, names.email) or substitute,
        full_name=_text(claims, names.full_name),
        roles=_roles(_token_claims(authorization).get(names.roles)),
        authenticated_at=_seconds(claims.get("auth_time")),
        actor=actor,
    )


def _existing_user(subject: str, *, actor: Actor) -> Caller:
    user_id = parse_uuid(subject)
    if user_id is None:
        raise Unauthorized("The token has no usable subject")
    return Caller(user_id=user_id, username="", email="", full_name=None, roles=(), actor=actor)


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > _MAX_LENGTH or _UNSTORABLE.search(value):
        return None
    return value


def _seconds(claim: object) -> float | None:
    """HTTP APIs hand numbers over as text."""
    if not isinstance(claim, (str, int, float)):
        return None
    try:
        return float(claim)
    except (ValueError, OverflowError):
        return None


def _fitting(text: str) -> str:
    if len(text) <= _MAX_LENGTH:
        return text
    return f"{text[: _MAX_LENGTH - 65]}:{hashlib.sha256(text.encode()).hexdigest()}"


def _roles(claim: object) -> tuple[str, ...]:
    """The roles this service knows; a claim is a list of them, or one."""
    given: object = [claim] if isinstance(claim, str) else claim
    return tuple(role for role in _ROLES if role in given) if isinstance(given, list) else ()


def _token_claims(authorization: str) -> dict[str, Any]:
    """The claims as the issuer wrote them. HTTP APIs hand each over as one string, in which the role `cluster admin`
    cannot be told from the two roles `cluster` and `admin`."""
    payload = authorization.rpartition(" ")[2].split(".")[1:2]
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(payload[0] + "=="), type=dict[str, Any])
    except (IndexError, ValueError, msgspec.DecodeError):
        return {}
