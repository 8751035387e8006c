"""The CloudFormation templates that SAM makes of template.yaml and of the drop-in's, translated on this machine.

`python -m tests.architecture.translation [litemaas]` prints one as JSON. Raw lint is not enough: cfn-lint lets
`Runtime: python3.16` pass inside AWS::Serverless::Function and refuses it in the translation.
"""

import json
import sys
from pathlib import Path
from typing import Any

from local.litemaas_template import litemaas_template
from local.translation import REGION, parsed, translated

ROOT = Path(__file__).resolve().parents[2]

# What a deployment must say itself; every other parameter has its default.
DEPLOYMENT = {
    "DatabaseHost": "database.example.com",
    "DatabaseMigratorSecretArn": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:migrator-AbCdEf",
    "DatabaseSecretArn": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:app-AbCdEf",
    "JwtAudience": "keyservice",
    "JwtIssuer": "https://issuer.example.com",
    "LiteLLMSecretArn": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:litellm-AbCdEf",
    "LiteLLMUrl": "https://litellm.example.com",
    "ReleaseSha": "ab" * 32,
    "VpcSecurityGroupIds": "sg-0123456789abcdef0",
    "VpcSubnetIds": "subnet-0123456789abcdef0,subnet-0123456789abcdef1",
}
# What the drop-in's template is told instead.
LITEMAAS_DEPLOYMENT = {name: value for name, value in DEPLOYMENT.items() if not name.startswith("Jwt")} | {
    "LiteMaaSTokenSecretArn": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:litemaas-AbCdEf",
}


def read_template() -> dict[str, Any]:
    return parsed((ROOT / "template.yaml").read_text())


def read_litemaas_template() -> dict[str, Any]:
    return parsed(litemaas_template((ROOT / "template.yaml").read_text()))


def translate(**parameters: str) -> dict[str, Any]:
    """Raises InvalidDocumentException for what `sam validate` would refuse."""
    return translated(read_template(), DEPLOYMENT | parameters)


def translate_litemaas() -> dict[str, Any]:
    return translated(read_litemaas_template(), LITEMAAS_DEPLOYMENT)


if __name__ == "__main__":
    json.dump(translate_litemaas() if sys.argv[1:] == ["litemaas"] else translate(), sys.stdout, indent=2)
