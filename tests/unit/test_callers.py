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


def caller_of(claims: dict[str, str]) -> Caller:
    return caller_from_claims(claims, names=NAMES, actor=ACTOR)


def test_caller_is_what_the_claims_say():
    caller = caller_of(
        {
            "sub": "alice-id",
            "preferred_username": "alice",
            "email": "alice@example.com",
            "name": "Alice Liddell",
            "roles": "[admin user]",
            "exp": "1800000000",
            "aud": "[keyservice other]",
        }
    )

    assert caller == Caller(
        provider="openshift",
        subject="alice-id",
        username="alice",
        email="alice@example.com",
        full_name="Alice Liddell",
        roles=("admin", "user"),
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
        pytest.param("[admin user]", ("admin", "user"), id="list as HTTP APIs write it"),
        pytest.param('["admin","user"]', ("admin", "user"), id="list as JSON"),
        pytest.param("admin-readonly", ("admin-readonly",), id="one role"),
        pytest.param("admin,user", ("admin", "user"), id="joined by commas"),
        pytest.param("[]", (), id="empty list"),
        pytest.param("", (), id="empty"),
    ],
)
def test_roles_are_read_from_the_string_that_the_gateway_makes(claim: str, roles: tuple[str, ...]):
    assert caller_of({"sub": "alice-id", "roles": claim}).roles == roles


def test_claims_are_taken_from_where_the_stack_says():
    names = ClaimNames(
        provider="entra", subject="oid", username="upn", email="mail", full_name="displayName", roles="groups"
    )

    caller = caller_from_claims(
        {"sub": "pairwise", "oid": "stable", "upn": "al", "mail": "al@example.com", "displayName": "Al", "groups": "x"},
        names=names,
        actor=ACTOR,
    )

    assert (caller.provider, caller.subject, caller.username) == ("entra", "stable", "al")
    assert (caller.email, caller.full_name, caller.roles) == ("al@example.com", "Al", ("x",))


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

        caller = caller_from_claims(claims, names=self.NAMES, actor=ACTOR)

        assert caller == Caller(
            user_id=UUID(self.USER_ID), username="", email="", full_name=None, roles=(), actor=ACTOR
        )
        assert (caller.provider, caller.subject) == (None, None)

    @pytest.mark.parametrize("subject", ["", "alice", "d14dfa9d", f"{USER_ID} ", USER_ID.replace("-", "")])
    def test_is_refused_unless_it_is_one(self, subject: str):
        with pytest.raises(Unauthorized):
            caller_from_claims({"userId": subject}, names=self.NAMES, actor=ACTOR)
