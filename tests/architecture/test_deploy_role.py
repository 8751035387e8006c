"""stacks/deploy-role.yaml lets a deployer make the stack and nothing beyond it."""

import re
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from tests.architecture.translation import ROOT, translate

# What CloudFormation calls for a kind of resource, by the service in its name where that is not the IAM prefix in lower case.
PREFIXES = {
    "AWS::ApiGatewayV2": "apigateway",
    "AWS::CloudWatch": "cloudwatch",
    "AWS::CodeDeploy": "codedeploy",
    "AWS::IAM": "iam",
    "AWS::KMS": "kms",
    "AWS::Lambda": "lambda",
    "AWS::Logs": "logs",
    "AWS::SNS": "sns",
    "AWS::SQS": "sqs",
    "AWS::Scheduler": "scheduler",
}
# EC2 and the log services know no narrower resource for these; the rest is made before it has a name, or only looks.
ON_EVERYTHING = {
    "Boundary": {"LiveInTheVpc"},
    "Deployer": {"LookAtTemplates", "Preflight"},
    "CloudFormationRole": {"MacKey", "WhatHasNoResource"},
}


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    return yaml_parse((ROOT / "stacks/deploy-role.yaml").read_text())["Resources"]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def statements(resources: dict[str, Any], name: str) -> dict[str, Any]:
    properties = resources[name]["Properties"]
    documents = [p["PolicyDocument"] for p in properties.get("Policies", [properties])]
    return {s["Sid"]: s for document in documents for s in document["Statement"]}


def actions(resources: dict[str, Any], name: str) -> set[str]:
    return {action for s in statements(resources, name).values() for action in as_list(s["Action"])}


@pytest.mark.parametrize("name", list(ON_EVERYTHING))
def test_only_these_statements_are_about_everything(resources: dict[str, Any], name: str) -> None:
    everything = {sid for sid, s in statements(resources, name).items() if "*" in as_list(s["Resource"])}

    assert everything == ON_EVERYTHING[name]


@pytest.mark.parametrize("name", list(ON_EVERYTHING))
def test_nobody_may_do_all_of_iam_or_all_of_anything(resources: dict[str, Any], name: str) -> None:
    wide = {
        action
        for action in actions(resources, name)
        if action == "*" or re.match(r"(iam|kms|s3|ec2|secretsmanager):\*", action)
    }

    assert wide == set()


def test_a_role_gets_rights_only_within_the_boundary(resources: dict[str, Any]) -> None:
    giving = {"iam:AttachRolePolicy", "iam:CreateRole", "iam:PutRolePolicy", "iam:PutRolePermissionsBoundary"}
    granting = [s for s in statements(resources, "CloudFormationRole").values() if giving & set(as_list(s["Action"]))]

    assert [s["Condition"] for s in granting] == [{"StringEquals": {"iam:PermissionsBoundary": {"Ref": "Boundary"}}}]
    assert giving <= set(granting[0]["Action"])
    assert "iam:DeleteRolePermissionsBoundary" not in actions(resources, "CloudFormationRole")


def test_the_deployer_acts_through_cloudformation_only(resources: dict[str, Any]) -> None:
    passing = statements(resources, "Deployer")["OnlyThroughCloudFormation"]
    services = {action.split(":")[0] for action in actions(resources, "Deployer")}

    assert passing["Resource"] == {"Fn::GetAtt": ["CloudFormationRole", "Arn"]}
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "cloudformation.amazonaws.com"}}
    assert services == {"cloudformation", "ec2", "iam", "lambda", "s3"}
    assert {a for a in actions(resources, "Deployer") if a.startswith("lambda:")} == {"lambda:InvokeFunction"}


@pytest.mark.parametrize("name", ["Deployer", "CloudFormationRole"])
def test_who_deploys_can_neither_read_secrets_nor_derive_them(resources: dict[str, Any], name: str) -> None:
    assert actions(resources, name) & {"secretsmanager:GetSecretValue", "kms:GenerateMac", "kms:Decrypt"} == set()


def test_the_mac_key_cannot_be_deleted_with_its_stack(resources: dict[str, Any]) -> None:
    assert actions(resources, "CloudFormationRole") & {"kms:ScheduleKeyDeletion", "kms:DisableKey"} == set()


def test_every_kind_of_resource_in_the_template_can_be_made(resources: dict[str, Any]) -> None:
    kinds = {resource["Type"].rpartition("::")[0] for resource in translate()["Resources"].values()}
    services = {action.split(":")[0] for action in actions(resources, "CloudFormationRole")}

    # A custom resource is a call of a function of the stack.
    assert {PREFIXES[kind] for kind in kinds - {"AWS::CloudFormation"}} <= services


def test_the_boundary_covers_all_that_the_functions_roles_ask_for(resources: dict[str, Any]) -> None:
    asked: set[str] = set()
    for resource in translate()["Resources"].values():
        if resource["Type"] in ("AWS::IAM::Role", "AWS::IAM::Policy"):
            policies = resource["Properties"].get("Policies", [resource["Properties"]])
            unconditional = [p["Fn::If"][1] if "Fn::If" in p else p for p in policies]
            asked |= {
                action
                for p in unconditional
                if "PolicyDocument" in p
                for s in p["PolicyDocument"]["Statement"]
                for action in as_list(s["Action"])
            }

    assert asked <= actions(resources, "Boundary")
    assert "kms:GenerateMac" in actions(resources, "Boundary")  # granted in the key's own policy
