"""Who issues tokens: an OpenID issuer with discovery and public keys, and LiteMaaS with a secret."""

import json
import secrets
import time
from collections.abc import Mapping

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from local.serving import Receive, Scope, Send, answer

KEY_ID = "local-1"
DISCOVERY_PATH = "/.well-known/openid-configuration"
KEYS_PATH = "/jwks"


class LiteMaaSIssuer:
    """Signs as LiteMaaS does: HS256, with a secret of its own that the verifier has to know."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(32)

    def token(self, claims: Mapping[str, object], *, ttl_seconds: float = 3600) -> str:
        """Claims given here win over the rest of what LiteMaaS writes, and None leaves one out."""
        now = int(time.time())
        complete: dict[str, object] = {
            "username": "somebody",
            "email": "somebody@example.com",
            "roles": ["user"],
            "iat": now,
            "exp": now + ttl_seconds,
            **claims,
        }
        present = {name: value for name, value in complete.items() if value is not None}
        return jwt.encode({"alg": "HS256", "typ": "JWT"}, present, OctKey.import_key(self.secret))


class Issuer:
    """An ASGI application with one signing key, made anew each time."""

    def __init__(self, *, url: str) -> None:
        self.url = url
        self._key = RSAKey.generate_key(2048, parameters={"kid": KEY_ID})

    def token(
        self,
        claims: Mapping[str, object],
        *,
        ttl_seconds: int = 3600,
        key_id: str = KEY_ID,
        forged: bool = False,
    ) -> str:
        """A signed token; claims given here win over iss, iat and exp, and None leaves one out.

        A negative ttl makes an expired one; `forged` signs with a key that nobody knows under the right id.
        """
        now = int(time.time())
        complete = {"iss": self.url, "iat": now, "exp": now + ttl_seconds, **claims}
        key = RSAKey.generate_key(2048) if forged else self._key
        present = {name: value for name, value in complete.items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": key_id, "typ": "JWT"}, present, key)

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        documents: dict[str, object] = {
            DISCOVERY_PATH: {
                "issuer": self.url,
                "jwks_uri": self.url + KEYS_PATH,
                "id_token_signing_alg_values_supported": ["RS256"],
            },
            KEYS_PATH: {"keys": [{**self._key.as_dict(private=False), "use": "sig", "alg": "RS256"}]},
        }
        document = documents.get(scope["path"])
        body = json.dumps(document or {"error": "not_found"}).encode()
        await answer(send, status=200 if document else 404, headers=[("content-type", "application/json")], body=body)
