"""Turns untrusted JSON into models and reports every violation at once, never echoing a value."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from types import UnionType
from typing import Any, get_args

import msgspec
from msgspec.structs import FieldInfo

from keyservice.errors import InvalidRequest, UnsupportedSetting, Violation

# LiteMaaS's create takes these too. LiteLLM 1.106.0 enforces neither without a licence (a key with guardrails in its
# metadata is made, and then refused every call), so they are refused and never dropped.
_UNSUPPORTED = frozenset({"guardrails", "modelMaxBudget"})

# How msgspec 0.22 words what is wrong -> the code that LiteMaaS (AJV) gives for the same mistake.
_CODES = (
    (re.compile(r"array` of length >="), "minItems"),
    (re.compile(r"array` of length <="), "maxItems"),
    (re.compile(r"of length >="), "minLength"),
    (re.compile(r"of length <="), "maxLength"),
    (re.compile(r"matching regex"), "pattern"),
    (re.compile(r"` >="), "minimum"),
    (re.compile(r"` <="), "maximum"),
    (re.compile(r"^Invalid |timezone"), "format"),
)
_MAX_DEPTH = 32
_AT = re.compile(r" - at `\$(?P<path>.*)`$")


def decode_object[T: msgspec.Struct](body: bytes, shape: type[T]) -> T:
    """The body as `shape`; null means not set, and where a field left out stays as it is, null clears it.

    Raises InvalidRequest with one violation per wrong, missing or unknown field, also of an object within, and
    UnsupportedSetting for a field that is known but cannot be enforced.
    """
    fields = _fields_of(shape).keys()
    given = _decode_json_object(body)
    unsupported = sorted(name for name in _UNSUPPORTED - fields if given.get(name) not in (None, [], {}))
    violations: list[Violation] = []
    decoded = _decode_fields(
        {name: value for name, value in given.items() if name not in _UNSUPPORTED - fields},
        shape,
        path="",
        violations=violations,
    )
    if violations or decoded is None:
        raise invalid(violations)
    if unsupported:
        raise UnsupportedSetting(
            f"This service cannot enforce {', '.join(unsupported)}. Leave it out: nothing was done.",
            details={"fields": unsupported},
        )
    return decoded


def _decode_fields[T: msgspec.Struct](
    given: dict[str, Any], shape: type[T], *, path: str, violations: list[Violation]
) -> T | None:
    """None when a field is wrong, which is then among the violations."""
    fields = _fields_of(shape)
    # Where a field that is left out stays as it is, null is a value like any other.
    clears = any(field.default is msgspec.UNSET for field in fields.values())
    values: dict[str, Any] = {}
    before = len(violations)
    for name, value in given.items():
        if value is None and not clears:
            continue
        at = path + _shown(name)
        if name not in fields:
            violations.append(
                Violation(field=at, message="is not a field of this request", code="additionalProperties")
            )
            continue
        part = _struct(fields[name].type)
        if part is not None and isinstance(value, dict):
            within = msgspec.convert(value, dict[str, Any])
            values[fields[name].name] = _decode_fields(within, part, path=f"{at}.", violations=violations)
            continue
        try:
            values[fields[name].name] = msgspec.convert(value, fields[name].type)
        except msgspec.ValidationError as error:
            violations.append(_violation(at, str(error)))
            continue
        violations.extend(_text_violations(at, value))
    violations.extend(
        Violation(field=path + name, message="is required", code="required")
        for name, field in fields.items()
        if field.required and given.get(name) is None
    )
    return shape(**values) if len(violations) == before else None


@cache
def _fields_of(shape: type[msgspec.Struct]) -> Mapping[str, FieldInfo]:
    """By their names in JSON. Kept: finding them evaluates every annotation."""
    return {field.encode_name: field for field in msgspec.structs.fields(shape)}


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    """Also of an optional one."""
    kinds: tuple[Any, ...] = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((part for part in kinds if isinstance(part, type) and issubclass(part, msgspec.Struct)), None)


def invalid(violations: Iterable[Violation]) -> InvalidRequest:
    return InvalidRequest(
        "Request validation failed",
        violations=list(violations),
        details={"suggestion": "Please check your input and try again"},
    )


def _decode_json_object(body: bytes) -> dict[str, Any]:
    try:
        decoded: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid([Violation(field="body", message="is not valid JSON", code="json")]) from error
    if not isinstance(decoded, dict):
        raise invalid([Violation(field="body", message="must be a JSON object", code="type")])
    return msgspec.convert(decoded, dict[str, Any])


def _violation(field: str, text: str) -> Violation:
    at = _AT.search(text)
    message = _AT.sub("", text)
    path = at["path"].replace("[...]", "[]") if at else ""
    code = next((code for pattern, code in _CODES if pattern.search(message)), "type")
    if code == "pattern":
        message = "must be daily, weekly, monthly, yearly, 1mo or a number with s, m, h, d or w, such as 30d"
    return Violation(field=field + path, message=message, code=code)


def _text_violations(field: str, value: object) -> list[Violation]:
    try:
        contains_nul = _contains_nul(value, depth=0)
    except RecursionError:
        return [Violation(field=field, message=f"must not be nested deeper than {_MAX_DEPTH}", code="maxDepth")]
    if contains_nul:
        return [Violation(field=field, message="must not contain the character U+0000", code="pattern")]
    return []


def _contains_nul(value: Any, *, depth: int) -> bool:
    """PostgreSQL can store U+0000 neither in text nor in jsonb."""
    if depth > _MAX_DEPTH:
        raise RecursionError
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_contains_nul(part, depth=depth + 1) for item in value.items() for part in item)  # pyright: ignore[reportUnknownVariableType]
        case list():
            return any(_contains_nul(part, depth=depth + 1) for part in value)  # pyright: ignore[reportUnknownVariableType]
        case _:
            return False


def _shown(name: str) -> str:
    """A field name of the caller's, shortened: it may be anything."""
    return name if len(name) <= 64 else name[:64] + "…"
