"""The routes under /team/."""

import uuid

from local.litellm.access import Call
from local.litellm.refusals import Row, refused, refused_as_repr
from local.litellm.tables import Tables
from local.litellm.values import read_fields, read_list, read_string


class TeamRoutes:
    """One method per route; each returns the body of a 200."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def new(self, call: Call) -> Row:
        fields = {
            "team_id": read_string,
            "team_alias": read_string,
            "models": read_list,
            "members_with_roles": read_list,
        }
        values = read_fields(await call.body(), fields)
        unset: Row = {"team_id": str(uuid.uuid4()), "team_alias": None, "models": [], "members_with_roles": []}
        team = unset | values
        if team["team_id"] in self._tables.teams:
            raise refused_as_repr(400, "a team with this id exists")
        self._tables.save_team(team)
        return team

    async def info(self, call: Call) -> Row:
        team_id = call.request.query_params.get("team_id") or ""
        team = self._tables.teams.get(team_id)
        if team is None:
            raise refused(404, repr({"message": "there is no such team"}), "auth_error", "None")
        return {"team_id": team_id, "team_info": team, "keys": [], "team_memberships": []}
