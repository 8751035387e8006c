"""The CloudFormation templates that SAM makes of template.yaml and of the drop-in's, translated on this machine.

`python -m tests.architecture.translation [litemaas]` prints one as JSON. Raw lint is not enough: cfn-lint lets
`Runtime: python3.16` pass inside AWS::Serverless::Function and refuses it in the translation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

from local.litemaas_template import litemaas_template

ROOT = Path(__file__).resolve().parents[2]
REGION = "eu-central-1"

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
# SAM asks IAM for these; this machine has none to ask.
MANAGED_POLICIES = {
    name: f"arn:aws:iam::aws:policy/service-role/{name}"
    for name in ("AWSLambdaBasicExecutionRole", "AWSLambdaVPCAccessExecutionRole")
}


# What the drop-in's template is told instead.
LITEMAAS_DEPLOYMENT = {name: value for name, value in DEPLOYMENT.items() if not name.startswith("Jwt")} | {
    "LiteMaaSTokenSecretArn": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:litemaas-AbCdEf",
}


def read_template() -> dict[str, Any]:
    return yaml_parse((ROOT / "template.yaml").read_text())


def read_litemaas_template() -> dict[str, Any]:
    return yaml_parse(litemaas_template((ROOT / "template.yaml").read_text()))


def translate(**parameters: str) -> dict[str, Any]:
    """Raises InvalidDocumentException for what `sam validate` would refuse."""
    return _translated(read_template(), DEPLOYMENT | parameters)


def translate_litemaas() -> dict[str, Any]:
    return _translated(read_litemaas_template(), LITEMAAS_DEPLOYMENT)


def _translated(template: dict[str, Any], parameters: dict[str, str]) -> dict[str, Any]:
    # `sam deploy` uploads what it built and puts the addresses here.
    template["Globals"]["Function"]["CodeUri"] = "s3://built/functions"
    template["Resources"]["SharedLayer"]["Properties"]["ContentUri"] = "s3://built/layer"
    translator = Translator(MANAGED_POLICIES, Parser(), boto_session=boto3.session.Session(region_name=REGION))
    return translator.translate(template, parameters, passthrough_metadata=True)


if __name__ == "__main__":
    json.dump(translate_litemaas() if sys.argv[1:] == ["litemaas"] else translate(), sys.stdout, indent=2)
