"""What LiteMaaS answers and what this service answers to the same request: one case for each answer LiteMaaS is known to give.

LiteMaaS's side was recorded from a running one (0.4.0 with later changes). test_compatibility.py asks this service;
`python -m tests.e2e.compatibility` writes docs/litemaas-compatibility.md.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from local.template import CHECKOUT
from tests.e2e.routes import ADMIN
from tests.e2e.service import KEYS

DOCUMENT = CHECKOUT / "docs" / "litemaas-compatibility.md"

type Who = Literal[
    "a user",
    "an administrator",
    "admin-readonly",
    "readonly",
    "an inactive user",
    "an unknown user",
    "nobody",
    "garbage",
    "forged",
    "expired",
    "a browser",
    "a key of LiteMaaS's administrator",
    "a secret of a key",
]
# Which key `{id}` is.
type Key = Literal[
    "own", "another's", "missing", "malformed", "NUL", "revoked", "expired", "gone in LiteLLM", "deleted"
]
type Given = Literal["ten keys", "maximums", "maximums and defaults", "two keys, one expired"]
type Trouble = Literal[
    "LiteLLM unreachable",
    "LiteLLM answers 500",
    "LiteLLM answers 400",
    "LiteLLM answers 502 without JSON",
    "PostgreSQL restarted",
    "PostgreSQL down",
]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request to a route; `{subscription}` and such in values are filled in by the test."""

    who: Who = "a user"
    key: Key = "own"
    body: Any = None
    content: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    query: str = ""
    given: Given | None = None
    trouble: Trouble | None = None
    holds: Callable[[Any], bool] | None = None
    """Of the answer's body: what the case is about, when the status does not say it."""


@dataclass(frozen=True)
class Case:
    name: str
    theirs: str
    """LiteMaaS's status, and the code of its error."""
    ours: str
    why: str = ""
    """Why the answers differ, or what differs in them."""
    ask: Ask = Ask()


# Why.
AT_THE_DOOR = "API Gateway refuses the token before any code runs; its body is `{message}`"
NO_SUCH_ID = "no such key: 404, whatever the id looks like"
READ_AGAIN = "LiteMaaS fails on every key there is"
CALLERS_MISTAKE = "the caller's mistake: 400 that names the field"
TYPES = "nothing is coerced: a value of another type is refused and named"
NULL = "null means that it is not set"
OWN_CODE = "a code that says what it is"
RETRY = "not the caller's fault: 503 with Retry-After, and the change stays to be finished"
RETRY_LATER = "the database is not there: 503 with Retry-After"
NOT_SWALLOWED = "202 until LiteLLM has confirmed it; LiteMaaS says deleted while the key still works"
NOT_ENFORCED = "422 that names the field, before anything is made"
LEFT = "an expired key has left LiteLLM, or is about to; a new one helps"
MADE_UP = "LiteMaaS answers with a secret of its own making, which LiteLLM has never seen"
NEVER_WHY = "unless the stack allows it, no secret is shown twice"
STILL_READS = "the roles readonly and admin-readonly see, and change nothing"

CREATE = f"POST {KEYS}"
LIST = f"GET {KEYS}"
GET = f"GET {KEYS}/{{id}}"
DELETE = f"DELETE {KEYS}/{{id}}"
PATCH = f"PATCH {KEYS}/{{id}}"
RESET = f"POST {KEYS}/{{id}}/reset-spend"
STATS = f"GET {KEYS}/stats"
VALIDATE = f"POST {KEYS}/validate"
ALL = f"GET {KEYS}/admin/all"
ROTATE = f"POST {KEYS}/{{id}}/rotate"
REVEAL = f"POST {KEYS}/{{id}}/reveal"
CLEANUP = f"POST {KEYS}/admin/cleanup-expired"
BAD = "400 VALIDATION_ERROR"
BROKEN = "500 INTERNAL_ERROR"
DOOR = "401 of API Gateway"
NONE = "404 NOT_FOUND"
UNAUTHORIZED = "401 UNAUTHORIZED"
LATER = "503 SERVICE_UNAVAILABLE"
FORBIDDEN = "403 FORBIDDEN"
NEVER = "410 GONE"
UNSUPPORTED = "422 UNSUPPORTED_SETTING"


def asked(fields: Mapping[str, Any] | None = None, **ask: Any) -> Ask:
    """A create with these fields beside a model."""
    return Ask(body={"modelIds": ["gpt-4o"], **(fields or {})}, **ask)


CASES: Mapping[str, list[Case]] = {
    CREATE: [
        Case("a model", "201", "201", "", asked()),
        Case(
            "all limits",
            "201",
            "201",
            "",
            asked(
                {
                    "modelIds": ["gpt-4o", "gpt-4o-mini"],
                    "name": "full key",
                    "expiresAt": "2027-06-01T00:00:00Z",
                    "maxBudget": 25.5,
                    "budgetDuration": "monthly",
                    "tpmLimit": 1000,
                    "rpmLimit": 60,
                    "softBudget": 20,
                    "metadata": {"env": "prod"},
                }
            ),
        ),
        Case("`subscriptionId`", "201", "201", "", Ask(body={"subscriptionId": "{subscription}"})),
        Case(
            "`modelIds` and `subscriptionId`",
            "201",
            BAD,
            "LiteMaaS ignores `modelIds` without a word",
            asked({"subscriptionId": "{subscription}"}),
        ),
        Case("another's subscription", NONE, NONE, "", Ask(body={"subscriptionId": "{another's subscription}"})),
        Case("missing subscription", NONE, NONE, "", Ask(body={"subscriptionId": "{missing}"})),
        Case("malformed subscription", BROKEN, BAD, CALLERS_MISTAKE, Ask(body={"subscriptionId": "nope"})),
        Case("suspended subscription", BAD, BAD, "", Ask(body={"subscriptionId": "{suspended subscription}"})),
        Case("unknown model", BAD, BAD, "", Ask(body={"modelIds": ["no-such-model"]})),
        Case("model without a subscription", BAD, BAD, "", Ask(body={"modelIds": ["gpt-4o", "claude-sonnet"]})),
        Case("empty `modelIds`", BAD, BAD, "", Ask(body={"modelIds": []})),
        Case("neither model nor subscription", BAD, BAD, "", Ask(body={"name": "x"})),
        Case("empty object", BAD, BAD, "", Ask(body={})),
        Case("no body", BAD, BAD, "", Ask()),
        Case("no JSON", BAD, BAD, "", Ask(content="{", headers={"content-type": "application/json"})),
        Case(
            "a form",
            "415 INTERNAL_ERROR",
            "415 UNSUPPORTED_MEDIA_TYPE",
            OWN_CODE,
            Ask(content="modelIds=gpt-4o", headers={"content-type": "application/x-www-form-urlencoded"}),
        ),
        Case(
            "more than LiteMaaS's 1 MiB",
            "413 INTERNAL_ERROR",
            "413 PAYLOAD_TOO_LARGE",
            f"{OWN_CODE}; the limit here is 64 KiB",
            asked({"metadata": {"text": "x" * 1_100_000}}),
        ),
        Case("a JSON array", BAD, BAD, "", Ask(body=["gpt-4o"])),
        Case("`modelIds` as a string", "201", BAD, TYPES, Ask(body={"modelIds": "gpt-4o"})),
        Case("`modelIds` with a number", BAD, BAD, "", Ask(body={"modelIds": [5]})),
        Case("a model twice", BROKEN, BAD, CALLERS_MISTAKE, Ask(body={"modelIds": ["gpt-4o", "gpt-4o"]})),
        Case("a model with a comma", BAD, BAD, "", Ask(body={"modelIds": ["gpt-4o,gpt-4o-mini"]})),
        Case("a model with a brace", BROKEN, BAD, CALLERS_MISTAKE, Ask(body={"modelIds": ["gpt{4"]})),
        Case("empty `name`", BAD, BAD, "", asked({"name": ""})),
        Case("`name` of 256 characters", BAD, BAD, "", asked({"name": "n" * 256})),
        Case("`name` that another key has", "201", "201", "", asked({"name": "same"})),
        Case("negative `maxBudget`", BAD, BAD, "", asked({"maxBudget": -1})),
        Case('`maxBudget` "12"', "201", BAD, TYPES, asked({"maxBudget": "12"})),
        Case(
            "`maxBudget` null",
            "201",
            "201",
            f"{NULL}; LiteMaaS makes a key with a budget of 0",
            asked({"maxBudget": None}),
        ),
        Case("`maxBudget` 1e9", BROKEN, BAD, CALLERS_MISTAKE, asked({"maxBudget": 1e9})),
        Case("`tpmLimit` 3e9", BROKEN, BAD, CALLERS_MISTAKE, asked({"tpmLimit": 3_000_000_000})),
        Case("`rpmLimit` 1.5", BAD, BAD, "", asked({"rpmLimit": 1.5})),
        Case("`budgetDuration` fortnight", BAD, BAD, "", asked({"budgetDuration": "fortnight"})),
        Case("`expiresAt` that is no date", BAD, BAD, "", asked({"expiresAt": "tomorrow"})),
        Case("`expiresAt` null", BAD, "201", NULL, asked({"expiresAt": None})),
        Case(
            "`expiresAt` in the past",
            "201",
            BAD,
            "LiteLLM would be asked for a negative duration",
            asked({"expiresAt": "2020-01-01T00:00:00Z"}),
        ),
        Case("`maxParallelRequests`", "201", "201", "", asked({"maxParallelRequests": 7})),
        Case(
            "unknown field",
            BROKEN,
            BAD,
            f"{CALLERS_MISTAKE}; LiteMaaS drops it, or fails on a wrong `maxParallelRequests`",
            asked({"bogus": 1, "maxParallelRequests": "abc"}),
        ),
        *(
            Case(
                f"`teamId` {what}", theirs, BAD, "only a team whose money the caller may spend", asked({"teamId": team})
            )
            for what, theirs, team in (
                ("of an unknown team", BROKEN, "99999999-9999-4999-8999-999999999999"),
                ("that is no UUID", BROKEN, "team-x"),
                ("of a team of others", "201", "team-of-others"),
            )
        ),
        *(
            Case(f"`{field}`", "201", "201", "", asked({field: value}))
            for field, value in (
                ("tags", ["prod"]),
                ("permissions", {"allowEmbeddings": False}),
                ("modelRpmLimit", {"gpt-4o": 5}),
                ("modelTpmLimit", {"gpt-4o": 5}),
            )
        ),
        *(
            Case(f"`{field}`", "201", UNSUPPORTED, NOT_ENFORCED, asked({field: value}))
            for field, value in (
                ("guardrails", ["pii"]),
                ("modelMaxBudget", {"gpt-4o": {"budgetLimit": 5, "timePeriod": "monthly"}}),
            )
        ),
        Case("eleventh key", BAD, BAD, "", asked(given="ten keys")),
        Case(
            "over the maximums",
            BAD,
            BAD,
            "",
            asked(
                {"maxBudget": 51, "tpmLimit": 5001, "rpmLimit": 101, "expiresAt": "2029-01-01T00:00:00Z"},
                given="maximums",
            ),
        ),
        Case("no end where the maximums want one", BAD, BAD, "", asked(given="maximums")),
        Case(
            "defaults filled in",
            "201",
            "201",
            "a maximum without a default is filled in as well",
            asked({"expiresAt": "{in ten days}"}, given="maximums and defaults"),
        ),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, asked(who="nobody")),
        Case(
            "no token, as a browser",
            BROKEN,
            DOOR,
            f"LiteMaaS takes it for a user of its own; {AT_THE_DOOR}",
            asked(who="a browser"),
        ),
        Case(
            "LiteMaaS's administrator's key", BROKEN, DOOR, AT_THE_DOOR, asked(who="a key of LiteMaaS's administrator")
        ),
        Case("role readonly", "201", FORBIDDEN, STILL_READS, asked(who="readonly")),
        Case("LiteLLM unreachable", BROKEN, LATER, RETRY, asked(trouble="LiteLLM unreachable")),
        Case("LiteLLM answers 500", BAD, LATER, RETRY, asked(trouble="LiteLLM answers 500")),
        Case("LiteLLM answers 400", BAD, BAD, "", asked(trouble="LiteLLM answers 400")),
        Case("LiteLLM answers no JSON", BROKEN, LATER, RETRY, asked(trouble="LiteLLM answers 502 without JSON")),
        Case(
            "PostgreSQL restarted",
            "none: the process ends",
            "201",
            "the connection is opened anew",
            asked(trouble="PostgreSQL restarted"),
        ),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, asked(trouble="PostgreSQL down")),
    ],
    LIST: [
        Case("no query", "200", "200", "", Ask()),
        Case("`page=2&limit=2`", "200", "200", "", Ask(query="page=2&limit=2")),
        Case(
            "a page beyond the end",
            "200",
            "200",
            "",
            Ask(query="page=50&limit=2", holds=lambda body: body["data"] == []),
        ),
        Case("`page=0`", BAD, BAD, "", Ask(query="page=0")),
        Case("`limit=101`", BAD, BAD, "", Ask(query="limit=101")),
        Case("`limit=abc`", BAD, BAD, "", Ask(query="limit=abc")),
        Case("`limit=1.5`", BROKEN, BAD, CALLERS_MISTAKE, Ask(query="limit=1.5")),
        Case("`page=1.01`", BROKEN, BAD, CALLERS_MISTAKE, Ask(query="page=1.01")),
        Case("`page=1e18`", BROKEN, BAD, CALLERS_MISTAKE, Ask(query="page=1e18")),
        Case(
            "`modelIds` of one of two models",
            "200",
            "200",
            "`models` names both; LiteMaaS shows the one that was asked for",
            Ask(
                query="modelIds=gpt-4o-mini",
                given="two keys, one expired",
                holds=lambda body: body["data"][0]["models"] == ["gpt-4o", "gpt-4o-mini"],
            ),
        ),
        Case("`modelIds` twice", "200", "200", "", Ask(query="modelIds=gpt-4o-mini&modelIds=gpt-4o&limit=1")),
        Case("`subscriptionId`", "200", "200", "", Ask(query="subscriptionId={subscription}")),
        Case("malformed `subscriptionId`", BROKEN, BAD, CALLERS_MISTAKE, Ask(query="subscriptionId=zzz")),
        Case("`isActive=false`", "200", "200", "", Ask(query="isActive=false")),
        Case("`isActive=maybe`", BAD, BAD, "", Ask(query="isActive=maybe")),
        Case(
            "`isActive=true`, one expired",
            "200",
            "200",
            "an expired key is not active; LiteMaaS lists it as one that is",
            Ask(query="isActive=true", given="two keys, one expired", holds=lambda body: len(body["data"]) == 1),
        ),
        Case(
            "a revoked key",
            "200",
            "200",
            "",
            Ask(key="revoked", holds=lambda body: [key["isActive"] for key in body["data"]] == [False]),
        ),
        Case("unknown parameter", "200", "200", "", Ask(query="sort=name&search=full&limit=1")),
        Case("a model nobody has", "200", "200", "", Ask(query="modelIds=none", holds=lambda body: body["data"] == [])),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody")),
        Case("a token that is none", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="garbage")),
        Case("a wrong signature", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="forged")),
        Case("an expired token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="expired")),
        Case(
            "an inactive user",
            UNAUTHORIZED,
            FORBIDDEN,
            "the token is good, the user may do nothing",
            Ask(who="an inactive user"),
        ),
        Case(
            "a user without a row",
            UNAUTHORIZED,
            "200",
            "the first request registers the user; behind LiteMaaS's own tokens it is 401 as well",
            Ask(who="an unknown user"),
        ),
        Case("LiteMaaS's administrator's key", BROKEN, DOOR, AT_THE_DOOR, Ask(who="a key of LiteMaaS's administrator")),
        Case(
            "a key's secret for a token",
            "200",
            DOOR,
            "secrets are for LiteLLM; LiteMaaS takes those with 64 hexadecimal digits",
            Ask(who="a secret of a key"),
        ),
        Case(
            "no token, as a browser",
            "200",
            DOOR,
            f"LiteMaaS takes it for a user of its own; {AT_THE_DOOR}",
            Ask(who="a browser"),
        ),
        Case("LiteLLM unreachable", "200", "200", "LiteLLM is not asked", Ask(trouble="LiteLLM unreachable")),
        Case("LiteLLM answers 500", "200", "200", "LiteLLM is not asked", Ask(trouble="LiteLLM answers 500")),
        Case(
            "LiteLLM answers no JSON",
            "200",
            "200",
            "LiteLLM is not asked",
            Ask(trouble="LiteLLM answers 502 without JSON"),
        ),
        Case("key gone in LiteLLM", "200", "200", "at once; LiteMaaS takes 3 s", Ask(key="gone in LiteLLM")),
        Case(
            "PostgreSQL restarted",
            "none: the process ends",
            "200",
            "the connection is opened anew",
            Ask(trouble="PostgreSQL restarted"),
        ),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, Ask(trouble="PostgreSQL down")),
        Case(
            "PostgreSQL down since the start",
            "200",
            LATER,
            "LiteMaaS invents keys then; nothing here answers without the database",
            Ask(trouble="PostgreSQL down"),
        ),
    ],
    GET: [
        Case("own", BROKEN, "200", READ_AGAIN),
        Case("another's", NONE, NONE, "", Ask(key="another's")),
        Case("another's, as an administrator", NONE, NONE, "", Ask(who="an administrator", key="another's")),
        Case("missing", NONE, NONE, "", Ask(key="missing")),
        Case("malformed id", BROKEN, NONE, NO_SUCH_ID, Ask(key="malformed")),
        Case("id `%00`", BROKEN, NONE, NO_SUCH_ID, Ask(key="NUL")),
        Case("revoked", BROKEN, "200", READ_AGAIN, Ask(key="revoked", holds=lambda body: body["status"] == "revoked")),
        Case("expired", BROKEN, "200", READ_AGAIN, Ask(key="expired", holds=lambda body: body["status"] == "expired")),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody")),
        Case("LiteLLM unreachable", BROKEN, "200", READ_AGAIN, Ask(trouble="LiteLLM unreachable")),
        Case("LiteLLM answers 500", BROKEN, "200", READ_AGAIN, Ask(trouble="LiteLLM answers 500")),
        Case("LiteLLM answers no JSON", BROKEN, "200", READ_AGAIN, Ask(trouble="LiteLLM answers 502 without JSON")),
        Case("key gone in LiteLLM", BROKEN, "200", READ_AGAIN, Ask(key="gone in LiteLLM")),
        Case(
            "PostgreSQL restarted",
            "none: the process ends",
            "200",
            "the connection is opened anew",
            Ask(trouble="PostgreSQL restarted"),
        ),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, Ask(trouble="PostgreSQL down")),
    ],
    DELETE: [
        Case("own", "200", "200", "`effectiveBy` is added"),
        Case("again", NONE, NONE, "", Ask(key="deleted")),
        Case("another's", NONE, NONE, "", Ask(key="another's")),
        Case("another's, as an administrator", NONE, NONE, "", Ask(who="an administrator", key="another's")),
        Case("missing", NONE, NONE, "", Ask(key="missing")),
        Case("malformed id", BROKEN, NONE, NO_SUCH_ID, Ask(key="malformed")),
        Case("revoked", "200", "200", "", Ask(key="revoked")),
        Case("expired", "200", "200", "", Ask(key="expired")),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody")),
        Case("JSON announced, none sent", "200", "200", "", Ask(headers={"content-type": "application/json"})),
        Case("role readonly", "200", FORBIDDEN, STILL_READS, Ask(who="readonly")),
        Case("LiteLLM unreachable", "200", "202", NOT_SWALLOWED, Ask(trouble="LiteLLM unreachable")),
        Case("LiteLLM answers 500", "200", "202", NOT_SWALLOWED, Ask(trouble="LiteLLM answers 500")),
        Case("LiteLLM answers 400", "200", "202", NOT_SWALLOWED, Ask(trouble="LiteLLM answers 400")),
        Case("LiteLLM answers no JSON", "200", "202", NOT_SWALLOWED, Ask(trouble="LiteLLM answers 502 without JSON")),
        Case("key gone in LiteLLM", "200", "200", "at once; LiteMaaS takes 3 s", Ask(key="gone in LiteLLM")),
        Case(
            "PostgreSQL restarted",
            "none: the process ends",
            "200",
            "the connection is opened anew",
            Ask(trouble="PostgreSQL restarted"),
        ),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, Ask(trouble="PostgreSQL down")),
        Case(
            "PostgreSQL down since the start",
            "200",
            LATER,
            "LiteMaaS says that it has deleted; nothing here answers without the database",
            Ask(trouble="PostgreSQL down"),
        ),
    ],
    PATCH: [
        *(
            Case(f"`{name}`", "200", "200", "", Ask(body={name: value}))
            for name, value in (
                ("name", "renamed"),
                ("modelIds", ["gpt-4o"]),
                ("metadata", {"env": "prod"}),
                ("tpmLimit", 2000),
                ("expiresAt", "2027-06-01T00:00:00Z"),
            )
        ),
        *(
            Case(f"`{name}` null", "200", "200", "", Ask(body={name: None}))
            for name in ("name", "maxBudget", "expiresAt")
        ),
        Case("empty object", "200", "200", "", Ask(body={})),
        Case("empty `name`", "200", BAD, "as on create", Ask(body={"name": ""})),
        Case("`name` of 300 characters", BROKEN, BAD, CALLERS_MISTAKE, Ask(body={"name": "n" * 300})),
        Case("empty `modelIds`", "200", BAD, "LiteLLM reads no models as all models", Ask(body={"modelIds": []})),
        Case("unknown model", BAD, BAD, "", Ask(body={"modelIds": ["zzz"]})),
        Case("negative `maxBudget`", BAD, BAD, "", Ask(body={"maxBudget": -5})),
        Case("`rpmLimit` 1.5", BAD, BAD, "", Ask(body={"rpmLimit": 1.5})),
        Case(
            "`budgetDuration` fortnight",
            "200",
            BAD,
            "LiteLLM does not take it",
            Ask(body={"budgetDuration": "fortnight"}),
        ),
        Case("`budgetDuration` of 30 characters", BROKEN, BAD, CALLERS_MISTAKE, Ask(body={"budgetDuration": "d" * 30})),
        Case("over the maximums", BAD, BAD, "", Ask(body={"maxBudget": 51, "rpmLimit": 500}, given="maximums")),
        Case(
            "`maxBudget` null under a maximum",
            "200",
            BAD,
            "no budget would be more than the maximum",
            Ask(body={"maxBudget": None}, given="maximums"),
        ),
        Case("`expiresAt` null under a maximum", BAD, BAD, "", Ask(body={"expiresAt": None}, given="maximums")),
        Case(
            "`expiresAt` beyond the maximum",
            BAD,
            BAD,
            "",
            Ask(body={"expiresAt": "2029-01-01T00:00:00Z"}, given="maximums"),
        ),
        Case("another's", NONE, NONE, "", Ask(key="another's", body={"name": "x"})),
        Case("missing", NONE, NONE, "", Ask(key="missing", body={"name": "x"})),
        Case("malformed id", BROKEN, NONE, NO_SUCH_ID, Ask(key="malformed", body={"name": "x"})),
        Case("no body", BAD, BAD, "", Ask()),
        Case("revoked", BAD, BAD, "", Ask(key="revoked", body={"name": "x"})),
        Case("expired", "200", BAD, LEFT, Ask(key="expired", body={"name": "x"})),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody", body={"name": "x"})),
        Case("LiteLLM unreachable", BROKEN, LATER, RETRY, Ask(trouble="LiteLLM unreachable", body={"rpmLimit": 7})),
        Case("LiteLLM answers 500", BAD, LATER, RETRY, Ask(trouble="LiteLLM answers 500", body={"rpmLimit": 7})),
        Case("LiteLLM answers 400", BAD, BAD, "", Ask(trouble="LiteLLM answers 400", body={"rpmLimit": 7})),
        Case(
            "LiteLLM answers no JSON",
            BROKEN,
            LATER,
            RETRY,
            Ask(trouble="LiteLLM answers 502 without JSON", body={"rpmLimit": 7}),
        ),
        Case("key gone in LiteLLM", BAD, BAD, "", Ask(key="gone in LiteLLM", body={"rpmLimit": 7})),
        Case(
            "PostgreSQL restarted",
            "none: the process ends",
            "200",
            "the connection is opened anew",
            Ask(trouble="PostgreSQL restarted", body={"name": "x"}),
        ),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, Ask(trouble="PostgreSQL down", body={"name": "x"})),
    ],
    RESET: [
        Case("own", "200", FORBIDDEN, "administrators do it, unless the stack lets owners"),
        Case("another's", NONE, NONE, "", Ask(key="another's")),
        Case("missing", NONE, NONE, "", Ask(key="missing")),
        Case("malformed id", BROKEN, NONE, NO_SUCH_ID, Ask(key="malformed")),
        Case("revoked", BAD, BAD, "", Ask(key="revoked", who="an administrator")),
        Case("expired", "200", BAD, LEFT, Ask(key="expired", who="an administrator")),
        Case("own, as an administrator", "200", "200", "", Ask(who="an administrator")),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody")),
        Case("LiteLLM unreachable", BROKEN, LATER, RETRY, Ask(who="an administrator", trouble="LiteLLM unreachable")),
        Case("LiteLLM answers 500", BAD, LATER, RETRY, Ask(who="an administrator", trouble="LiteLLM answers 500")),
        Case("LiteLLM answers 400", BAD, LATER, RETRY, Ask(who="an administrator", trouble="LiteLLM answers 400")),
        Case(
            "LiteLLM answers no JSON",
            BROKEN,
            LATER,
            RETRY,
            Ask(who="an administrator", trouble="LiteLLM answers 502 without JSON"),
        ),
        Case("key gone in LiteLLM", BAD, BAD, "", Ask(who="an administrator", key="gone in LiteLLM")),
        Case(
            "PostgreSQL restarted",
            "none: the process ends",
            "200",
            "the connection is opened anew",
            Ask(who="an administrator", trouble="PostgreSQL restarted"),
        ),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, Ask(trouble="PostgreSQL down")),
    ],
    STATS: [
        Case("own", "200", "200", "", Ask(given="two keys, one expired", holds=lambda body: body["expired"] == 1)),
        Case("without keys", "200", "200", "", Ask(key="missing", holds=lambda body: body["total"] == 0)),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody")),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, Ask(trouble="PostgreSQL down")),
    ],
    VALIDATE: [
        Case(
            "a secret that works",
            "200",
            "200",
            "yes; LiteMaaS knows only secrets of another form than LiteLLM's",
            Ask(who="an administrator", body={"key": "{secret}"}, holds=lambda body: body == {"isValid": True}),
        ),
        Case(
            "an unknown secret",
            "200",
            "200",
            "",
            Ask(who="an administrator", body={"key": f"sk-{'0' * 64}"}, holds=lambda body: body == {"isValid": False}),
        ),
        Case(
            "no secret at all",
            "200",
            "200",
            "",
            Ask(who="an administrator", body={"key": "x"}, holds=lambda body: body == {"isValid": False}),
        ),
        Case("no `key`", BAD, BAD, "", Ask(who="an administrator", body={})),
        Case("as a user", FORBIDDEN, FORBIDDEN, "", Ask(body={"key": "x"})),
    ],
    ALL: [
        Case(
            "as an administrator", "501 INTERNAL_ERROR", "200", "LiteMaaS has not built it", Ask(who="an administrator")
        ),
        Case("as a user", FORBIDDEN, FORBIDDEN),
        Case("as admin-readonly", FORBIDDEN, "200", STILL_READS, Ask(who="admin-readonly")),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody")),
    ],
    ROTATE: [
        Case("own", "200", "200", "limits, owner and spend stay; LiteMaaS loses most of them"),
        Case("another's", NONE, NONE, "", Ask(key="another's")),
        Case("missing", NONE, NONE, "", Ask(key="missing")),
        Case("malformed id", BROKEN, NONE, NO_SUCH_ID, Ask(key="malformed")),
        Case(
            "JSON announced, none sent",
            BAD,
            "200",
            "no body is needed",
            Ask(headers={"content-type": "application/json"}),
        ),
        Case("revoked", "200", BAD, "LiteMaaS makes it work again", Ask(key="revoked")),
        Case("expired", "200", BAD, "a secret that has expired already", Ask(key="expired")),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody")),
        Case("role readonly", "200", FORBIDDEN, STILL_READS, Ask(who="readonly")),
        Case("LiteLLM unreachable", "200", LATER, MADE_UP, Ask(trouble="LiteLLM unreachable")),
        Case("LiteLLM answers 500", "200", LATER, MADE_UP, Ask(trouble="LiteLLM answers 500")),
        Case("LiteLLM answers 400", "200", BAD, MADE_UP, Ask(trouble="LiteLLM answers 400")),
        Case("LiteLLM answers no JSON", "200", LATER, MADE_UP, Ask(trouble="LiteLLM answers 502 without JSON")),
        Case(
            "key gone in LiteLLM",
            "200",
            "410 GONE",
            "nothing is left to rotate: delete it and make another",
            Ask(key="gone in LiteLLM"),
        ),
        Case(
            "PostgreSQL restarted",
            "none: the process ends",
            "200",
            "the connection is opened anew",
            Ask(trouble="PostgreSQL restarted"),
        ),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, Ask(trouble="PostgreSQL down")),
    ],
    REVEAL: [
        Case("own", "200", NEVER, NEVER_WHY),
        Case("another's", NONE, NONE, "", Ask(key="another's")),
        Case("missing", NONE, NONE, "", Ask(key="missing")),
        Case("malformed id", BROKEN, NONE, NO_SUCH_ID, Ask(key="malformed")),
        Case("revoked", BAD, NEVER, NEVER_WHY, Ask(key="revoked")),
        Case("expired", BAD, NEVER, NEVER_WHY, Ask(key="expired")),
        Case("a login long ago", FORBIDDEN, NEVER, NEVER_WHY),
        Case("no token", UNAUTHORIZED, DOOR, AT_THE_DOOR, Ask(who="nobody")),
        Case("LiteLLM unreachable", "200", NEVER, NEVER_WHY, Ask(trouble="LiteLLM unreachable")),
        Case("LiteLLM answers 500", "200", NEVER, NEVER_WHY, Ask(trouble="LiteLLM answers 500")),
        Case("LiteLLM answers no JSON", "200", NEVER, NEVER_WHY, Ask(trouble="LiteLLM answers 502 without JSON")),
        Case("key gone in LiteLLM", "200", NEVER, NEVER_WHY, Ask(key="gone in LiteLLM")),
        Case("PostgreSQL restarted", "none: the process ends", NEVER, NEVER_WHY, Ask(trouble="PostgreSQL restarted")),
        Case("PostgreSQL down", UNAUTHORIZED, LATER, RETRY_LATER, Ask(trouble="PostgreSQL down")),
    ],
    CLEANUP: [
        Case("nothing expired, as an administrator", "200", "200", "", Ask(who="an administrator")),
        Case(
            "one expired key, as an administrator",
            BROKEN,
            "200",
            "LiteMaaS fails as soon as there is one",
            Ask(
                who="an administrator",
                given="two keys, one expired",
                holds=lambda body: body["cleanedCount"] >= 1 and body["pendingCount"] == 0,
            ),
        ),
        Case("as a user", FORBIDDEN, FORBIDDEN),
        Case("LiteMaaS's administrator's key", BROKEN, DOOR, AT_THE_DOOR, Ask(who="a key of LiteMaaS's administrator")),
    ],
    f"GET {KEYS}/{{id}}/nothing": [
        Case("no such route", NONE, "404 of API Gateway", "API Gateway says so itself; its body is `{message}`"),
    ],
    f"PUT {KEYS}/{{id}}": [
        Case("no such method", NONE, "404 of API Gateway", "API Gateway says so itself; its body is `{message}`"),
    ],
    f"PUT {ADMIN}/settings/api-key-defaults": [
        Case(
            "as admin-readonly",
            "200",
            FORBIDDEN,
            STILL_READS,
            Ask(who="admin-readonly", body={"defaults": {}, "maximums": {}}),
        ),
    ],
}


def document() -> str:
    counted = Counter(case.theirs == case.ours for cases in CASES.values() for case in cases)
    lines = [
        "# Compatibility with LiteMaaS",
        "",
        "The same request, LiteMaaS's answer beside this service's: status and, of an error, its code. LiteMaaS's was recorded",
        "from a running one; this service's is asked for by [a test](../tests/e2e/test_compatibility.py) of every line. Made by",
        "`python -m tests.e2e.compatibility` of [the cases](../tests/e2e/compatibility.py).",
        "",
        f"{counted.total()} cases: {counted[True]} have the same status and code, {counted[False]} another, with the reason.",
        "An error that API Gateway itself answers with has no code.",
    ]
    for route, cases in CASES.items():
        lines += ["", f"## `{route}`", "", "| case | LiteMaaS | here | why |", "|---|---|---|---|"]
        for case in cases:
            ours = "the same" if case.ours == case.theirs else f"**{case.ours}**"
            lines.append(f"| {case.name} | {case.theirs} | {ours} | {case.why} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
