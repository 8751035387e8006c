import base64
import json
from typing import Any
from uuid import UUID

import pytest

from keyservice.callers import caller_from_claims
from keyservice.errors import Unauthorized
from keyservice.models import Actor, Caller
from keyservice.settings import ClaimNames

NAMES = ClaimNames(
    provider="openshift",
    subject="sub",
    username="preferred_username",
    email="email",
    full_name="name",
    roles="roles",
)
ACTOR = Actor(ip_address="203.0.113.9", user_agent="curl/8.5", request_id="r-1")


def bearer(payload: object) -> str:
    """The header as API Gateway hands it over, after it has verified the signature."""
    encoded = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=").decode()
    return f"Bearer header.{encoded}.signature"


def caller_of(claims: dict[str, str], *, authorization: str = "") -> Caller:
    return caller_from_claims(claims, authorization=authorization, names=NAMES, actor=ACTOR)


def test_caller_is_what_the_claims_say():
    caller = caller_of(
        {
            "sub": "alice-id",
            "preferred_username": "alice",
            "email": "alice@example.com",
            "name": "Alice Liddell",
            "roles": "[user admin]",
            "exp": "1800000000",
            "aud": "[keyservice other]",
        },
        authorization=bearer({"sub": "alice-id", "roles": ["admin", "user"]}),
    )

    assert caller == Caller(
        provider="openshift",
        subject="alice-id",
        username="alice",
        email="alice@example.com",
        full_name="Alice Liddell",
        roles=("user", "admin"),
        actor=ACTOR,
    )


def test_access_token_without_name_and_email_gets_substitutes():
    caller = caller_of({"sub": "alice-id"})

    assert (caller.username, caller.email) == ("openshift:alice-id", "openshift:alice-id")
    assert caller.full_name is None
    assert caller.roles == ()


@pytest.mark.parametrize(
    "unusable",
    [
        pytest.param("", id="empty"),
        pytest.param("   ", id="blank"),
        pytest.param("a\0b", id="NUL"),
        pytest.param("a" * 256, id="longer than the column"),
    ],
)
class TestUnusableClaim:
    def test_username_and_email_are_substituted(self, unusable: str):
        caller = caller_of({"sub": "alice-id", "preferred_username": unusable, "email": unusable, "name": unusable})

        assert (caller.username, caller.email) == ("openshift:alice-id", "openshift:alice-id")
        assert caller.full_name is None

    def test_subject_is_refused(self, unusable: str):
        with pytest.raises(Unauthorized):
            caller_of({"sub": unusable})


def test_token_without_a_subject_is_refused():
    with pytest.raises(Unauthorized):
        caller_of({"email": "alice@example.com"})


def test_subject_of_255_characters_is_kept_whole_and_its_substitute_fits():
    caller = caller_of({"sub": "s" * 255})

    assert caller.subject == "s" * 255
    assert len(caller.username) == 255
    assert caller.username.startswith("openshift:sss")


def test_substitutes_of_two_long_subjects_differ():
    first, second = caller_of({"sub": "s" * 254 + "1"}), caller_of({"sub": "s" * 254 + "2"})

    assert first.username != second.username


@pytest.mark.parametrize(
    ("claim", "roles"),
    [
        pytest.param(["admin", "user"], ("user", "admin"), id="list"),
        pytest.param("admin-readonly", ("admin-readonly",), id="one role"),
        pytest.param([], (), id="empty list"),
        pytest.param("", (), id="empty"),
        pytest.param(None, (), id="null"),
        pytest.param({"admin": True}, (), id="object"),
        pytest.param(["auditor", "user"], ("user",), id="with one that is unknown"),
        pytest.param(["cluster admin"], (), id="a name with a blank in it"),
        pytest.param(["x,admin"], (), id="a name with a comma in it"),
        pytest.param("[admin user]", (), id="a name that looks like a list"),
        pytest.param(["user", 7, None, ["admin"]], ("user",), id="with what is no name"),
        pytest.param(["a\0b"], (), id="NUL"),
    ],
)
def test_roles_are_the_known_ones_of_the_tokens_own_list(claim: Any, roles: tuple[str, ...]):
    caller = caller_of({"sub": "alice-id", "roles": "[admin]"}, authorization=bearer({"roles": claim}))

    assert caller.roles == roles


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param("", id="no header"),
        pytest.param("Bearer", id="no token"),
        pytest.param("Bearer a.b", id="too short"),
        pytest.param("Bearer a.!!!.c", id="not base64"),
        pytest.param("Bearer a.bm90IGpzb24.c", id="not JSON"),
        pytest.param(bearer(["admin"]), id="not an object"),
        pytest.param("Bearer a.eyJyb2xlcyI6WyL_IiwiYWRtaW4iXX0.c", id="not UTF-8"),
    ],
)
def test_token_that_cannot_be_read_gives_no_role(authorization: str):
    assert caller_of({"sub": "alice-id", "roles": "admin"}, authorization=authorization).roles == ()


def test_claims_are_taken_from_where_the_stack_says():
    names = ClaimNames(
        provider="entra", subject="oid", username="upn", email="mail", full_name="displayName", roles="groups"
    )

    caller = caller_from_claims(
        {"sub": "pairwise", "oid": "stable", "upn": "al", "mail": "al@example.com", "displayName": "Al"},
        authorization=bearer({"groups": ["admin"], "roles": ["user"]}),
        names=names,
        actor=ACTOR,
    )

    assert (caller.provider, caller.subject, caller.username) == ("entra", "stable", "al")
    assert (caller.email, caller.full_name, caller.roles) == ("al@example.com", "Al", ("admin",))


class TestCallerByTheIdOfARow:
    NAMES = ClaimNames(
        subject_column="id",
        provider="litemaas",
        subject="userId",
        username="username",
        email="email",
        full_name="name",
        roles="roles",
    )
    USER_ID = "d14dfa9d-4dc5-478c-ac0a-93acde76e63e"

    def test_is_the_row_and_nothing_that_the_token_says_of_it(self):
        claims = {"userId": self.USER_ID, "username": "root", "email": "root@example.com", "roles": "[admin]"}

        caller = caller_from_claims(claims, authorization=bearer({"roles": ["admin"]}), names=self.NAMES, actor=ACTOR)

        assert caller == Caller(
            user_id=UUID(self.USER_ID), username="", email="", full_name=None, roles=(), actor=ACTOR
        )
        assert (caller.provider, caller.subject) == (None, None)

    @pytest.mark.parametrize("subject", ["", "alice", "d14dfa9d", f"{USER_ID} ", USER_ID.replace("-", "")])
    def test_is_refused_unless_it_is_one(self, subject: str):
        with pytest.raises(Unauthorized):
            caller_from_claims({"userId": subject}, authorization="", names=self.NAMES, actor=ACTOR)


@pytest.mark.parametrize(
    ("claim", "seconds"),
    [
        pytest.param("1800000000", 1_800_000_000.0, id="as API Gateway hands it over"),
        pytest.param("1.8E9", 1_800_000_000.0, id="in scientific notation"),
        pytest.param("yesterday", None, id="no number"),
        pytest.param("", None, id="empty"),
        pytest.param("[1800000000]", None, id="a list"),
    ],
)
def test_the_time_of_login_is_read_if_it_is_a_number(claim: str, seconds: float | None):
    assert caller_of({"sub": "alice-id", "auth_time": claim}).authenticated_at == seconds


def test_a_token_without_the_time_of_login_says_nothing():
    assert caller_of({"sub": "alice-id"}).authenticated_at is None
