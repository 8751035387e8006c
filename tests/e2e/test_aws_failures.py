"""KMS or Secrets Manager refuse, or are not there."""

from tests.e2e.service import Person, Service, assert_asks_to_retry


def test_nothing_is_written_when_kms_refuses_to_derive_a_secret(service: Service):
    stranger = service.person(is_known=False)
    service.stack.aws.disable_mac_key(service.stack.mac_key_arn)
    try:
        answer = stranger.create({"modelIds": ["gpt-4o"]})
    finally:
        service.stack.aws.enable_mac_key(service.stack.mac_key_arn)

    assert_asks_to_retry(answer)
    assert service.stack.mac_key_arn not in answer.text
    assert stranger.user is None


def test_the_next_create_works_when_kms_is_back_and_all_else_never_needed_it(service: Service, alice: Person):
    key = alice.has_key()
    service.stack.aws.disable_mac_key(service.stack.mac_key_arn)
    try:
        refused, listed, deleted = alice.create({"modelIds": ["gpt-4o"]}), alice.get(), alice.delete(key["id"])
    finally:
        service.stack.aws.enable_mac_key(service.stack.mac_key_arn)
    created = alice.create({"modelIds": ["gpt-4o"]})

    assert_asks_to_retry(refused)
    assert listed.status_code == 200
    assert deleted.status_code == 200
    assert created.status_code == 201
    assert [record["action"] for record in alice.audit()] == ["API_KEY_CREATE", "API_KEY_DELETE", "API_KEY_CREATE"]


def test_a_create_without_kms_in_reach_asks_to_retry(service: Service, alice: Person):
    alice.has_key()
    service.stack.aws.disconnect()
    try:
        answer = alice.create({"modelIds": ["gpt-4o"]})
    finally:
        service.stack.aws.reconnect()

    assert_asks_to_retry(answer)
    assert len(alice.key_rows()) == 1
    assert alice.has_key()["isActive"] is True


def test_a_cold_start_without_secrets_manager_asks_to_retry_and_recovers(service: Service, alice: Person):
    service.stack.retire_workers()
    service.stack.aws.disconnect()
    try:
        refused = alice.get()
    finally:
        service.stack.aws.reconnect()

    assert_asks_to_retry(refused)
    assert alice.get().status_code == 200
