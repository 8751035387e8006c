"""Values on their way to PostgreSQL and back: out as text without a type, which the statement itself gives them.

psycopg would name a type that depends on the value (an integer's by its size, none for null), and a prepared statement
is found by the types of its parameters: one statement would be prepared once for every combination.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, LiteralString, NamedTuple, override
from uuid import UUID

import msgspec
import psycopg
from psycopg.adapt import Dumper
from psycopg.types.datetime import DatetimeBinaryDumper
from psycopg.types.json import Jsonb, set_json_loads

_PLACEHOLDER = re.compile(r"%(?:\((\w+)\)s|%)")


class Positional(NamedTuple):
    """A statement with $1, $2, ... and the names of its parameters in that order."""

    sql: bytes
    names: Sequence[str]


@cache
def positional(sql: LiteralString) -> Positional:
    """Of a statement with %(name)s and %%. Kept, as psycopg keeps nothing of a statement of more than 4096 characters:
    it would take a create's apart again for every request."""
    names: list[str] = []

    def numbered(found: re.Match[str]) -> str:
        name: str | None = found[1]
        if name is None:
            return "%"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    return Positional(_PLACEHOLDER.sub(numbered, sql).encode(), names)


# The `oid` of a Dumper that does not say otherwise is that of no type.
class _Text(Dumper):
    @override
    def dump(self, obj: object) -> bytes:
        return str(obj).encode()


class _Boolean(Dumper):
    @override
    def dump(self, obj: bool) -> bytes:
        return b"true" if obj else b"false"


class _Moment(DatetimeBinaryDumper):
    """In PostgreSQL's own form: as text it takes no offset of 16 hours or more, which a caller may send."""

    oid = 0


class _Json(Dumper):
    @override
    def dump(self, obj: Jsonb) -> bytes:
        return msgspec.json.encode(obj.obj)


def _from_json(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.ValidationError:
        # A number that jsonb can hold and no float: others write there, too.
        return json.loads(text)


def leave_types_to_statements(connection: psycopg.Connection[Any]) -> None:
    """For all that its statements are given; psycopg leaves those of str, and of lists of it, to them already."""
    for kind in (int, float, UUID):
        connection.adapters.register_dumper(kind, _Text)
    connection.adapters.register_dumper(datetime, _Moment)
    connection.adapters.register_dumper(bool, _Boolean)
    connection.adapters.register_dumper(Jsonb, _Json)
    set_json_loads(_from_json, connection)
