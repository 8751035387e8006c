"""Whether a secret is that of a key that works, for administrators; LiteLLM is not asked."""

import hashlib

from keyservice import validation_store as store
from keyservice.database import Database
from keyservice.models import Caller, KeyToValidate, ValidatedKey
from keyservice.standing import require_may_see_all


class KeyValidation:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def validate(self, caller: Caller, given: KeyToValidate) -> ValidatedKey:
        """Valid: a key that is active, neither expired nor revoked, with this secret. The secret goes no further than
        its sha256. Raises Forbidden for anyone but administrators."""
        secret_hash = hashlib.sha256(given.key.encode(errors="surrogatepass")).hexdigest()
        standing, is_valid = store.find_secret(self._database, caller, secret_hash)
        require_may_see_all(standing)
        return ValidatedKey(is_valid=is_valid)
