"""Answers other than 200, in the three shapes LiteLLM has for them.

Status, `type`, `param` and `code` are LiteLLM's; the sentences are our own, because no caller may depend on them.
"""

from typing import Any, ClassVar

type Row = dict[str, Any]


class Refused(Exception):
    """Raised where an answer other than 200 is decided."""

    def __init__(self, status: int, body: Row, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers


def refused(status: int, message: str, kind: str = "internal_server_error", param: str | None = None) -> Refused:
    """The shape of most refusals: `code` is a string, and `kind` says little, as at LiteLLM."""
    return Refused(status, {"error": {"message": message, "type": kind, "param": param, "code": str(status)}})


def refused_as_repr(status: int, reason: str, **shape: str) -> Refused:
    """For many of its refusals LiteLLM puts the repr of a Python dict into `message`."""
    return refused(status, repr({"error": reason}), **shape)


def refused_with_detail(status: int, detail: Any) -> Refused:
    """FastAPI's own shape: validation, unknown routes, reset_spend, routes a key may not call."""
    return Refused(status, {"detail": detail})


def refused_as_invalid(kind: str, location: list[str | int], message: str) -> Refused:
    return refused_with_detail(422, [{"type": kind, "loc": location, "msg": message}])


def missing_key() -> Refused:
    return refused(404, "there is no such key", "not_found_error", "key")


def not_storable() -> Refused:
    """What LiteLLM answers when its database refuses a value."""
    return refused_as_repr(500, "Internal Server Error.")


class Unhandled(Exception):
    """Where LiteLLM itself fails: the answer has a shape of its own, and the connection ends with it."""

    answer: ClassVar[Row] = {"error": {"message": "Internal server error", "type": "internal_server_error"}}
