"""What must stand nowhere: looked for when all other end-to-end tests have left their traces (see conftest.py)."""

from collections.abc import Iterable, Mapping
from uuid import uuid4

import pytest

from tests.e2e.service import AUDIT, Ledger, Person, Service, Text


def findings(texts: Iterable[Text], secrets: Mapping[str, str]) -> list[str]:
    """Where something stands that must not, and what it is; never the secret itself."""
    return [f"{what} in {text.where}" for text in texts for secret, what in secrets.items() if secret in text.content]


@pytest.fixture
def all_secrets(service: Service, ledger: Ledger) -> dict[str, str]:
    """Every key issued, every token used, and what the stacks themselves hold. A run of this file alone has some too."""
    person = service.person()
    person.delete(person.has_key(name="canary")["id"])
    person.has_key(name="canary that lives")
    person.create_once(f"canary-{uuid4()}")
    person.create({"modelIds": ["unknown"]})
    return ledger.secrets | {secret: what for each in ledger.services for secret, what in each.own_secrets().items()}


@pytest.fixture
def all_texts(ledger: Ledger, all_secrets: dict[str, str]) -> list[Text]:
    """Of every stack: a dump of its database and all its logs."""
    assert all_secrets
    return [*ledger.texts, *(text for service in ledger.services for text in service.texts())]


def test_no_secret_is_kept_in_a_database_or_a_log(all_texts: list[Text], all_secrets: dict[str, str]):
    assert set(all_secrets.values()) >= {
        "an issued key",
        "a bearer token",
        "an Idempotency-Key",
        "LiteLLM's master key",
        "the app role's password",
        "the migrator role's password",
    }
    assert findings(all_texts, all_secrets) == []


def test_no_answer_but_a_creates_own_shows_a_secret(ledger: Ledger, all_secrets: dict[str, str]):
    assert findings(ledger.answers, all_secrets) == []


def test_no_email_is_logged_by_the_functions_or_answered_but_to_an_auditor(ledger: Ledger, all_texts: list[Text]):
    logs = [text for text in all_texts if text.where.endswith("functions.log")]
    answers = [answer for answer in ledger.answers if AUDIT not in answer.where]
    emails = dict.fromkeys(ledger.emails, "an email")

    assert logs != []
    assert emails != {}
    assert findings([*logs, *answers], emails) == []


def test_no_request_failed_unexpectedly(all_texts: list[Text]):
    logs = [text for text in all_texts if text.where.endswith("functions.log")]

    assert logs != []
    assert findings(logs, {"failed unexpectedly": "a failure of our own", '"status":500': "a 500"}) == []


@pytest.mark.parametrize("place", ["dump of litemaas", "functions.log"])
def test_the_search_finds_a_secret_where_it_looks(service: Service, alice: Person, place: str):
    secret = alice.has_key()["key"]
    if place == "functions.log":
        with service.stack.log_path.open("a") as log:
            log.write(f'{{"message": "made {secret}"}}\n')
    else:
        service.rows(
            "UPDATE api_keys SET sync_error = %(secret)s WHERE user_id = %(u)s", secret=secret, u=alice.user_id
        )

    found = findings(service.texts(), {secret: "an issued key"})

    service.rows("UPDATE api_keys SET sync_error = NULL WHERE user_id = %(u)s", u=alice.user_id)
    log = service.stack.log_path.read_text()
    service.stack.log_path.write_text(log.replace(secret, ""))
    assert len(found) == 1
    assert found[0].startswith("an issued key in ")
    assert found[0].endswith(place)


def test_the_search_finds_a_secret_that_an_answer_shows_twice(service: Service, alice: Person):
    answer = alice.create({"modelIds": ["gpt-4o"]})
    shown_twice = answer.text.replace('"name":""', f'"name":"{answer.json()["key"]}"')
    ledger = Ledger()

    ledger.keep(type(answer)(201, text=shown_twice, request=answer.request))

    assert len(findings(ledger.answers, ledger.secrets)) == 1
