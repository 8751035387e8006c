"""The rows an empty LiteMaaS database lacks before somebody may create a key: models, a user, subscriptions."""

from collections.abc import Sequence

import httpx
import psycopg

from local.loopback import NO_TLS

# As the template's parameter OAuthProvider has it by default.
OAUTH_PROVIDER = "openshift"


def model_names(litellm_url: str, *, master_key: str) -> list[str]:
    """What this LiteLLM offers, in its own order. Raises httpx.HTTPError."""
    with httpx.Client(trust_env=False, verify=NO_TLS if litellm_url.startswith("http:") else True) as client:
        answer = client.get(f"{litellm_url}/v1/models", headers={"authorization": f"Bearer {master_key}"})
    answer.raise_for_status()
    return [str(model["id"]) for model in answer.json()["data"]]


def insert_models(admin_dsn: str, names: Sequence[str]) -> None:
    """Those already there stay as they are."""
    with psycopg.connect(admin_dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO models (id, name, provider) VALUES (%(name)s, %(name)s, 'openai') ON CONFLICT DO NOTHING",
            [{"name": name} for name in names],
        )


def subscribe(admin_dsn: str, *, subject: str, models: Sequence[str]) -> None:
    """The user that `LocalStack.token(subject)` stands for, with an active subscription to each model."""
    with psycopg.connect(admin_dsn) as connection, connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO users (username, email, oauth_provider, oauth_id)
            VALUES (%(subject)s, %(email)s, %(provider)s, %(subject)s)
            ON CONFLICT (oauth_provider, oauth_id) DO NOTHING
            """,
            {"subject": subject, "email": f"{subject}@example.com", "provider": OAUTH_PROVIDER},
        )
        cursor.executemany(
            """
            INSERT INTO subscriptions (user_id, model_id)
            SELECT id, %(model)s FROM users WHERE oauth_provider = %(provider)s AND oauth_id = %(subject)s
            ON CONFLICT (user_id, model_id) DO UPDATE SET status = 'active', expires_at = NULL
            """,
            [{"subject": subject, "provider": OAUTH_PROVIDER, "model": model} for model in models],
        )
