"""`make preflight STAGE=dev`: what a deployment of a stage of samconfig.toml would miss, one line for each thing it needs.

Looks only: it changes nothing, in AWS or elsewhere, and prints no secret. Exits with 0 when nothing is missing, 1 when
something is, 2 when it was asked for a stage that there is not.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import boto3
import httpx
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local.errors import StartFailed
from local.litemaas_template import litemaas_template
from local.stages import CHECKOUT, SAMCONFIG, Stage
from local.template import Template

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
class Target:
    """What is to be deployed where, and what the checks have learnt on the way."""

    stage: Stage
    region: str | None
    parameters: dict[str, str]
    template: Template
    account: str | None = None
    secrets: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]], repr=False)

    def client(self, service: str) -> Any:
        make: Callable[..., Any] = boto3.client
        return make(service, region_name=self.region, config=_AWS)

    def value(self, parameter: str) -> str:
        """As given, or its default."""
        return self.parameters.get(parameter, self.template.default(parameter))

    def values(self, parameter: str) -> list[str]:
        return [value for value in self.value(parameter).split(",") if value]


def read_target(name: str, *, samconfig: Path) -> Target:
    """Raises StartFailed when samconfig.toml has no such stage."""
    stage = Stage(name, text=samconfig.read_text())
    path = CHECKOUT / "template.yaml"
    return Target(
        stage=stage,
        region=boto3.session.Session().region_name,
        parameters=stage.overrides,
        template=Template(path, text=litemaas_template(path.read_text()) if stage.is_drop_in else None),
    )


def check_parameters(target: Target) -> Iterator[Finding]:
    wanted, given = target.template.parameter_names, target.parameters
    complaints = dict.fromkeys(target.template.required_parameters, "is not in samconfig.toml, and has no default")
    complaints.pop("ReleaseSha")  # the build gives it
    complaints = {name: text for name, text in complaints.items() if name not in given}
    complaints |= {
        name: "is in samconfig.toml, and no parameter of the template" for name in given if name not in wanted
    }
    complaints |= dict.fromkeys(
        target.stage.examples, "still has the example's value; put your own into samconfig.toml"
    )
    for name, value in given.items():
        if name not in complaints and (refusal := target.template.refusal(name, value)):
            complaints[name] = refusal
    for name, text in sorted(complaints.items()):
        yield Finding("missing", name, text)
    if complaints:
        return
    try:
        target.template.accepted({**given, "ReleaseSha": "0" * 64})
    except StartFailed as refused:
        yield Finding("missing", "parameters", str(refused))


def check_release(root: Path) -> Iterator[Finding]:
    if (root / RELEASE).exists():
        yield Finding("ok", "build", "functions and layer are built")
    else:
        yield Finding("missing", "build", "nothing is built yet; run make build")


def check_credentials(target: Target) -> Iterator[Finding]:
    if target.region is None:
        yield Finding("missing", "region", "none is set; export AWS_REGION, or set region in the profile")
        return
    yield Finding("ok", "region", target.region)
    try:
        identity = target.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        yield Finding("missing", "credentials", f"AWS takes none ({_code(error)}); log in, or set AWS_PROFILE")
        return
    target.account = str(identity["Account"])
    yield Finding("ok", "credentials", f"account {target.account}, as {identity['Arn']}")


def check_secrets(target: Target) -> Iterator[Finding]:
    client = target.client("secretsmanager")
    for name, fields in SECRET_FIELDS.items():
        arn = target.parameters.get(name)
        if arn is None:
            continue
        parts = arn.split(":")
        if len(parts) > 4 and (parts[3], parts[4]) != (target.region, target.account):
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
        target.secrets[name] = {key: str(held[key]) for key in fields}
        yield Finding("ok", name, f"has {' and '.join(fields)}")
    yield from _check_logins(target)


def _check_logins(target: Target) -> Iterator[Finding]:
    app = target.secrets.get("DatabaseSecretArn", {}).get("username")
    migrator = target.secrets.get("DatabaseMigratorSecretArn", {}).get("username")
    if app is not None and app == migrator:
        yield Finding("missing", "DatabaseSecretArn", "has the owner's login; the functions need a role without DDL")
    elif app is not None and app != target.value("DatabaseAppUser"):
        yield Finding(
            "missing", "DatabaseAppUser", "is not the username in DatabaseSecretArn, which gets no rights then"
        )


def check_network(target: Target) -> Iterator[Finding]:
    client = target.client("ec2")
    try:
        subnets = client.describe_subnets(SubnetIds=target.values("VpcSubnetIds"))["Subnets"]
        groups = client.describe_security_groups(GroupIds=target.values("VpcSecurityGroupIds"))["SecurityGroups"]
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
    needed = {"secretsmanager": "secrets", "kms": "deriving keys", "s3": "the migration's answer to CloudFormation"}
    for service, purpose in needed.items():
        if f"com.amazonaws.{target.region}.{service}" in endpoints:
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


def check_issuer(target: Target) -> Iterator[Finding]:
    issuer = target.parameters.get("JwtIssuer")
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


def check_litellm(target: Target) -> Iterator[Finding]:
    url = target.parameters.get("LiteLLMUrl", "")
    master_key = target.secrets.get("LiteLLMSecretArn", {}).get("masterKey")
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


def check_database(target: Target) -> Iterator[Finding]:
    """Through the stack's own function: the database is private, and what counts is what the functions reach."""
    try:
        stacks = target.client("cloudformation").describe_stacks(StackName=target.stage.stack_name)["Stacks"]
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and "does not exist" in str(error):
            yield Finding(
                "unseen", "database", f"{target.stage.stack_name} is not deployed yet; its first deployment looks"
            )
        else:
            yield Finding("missing", "database", f"the stack cannot be looked at ({_code(error)})")
        return
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stacks[0].get("Outputs", [])}
    function = outputs.get("MigrateDatabaseName")
    if function is None:
        yield Finding(
            "unseen", "database", f"{target.stage.stack_name} has no MigrateDatabase; is its deployment unfinished?"
        )
        return
    try:
        answer = target.client("lambda").invoke(FunctionName=function, Payload=b'{"check": true}')
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


def check(target: Target, *, root: Path = CHECKOUT) -> Iterator[Finding]:
    yield from check_parameters(target)
    yield from check_release(root)
    yield from check_credentials(target)
    if target.account is not None:
        yield from check_secrets(target)
        yield from check_network(target)
    yield from check_issuer(target)
    yield from check_litellm(target)
    if target.account is not None:
        yield from check_database(target)


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
    parser.add_argument("--samconfig", type=Path, default=SAMCONFIG)
    arguments = parser.parse_args()
    try:
        target = read_target(arguments.stage, samconfig=arguments.samconfig)
    except StartFailed as error:
        print(error, file=sys.stderr)
        return 2
    missing = 0
    for finding in check(target):
        print(finding, flush=True)
        missing += finding.verdict == "missing"
    print(
        f"{missing} missing; put it right and run this again"
        if missing
        else f"nothing is missing: make deploy STAGE={target.stage.name}"
    )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
