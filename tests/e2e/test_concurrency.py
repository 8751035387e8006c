"""Many requests at once: limits hold, and nothing is done or audited twice."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.service import Person, Service, hash_of, violations_of


def test_of_thirty_creates_at_once_exactly_the_limit_succeed(service: Service, alice: Person):
    with ThreadPoolExecutor(30) as threads:
        answers = list(threads.map(lambda _: alice.create({"modelIds": ["gpt-4o"]}), range(30)))

    created = [answer.json() for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    audited = Counter((record["action"], record["success"]) for record in alice.audit())
    assert len(created) == 10
    assert [violations_of(answer) for answer in refused] == [[("activeKeysCount", "keyLimit")]] * 20
    assert refused[0].json()["error"]["message"] == "Maximum 10 active API keys allowed per user"
    assert sorted(alice.gateway_keys()) == sorted(hash_of(key["key"]) for key in created)
    assert [row["is_active"] for row in alice.key_rows()] == [True] * 10
    assert audited == {("API_KEY_CREATE", True): 10, ("API_KEY_CREATE", False): 20}


def test_creates_that_waited_for_each_other_count_what_the_others_made(service: Service, alice: Person):
    for _ in range(9):
        alice.has_key()

    with ThreadPoolExecutor(4) as threads:
        # Cold starts first: nobody shall wait for the lock until it times out.
        list(threads.map(alice.create, [{"modelIds": ["unknown"]}] * 8))
        with service.transaction() as other:
            other.execute("SELECT id FROM users WHERE id = %(id)s FOR UPDATE", {"id": alice.user_id})
            creates = [threads.submit(alice.create, {"modelIds": ["gpt-4o"]}) for _ in range(4)]
            service.wait_until_blocked(statements=4)
        statuses = sorted(create.result().status_code for create in creates)

    assert statuses == [201, 400, 400, 400]
    assert len(alice.key_rows()) == len(alice.gateway_keys()) == 10


def test_expired_and_revoked_keys_make_room_under_the_limit(service: Service, alice: Person):
    keys = [alice.has_key() for _ in range(10)]
    at_the_limit = alice.create({"modelIds": ["gpt-4o"]})
    service.rows("UPDATE api_keys SET expires_at = now() WHERE id = %(id)s", id=keys[0]["id"])
    service.rows("UPDATE api_keys SET revoked_at = now() WHERE id = %(id)s", id=keys[1]["id"])
    alice.delete(keys[2]["id"])

    answers = [alice.create({"modelIds": ["gpt-4o"]}).status_code for _ in range(4)]

    assert at_the_limit.status_code == 400
    assert answers == [201, 201, 201, 400]


def test_of_two_deletes_at_once_one_does_it_and_the_other_says_so(service: Service, alice: Person):
    keys = [alice.has_key() for _ in range(5)]

    with ThreadPoolExecutor(2) as threads:
        pairs = [list(threads.map(alice.delete, [key["id"]] * 2)) for key in keys]

    for key, pair in zip(keys, pairs, strict=True):
        first, second = sorted(answer.status_code for answer in pair)
        assert (first, second) in {(200, 202), (200, 404)}
        assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]
        assert service.key_row(key["id"]) is None
    assert alice.gateway_keys() == []


def test_twenty_deletes_of_one_key_at_once_leave_one_audit_record(service: Service, alice: Person):
    key = alice.has_key()

    with ThreadPoolExecutor(20) as threads:
        statuses = Counter(answer.status_code for answer in threads.map(alice.delete, [key["id"]] * 20))

    assert statuses[200] == 1
    assert statuses.keys() <= {200, 202, 404}
    assert service.audit_of_key(key["id"]) == [("API_KEY_CREATE", True), ("API_KEY_DELETE", True)]


def test_a_caller_seen_for_the_first_time_by_many_requests_at_once_is_one_user(service: Service):
    newcomer = service.person(is_known=False)

    with ThreadPoolExecutor(8) as threads:
        lists = [threads.submit(newcomer.get) for _ in range(4)]
        creates = [threads.submit(newcomer.create, {"modelIds": ["gpt-4o"]}) for _ in range(4)]

    assert [answer.result().status_code for answer in lists] == [200] * 4
    assert [answer.result().status_code for answer in creates] == [400] * 4
    assert newcomer.user is not None
