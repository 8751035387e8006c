"""GET /api/v1/admin/audit, as JSON or, by the header Accept, as NDJSON"""

from keyservice import wiring
from keyservice.endpoint import Request, Response, endpoint

_LINES = "application/x-ndjson"


@endpoint("list_audit_records")
def handler(request: Request) -> Response:
    if not request.accepts(_LINES):
        return Response(status=200, body=wiring.audit_trail().page(request.caller, request.query))
    lines = wiring.audit_trail().lines(request.caller, request.query)
    link = {"link": f'</api/v1/admin/audit?{lines.next_query}>; rel="next"'} if lines.next_query else {}
    return Response(status=200, body=lines.text, content_type=_LINES, headers=link)
