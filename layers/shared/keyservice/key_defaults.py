"""What an administrator sets for all keys: defaults that are filled in, maximums that hold (system_settings)."""

from keyservice import key_defaults_store as store
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.errors import Violation
from keyservice.models import Caller, KeyDefaults
from keyservice.standing import require_active, require_may_change_all, require_may_see_all


class Defaults:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def for_callers(self, caller: Caller) -> KeyDefaults:
        """Raises Forbidden for an inactive caller."""
        standing, defaults = store.read_key_defaults(self._database, caller)
        require_active(standing)
        return defaults

    def for_administrators(self, caller: Caller) -> KeyDefaults:
        """Raises Forbidden for anyone but administrators."""
        standing, defaults = store.read_key_defaults(self._database, caller)
        require_may_see_all(standing)
        return defaults

    def replace(self, caller: Caller, wanted: KeyDefaults) -> KeyDefaults:
        """All of them at once, what is left out is no longer set; they hold from the next create on, and are audited.

        Raises InvalidRequest with every default above its maximum, Forbidden for anyone but the role admin.
        """
        require_defaults_within_maximums(wanted)
        standing = store.replace_key_defaults(self._database, caller, wanted)
        require_may_change_all(standing)
        return wanted


def require_defaults_within_maximums(wanted: KeyDefaults) -> None:
    """Raises InvalidRequest: nobody could create a key without asking for less than the default."""
    defaults, maximums = wanted.defaults, wanted.maximums
    violations = [
        Violation(f"defaults.{field}", f"must not exceed the maximum of {maximum}", "maximum")
        for field, default, maximum in (
            ("maxBudget", defaults.max_budget, maximums.max_budget),
            ("tpmLimit", defaults.tpm_limit, maximums.tpm_limit),
            ("rpmLimit", defaults.rpm_limit, maximums.rpm_limit),
            ("expirationDays", defaults.expiration_days, maximums.expiration_days),
        )
        if default is not None and maximum is not None and default > maximum
    ]
    violations.extend(
        Violation(field, "must not have more than 2 decimals", "multipleOf")
        for field, money in (
            ("defaults.maxBudget", defaults.max_budget),
            ("defaults.softBudget", defaults.soft_budget),
            ("maximums.maxBudget", maximums.max_budget),
        )
        if money is not None and round(money, 2) != money
    )
    if violations:
        raise invalid(violations)
