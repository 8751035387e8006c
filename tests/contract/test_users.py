"""POST /user/new and GET /user/info."""

from tests.contract.gateway import Gateway, error_of, invalid_fields, unique


def test_a_user_is_made_without_a_key(gateway: Gateway):
    user_id = unique("user")
    body = {"user_id": user_id, "auto_create_key": False, "user_role": "internal_user", "max_budget": 5, "tpm_limit": 7}

    answer = gateway.post("/user/new", body)

    assert answer.status_code == 200
    assert (answer.json()["user_id"], answer.json()["key"]) == (user_id, "")
    assert gateway.get("/key/list", {"user_id": user_id}).json()["total_count"] == 0


def test_unless_told_otherwise_a_user_comes_with_a_key(gateway: Gateway):
    user_id = unique("user")

    key = gateway.post("/user/new", {"user_id": user_id}).json()["key"]

    assert key.startswith("sk-")
    assert gateway.info(key)["user_id"] == user_id
    gateway.delete(key)


def test_a_user_that_exists_is_a_409(gateway: Gateway):
    user_id = gateway.new_user()

    answer = gateway.post("/user/new", {"user_id": user_id, "auto_create_key": False})

    assert error_of(answer) == (409, "internal_server_error", None, "409")


def test_another_users_email_is_a_409_and_makes_no_user(gateway: Gateway):
    email, user_id = f"{unique('mail')}@example.com", unique("user")
    gateway.new_user(user_email=email)

    answer = gateway.post("/user/new", {"user_id": user_id, "auto_create_key": False, "user_email": email.upper()})

    assert error_of(answer) == (409, "internal_server_error", None, "409")
    assert gateway.get("/user/info", {"user_id": user_id}).status_code == 404


def test_the_info_of_a_user_has_role_and_budget(gateway: Gateway):
    user_id = gateway.new_user(user_role="internal_user", max_budget=5)

    answer = gateway.get("/user/info", {"user_id": user_id}).json()

    assert answer["user_id"] == user_id
    assert (answer["user_info"]["user_role"], answer["user_info"]["max_budget"]) == ("internal_user", 5)
    assert answer["keys"] == []


def test_a_user_that_only_a_key_names_does_not_exist(gateway: Gateway):
    user_id = unique("user")
    gateway.generate(user_id=user_id)

    answer = gateway.get("/user/info", {"user_id": user_id})

    assert error_of(answer) == (404, "internal_server_error", None, "404")


def test_an_unknown_role_is_refused(gateway: Gateway):
    answer = gateway.post("/user/new", {"user_id": unique("user"), "auto_create_key": False, "user_role": "nope"})

    assert invalid_fields(answer) == [("literal_error", ("body", "user_role"))]
