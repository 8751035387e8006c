"""Makes the template of a drop-in for LiteMaaS of template.yaml: the same service, opened by LiteMaaS's own tokens.

`python -m local.litemaas_template build/template-litemaas.yaml` writes it. The JWT authorizer and the parameters that say
who may call give way to a Lambda authorizer; all else stays as it is written, tags and short forms too, comments not.
"""

import copy
import os
import sys
from pathlib import Path

import yaml

CHECKOUT = Path(__file__).parent.parent
SOURCE = CHECKOUT / "template.yaml"
BUILT = CHECKOUT / "build" / "template-litemaas.yaml"

_HEADER = "# Made of template.yaml by local/litemaas_template.py; change that, and run `make build`.\n"

# What no longer is for a deployment to say, and the value that takes the place of each reference to it; None: it has
# none, and a reference that is left is an error. LiteMaaS's tokens name a row of `users`, which says the rest.
_REMOVED_PARAMETERS = {
    "JwtIssuer": None,
    "JwtAudience": None,
    "OAuthProvider": "litemaas",
    "SubjectClaim": "userId",
    "UsernameClaim": "username",
    "EmailClaim": "email",
    "NameClaim": "name",
    "RolesClaim": "roles",
}
_REPLACED = (("Resources", "Api", "Properties", "Auth"),)

_ADDED = """
Description: Creates, lists and deletes LiteLLM API keys for the users of LiteMaaS, who come with LiteMaaS's own tokens.
Parameters:
  LiteMaaSTokenSecretArn:
    Type: String
    Description: Secret with what LiteMaaS signs its tokens with (its JWT_SECRET), as JSON with jwtSecret.
    AllowedPattern: ^arn:[a-z-]+:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+$
    ConstraintDescription: must be the ARN of a secret in Secrets Manager
  AuthorizerCacheSeconds:
    Type: Number
    Default: 60
    Description: How long API Gateway may go by an earlier check of the same token; 0 checks it each time.
    MinValue: 0
    MaxValue: 60
    ConstraintDescription: must be 0 to 60 seconds
Globals:
  Function:
    Environment:
      Variables:
        SUBJECT_COLUMN: id
Resources:
  Api:
    Properties:
      Auth:
        DefaultAuthorizer: LiteMaaS
        Authorizers:
          LiteMaaS:
            FunctionArn: !Ref AuthorizeLiteMaaSToken.Alias
            AuthorizerPayloadFormatVersion: "2.0"
            EnableSimpleResponses: true
            EnableFunctionDefaultPermissions: true
            Identity:
              # A request without it is answered 401 before the function is asked.
              Headers: [Authorization]
              ReauthorizeEvery: !Ref AuthorizerCacheSeconds
  AuthorizeLiteMaaSToken:
    Type: AWS::Serverless::Function
    DependsOn: Migration
    # Outside the VPC: it talks to Secrets Manager and to nobody else, and knows nothing of the database.
    IgnoreGlobals: [VpcConfig, Environment]
    Properties:
      Handler: authorize_litemaas_token.handler
      AutoPublishCodeSha256: !Ref ReleaseSha
      Timeout: 10
      LoggingConfig:
        LogGroup: !Ref AuthorizeLiteMaaSTokenLogs
      Policies:
        - AWSSecretsManagerGetSecretValuePolicy:
            SecretArn: !Ref LiteMaaSTokenSecretArn
      Environment:
        Variables:
          LITEMAAS_TOKEN_SECRET_ARN: !Ref LiteMaaSTokenSecretArn
          URL_SUFFIX: !Ref AWS::URLSuffix
          POWERTOOLS_SERVICE_NAME: !Ref AWS::StackName
          POWERTOOLS_METRICS_NAMESPACE: KeyService
          POWERTOOLS_LOG_LEVEL: !Ref LogLevel
          RELEASE_SHA: !Ref ReleaseSha
  AuthorizeLiteMaaSTokenLogs:
    Type: AWS::Logs::LogGroup
    Properties:
      LogGroupName: !Sub /aws/lambda/${AWS::StackName}-AuthorizeLiteMaaSToken
      RetentionInDays: !Ref LogRetentionDays
      KmsKeyId: !If [EncryptsLogs, !Ref LogKmsKeyArn, !Ref AWS::NoValue]
Outputs:
  AuthorizeLiteMaaSTokenName:
    Description: Function that checks LiteMaaS's tokens
    Value: !Ref AuthorizeLiteMaaSToken
"""
_WHO_MAY_CALL = ("LiteMaaSTokenSecretArn", "AuthorizerCacheSeconds")


class TransformationError(Exception):
    """template.yaml is no longer what this module knows how to change; the message says where."""


def litemaas_template(source: str, *, directory: str = ".") -> str:
    """`source`, the text of template.yaml, with LiteMaaS's authorizer. `directory` leads from where the result is to be
    kept to the directory that its relative paths are meant in. Raises TransformationError."""
    template = _composed(source)
    for path in _REPLACED:
        _remove(template, path)
    for name in _REMOVED_PARAMETERS:
        _remove(template, ("Parameters", name))
    _regroup_parameters(template)
    _replace_references(template)
    if directory != ".":
        _lead_paths_back(template, directory)
    _merge(template, _composed(_ADDED))
    text = yaml.serialize(template, Dumper=yaml.SafeDumper, width=130)  # pyright: ignore[reportUnknownMemberType]
    return _HEADER + text


def write(target: Path, *, source: Path = SOURCE) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    directory = os.path.relpath(source.parent, target.parent)
    target.write_text(litemaas_template(source.read_text(), directory=directory))


def _composed(text: str) -> yaml.MappingNode:
    # Nodes, not values: an unknown tag such as !Ref stays what it is.
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise TransformationError("the template is not a mapping")
    return node


def _entry(mapping: yaml.MappingNode, name: str) -> yaml.Node | None:
    return next((value for key, value in mapping.value if key.value == name), None)


def _child(mapping: yaml.Node, name: str) -> yaml.MappingNode:
    child = _entry(mapping, name) if isinstance(mapping, yaml.MappingNode) else None
    if not isinstance(child, yaml.MappingNode):
        raise TransformationError(f"there is no mapping {name} where one is expected")
    return child


def _remove(template: yaml.MappingNode, path: tuple[str, ...]) -> None:
    parent = template
    for name in path[:-1]:
        parent = _child(parent, name)
    if _entry(parent, path[-1]) is None:
        raise TransformationError(f"there is no {'.'.join(path)}")
    parent.value = [(key, value) for key, value in parent.value if key.value != path[-1]]


def _regroup_parameters(template: yaml.MappingNode) -> None:
    """The first group, of who may call, is emptied of what was removed and names what is added."""
    interface = _child(_child(template, "Metadata"), "AWS::CloudFormation::Interface")
    groups = _entry(interface, "ParameterGroups")
    if not isinstance(groups, yaml.SequenceNode):
        raise TransformationError("there are no ParameterGroups")
    names = _entry(groups.value[0], "Parameters")
    if not isinstance(names, yaml.SequenceNode) or {name.value for name in names.value} != set(_REMOVED_PARAMETERS):
        raise TransformationError("the first group of parameters is not the one of who may call")
    names.value = [yaml.ScalarNode("tag:yaml.org,2002:str", name) for name in _WHO_MAY_CALL]


def _replace_references(node: yaml.Node) -> None:
    """Every `!Ref` to a removed parameter becomes its value, wherever it stands."""
    if isinstance(node, yaml.ScalarNode) and node.tag == "!Ref" and node.value in _REMOVED_PARAMETERS:
        value = _REMOVED_PARAMETERS[node.value]
        if value is None:
            raise TransformationError(f"{node.value} is used at line {node.start_mark.line + 1}")
        node.tag, node.value = "tag:yaml.org,2002:str", value
    elif isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _replace_references(part)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _replace_references(value)


def _lead_paths_back(template: yaml.MappingNode, directory: str) -> None:
    functions = _child(_child(template, "Globals"), "Function")
    layers = [
        _child(resource, "Properties")
        for _, resource in _child(template, "Resources").value
        if (kind := _entry(resource, "Type")) is not None and kind.value == "AWS::Serverless::LayerVersion"
    ]
    for mapping, name in [(functions, "CodeUri"), *((layer, "ContentUri") for layer in layers)]:
        path = _entry(mapping, name)
        if path is None:
            raise TransformationError(f"there is no {name} where one is expected")
        path.value = f"{directory}/{path.value}"


def _merge(into: yaml.MappingNode, added: yaml.MappingNode) -> None:
    """Mappings are merged, whatever else is there is replaced."""
    for key, value in added.value:
        present = _entry(into, key.value)
        if isinstance(present, yaml.MappingNode) and isinstance(value, yaml.MappingNode):
            _merge(present, value)
        elif present is None:
            into.value.append((key, copy.deepcopy(value)))
        else:
            into.value = [(k, copy.deepcopy(value) if k.value == key.value else v) for k, v in into.value]


def main() -> None:
    if len(sys.argv) > 2:
        sys.exit("usage: python -m local.litemaas_template [FILE]")
    target = Path(sys.argv[1]) if len(sys.argv) == 2 else BUILT
    write(target)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
