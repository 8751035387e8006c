"""The routes, and how an operation becomes an HTTP answer."""

import asyncio
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local.litellm.access import COMPLETION_PATHS, MODEL_INFO_PATHS, MODEL_LIST_PATHS, Call, authenticate
from local.litellm.completions import ModelRoutes
from local.litellm.keys import KeyRoutes
from local.litellm.refusals import Refused, Row, Unhandled
from local.litellm.tables import Tables
from local.litellm.teams import TeamRoutes
from local.litellm.users import UserRoutes

# The release whose behaviour this is.
VERSION = "1.106.0"

type Operation = Callable[[Call], Awaitable[Row]]


def application(
    *, master_key: str, models: list[str], state_path: str | None = None, delay_seconds: float = 0
) -> Starlette:
    tables = Tables(state_path=state_path)
    keys = KeyRoutes(tables)
    users = UserRoutes(tables, keys=keys)
    teams = TeamRoutes(tables)
    completions = ModelRoutes(tables, models=models)

    def route(method: str, path: str, operation: Operation) -> Route:
        async def answer(request: Request) -> Response:
            try:
                if delay_seconds:
                    await asyncio.sleep(delay_seconds)
                call = authenticate(request, master_key=master_key, tables=tables)
                return JSONResponse(await operation(call))
            except Refused as refusal:
                return JSONResponse(refusal.body, refusal.status, refusal.headers)

        return Route(path, answer, methods=[method])

    return Starlette(
        routes=[
            route("POST", "/key/generate", keys.generate),
            route("POST", "/key/delete", keys.delete),
            route("GET", "/key/info", keys.info),
            route("POST", "/v2/key/info", keys.info_of_many),
            route("GET", "/key/list", keys.list_page),
            route("POST", "/key/update", keys.update),
            route("POST", "/key/block", keys.block),
            route("POST", "/key/unblock", keys.unblock),
            route("POST", "/key/{key}/reset_spend", keys.reset_spend),
            route("POST", "/user/new", users.new),
            route("GET", "/user/info", users.info),
            route("POST", "/team/new", teams.new),
            route("GET", "/team/info", teams.info),
            *(route("GET", path, completions.info) for path in MODEL_INFO_PATHS),
            *(route("GET", path, completions.list_models) for path in MODEL_LIST_PATHS),
            *(route("POST", path, completions.complete) for path in COMPLETION_PATHS),
            Route("/health/liveliness", _liveliness),
            Route("/health/liveness", _liveliness),
            Route("/health/readiness", _readiness),
            route("GET", "/health/readiness/details", _readiness_details),
            route("GET", "/health/license", _license),
        ],
        # Starlette raises what `_unhandled` answered again, and uvicorn then ends the connection: as at LiteLLM.
        exception_handlers={HTTPException: _not_routed, Exception: _unhandled},
    )


async def _liveliness(_: Request) -> Response:
    return JSONResponse("I'm alive!")


async def _readiness(_: Request) -> Response:
    return JSONResponse({"status": "healthy", "db": "connected"})


async def _readiness_details(_: Call) -> Row:
    return {"status": "healthy", "db": "connected", "litellm_version": VERSION}


async def _license(_: Call) -> Row:
    return {"has_license": False, "license_type": "community", "expiration_date": None, "allowed_features": []}


async def _not_routed(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def _unhandled(_: Request, __: Exception) -> Response:
    return JSONResponse(Unhandled.answer, 500)
