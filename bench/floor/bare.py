"""A function that does nothing: what Python and Lambda's runtime client take of every start."""

from typing import Any


def handler(_event: dict[str, Any], _context: object) -> dict[str, Any]:
    return {"statusCode": 200, "body": ""}
