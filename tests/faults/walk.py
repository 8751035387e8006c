"""`python -m tests.faults.walk --seed 7 --chapters 20`: people use the service while everything breaks around them.

A walk is a row of chapters. Each has people of its own, a random source made of the seed and its number, so that it can
be walked again alone (`--chapter`), and ends quiet: then the invariants are asserted, and the model beside them.
"""

import argparse
import os
import random
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx

from local.outside_litellm import litellm_of
from local.seed import subscribe
from tests.e2e.service import Person, Row
from tests.faults.invariants import secrets_written_down, violations
from tests.faults.matrix import FAULTS, Fault, Step, record_steps
from tests.faults.rig import (
    DRAIN_SECONDS,
    LEASE_SECONDS,
    MAX_ACTIVE_KEYS,
    RESUME_SECONDS,
    SETTLER,
    GatewayInjection,
    Injection,
    Rig,
    error_code,
    running_rig,
)
from tests.faults.scenarios import SCENARIOS, WEEK_SECONDS

STEPS_OF_A_CHAPTER = 50
PEOPLE = 4
MODELS = ("gpt-4o", "gpt-4o-mini")
# Thousands of answers never come here; a caller who gave up too soon does no harm.
BUDGET_SECONDS = 1.0
# Kept back from a drain: a request that LiteLLM got is carried out by then.
MARGIN_SECONDS = 60.0

type Fate = Literal["certain", "uncertain", "ended"]


@dataclass
class Key:
    """A key whose secret somebody was told. Certain: it has to work. Ended: it must not, once all is quiet."""

    person: Person
    secret: str
    """The one told last; another may be its after a rotation that was never answered: then it is no longer certain."""
    fate: Fate = "certain"
    is_secret_certain: bool = True
    was_rotated: bool = False


@dataclass
class Asked:
    """A create with an Idempotency-Key, and the key it was answered with, if it ever was."""

    person: Person
    body: Row
    key_id: str | None = None


@dataclass
class AskedRotation:
    """A rotation with an Idempotency-Key, and the secret it was answered with, if it ever was."""

    person: Person
    key_id: str
    grace_seconds: int
    secret: str | None = None


@dataclass
class Held:
    injection: Injection
    since: float


@dataclass
class Chapter:
    """One stretch of the walk, and what has to be true of its people."""

    rig: Rig
    seed: str
    steps_of: dict[str, list[Step]]
    operations: Counter[str]
    people: list[Person] = field(default_factory=list[Person])
    retired: list[Person] = field(default_factory=list[Person])
    keys: dict[str, Key] = field(default_factory=dict[str, Key])
    limits: dict[str, int] = field(default_factory=dict[str, int])
    """What the latest change of a key was answered 200 for."""
    asked: dict[str, Asked] = field(default_factory=dict[str, Asked])
    rotations: dict[str, AskedRotation] = field(default_factory=dict[str, AskedRotation])
    held: list[Held] = field(default_factory=list[Held])
    found: list[str] = field(default_factory=list[str])
    story: list[str] = field(default_factory=list[str])
    clock: float = 0.0
    litellm_is_down: bool = False

    def walk(self, steps: int) -> list[str]:
        """What is wrong, at any step or in the end."""
        self.people = [self.rig.newcomer(is_synced=number % 2 == 0) for number in range(PEOPLE)]
        for number in range(steps):
            self.step(random.Random(f"{self.seed}:{number}"))
        self.end()
        return self.found

    def step(self, chance: random.Random) -> None:
        if self.litellm_is_down and chance.random() < 0.5:
            self.start_litellm()
        action = chance.choices([action for action, _ in ACTIONS], [weight for _, weight in ACTIONS])[0]
        # A statement that arrives while its connection is cut never ends, as far as its proxy can tell.
        released = [] if action in (Chapter.restart_postgres, Chapter.cut_connections) else self.release_some(chance)
        self.story.append(action.__name__)
        struck = self.inject(chance, FUNCTIONS.get(action)) if chance.random() < 0.75 else []
        action(self, chance)
        self.rig.clear_faults()
        for kind, step, injection in struck:
            if injection.hits:
                self.rig.injected[kind, step] += 1
                self.story.append(f"    met {kind} at {step}")
                if injection.fault == "late":
                    self.held.append(Held(injection, since=self.clock))
        for one in released:
            assert one.injection.wait(), "what was under way never arrived"

    def end(self) -> None:
        self.start_litellm()
        for one in self.held:
            self.rig.held.append(one.injection)
        self.held.clear()
        self.rig.become_quiet()
        subjects = [person.subject for person in [*self.people, *self.retired]]
        self.found += violations(self.rig, subjects=subjects)
        self.rig.told.broken_words.clear()
        for key_id, key in self.keys.items():
            is_refused = self.rig.is_refused(key.secret)
            if key.fate == "certain" and key.is_secret_certain and is_refused is not False:
                self.found.append(f"model: {key_id} was answered 201, nobody ended it, and it does not work")
            told = self.rig.told.secrets_of(key_id)
            if key.fate == "ended" and not all(self.rig.is_refused(secret) for secret in told):
                self.found.append(f"model: {key_id} was ended and still works")
        for person in self.people:
            for row in self.rig.keys_of(person):
                wanted = self.limits.get(str(row["id"]), row["rpm_limit"])
                if row["rpm_limit"] != wanted:
                    self.found.append(f"model: {row['id']} was changed to {wanted} and is at {row['rpm_limit']}")

    # Callers.

    def create(self, chance: random.Random) -> None:
        person = self.someone(chance)
        if person is None:
            return
        idempotency_key = str(uuid.UUID(int=chance.getrandbits(128))) if chance.random() < 0.65 else None
        body = self.body(chance, person)
        if idempotency_key is not None:
            self.asked[idempotency_key] = Asked(person, body)
        self.hear_create(person, body, idempotency_key, self.rig.create(person, body, idempotency_key=idempotency_key))

    def repeat(self, chance: random.Random) -> None:
        """A create again, as its caller would after an error; now and then with another body."""
        asked = self.some_asked(chance)
        if asked is None:
            return
        idempotency_key, request = asked
        if chance.random() < 0.1:
            answer = self.rig.create(
                request.person, request.body | {"name": "other"}, idempotency_key=idempotency_key, is_alone=False
            )
            if answer.status_code == 201 and request.key_id is not None:
                self.found.append(f"model: {idempotency_key} with another body was answered 201")
            # An undone or failed one starts anew, with the body that came last.
            self.hear_create(request.person, request.body | {"name": "other"}, idempotency_key, answer)
            if answer.status_code != 422:
                self.asked.pop(idempotency_key)
            return
        self.hear_create(
            request.person,
            request.body,
            idempotency_key,
            self.rig.create(request.person, request.body, idempotency_key=idempotency_key),
        )

    def crowd(self, chance: random.Random) -> None:
        """The same create several times at once."""
        person = self.someone(chance)
        if person is None:
            return
        body, idempotency_key = self.body(chance, person), str(uuid.UUID(int=chance.getrandbits(128)))
        self.asked[idempotency_key] = Asked(person, body)
        answers = self.together(
            *[lambda: self.rig.create(person, body, idempotency_key=idempotency_key)] * chance.randint(2, 5)
        )
        # One that was turned away may have been so before another was answered.
        for answer in sorted(answers, key=lambda answer: answer.status_code, reverse=True):
            self.hear_create(person, body, idempotency_key, answer)

    def delete(self, chance: random.Random) -> None:
        target = self.some_key(chance)
        if target is None:
            return
        person, key_id = target
        if chance.random() < 0.1:
            stranger = chance.choice(self.people)
            if stranger is not person and self.rig.delete(stranger, key_id).status_code in (200, 202):
                self.found.append(f"model: a stranger deleted {key_id}")
            return
        self.hear_delete(key_id, self.rig.delete(person, key_id))

    def update(self, chance: random.Random) -> None:
        target = self.some_key(chance)
        if target is None:
            return
        person, key_id = target
        limit = chance.randint(1, 999)
        self.hear_update(key_id, limit, self.rig.update(person, key_id, self.changes(chance, limit)))

    def update_at_once(self, chance: random.Random) -> None:
        """Two changes of one key, and now and then its delete."""
        target = self.some_key(chance)
        if target is None:
            return
        person, key_id = target
        limits = [chance.randint(1, 999), chance.randint(1, 999)]
        actions: list[Callable[[], object]] = [
            lambda limit=limit: self.rig.update(person, key_id, self.changes(chance, limit)) for limit in limits
        ]
        if chance.random() < 0.3:
            self.doubt(key_id)
            actions.append(lambda: self.rig.delete(person, key_id))
        for limit, answer in zip([*limits, 0], self.together(*actions), strict=False):
            if not isinstance(answer, httpx.Response):
                continue
            if limit:
                self.hear_update(key_id, limit, answer)
            else:
                self.hear_delete(key_id, answer)
        # Which of two came last, nobody was told.
        self.limits.pop(key_id, None)

    def delete_at_once(self, chance: random.Random) -> None:
        """Several deletes of one key, and a settler."""
        target = self.some_key(chance)
        if target is None:
            return
        person, key_id = target
        self.doubt(key_id)
        deletes: list[Callable[[], object]] = [lambda: self.rig.delete(person, key_id)] * chance.randint(2, 4)
        answers = self.together(*deletes, self.rig.try_to_settle)
        for answer in answers:
            if isinstance(answer, httpx.Response):
                self.hear_delete(key_id, answer)

    def create_and_delete_at_once(self, chance: random.Random) -> None:
        """Resuming a create against deleting what there is of it."""
        asked = self.some_asked(chance)
        if asked is None:
            return
        idempotency_key, request = asked
        rows = self.rig.keys_of(request.person)
        if not rows:
            return
        key_id = str(chance.choice(rows)["id"])
        self.doubt(key_id)
        created, deleted = self.together(
            lambda: self.rig.create(request.person, request.body, idempotency_key=idempotency_key, is_alone=False),
            lambda: self.rig.delete(request.person, key_id),
        )
        if created.status_code == 201 and created.json()["id"] == key_id:
            self.keys.setdefault(key_id, Key(request.person, created.json()["key"])).fate = "uncertain"
        else:
            self.hear_create(request.person, request.body, idempotency_key, created)
        self.hear_delete(key_id, deleted)

    def rotate(self, chance: random.Random) -> None:
        target = self.some_key(chance)
        if target is None:
            return
        person, key_id = target
        grace_seconds = chance.choice([0, 0, 600, WEEK_SECONDS])
        idempotency_key = str(uuid.UUID(int=chance.getrandbits(128))) if chance.random() < 0.65 else None
        if idempotency_key is not None:
            self.rotations[idempotency_key] = AskedRotation(person, key_id, grace_seconds)
        answer = self.rig.rotate(person, key_id, grace_seconds=grace_seconds, idempotency_key=idempotency_key)
        self.hear_rotate(person, key_id, idempotency_key, answer)

    def rotate_again(self, chance: random.Random) -> None:
        """As its caller would after an error."""
        recent = list(self.rotations.items())[-6:]
        if not recent:
            return
        idempotency_key, asked = chance.choice(recent)
        answer = self.rig.rotate(
            asked.person, asked.key_id, grace_seconds=asked.grace_seconds, idempotency_key=idempotency_key
        )
        self.hear_rotate(asked.person, asked.key_id, idempotency_key, answer)

    def complete(self, chance: random.Random) -> None:
        target = self.some_key(chance)
        if target is None:
            return
        person, key_id = target
        answer = self.rig.complete(person, key_id)
        self.operations["complete"] += 1
        self.story.append(f"    complete {key_id} -> {answer.status_code}")
        if answer.status_code == 404:
            self.hear_not_found(key_id)
        elif answer.status_code not in (200, 202, 409):
            self.hear_failure("complete", answer)

    def rotate_and_delete_at_once(self, chance: random.Random) -> None:
        """And another rotation, and a settler."""
        target = self.some_key(chance)
        if target is None:
            return
        person, key_id = target
        self.doubt(key_id)
        rotations: list[Callable[[], httpx.Response | Row | None]] = [
            lambda: self.rig.rotate(person, key_id, is_alone=False)
        ]
        *rotated, deleted, _ = self.together(
            *rotations * 2, lambda: self.rig.delete(person, key_id), self.rig.try_to_settle
        )
        for answer in rotated:
            if isinstance(answer, httpx.Response):
                self.operations["rotate"] += 1
                # 410: one that began before the delete finds that LiteLLM has deleted the key.
                if answer.status_code not in (200, 400, 404, 409, 410):
                    self.hear_failure("rotate", answer)
        if key_id in self.keys:
            self.keys[key_id].was_rotated, self.keys[key_id].is_secret_certain = True, False
        if isinstance(deleted, httpx.Response):
            self.hear_delete(key_id, deleted)

    def look(self, chance: random.Random) -> None:
        person = self.someone(chance)
        if person is None:
            return
        answer = person.get("limit=100")
        self.operations["list"] += 1
        if answer.status_code != 200:
            self.hear_failure("list", answer)
            return
        statuses = {key["id"]: key["status"] for key in answer.json()["data"]}
        for key_id, key in self.keys.items():
            if key.person is person and key.fate == "certain" and statuses.get(key_id) != "active":
                self.found.append(f"model: {key_id} is listed as {statuses.get(key_id)}")
            if key_id in self.rig.told.deleted and key_id in statuses:
                self.found.append(f"model: {key_id} is listed after its delete was answered 200")

    # The schedule and time.

    def settle(self, _chance: random.Random) -> None:
        self.operations["settle"] += 1
        self.rig.try_to_settle()

    def settle_twice_at_once(self, _chance: random.Random) -> None:
        self.operations["settle"] += 2
        self.together(self.rig.try_to_settle, self.rig.try_to_settle)

    def wait(self, chance: random.Random) -> None:
        seconds = chance.choice([5, LEASE_SECONDS, LEASE_SECONDS, RESUME_SECONDS, DRAIN_SECONDS])
        # No request is under way for longer than a drain.
        for one in [one for one in self.held if self.clock + seconds - one.since > DRAIN_SECONDS - MARGIN_SECONDS]:
            self.arrive(one)
        self.rig.pass_time(seconds)
        self.clock += seconds

    # Beside the service.

    def expire(self, chance: random.Random) -> None:
        target = self.some_key(chance)
        if target is not None:
            self.rig.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(key_id)s", key_id=target[1])
            self.end_key(target[1])

    def remove_row(self, chance: random.Random) -> None:
        target = self.some_key(chance)
        if target is not None:
            self.rig.rows("DELETE FROM api_keys WHERE id = %(key_id)s", key_id=target[1])
            self.end_key(target[1])

    def remove_subscription(self, chance: random.Random) -> None:
        """With the keys that were made by it; the model can be had again at once."""
        person = self.someone(chance)
        if person is None:
            return
        user_id, model = self.rig.user_ids[person.subject], chance.choice(MODELS)
        cascaded = self.rig.rows(
            "SELECT k.id FROM api_keys AS k JOIN subscriptions AS s ON s.id = k.subscription_id"
            " WHERE s.user_id = %(user_id)s AND s.model_id = %(model)s",
            user_id=user_id,
            model=model,
        )
        self.rig.rows(
            "DELETE FROM subscriptions WHERE user_id = %(user_id)s AND model_id = %(model)s",
            user_id=user_id,
            model=model,
        )
        for row in cascaded:
            self.end_key(str(row["id"]))
        subscribe(self.rig.stack.admin_dsn, subject=person.subject, models=[model])

    def remove_user(self, chance: random.Random) -> None:
        """Somebody leaves, and all they had with them. LiteMaaS keeps their audit records without a user."""
        if len(self.people) < 3:
            return
        person = chance.choice(self.people)
        user_id = self.rig.user_ids[person.subject]
        self.people.remove(person)
        self.retired.append(person)
        for row in self.rig.keys_of(person):
            self.end_key(str(row["id"]))
        self.rig.rows("UPDATE audit_logs SET user_id = NULL WHERE user_id = %(user_id)s", user_id=user_id)
        self.rig.rows("DELETE FROM users WHERE id = %(user_id)s", user_id=user_id)
        self.asked = {name: asked for name, asked in self.asked.items() if asked.person is not person}
        self.rotations = {name: asked for name, asked in self.rotations.items() if asked.person is not person}

    # The machines.

    def restart_postgres(self, chance: random.Random) -> None:
        for one in [one for one in self.held if not isinstance(one.injection, GatewayInjection)]:
            self.arrive(one)
        self.rig.forget_connection()
        how = chance.choice(["fast", "immediate", "SIGKILL"])
        self.rig.injected[f"PostgreSQL restart, {how}", "*"] += 1
        if how == "SIGKILL":
            self.rig.stack.database.kill()
            self.rig.stack.database.start()
        else:
            self.rig.stack.database.restart("fast" if how == "fast" else "immediate")

    def cut_connections(self, _chance: random.Random) -> None:
        for one in [one for one in self.held if not isinstance(one.injection, GatewayInjection)]:
            self.arrive(one)
        self.rig.injected["PostgreSQL ends all connections", "*"] += 1
        self.rig.database_faults.cut_all()

    def stop_litellm(self, chance: random.Random) -> None:
        """Until it is started again, in a step to come."""
        process = self.rig.stack.litellm
        if process is None or self.litellm_is_down:
            return
        self.litellm_is_down = True
        how = chance.choice(["stopped", "SIGKILL"])
        self.rig.injected[f"LiteLLM {how}", "*"] += 1
        if how == "stopped":
            process.stop()
        else:
            process.kill()

    def start_litellm(self) -> None:
        if self.litellm_is_down and self.rig.stack.litellm is not None:
            self.rig.stack.litellm.start()
        self.litellm_is_down = False

    def kill_idle_workers(self, chance: random.Random) -> None:
        function = chance.choice(["CreateApiKey", "UpdateApiKey", "RotateApiKey", "DeleteApiKey", SETTLER])
        self.rig.injected["SIGKILL between requests", function] += 1
        self.rig.killer_of(function)()

    # What the model makes of an answer.

    def hear_create(self, person: Person, body: Row, idempotency_key: str | None, answer: httpx.Response) -> None:
        self.operations["create"] += 1
        asked = self.asked.get(idempotency_key) if idempotency_key else None
        known = self.keys.get(asked.key_id) if asked and asked.key_id else None
        self.story.append(f"    {person.subject} create {idempotency_key} -> {answer.status_code} {error_code(answer)}")
        match answer.status_code:
            case 201:
                key_id, secret = answer.json()["id"], answer.json()["key"]
                if known is not None and (key_id, secret) != (asked and asked.key_id, known.secret):
                    self.found.append(f"model: {idempotency_key} was answered with another key")
                if known is not None and known.fate == "ended" and key_id in self.rig.told.deleted:
                    self.found.append(f"model: {idempotency_key} was answered with a key that was deleted")
                if known is None and key_id not in self.keys:
                    self.keys[key_id] = Key(person, secret)
                if asked is not None:
                    asked.key_id = key_id
            case 400 if error_code(answer) == "VALIDATION_ERROR":
                is_at_limit = len(self.rig.keys_of(person)) >= MAX_ACTIVE_KEYS
                field_named = answer.json()["error"]["details"].get("field")
                if known is not None and known.fate == "certain":
                    self.found.append(f"model: {idempotency_key} was answered 201 before, and now 400")
                if field_named == "activeKeysCount" and not is_at_limit:
                    self.found.append(f"model: {person.subject} was told of a limit that is not reached")
            case 404 if "subscriptionId" in body and known is None:
                pass
            case 409 | 410 | 422 if idempotency_key is not None:
                is_gone = answer.status_code == 410 and known is not None and known.was_rotated
                if known is not None and known.fate == "certain" and answer.status_code != 422 and not is_gone:
                    self.found.append(f"model: {idempotency_key}, whose key lives, was answered {answer.status_code}")
            case 409:
                pass
            case _:
                self.hear_failure("create", answer)

    def hear_update(self, key_id: str, limit: int, answer: httpx.Response) -> None:
        self.operations["update"] += 1
        self.story.append(f"    update {key_id} to {limit} -> {answer.status_code} {error_code(answer)}")
        match answer.status_code:
            case 200:
                self.limits[key_id] = limit
            case 400 | 404 | 409 if error_code(answer) != "OPERATION_SUPERSEDED":
                pass
            case 409:
                self.limits.pop(key_id, None)
            case _:
                self.limits.pop(key_id, None)
                self.hear_failure("update", answer)

    def hear_delete(self, key_id: str, answer: httpx.Response) -> None:
        self.operations["delete"] += 1
        self.story.append(f"    delete {key_id} -> {answer.status_code}")
        match answer.status_code:
            case 200 | 202:
                self.end_key(key_id)
            case 404:
                self.hear_not_found(key_id)
            case _:
                # The answer was lost, or the database: it may have begun.
                self.doubt(key_id)
                self.hear_failure("delete", answer)

    def hear_rotate(self, person: Person, key_id: str, idempotency_key: str | None, answer: httpx.Response) -> None:
        self.operations["rotate"] += 1
        asked = self.rotations.get(idempotency_key) if idempotency_key else None
        key = self.keys.get(key_id)
        is_certain = key is not None and key.fate == "certain"
        self.story.append(
            f"    {person.subject} rotate {key_id} {idempotency_key} -> {answer.status_code} {error_code(answer)}"
        )
        match answer.status_code:
            case 200:
                secret = answer.json()["key"]
                if asked is not None and asked.secret not in (None, secret):
                    self.found.append(f"model: {idempotency_key} was answered with another secret")
                if asked is not None:
                    asked.secret = secret
                if key_id in self.rig.told.deleted:
                    self.found.append(f"model: {key_id} was deleted, its rotation was answered 200")
                key = self.keys.setdefault(key_id, Key(person, secret))
                key.secret, key.is_secret_certain, key.was_rotated = secret, True, True
            case 404:
                self.hear_not_found(key_id)
            case 400:
                if is_certain:
                    self.found.append(f"model: {key_id} lives, its rotation was answered 400")
            case 410 if idempotency_key is not None:
                pass
            case 409:
                pass
            case _:
                # The answer was lost, or LiteLLM did not answer: the secret may be another one.
                if key is not None:
                    key.is_secret_certain, key.was_rotated = False, True
                self.hear_failure("rotate", answer)

    def hear_not_found(self, key_id: str) -> None:
        key = self.keys.get(key_id)
        if key is not None and key.fate == "certain":
            self.found.append(f"model: {key_id} lives, its owner was answered 404")

    def hear_failure(self, what: str, answer: httpx.Response) -> None:
        """503 is honest, 500 is a function that died; our own 500 is a mistake of ours."""
        is_dead = answer.status_code == 500 and error_code(answer) is None
        if answer.status_code != 503 and not is_dead:
            self.found.append(f"{what} was answered {answer.status_code}: {answer.text[:300]}")
        if answer.status_code == 503 and error_code(answer) != "SERVICE_UNAVAILABLE":
            self.found.append(f"{what} was answered by the gateway: {answer.text[:300]}")

    def end_key(self, key_id: str) -> None:
        if key_id in self.keys:
            self.keys[key_id].fate = "ended"

    def doubt(self, key_id: str) -> None:
        if key_id in self.keys and self.keys[key_id].fate == "certain":
            self.keys[key_id].fate = "uncertain"

    # Choices.

    def someone(self, chance: random.Random) -> Person | None:
        return chance.choice(self.people) if self.people else None

    def some_key(self, chance: random.Random) -> tuple[Person, str] | None:
        """A key somebody has, or had, or is about to have."""
        person = self.someone(chance)
        if person is None:
            return None
        key_ids = [str(row["id"]) for row in self.rig.keys_of(person)]
        key_ids += [key_id for key_id, key in self.keys.items() if key.person is person and key_id not in key_ids]
        return (person, chance.choice(key_ids)) if key_ids else None

    def some_asked(self, chance: random.Random) -> tuple[str, Asked] | None:
        """The latest are repeated most."""
        recent = list(self.asked.items())[-8:]
        return chance.choice(recent) if recent else None

    @staticmethod
    def changes(chance: random.Random, limit: int) -> Row:
        changes: Row = {"rpmLimit": limit}
        if chance.random() < 0.3:
            changes["modelIds"] = [chance.choice(MODELS)]
        if chance.random() < 0.3:
            changes["maxBudget"] = chance.choice([None, 5, 7.25])
        if chance.random() < 0.2:
            changes["metadata"] = {"walk": limit}
        return changes

    def body(self, chance: random.Random, person: Person) -> Row:
        if chance.random() < 0.15:
            [subscription] = self.rig.rows(
                "SELECT id FROM subscriptions WHERE user_id = %(user_id)s AND model_id = 'gpt-4o'",
                user_id=self.rig.user_ids[person.subject],
            )
            return {"subscriptionId": str(subscription["id"])}
        body: Row = {"modelIds": chance.sample(MODELS, chance.randint(1, 2)), "name": f"walk {chance.randint(1, 99)}"}
        if chance.random() < 0.5:
            body["maxBudget"] = chance.randint(1, 900) / 4
        if chance.random() < 0.3:
            body["tpmLimit"] = chance.randint(1, 9999)
        if chance.random() < 0.3:
            body["expiresAt"] = f"20{chance.randint(27, 33)}-0{chance.randint(1, 9)}-11T11:11:11Z"
        return body

    def inject(self, chance: random.Random, functions: Sequence[str] | None) -> list[tuple[str, str, Injection]]:
        """One or two faults at steps the action takes; not each of them is met."""
        struck: list[tuple[str, str, Injection]] = []
        for function in functions or ():
            for _ in range(chance.choice([1, 2, 2])):
                steps = self.steps_of[function]
                step = chance.choices(steps, [4 if step.name in EVERY_TIME else 1 for step in steps])[0]
                kind = chance.choices(
                    list(FAULTS[step.system]),
                    [_weight(fault) for fault in FAULTS[step.system].values()],
                )[0]
                fault = FAULTS[step.system][kind]
                kill: Callable[[], object] = self.rig.killer_of(function) if fault.kills else lambda: None
                injection = (
                    self.rig.database_faults.inject(fault.kind, step.name, times=fault.times, call=kill)
                    if step.system == "PostgreSQL"
                    else self.rig.gateway_faults.inject(step.name, fault.kind, call=kill)
                )
                struck.append((f"{step.system} {kind}", step.name, injection))
        return struck

    def release_some(self, chance: random.Random) -> list[Held]:
        """Sets some of what is under way free: it arrives while the next action goes on."""
        released = [one for one in self.held if chance.random() < 0.25]
        for one in released:
            self.held.remove(one)
            one.injection.release()
            self.story.append(f"    {one.injection.fault} goes on")
        return released

    def arrive(self, one: Held) -> None:
        self.held.remove(one)
        one.injection.release()
        assert one.injection.wait(), "what was under way never arrived"

    @staticmethod
    def together[T](*actions: Callable[[], T]) -> list[T]:
        with ThreadPoolExecutor(max_workers=len(actions)) as pool:
            return [future.result() for future in [pool.submit(action) for action in actions]]


type Action = Callable[[Chapter, random.Random], None]

ACTIONS: list[tuple[Action, float]] = [
    (Chapter.create, 24),
    (Chapter.repeat, 16),
    (Chapter.delete, 16),
    (Chapter.update, 10),
    (Chapter.update_at_once, 3),
    (Chapter.crowd, 4),
    (Chapter.delete_at_once, 4),
    (Chapter.create_and_delete_at_once, 4),
    (Chapter.rotate, 10),
    (Chapter.rotate_again, 6),
    (Chapter.complete, 3),
    (Chapter.rotate_and_delete_at_once, 2),
    (Chapter.look, 6),
    (Chapter.settle, 8),
    (Chapter.settle_twice_at_once, 2),
    (Chapter.wait, 8),
    (Chapter.expire, 2),
    (Chapter.remove_row, 2),
    (Chapter.remove_subscription, 1),
    (Chapter.remove_user, 0.3),
    (Chapter.restart_postgres, 0.5),
    (Chapter.cut_connections, 1),
    (Chapter.stop_litellm, 1),
    (Chapter.kill_idle_workers, 1),
]
FUNCTIONS: dict[Action, Sequence[str]] = {
    Chapter.create: ("CreateApiKey",),
    Chapter.repeat: ("CreateApiKey",),
    Chapter.crowd: ("CreateApiKey",),
    Chapter.update: ("UpdateApiKey",),
    Chapter.update_at_once: ("UpdateApiKey",),
    Chapter.delete: ("DeleteApiKey",),
    Chapter.delete_at_once: ("DeleteApiKey", SETTLER),
    Chapter.create_and_delete_at_once: ("CreateApiKey", "DeleteApiKey"),
    Chapter.rotate: ("RotateApiKey",),
    Chapter.rotate_again: ("RotateApiKey",),
    Chapter.complete: ("CompleteRotation",),
    Chapter.rotate_and_delete_at_once: ("RotateApiKey", "DeleteApiKey"),
    Chapter.settle: (SETTLER,),
    Chapter.settle_twice_at_once: (SETTLER,),
}


# Most requests take these steps; the others only after an earlier fault.
EVERY_TIME = frozenset(
    {
        *("begin_create", "finish_create", "/key/generate"),
        *("begin_update", "show_key", "/key/info", "/key/update"),
        *("begin_delete", "finish_delete", "/key/delete", "claim_due"),
        *("begin_rotate", "finish_rotate", "finish_retirement", "begin_completion"),
    }
)


@dataclass(kw_only=True)
class Walked:
    steps: int = 0
    actions: list[str] = field(default_factory=list[str])
    """What was done, in its order."""
    operations: Counter[str] = field(default_factory=Counter[str])
    found: list[str] = field(default_factory=list[str])


def _weight(fault: Fault) -> float:
    """A killed function costs a second to start again, an answer that never comes as long as one is waited for."""
    return 0.4 if fault.kills else 1.0 if fault.kind == "late" else 4.0


def steps_by_function(rig: Rig) -> dict[str, list[Step]]:
    """All that creating, rotating, deleting and settling do, as recorded from them."""
    steps: dict[str, dict[tuple[str, str], Step]] = {}
    for scenario in SCENARIOS.values():
        for step in record_steps(rig, scenario):
            steps.setdefault(scenario.function, {})[step.system, step.name] = step
    return {function: list(found.values()) for function, found in steps.items()}


def walk(
    rig: Rig,
    *,
    seed: int,
    chapters: Iterable[int],
    steps: int = STEPS_OF_A_CHAPTER,
    operations: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Walked:
    """Until so many operations were asked for, when a number is given. Stops after the first chapter in which something
    is wrong: `found` then says what, how to walk it again, and what happened in it."""
    walked = Walked()
    steps_of = steps_by_function(rig)
    for number in chapters:
        chapter = Chapter(rig, f"{seed}:{number}", steps_of, walked.operations)
        found = chapter.walk(steps)
        walked.steps += steps
        walked.actions += [line for line in chapter.story if not line.startswith(" ")]
        report(
            f"chapter {number}: {walked.operations.total()} operations, {rig.injected.total()} faults,"
            f" {len(found)} violations"
        )
        if found:
            again = f"python -m tests.faults.walk --seed {seed} --chapter {number} --steps {steps}"
            walked.found = [*found, f"again: {again}", *chapter.story]
            break
        if operations is not None and walked.operations.total() >= operations:
            break
    return walked


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.walk", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chapters", type=int, default=20)
    parser.add_argument("--chapter", type=int, help="only this one")
    parser.add_argument("--steps", type=int, default=STEPS_OF_A_CHAPTER, help="of each chapter")
    arguments = parser.parse_args()
    numbers = range(arguments.chapters) if arguments.chapter is None else [arguments.chapter]
    outside = litellm_of(os.environ)
    with (
        tempfile.TemporaryDirectory(prefix="ks-walk-") as directory,
        running_rig(
            Path(directory),
            litellm=outside and (outside.url, outside.master_key),
            gateway_budget_seconds=BUDGET_SECONDS,
        ) as rig,
    ):
        walked = walk(rig, seed=arguments.seed, chapters=numbers, steps=arguments.steps, report=_say)
        found = walked.found or secrets_written_down(rig)
        for line in found:
            _say(line)
    sys.exit(bool(found))


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a program that reports to a person


if __name__ == "__main__":
    main()
