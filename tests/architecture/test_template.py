"""template.yaml keeps what the design promises, read from the CloudFormation that SAM makes of it."""

import re
from typing import Any

import pytest

from tests.architecture.translation import DEPLOYMENT, ROOT, read_template, translate

HTTP_FUNCTIONS = [
    "CheckHealth",
    "CleanUpExpired",
    "CompleteRotation",
    "CreateApiKey",
    "CreateUserApiKey",
    "DeleteApiKey",
    "DeleteUserApiKey",
    "GetApiKey",
    "GetApiKeyStats",
    "GetKeyDefaults",
    "GetKeyDefaultsAsAdmin",
    "ListAllApiKeys",
    "ListApiKeys",
    "ListAuditRecords",
    "ListOperations",
    "ListUserApiKeys",
    "ResetSpend",
    "RetryOperation",
    "ServeOpenapi",
    "RevealApiKey",
    "RotateApiKey",
    "SetKeyDefaults",
    "UpdateApiKey",
    "UpdateUserApiKey",
    "ValidateApiKey",
]
# Each with the name of its schedule.
SCHEDULED_FUNCTIONS = {
    "Reconcile": "Every15Minutes",
    "SettleOperations": "EveryMinute",
    "SyncSpend": "EveryFiveMinutes",
}
# Without a route or a schedule.
INVOKED_FUNCTIONS = ["AdoptLiteMaaSKeys", "MigrateDatabase"]
# Only the drop-in's template has it: test_litemaas_template.py.
ELSEWHERE = {"authorize_litemaas_token.handler"}
FUNCTIONS = sorted([*HTTP_FUNCTIONS, *SCHEDULED_FUNCTIONS, *INVOKED_FUNCTIONS])

# An HTTP API answers 503 itself when an integration takes longer; it cannot be raised (AWS quota).
HTTP_API_LIMIT_SECONDS = 30
# What a request may need beside LiteLLM: connecting to the database, and its last statement.
DATABASE_CONNECT_SECONDS = 3
LAST_STATEMENT_SECONDS = 5

EVERYWHERE = {
    "DATABASE_CA_BUNDLE",
    "DATABASE_HOST",
    "DATABASE_IAM_USER",
    "DATABASE_PREPARED_STATEMENTS",
    "DATABASE_NAME",
    "DATABASE_PORT",
    "FUNCTION_TIMEOUT_SECONDS",
    "LITELLM_BUDGET_SECONDS",
    "POWERTOOLS_LOG_LEVEL",
    "POWERTOOLS_METRICS_NAMESPACE",
    "POWERTOOLS_SERVICE_NAME",
    "RELEASE_SHA",
    "SUBJECT_COLUMN",
    "URL_SUFFIX",
}
DATABASE = {"DATABASE_SECRET_ARN"}
# Has nothing to say that is not in the source.
WITHOUT_DATABASE = {"ServeOpenapi"}
CALLER = {"EMAIL_CLAIM", "NAME_CLAIM", "OAUTH_PROVIDER", "ROLES_CLAIM", "SUBJECT_CLAIM", "USERNAME_CLAIM"}
CREATING = CALLER | {
    "GATEWAY_DRAIN_SECONDS",
    "LITELLM_SECRET_ARN",
    "LITELLM_URL",
    "MAC_KEY_ARN",
    "MAX_ACTIVE_KEYS",
    "MODEL_ACCESS",
    "RESUME_SECONDS",
    "STACK_NAME",
}
DELETING = CALLER | {"GATEWAY_CACHE_SECONDS", "GATEWAY_DRAIN_SECONDS", "LITELLM_SECRET_ARN", "LITELLM_URL"}
ALTERING = CALLER | {
    "GATEWAY_DRAIN_SECONDS",
    "LITELLM_SECRET_ARN",
    "LITELLM_URL",
    "MODEL_ACCESS",
    "OWNERS_MAY_RESET_SPEND",
}
OWN_VARIABLES = {
    "CheckHealth": {"LITELLM_URL"},
    "ServeOpenapi": set(),
    "CreateApiKey": CREATING,
    "CreateUserApiKey": CREATING,
    "DeleteApiKey": DELETING,
    "DeleteUserApiKey": DELETING,
    "CleanUpExpired": CALLER | {"EXPIRY_MODE", "LITELLM_SECRET_ARN", "LITELLM_URL", "STACK_NAME"},
    "UpdateApiKey": ALTERING,
    "UpdateUserApiKey": ALTERING,
    "ResetSpend": ALTERING,
    "RotateApiKey": CALLER
    | {
        "GATEWAY_CACHE_SECONDS",
        "GATEWAY_DRAIN_SECONDS",
        "LITELLM_SECRET_ARN",
        "LITELLM_URL",
        "MAC_KEY_ARN",
        "RESUME_SECONDS",
    },
    "CompleteRotation": CALLER | {"GATEWAY_CACHE_SECONDS", "LITELLM_SECRET_ARN", "LITELLM_URL"},
    "RevealApiKey": CALLER | {"MAC_KEY_ARN", "REVEAL_POLICY"},
    "ListApiKeys": CALLER,
    "GetApiKey": CALLER,
    "GetApiKeyStats": CALLER,
    "ListAllApiKeys": CALLER,
    "ListUserApiKeys": CALLER,
    "ValidateApiKey": CALLER,
    "GetKeyDefaults": CALLER,
    "GetKeyDefaultsAsAdmin": CALLER,
    "SetKeyDefaults": CALLER,
    "ListAuditRecords": CALLER,
    "ListOperations": CALLER,
    "RetryOperation": CALLER,
    "SettleOperations": {
        "EXPIRY_MODE",
        "GATEWAY_DRAIN_SECONDS",
        "LITELLM_SECRET_ARN",
        "LITELLM_URL",
        "SETTLE_FIRST_WAIT_SECONDS",
        "SETTLE_LONGEST_WAIT_SECONDS",
        "SETTLE_RESERVE_SECONDS",
        "STACK_NAME",
    },
    "SyncSpend": {"LITELLM_SECRET_ARN", "LITELLM_URL", "SPEND_PAGES_AT_ONCE", "SPEND_RESERVE_SECONDS"},
    "AdoptLiteMaaSKeys": {
        "ADOPTION_PAGES_AT_ONCE",
        "ADOPTION_RESERVE_SECONDS",
        "LITELLM_SECRET_ARN",
        "LITELLM_URL",
        "STACK_NAME",
    },
    "MigrateDatabase": {"DATABASE_APP_USER", "LITELLM_URL", "STACK_NAME"},
    "Reconcile": {
        "GATEWAY_DRAIN_SECONDS",
        "LITELLM_SECRET_ARN",
        "LITELLM_URL",
        "RECONCILE_BUCKET",
        "RECONCILE_MAX_HEALS",
        "RECONCILE_MODE",
        "RECONCILE_RESERVE_SECONDS",
        "STACK_NAME",
    },
}


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


def variables(resources: dict[str, Any], function: str) -> dict[str, Any]:
    return resources[function]["Properties"]["Environment"]["Variables"]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_the_stack_has_these_functions(resources: dict[str, Any]) -> None:
    assert sorted(of_type(resources, "AWS::Lambda::Function")) == FUNCTIONS


def test_each_handler_file_has_its_function_and_each_function_its_file(resources: dict[str, Any]) -> None:
    handlers = [p["Handler"] for p in of_type(resources, "AWS::Lambda::Function").values()]

    files = {f"{file.stem}.handler" for file in (ROOT / "functions").glob("*.py")}
    assert sorted(handlers) == sorted(files - ELSEWHERE)


def test_a_handler_file_stays_within_forty_lines() -> None:
    lengths = {file.name: len(file.read_text().splitlines()) for file in (ROOT / "functions").glob("*.py")}

    assert {name: length for name, length in lengths.items() if length > 40} == {}


def test_every_route_but_health_and_description_asks_for_a_token(resources: dict[str, Any]) -> None:
    paths = resources["Api"]["Properties"]["Body"]["paths"]
    routes = {
        f"{method.upper()} {path}": [name for scheme in operation["security"] for name in scheme]
        for path, operations in paths.items()
        for method, operation in operations.items()
    }

    assert routes == {
        "DELETE /api/v1/api-keys/{id}": ["Jwt"],
        "PATCH /api/v1/api-keys/{id}": ["Jwt"],
        "PATCH /api/v1/admin/users/{userId}/api-keys/{id}": ["Jwt"],
        "POST /api/v1/api-keys/{id}/reset-spend": ["Jwt"],
        "GET /api/v1/admin/operations": ["Jwt"],
        "GET /api/v1/api-keys": ["Jwt"],
        "GET /api/v1/api-keys/{id}": ["Jwt"],
        "GET /api/v1/api-keys/stats": ["Jwt"],
        "GET /api/v1/api-keys/admin/all": ["Jwt"],
        "GET /api/v1/admin/users/{userId}/api-keys": ["Jwt"],
        "POST /api/v1/api-keys/validate": ["Jwt"],
        "GET /api/v1/config/api-key-defaults": ["Jwt"],
        "GET /api/v1/admin/settings/api-key-defaults": ["Jwt"],
        "PUT /api/v1/admin/settings/api-key-defaults": ["Jwt"],
        "GET /api/v1/admin/audit": ["Jwt"],
        "GET /health": ["NONE"],
        "GET /api/v1/openapi.json": ["NONE"],
        "POST /api/v1/admin/operations/{id}/retry": ["Jwt"],
        "POST /api/v1/api-keys": ["Jwt"],
        "POST /api/v1/admin/users/{userId}/api-keys": ["Jwt"],
        "DELETE /api/v1/admin/users/{userId}/api-keys/{id}": ["Jwt"],
        "POST /api/v1/api-keys/admin/cleanup-expired": ["Jwt"],
        "POST /api/v1/api-keys/{id}/reveal": ["Jwt"],
        "POST /api/v1/api-keys/{id}/rotate": ["Jwt"],
        "POST /api/v1/api-keys/{id}/rotate/complete": ["Jwt"],
    }


def test_each_route_calls_the_live_version_of_its_function_with_payload_2_0(resources: dict[str, Any]) -> None:
    paths = resources["Api"]["Properties"]["Body"]["paths"]
    targets = {
        f"{method.upper()} {path}": (
            re.findall(
                r"functions/\${(\w+)}/invocations", operation["x-amazon-apigateway-integration"]["uri"]["Fn::Sub"]
            ),
            operation["x-amazon-apigateway-integration"]["payloadFormatVersion"],
        )
        for path, operations in paths.items()
        for method, operation in operations.items()
    }

    assert targets == {
        "DELETE /api/v1/api-keys/{id}": (["DeleteApiKeyAliaslive"], "2.0"),
        "PATCH /api/v1/api-keys/{id}": (["UpdateApiKeyAliaslive"], "2.0"),
        "PATCH /api/v1/admin/users/{userId}/api-keys/{id}": (["UpdateUserApiKeyAliaslive"], "2.0"),
        "POST /api/v1/api-keys/{id}/reset-spend": (["ResetSpendAliaslive"], "2.0"),
        "GET /api/v1/admin/operations": (["ListOperationsAliaslive"], "2.0"),
        "GET /api/v1/api-keys": (["ListApiKeysAliaslive"], "2.0"),
        "GET /api/v1/api-keys/{id}": (["GetApiKeyAliaslive"], "2.0"),
        "GET /api/v1/api-keys/stats": (["GetApiKeyStatsAliaslive"], "2.0"),
        "GET /api/v1/api-keys/admin/all": (["ListAllApiKeysAliaslive"], "2.0"),
        "GET /api/v1/admin/users/{userId}/api-keys": (["ListUserApiKeysAliaslive"], "2.0"),
        "POST /api/v1/api-keys/validate": (["ValidateApiKeyAliaslive"], "2.0"),
        "GET /api/v1/config/api-key-defaults": (["GetKeyDefaultsAliaslive"], "2.0"),
        "GET /api/v1/admin/settings/api-key-defaults": (["GetKeyDefaultsAsAdminAliaslive"], "2.0"),
        "PUT /api/v1/admin/settings/api-key-defaults": (["SetKeyDefaultsAliaslive"], "2.0"),
        "GET /api/v1/admin/audit": (["ListAuditRecordsAliaslive"], "2.0"),
        "GET /health": (["CheckHealthAliaslive"], "2.0"),
        "GET /api/v1/openapi.json": (["ServeOpenapiAliaslive"], "2.0"),
        "POST /api/v1/admin/operations/{id}/retry": (["RetryOperationAliaslive"], "2.0"),
        "POST /api/v1/api-keys": (["CreateApiKeyAliaslive"], "2.0"),
        "POST /api/v1/admin/users/{userId}/api-keys": (["CreateUserApiKeyAliaslive"], "2.0"),
        "DELETE /api/v1/admin/users/{userId}/api-keys/{id}": (["DeleteUserApiKeyAliaslive"], "2.0"),
        "POST /api/v1/api-keys/admin/cleanup-expired": (["CleanUpExpiredAliaslive"], "2.0"),
        "POST /api/v1/api-keys/{id}/reveal": (["RevealApiKeyAliaslive"], "2.0"),
        "POST /api/v1/api-keys/{id}/rotate": (["RotateApiKeyAliaslive"], "2.0"),
        "POST /api/v1/api-keys/{id}/rotate/complete": (["CompleteRotationAliaslive"], "2.0"),
    }


def test_the_authorizer_takes_issuer_and_audience_from_the_parameters(resources: dict[str, Any]) -> None:
    api = resources["Api"]["Properties"]

    assert api["FailOnWarnings"] is True
    assert api["Body"]["components"]["securitySchemes"] == {
        "Jwt": {
            "type": "oauth2",
            "x-amazon-apigateway-authorizer": {
                "type": "jwt",
                "identitySource": "$request.header.Authorization",
                "jwtConfiguration": {"issuer": {"Ref": "JwtIssuer"}, "audience": [{"Ref": "JwtAudience"}]},
            },
        }
    }


@pytest.mark.parametrize(
    ("function", "secrets"),
    [
        ("CheckHealth", ["DatabaseSecretArn"]),
        ("ServeOpenapi", []),
        ("CreateApiKey", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("DeleteApiKey", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("UpdateApiKey", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("UpdateUserApiKey", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("ResetSpend", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("CreateUserApiKey", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("DeleteUserApiKey", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("CleanUpExpired", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("RotateApiKey", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("CompleteRotation", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("RevealApiKey", ["DatabaseSecretArn"]),
        ("ListApiKeys", ["DatabaseSecretArn"]),
        ("SyncSpend", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
        ("GetApiKey", ["DatabaseSecretArn"]),
        ("GetApiKeyStats", ["DatabaseSecretArn"]),
        ("ListAllApiKeys", ["DatabaseSecretArn"]),
        ("ListUserApiKeys", ["DatabaseSecretArn"]),
        ("ValidateApiKey", ["DatabaseSecretArn"]),
        ("GetKeyDefaults", ["DatabaseSecretArn"]),
        ("GetKeyDefaultsAsAdmin", ["DatabaseSecretArn"]),
        ("SetKeyDefaults", ["DatabaseSecretArn"]),
        ("ListAuditRecords", ["DatabaseSecretArn"]),
        ("MigrateDatabase", ["DatabaseMigratorSecretArn"]),
        ("AdoptLiteMaaSKeys", ["DatabaseMigratorSecretArn", "LiteLLMSecretArn"]),
        ("Reconcile", ["DatabaseSecretArn", "LiteLLMSecretArn"]),
    ],
)
def test_a_role_reads_exactly_its_secrets_and_may_do_nothing_else(
    resources: dict[str, Any], function: str, secrets: list[str]
) -> None:
    role = resources[f"{function}Role"]["Properties"]
    always = [policy for policy in role.get("Policies", []) if "Fn::If" not in policy]
    statements = [s for policy in always for s in policy["PolicyDocument"]["Statement"]]

    assert [s["Effect"] for s in statements] == ["Allow"] * len(secrets)
    assert [s["Action"] for s in statements] == [["secretsmanager:GetSecretValue"]] * len(secrets)
    assert [s["Resource"] for s in statements] == [
        {"Fn::Sub": ["${secretArn}", {"secretArn": {"Ref": secret}}]} for secret in secrets
    ]
    assert sorted(arn.rpartition("/")[2] for arn in role["ManagedPolicyArns"]) == [
        "AWSLambdaBasicExecutionRole",
        "AWSLambdaVPCAccessExecutionRole",
    ]


def test_only_reconcile_may_do_more_and_only_keep_its_reports_in_a_bucket_that_was_given(
    template: dict[str, Any], resources: dict[str, Any]
) -> None:
    conditional = {
        function: [
            policy["Fn::If"]
            for policy in resources[f"{function}Role"]["Properties"].get("Policies", [])
            if "Fn::If" in policy
        ]
        for function in FUNCTIONS
    }
    [[condition, granted, otherwise]] = conditional.pop("Reconcile")

    assert list(conditional.values()) == [[]] * len(conditional)
    assert template["Conditions"][condition] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "ReconcileBucket"}, ""]}]}
    assert granted["PolicyDocument"]["Statement"] == [
        {
            "Effect": "Allow",
            "Action": "s3:PutObject",
            "Resource": {"Fn::Sub": "arn:${AWS::Partition}:s3:::${ReconcileBucket}/reports/*"},
        }
    ]
    assert otherwise == {"Ref": "AWS::NoValue"}


@pytest.mark.parametrize(
    ("function", "rate"),
    [
        ("Reconcile", "rate(15 minutes)"),
        ("SettleOperations", "rate(1 minute)"),
        ("SyncSpend", "rate(5 minutes)"),
    ],
)
def test_a_schedule_calls_the_live_version_and_never_repeats(
    resources: dict[str, Any], function: str, rate: str
) -> None:
    name = f"{function}{SCHEDULED_FUNCTIONS[function]}"
    schedule = resources[name]["Properties"]
    statements = [
        s for p in resources[f"{name}Role"]["Properties"]["Policies"] for s in p["PolicyDocument"]["Statement"]
    ]
    asynchronous = resources[f"{function}EventInvokeConfig"]["Properties"]

    assert schedule["ScheduleExpression"] == rate
    assert schedule["Target"]["Arn"] == {"Ref": f"{function}Aliaslive"}
    assert schedule["Target"]["RetryPolicy"] == {"MaximumRetryAttempts": 0, "MaximumEventAgeInSeconds": 60}
    assert schedule["Target"]["DeadLetterConfig"] == {"Arn": {"Fn::GetAtt": [f"{function}Undelivered", "Arn"]}}
    assert "Name" not in schedule  # a second stack in the account would want the same
    assert statements == [
        {"Effect": "Allow", "Action": "lambda:InvokeFunction", "Resource": {"Ref": f"{function}Aliaslive"}},
        {
            "Effect": "Allow",
            "Action": "sqs:SendMessage",
            "Resource": {"Fn::GetAtt": [f"{function}Undelivered", "Arn"]},
        },
    ]
    assert (asynchronous["Qualifier"], asynchronous["MaximumRetryAttempts"]) == ("live", 0)
    assert asynchronous["MaximumEventAgeInSeconds"] == 60


def test_reconcile_is_over_before_the_next_one_comes(resources: dict[str, Any]) -> None:
    assert resources["Reconcile"]["Properties"]["Timeout"] < 15 * 60


def test_each_function_has_a_role_of_its_own(resources: dict[str, Any]) -> None:
    roles = {name: p["Role"] for name, p in of_type(resources, "AWS::Lambda::Function").items()}

    assert roles == {name: {"Fn::GetAtt": [f"{name}Role", "Arn"]} for name in FUNCTIONS}
    # A schedule's own role may invoke its function and keep what it could not deliver, and nothing else.
    schedulers = [f"{name}{schedule}Role" for name, schedule in SCHEDULED_FUNCTIONS.items()]
    assert list(of_type(resources, "AWS::IAM::Policy")) == ["FunctionsLogInWithIam"]
    assert sorted(of_type(resources, "AWS::IAM::Role")) == sorted(
        [f"{name}Role" for name in FUNCTIONS] + schedulers + ["DeploymentRole"]
    )
    assert of_type(resources, "AWS::IAM::ManagedPolicy") == {}


def test_with_iam_all_but_what_an_operator_invokes_may_log_in_as_the_app_role_and_as_no_other(
    template: dict[str, Any], resources: dict[str, Any]
) -> None:
    policy = resources["FunctionsLogInWithIam"]

    assert template["Conditions"][policy["Condition"]] == {"Fn::Equals": [{"Ref": "DatabaseAuthentication"}, "iam"]}
    assert policy["Properties"]["Roles"] == [
        {"Ref": f"{name}Role"}
        for name in resources
        if name in {*HTTP_FUNCTIONS, *SCHEDULED_FUNCTIONS} - {"ServeOpenapi"}
    ]
    assert policy["Properties"]["PolicyDocument"]["Statement"] == [
        {
            "Effect": "Allow",
            "Action": "rds-db:connect",
            "Resource": {
                "Fn::Sub": "arn:${AWS::Partition}:rds-db:${AWS::Region}:${AWS::AccountId}:dbuser:"
                "${DatabaseResourceId}/${DatabaseAppUser}"
            },
        }
    ]


def test_what_an_operator_invokes_logs_in_with_its_password_also_where_others_do_with_iam(
    resources: dict[str, Any],
) -> None:
    users = {function: variables(resources, function)["DATABASE_IAM_USER"] for function in FUNCTIONS}

    assert [users.pop(function) for function in INVOKED_FUNCTIONS] == ["", ""]
    assert list(users.values()) == [{"Fn::If": ["LogsInWithIam", {"Ref": "DatabaseAppUser"}, ""]}] * len(users)


def test_a_run_that_brings_spend_has_let_go_before_the_next_one_comes(resources: dict[str, Any]) -> None:
    schedule = resources["SyncSpendEveryFiveMinutes"]["Properties"]["ScheduleExpression"]
    lease_seconds = int(variables(resources, "SyncSpend")["FUNCTION_TIMEOUT_SECONDS"]) + 5

    assert schedule == "rate(5 minutes)"
    assert lease_seconds < 5 * 60


def test_only_create_and_rotate_and_where_it_is_allowed_reveal_derive_secrets(
    template: dict[str, Any], resources: dict[str, Any]
) -> None:
    statements = resources["MacKey"]["Properties"]["KeyPolicy"]["Statement"]
    deriving = [
        s
        for s in statements
        if any(action in ("kms:*", "*", "kms:Generate*", "kms:GenerateMac") for action in as_list(s["Action"]))
    ]

    assert [s["Principal"] for s in deriving] == [
        {
            "AWS": [
                {"Fn::GetAtt": ["CreateApiKeyRole", "Arn"]},
                {"Fn::GetAtt": ["CreateUserApiKeyRole", "Arn"]},
                {"Fn::GetAtt": ["RotateApiKeyRole", "Arn"]},
                {
                    "Fn::If": [
                        "RevealsSecrets",
                        {"Fn::GetAtt": ["RevealApiKeyRole", "Arn"]},
                        {"Ref": "AWS::NoValue"},
                    ]
                },
            ]
        }
    ]
    assert template["Conditions"]["RevealsSecrets"] == {"Fn::Equals": [{"Ref": "RevealPolicy"}, "recent-login"]}
    assert template["Parameters"]["RevealPolicy"]["Default"] == "never"
    assert as_list(deriving[0]["Action"]) == ["kms:GenerateMac"]


def test_administrators_of_the_mac_key_can_neither_use_it_nor_lend_it(resources: dict[str, Any]) -> None:
    administration = next(
        s for s in resources["MacKey"]["Properties"]["KeyPolicy"]["Statement"] if s["Sid"] == "AccountAdministersTheKey"
    )
    uses = {"kms:GenerateMac", "kms:VerifyMac", "kms:CreateGrant"}

    assert not [action for action in administration["Action"] if "*" in action or action in uses]
    assert "kms:PutKeyPolicy" in administration["Action"]


def test_the_mac_key_survives_the_stack(resources: dict[str, Any]) -> None:
    key = resources["MacKey"]

    assert (key["DeletionPolicy"], key["UpdateReplacePolicy"]) == ("Retain", "Retain")
    assert (key["Properties"]["KeySpec"], key["Properties"]["KeyUsage"]) == ("HMAC_256", "GENERATE_VERIFY_MAC")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_gets_exactly_the_variables_it_needs(resources: dict[str, Any], function: str) -> None:
    assert set(variables(resources, function)) == EVERYWHERE | OWN_VARIABLES[function] | (
        set() if function in WITHOUT_DATABASE else DATABASE
    )


def test_every_variable_is_read_somewhere_in_the_package(resources: dict[str, Any]) -> None:
    source = "\n".join(file.read_text() for file in (ROOT / "layers/shared/keyservice").rglob("*.py"))
    given = {name for function in FUNCTIONS for name in variables(resources, function)}
    # RELEASE_SHA only has to differ: Lambda publishes no new version of an unchanged configuration.
    read_elsewhere = {name for name in given if name.startswith("POWERTOOLS_")} | {"RELEASE_SHA"}

    assert sorted(name for name in given - read_elsewhere if f'"{name}"' not in source) == []


def test_no_variable_holds_a_secret(resources: dict[str, Any]) -> None:
    given = {name for function in FUNCTIONS for name in variables(resources, function)}
    suspicious = {name for name in given if re.search("SECRET|PASSWORD|TOKEN|_KEY(_|$)", name)}

    assert suspicious == {"DATABASE_SECRET_ARN", "LITELLM_SECRET_ARN", "MAC_KEY_ARN"}


def test_only_what_an_operator_invokes_gets_the_owners_login(resources: dict[str, Any]) -> None:
    secrets = {
        function: variables(resources, function)["DATABASE_SECRET_ARN"]["Ref"]
        for function in FUNCTIONS
        if function not in WITHOUT_DATABASE
    }

    assert secrets == dict.fromkeys(
        {*HTTP_FUNCTIONS, *SCHEDULED_FUNCTIONS} - WITHOUT_DATABASE, "DatabaseSecretArn"
    ) | dict.fromkeys(INVOKED_FUNCTIONS, "DatabaseMigratorSecretArn")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_knows_its_own_timeout(resources: dict[str, Any], function: str) -> None:
    timeout = resources[function]["Properties"]["Timeout"]

    assert variables(resources, function)["FUNCTION_TIMEOUT_SECONDS"] == str(timeout)


@pytest.mark.parametrize("function", HTTP_FUNCTIONS)
def test_our_answer_is_out_before_the_api_gives_up(resources: dict[str, Any], function: str) -> None:
    timeout = resources[function]["Properties"]["Timeout"]
    litellm = int(variables(resources, function)["LITELLM_BUDGET_SECONDS"])

    assert timeout < HTTP_API_LIMIT_SECONDS
    assert DATABASE_CONNECT_SECONDS + LAST_STATEMENT_SECONDS + litellm + LAST_STATEMENT_SECONDS <= timeout


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_run_on_arm64_python_3_13_inside_the_vpc_with_the_layer(
    resources: dict[str, Any], function: str
) -> None:
    properties = resources[function]["Properties"]
    [layer] = of_type(resources, "AWS::Lambda::LayerVersion")

    assert properties["Runtime"] == "python3.13"
    assert properties["Architectures"] == ["arm64"]
    assert properties["Layers"] == [{"Ref": layer}]
    assert properties["VpcConfig"] == {
        "SubnetIds": {"Ref": "VpcSubnetIds"},
        "SecurityGroupIds": {"Ref": "VpcSecurityGroupIds"},
    }


def test_a_new_release_publishes_a_new_version_of_every_function(resources: dict[str, Any]) -> None:
    other = translate(ReleaseSha="cd" * 32)["Resources"]
    # The migration is called as it stands: `live` would still be the release before.
    published = [name for name in FUNCTIONS if name != "MigrateDatabase"]
    versions = set(of_type(resources, "AWS::Lambda::Version"))
    live = {name for name in of_type(resources, "AWS::Lambda::Alias") if name.endswith("Aliaslive")}

    assert len(versions) == len(published)
    assert versions.isdisjoint(of_type(other, "AWS::Lambda::Version"))
    assert live == {f"{function}Aliaslive" for function in published}


def test_every_log_group_forgets_after_the_days_of_the_parameter(resources: dict[str, Any]) -> None:
    groups = of_type(resources, "AWS::Logs::LogGroup")

    assert {name: p["RetentionInDays"] for name, p in groups.items()} == {
        f"{name}Logs": {"Ref": "LogRetentionDays"} for name in ["ApiAccess", *FUNCTIONS]
    }


def test_each_function_and_the_api_write_to_their_own_log_group(resources: dict[str, Any]) -> None:
    groups = {name: resources[name]["Properties"]["LoggingConfig"] for name in FUNCTIONS}
    [stage] = of_type(resources, "AWS::ApiGatewayV2::Stage").values()

    # Text, not JSON: Powertools prints JSON already, and Lambda would wrap it once more.
    assert groups == {name: {"LogGroup": {"Ref": f"{name}Logs"}} for name in FUNCTIONS}
    assert stage["AccessLogSettings"]["DestinationArn"] == {"Fn::GetAtt": ["ApiAccessLogs", "Arn"]}


def test_the_access_log_holds_no_token_and_no_claim(resources: dict[str, Any]) -> None:
    [stage] = of_type(resources, "AWS::ApiGatewayV2::Stage").values()
    fields = set(re.findall(r"\$context\.([\w.]+)", stage["AccessLogSettings"]["Format"]))

    assert fields == {
        "authorizer.error",
        "identity.sourceIp",
        "integrationErrorMessage",
        "requestId",
        "requestTime",
        "responseLatency",
        "routeKey",
        "status",
    }


def test_every_parameter_is_described_constrained_and_grouped(template: dict[str, Any]) -> None:
    parameters = template["Parameters"]
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    aws_checks_itself = {"VpcSecurityGroupIds", "VpcSubnetIds"}
    constrained = {
        name
        for name, p in parameters.items()
        if p.keys() & {"AllowedPattern", "AllowedValues", "MinValue"} and "ConstraintDescription" in p
    }

    assert [name for name, p in parameters.items() if len(p.get("Description", "")) < 15] == []
    assert constrained | aws_checks_itself == set(parameters)
    assert sorted(name for group in groups for name in group["Parameters"]) == sorted(parameters)


def test_a_deployment_must_say_just_what_has_no_default(template: dict[str, Any]) -> None:
    without_default = {name for name, p in template["Parameters"].items() if "Default" not in p}

    assert without_default == set(DEPLOYMENT)


def test_values_satisfy_their_parameters_patterns(template: dict[str, Any]) -> None:
    refused = [
        name
        for name, p in template["Parameters"].items()
        if "AllowedPattern" in p and not re.search(p["AllowedPattern"], str(p.get("Default", DEPLOYMENT.get(name))))
    ]

    assert refused == []


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        pytest.param("JwtIssuer", "issuer.example.com", id="issuer-without-scheme"),
        pytest.param("JwtAudience", "one,two", id="two-audiences"),
        pytest.param("LiteLLMUrl", "https://litellm.example.com/", id="closing-slash"),
        pytest.param("LiteLLMUrl", "https://user:pass@litellm.example.com", id="credentials-in-url"),
        pytest.param("DatabaseSecretArn", "hunter2", id="a-password-for-an-arn"),
        pytest.param("ReleaseSha", "latest", id="no-sum"),
        pytest.param("DatabaseAppUser", 'app"; DROP', id="role-that-needs-quoting"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_deployed(
    template: dict[str, Any], parameter: str, value: str
) -> None:
    assert not re.search(template["Parameters"][parameter]["AllowedPattern"], value)


def test_outputs_name_the_url_the_dashboard_the_key_and_every_function(stack: dict[str, Any]) -> None:
    others = {"AlarmTopicName", "ApiUrl", "DashboardUrl", "DomainTarget", "MacKeyArn"}

    assert set(stack["Outputs"]) == others | {f"{name}Name" for name in FUNCTIONS}
