"""Deriving a key's secret with KMS, so that it is never stored.

secret = "sk-lmk_" + base62(HMAC-SHA-256) + base62(CRC-32): 7 + 43 + 6 characters. LiteLLM 1.106.0 takes a
caller's own key when it starts with "sk-" and has 16 characters or more; its token id is sha256(secret).
"""

import hashlib
import secrets
import zlib
from uuid import UUID

import msgspec

from keyservice import telemetry
from keyservice.aws import Aws, AwsUnavailable
from keyservice.errors import DerivationUnavailable
from keyservice.secret_values import Masked

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SCHEME = "sk-lmk_"
_PREFIX_CHARACTERS = 11


class DerivedSecret:
    """A secret with what may be stored of it: sha256 as `token_hash`, the first 11 characters as `prefix`."""

    __slots__ = ("prefix", "secret", "token_hash")

    def __init__(self, mac: bytes) -> None:
        body = _SCHEME + _base62(int.from_bytes(mac), width=43)
        value = body + _base62(zlib.crc32(body.encode()), width=6)
        self.secret = Masked(value)
        self.token_hash = hashlib.sha256(value.encode()).hexdigest()
        self.prefix = value[:_PREFIX_CHARACTERS]


class _GeneratedMac(msgspec.Struct, frozen=True):
    mac: bytes = msgspec.field(name="Mac")


class KeyDeriver:
    """Asks KMS for the MAC over `keyservice/v1:{api_key_id}:{nonce}` with one HMAC_256 key."""

    def __init__(self, *, mac_key_arn: str, aws: Aws) -> None:
        self.mac_key_arn = mac_key_arn
        self._aws = aws

    def derive(self, api_key_id: UUID, *, nonce: str) -> DerivedSecret:
        """The same secret for the same id and nonce, always; raises DerivationUnavailable when KMS refuses."""
        with telemetry.measured("DerivationLatency"):
            return DerivedSecret(self._mac(f"keyservice/v1:{api_key_id}:{nonce}".encode()))

    def _mac(self, message: bytes) -> bytes:
        parameters = {"KeyId": self.mac_key_arn, "MacAlgorithm": "HMAC_SHA_256", "Message": message}
        try:
            return self._aws.call("kms", "TrentService.GenerateMac", parameters, answer=_GeneratedMac).mac
        except AwsUnavailable as error:
            raise DerivationUnavailable from error


def new_nonce() -> str:
    """128 random bits in hexadecimal; stored in the token row."""
    return secrets.token_hex(16)


def is_well_formed(secret: str) -> bool:
    """Whether the checksum holds, so that a scanner tells a real key from noise without asking anyone."""
    body, checksum = secret[:-6], secret[-6:]
    return secret.startswith(_SCHEME) and len(secret) == 56 and checksum == _base62(zlib.crc32(body.encode()), width=6)


def _base62(number: int, *, width: int) -> str:
    characters = ""
    while number:
        number, digit = divmod(number, 62)
        characters = _DIGITS[digit] + characters
    return characters.rjust(width, _DIGITS[0])
