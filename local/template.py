"""Reads the SAM template: which functions there are, how they are configured, and which requests reach them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from local.errors import StartFailed
from local.intrinsics import Attributes, Node, Resolver, as_mapping, as_text, read_yaml

CHECKOUT = Path(__file__).parent.parent
LAMBDA_TIMEOUT_SECONDS = 3
LAMBDA_MEMORY_MEGABYTES = 128
IMPLICIT_API = "ServerlessHttpApi"


@dataclass(frozen=True, kw_only=True)
class Function:
    name: str
    """The logical id in the template."""
    handler: str
    code: Path
    layers: tuple[Path, ...]
    timeout_seconds: float
    memory_megabytes: int
    runtime: str
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class JwtAuthorizer:
    """Who issues the tokens, and for whom."""

    issuer: str
    audience: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LambdaAuthorizer:
    """A function that answers with simple responses, each kept for some seconds by the headers it was asked about."""

    function: str
    headers: tuple[str, ...]
    """In lower case; a request that lacks one is refused unasked."""
    cache_seconds: float


type Authorizer = JwtAuthorizer | LambdaAuthorizer


@dataclass(frozen=True, kw_only=True)
class Route:
    method: str
    """Upper case; ANY for all."""
    path: str
    function: str
    authorizer: Authorizer | None
    scopes: tuple[str, ...]

    @property
    def key(self) -> str:
        """As requestContext.routeKey has it."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True, kw_only=True)
class Cors:
    """A list that is empty adds no header."""

    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    exposed_headers: tuple[str, ...]
    allow_credentials: bool
    max_age_seconds: int | None


@dataclass(frozen=True, kw_only=True)
class Application:
    """The part of a template that the local stack runs."""

    functions: Mapping[str, Function]
    routes: tuple[Route, ...]
    cors: Cors | None


class Template:
    """A template file whose parameters still want their values."""

    def __init__(self, path: Path, *, text: str | None = None) -> None:
        """`text` is taken for what the file holds, if it is given: of another revision, say."""
        try:
            self._document = read_yaml(path.read_text() if text is None else text)
        except FileNotFoundError as error:
            raise StartFailed(f"there is no template at {path}") from error
        self._root = path.resolve().parent
        self._parameters = as_mapping(self._document.get("Parameters"))
        self._resources = as_mapping(self._document.get("Resources"))
        self._globals = as_mapping(self._document.get("Globals"))

    @property
    def parameter_names(self) -> frozenset[str]:
        return frozenset(self._parameters)

    @property
    def required_parameters(self) -> frozenset[str]:
        """Those without a default."""
        return frozenset(name for name, entry in self._parameters.items() if "Default" not in entry)

    def default(self, parameter: str) -> str:
        """Empty for one without a default, and for one that there is not."""
        return str(self._parameters.get(parameter, {}).get("Default", ""))

    def description(self, parameter: str) -> str:
        return str(self._parameters[parameter].get("Description", ""))

    def refusal(self, parameter: str, text: str) -> str | None:
        """Why CloudFormation would refuse the text for the parameter; None when it would not."""
        try:
            _checked_parameter(parameter, text, self._parameters[parameter])
        except StartFailed as refused:
            return str(refused)
        return None

    def accepted(self, parameters: Mapping[str, str]) -> dict[str, Node]:
        """These parameters with the defaults of the others. Raises StartFailed, in one line, for what the constraints of one
        or the template's Rules refuse."""
        values = self._parameter_values(parameters)
        self._check_rules(Resolver(references=values, attributes={}, conditions={}, mappings={}))
        return values

    def resources_of_type(self, kind: str) -> tuple[str, ...]:
        return tuple(name for name, resource in self._resources.items() if resource["Type"] == kind)

    def resolve(
        self,
        *,
        parameters: Mapping[str, str],
        references: Mapping[str, Node] | None = None,
        attributes: Attributes | None = None,
    ) -> Application:
        """The application with these parameters; defaults for the others.

        `references` and `attributes` are what !Ref and !GetAtt give for resources and pseudo parameters. Raises
        StartFailed, in one line, for an unknown parameter, one without a value or one that its constraints or the
        template's Rules refuse.
        """
        resolver = Resolver(
            references={**(references or {}), **self.accepted(parameters)},
            attributes=attributes or {},
            conditions=as_mapping(self._document.get("Conditions")),
            mappings=as_mapping(self._document.get("Mappings")),
        )
        apis = self._apis(resolver)
        functions: dict[str, Function] = {}
        routes: list[Route] = []
        for name, resource in self._resources.items():
            if resource["Type"] != "AWS::Serverless::Function":
                continue
            if "Condition" in resource and not resolver.holds(resource["Condition"]):
                continue
            properties = resource["Properties"]
            functions[name] = self._function(name, properties, resolver)
            routes += _routes(name, properties, apis=apis, resolver=resolver)
        cors = next((api.cors for api in apis.values() if api.cors), None)
        return Application(functions=functions, routes=tuple(routes), cors=cors)

    def resolve_offline(self, **parameters: str) -> Application:
        """Where only the routes and who may call them matter: all that a deployment decides is made up."""
        secret = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:"
        values = {"VpcSubnetIds": "subnet-1", "VpcSecurityGroupIds": "sg-1", "ReleaseSha": "0" * 64}
        urls = {"JwtIssuer": "https://issuer.example.com", "LiteLLMUrl": "https://litellm.example.com"}
        for name in self.required_parameters - values.keys():
            values[name] = f"{secret}{name}" if name.endswith("Arn") else urls.get(name, "any")
        return self.resolve(
            parameters={**values, **parameters},
            references={"AWS::StackName": "any", "AWS::URLSuffix": "any", "MacKey": "any"},
            attributes={"MacKey": {"Arn": "any"}},
        )

    def _parameter_values(self, given: Mapping[str, str]) -> dict[str, Node]:
        if unknown := sorted(set(given) - set(self._parameters)):
            raise StartFailed(f"the template has no parameter {', '.join(unknown)}")
        return {
            name: _checked_parameter(name, given.get(name, entry.get("Default")), entry)
            for name, entry in self._parameters.items()
        }

    def _check_rules(self, resolver: Resolver) -> None:
        """As CloudFormation does before it makes anything."""
        for rule in as_mapping(self._document.get("Rules")).values():
            if not resolver.value(rule.get("RuleCondition", True)):
                continue
            for assertion in rule["Assertions"]:
                if not resolver.value(assertion["Assert"]):
                    raise StartFailed(str(assertion["AssertDescription"]))

    def _apis(self, resolver: Resolver) -> dict[str, "_Api"]:
        shared = as_mapping(self._globals.get("HttpApi"))
        apis = {IMPLICIT_API: _api(shared, resolver)}
        for name in self.resources_of_type("AWS::Serverless::HttpApi"):
            apis[name] = _api({**shared, **as_mapping(self._resources[name].get("Properties"))}, resolver)
        return apis

    def _function(self, name: str, own: dict[str, Node], resolver: Resolver) -> Function:
        shared = self._shared_properties(name)
        properties = {**shared, **own}
        variables = {**_variables(shared), **_variables(own)}
        environment: dict[str, Node] = resolver.value(variables)
        return Function(
            name=name,
            handler=str(properties["Handler"]),
            code=self._root / str(properties["CodeUri"]),
            layers=self._layers(properties.get("Layers") or []),
            timeout_seconds=float(resolver.value(properties.get("Timeout", LAMBDA_TIMEOUT_SECONDS))),
            memory_megabytes=int(resolver.value(properties.get("MemorySize", LAMBDA_MEMORY_MEGABYTES))),
            runtime=str(properties.get("Runtime", "")),
            environment={key: as_text(value) for key, value in environment.items()},
        )

    def _shared_properties(self, name: str) -> dict[str, Node]:
        ignored: Node = self._resources[name].get("IgnoreGlobals") or []
        shared = as_mapping(self._globals.get("Function"))
        return {} if ignored == "*" else {key: value for key, value in shared.items() if key not in ignored}

    def _layers(self, references: list[dict[str, str]]) -> tuple[Path, ...]:
        """The directories of the layers that this template builds; layers of others have no directory here."""
        names = [reference["Ref"] for reference in references if "Ref" in reference]
        return tuple(
            self._root / str(self._resources[name]["Properties"]["ContentUri"])
            for name in names
            if name in self._resources
        )


@dataclass(frozen=True)
class _Api:
    authorizers: Mapping[str, Authorizer]
    default_authorizer: str | None
    cors: Cors | None


def _api(properties: Mapping[str, Node], resolver: Resolver) -> _Api:
    auth = as_mapping(properties.get("Auth"))
    authorizers: dict[str, Authorizer] = {}
    for name, entry in as_mapping(auth.get("Authorizers")).items():
        settings = resolver.value(entry.get("JwtConfiguration"))
        if settings is not None:
            authorizers[name] = JwtAuthorizer(issuer=settings["issuer"], audience=_texts(settings["audience"]))
        elif "FunctionArn" in entry:
            authorizers[name] = _lambda_authorizer(name, entry, resolver)
        else:
            raise StartFailed(f"the authorizer {name} has neither a JwtConfiguration nor a FunctionArn")
    # Wrapped, so that one that is !Ref AWS::NoValue is left out.
    cors = resolver.value({"Cors": properties.get("CorsConfiguration")}).get("Cors")
    return _Api(
        authorizers=authorizers,
        default_authorizer=auth.get("DefaultAuthorizer"),
        cors=_cors(as_mapping(cors)) if isinstance(cors, dict) else None,
    )


def _lambda_authorizer(name: str, entry: Mapping[str, Node], resolver: Resolver) -> LambdaAuthorizer:
    is_simple = as_text(entry.get("EnableSimpleResponses", False)) == "true"
    if as_text(entry.get("AuthorizerPayloadFormatVersion")) != "2.0" or not is_simple:
        raise StartFailed(f"the local stack wants payload 2.0 and simple responses of the authorizer {name}")
    identity = as_mapping(resolver.value(entry.get("Identity")))
    if set(identity) - {"Headers", "ReauthorizeEvery"}:
        raise StartFailed(f"the local stack only knows headers as the identity of the authorizer {name}")
    return LambdaAuthorizer(
        function=_function_named(entry["FunctionArn"]),
        headers=tuple(header.lower() for header in _texts(identity.get("Headers"))),
        cache_seconds=float(identity.get("ReauthorizeEvery", 0)),
    )


def _function_named(arn: Node) -> str:
    """The logical id in `!GetAtt F.Arn` or `!Ref F.Alias`."""
    if isinstance(arn, dict):
        reference = cast("dict[str, Node]", arn)
        if "Fn::GetAtt" in reference:
            return str(reference["Fn::GetAtt"][0])
        if str(reference.get("Ref", "")).endswith(".Alias"):
            return str(reference["Ref"]).removesuffix(".Alias")
    raise StartFailed("an authorizer's FunctionArn has to be !GetAtt FUNCTION.Arn or !Ref FUNCTION.Alias")


def _cors(entry: Mapping[str, Node]) -> Cors:
    return Cors(
        origins=_texts(entry.get("AllowOrigins")),
        methods=_texts(entry.get("AllowMethods")),
        headers=_texts(entry.get("AllowHeaders")),
        exposed_headers=_texts(entry.get("ExposeHeaders")),
        allow_credentials=as_text(entry.get("AllowCredentials", False)) == "true",
        max_age_seconds=int(entry["MaxAge"]) if "MaxAge" in entry else None,
    )


def _routes(
    function: str, properties: Mapping[str, Node], *, apis: Mapping[str, _Api], resolver: Resolver
) -> list[Route]:
    routes: list[Route] = []
    for event in as_mapping(properties.get("Events")).values():
        if event["Type"] != "HttpApi":
            continue
        wanted = as_mapping(event["Properties"])
        api = apis[(wanted.get("ApiId") or {"Ref": IMPLICIT_API})["Ref"]]
        auth = as_mapping(wanted.get("Auth"))
        name = auth.get("Authorizer", api.default_authorizer)
        if name not in {None, "NONE", *api.authorizers}:
            raise StartFailed(f"{function} wants the authorizer {name}, which the API does not have")
        routes.append(
            Route(
                method=str(wanted["Method"]).upper(),
                path=str(wanted["Path"]),
                function=function,
                authorizer=api.authorizers.get(name) if name else None,
                scopes=_texts(resolver.value(auth.get("AuthorizationScopes"))),
            )
        )
    return routes


def _variables(properties: Mapping[str, Node]) -> dict[str, Node]:
    return as_mapping(as_mapping(properties.get("Environment")).get("Variables"))


def _texts(value: Node) -> tuple[str, ...]:
    if value is None:
        return ()
    parts = cast("list[Node]", value) if isinstance(value, list) else [value]
    return tuple(map(as_text, parts))


def _checked_parameter(name: str, given: Node, entry: Mapping[str, Node]) -> Node:
    if given is None:
        raise StartFailed(f"the parameter {name} has no default and was given no value")
    text = as_text(given)
    kind = str(entry["Type"])
    is_list = kind == "CommaDelimitedList" or kind.startswith("List<")
    for part in text.split(",") if is_list else [text]:
        if refusal := _refusal(part, entry):
            because = entry.get("ConstraintDescription")
            raise StartFailed(f"the parameter {name} cannot be {part!r}: {because or refusal}")
    if is_list:
        return [part.strip() for part in text.split(",")]
    return text


def _refusal(text: str, entry: Mapping[str, Node]) -> str | None:
    """Why CloudFormation would refuse the text; None when it would not."""
    if "AllowedValues" in entry and text not in (allowed := [as_text(value) for value in entry["AllowedValues"]]):
        return f"it must be one of {', '.join(allowed)}"
    if "AllowedPattern" in entry and not re.fullmatch(entry["AllowedPattern"], text):
        return f"it must match {entry['AllowedPattern']}"
    if len(text) < int(entry.get("MinLength", 0)):
        return f"it must have at least {entry['MinLength']} characters"
    if "MaxLength" in entry and len(text) > int(entry["MaxLength"]):
        return f"it must have at most {entry['MaxLength']} characters"
    if entry["Type"] == "Number":
        try:
            number = float(text)
        except ValueError:
            return "it must be a number"
        if "MinValue" in entry and number < float(entry["MinValue"]):
            return f"it must be at least {entry['MinValue']}"
        if "MaxValue" in entry and number > float(entry["MaxValue"]):
            return f"it must be at most {entry['MaxValue']}"
    return None
