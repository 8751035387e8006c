"""What a function gets for a request, and what the caller gets for the function's answer."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.gateway import Gateway
from local.loopback import listen, port_of
from local.serving import ServerThread
from local.stack import LocalStack
from local.template import Template

SAMPLE_TEMPLATE = Path(__file__).parent / "sample" / "template.yaml"


def event_for(api: httpx.Client, method: str, path: str, **request: Any) -> dict[str, Any]:
    answer = api.request(method, path, **request)
    assert answer.status_code == 200, answer.text
    event: dict[str, Any] = answer.json()["event"]
    return event


def returned(api: httpx.Client, value: Any) -> httpx.Response:
    """What the caller gets when the function returns this value."""
    return api.post("/obey", json={"do": "return", "value": value})


def test_event_has_exactly_what_the_request_has(api: httpx.Client) -> None:
    event = event_for(api, "GET", "/open/x", headers={"host": "api.example.com", "accept-encoding": "identity"})

    context = event["requestContext"]
    assert isinstance(context.pop("timeEpoch"), int)
    assert context.pop("requestId")
    assert context.pop("time").endswith("+0000")
    assert event["headers"].pop("x-amzn-trace-id").startswith("Root=1-")
    assert event == {
        "version": "2.0",
        "routeKey": "ANY /open/{name}",
        "rawPath": "/open/x",
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "accept-encoding": "identity",
            "host": "api.example.com",
            "user-agent": "probe/1",
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "local",
            "domainName": "api.example.com",
            "domainPrefix": "api",
            "http": {
                "method": "GET",
                "path": "/open/x",
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "probe/1",
            },
            "routeKey": "ANY /open/{name}",
            "stage": "$default",
        },
        "pathParameters": {"name": "x"},
        "isBase64Encoded": False,
    }


def test_repeated_query_parameters_and_headers_are_joined_by_commas(api: httpx.Client) -> None:
    headers = [("X-Colour", "red"), ("x-colour", "blue"), ("cookie", "a=1; b=2"), ("cookie", "c=3")]

    event = event_for(api, "GET", "/open/x?id=1&id=2&empty=&plus=a+b&enc=%C3%A9", headers=headers)

    assert event["rawQueryString"] == "id=1&id=2&empty=&plus=a+b&enc=%C3%A9"
    assert event["queryStringParameters"] == {"id": "1,2", "empty": "", "plus": "a b", "enc": "é"}
    assert event["headers"]["x-colour"] == "red,blue"
    assert "cookie" not in event["headers"]


def test_cookies_come_as_a_list(api: httpx.Client) -> None:
    event = event_for(api, "GET", "/open/x", headers={"cookie": "a=1; b=2"})

    assert event["cookies"] == ["a=1", "b=2"]


def test_path_is_decoded_before_the_function_sees_it(api: httpx.Client) -> None:
    event = event_for(api, "GET", "/open/a%20b%C3%A9")

    assert event["rawPath"] == "/open/a bé"
    assert event["pathParameters"] == {"name": "a bé"}


@pytest.mark.parametrize(
    ("content_type", "is_text"),
    [
        pytest.param("application/json", True, id="JSON"),
        pytest.param("application/json; charset=utf-8", True, id="JSON with a charset"),
        pytest.param("text/csv", True, id="any text"),
        pytest.param("application/x-www-form-urlencoded", False, id="a form"),
        pytest.param("application/problem+json", False, id="a JSON dialect"),
        pytest.param("application/octet-stream", False, id="bytes"),
        pytest.param(None, False, id="no type"),
    ],
)
def test_body_is_text_only_for_the_types_aws_takes_for_text(
    api: httpx.Client, *, content_type: str | None, is_text: bool
) -> None:
    headers = {"content-type": content_type} if content_type else {}

    event = event_for(api, "POST", "/open/x", content=b'{"a":1}', headers=headers)

    assert event["isBase64Encoded"] is not is_text
    assert event["body"] == ('{"a":1}' if is_text else base64.b64encode(b'{"a":1}').decode())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("GET", "/nowhere", id="no such path"),
        pytest.param("DELETE", "/closed", id="path with another method"),
        pytest.param("GET", "/closed/", id="slash too many"),
        pytest.param("GET", "/open/a/b", id="a variable is one segment"),
        pytest.param("GET", "/open/", id="a variable is not empty"),
    ],
)
def test_unknown_route_is_404(api: httpx.Client, method: str, path: str) -> None:
    answer = api.request(method, path)

    assert answer.status_code == 404
    assert answer.text == '{"message":"Not Found"}'
    assert answer.headers["apigw-requestid"]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        pytest.param("/open/special", "GET /open/special", id="a fixed segment before a variable"),
        pytest.param("/open/other", "ANY /open/{name}", id="the variable for all else"),
        pytest.param("/rest/a/b", "GET /rest/{path+}", id="a greedy variable"),
    ],
)
def test_most_specific_route_wins(api: httpx.Client, path: str, route: str) -> None:
    assert event_for(api, "GET", path)["routeKey"] == route


def test_body_over_10_mb_is_413(api: httpx.Client) -> None:
    answer = api.post("/open/x", content=b"x" * (10 * 1024 * 1024 + 1))

    assert answer.status_code == 413
    assert answer.text == '{"message":"Request Entity Too Large"}'


def test_body_that_makes_too_large_an_event_is_413(api: httpx.Client) -> None:
    answer = api.post("/open/x", content=b"x" * (5 * 1024 * 1024))

    assert answer.status_code == 413


def test_answer_is_passed_on_with_headers_and_cookies(api: httpx.Client) -> None:
    answer = returned(
        api, {"statusCode": 201, "headers": {"X-Count": 3, "Location": "/x"}, "cookies": ["a=1", "b=2"], "body": "made"}
    )

    assert (answer.status_code, answer.text) == (201, "made")
    assert answer.headers["x-count"] == "3"
    assert answer.headers["location"] == "/x"
    assert answer.headers["content-type"] == "text/plain;charset=UTF-8"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]


def test_base64_answer_is_decoded(api: httpx.Client) -> None:
    body = base64.b64encode(b"\x00\xff").decode()

    answer = returned(api, {"statusCode": 200, "body": body, "isBase64Encoded": True})

    assert answer.content == b"\x00\xff"


@pytest.mark.parametrize(
    ("value", "body"),
    [
        pytest.param({"a": 1}, '{"a":1}', id="an object"),
        pytest.param("hello", "hello", id="a string"),
        pytest.param([1, 2], "[1,2]", id="a list"),
        pytest.param(None, "null", id="nothing"),
    ],
)
def test_value_without_a_status_is_the_body(api: httpx.Client, value: Any, body: str) -> None:
    answer = returned(api, value)

    assert (answer.status_code, answer.text) == (200, body)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"statusCode": "200"}, id="status as text"),
        pytest.param({"statusCode": True}, id="status as boolean"),
        pytest.param({"statusCode": 99}, id="status below 100"),
        pytest.param({"statusCode": 200, "body": {"a": 1}}, id="body as object"),
        pytest.param({"statusCode": 200, "headers": ["a"]}, id="headers as list"),
        pytest.param({"statusCode": 200, "headers": {"a": {"b": 1}}}, id="header as object"),
        pytest.param({"statusCode": 200, "cookies": "a=1"}, id="cookies as text"),
        pytest.param({"statusCode": 200, "body": "!", "isBase64Encoded": True}, id="body that is no base64"),
    ],
)
def test_answer_of_bad_shape_is_500(api: httpx.Client, value: Any) -> None:
    answer = returned(api, value)

    assert answer.status_code == 500
    assert answer.text == '{"message":"Internal Server Error"}'


def test_function_that_takes_too_long_for_the_gateway_is_503() -> None:
    async def never(_function: str, _event: bytes) -> bytes:
        await asyncio.sleep(3600)
        return b""

    application = Template(SAMPLE_TEMPLATE).resolve(parameters={"JwtIssuer": "https://issuer", "JwtAudience": "us"})
    gateway = Gateway(application, invoke=never, integration_seconds=0.05)
    thread = ServerThread()
    listener = listen()
    thread.serve(gateway, [listener])

    answer = httpx.get(f"http://127.0.0.1:{port_of(listener)}/open/x", trust_env=False, timeout=30)

    thread.close()
    assert answer.status_code == 503
    assert answer.text == '{"message":"Service Unavailable"}'


def test_preflight_is_answered_without_the_function(api: httpx.Client) -> None:
    headers = {"origin": "https://console.example.com", "access-control-request-method": "GET"}

    answer = api.options("/closed", headers=headers)

    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://console.example.com"
    assert answer.headers["access-control-allow-methods"] == "GET,POST"
    assert answer.headers["access-control-allow-headers"] == "authorization"
    assert answer.headers["access-control-max-age"] == "600"


def test_answer_to_an_allowed_origin_says_so(api: httpx.Client) -> None:
    answer = api.get("/open/x", headers={"origin": "https://console.example.com"})

    assert answer.headers["access-control-allow-origin"] == "https://console.example.com"
    assert answer.headers["access-control-expose-headers"] == "location"


def test_other_origins_hear_nothing(api: httpx.Client) -> None:
    answer = api.get("/open/x", headers={"origin": "https://evil.example.com"})

    assert not [name for name in answer.headers if name.startswith("access-control-")]


def authorization(stack: LocalStack, **wanted: Any) -> dict[str, str]:
    return {"authorization": f"Bearer {stack.token(**wanted)}"}


def test_claims_reach_the_function_as_text(stack: LocalStack, api: httpx.Client) -> None:
    headers = authorization(
        stack, roles=["user", "admin"], exp=4102444800, iat=1, verified=True, address={"b": 2, "a": None}
    )

    event = event_for(api, "GET", "/closed", headers=headers)

    assert event["requestContext"]["authorizer"] == {
        "jwt": {
            "claims": {
                "iss": stack.issuer_url,
                "aud": "keyservice-local",
                "sub": "alice",
                "preferred_username": "alice",
                "email": "alice@example.com",
                "roles": "[user admin]",
                "exp": "4102444800",
                "iat": "1",
                "verified": "true",
                "address": "map[a:<nil> b:2]",
            },
            "scopes": None,
        }
    }


def test_word_bearer_may_be_left_out(stack: LocalStack, api: httpx.Client) -> None:
    assert api.get("/closed", headers={"authorization": stack.token()}).status_code == 200


def test_open_route_shows_no_authorizer_even_with_a_token(stack: LocalStack, api: httpx.Client) -> None:
    event = event_for(api, "GET", "/open/x", headers=authorization(stack))

    assert "authorizer" not in event["requestContext"]


@pytest.mark.parametrize(
    "token",
    [
        pytest.param({"issuer": "https://other.example.com"}, id="foreign issuer"),
        pytest.param({"audience": "others"}, id="wrong audience"),
        pytest.param({"audience": None}, id="no audience"),
        pytest.param({"audience": None, "client_id": "others"}, id="wrong client id"),
        pytest.param({"audience": "others", "client_id": "keyservice-local"}, id="client id beside a wrong audience"),
        pytest.param({"ttl_seconds": -1}, id="expired"),
        pytest.param({"exp": None}, id="no expiry"),
        pytest.param({"exp": "soon"}, id="expiry that is no time"),
        pytest.param({"nbf": 4102444800}, id="not valid yet"),
        pytest.param({"iat": 4102444800}, id="issued in the future"),
        pytest.param({"forged": True}, id="bad signature"),
        pytest.param({"key_id": "local-2"}, id="another key id"),
    ],
)
def test_bad_token_is_401(stack: LocalStack, api: httpx.Client, token: dict[str, Any]) -> None:
    answer = api.get("/closed", headers=authorization(stack, **token))

    assert answer.status_code == 401
    assert answer.text == '{"message":"Unauthorized"}'
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


def unsigned(stack: LocalStack) -> str:
    """The token of a client that hopes nobody checks: alg none."""
    header = base64.urlsafe_b64encode(json.dumps({"alg": "none", "kid": "local-1"}).encode()).decode().rstrip("=")
    return f"{header}.{stack.token().split('.')[1]}."


def test_unsigned_token_is_401(stack: LocalStack, api: httpx.Client) -> None:
    assert api.get("/closed", headers={"authorization": f"Bearer {unsigned(stack)}"}).status_code == 401


@pytest.mark.parametrize(
    "header", [{}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": "Bearer x.y"}]
)
def test_no_or_no_real_token_is_401(api: httpx.Client, header: dict[str, str]) -> None:
    answer = api.get("/closed", headers=header)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "token",
    [
        pytest.param({"audience": ("others", "keyservice-local")}, id="one of several audiences"),
        pytest.param({"audience": None, "client_id": "keyservice-local"}, id="client id instead of an audience"),
    ],
)
def test_token_for_us_is_let_in(stack: LocalStack, api: httpx.Client, token: dict[str, Any]) -> None:
    assert api.get("/closed", headers=authorization(stack, **token)).status_code == 200


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        pytest.param({}, 403, id="no scope"),
        pytest.param({"scope": "keys.delete"}, 403, id="another scope"),
        pytest.param({"scope": "openid keys.read"}, 200, id="one of them"),
        pytest.param({"scp": ["keys.write"]}, 200, id="as a list"),
    ],
)
def test_route_with_scopes_wants_one_of_them(
    stack: LocalStack, api: httpx.Client, claims: dict[str, Any], status: int
) -> None:
    answer = api.get("/scoped", headers=authorization(stack, **claims))

    assert answer.status_code == status
    if status == 403:
        assert answer.text == '{"message":"Forbidden"}'
