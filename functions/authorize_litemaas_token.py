"""Before every route of template-litemaas.yaml: lets the tokens in that LiteMaaS itself has issued"""

from keyservice import wiring
from keyservice.authorizer import authorizer
from keyservice.models import TokenClaims


@authorizer
def handler(authorization: str) -> TokenClaims:
    return wiring.litemaas_tokens().check(authorization)
