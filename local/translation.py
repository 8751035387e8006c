"""The CloudFormation that SAM makes of a template, made on this machine."""

import logging
from collections.abc import Mapping
from typing import Any, cast

import boto3
from samtranslator.parser.parser import Parser  # pyright: ignore[reportMissingTypeStubs]
from samtranslator.translator.translator import Translator  # pyright: ignore[reportMissingTypeStubs]
from samtranslator.yaml_helper import (  # pyright: ignore[reportMissingTypeStubs]
    yaml_parse,  # pyright: ignore[reportUnknownVariableType]
)

REGION = "eu-central-1"

# It says of its own unfinished features that they are not there.
logging.getLogger("samtranslator.feature_toggle").setLevel(logging.ERROR)

# SAM asks IAM for these; this machine has none to ask.
_MANAGED_POLICIES = {
    name: f"arn:aws:iam::aws:policy/service-role/{name}"
    for name in ("AWSLambdaBasicExecutionRole", "AWSLambdaVPCAccessExecutionRole")
}


def parsed(text: str) -> dict[str, Any]:
    """Tags such as !Ref in their long form."""
    return cast("dict[str, Any]", yaml_parse(text))


def translated(template: dict[str, Any], parameters: Mapping[str, str]) -> dict[str, Any]:
    """Changes `template`. Raises InvalidDocumentException for what `sam validate` would refuse."""
    # `sam deploy` uploads what it built and puts the addresses here.
    template["Globals"]["Function"]["CodeUri"] = "s3://built/functions"
    template["Resources"]["SharedLayer"]["Properties"]["ContentUri"] = "s3://built/layer"
    translator = Translator(_MANAGED_POLICIES, Parser(), boto_session=boto3.session.Session(region_name=REGION))
    stack: Any = translator.translate(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        template, dict(parameters), passthrough_metadata=True
    )
    return cast("dict[str, Any]", stack)
