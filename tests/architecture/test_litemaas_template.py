"""template-litemaas.yaml: template.yaml with LiteMaaS's authorizer in the place of its own, and nothing else changed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from local.litemaas_template import TransformationError, litemaas_template, write
from tests.architecture.translation import (
    LITEMAAS_DEPLOYMENT,
    ROOT,
    read_litemaas_template,
    read_template,
    translate,
    translate_litemaas,
)

AUTHORIZER = "AuthorizeLiteMaaSToken"
WHO_MAY_CALL = {
    "JwtIssuer",
    "JwtAudience",
    "OAuthProvider",
    "SubjectClaim",
    "UsernameClaim",
    "EmailClaim",
    "NameClaim",
    "RolesClaim",
}


@pytest.fixture(scope="module")
def source() -> str:
    return (ROOT / "template.yaml").read_text()


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return read_litemaas_template()


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return translate_litemaas()


@pytest.fixture(scope="module")
def resources(stack: dict[str, Any]) -> dict[str, Any]:
    return stack["Resources"]


def lint(template: Path) -> list[str]:
    """What cfn-lint has to say."""
    linted = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), template], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return linted.stdout.splitlines()


def test_cfn_lint_finds_nothing_in_it_as_written(tmp_path: Path) -> None:
    write(tmp_path / "template-litemaas.yaml")

    assert lint(tmp_path / "template-litemaas.yaml") == []


def test_cfn_lint_finds_nothing_in_it_as_translated(tmp_path: Path, stack: dict[str, Any]) -> None:
    (tmp_path / "translated.json").write_text(json.dumps(stack))

    assert lint(tmp_path / "translated.json") == []


def test_the_authorizer_is_a_lambda_with_simple_responses_for_a_minute_at_most(
    resources: dict[str, Any], template: dict[str, Any]
) -> None:
    api = resources["Api"]["Properties"]
    [scheme] = api["Body"]["components"]["securitySchemes"].values()
    authorizer = scheme["x-amazon-apigateway-authorizer"]

    assert api["FailOnWarnings"] is True
    assert authorizer["authorizerUri"]["Fn::Sub"][1] == {"__FunctionArn__": {"Ref": f"{AUTHORIZER}Aliaslive"}}
    assert {name: authorizer[name] for name in authorizer if name != "authorizerUri"} == {
        "type": "request",
        "identitySource": ["$request.header.Authorization"],
        "authorizerPayloadFormatVersion": "2.0",
        "enableSimpleResponses": True,
        "authorizerResultTtlInSeconds": {"Ref": "AuthorizerCacheSeconds"},
    }
    assert template["Parameters"]["AuthorizerCacheSeconds"]["MaxValue"] == 60


def test_every_route_but_health_asks_it(resources: dict[str, Any]) -> None:
    def routes(body: dict[str, Any]) -> dict[str, list[str]]:
        return {
            f"{method.upper()} {path}": [name for scheme in operation["security"] for name in scheme]
            for path, operations in body["paths"].items()
            for method, operation in operations.items()
        }

    before = routes(translate()["Resources"]["Api"]["Properties"]["Body"])

    assert routes(resources["Api"]["Properties"]["Body"]) == {
        route: ["NONE"] if names == ["NONE"] else ["LiteMaaS"] for route, names in before.items()
    }


def test_the_api_may_ask_the_authorizers_live_version(resources: dict[str, Any]) -> None:
    permission = resources["ApiLiteMaaSAuthorizerPermission"]["Properties"]

    assert permission["FunctionName"] == {"Ref": f"{AUTHORIZER}Aliaslive"}
    assert permission["Principal"] == "apigateway.amazonaws.com"


def test_the_authorizer_lives_outside_the_vpc_and_reads_one_secret(resources: dict[str, Any]) -> None:
    properties = resources[AUTHORIZER]["Properties"]
    role = resources[f"{AUTHORIZER}Role"]["Properties"]
    [statement] = [s for policy in role["Policies"] for s in policy["PolicyDocument"]["Statement"]]

    assert "VpcConfig" not in properties
    assert [arn.rpartition("/")[2] for arn in role["ManagedPolicyArns"]] == ["AWSLambdaBasicExecutionRole"]
    assert statement["Action"] == ["secretsmanager:GetSecretValue"]
    assert statement["Resource"] == {"Fn::Sub": ["${secretArn}", {"secretArn": {"Ref": "LiteMaaSTokenSecretArn"}}]}


def test_the_authorizer_gets_nothing_of_the_database_or_litellm(resources: dict[str, Any]) -> None:
    assert set(resources[AUTHORIZER]["Properties"]["Environment"]["Variables"]) == {
        "LITEMAAS_TOKEN_SECRET_ARN",
        "POWERTOOLS_LOG_LEVEL",
        "POWERTOOLS_METRICS_NAMESPACE",
        "POWERTOOLS_SERVICE_NAME",
        "RELEASE_SHA",
        "URL_SUFFIX",
    }


def test_the_authorizer_has_a_handler_file_and_a_log_group_that_forgets(resources: dict[str, Any]) -> None:
    properties = resources[AUTHORIZER]["Properties"]

    assert properties["Handler"] == "authorize_litemaas_token.handler"
    assert (ROOT / "functions" / "authorize_litemaas_token.py").is_file()
    assert properties["LoggingConfig"] == {"LogGroup": {"Ref": f"{AUTHORIZER}Logs"}}
    assert resources[f"{AUTHORIZER}Logs"]["Properties"]["RetentionInDays"] == {"Ref": "LogRetentionDays"}


def test_a_release_publishes_a_version_of_the_authorizer_too(resources: dict[str, Any]) -> None:
    assert resources[AUTHORIZER]["Properties"]["Description"] == LITEMAAS_DEPLOYMENT["ReleaseSha"]
    assert resources[f"{AUTHORIZER}Aliaslive"]["Properties"]["Name"] == "live"


def test_every_function_finds_its_caller_by_the_id_of_the_row(resources: dict[str, Any]) -> None:
    variables = {
        name: resource["Properties"]["Environment"]["Variables"]
        for name, resource in resources.items()
        if resource["Type"] == "AWS::Lambda::Function" and name != AUTHORIZER
    }

    assert {name: v["SUBJECT_COLUMN"] for name, v in variables.items()} == dict.fromkeys(variables, "id")
    assert {v["SUBJECT_CLAIM"] for v in variables.values() if "SUBJECT_CLAIM" in v} == {"userId"}


def test_nobody_can_deploy_it_with_another_way_to_find_callers(template: dict[str, Any]) -> None:
    without_default = {name for name, p in template["Parameters"].items() if "Default" not in p}

    assert not WHO_MAY_CALL & set(template["Parameters"])
    assert without_default == set(LITEMAAS_DEPLOYMENT)


def test_each_parameter_is_described_constrained_and_grouped(template: dict[str, Any]) -> None:
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    added = {name: template["Parameters"][name] for name in ("LiteMaaSTokenSecretArn", "AuthorizerCacheSeconds")}

    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(template["Parameters"])
    assert all({"Description", "ConstraintDescription"} <= set(parameter) for parameter in added.values())


def test_all_else_is_as_in_the_other_template(template: dict[str, Any]) -> None:
    """Reads both with tags in their long form, so it sees a tag that was lost."""
    before, after = read_template(), template
    constants = {"EMAIL_CLAIM", "NAME_CLAIM", "OAUTH_PROVIDER", "ROLES_CLAIM", "SUBJECT_CLAIM", "USERNAME_CLAIM"}
    for one in (before, after):
        del one["Description"], one["Metadata"], one["Resources"]["Api"]["Properties"]["Auth"]
        for name in WHO_MAY_CALL | {"LiteMaaSTokenSecretArn", "AuthorizerCacheSeconds"}:
            one["Parameters"].pop(name, None)
        del one["Globals"]["Function"]["Environment"]["Variables"]["SUBJECT_COLUMN"]
        for resource in one["Resources"].values():
            variables = resource.get("Properties", {}).get("Environment", {}).get("Variables", {})
            for name in constants:
                variables.pop(name, None)
    for name in (AUTHORIZER, f"{AUTHORIZER}Logs"):
        del after["Resources"][name]
    del after["Outputs"][f"{AUTHORIZER}Name"]

    assert after == before


def test_paths_lead_from_where_it_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "deeper" / "template-litemaas.yaml"

    write(target)

    [code, layer] = re.findall(r"(?:CodeUri|ContentUri): (\S+)", target.read_text())
    assert (target.parent / code).resolve() == ROOT / "functions"
    assert (target.parent / layer).resolve() == ROOT / "layers" / "shared"


def test_short_forms_stay_short(source: str) -> None:
    text = litemaas_template(source)

    assert re.search(r"!Ref '?LogRetentionDays", text)
    assert re.search(r"!GetAtt '?MacKey\.Arn", text)
    assert "!Sub " in text
    assert "Fn::" not in text


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        pytest.param("  JwtIssuer:\n", "  Issuer:\n", "there is no Parameters.JwtIssuer", id="a parameter renamed"),
        pytest.param(
            "      Auth:\n        DefaultAuthorizer", "      Auths:\n        X", "no Resources.Api", id="no Auth"
        ),
        pytest.param("          - JwtAudience\n", "", "first group of parameters", id="a parameter elsewhere"),
        pytest.param("RELEASE_SHA: !Ref ReleaseSha", "X: !Ref JwtIssuer", "JwtIssuer is used", id="the issuer used"),
    ],
)
def test_a_template_it_does_not_know_is_refused(source: str, old: str, new: str, complaint: str) -> None:
    assert old in source

    with pytest.raises(TransformationError, match=complaint):
        litemaas_template(source.replace(old, new, 1))
