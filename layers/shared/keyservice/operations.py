"""The operator's view of the journal: what is pending or failed, and trying one again now."""

from collections.abc import Mapping

from keyservice import operations_store as store
from keyservice.database import Database
from keyservice.decoding import invalid
from keyservice.errors import NotFound, OperationOver, Violation
from keyservice.models import (
    Caller,
    Cursor,
    CursorPage,
    ListedOperation,
    OperationPage,
    OperationQuery,
    RetriedOperation,
    or_unset,
    parse_uuid,
    timestamp,
)
from keyservice.queries import decode_cursor, encode_cursor, parse_whole_number
from keyservice.standing import require_may_change_all, require_may_see_all


class Operations:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def page(self, caller: Caller, parameters: Mapping[str, str]) -> OperationPage:
        """Operations in one state, oldest first. Raises InvalidRequest, Forbidden for anyone but administrators."""
        query = parse_operation_query(parameters)
        standing, found = store.list_operations(self._database, caller, query)
        require_may_see_all(standing)
        last = found[query.limit - 1] if len(found) > query.limit else None
        return OperationPage(
            data=[_listed(operation) for operation in found[: query.limit]],
            pagination=CursorPage(
                limit=query.limit,
                next_cursor=or_unset(last and encode_cursor(Cursor(created_at=last.created_at, id=last.id, total=0))),
            ),
        )

    def retry(self, caller: Caller, operation_id: str) -> RetriedOperation:
        """Makes a pending operation due: the next run of settle_operations takes it, within a minute.

        Raises Forbidden, NotFound, OperationOver for one that is done, failed or superseded.
        """
        parsed = parse_uuid(operation_id)
        if parsed is None:
            raise NotFound("Operation not found", details={"resource": "Operation"})
        standing, outcome = store.retry_operation(self._database, caller, parsed)
        require_may_change_all(standing)
        if outcome == "missing":
            raise NotFound("Operation not found", details={"resource": "Operation"})
        if outcome == "over":
            raise OperationOver("This operation is over: there is nothing left to try again.")
        return RetriedOperation(id=parsed, message="The operation is due and will be attempted within a minute")


def parse_operation_query(parameters: Mapping[str, str]) -> OperationQuery:
    violations: list[Violation] = []
    limit = parse_whole_number(parameters, "limit", default=20, maximum=100, violations=violations)
    cursor = decode_cursor(parameters, violations=violations)
    match parameters.get("state", "pending"):
        case "pending" | "failed" as state:
            if not violations:
                return OperationQuery(state=state, limit=limit, cursor=cursor)
        case _:
            violations.append(Violation("state", "must be pending or failed", "enum"))
    raise invalid(violations)


def _listed(operation: store.StoredOperation) -> ListedOperation:
    return ListedOperation(
        id=operation.id,
        kind=operation.kind,
        phase=operation.phase,
        state=operation.state,
        key_id=operation.api_key_id,
        user_id=operation.user_id,
        age_seconds=round(operation.age_seconds, 1),
        attempts=operation.attempts,
        last_error=or_unset(operation.last_error),
        created_at=timestamp(operation.created_at),
        next_attempt_at=or_unset(timestamp(operation.next_attempt_at) if operation.state == "pending" else None),
        finished_at=or_unset(operation.finished_at and timestamp(operation.finished_at)),
    )
