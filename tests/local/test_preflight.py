"""`make preflight` finds each thing that a deployment would miss: moto is AWS, issuer and LiteLLM answer over HTTP."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from local.aws import ACCOUNT_ID, CREDENTIALS, REGION, AwsServer
from local.errors import StartFailed
from local.issuer import Issuer
from local.loopback import listen, port_of
from local.preflight import (
    Target,
    check_credentials,
    check_database,
    check_issuer,
    check_litellm,
    check_network,
    check_parameters,
    check_release,
    check_secrets,
    read_target,
)
from local.serving import Receive, Scope, Send, ServerThread, answer
from local.stages import Stage
from local.template import Template
from tests.architecture.translation import ROOT
from tests.support.fixtures import LiteLLM


@dataclass
class Documents:
    """An HTTP server with the JSON that a test lays out; a path without any is 404."""

    url: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict[str, tuple[int, Any]])
    headers: dict[str, str] = field(default_factory=dict[str, str])

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        status, document = self.answers.get(scope["path"], (404, {"detail": "Not Found"}))
        headers = [("content-type", "application/json"), *self.headers.items()]
        await answer(send, status=status, headers=headers, body=json.dumps(document).encode())


@pytest.fixture(scope="module")
def thread() -> Iterator[ServerThread]:
    thread = ServerThread()
    yield thread
    thread.close()


@pytest.fixture
def documents(thread: ServerThread) -> Documents:
    listener = listen()
    documents = Documents(url=f"http://127.0.0.1:{port_of(listener)}")
    thread.serve(documents, [listener])
    return documents


@pytest.fixture(scope="module")
def issuer(thread: ServerThread) -> Issuer:
    listener = listen()
    issuer = Issuer(url=f"http://127.0.0.1:{port_of(listener)}")
    thread.serve(issuer, [listener])
    return issuer


@pytest.fixture(scope="module")
def aws() -> Iterator[AwsServer]:
    with AwsServer() as server, pytest.MonkeyPatch.context() as environment:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": server.url}).items():
            environment.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def network(aws: AwsServer) -> dict[str, str]:
    """A VPC with two subnets in one zone and one in another, a group, and an endpoint for Secrets Manager."""
    ec2 = boto3.client("ec2")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    made: Any = ec2
    vpc = made.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = {
        name: made.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=zone)["Subnet"][
            "SubnetId"
        ]
        for number, (name, zone) in enumerate(
            {"a": f"{REGION}a", "other_a": f"{REGION}a", "b": f"{REGION}b"}.items(), start=1
        )
    }
    group = made.create_security_group(GroupName="functions", Description="functions", VpcId=vpc)["GroupId"]
    made.create_vpc_endpoint(
        VpcId=vpc, ServiceName=f"com.amazonaws.{REGION}.secretsmanager", VpcEndpointType="Interface"
    )
    return {**subnets, "group": group, "vpc": vpc}


@pytest.fixture
def target(aws: AwsServer, network: Mapping[str, str], issuer: Issuer, litellm: LiteLLM) -> Target:
    """Everything is there but an endpoint for KMS."""
    mark = os.urandom(4).hex()
    samconfig = f'[dev.deploy.parameters]\nstack_name = "keyservice-{mark}"\nparameter_overrides = []\n'
    return Target(
        stage=Stage("dev", text=samconfig),
        region=REGION,
        account=ACCOUNT_ID,
        template=Template(ROOT / "template.yaml"),
        parameters={
            "JwtIssuer": issuer.url,
            "JwtAudience": "keyservice",
            "DatabaseHost": "db.internal",
            "DatabaseSecretArn": aws.create_secret(
                f"app-{mark}", {"username": "keyservice_app", "password": "p4ss-app"}
            ),
            "DatabaseMigratorSecretArn": aws.create_secret(
                f"own-{mark}", {"username": "owner", "password": "p4ss-own"}
            ),
            "LiteLLMUrl": litellm.url,
            "LiteLLMSecretArn": aws.create_secret(f"llm-{mark}", {"masterKey": litellm.master_key}),
            "VpcSubnetIds": f"{network['a']},{network['b']}",
            "VpcSecurityGroupIds": network["group"],
        },
    )


def given(target: Target, **parameters: str) -> Target:
    return replace(target, parameters=target.parameters | parameters, secrets={})


def lines(findings: Iterator[Any]) -> list[str]:
    return [str(finding) for finding in findings]


class TestParameters:
    def test_all_that_has_no_default_is_asked_for(self, target: Target):
        assert lines(check_parameters(replace(target, parameters={}))) == [
            f"missing {name}: is not in samconfig.toml, and has no default" for name in sorted(target.parameters)
        ]

    def test_what_the_template_does_not_know_is_named(self, target: Target):
        assert lines(check_parameters(given(target, JwtIsuer="x"))) == [
            "missing JwtIsuer: is in samconfig.toml, and no parameter of the template"
        ]

    def test_the_examples_own_values_are_no_values(self):
        example = read_target("prod", samconfig=ROOT / "samconfig.toml")

        named = {finding.subject for finding in check_parameters(example)}

        assert named == set(example.parameters) - {"JwtAudience", "LogRetentionDays"}

    def test_a_value_the_template_refuses_is_explained_in_its_words(self, target: Target):
        assert lines(check_parameters(given(target, LiteLLMUrl="https://litellm.test/"))) == [
            (
                "missing LiteLLMUrl: the parameter LiteLLMUrl cannot be 'https://litellm.test/': "
                "must be a URL without credentials, query and closing slash"
            )
        ]

    def test_a_combination_the_template_refuses_is_explained_in_its_words(self, target: Target):
        assert lines(check_parameters(given(target, DatabaseAuthentication="iam"))) == [
            "missing parameters: DatabaseAuthentication iam needs DatabaseResourceId, which rds-db:connect is granted on"
        ]

    def test_an_unknown_stage_is_told_the_stages(self):
        with pytest.raises(StartFailed, match="no stage 'production', only "):
            read_target("production", samconfig=ROOT / "samconfig.toml")

    def test_a_drop_in_is_not_asked_for_an_issuer(self):
        target = read_target("litemaas", samconfig=ROOT / "samconfig.toml")

        assert lines(check_issuer(target)) == []
        assert "LiteMaaSTokenSecretArn" in target.parameters

    def test_a_build_is_missed(self, tmp_path: Path):
        assert lines(check_release(tmp_path)) == ["missing build: nothing is built yet; run make build"]


class TestCredentials:
    def test_region_and_identity_are_told(self, target: Target):
        assert lines(check_credentials(target))[0] == f"ok      region: {REGION}"
        assert target.account == ACCOUNT_ID

    def test_no_region(self, target: Target):
        nowhere = replace(target, region=None, account=None)

        assert lines(check_credentials(nowhere)) == [
            "missing region: none is set; export AWS_REGION, or set region in the profile"
        ]
        assert nowhere.account is None

    def test_no_credentials(self, target: Target, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")

        assert lines(check_credentials(target))[1] == (
            "missing credentials: AWS takes none (EndpointConnectionError); log in, or set AWS_PROFILE"
        )


class TestSecrets:
    def test_shapes_are_told_and_no_secret_is(self, target: Target):
        told = lines(check_secrets(target))

        assert told == [
            "ok      DatabaseSecretArn: has username and password",
            "ok      DatabaseMigratorSecretArn: has username and password",
            "ok      LiteLLMSecretArn: has masterKey",
        ]
        assert "p4ss" not in repr(target)

    def test_a_secret_without_its_fields(self, target: Target, aws: AwsServer):
        aws.change_secret(target.parameters["LiteLLMSecretArn"], {"master_key": "sk-1234"})

        assert lines(check_secrets(target))[2] == (
            "missing LiteLLMSecretArn: has to be a JSON object with masterKey; no masterKey there"
        )

    def test_a_secret_that_is_not_there(self, target: Target):
        gone = given(target, DatabaseSecretArn=target.parameters["DatabaseSecretArn"] + "-gone")

        assert lines(check_secrets(gone))[0] == (
            "missing DatabaseSecretArn: cannot be read (ResourceNotFoundException)"
        )

    def test_a_secret_that_the_deployer_may_not_read_is_no_reason_to_stop(
        self, target: Target, documents: Documents, monkeypatch: pytest.MonkeyPatch
    ):
        documents.answers = {"/": (400, {"__type": "AccessDeniedException", "Message": "no"})}
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", documents.url)

        assert lines(check_secrets(target))[0] == (
            "unseen  DatabaseSecretArn: may not be read with these credentials; the functions' roles will read it"
        )

    def test_a_secret_of_another_account(self, target: Target):
        other = given(target, LiteLLMSecretArn="arn:aws:secretsmanager:us-east-1:210987654321:secret:litellm-AbCdEf")

        assert lines(check_secrets(other))[2] == (
            "missing LiteLLMSecretArn: is of account 210987654321 in us-east-1, not of this deployment's"
        )

    def test_the_owners_login_for_the_functions(self, target: Target):
        same = given(target, DatabaseSecretArn=target.parameters["DatabaseMigratorSecretArn"])

        assert lines(check_secrets(same))[-1] == (
            "missing DatabaseSecretArn: has the owner's login; the functions need a role without DDL"
        )

    def test_another_role_than_the_migrations_grant_to(self, target: Target):
        assert lines(check_secrets(given(target, DatabaseAppUser="somebody")))[-1] == (
            "missing DatabaseAppUser: is not the username in DatabaseSecretArn, which gets no rights then"
        )


class TestNetwork:
    def test_an_endpoint_that_is_missing_is_named_with_its_purpose(self, target: Target, network: Mapping[str, str]):
        assert lines(check_network(target)) == [
            f"ok      network: 2 subnets in {REGION}a, {REGION}b of {network['vpc']}",
            "ok      endpoint secretsmanager: is in the VPC",
            f"missing endpoint kms: {network['a']} has neither it nor a NAT; needed for deriving keys",
            f"missing endpoint s3: {network['a']} has neither it nor a NAT; needed for the migration's answer to CloudFormation",
        ]

    def test_one_zone_is_not_enough(self, target: Target, network: Mapping[str, str]):
        one = given(target, VpcSubnetIds=f"{network['a']},{network['other_a']}")

        assert lines(check_network(one))[0] == (
            f"missing VpcSubnetIds: are all in {REGION}a; take two zones, one of them may fail"
        )

    def test_a_subnet_that_is_not_there(self, target: Target):
        assert lines(check_network(given(target, VpcSubnetIds="subnet-0123456789abcdef0"))) == [
            "missing network: subnets or security groups cannot be looked at (InvalidSubnetID.NotFound)"
        ]

    def test_parts_of_two_networks(self, target: Target):
        client: Any = target.client("ec2")
        other = client.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
        group = client.create_security_group(GroupName="other", Description="other", VpcId=other)["GroupId"]

        assert lines(check_network(given(target, VpcSecurityGroupIds=group))) == [
            "missing network: subnets and security groups are of different VPCs"
        ]

    def test_a_nat_is_as_good_as_endpoints_and_an_internet_gateway_is_not(self, target: Target):
        client: Any = target.client("ec2")
        vpc = client.create_vpc(CidrBlock="10.2.0.0/16")["Vpc"]["VpcId"]
        subnets = [
            client.create_subnet(VpcId=vpc, CidrBlock=f"10.2.{n}.0/24", AvailabilityZone=REGION + zone)["Subnet"][
                "SubnetId"
            ]
            for n, zone in enumerate("ab")
        ]
        group = client.create_security_group(GroupName="nat", Description="nat", VpcId=vpc)["GroupId"]
        gateway = client.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        client.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        [table] = client.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
        here = given(target, VpcSubnetIds=",".join(subnets), VpcSecurityGroupIds=group)

        client.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
        by_internet_gateway = lines(check_network(here))[1:]
        address = client.allocate_address(Domain="vpc")["AllocationId"]
        nat = client.create_nat_gateway(SubnetId=subnets[0], AllocationId=address)["NatGateway"]["NatGatewayId"]
        client.replace_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
        by_nat = lines(check_network(here))[1:]

        assert [line[:7] for line in by_internet_gateway] == ["missing"] * 3
        assert by_nat == [
            f"ok      endpoint {service}: is reached by NAT" for service in ("secretsmanager", "kms", "s3")
        ]


class TestIssuer:
    def test_one_that_signs_with_rs256(self, target: Target, issuer: Issuer):
        assert lines(check_issuer(target)) == [
            "unseen  issuer: is not https, which API Gateway asks for",
            f"ok      issuer: {issuer.url} signs with RS256, 1 keys",
        ]

    def test_one_that_calls_itself_otherwise(self, target: Target, issuer: Issuer):
        assert lines(check_issuer(given(target, JwtIssuer=issuer.url + "/")))[1] == (
            f"missing issuer: calls itself '{issuer.url}'; JwtIssuer has to be the same to the letter"
        )

    @pytest.mark.parametrize(
        ("keys", "algorithms"),
        [
            pytest.param([{"kty": "EC", "crv": "P-256", "alg": "ES256"}], ["ES256"], id="elliptic-curve"),
            pytest.param([{"kty": "RSA", "use": "enc"}], ["RS256"], id="for-encryption-only"),
            pytest.param([{"kty": "RSA", "alg": "PS256"}], ["PS256"], id="another-signature"),
            pytest.param([{"kty": "RSA"}], ["ES256"], id="tokens-of-another-kind"),
            pytest.param([], ["RS256"], id="no-keys"),
            pytest.param("none", ["RS256"], id="no-list"),
        ],
    )
    def test_one_without_a_key_for_rs256(self, target: Target, documents: Documents, keys: Any, algorithms: list[str]):
        documents.answers = {
            "/.well-known/openid-configuration": (
                200,
                {
                    "issuer": documents.url,
                    "jwks_uri": f"{documents.url}/keys",
                    "id_token_signing_alg_values_supported": algorithms,
                },
            ),
            "/keys": (200, {"keys": keys}),
        }

        assert lines(check_issuer(given(target, JwtIssuer=documents.url)))[1] == (
            "missing issuer: has no RS256 key; API Gateway takes RSA signatures only"
        )

    @pytest.mark.parametrize(
        ("answers", "reason"),
        [
            pytest.param({}, "404", id="no-discovery"),
            pytest.param({"/.well-known/openid-configuration": (200, ["text"])}, "ValueError", id="no-object"),
        ],
    )
    def test_one_that_cannot_be_read(
        self, target: Target, documents: Documents, answers: dict[str, tuple[int, Any]], reason: str
    ):
        documents.answers = answers

        assert lines(check_issuer(given(target, JwtIssuer=documents.url)))[1] == (
            f"missing issuer: discovery or keys cannot be read ({reason}); they have to be public"
        )

    def test_one_that_is_not_there(self, target: Target):
        assert lines(check_issuer(given(target, JwtIssuer="http://127.0.0.1:9")))[1] == (
            "missing issuer: discovery or keys cannot be read (ConnectError); they have to be public"
        )


def litellm_answers(*, version: str | None = "1.106.0", **changed: tuple[int, Any]) -> dict[str, tuple[int, Any]]:
    return {
        "/health/readiness": (200, {"status": "healthy", "db": "connected"}),
        "/health/readiness/details": (200, {"litellm_version": version}),
        "/health/license": (200, {"has_license": False}),
    } | {f"/health/{name.replace('__', '/')}": answer for name, answer in changed.items()}


class TestLiteLLM:
    def test_the_stand_in_is_taken(self, target: Target):
        list(check_secrets(target))

        assert lines(check_litellm(target)) == [
            "ok      LiteLLM: 1.106.0, with its database",
            "ok      LiteLLM's licence: none; none is needed, and what needs one is refused with 422",
            (
                "unseen  LiteLLM's read replica: LiteLLM does not tell; DATABASE_URL_READ_REPLICA and "
                "DATABASE_HOST_READ_REPLICA must not be set there"
            ),
        ]

    def test_another_master_key(self, target: Target):
        target.secrets["LiteLLMSecretArn"] = {"masterKey": "sk-not-it"}

        assert lines(check_litellm(target)) == ["missing LiteLLM: does not take masterKey of LiteLLMSecretArn"]

    @pytest.mark.parametrize("version", ["1.82.7", "1.82.8", "1.82.8.post1", "1.107.0", "1.107.12"])
    def test_a_compromised_release(self, target: Target, documents: Documents, version: str):
        documents.answers = litellm_answers(version=version)

        assert self.first(target, documents) == (
            f"missing LiteLLM: {version} was published with foreign code in it; replace it, and every key"
        )

    @pytest.mark.parametrize("version", ["1.82.70", "1.82.6", "1.105.9"])
    def test_an_older_release(self, target: Target, documents: Documents, version: str):
        documents.answers = litellm_answers(version=version)

        assert self.first(target, documents) == (
            f"unseen  LiteLLM: {version} is older than 1.106, which all was measured with; see make contract"
        )

    @pytest.mark.parametrize("version", ["1.106.0", "1.108.1", "2.0.0"])
    def test_a_later_release(self, target: Target, documents: Documents, version: str):
        documents.answers = litellm_answers(version=version)

        assert self.first(target, documents) == f"ok      LiteLLM: {version}, with its database"

    def test_a_release_that_tells_its_version_openly(self, target: Target, documents: Documents):
        ready = {"db": "connected", "litellm_version": "1.82.7"}
        documents.answers = litellm_answers(readiness=(200, ready), readiness__details=(404, {}))

        assert self.first(target, documents).startswith("missing LiteLLM: 1.82.7 was published")

    def test_one_that_tells_none(self, target: Target, documents: Documents):
        documents.answers = litellm_answers(version=None)

        assert self.first(target, documents) == "unseen  LiteLLM: tells no version"

    def test_one_without_a_database(self, target: Target, documents: Documents):
        documents.answers = litellm_answers(readiness=(200, {"status": "healthy", "db": "Not connected"}))

        assert self.first(target, documents) == (
            "missing LiteLLM: runs without a database, so it cannot keep keys; give it DATABASE_URL"
        )

    def test_one_that_is_not_ready(self, target: Target, documents: Documents):
        documents.answers = litellm_answers(readiness=(503, {"db": "disconnected"}))

        assert self.first(target, documents) == "missing LiteLLM: is not ready (503)"

    def test_one_that_is_not_reached_from_here(self, target: Target):
        assert lines(check_litellm(given(target, LiteLLMUrl="http://127.0.0.1:9"))) == [
            "unseen  LiteLLM: is not reached from this machine; is it private, run this again inside its VPC"
        ]

    def test_a_licence(self, target: Target, documents: Documents):
        licence = {"has_license": True, "license_type": "enterprise", "expiration_date": "2027-01-31"}
        documents.answers = litellm_answers(license=(200, licence))
        target.secrets["LiteLLMSecretArn"] = {"masterKey": "sk-any"}

        assert lines(check_litellm(given_url(target, documents)))[1] == (
            "ok      LiteLLM's licence: enterprise, until 2027-01-31"
        )

    def first(self, target: Target, documents: Documents) -> str:
        target.secrets["LiteLLMSecretArn"] = {"masterKey": "sk-any"}
        return lines(check_litellm(given_url(target, documents)))[0]


def given_url(target: Target, documents: Documents) -> Target:
    return replace(target, parameters=target.parameters | {"LiteLLMUrl": documents.url})


class TestDatabase:
    """Lambda's own HTTP API is laid out here: moto would want a container for it."""

    FUNCTION = "keyservice-MigrateDatabase-1A2B"

    @pytest.fixture
    def deployed(self, target: Target, documents: Documents, monkeypatch: pytest.MonkeyPatch) -> Documents:
        template = {
            "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
            "Outputs": {"MigrateDatabaseName": {"Value": self.FUNCTION}},
        }
        target.client("cloudformation").create_stack(
            StackName=target.stage.stack_name, TemplateBody=json.dumps(template)
        )
        monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", documents.url)
        return documents

    def answers(self, documents: Documents, said: Any) -> None:
        documents.answers = {f"/2015-03-31/functions/{self.FUNCTION}/invocations": (200, said)}

    def test_what_the_function_finds_is_told(self, target: Target, deployed: Documents):
        self.answers(deployed, {"pending": ["0008_next"], "version": "0007_spend", "problems": []})

        assert lines(check_database(target)) == ["ok      database: at 0007_spend; pending: 0008_next"]

    def test_problems_are_missing_things(self, target: Target, deployed: Documents):
        problems = ["the app role does not exist; create it with LOGIN", "the owner may not make tables"]
        self.answers(deployed, {"pending": [], "version": None, "problems": problems})

        assert lines(check_database(target)) == [f"missing database: {problem}" for problem in problems]

    def test_a_function_that_fails(self, target: Target, deployed: Documents):
        deployed.headers = {"x-amz-function-error": "Unhandled"}
        self.answers(deployed, {"errorType": "DatabaseUnavailable", "errorMessage": "The database is not available."})

        assert lines(check_database(target)) == ["missing database: The database is not available."]

    def test_a_function_that_may_not_be_invoked(self, target: Target, deployed: Documents):
        deployed.headers = {"x-amzn-errortype": "AccessDeniedException"}
        deployed.answers = {f"/2015-03-31/functions/{self.FUNCTION}/invocations": (403, {"Message": "no"})}

        assert lines(check_database(target)) == [
            f"missing database: {self.FUNCTION} cannot be asked (AccessDeniedException)"
        ]

    def test_before_the_first_deployment(self, target: Target):
        assert lines(check_database(target)) == [
            f"unseen  database: {target.stage.stack_name} is not deployed yet; its first deployment looks"
        ]


class TestCommand:
    def run(
        self, target: Target, directory: Path, *, name: str = "dev", **parameters: str
    ) -> subprocess.CompletedProcess[str]:
        overrides = [f"{key}={value}" for key, value in {**target.parameters, **parameters}.items()]
        samconfig = directory / "samconfig.toml"
        samconfig.write_text(
            f'[dev.deploy.parameters]\nstack_name = "{target.stage.stack_name}"\nparameter_overrides = {json.dumps(overrides)}\n'
        )
        command = [sys.executable, "-m", "local.preflight", name, "--samconfig", samconfig]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    def test_it_says_what_is_missing_and_exits_with_one(self, target: Target, tmp_path: Path):
        done = self.run(target, tmp_path, JwtIssuer="http://127.0.0.1:9")

        assert done.returncode == 1
        assert done.stderr == ""
        assert "missing issuer: discovery or keys cannot be read (ConnectError)" in done.stdout
        assert done.stdout.endswith(" missing; put it right and run this again\n")
        assert target.parameters["LiteLLMSecretArn"] not in done.stdout
        assert "p4ss" not in done.stdout

    def test_an_unknown_stage_exits_with_two(self, target: Target, tmp_path: Path):
        done = self.run(target, tmp_path, name="prod")

        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "samconfig.toml has no stage 'prod', only dev\n"
