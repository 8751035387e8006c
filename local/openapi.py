"""`python -m local.openapi`: writes the API's description, openapi.yaml and what functions/serve_openapi.py serves.

With `--check` it compares them instead. Made of template.yaml, keyservice's shapes and errors, and the table in
local/openapi_operations.py; each route has to have an entry there.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml
from msgspec import Struct
from openapi_spec_validator import validate

from keyservice import errors
from keyservice.errors import (
    ErrorDescription,
    ErrorEnvelope,
    Forbidden,
    IdentityConflict,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    ServiceError,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    UnsupportedSetting,
    Violation,
)
from local.openapi_operations import (
    ALWAYS_TAKEN,
    ANSWER_HEADERS,
    OPERATIONS,
    QUERY,
    REQUEST_HEADERS,
    Answer,
    Operation,
)
from local.template import CHECKOUT, Application, Route, Template

WRITTEN = CHECKOUT / "openapi.yaml"
SERVED = CHECKOUT / "functions" / "openapi.json"

type Node = dict[str, Any]

_JSON = "application/json"
_HEADER = "# Made by local/openapi.py; change what it is made of, and run `make openapi`.\n"
_INFO = {
    "title": "Key service",
    "version": "1.0.0",
    "description": "Creates, lists, changes and deletes the LiteLLM API keys of the users of LiteMaaS. Money is in US "
    "dollars, moments are ISO 8601 in UTC. Errors come in one envelope, except those of API Gateway itself, which are "
    "`{message}`.",
    "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
}
_SECURITY = "token"
# What API Gateway may answer before or instead of a function, whatever the route: `{message}`.
_OF_THE_GATEWAY = (413, 429, 500, 503)
_OF_EVERY_TOKEN = (Unauthorized, Forbidden, IdentityConflict, Unavailable)
_OF_EVERY_BODY = (InvalidRequest, PayloadTooLarge, UnsupportedMediaType, UnsupportedSetting)
_ENVELOPE_EXAMPLE = ErrorEnvelope(
    error=ErrorDescription(
        code="VALIDATION_ERROR",
        message="Request validation failed",
        status_code=400,
        details={"validation": [Violation("modelIds", "Expected `array` of length >= 1", "minItems")]},
        timestamp="2026-11-22T13:00:00.000Z",
        request_id="JKJaXmPLvHcESHA=",
    )
)


class DescriptionError(Exception):
    """Routes and table do not agree; the message says where."""


def description(template: Path = CHECKOUT / "template.yaml") -> Node:
    """The OpenAPI document. Raises DescriptionError, or what the validator raises for a document that is none."""
    routes = _routes(Template(template).resolve_offline())
    document: Node = {
        "openapi": "3.1.0",
        "info": _INFO,
        "servers": [{"url": "/"}],
        "security": [{_SECURITY: []}],
        "paths": _paths(routes),
        "components": {
            "securitySchemes": {_SECURITY: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "parameters": {name: _request_header(name) for name in REQUEST_HEADERS},
            "headers": {name: dict(header) for name, header in ANSWER_HEADERS.items()},
            "responses": {
                _error_name(status, codes): _error_response(status, codes)
                for status, codes in sorted(_refusals(routes))
            },
            "schemas": _schemas(),
        },
    }
    validate(document)
    return document


def written(document: Node) -> dict[Path, str]:
    """The text of each file."""
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return {WRITTEN: _HEADER + text, SERVED: msgspec.json.encode(document).decode() + "\n"}


def _routes(application: Application) -> Mapping[str, Route]:
    """By the name of the function's file, in the order of the table."""
    routes = {
        application.functions[route.function].handler.removesuffix(".handler"): route for route in application.routes
    }
    if missing := routes.keys() - OPERATIONS.keys():
        raise DescriptionError(f"local/openapi_operations.py has no entry for {', '.join(sorted(missing))}")
    if superfluous := OPERATIONS.keys() - routes.keys():
        raise DescriptionError(f"template.yaml has no route for {', '.join(sorted(superfluous))}")
    return {name: routes[name] for name in OPERATIONS}


def _paths(routes: Mapping[str, Route]) -> Node:
    paths: Node = {}
    for name, route in routes.items():
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(name, route)
    return paths


def _operation(name: str, route: Route) -> Node:
    entry = OPERATIONS[name]
    described: Node = {"operationId": name, "tags": [entry.tag], "summary": entry.summary}
    if entry.description:
        described["description"] = entry.description
    if route.authorizer is None:
        described["security"] = []
    described["parameters"] = [
        *_path_parameters(route),
        *({"name": query, "in": "query", **_parameter(QUERY[query])} for query in asked_for(entry)),
        *({"$ref": f"#/components/parameters/{header}"} for header in (*entry.headers, *ALWAYS_TAKEN)),
    ]
    if entry.body is not None:
        content = {"schema": _reference(type(entry.body)), "example": _example(entry.body)}
        described["requestBody"] = {"required": not entry.is_body_optional, "content": {_JSON: content}}
    described["responses"] = _responses(entry, route)
    return described


def asked_for(entry: Operation) -> Sequence[str]:
    """The names of the query that the operation's parser looks for."""
    asked = _Asked()
    if entry.query is not None:
        entry.query(asked)
    return list(asked.names)


class _Asked(Mapping[str, str]):
    """A query string without parameters that remembers which ones were asked for."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> str:
        self.names[name] = None
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _path_parameters(route: Route) -> Iterator[Node]:
    for name in re.findall(r"\{(\w+)\}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}


def _request_header(name: str) -> Node:
    return {"name": name, "in": "header", **_parameter(REQUEST_HEADERS[name])}


def _parameter(schema: Mapping[str, Any]) -> Node:
    """A parameter's description belongs beside its schema; a list is one value, joined by commas."""
    parameter: Node = {"schema": {name: value for name, value in schema.items() if name != "description"}}
    if "description" in schema:
        parameter["description"] = schema["description"]
    if schema.get("type") == "array":
        parameter |= {"style": "form", "explode": False}
    return parameter


def _responses(entry: Operation, route: Route) -> Node:
    responses = {status: _answer(answer) for status, answer in entry.answers.items()}
    for status, codes in _refused_with(entry, route):
        if status in responses:
            content = responses[status]["content"][_JSON]
            content["schema"] = {"anyOf": [content["schema"], *_error_schemas(status, codes)]}
        else:
            responses[status] = {"$ref": f"#/components/responses/{_error_name(status, codes)}"}
    return {str(status): responses[status] for status in sorted(responses)}


def _answer(answer: Answer) -> Node:
    described: Node = {
        "description": answer.description,
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in ("X-Request-Id", "X-Correlation-Id", *answer.headers)
        },
    }
    if answer.body is not None:
        described["content"] = {_JSON: _answered(answer.body)}
    if answer.lines is not None:
        described["content"]["application/x-ndjson"] = {"schema": {"type": "string"}, "example": answer.lines}
    if answer.links:
        described["links"] = {
            name: {"operationId": name, "parameters": {"id": "$response.body#/id"}} for name in answer.links
        }
    return described


def _answered(body: Struct | tuple[Struct, ...] | Mapping[str, Any]) -> Node:
    match body:
        case Struct():
            return {"schema": _reference(type(body)), "example": _example(body)}
        case tuple():
            return {
                "schema": _any_of([_reference(type(shape)) for shape in body]),
                "examples": {type(shape).__name__: {"value": _example(shape)} for shape in body},
            }
        case _:
            return {"schema": {"type": "object"}, "example": _example(body)}


def _shapes(answer: Answer) -> Iterator[type[Struct]]:
    for body in answer.body if isinstance(answer.body, tuple) else (answer.body,):
        if isinstance(body, Struct):
            yield type(body)


def _refused_with(entry: Operation, route: Route) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Every status an error may have, with the codes of our own."""
    kinds: list[type[ServiceError]] = list(entry.errors)
    if route.authorizer is not None:
        kinds += _OF_EVERY_TOKEN
    if entry.body is not None:
        kinds += _OF_EVERY_BODY
    if entry.query is not None or set(entry.headers) & {"Idempotency-Key"}:
        kinds.append(InvalidRequest)
    if "{" in route.path:
        kinds.append(NotFound)
    codes: dict[int, set[str]] = {status: set() for status in _OF_THE_GATEWAY}
    codes[500].add(ServiceError.code)
    for kind in kinds:
        codes.setdefault(kind.status, set()).add(kind.code)
    for status, several in codes.items():
        yield status, tuple(sorted(several))


def _refusals(routes: Mapping[str, Route]) -> set[tuple[int, tuple[str, ...]]]:
    return {
        refusal
        for name, route in routes.items()
        for refusal in _refused_with(OPERATIONS[name], route)
        if refusal[0] not in OPERATIONS[name].answers
    }


def _error_name(status: int, codes: Sequence[str]) -> str:
    return "-".join([str(status), *codes])


def _error_response(status: int, codes: Sequence[str]) -> Node:
    sentences = [f"`{code}`: {meaning}." if (meaning := _MEANINGS.get(code)) else f"`{code}`." for code in codes]
    response: Node = {
        "description": " ".join(sentences) or f"{HTTPStatus(status).phrase}, said by API Gateway.",
        "content": {_JSON: {"schema": _any_of(_error_schemas(status, codes))}},
    }
    if any(kind.retry_after_seconds is not None for kind in _all_errors(ServiceError) if kind.code in codes):
        response["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return response


def _error_schemas(status: int, codes: Sequence[str]) -> list[Node]:
    schemas: list[Node] = []
    if codes:
        narrowed: Node = {"code": {"enum": list(codes)}, "statusCode": {"const": status}}
        if InvalidRequest.code in codes:
            violations = {"type": "array", "items": _reference(Violation)}
            narrowed["details"] = {"properties": {"validation": violations}}
        envelope = {"properties": {"error": {"properties": narrowed}}}
        schemas.append({"allOf": [_reference(ErrorEnvelope), envelope]})
    # A token is refused by API Gateway, or by the function that finds it names nobody.
    if status in {*_OF_THE_GATEWAY, 401, 403}:
        schemas.append({"$ref": "#/components/schemas/GatewayMessage"})
    return schemas


def _any_of(schemas: list[Node]) -> Node:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _all_errors(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _all_errors(below)


def _meanings() -> Mapping[str, str]:
    """What each code means, from the tree at the top of keyservice.errors."""
    lines = re.findall(r"\d{3} ([A-Z_]+) +(\S.*)", errors.__doc__ or "")
    # The first line of a code is the most general.
    return {code: meaning.replace("`", "") for code, meaning in reversed(lines)}


_MEANINGS = _meanings()


def _schemas() -> Node:
    bodies = [type(entry.body) for entry in OPERATIONS.values() if entry.body is not None]
    answers = [shape for entry in OPERATIONS.values() for answer in entry.answers.values() for shape in _shapes(answer)]
    _, schemas = msgspec.json.schema_components(
        [*bodies, *answers, ErrorEnvelope, Violation], ref_template="#/components/schemas/{name}"
    )
    _, closed = msgspec.json.schema_components(bodies, ref_template="{name}")
    for name in closed:
        # decode_object refuses unknown fields.
        schemas[name]["additionalProperties"] = False
    schemas["ErrorEnvelope"]["examples"] = [_example(_ENVELOPE_EXAMPLE)]
    schemas["GatewayMessage"] = {
        "description": "API Gateway's own error.",
        "type": "object",
        "properties": {"message": {"type": "string"}},
        "required": ["message"],
    }
    return {name: _tidied(schema) for name, schema in sorted(schemas.items())}


def _tidied(schema: Any) -> Any:
    """Without what only repeats, and with patterns and names as they are outside Python."""
    if isinstance(schema, list):
        return [_tidied(part) for part in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    tidied: Node = {}
    for name, value in cast("Node", schema).items():
        match name, value:
            case "anyOf", [{"type": str(kind), **rest}, {"type": "null"}]:
                tidied |= {"type": [kind, "null"], **_tidied(rest)}
            case ("title", str()) | ("default", None) | ("required", []):
                pass
            case "pattern", str():
                tidied[name] = value.replace(r"\Z", "$")
            case "description", str():
                tidied[name] = re.sub(r"`(\w+)`", lambda match: f"`{_camel(match[1])}`", " ".join(value.split()))
            case _:
                tidied[name] = _tidied(value)
    return tidied


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.title, others))


def _reference(kind: type) -> Node:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _example(value: object) -> Any:
    """As it goes over the wire; in a body null is the same as not set, so it is left out."""
    return _without_null(msgspec.to_builtins(value))


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_null(part) for name, part in cast("Node", value).items() if part is not None}
    return value


class _Dumper(yaml.SafeDumper):
    """Writes out what stands at two places, instead of naming it."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the name and signature are PyYAML's
        return True


def main() -> int:
    files = written(description())
    if sys.argv[1:] != ["--check"]:
        for path, text in files.items():
            path.write_text(text)
        return 0
    stale = [path.name for path, text in files.items() if not path.exists() or path.read_text() != text]
    if stale:
        print(f"{' and '.join(stale)} do not say what the code says; run: make openapi", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
