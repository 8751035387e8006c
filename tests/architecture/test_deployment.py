"""What a deployment may decide, and what becomes of it in the CloudFormation that SAM makes of template.yaml."""

import re
from typing import Any

import pytest

from local.errors import StartFailed
from local.intrinsics import Resolver
from local.template import Application, Template
from tests.architecture.translation import DEPLOYMENT, ROOT, read_template, translate

CERTIFICATE = "arn:aws:acm:eu-central-1:123456789012:certificate/0123"
TOPIC = "arn:aws:sns:eu-central-1:123456789012:pager"
BOUNDARY = {"Fn::If": ["HasBoundary", {"Ref": "PermissionsBoundary"}, {"Ref": "AWS::NoValue"}]}
# What callers of the API have to be able to read and to send from a web page.
READ_BY_PAGES = {"etag", "idempotency-replayed", "location", "retry-after", "x-request-id"}
SENT_BY_PAGES = {"authorization", "content-type", "idempotency-key", "if-match", "x-request-id", "x-correlation-id"}


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return read_template()


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    return translate()


@pytest.fixture(scope="module")
def resources(stack: dict[str, Any]) -> dict[str, Any]:
    return stack["Resources"]


def of_type(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    return {name: resource["Properties"] for name, resource in resources.items() if resource["Type"] == kind}


def application(**parameters: str) -> Application:
    """The template as this machine reads it, deployed with these parameters."""
    return Template(ROOT / "template.yaml").resolve(
        parameters=DEPLOYMENT | parameters,
        references={
            "AWS::StackName": "keyservice-test",
            "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com",
        },
        attributes={"MacKey": {"Arn": "arn:mac"}},
    )


def with_parameters(template: dict[str, Any], node: Any, **parameters: str) -> Any:
    """The node of the translation, computed."""
    defaults = {name: parameter.get("Default", "") for name, parameter in template["Parameters"].items()}
    resolver = Resolver(
        references={**defaults, **DEPLOYMENT, **parameters, "AWS::StackName": "keyservice-test"},
        attributes={},
        conditions=template["Conditions"],
        mappings={},
    )
    # Wrapped, so that one that is !Ref AWS::NoValue is left out.
    return resolver.value({"node": node}).get("node")


# Combinations that cannot be.


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        pytest.param({"DomainName": "keys.example.com"}, "DomainName and CertificateArn", id="domain-alone"),
        pytest.param({"CertificateArn": CERTIFICATE}, "DomainName and CertificateArn", id="certificate-alone"),
        pytest.param({"AlarmTopicArn": TOPIC, "AlarmEmail": "ops@example.com"}, "stack's own topic", id="two-topics"),
        pytest.param({"DatabaseDirectCaBundle": "/opt/ca.pem"}, "which is empty", id="bundle-for-no-host"),
        pytest.param(
            {"DatabaseSecretArn": DEPLOYMENT["DatabaseMigratorSecretArn"]},
            "must not log in as the owner",
            id="owner-serves",
        ),
        pytest.param({"LiteLLMSecretArn": DEPLOYMENT["DatabaseSecretArn"]}, "two different", id="one-secret"),
    ],
)
def test_a_combination_that_cannot_be_is_refused(parameters: dict[str, str], complaint: str) -> None:
    with pytest.raises(StartFailed, match=complaint):
        application(**parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"DomainName": "keys.example.com", "CertificateArn": CERTIFICATE}, id="domain"),
        pytest.param({"AlarmTopicArn": TOPIC}, id="own-topic"),
        pytest.param({"AlarmEmail": "ops@example.com"}, id="mail"),
        pytest.param({"DatabaseDirectHost": "db", "DatabaseDirectCaBundle": "/opt/ca.pem"}, id="direct-host"),
    ],
)
def test_a_combination_that_can_be_is_not(parameters: dict[str, str]) -> None:
    assert application(**parameters).functions


def test_every_rule_says_what_to_do(stack: dict[str, Any]) -> None:
    said = [
        (name, assertion.get("AssertDescription", ""))
        for name, rule in stack["Rules"].items()
        for assertion in rule["Assertions"]
    ]

    assert len(said) >= 5
    assert [name for name, text in said if len(text) < 30] == []


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        pytest.param("DomainName", "https://keys.example.com", id="a-url-for-a-name"),
        pytest.param("DomainName", "keys", id="a-name-of-one-part"),
        pytest.param("CorsOrigins", "https://a.example.com, https://b.example.com", id="a-blank"),
        pytest.param("CorsOrigins", "https://a.example.com/", id="closing-slash"),
        pytest.param("CorsOrigins", "*,https://a.example.com", id="any-and-one"),
        pytest.param("CertificateArn", "certificate/0123", id="no-arn"),
        pytest.param("LogKmsKeyArn", "alias/logs", id="an-alias"),
        pytest.param("PermissionsBoundary", "boundary", id="a-name-for-an-arn"),
        pytest.param("AlarmEmail", "ops", id="no-address"),
        pytest.param("RunbookUrl", "https://wiki.example.com/", id="slash"),
    ],
)
def test_a_value_that_cannot_work_is_refused(template: dict[str, Any], parameter: str, value: str) -> None:
    assert not re.search(template["Parameters"][parameter]["AllowedPattern"], value)


# The door.


def test_web_pages_may_not_call_unless_their_origin_is_named(
    template: dict[str, Any], resources: dict[str, Any]
) -> None:
    cors = resources["Api"]["Properties"]["Body"]["x-amazon-apigateway-cors"]

    assert application().cors is None
    assert with_parameters(template, cors) is None


def test_each_origin_is_a_value_of_its_own_and_their_pages_may_read_what_they_need() -> None:
    stack = translate(CorsOrigins="https://one.example.com,https://two.example.com")
    cors = with_parameters(
        read_template(),
        stack["Resources"]["Api"]["Properties"]["Body"]["x-amazon-apigateway-cors"],
        CorsOrigins="https://one.example.com,https://two.example.com",
    )

    assert cors["allowOrigins"] == ["https://one.example.com", "https://two.example.com"]
    assert set(cors["exposeHeaders"]) >= READ_BY_PAGES
    assert set(cors["allowHeaders"]) >= SENT_BY_PAGES
    # No cookie says who calls, so no page has to be trusted with one.
    assert "allowCredentials" not in cors


def test_pages_may_use_every_method_there_is(resources: dict[str, Any]) -> None:
    body = resources["Api"]["Properties"]["Body"]
    used = {method.upper() for operations in body["paths"].values() for method in operations}

    assert used <= set(body["x-amazon-apigateway-cors"]["Fn::If"][1]["allowMethods"])


def test_every_route_is_throttled_and_making_keys_by_itself(resources: dict[str, Any]) -> None:
    [stage] = of_type(resources, "AWS::ApiGatewayV2::Stage").values()
    routes = {
        f"{method.upper()} {path}"
        for path, operations in resources["Api"]["Properties"]["Body"]["paths"].items()
        for method in operations
    }

    assert stage["DefaultRouteSettings"] == {
        "ThrottlingRateLimit": {"Ref": "RequestsPerSecond"},
        "ThrottlingBurstLimit": {"Ref": "RequestBurst"},
    }
    assert stage["RouteSettings"]["POST /api/v1/api-keys"] == {
        "ThrottlingRateLimit": {"Ref": "CreatesPerSecond"},
        "ThrottlingBurstLimit": {"Ref": "CreateBurst"},
    }
    # API Gateway refuses settings of a route that is not there.
    assert set(stage["RouteSettings"]) <= routes


def test_a_domain_is_made_only_with_its_name_and_speaks_tls_1_2(resources: dict[str, Any]) -> None:
    domain, mapping = resources["Domain"], resources["DomainMapping"]

    assert (domain["Condition"], mapping["Condition"]) == ("HasDomain", "HasDomain")
    assert domain["Properties"]["DomainNameConfigurations"] == [
        {"CertificateArn": {"Ref": "CertificateArn"}, "EndpointType": "REGIONAL", "SecurityPolicy": "TLS_1_2"}
    ]
    assert mapping["Properties"]["ApiId"] == {"Ref": "Api"}


# What an account may ask of every resource.


def test_a_boundary_bounds_every_role(resources: dict[str, Any]) -> None:
    roles = of_type(resources, "AWS::IAM::Role")

    assert len(roles) > 20
    assert [name for name, role in roles.items() if role.get("PermissionsBoundary") != BOUNDARY] == []


def test_every_log_group_takes_the_key_for_logs(resources: dict[str, Any]) -> None:
    key = {"Fn::If": ["EncryptsLogs", {"Ref": "LogKmsKeyArn"}, {"Ref": "AWS::NoValue"}]}

    assert [name for name, p in of_type(resources, "AWS::Logs::LogGroup").items() if p.get("KmsKeyId") != key] == []


@pytest.mark.parametrize(("given", "reserved"), [("0", None), ("5", "5")])
def test_concurrency_is_reserved_for_every_function_or_none(
    template: dict[str, Any], resources: dict[str, Any], given: str, reserved: str | None
) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    found = {
        with_parameters(template, p["ReservedConcurrentExecutions"], ReservedConcurrency=given)
        for p in functions.values()
    }

    assert found == {reserved}


@pytest.mark.parametrize(("given", "applied"), [("off", "None"), ("on", "PublishedVersions")])
def test_snapshots_are_taken_only_when_asked_for(
    template: dict[str, Any], resources: dict[str, Any], given: str, applied: str
) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    with_snapshots = {name for name, p in functions.items() if "SnapStart" in p}
    found = {
        with_parameters(template, functions[name]["SnapStart"]["ApplyOn"], SnapStart=given) for name in with_snapshots
    }

    # It has no versions, which are what snapshots are of.
    assert set(functions) - with_snapshots == {"MigrateDatabase"}
    assert template["Parameters"]["SnapStart"]["Default"] == "off"
    assert found == {applied}


# A release.


def test_every_function_waits_for_the_migration_of_its_release(resources: dict[str, Any]) -> None:
    functions = {name: r for name, r in resources.items() if r["Type"] == "AWS::Lambda::Function"}

    assert {name for name, f in functions.items() if f.get("DependsOn") != "Migration"} == {"MigrateDatabase"}


def test_the_migration_is_asked_again_in_each_release_and_not_through_an_alias(resources: dict[str, Any]) -> None:
    migration, function = resources["Migration"], resources["MigrateDatabase"]["Properties"]

    assert migration["Type"] == "AWS::CloudFormation::CustomResource"
    assert migration["Properties"]["ServiceToken"] == {"Fn::GetAtt": ["MigrateDatabase", "Arn"]}
    assert migration["Properties"]["ReleaseSha"] == {"Ref": "ReleaseSha"}
    # Building indexes beside other work takes its time; CloudFormation waits for an hour at most.
    assert function["Timeout"] < migration["Properties"]["ServiceTimeout"] <= 3600
    assert [name for name in resources if name.startswith("MigrateDatabase")] == [
        "MigrateDatabaseLogs",
        "MigrateDatabase",
        "MigrateDatabaseRole",
    ]


def test_the_migration_goes_to_postgresql_itself_when_its_host_is_given() -> None:
    through_proxy = application(DatabaseHost="proxy", DatabaseCaBundle="")
    direct = application(DatabaseHost="proxy", DatabaseDirectHost="db", DatabaseDirectCaBundle="/opt/rds.pem")

    def address(deployed: Application, function: str) -> tuple[str, str]:
        environment = deployed.functions[function].environment
        return environment["DATABASE_HOST"], environment["DATABASE_CA_BUNDLE"]

    assert address(through_proxy, "MigrateDatabase") == ("proxy", "")
    assert address(direct, "MigrateDatabase") == ("db", "/opt/rds.pem")
    assert address(direct, "CreateApiKey") == ("proxy", "")


@pytest.mark.parametrize(
    ("strategy", "configuration", "alarms"),
    [
        ("AllAtOnce", "CodeDeployDefault.LambdaAllAtOnce", None),
        (
            "canary",
            "CodeDeployDefault.LambdaCanary10Percent5Minutes",
            ["keyservice-test-api-5xx", "keyservice-test-server-errors"],
        ),
        (
            "linear",
            "CodeDeployDefault.LambdaLinear10PercentEvery1Minute",
            ["keyservice-test-api-5xx", "keyservice-test-server-errors"],
        ),
    ],
)
def test_a_release_goes_to_the_functions_behind_routes_as_the_strategy_says(
    template: dict[str, Any],
    resources: dict[str, Any],
    strategy: str,
    configuration: str,
    alarms: list[str] | None,
) -> None:
    groups = of_type(resources, "AWS::CodeDeploy::DeploymentGroup")
    told = {
        name: with_parameters(
            template,
            {part: p[part] for part in ("DeploymentConfigName", "AlarmConfiguration", "AutoRollbackConfiguration")},
            DeploymentStrategy=strategy,
        )
        for name, p in groups.items()
    }
    behind_routes = {
        re.findall(r"functions/\${(\w+)Aliaslive}", operation["x-amazon-apigateway-integration"]["uri"]["Fn::Sub"])[0]
        for operations in resources["Api"]["Properties"]["Body"]["paths"].values()
        for operation in operations.values()
    }

    assert {name.removesuffix("DeploymentGroup") for name in groups} == behind_routes
    assert {p["DeploymentConfigName"] for p in told.values()} == {configuration}
    for properties in told.values():
        named = [alarm["Name"] for alarm in properties["AlarmConfiguration"].get("Alarms", [])] or None
        assert named == alarms
        assert properties["AutoRollbackConfiguration"]["Enabled"] is True


def test_the_alarms_that_take_a_release_back_are_there_by_these_names(resources: dict[str, Any]) -> None:
    names = {p["AlarmName"]["Fn::Sub"] for p in of_type(resources, "AWS::CloudWatch::Alarm").values()}

    assert {"${AWS::StackName}-api-5xx", "${AWS::StackName}-server-errors"} <= names


def test_aliases_behind_routes_are_moved_by_their_deployment_group(resources: dict[str, Any]) -> None:
    moved = {
        name.removesuffix("Aliaslive"): resource.get("UpdatePolicy", {})
        .get("CodeDeployLambdaAliasUpdate", {})
        .get("DeploymentGroupName")
        for name, resource in resources.items()
        if resource["Type"] == "AWS::Lambda::Alias"
    }
    groups = {name.removesuffix("DeploymentGroup") for name in of_type(resources, "AWS::CodeDeploy::DeploymentGroup")}

    assert moved == {name: {"Ref": f"{name}DeploymentGroup"} if name in groups else None for name in moved}


def test_what_a_schedule_could_not_deliver_is_kept_for_two_weeks_and_encrypted(resources: dict[str, Any]) -> None:
    queues = of_type(resources, "AWS::SQS::Queue")
    schedules = of_type(resources, "AWS::Scheduler::Schedule")
    kept_by = [schedule["Target"]["DeadLetterConfig"]["Arn"]["Fn::GetAtt"][0] for schedule in schedules.values()]

    assert sorted(kept_by) == sorted(queues)
    assert [q for q in queues.values() if q != {"SqsManagedSseEnabled": True, "MessageRetentionPeriod": 1209600}] == []
