"""The routes under /user/."""

import uuid

from local.litellm.access import Call
from local.litellm.durations import now
from local.litellm.keys import KeyRoutes
from local.litellm.refusals import Row, refused, refused_as_repr
from local.litellm.rows import with_z
from local.litellm.tables import Tables
from local.litellm.values import NEW_USER_FIELDS, read_fields


class UserRoutes:
    """One method per route; each returns the body of a 200."""

    def __init__(self, tables: Tables, *, keys: KeyRoutes) -> None:
        self._tables = tables
        self._keys = keys

    async def new(self, call: Call) -> Row:
        values = read_fields(await call.body(), NEW_USER_FIELDS)
        user_id, email = values.get("user_id") or str(uuid.uuid4()), values.get("user_email")
        if user_id in self._tables.users:
            raise refused_as_repr(409, "a user with this id exists")
        if email and any((user["user_email"] or "").lower() == email.lower() for user in self._tables.users.values()):
            raise refused_as_repr(409, "a user with this email exists")
        moment = now().isoformat()
        user: Row = {
            "user_id": user_id,
            "user_alias": None,
            "user_email": email,
            "user_role": values.get("user_role"),
            "teams": [],
            "models": values.get("models") or [],
            "max_budget": values.get("max_budget"),
            "spend": 0.0,
            "metadata": values.get("metadata") or {},
            "tpm_limit": values.get("tpm_limit"),
            "rpm_limit": values.get("rpm_limit"),
            "created_at": moment,
            "updated_at": moment,
        }
        self._tables.save_user(user)
        key: Row = {"key": ""}
        if values.get("auto_create_key", True):
            key = await self._keys.generate_from({"user_id": user_id}, created_by=call.user_id or "")
        return {name: value for name, value in key.items() if name != "token"} | with_z(user)

    async def info(self, call: Call) -> Row:
        user_id = call.request.query_params.get("user_id") or (call.user_id if call.key else None)
        user = self._tables.users.get(user_id or "")
        if user is None:
            raise refused(404, "there is no such user")
        keys = [with_z(row) for row in self._tables.keys.values() if row["user_id"] == user_id]
        return {"user_id": user_id, "user_info": with_z(user), "keys": keys, "teams": []}
