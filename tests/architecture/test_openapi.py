"""openapi.yaml says what the code does: what it repeats of the code is compared here, the rest by tests/description."""

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins
from openapi_schema_validator import OAS31Validator, oas31_format_checker

from keyservice.errors import InvalidRequest
from local.openapi import DescriptionError, asked_for, description
from local.openapi_operations import OPERATIONS, QUERY
from tests.architecture.translation import ROOT


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return description()


def with_template(tmp_path: Path, *, old: str, new: str) -> Path:
    changed = tmp_path / "template.yaml"
    text = (ROOT / "template.yaml").read_text()
    assert old in text
    changed.write_text(text.replace(old, new))
    return changed


def test_a_route_without_an_entry_is_an_error(tmp_path: Path) -> None:
    template = with_template(tmp_path, old="Handler: get_api_key.handler", new="Handler: new_route.handler")

    with pytest.raises(DescriptionError, match="no entry for new_route"):
        description(template)


def test_an_entry_without_a_route_is_an_error(tmp_path: Path) -> None:
    template = with_template(tmp_path, old="Type: HttpApi", new="Type: Schedule")

    with pytest.raises(DescriptionError, match=r"no route for .*get_api_key"):
        description(template)


def test_only_health_and_the_description_itself_ask_for_no_token(document: dict[str, Any]) -> None:
    operations = [operation for path in document["paths"].values() for operation in path.values()]

    assert {operation["operationId"] for operation in operations if operation.get("security") == []} == {
        "check_health",
        "serve_openapi",
    }
    assert document["security"] == [{"token": []}]


def with_query() -> list[str]:
    return [name for name, operation in OPERATIONS.items() if operation.query is not None]


def refused(name: str, parameter: str, value: str) -> bool:
    parse = OPERATIONS[name].query
    assert parse is not None
    try:
        parse({parameter: value})
    except InvalidRequest as refusal:
        return [violation.field for violation in refusal.details["validation"]] == [parameter]
    return False


@pytest.mark.parametrize("name", with_query())
def test_the_bounds_of_a_query_are_those_of_its_parser(name: str) -> None:
    for parameter in asked_for(OPERATIONS[name]):
        schema = QUERY[parameter]
        if "maximum" in schema:
            inside = [str(schema["minimum"]), str(schema["maximum"])]
            outside = [str(schema["minimum"] - 1), str(schema["maximum"] + 1)]
        elif "maxLength" in schema:
            inside, outside = ["x" * schema["maxLength"]], ["x" * (schema["maxLength"] + 1)]
        elif "enum" in schema:
            inside, outside = schema["enum"], ["other"]
        elif schema.get("type") == "boolean":
            inside, outside = ["true", "false"], ["1"]
        elif schema.get("format") == "uuid":
            inside, outside = ["0b5e7c9a-1d2f-4a6b-8c3d-9e0f1a2b3c4d"], ["0b5e7c9a"]
        elif schema.get("format") == "date-time":
            inside, outside = ["2026-11-22T13:00:00Z"], ["2026-11-22"]
        else:
            continue

        assert [value for value in inside if refused(name, parameter, value)] == []
        assert [value for value in outside if not refused(name, parameter, value)] == []


@pytest.mark.parametrize("name", with_query())
def test_the_defaults_of_a_query_are_those_of_its_parser(name: str) -> None:
    parse = OPERATIONS[name].query
    assert parse is not None
    query = parse({})
    values = {"permanent": query} if isinstance(query, bool) else to_builtins(query)
    described = {
        parameter: QUERY[parameter]["default"]
        for parameter in asked_for(OPERATIONS[name])
        if "default" in QUERY[parameter]
    }

    assert described == {parameter: values[parameter] for parameter in described}
    assert described != {}


def test_every_example_is_one(document: dict[str, Any]) -> None:
    media_types = [
        media_type
        for path in document["paths"].values()
        for operation in path.values()
        for part in [operation.get("requestBody", {}), *operation["responses"].values()]
        for media_type in part.get("content", {}).values()
    ]

    for media_type in media_types:
        schema = {**media_type["schema"], "components": document["components"]}
        validator = OAS31Validator(schema, format_checker=oas31_format_checker)
        shapes = media_type.get("examples", {"": {"value": media_type.get("example")}})
        for example in shapes.values():
            assert [error.message for error in validator.iter_errors(example["value"])] == []
    assert len(media_types) > len(OPERATIONS)


def test_every_code_of_an_error_is_explained(document: dict[str, Any]) -> None:
    responses = document["components"]["responses"]
    described = " ".join(response["description"] for response in responses.values())

    assert set(re.findall(r"`([A-Z_]+)`", described)) == {code for name in responses for code in name.split("-")[1:]}
    assert [name for name in responses if not responses[name]["description"]] == []
