"""stacks/foundation.yaml makes what template.yaml asks for, closed, encrypted and kept."""

import re
from typing import Any

import pytest
from samtranslator.yaml_helper import yaml_parse

from tests.architecture.translation import ROOT, read_template

CLAIM = "template.yaml: "


@pytest.fixture(scope="module")
def foundation() -> dict[str, Any]:
    return yaml_parse((ROOT / "stacks/foundation.yaml").read_text())


@pytest.fixture(scope="module")
def resources(foundation: dict[str, Any]) -> dict[str, Any]:
    return foundation["Resources"]


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: resource["Properties"] for name, resource in resources.items() if resource["Type"] == kind}


def claimed(foundation: dict[str, Any]) -> set[str]:
    return {name for name, output in foundation["Outputs"].items() if output["Description"].startswith(CLAIM)}


def rules(resources: dict[str, Any]) -> list[tuple[str, str, Any, str, Any]]:
    """Every opening between parts: from, to, port, condition; what has no security group is the text of its range."""
    found: list[tuple[str, str, Any, str, Any]] = []
    for name, properties in of_type(resources, "AWS::EC2::SecurityGroup").items():
        found += [
            (name, str(rule["CidrIp"]), rule.get("FromPort"), "out", None)
            for rule in properties["SecurityGroupEgress"]
            if rule["CidrIp"] != "127.0.0.1/32"
        ]
        found += [
            (rule["SourceSecurityGroupId"]["Ref"], name, rule["FromPort"], "in", None)
            for rule in properties.get("SecurityGroupIngress", [])
        ]
    for name, properties in of_type(resources, "AWS::EC2::SecurityGroupEgress").items():
        target = properties.get("DestinationSecurityGroupId") or properties.get("DestinationPrefixListId")
        found.append(
            (
                properties["GroupId"]["Ref"],
                target["Ref"] if target else properties["CidrIp"],
                properties["FromPort"],
                "out",
                resources[name]["Condition"],
            )
        )
    for name, properties in of_type(resources, "AWS::EC2::SecurityGroupIngress").items():
        found.append(
            (
                properties["SourceSecurityGroupId"]["Ref"],
                properties["GroupId"]["Ref"],
                properties["FromPort"],
                "in",
                resources[name]["Condition"],
            )
        )
    return sorted(found, key=str)


def test_an_output_that_says_it_is_a_parameter_of_the_template_is_one(foundation: dict[str, Any]) -> None:
    assert claimed(foundation) <= set(read_template()["Parameters"])


def test_the_other_outputs_are_for_people(foundation: dict[str, Any]) -> None:
    assert set(foundation["Outputs"]) - claimed(foundation) == {
        "AdminSecretArn",
        "DataKeyArn",
        "DatabaseArn",
    }


def test_the_template_needs_only_issuer_litellm_and_release_beside_the_outputs(foundation: dict[str, Any]) -> None:
    required = {name for name, p in read_template()["Parameters"].items() if "Default" not in p}

    assert required - claimed(foundation) == {
        "JwtAudience",
        "JwtIssuer",
        "LiteLLMSecretArn",
        "LiteLLMUrl",
        "ReleaseSha",
    }


def test_parameters_that_both_templates_have_mean_the_same(foundation: dict[str, Any]) -> None:
    other = read_template()["Parameters"]
    both = {"DatabaseName", "DatabaseAppUser"}

    assert {n: foundation["Parameters"][n]["Default"] for n in both} == {n: other[n]["Default"] for n in both}


def test_only_these_parts_may_talk_to_each_other(resources: dict[str, Any]) -> None:
    functions, proxy, database = "FunctionSecurityGroup", "ProxySecurityGroup", "DatabaseSecurityGroup"
    endpoints, existing = "EndpointSecurityGroup", "ExistingDatabaseSecurityGroupId"

    assert rules(resources) == sorted(
        [
            (functions, "{'Ref': 'LiteLLMCidr'}", {"Ref": "LiteLLMPort"}, "out", None),
            (functions, endpoints, 443, "in", None),
            (functions, endpoints, 443, "out", "MakesNetwork"),
            (functions, "0.0.0.0/0", 443, "out", "UsesExistingNetwork"),
            (functions, "S3PrefixListId", 443, "out", "KnowsS3"),
            (functions, "0.0.0.0/0", 443, "out", "DoesNotKnowS3"),
            (functions, proxy, 5432, "in", None),
            (functions, proxy, 5432, "out", "MakesDatabase"),
            (proxy, database, 5432, "in", None),
            (proxy, database, 5432, "out", "MakesDatabase"),
            (functions, database, 5432, "in", None),
            (functions, database, 5432, "out", "MakesDatabase"),
            (functions, existing, 5432, "in", "UsesExistingDatabase"),
            (functions, existing, 5432, "out", "UsesExistingDatabase"),
        ],
        key=str,
    )


def test_every_group_says_what_may_leave(resources: dict[str, Any]) -> None:
    groups = of_type(resources, "AWS::EC2::SecurityGroup")

    # Without one, CloudFormation leaves AWS's default: everything may leave.
    assert [name for name, p in groups.items() if not p.get("SecurityGroupEgress")] == []


def test_private_subnets_lie_in_two_zones_and_have_no_way_out_but_nat(resources: dict[str, Any]) -> None:
    zones = {
        name: p["AvailabilityZone"]["Fn::Select"][0]
        for name, p in of_type(resources, "AWS::EC2::Subnet").items()
        if name.startswith("Private")
    }
    routes = {
        (p["RouteTableId"]["Ref"], "GatewayId" in p, resources[name].get("Condition"))
        for name, p in of_type(resources, "AWS::EC2::Route").items()
    }

    assert zones == {"PrivateSubnetA": 0, "PrivateSubnetB": 1}
    assert routes == {
        ("PublicRoutes", True, "MakesNat"),
        ("PrivateRoutesA", False, "MakesNat"),
        ("PrivateRoutesB", False, "MakesNat"),
    }
    assert not [p for p in of_type(resources, "AWS::EC2::Subnet").values() if p.get("MapPublicIpOnLaunch")]


def test_endpoints_are_what_the_functions_call_and_let_nothing_else_through(resources: dict[str, Any]) -> None:
    endpoints = {
        p["ServiceName"]["Fn::Sub"].rpartition(".")[2]: p for p in of_type(resources, "AWS::EC2::VPCEndpoint").values()
    }
    allowed = {
        service: [s["Action"] for s in p["PolicyDocument"]["Statement"]]
        for service, p in endpoints.items()
        if "PolicyDocument" in p
    }

    assert allowed == {
        "s3": ["s3:PutObject", "s3:PutObject"],
        "secretsmanager": ["secretsmanager:GetSecretValue"],
        "kms": ["kms:GenerateMac"],
    }
    assert set(endpoints) - set(allowed) == {"logs", "events"}
    assert {resources[f"{name}Endpoint"]["Condition"] for name in ("Logs", "Events")} == {"MakesLogsAndEventsEndpoints"}


def test_everything_that_stores_is_encrypted_with_the_stacks_key(resources: dict[str, Any]) -> None:
    key = {"Fn::GetAtt": ["DataKey", "Arn"]}
    database = resources["Database"]["Properties"]

    assert database["StorageEncrypted"] is True
    assert (database["KmsKeyId"], database["MasterUserSecret"]["KmsKeyId"]) == (key, key)
    assert {p["KmsKeyId"]["Fn::GetAtt"][0] for p in of_type(resources, "AWS::SecretsManager::Secret").values()} == {
        "DataKey"
    }
    assert [p["KmsKeyId"] for p in of_type(resources, "AWS::Logs::LogGroup").values()] == [key, key]
    assert resources["DataKey"]["Properties"]["EnableKeyRotation"] is True


def test_nothing_that_cannot_be_made_again_goes_with_the_stack(resources: dict[str, Any]) -> None:
    kept = {name: r.get("DeletionPolicy") for name, r in resources.items() if r.get("DeletionPolicy") != "Delete"}

    assert {name: policy for name, policy in kept.items() if policy} == {
        "AppSecret": "Retain",
        "DataKey": "Retain",
        "Database": "Snapshot",
        "MigratorSecret": "Retain",
    }
    assert {r["DeletionPolicy"] == r["UpdateReplacePolicy"] for r in resources.values() if "DeletionPolicy" in r} == {
        True
    }


def test_the_database_is_private_backed_up_and_hard_to_delete(foundation: dict[str, Any]) -> None:
    resources = foundation["Resources"]
    database = resources["Database"]["Properties"]
    instances = of_type(resources, "AWS::RDS::DBInstance").values()

    assert database["DeletionProtection"] is True
    assert database["BackupRetentionPeriod"] == {"Ref": "BackupRetentionDays"}
    assert foundation["Parameters"]["BackupRetentionDays"]["MinValue"] >= 1
    assert [p["PubliclyAccessible"] for p in instances] == [False, False]
    assert resources["DatabaseParameters"]["Properties"]["Parameters"]["rds.force_ssl"] == "1"


def test_no_password_stands_in_the_template(resources: dict[str, Any]) -> None:
    database = resources["Database"]["Properties"]

    assert database["ManageMasterUserPassword"] is True
    assert "MasterUserPassword" not in database
    assert [p for p in of_type(resources, "AWS::SecretsManager::Secret").values() if "SecretString" in p] == []


def test_a_generated_login_has_the_fields_the_functions_read(resources: dict[str, Any]) -> None:
    shapes = {
        name: (
            re.findall(r'"(\w+)":', p["GenerateSecretString"]["SecretStringTemplate"]["Fn::Sub"]),
            p["GenerateSecretString"]["GenerateStringKey"],
        )
        for name, p in of_type(resources, "AWS::SecretsManager::Secret").items()
    }

    assert shapes == {"AppSecret": (["username"], "password"), "MigratorSecret": (["username"], "password")}


def test_the_proxy_takes_tls_only_and_knows_the_functions_login_only(resources: dict[str, Any]) -> None:
    proxy = resources["Proxy"]["Properties"]
    statements = resources["ProxyRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]

    assert proxy["RequireTLS"] is True
    assert [(a["SecretArn"], a["IAMAuth"]) for a in proxy["Auth"]] == [
        ({"Ref": "AppSecret"}, {"Fn::If": ["TakesIam", "REQUIRED", "DISABLED"]})
    ]
    assert [(s["Action"], s["Resource"]) for s in statements] == [
        ("secretsmanager:GetSecretValue", {"Ref": "AppSecret"}),
        ("kms:Decrypt", {"Fn::GetAtt": ["DataKey", "Arn"]}),
    ]


def test_no_role_may_do_anything_on_everything(resources: dict[str, Any]) -> None:
    statements = [
        s
        for p in of_type(resources, "AWS::IAM::Role").values()
        for policy in p["Policies"]
        for s in policy["PolicyDocument"]["Statement"]
    ]

    assert [s for s in statements if s["Resource"] == "*" or "*" in str(s["Action"])] == []


def test_every_parameter_is_described_constrained_and_grouped(foundation: dict[str, Any]) -> None:
    parameters = foundation["Parameters"]
    groups = foundation["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    unconstrained = {
        name
        for name, p in parameters.items()
        if not p.keys() & {"AllowedPattern", "AllowedValues", "MinValue"} or "ConstraintDescription" not in p
    }

    assert [name for name, p in parameters.items() if len(p.get("Description", "")) < 15] == []
    assert unconstrained == {"ExistingSubnetIds"}  # a list; a rule looks at it
    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(parameters)


@pytest.mark.parametrize("name", ["VpcCidr", "LiteLLMCidr", "DatabaseEngineVersion", "DatabaseName", "ExistingVpcId"])
def test_defaults_satisfy_their_patterns(foundation: dict[str, Any], name: str) -> None:
    parameter = foundation["Parameters"][name]

    assert re.search(parameter["AllowedPattern"], parameter["Default"])
