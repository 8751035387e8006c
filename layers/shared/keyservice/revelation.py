"""Revealing a key's secret once more, where the stack allows it: derived anew for its owner, and stored nowhere."""

import time
import uuid
from datetime import UTC, datetime
from typing import Literal

from keyservice import revelation_store as store
from keyservice import telemetry
from keyservice.database import Database
from keyservice.derivation import KeyDeriver
from keyservice.errors import (
    Forbidden,
    Gone,
    ServiceError,
    TooManyRequests,
    key_expired,
    key_inactive,
    missing_key,
)
from keyservice.models import Caller, RevealedKey, RevealPolicy, parse_uuid, timestamp

_RECENT_SECONDS = 300
# A login that lies in the future by no more than this is one that another clock has seen.
_CLOCK_DIFFERENCE_SECONDS = 60
_ROTATE = "Rotate the key to get a new one."


class SecretRevelation:
    def __init__(self, *, database: Database, deriver: KeyDeriver, policy: RevealPolicy) -> None:
        self._database = database
        self._deriver = deriver
        self._policy: RevealPolicy = policy

    def reveal(self, caller: Caller, api_key_id: str) -> RevealedKey:
        """The secret of an active key of the caller's, audited before it is derived.

        Raises NotFound, InvalidRequest for a key that is not active, Forbidden for a caller who is inactive, may only look,
        or whose login is not recent, TooManyRequests, and Gone for a secret that cannot be shown: where the stack forbids
        it, and where it is not one that this service has made with its key.
        """
        key_id = parse_uuid(api_key_id)
        if key_id is None:
            raise missing_key(None)
        found = store.begin_reveal(
            self._database, caller, api_key_id=key_id, audit_id=uuid.uuid4(), hindrance=self._hindrance(caller)
        )
        telemetry.identify(key_id=key_id)
        if isinstance(found, store.Refusal):
            raise _refusal(found, key_id)
        telemetry.identify(user_id=found.user_id)
        derived = self._deriver.derive(found.api_key_id, nonce=found.nonce)
        if derived.token_hash != found.token_hash:
            raise _not_derivable()
        return RevealedKey(key=derived.secret.reveal(), retrieved_at=timestamp(datetime.now(UTC)))

    def _hindrance(self, caller: Caller) -> Literal["never", "oldLogin", "unknownLogin"] | None:
        if self._policy == "never":
            return "never"
        if caller.authenticated_at is None:
            return "unknownLogin"
        age_seconds = time.time() - caller.authenticated_at
        return None if -_CLOCK_DIFFERENCE_SECONDS <= age_seconds <= _RECENT_SECONDS else "oldLogin"


def _refusal(refusal: store.Refusal, key_id: uuid.UUID) -> ServiceError:
    match refusal.reason:
        case "notFound":
            return missing_key(key_id)
        case "never":
            return Gone(f"This service never shows a secret a second time. {_ROTATE}", details={"reason": "never"})
        case "oldLogin":
            return Forbidden(
                "Recent authentication required for this operation", details={"suggestion": "Log in again."}
            )
        case "unknownLogin":
            return Forbidden(
                "Recent authentication required for this operation",
                details={"suggestion": f"The token does not say when you logged in (auth_time). {_ROTATE}"},
            )
        case "inactive":
            return key_inactive()
        case "expired":
            return key_expired()
        case "notDerivable":
            return _not_derivable()
        case "tooMany":
            return TooManyRequests(
                f"Too many secrets were shown. Limit: {store.REVEALS_IN_A_WINDOW} in {store.WINDOW_SECONDS // 60} minutes.",
                retry_after_seconds=max(1, refusal.retry_after_seconds or 1),
            )


def _not_derivable() -> Gone:
    return Gone(
        f"The secret of this key was not made by this service, and cannot be shown again. {_ROTATE}",
        details={"reason": "notDerivable"},
    )
