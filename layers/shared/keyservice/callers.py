"""Who calls, from the claims of a token that API Gateway, or the Lambda authorizer before it, has verified."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from keyservice.errors import Unauthorized
from keyservice.models import Actor, Caller, parse_uuid
from keyservice.settings import ClaimNames

_MAX_LENGTH = 255  # the columns are varchar(255)
_ROLE = re.compile(r"[^\s,\[\]\"]+")


def caller_from_claims(claims: Mapping[str, Any], *, names: ClaimNames, actor: Actor) -> Caller:
    """A caller is the issuer's name and the subject. A username or email that the token lacks, or that does not fit
    the column, becomes `{provider}:{sub}`. Raises Unauthorized without a usable subject.

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
        roles=_roles(claims.get(names.roles)),
        actor=actor,
    )


def _existing_user(subject: str, *, actor: Actor) -> Caller:
    user_id = parse_uuid(subject)
    if user_id is None:
        raise Unauthorized("The token has no usable subject")
    return Caller(user_id=user_id, username="", email="", full_name=None, roles=(), actor=actor)


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > _MAX_LENGTH or "\0" in value:
        return None
    return value


def _fitting(text: str) -> str:
    if len(text) <= _MAX_LENGTH:
        return text
    return f"{text[: _MAX_LENGTH - 65]}:{hashlib.sha256(text.encode()).hexdigest()}"


def _roles(claim: object) -> tuple[str, ...]:
    """HTTP APIs hand every claim over as a string: a list of roles arrives as `[admin user]`."""
    return tuple(_ROLE.findall(claim)) if isinstance(claim, str) else ()
