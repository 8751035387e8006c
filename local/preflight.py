"""`make preflight STAGE=dev`: what a deployment of a stage of samconfig.toml would miss, one line for each thing it needs.

Looks only: it changes nothing, in AWS or elsewhere, and prints no secret. Exits with 0 when nothing is missing, 1 when
something is, 2 when it was asked for a stage that there is not.
"""

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local.intrinsics import as_mapping, read_yaml
from local.litemaas_template import litemaas_template

CHECKOUT = Path(__file__).parent.parent
RELEASE = Path(".aws-sam/release.yaml")

# Releases of LiteLLM that were published with somebody else's code in them.
COMPROMISED = re.compile(r"1\.82\.[78]([^0-9]|$)|1\.107\.")
MEASURED_WITH = (1, 106)

# What each secret has to hold, by the parameter that names it.
SECRET_FIELDS = {
    "DatabaseSecretArn": ("username", "password"),
    "DatabaseMigratorSecretArn": ("username", "password"),
    "LiteLLMSecretArn": ("masterKey",),
    "LiteMaaSTokenSecretArn": ("jwtSecret",),
}
PLACEHOLDER = re.compile(r"example\.com|:(\d)\1{11}:|^(subnet|sg)-(\d)\3{16}")

_AWS: Any = Config(connect_timeout=3, read_timeout=30, retries={"total_max_attempts": 2})


@dataclass(frozen=True)
class Finding:
    """`unseen` is what cannot be judged from here: it is no reason to stop, and none to be sure."""

    verdict: Literal["ok", "missing", "unseen"]
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:8}{self.subject}: {self.text}"


@dataclass(kw_only=True)
class Stage:
    """What samconfig.toml says about one stage, and what the checks have learnt on the way."""

    name: str
    stack_name: str
    region: str | None
    parameters: dict[str, str]
    template: Mapping[str, Any]
    account: str | None = None
    secrets: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]], repr=False)

    def client(self, service: str) -> Any:
        make: Callable[..., Any] = boto3.client
        return make(service, region_name=self.region, config=_AWS)

    def value(self, parameter: str) -> str:
        """As given, or its default."""
        default = as_mapping(self.template["Parameters"]).get(parameter, {})
        return self.parameters.get(parameter, str(as_mapping(default).get("Default", "")))

    def values(self, parameter: str) -> list[str]:
        return [value for value in self.value(parameter).split(",") if value]


class NoSuchStage(Exception):
    """The message names the stages that there are."""


def read_stage(name: str, *, samconfig: Path) -> Stage:
    configuration = tomllib.loads(samconfig.read_text())
    stages = {key: value["deploy"]["parameters"] for key, value in configuration.items() if "deploy" in _table(value)}
    if name not in stages:
        raise NoSuchStage(f"{samconfig.name} has no stage {name!r}; say STAGE=… with one of {', '.join(sorted(stages))}")
    stage = stages[name]
    template = (CHECKOUT / "template.yaml").read_text()
    if "template_file" in stage:
        template = litemaas_template(template)
    given = [entry for entry in stage.get("parameter_overrides", []) if not entry.startswith("file://")]
    return Stage(
        name=name,
        stack_name=stage["stack_name"],
        region=stage.get("region") or boto3.session.Session().region_name,
        parameters=dict(entry.split("=", 1) for entry in given),
        template=as_mapping(read_yaml(template)),
    )


def check_parameters(stage: Stage) -> Iterator[Finding]:
    wanted = as_mapping(stage.template["Parameters"])
    required = {name for name, parameter in wanted.items() if "Default" not in as_mapping(parameter)} - {"ReleaseSha"}
    for name in sorted(required - set(stage.parameters)):
        yield Finding("missing", name, "is not in samconfig.toml, and has no default")
    for name in sorted(set(stage.parameters) - set(wanted)):
        yield Finding("missing", name, "is in samconfig.toml, and no parameter of the template")
    for name, value in sorted(stage.parameters.items()):
        pattern = as_mapping(wanted.get(name, {})).get("AllowedPattern")
        if PLACEHOLDER.search(value):
            yield Finding("missing", name, "still has the example's value; put your own into samconfig.toml")
        elif pattern and not re.search(str(pattern), value):
            yield Finding("missing", name, str(as_mapping(wanted[name]).get("ConstraintDescription", "is malformed")))
    if stage.value("DatabaseAuthentication") == "iam" and not stage.value("DatabaseResourceId"):
        yield Finding("missing", "DatabaseResourceId", "is needed with DatabaseAuthentication iam")


def check_release(root: Path) -> Iterator[Finding]:
    if (root / RELEASE).exists():
        yield Finding("ok", "build", "functions and layer are built")
    else:
        yield Finding("missing", "build", "nothing is built yet; run make build")


def check_credentials(stage: Stage) -> Iterator[Finding]:
    if stage.region is None:
        yield Finding("missing", "region", "none is set; export AWS_REGION, or set region in the profile")
        return
    yield Finding("ok", "region", stage.region)
    try:
        identity = stage.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        yield Finding("missing", "credentials", f"AWS takes none ({_code(error)}); log in, or set AWS_PROFILE")
        return
    stage.account = str(identity["Account"])
    yield Finding("ok", "credentials", f"account {stage.account}, as {identity['Arn']}")


def check_secrets(stage: Stage) -> Iterator[Finding]:
    client = stage.client("secretsmanager")
    for name, fields in SECRET_FIELDS.items():
        arn = stage.parameters.get(name)
        if arn is None:
            continue
        parts = arn.split(":")
        if len(parts) > 4 and (parts[3], parts[4]) != (stage.region, stage.account):
            yield Finding("missing", name, f"is of account {parts[4]} in {parts[3]}, not of this deployment's")
            continue
        try:
            held = _table(json.loads(client.get_secret_value(SecretId=arn)["SecretString"]))
        except (BotoCoreError, ClientError) as error:
            if _code(error) == "AccessDeniedException":  # as for the role in stacks/deploy-role.yaml
                yield Finding(
                    "unseen", name, "may not be read with these credentials; the functions' roles will read it"
                )
            else:
                yield Finding("missing", name, f"cannot be read ({_code(error)})")
            continue
        except (KeyError, ValueError):
            held = {}
        lacking = [key for key in fields if not held.get(key)]
        if lacking:
            yield Finding(
                "missing", name, f"has to be a JSON object with {' and '.join(fields)}; no {lacking[0]} there"
            )
            continue
        stage.secrets[name] = {key: str(held[key]) for key in fields}
        yield Finding("ok", name, f"has {' and '.join(fields)}")
    yield from _check_logins(stage)


def _check_logins(stage: Stage) -> Iterator[Finding]:
    app = stage.secrets.get("DatabaseSecretArn", {}).get("username")
    migrator = stage.secrets.get("DatabaseMigratorSecretArn", {}).get("username")
    if app is not None and app == migrator:
        yield Finding("missing", "DatabaseSecretArn", "has the owner's login; the functions need a role without DDL")
    elif app is not None and app != stage.value("DatabaseAppUser"):
        yield Finding(
            "missing", "DatabaseAppUser", "is not the username in DatabaseSecretArn, which gets no rights then"
        )


def check_network(stage: Stage) -> Iterator[Finding]:
    client = stage.client("ec2")
    try:
        subnets = client.describe_subnets(SubnetIds=stage.values("VpcSubnetIds"))["Subnets"]
        groups = client.describe_security_groups(GroupIds=stage.values("VpcSecurityGroupIds"))["SecurityGroups"]
        vpcs = {part["VpcId"] for part in [*subnets, *groups]}
        if len(vpcs) != 1:
            yield Finding("missing", "network", "subnets and security groups are of different VPCs")
            return
        [vpc] = vpcs
        zones = sorted({subnet["AvailabilityZone"] for subnet in subnets})
        if len(zones) < 2:
            yield Finding("missing", "VpcSubnetIds", f"are all in {zones[0]}; take two zones, one of them may fail")
        else:
            yield Finding("ok", "network", f"{len(subnets)} subnets in {', '.join(zones)} of {vpc}")
        for_vpc = [{"Name": "vpc-id", "Values": [vpc]}]
        endpoints = {e["ServiceName"] for e in client.describe_vpc_endpoints(Filters=for_vpc)["VpcEndpoints"]}
        tables = client.describe_route_tables(Filters=for_vpc)["RouteTables"]
    except (BotoCoreError, ClientError) as error:
        yield Finding("missing", "network", f"subnets or security groups cannot be looked at ({_code(error)})")
        return
    without_way_out = [s["SubnetId"] for s in subnets if not _leads_out(tables, subnet=s["SubnetId"])]
    needed = {"secretsmanager": "secrets", "kms": "deriving keys"}
    if stage.value("ReconcileBucket"):
        needed["s3"] = "reports"
    for service, purpose in needed.items():
        if f"com.amazonaws.{stage.region}.{service}" in endpoints:
            yield Finding("ok", f"endpoint {service}", "is in the VPC")
        elif without_way_out:
            yield Finding(
                "missing", f"endpoint {service}", f"{without_way_out[0]} has neither it nor a NAT; needed for {purpose}"
            )
        else:
            yield Finding("ok", f"endpoint {service}", "is reached by NAT")


def _leads_out(tables: Sequence[Mapping[str, Any]], *, subnet: str) -> bool:
    """Whether a function there gets out. An internet gateway does not help it: it has no public address."""
    own = [t for t in tables if any(a.get("SubnetId") == subnet for a in t["Associations"])]
    main = [t for t in tables if any(a.get("Main") for a in t["Associations"])]
    return any(
        route.get("DestinationCidrBlock") == "0.0.0.0/0" and not str(route.get("GatewayId", "")).startswith("igw-")
        for table in own or main
        for route in table["Routes"]
    )


def check_issuer(stage: Stage) -> Iterator[Finding]:
    issuer = stage.parameters.get("JwtIssuer")
    if issuer is None:
        return  # behind LiteMaaS's own tokens
    if not issuer.startswith("https://"):
        yield Finding("unseen", "issuer", "is not https, which API Gateway asks for")
    try:
        discovery = _get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        said = discovery.get("issuer")
        if said != issuer:
            yield Finding("missing", "issuer", f"calls itself {said!r}; JwtIssuer has to be the same to the letter")
            return
        keys = _objects(_get(str(discovery.get("jwks_uri"))).get("keys"))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        yield Finding(
            "missing", "issuer", f"discovery or keys cannot be read ({_reason(error)}); they have to be public"
        )
        return
    rsa = [key for key in keys if _is_rs256(key)]
    supported = discovery.get("id_token_signing_alg_values_supported", ["RS256"])
    if not rsa or "RS256" not in supported:
        yield Finding("missing", "issuer", "has no RS256 key; API Gateway takes RSA signatures only")
        return
    yield Finding("ok", "issuer", f"{issuer} signs with RS256, {len(rsa)} keys")


def _is_rs256(key: Mapping[str, Any]) -> bool:
    return key.get("kty") == "RSA" and key.get("use", "sig") == "sig" and key.get("alg", "RS256") == "RS256"


def check_litellm(stage: Stage) -> Iterator[Finding]:
    url = stage.parameters.get("LiteLLMUrl", "")
    master_key = stage.secrets.get("LiteLLMSecretArn", {}).get("masterKey")
    try:
        ready = _get(f"{url}/health/readiness")
    except httpx.ConnectError:
        yield Finding(
            "unseen", "LiteLLM", "is not reached from this machine; is it private, run this again inside its VPC"
        )
        return
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        yield Finding("missing", "LiteLLM", f"is not ready ({_reason(error)})")
        return
    if ready.get("db") != "connected":
        yield Finding("missing", "LiteLLM", "runs without a database, so it cannot keep keys; give it DATABASE_URL")
    if master_key is None:
        yield Finding("unseen", "LiteLLM", "was asked nothing more: its master key is not known, see LiteLLMSecretArn")
        return
    authorization = {"authorization": f"Bearer {master_key}"}
    try:
        # Releases before 1.100 have it in the open readiness.
        version = ready.get("litellm_version") or _get(f"{url}/health/readiness/details", authorization).get(
            "litellm_version"
        )
        licence = _get(f"{url}/health/license", authorization)
    except (httpx.HTTPError, ValueError) as error:
        refused = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403)
        advice = (
            "does not take masterKey of LiteLLMSecretArn"
            if refused
            else f"does not tell its version ({_reason(error)})"
        )
        yield Finding("missing" if refused else "unseen", "LiteLLM", advice)
        return
    yield _judge_version(str(version))
    yield Finding(
        "ok",
        "LiteLLM's licence",
        f"{licence.get('license_type')}, until {licence.get('expiration_date') or 'further notice'}"
        if licence.get("has_license")
        else "none; none is needed, and what needs one is refused with 422",
    )
    yield Finding(
        "unseen",
        "LiteLLM's read replica",
        "LiteLLM does not tell; DATABASE_URL_READ_REPLICA and DATABASE_HOST_READ_REPLICA must not be set there",
    )


def _judge_version(version: str) -> Finding:
    if COMPROMISED.match(version):
        return Finding(
            "missing", "LiteLLM", f"{version} was published with foreign code in it; replace it, and every key"
        )
    numbers = re.match(r"(\d+)\.(\d+)\.", version)
    if numbers is None:
        return Finding("unseen", "LiteLLM", "tells no version")
    if (int(numbers[1]), int(numbers[2])) < MEASURED_WITH:
        return Finding(
            "unseen", "LiteLLM", f"{version} is older than 1.106, which all was measured with; see make contract"
        )
    return Finding("ok", "LiteLLM", f"{version}, with its database")


def check_database(stage: Stage) -> Iterator[Finding]:
    """Through the stack's own function: the database is private, and what counts is what the functions reach."""
    try:
        stacks = stage.client("cloudformation").describe_stacks(StackName=stage.stack_name)["Stacks"]
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and "does not exist" in str(error):
            yield Finding("unseen", "database", f"{stage.stack_name} is not deployed yet; its first deployment looks")
        else:
            yield Finding("missing", "database", f"the stack cannot be looked at ({_code(error)})")
        return
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stacks[0].get("Outputs", [])}
    function = outputs.get("MigrateDatabaseName")
    if function is None:
        yield Finding("unseen", "database", f"{stage.stack_name} has no MigrateDatabase; is its deployment unfinished?")
        return
    try:
        answer = stage.client("lambda").invoke(FunctionName=function, Payload=b'{"check": true}')
        said = _table(json.loads(answer["Payload"].read()))
    except (BotoCoreError, ClientError, ValueError) as error:
        yield Finding("missing", "database", f"{function} cannot be asked ({_code(error)})")
        return
    if "FunctionError" in answer:
        yield Finding("missing", "database", str(said.get("errorMessage") or "the function failed; see its log"))
        return
    for problem in said.get("problems", []):
        yield Finding("missing", "database", str(problem))
    if not said.get("problems"):
        pending = ", ".join(said.get("pending", [])) or "none"
        yield Finding("ok", "database", f"at {said.get('version') or 'no migration'}; pending: {pending}")


def check(stage: Stage, *, root: Path = CHECKOUT) -> Iterator[Finding]:
    yield from check_parameters(stage)
    yield from check_release(root)
    yield from check_credentials(stage)
    if stage.account is not None:
        yield from check_secrets(stage)
        yield from check_network(stage)
    yield from check_issuer(stage)
    yield from check_litellm(stage)
    if stage.account is not None:
        yield from check_database(stage)


def _get(url: str, headers: Mapping[str, str] | None = None) -> Mapping[str, Any]:
    """Raises httpx.HTTPError, and ValueError for what is no JSON object."""
    answer = httpx.get(url, headers=dict(headers or {}), timeout=10)
    answer.raise_for_status()
    document = _table(answer.json())
    if not document:
        raise ValueError("no JSON object")
    return document


def _table(value: Any) -> dict[str, Any]:
    """What is no JSON object says nothing."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [_table(each) for each in cast("list[Any]", value)] if isinstance(value, list) else []


def _code(error: Exception) -> str:
    return str(error.response.get("Error", {}).get("Code")) if isinstance(error, ClientError) else type(error).__name__


def _reason(error: Exception) -> str:
    """Never the error's own text, which may quote what was sent."""
    return str(error.response.status_code) if isinstance(error, httpx.HTTPStatusError) else type(error).__name__


def main() -> int:
    parser = argparse.ArgumentParser(prog="make preflight", description="What a deployment of this stage would miss.")
    parser.add_argument("stage", nargs="?", default="")
    parser.add_argument("--samconfig", type=Path, default=CHECKOUT / "samconfig.toml")
    arguments = parser.parse_args()
    try:
        stage = read_stage(arguments.stage, samconfig=arguments.samconfig)
    except NoSuchStage as error:
        print(error, file=sys.stderr)
        return 2
    missing = 0
    for finding in check(stage):
        print(finding, flush=True)
        missing += finding.verdict == "missing"
    print(
        f"{missing} missing; put it right and run this again"
        if missing
        else f"nothing is missing: make deploy STAGE={stage.name}"
    )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
