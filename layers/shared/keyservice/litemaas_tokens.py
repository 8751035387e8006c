"""Checking the tokens that LiteMaaS itself issues: JWTs signed with HS256 and a secret that both sides know.

By hand, with the standard library: one fixed algorithm is thirty lines, and a JOSE library costs every cold start 100 ms
more of import. What such libraries have been broken by is left out: no `alg` of the token's choosing, no key from a header.
"""

import base64
import hashlib
import hmac
import re
import time
from typing import Any

import msgspec

from keyservice.models import TokenClaims
from keyservice.secret_values import SecretValues

# LiteMaaS's own tokens have about 400 characters.
_MAX_LENGTH = 4096
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})")
# LiteMaaS's clock may run ahead of ours: a token made in the next minute is taken, one that has ended never is.
_CLOCK_SKEW_SECONDS = 60
# Whoever sends forged tokens makes us ask Secrets Manager no more often than this.
_REFRESH_SECONDS = 1.0


class TokenRefused(Exception):
    """`reason` is for the log, in fixed words; who sent the token learns nothing but 401."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Header(msgspec.Struct, frozen=True):
    alg: str
    crit: Any = None


class LiteMaaSTokens:
    """The secret is kept five minutes; a signature that does not fit makes it be read again at once, for LiteMaaS may
    have a new one."""

    def __init__(self, *, secret_arn: str, secret_values: SecretValues) -> None:
        self._secret_arn = secret_arn
        self._secret_values = secret_values
        self._refreshed_at = float("-inf")

    def check(self, authorization: str) -> TokenClaims:
        """The claims of the token in an Authorization header; LiteMaaS takes it with and without the word Bearer.

        Raises TokenRefused, and SecretUnavailable when the secret cannot be read.
        """
        token = authorization[7:] if authorization[:7].lower() == "bearer " else authorization
        compact = _COMPACT.fullmatch(token) if len(token) <= _MAX_LENGTH else None
        if compact is None:
            raise TokenRefused("not a token of this kind")
        header, payload, signature = compact.groups()
        _check_header(_decoded(header, _Header))
        if not self._is_signed(f"{header}.{payload}", signature):
            raise TokenRefused("signature")
        claims = _decoded(payload, TokenClaims)
        _check_times(claims)
        return claims

    def _is_signed(self, signed: str, signature: str) -> bool:
        if self._fits(signed, signature):
            return True
        if time.monotonic() - self._refreshed_at < _REFRESH_SECONDS:
            return False
        self._refreshed_at = time.monotonic()
        self._secret_values.refresh(self._secret_arn)
        return self._fits(signed, signature)

    def _fits(self, signed: str, signature: str) -> bool:
        secret = self._secret_values.field(self._secret_arn, "jwtSecret").reveal()
        mac = hmac.digest(secret.encode(), signed.encode(), hashlib.sha256)
        # Compared as text: so each token has exactly one spelling.
        return hmac.compare_digest(base64.urlsafe_b64encode(mac).rstrip(b"="), signature.encode())


def _check_header(header: _Header) -> None:
    if header.alg != "HS256":
        raise TokenRefused("algorithm")
    if header.crit is not None:
        raise TokenRefused("critical header")


def _check_times(claims: TokenClaims) -> None:
    now = time.time()
    if not now < claims.exp:
        raise TokenRefused("expired")
    if max(claims.iat, claims.nbf) > now + _CLOCK_SKEW_SECONDS:
        raise TokenRefused("not valid yet")


def _decoded[T: msgspec.Struct](part: str, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)), type=shape)
    except (msgspec.DecodeError, ValueError) as error:
        raise TokenRefused("header or claims") from error
