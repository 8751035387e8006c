"""`/key/list` of a LiteLLM with a million keys, for reconcile alone: the stand-in sorts its rows for every page.

`python -m bench.litellm_pages FILE`: a port is taken and printed; FILE has one JSON line for each key, sorted by hash.
"""

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.litellm.__main__ import listening_socket

_PAGE_SIZE = 100


def main() -> None:
    lines = Path(sys.argv[1]).read_bytes().splitlines()
    pages = -(-len(lines) // _PAGE_SIZE)

    async def key_list(request: Request) -> Response:
        page = int(request.query_params["page"])
        if request.query_params["sort_by"] != "token":
            page = pages  # the newest are asked for once
        keys = b",".join(lines[(page - 1) * _PAGE_SIZE : page * _PAGE_SIZE])
        body = b'{"keys":[%b],"total_count":%d,"current_page":%d,"total_pages":%d}' % (keys, len(lines), page, pages)
        return Response(body, media_type="application/json")

    listener = listening_socket(0)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(Starlette(routes=[Route("/key/list", key_list)]), log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
