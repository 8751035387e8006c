"""The CloudFormation template that SAM makes of template.yaml, translated on this machine.

`python -m tests.architecture.translation` prints it as JSON. Raw lint is not enough: cfn-lint lets `Runtime: python3.16`
pass inside AWS::Serverless::Function and refuses it in the translation.
"""

import json
import sys
from pathlib import Path
from typing import Any

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

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


def read_template() -> dict[str, Any]:
    return yaml_parse((ROOT / "template.yaml").read_text())


def translate(*, release_sha: str = DEPLOYMENT["ReleaseSha"]) -> dict[str, Any]:
    """Raises InvalidDocumentException for what `sam validate` would refuse."""
    template = read_template()
    # `sam deploy` uploads what it built and puts the addresses here.
    template["Globals"]["Function"]["CodeUri"] = "s3://built/functions"
    template["Resources"]["SharedLayer"]["Properties"]["ContentUri"] = "s3://built/layer"
    translator = Translator(MANAGED_POLICIES, Parser(), boto_session=boto3.session.Session(region_name=REGION))
    return translator.translate(template, DEPLOYMENT | {"ReleaseSha": release_sha}, passthrough_metadata=True)


if __name__ == "__main__":
    json.dump(translate(), sys.stdout, indent=2)
