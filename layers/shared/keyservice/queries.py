"""What the query strings of lists have in common: numbers, ids, moments and cursors."""

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from msgspec import Meta

from keyservice.errors import Violation
from keyservice.models import Cursor, parse_uuid

_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")


def parse_whole_number(
    parameters: Mapping[str, str], name: str, *, default: int, maximum: int, violations: list[Violation]
) -> int:
    """A number from 1 to the maximum; what is wrong with it is added to the violations."""
    text = parameters.get(name)
    if text is None:
        return default
    if _WHOLE_NUMBER.fullmatch(text) and 1 <= int(text) <= maximum:
        return int(text)
    violations.append(Violation(name, f"must be a whole number from 1 to {maximum}", "range"))
    return default


def parse_boolean(parameters: Mapping[str, str], name: str, *, violations: list[Violation]) -> bool | None:
    value = {"true": True, "false": False}.get(parameters.get(name, ""))
    if value is None and name in parameters:
        violations.append(Violation(name, "must be true or false", "type"))
    return value


def parse_id(parameters: Mapping[str, str], name: str, *, violations: list[Violation]) -> UUID | None:
    parsed = parse_uuid(parameters.get(name, ""))
    if parsed is None and name in parameters:
        violations.append(Violation(name, "must be a UUID", "format"))
    return parsed


def parse_text(parameters: Mapping[str, str], name: str, *, max_length: int, violations: list[Violation]) -> str | None:
    """Empty means not given."""
    text = parameters.get(name) or None
    if text is not None and (len(text) > max_length or "\0" in text):
        violations.append(Violation(name, f"must be at most {max_length} characters, none of them U+0000", "format"))
        return None
    return text


def parse_moment(parameters: Mapping[str, str], name: str, *, violations: list[Violation]) -> datetime | None:
    """ISO 8601 with date, time and zone."""
    if name not in parameters:
        return None
    try:
        return msgspec.convert(parameters[name], Annotated[datetime, Meta(tz=True)])
    except msgspec.ValidationError:
        violations.append(Violation(name, "must be a moment such as 2026-11-22T13:00:00Z", "format"))
        return None


def encode_cursor(cursor: Cursor) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()


def decode_cursor(parameters: Mapping[str, str], *, violations: list[Violation]) -> Cursor | None:
    """The parameter `cursor`. It needs no signature: it only says where, in what the caller may see, to go on."""
    if "cursor" not in parameters:
        return None
    text = parameters["cursor"]
    try:
        padded = text + "=" * (-len(text) % 4)
        return msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=Cursor)
    except (binascii.Error, msgspec.DecodeError, ValueError):
        violations.append(Violation("cursor", "must be the nextCursor of an earlier page", "format"))
        return None
