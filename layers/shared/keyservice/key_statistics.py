"""How many keys a caller has, by what they are, by subscription and by model."""

from keyservice import key_statistics_store as store
from keyservice.database import Database
from keyservice.models import Caller, KeyStatistics
from keyservice.standing import require_active


class Statistics:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def of_own_keys(self, caller: Caller) -> KeyStatistics:
        """Keys that are pending, being deleted or in error count in the total alone. Raises Forbidden for an inactive
        caller."""
        standing, statistics = store.count_keys(self._database, caller)
        require_active(standing)
        return statistics
