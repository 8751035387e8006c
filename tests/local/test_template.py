"""Reading a SAM template."""

from pathlib import Path

import pytest

from local.errors import StartFailed
from local.template import Application, JwtAuthorizer, Template

CHECKOUT = Path(__file__).parent.parent.parent
SAMPLE = Path(__file__).parent / "sample" / "template.yaml"


def resolve(directory: Path, text: str, **parameters: str) -> Application:
    path = directory / "template.yaml"
    path.write_text(text)
    return Template(path).resolve(
        parameters=parameters,
        references={"AWS::StackName": "demo", "Key": "key-1"},
        attributes={"Key": {"Arn": "arn:key-1"}},
    )


def variable(directory: Path, expression: str) -> str:
    """What a function's variable becomes when the template sets it so."""
    application = resolve(
        directory,
        f"""
Parameters:
  Stage: {{Type: String, Default: dev}}
  Origins: {{Type: CommaDelimitedList, Default: "a, b"}}
  Count: {{Type: Number, Default: 3}}
Mappings:
  Sizes: {{dev: {{memory: "512"}}}}
Conditions:
  IsDev: !Equals [!Ref Stage, dev]
  IsMany: !Equals [!Ref Count, "9"]
  IsEither: !Or [!Condition IsDev, !Condition IsMany]
  IsBoth: !And [!Condition IsDev, !Condition IsMany]
  IsNotDev: !Not [!Condition IsDev]
Resources:
  F:
    Type: AWS::Serverless::Function
    Properties:
      Handler: f.handler
      CodeUri: .
      Environment:
        Variables:
          X: {expression}
""",
    )
    return application.functions["F"].environment["X"]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param("!Ref Stage", "dev", id="a parameter's default"),
        pytest.param("!Ref Count", "3", id="a number is text in an environment"),
        pytest.param("true", "true", id="a boolean is written as CloudFormation does"),
        pytest.param("!Ref AWS::StackName", "demo", id="a pseudo parameter"),
        pytest.param("!GetAtt Key.Arn", "arn:key-1", id="an attribute"),
        pytest.param('{"Fn::GetAtt": [Key, Arn]}', "arn:key-1", id="the long form"),
        pytest.param('!Sub "${Stage}/${Key.Arn}/${!Stage}"', "dev/arn:key-1/${Stage}", id="Sub"),
        pytest.param('!Sub ["${A}-${Stage}", {A: !Ref Count}]', "3-dev", id="Sub with its own names"),
        pytest.param('!Join ["+", !Ref Origins]', "a+b", id="Join of a list parameter"),
        pytest.param('!Select [1, !Split [":", "x:y:z"]]', "y", id="Select and Split"),
        pytest.param("!FindInMap [Sizes, !Ref Stage, memory]", "512", id="FindInMap"),
        pytest.param("!If [IsDev, yes-dev, no-dev]", "yes-dev", id="If"),
        pytest.param("!If [IsMany, many, few]", "few", id="If that is false"),
        pytest.param("!If [IsEither, a, b]", "a", id="Or"),
        pytest.param("!If [IsBoth, a, b]", "b", id="And"),
        pytest.param("!If [IsNotDev, a, b]", "b", id="Not"),
    ],
)
def test_expression_is_computed_as_cloudformation_does(tmp_path: Path, expression: str, expected: str) -> None:
    assert variable(tmp_path, expression) == expected


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        pytest.param("!Ref Nobody", "no value for !Ref Nobody", id="unknown name"),
        pytest.param("!GetAtt Key.Colour", "no value for !GetAtt Key.Colour", id="unknown attribute"),
        pytest.param("!ImportValue other", "does not know Fn::ImportValue", id="unknown function"),
        pytest.param("!If [Sometimes, a, b]", "no condition Sometimes", id="unknown condition"),
        pytest.param("!FindInMap [Sizes, prod, memory]", "no Sizes.prod.memory", id="unknown map entry"),
    ],
)
def test_what_cannot_be_computed_is_named(tmp_path: Path, expression: str, reason: str) -> None:
    with pytest.raises(StartFailed, match=reason):
        variable(tmp_path, expression)


@pytest.mark.parametrize(
    ("declaration", "value", "reason"),
    [
        pytest.param("{Type: String, AllowedValues: [a, b]}", "c", "one of a, b", id="value not listed"),
        pytest.param("{Type: String, AllowedPattern: '[a-z]+'}", "abc1", "must match", id="pattern must match all"),
        pytest.param("{Type: String, AllowedPattern: x, ConstraintDescription: say x}", "y", "say x", id="own words"),
        pytest.param("{Type: Number, MaxValue: 10}", "11", "at most 10", id="number too large"),
        pytest.param("{Type: Number, MinValue: 1}", "0", "at least 1", id="number too small"),
        pytest.param("{Type: Number}", "many", "must be a number", id="no number"),
        pytest.param("{Type: String, MinLength: 2}", "x", "at least 2 characters", id="text too short"),
        pytest.param("{Type: String, MaxLength: 2}", "xyz", "at most 2 characters", id="text too long"),
        pytest.param("{Type: CommaDelimitedList, AllowedPattern: '[a-z]'}", "a,B", "'B'", id="one of a list"),
    ],
)
def test_parameter_outside_its_constraints_is_refused(
    tmp_path: Path, declaration: str, value: str, reason: str
) -> None:
    with pytest.raises(StartFailed, match=reason) as refusal:
        resolve(tmp_path, f"Parameters: {{P: {declaration}}}\nResources: {{}}", P=value)

    assert "parameter P" in str(refusal.value)


def test_parameter_without_value_and_default_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="parameter P has no default"):
        resolve(tmp_path, "Parameters: {P: {Type: String}}\nResources: {}")


def test_parameter_the_template_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="no parameter Wrong"):
        resolve(tmp_path, "Resources: {}", Wrong="x")


def test_missing_template_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="no template at"):
        Template(tmp_path / "none.yaml")


def test_function_inherits_from_globals_and_overrides_them(tmp_path: Path) -> None:
    application = resolve(
        tmp_path,
        """
Globals:
  Function: {CodeUri: src, Timeout: 25, Environment: {Variables: {A: global, B: global}}, Layers: [!Ref L]}
Resources:
  L: {Type: AWS::Serverless::LayerVersion, Properties: {ContentUri: layers/l}}
  F: {Type: AWS::Serverless::Function, Properties: {Handler: f.handler, Timeout: 300, Environment: {Variables: {B: own}}}}
""",
    )

    function = application.functions["F"]
    assert function.timeout_seconds == 300
    assert function.memory_megabytes == 128
    assert function.code == tmp_path / "src"
    assert function.layers == (tmp_path / "layers/l",)
    assert dict(function.environment) == {"A": "global", "B": "own"}


def test_no_value_leaves_the_variable_out(tmp_path: Path) -> None:
    application = resolve(
        tmp_path,
        """
Conditions: {Never: !Equals [a, b]}
Resources:
  F:
    Type: AWS::Serverless::Function
    Properties:
      Handler: f.handler
      CodeUri: .
      Environment: {Variables: {X: !If [Never, x, !Ref AWS::NoValue], Y: y}}
""",
    )

    assert dict(application.functions["F"].environment) == {"Y": "y"}


def test_function_whose_condition_is_false_does_not_exist(tmp_path: Path) -> None:
    application = resolve(
        tmp_path,
        """
Conditions: {Never: !Equals [a, b]}
Resources:
  F: {Type: AWS::Serverless::Function, Condition: Never, Properties: {Handler: f.handler, CodeUri: .}}
""",
    )

    assert application.functions == {}


def test_authorizer_the_api_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="F wants the authorizer Other"):
        resolve(
            tmp_path,
            """
Resources:
  F:
    Type: AWS::Serverless::Function
    Properties:
      Handler: f.handler
      CodeUri: .
      Events: {E: {Type: HttpApi, Properties: {Method: get, Path: /, Auth: {Authorizer: Other}}}}
""",
        )


def test_routes_carry_their_authorizer_and_scopes() -> None:
    application = Template(SAMPLE).resolve(parameters={"JwtIssuer": "https://issuer", "JwtAudience": "us"})

    routes = {route.key: route for route in application.routes}
    assert routes["ANY /open/{name}"].authorizer is None
    assert routes["GET /closed"].authorizer == JwtAuthorizer(issuer="https://issuer", audience=("us",))
    assert routes["GET /scoped"].scopes == ("keys.read", "keys.write")
    assert application.cors is not None
    assert application.cors.origins == ("https://console.example.com",)


def test_the_real_template_can_be_read_without_any_value_but_its_parameters() -> None:
    template = Template(CHECKOUT / "template.yaml")
    secret = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:x"

    application = template.resolve(
        parameters={
            "JwtIssuer": "https://issuer.example.com",
            "JwtAudience": "us",
            "DatabaseHost": "db.example.com",
            "DatabaseSecretArn": secret,
            "DatabaseMigratorSecretArn": f"{secret}-migrator",
            "LiteLLMUrl": "https://litellm.example.com",
            "LiteLLMSecretArn": f"{secret}-litellm",
            "VpcSubnetIds": "subnet-1,subnet-2",
            "VpcSecurityGroupIds": "sg-1",
            "ReleaseSha": "0" * 64,
        },
        references={"AWS::StackName": "demo", "AWS::URLSuffix": "amazonaws.com"},
        attributes={"MacKey": {"Arn": "arn:aws:kms:eu-central-1:123456789012:key/1"}},
    )

    assert {route.key for route in application.routes} >= {
        "POST /api/v1/api-keys",
        "GET /api/v1/api-keys",
        "DELETE /api/v1/api-keys/{id}",
        "GET /health",
    }
    assert application.functions["MigrateDatabase"].environment["DATABASE_SECRET_ARN"] == f"{secret}-migrator"
    assert "MAC_KEY_ARN" not in application.functions["ListApiKeys"].environment
