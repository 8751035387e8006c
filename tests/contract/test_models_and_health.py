"""GET /model/info, /v1/models and /health/*; how long connections are kept."""

from tests.contract.gateway import Gateway, talk

ALL_MODELS = {"gpt-4o", "gpt-4o-mini", "claude-sonnet"}


def test_the_administrator_sees_every_model_with_its_provider(gateway: Gateway):
    models = gateway.get("/model/info").json()["data"]

    providers = {model["model_name"]: model["model_info"]["litellm_provider"] for model in models}
    assert providers == {"gpt-4o": "openai", "gpt-4o-mini": "openai", "claude-sonnet": "anthropic"}
    assert all("/" in model["litellm_params"]["model"] for model in models)


def test_a_key_sees_the_models_it_may_use(gateway: Gateway):
    limited = gateway.generate(models=["gpt-4o-mini"], key_type="llm_api")
    unlimited = gateway.generate(key_type="llm_api")

    for path, name in [("/v1/models", "id"), ("/model/info", "model_name")]:
        assert [model[name] for model in gateway.get(path, key=limited["key"]).json()["data"]] == ["gpt-4o-mini"]
        assert {model[name] for model in gateway.get(path, key=unlimited["key"]).json()["data"]} == ALL_MODELS


def test_a_deleted_key_sees_no_models(gateway: Gateway):
    key = gateway.generate()
    gateway.delete(key["token"])

    assert gateway.get("/v1/models", key=key["key"]).status_code == 401


def test_health_needs_no_key(gateway: Gateway):
    liveliness = gateway.http.get("/health/liveliness")
    readiness = gateway.http.get("/health/readiness")

    assert (liveliness.status_code, liveliness.json()) == (200, "I'm alive!")
    assert readiness.status_code == 200
    assert (readiness.json()["status"], readiness.json()["db"]) == ("healthy", "connected")


def test_version_and_licence_are_told_to_the_administrator_only(gateway: Gateway):
    details = gateway.get("/health/readiness/details")
    licence = gateway.get("/health/license")

    assert details.status_code == licence.status_code == 200
    assert details.json()["litellm_version"].count(".") == 2
    assert isinstance(licence.json()["has_license"], bool)
    assert gateway.http.get("/health/readiness/details").status_code == 401
    assert gateway.http.get("/health/license").status_code == 401


def test_an_idle_connection_is_closed_after_a_while(gateway: Gateway):
    """5.0 s were measured; a client that keeps connections longer loses the request that meets the close."""
    received = talk(gateway, b"GET /health/liveliness HTTP/1.1\r\nHost: litellm\r\n\r\n")

    assert received.startswith(b"HTTP/1.1 200")
    assert b"connection: close" not in received.lower()
