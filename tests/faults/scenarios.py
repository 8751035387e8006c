"""The operations under test, each from the moment before it begins. A new operation joins by an entry in SCENARIOS."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import override

import httpx

from tests.e2e.service import KEYS, Person, Row
from tests.faults.rig import DRAIN_SECONDS, LEASE_SECONDS, RESUME_SECONDS, Rig

WEEK_SECONDS = 7 * 24 * 3600

GENERATE = "/key/generate"
DELETE = "/key/delete"
INFO = "/key/info"
UPDATE = "/key/update"

REFUSAL = {"error": {"message": "no", "type": "bad_request_error", "param": "None", "code": "400"}}
CHANGES: Row = {
    "tpmLimit": 2000,
    "modelIds": ["gpt-4o-mini"],
    "expiresAt": "2034-04-04T04:04:04Z",
    "metadata": {"b": 2},
}
# Without anything for which LiteLLM would have to be read first.
LIMITS: Row = {name: CHANGES[name] for name in ("tpmLimit", "modelIds", "expiresAt")}


@dataclass
class Administered(Person):
    """Somebody whose keys an administrator makes and revokes for them."""

    @property
    def _keys(self) -> str:
        return f"/api/v1/admin/users/{self.user_id}/api-keys"

    @property
    def _administrator(self) -> str:
        return self.service.stack.token("administrator", roles=["admin"])

    @override
    def create(self, body: Row, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return self.service.call("POST", self._keys, token=self._administrator, json=body, headers=headers)

    @override
    def delete(self, key_id: str, *, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return self.service.call("DELETE", f"{self._keys}/{key_id}", token=self._administrator, headers=headers)

    def clean_up(self) -> httpx.Response:
        return self.service.call("POST", f"{KEYS}/admin/cleanup-expired", token=self._administrator)


@dataclass
class Situation:
    """Somebody, with what they have and what they ask for."""

    rig: Rig
    person: Person
    body: Row = field(
        default_factory=lambda: {
            "modelIds": ["gpt-4o", "gpt-4o-mini"],
            "name": "matrix",
            "maxBudget": 12.5,
            "tpmLimit": 1000,
            "expiresAt": "2033-03-03T03:03:03Z",
        }
    )
    idempotency_key: str = field(default_factory=lambda: str(uuid.uuid4()))
    key_id: str = ""
    grace_seconds: int = 0
    """Of a rotation."""

    def create(self) -> httpx.Response:
        return self.rig.create(self.person, self.body, idempotency_key=self.idempotency_key)

    def delete(self) -> httpx.Response:
        return self.rig.delete(self.person, self.key_id)

    def update(self) -> httpx.Response:
        return self.rig.update(self.person, self.key_id, CHANGES)

    def update_limits(self) -> httpx.Response:
        return self.rig.update(self.person, self.key_id, LIMITS)

    def reset_spend(self) -> httpx.Response:
        return self.person.reset_spend(self.key_id)

    def rotate(self) -> httpx.Response:
        return self.rig.rotate(
            self.person, self.key_id, grace_seconds=self.grace_seconds, idempotency_key=self.idempotency_key
        )

    def complete(self) -> httpx.Response:
        return self.rig.complete(self.person, self.key_id)

    def has_key(self) -> "Situation":
        answer = self.create()
        assert answer.status_code == 201, answer.text
        self.key_id = answer.json()["id"]
        return self

    def has_unfinished_create(self, fault: str) -> "Situation":
        """Its generate met the fault, and so it waits to be resumed or undone."""
        broken = self.rig.gateway_faults.inject(GENERATE, fault)  # pyright: ignore[reportArgumentType]
        assert self.create().status_code == 503
        assert broken.hits == 1
        self.key_id = str(self.rig.keys_of(self.person)[0]["id"])
        self.rig.pass_time(LEASE_SECONDS)
        return self

    def has_grace(self) -> "Situation":
        """A key whose old secret goes on working."""
        self.has_key().grace_seconds = WEEK_SECONDS
        assert self.rotate().status_code == 200
        return self

    def has_unfinished_rotation(self, fault: str) -> "Situation":
        """Its generate met the fault, and so it waits to be resumed or undone."""
        self.has_key()
        broken = self.rig.gateway_faults.inject(GENERATE, fault)  # pyright: ignore[reportArgumentType]
        assert self.rotate().status_code == 503
        assert broken.hits == 1
        self.rig.pass_time(LEASE_SECONDS)
        return self

    def has_unfinished_delete(self) -> "Situation":
        self.has_key()
        broken = self.rig.gateway_faults.inject(DELETE, "reset_before")
        assert self.delete().status_code == 202
        assert broken.hits == 1
        self.rig.pass_time(LEASE_SECONDS)
        return self

    def has_unfinished_update(self, fault: str = "reset_before") -> "Situation":
        """One of other values than the next."""
        self.has_key()
        broken = self.rig.gateway_faults.inject(UPDATE, fault)  # pyright: ignore[reportArgumentType]
        assert self.rig.update(self.person, self.key_id, {"tpmLimit": 3000, "rpmLimit": 3}).status_code == 503
        assert broken.hits == 1
        self.rig.pass_time(LEASE_SECONDS)
        return self

    def has_update_that_may_come_late(self) -> "Situation":
        """One that was settled since, and then altered by what was lost."""
        self.has_unfinished_update("late")
        assert self.rig.try_to_settle() is not None
        self.rig.clear_faults()
        self.is_altered_in_gateway()
        return self.waits_for(DRAIN_SECONDS)

    def has_team(self) -> "Situation":
        """Its money is what the key is to spend."""
        lite_llm_team_id = f"team-of-{self.person.subject}"
        answer = self.rig.gateway("POST", "/team/new", json={"team_id": lite_llm_team_id})
        assert answer.status_code == 200, answer.text
        self.rig.rows(
            "WITH team AS (INSERT INTO teams (name, lite_llm_team_id) VALUES ('matrix', %(team)s) RETURNING id)"
            " INSERT INTO team_members (team_id, user_id, role) SELECT id, %(user_id)s, 'member' FROM team",
            team=lite_llm_team_id,
            user_id=self.person.user_id,
        )
        self.body |= {"teamId": lite_llm_team_id, "tags": ["matrix"], "modelRpmLimit": {"gpt-4o": 5}}
        return self

    def loses_subscription(self) -> None:
        self.rig.rows(
            "UPDATE subscriptions SET status = 'cancelled' WHERE user_id = %(user_id)s AND model_id = 'gpt-4o'",
            user_id=self.person.user_id,
        )

    def loses_row(self) -> "Situation":
        self.rig.rows("DELETE FROM api_keys WHERE id = %(key_id)s", key_id=self.key_id)
        return self

    def expires(self) -> "Situation":
        self.rig.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(key_id)s", key_id=self.key_id)
        return self

    def is_altered_in_gateway(self) -> "Situation":
        """The newest secret that LiteLLM has made for the key."""
        newest, *_ = self.rig.rows(
            """
            SELECT hash FROM api_key_tokens WHERE api_key_id = %(key_id)s AND state IN ('intended', 'live')
            ORDER BY number DESC
            """,
            key_id=self.key_id,
        )
        answer = self.rig.gateway("POST", "/key/update", json={"key": newest["hash"], "tpm_limit": 7})
        assert answer.status_code == 200, answer.text
        return self

    def has_ended_grace(self) -> "Situation":
        """Only this one: time that passes would end all."""
        self.has_grace()
        self.rig.rows(
            "UPDATE api_key_tokens SET valid_until = now() WHERE api_key_id = %(key_id)s AND state = 'retiring'",
            key_id=self.key_id,
        )
        return self

    def waits_for(self, seconds: float) -> "Situation":
        self.rig.pass_time(seconds)
        return self


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`act` is the one request or run whose steps are broken one by one; without a fault it ends with `answer`.

    `repeat` is what its caller does after a fault, None when nobody repeats it. `succeeds` are the answers that end the
    repeating; `only` the steps that are new in this scenario: the others are broken in another one.
    """

    function: str
    begin: Callable[[Rig], Situation]
    act: Callable[[Situation], object]
    answer: int | None
    repeat: Callable[[Situation], httpx.Response] | None = None
    succeeds: tuple[int, ...] = ()
    is_there_after_repeating: bool | None = None
    """Whether the key has to work once the caller has repeated the request until it succeeded."""
    only: frozenset[str] | None = None
    row_says: Row = field(default_factory=dict[str, object])
    """What the row holds once the caller has repeated the request until it succeeded."""
    secrets_left: tuple[int, ...] = (0, 1)
    """How many keys LiteLLM may have in the end; the most of them once the request was repeated until it succeeded."""


def _known(rig: Rig) -> Situation:
    return Situation(rig, rig.newcomer())


def _unknown(rig: Rig) -> Situation:
    return Situation(rig, rig.newcomer(is_synced=False))


def _administered(rig: Rig) -> Situation:
    person = rig.newcomer()
    return Situation(rig, Administered(person.service, subject=person.subject, token=person.token))


def _clean_up(situation: Situation) -> httpx.Response:
    assert isinstance(situation.person, Administered)
    return situation.person.clean_up()


def _settle(situation: Situation) -> object:
    return situation.rig.try_to_settle()


def _create(situation: Situation) -> httpx.Response:
    return situation.create()


def _delete(situation: Situation) -> httpx.Response:
    return situation.delete()


def _create_refused(situation: Situation) -> httpx.Response:
    situation.rig.gateway_faults.inject(GENERATE, "status", status=400, body=REFUSAL)
    return situation.create()


def _create_disentitled(situation: Situation) -> httpx.Response:
    situation.rig.gateway_faults.inject(GENERATE, "call_before", call=situation.loses_subscription)
    return situation.create()


def _create_unconfirmed(situation: Situation) -> httpx.Response:
    situation.rig.gateway_faults.inject(GENERATE, "status", status=500)
    return situation.create()


def _create_with_lost_t1(situation: Situation) -> httpx.Response:
    situation.rig.database_faults.cut_after("begin_create")
    return situation.create()


def _delete_unconfirmed(situation: Situation) -> httpx.Response:
    situation.rig.gateway_faults.inject(DELETE, "status", status=500)
    return situation.delete()


def _update(situation: Situation) -> httpx.Response:
    return situation.update()


def _update_limits(situation: Situation) -> httpx.Response:
    return situation.update_limits()


def _reset_spend(situation: Situation) -> httpx.Response:
    return situation.reset_spend()


def _update_unconfirmed(situation: Situation) -> httpx.Response:
    situation.rig.gateway_faults.inject(UPDATE, "status", status=500)
    return situation.update()


def _update_refused(situation: Situation) -> httpx.Response:
    situation.rig.gateway_faults.inject(UPDATE, "status", status=400, body=REFUSAL)
    return situation.update()


def _rotate(situation: Situation) -> httpx.Response:
    return situation.rotate()


def _rotate_with_grace(situation: Situation) -> httpx.Response:
    situation.grace_seconds = WEEK_SECONDS
    return situation.rotate()


def _rotate_unconfirmed(situation: Situation) -> httpx.Response:
    situation.rig.gateway_faults.inject(GENERATE, "status", status=500)
    return situation.rotate()


def _rotate_refused(situation: Situation) -> httpx.Response:
    situation.rig.gateway_faults.inject(GENERATE, "status", status=400, body=REFUSAL)
    return situation.rotate()


def _complete(situation: Situation) -> httpx.Response:
    return situation.complete()


SCENARIOS: dict[str, Scenario] = {
    "a user's first create": Scenario(
        function="CreateApiKey",
        begin=_unknown,
        act=_create,
        answer=201,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
    ),
    "a create": Scenario(
        function="CreateApiKey",
        begin=_known,
        act=_create,
        answer=201,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
    ),
    "a create whose T1 was lost": Scenario(
        function="CreateApiKey",
        begin=_known,
        act=_create_with_lost_t1,
        answer=201,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
        only=frozenset({"read_create"}),
    ),
    "a create without an answer": Scenario(
        function="CreateApiKey",
        begin=_known,
        act=_create_unconfirmed,
        answer=503,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
        only=frozenset({"release"}),
    ),
    "a create that LiteLLM refuses": Scenario(
        function="CreateApiKey",
        begin=_known,
        act=_create_refused,
        answer=400,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
        only=frozenset({INFO, "finish_undo"}),
    ),
    "a create whose subscription ends": Scenario(
        function="CreateApiKey",
        begin=_known,
        act=_create_disentitled,
        answer=400,
        repeat=_create,
        succeeds=(400, 409),  # 409 while the undo waits for settle_operations
        is_there_after_repeating=False,
        only=frozenset({"finish_create", DELETE, "finish_undo"}),
    ),
    "a resumed create that was made": Scenario(
        function="CreateApiKey",
        begin=lambda rig: _known(rig).has_unfinished_create("reset_after"),
        act=_create,
        answer=201,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
    ),
    "a resumed create that was not made": Scenario(
        function="CreateApiKey",
        begin=lambda rig: _known(rig).has_unfinished_create("reset_before"),
        act=_create,
        answer=201,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
        only=frozenset({GENERATE, INFO, "finish_create"}),
    ),
    "a resumed create that differs": Scenario(
        function="CreateApiKey",
        begin=lambda rig: _known(rig).has_unfinished_create("reset_after").is_altered_in_gateway(),
        act=_create,
        answer=201,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
        only=frozenset({"/key/update", "finish_create"}),
    ),
    "a delete": Scenario(
        function="DeleteApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_delete,
        answer=200,
        repeat=_delete,
        succeeds=(200, 404),
        is_there_after_repeating=False,
    ),
    "a delete without an answer": Scenario(
        function="DeleteApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_delete_unconfirmed,
        answer=202,
        repeat=_delete,
        succeeds=(200, 404),
        is_there_after_repeating=False,
        only=frozenset({"release"}),
    ),
    "a repeated delete": Scenario(
        function="DeleteApiKey",
        begin=lambda rig: _known(rig).has_unfinished_delete(),
        act=_delete,
        answer=200,
        repeat=_delete,
        succeeds=(200, 404),
        is_there_after_repeating=False,
    ),
    "a delete of an unfinished create": Scenario(
        function="DeleteApiKey",
        begin=lambda rig: _known(rig).has_unfinished_create("reset_after"),
        act=_delete,
        answer=202,
        repeat=_delete,
        succeeds=(200, 404, 202),
        is_there_after_repeating=False,
    ),
    "settling a delete": Scenario(
        function="SettleOperations",
        secrets_left=(0,),
        begin=lambda rig: _known(rig).has_unfinished_delete(),
        act=_settle,
        answer=None,
    ),
    "undoing a create": Scenario(
        function="SettleOperations",
        secrets_left=(0,),
        begin=lambda rig: _known(rig).has_unfinished_create("reset_after").waits_for(RESUME_SECONDS + DRAIN_SECONDS),
        act=_settle,
        answer=None,
        only=frozenset({"claim_due", DELETE, "finish_undo"}),
    ),
    "undoing a create that may still be made": Scenario(
        function="SettleOperations",
        secrets_left=(0,),
        begin=lambda rig: _known(rig).has_unfinished_create("reset_before").waits_for(RESUME_SECONDS),
        act=_settle,
        answer=None,
        only=frozenset({"claim_due", DELETE, "finish_undo", "release"}),
    ),
    "expiring a key": Scenario(
        function="SettleOperations",
        secrets_left=(0,),
        begin=lambda rig: _known(rig).has_key().expires(),
        act=_settle,
        answer=None,
        only=frozenset({"begin_expiry", "claim_due", DELETE, "finish_delete"}),
    ),
    "following a row that vanished": Scenario(
        function="SettleOperations",
        secrets_left=(0,),
        begin=lambda rig: _known(rig).has_key().loses_row(),
        act=_settle,
        answer=None,
        only=frozenset({"claim_due", DELETE, "finish_delete"}),
    ),
    "a change": Scenario(
        function="UpdateApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_update,
        answer=200,
        repeat=_update,
        succeeds=(200,),
        is_there_after_repeating=True,
        row_says={"tpm_limit": 2000, "metadata": {"b": 2}},
        secrets_left=(1,),
    ),
    "a change in one call": Scenario(
        function="UpdateApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_update_limits,
        answer=200,
        repeat=_update_limits,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({UPDATE, "finish_update"}),
        row_says={"tpm_limit": 2000},
        secrets_left=(1,),
    ),
    "a change in a grace": Scenario(
        function="UpdateApiKey",
        begin=lambda rig: _known(rig).has_grace(),
        act=_update_limits,
        answer=200,
        repeat=_update_limits,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({UPDATE, "finish_update"}),
        row_says={"tpm_limit": 2000},
        secrets_left=(2,),
    ),
    "a change without an answer": Scenario(
        function="UpdateApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_update_unconfirmed,
        answer=503,
        repeat=_update,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({"release"}),
        row_says={"tpm_limit": 2000},
        secrets_left=(1,),
    ),
    "a change that LiteLLM refuses": Scenario(
        function="UpdateApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_update_refused,
        answer=400,
        repeat=_update,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({"fail_update"}),
        row_says={"tpm_limit": 2000},
        secrets_left=(1,),
    ),
    "a change after an unfinished one": Scenario(
        function="UpdateApiKey",
        begin=lambda rig: _known(rig).has_unfinished_update("reset_after"),
        act=_update,
        answer=200,
        repeat=_update,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({"begin_update", UPDATE}),
        row_says={"tpm_limit": 2000, "rpm_limit": None},
        secrets_left=(1,),
    ),
    "a delete of an unfinished change": Scenario(
        function="DeleteApiKey",
        begin=lambda rig: _known(rig).has_unfinished_update("reset_after"),
        act=_delete,
        answer=200,
        repeat=_delete,
        succeeds=(200, 404),
        is_there_after_repeating=False,
        only=frozenset({"begin_delete"}),
    ),
    "a reset of spend": Scenario(
        function="ResetSpend",
        begin=lambda rig: _known(rig).has_key(),
        act=_reset_spend,
        answer=200,
        repeat=_reset_spend,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({"begin_reset"}),
        secrets_left=(1,),
    ),
    "settling a change": Scenario(
        function="SettleOperations",
        begin=lambda rig: _known(rig).has_unfinished_update(),
        act=_settle,
        answer=None,
        only=frozenset({UPDATE}),
        secrets_left=(1,),
    ),
    "correcting a change that came late": Scenario(
        function="SettleOperations",
        begin=lambda rig: _known(rig).has_update_that_may_come_late(),
        act=_settle,
        answer=None,
        only=frozenset({"begin_correction"}),
        secrets_left=(1,),
    ),
    "an administrator's create for a team's member": Scenario(
        function="CreateUserApiKey",
        begin=lambda rig: _administered(rig).has_team(),
        act=_create,
        answer=201,
        repeat=_create,
        succeeds=(201,),
        is_there_after_repeating=True,
        only=frozenset({"begin_create", "/team/info"}),
    ),
    "a revocation": Scenario(
        function="DeleteUserApiKey",
        begin=lambda rig: _administered(rig).has_key(),
        act=_delete,
        answer=200,
        repeat=_delete,
        succeeds=(200, 404),
        only=frozenset({"begin_delete", "finish_delete"}),
    ),
    "cleaning up an expired key": Scenario(
        function="CleanUpExpired",
        begin=lambda rig: _administered(rig).has_key().expires(),
        act=_clean_up,
        answer=200,
        repeat=_clean_up,
        succeeds=(200, 202),  # 202: what an earlier run began and did not end is settle_operations' to end
        only=frozenset({"begin_cleanup", "read_expired"}),
    ),
    "a rotation": Scenario(
        function="RotateApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_rotate,
        answer=200,
        repeat=_rotate,
        succeeds=(200,),
        is_there_after_repeating=True,
        secrets_left=(1,),
    ),
    "a rotation with a grace": Scenario(
        function="RotateApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_rotate_with_grace,
        answer=200,
        repeat=_rotate_with_grace,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({"finish_rotate"}),
        secrets_left=(1, 2),
    ),
    "a rotation without an answer": Scenario(
        function="RotateApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_rotate_unconfirmed,
        answer=503,
        repeat=_rotate,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({"release"}),
        secrets_left=(1,),
    ),
    "a rotation that LiteLLM refuses": Scenario(
        function="RotateApiKey",
        begin=lambda rig: _known(rig).has_key(),
        act=_rotate_refused,
        answer=400,
        repeat=_rotate,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({"finish_undo"}),
        secrets_left=(1,),
    ),
    "a resumed rotation that was made": Scenario(
        function="RotateApiKey",
        begin=lambda rig: _known(rig).has_unfinished_rotation("reset_after"),
        act=_rotate,
        answer=200,
        repeat=_rotate,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({INFO}),
        secrets_left=(1,),
    ),
    "a resumed rotation that was not made": Scenario(
        function="RotateApiKey",
        begin=lambda rig: _known(rig).has_unfinished_rotation("reset_before"),
        act=_rotate,
        answer=200,
        repeat=_rotate,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({GENERATE}),
        secrets_left=(1,),
    ),
    "a resumed rotation that differs": Scenario(
        function="RotateApiKey",
        begin=lambda rig: _known(rig).has_unfinished_rotation("reset_after").is_altered_in_gateway(),
        act=_rotate,
        answer=200,
        repeat=_rotate,
        succeeds=(200,),
        is_there_after_repeating=True,
        only=frozenset({"/key/update"}),
        secrets_left=(1,),
    ),
    "completing a rotation": Scenario(
        function="CompleteRotation",
        begin=lambda rig: _known(rig).has_grace(),
        act=_complete,
        answer=200,
        repeat=_complete,
        succeeds=(200, 202, 409),  # 409 when a lost answer had completed it
        only=frozenset({"begin_completion", DELETE}),
        secrets_left=(1, 2),
    ),
    "ending a grace": Scenario(
        function="SettleOperations",
        begin=lambda rig: _known(rig).has_ended_grace(),
        act=_settle,
        answer=None,
        only=frozenset({"begin_retirements", DELETE, "finish_retirement"}),
        secrets_left=(1,),
    ),
    "undoing a rotation": Scenario(
        function="SettleOperations",
        begin=lambda rig: _known(rig).has_unfinished_rotation("reset_after").waits_for(RESUME_SECONDS + DRAIN_SECONDS),
        act=_settle,
        answer=None,
        only=frozenset({DELETE, "finish_undo"}),
        secrets_left=(1,),
    ),
    "a delete in a grace": Scenario(
        function="DeleteApiKey",
        begin=lambda rig: _known(rig).has_grace(),
        act=_delete,
        answer=200,
        repeat=_delete,
        succeeds=(200, 404),
        is_there_after_repeating=False,
        only=frozenset({DELETE}),
        secrets_left=(0,),
    ),
    "following a row that vanished while it was rotated": Scenario(
        function="SettleOperations",
        begin=lambda rig: _known(rig).has_unfinished_rotation("reset_after").loses_row().waits_for(DRAIN_SECONDS),
        act=_settle,
        answer=None,
        only=frozenset({"finish_delete"}),
        secrets_left=(0,),
    ),
}
