"""What the AWS client makes of an AWS that fails; that its signatures are right is told by test_signatures."""

import json
import socket
import ssl
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from keyservice.aws import Aws, AwsUnavailable
from keyservice.derivation import DerivedSecret, KeyDeriver
from keyservice.errors import DerivationUnavailable, SecretUnavailable
from keyservice.secret_values import SecretValues
from keyservice.settings import Settings
from local.aws import CREDENTIALS
from tests.architecture.translation import ROOT
from tests.support.aws_client import aws_client
from tests.unit.scripted_aws import (
    ScriptedAws,
    Step,
    answer,
    answer_and_hang_up,
    half_an_answer,
    hang_up,
    silence,
)

PASSWORD = "a-password"
SECRET = {"SecretString": json.dumps({"password": PASSWORD})}
THROTTLED = answer(400, {"__type": "ThrottlingException", "message": "Rate exceeded"})
REFUSED = answer(400, {"__type": "AccessDeniedException", "Message": "arn:aws:iam::123456789012:role/r is not allowed"})


@pytest.fixture
def connect() -> Iterator[Callable[..., tuple[ScriptedAws, Aws]]]:
    running: list[ScriptedAws] = []
    clients: list[Aws] = []

    def connected(*steps: Step) -> tuple[ScriptedAws, Aws]:
        running.append(ScriptedAws(*steps))
        clients.append(aws_client(running[-1].url))
        return running[-1], clients[-1]

    yield connected
    for client in clients:
        client.close()
    for server in running:
        server.__exit__(None, None, None)


type Connect = Callable[..., tuple[ScriptedAws, Aws]]


def password(aws: Aws) -> str:
    """Read from a secret that nobody has remembered."""
    return SecretValues(aws).field("arn:database", "password").reveal()


def derive(aws: Aws) -> DerivedSecret:
    return KeyDeriver(mac_key_arn="arn:mac-key", aws=aws).derive(UUID(int=1), nonce="n")


class TestRequest:
    def test_secret_is_asked_for_as_the_protocol_has_it(self, connect: Connect):
        server, aws = connect(answer(200, SECRET))

        assert password(aws) == PASSWORD

        [sent] = server.sent
        assert sent.body == {"SecretId": "arn:database"}
        assert sent.headers["x-amz-target"] == "secretsmanager.GetSecretValue"
        assert sent.headers["content-type"] == "application/x-amz-json-1.1"
        assert sent.headers["host"] == server.url.removeprefix("http://")
        assert sent.headers["x-amz-security-token"] == "local"
        assert "/eu-central-1/secretsmanager/aws4_request" in sent.headers["authorization"]

    def test_mac_travels_as_base64(self, connect: Connect):
        mac = bytes(range(32))
        server, aws = connect(answer(200, {"Mac": b64encode(mac).decode(), "KeyId": "arn:mac-key"}))

        derived = derive(aws)

        assert derived.token_hash == DerivedSecret(mac).token_hash
        [sent] = server.sent
        assert sent.headers["x-amz-target"] == "TrentService.GenerateMac"
        assert sent.body == {
            "KeyId": "arn:mac-key",
            "MacAlgorithm": "HMAC_SHA_256",
            "Message": b64encode(f"keyservice/v1:{UUID(int=1)}:n".encode()).decode(),
        }

    def test_boto3_and_httpx_are_not_imported_for_it(self, connect: Connect):
        server, _ = connect(answer(200, SECRET))
        # Powertools imports botocore's own, empty package.
        program = (
            "import sys; from keyservice import wiring; import keyservice.listing, keyservice.database\n"
            "wiring.secret_values().field('arn:database', 'password')\n"
            "print([name for name in ('boto3', 'botocore.session', 'httpx') if name in sys.modules])"
        )

        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT / "layers/shared",
            env=CREDENTIALS | {"AWS_ENDPOINT_URL": server.url, "POWERTOOLS_SERVICE_NAME": "test"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )

        assert len(server.sent) == 1
        assert done.stdout == "[]\n"


class TestSecondAttempt:
    @pytest.mark.parametrize(
        "trouble",
        [
            pytest.param(THROTTLED, id="throttled"),
            pytest.param(answer(429, b""), id="too many requests"),
            pytest.param(answer(500, {"__type": "com.amazonaws.kms#KMSInternalException"}), id="internal error"),
            pytest.param(answer(503, b"<html>Service Unavailable</html>"), id="unavailable, not JSON"),
            pytest.param(hang_up, id="no answer"),
            pytest.param(half_an_answer, id="half an answer"),
            pytest.param(silence, id="silence"),
        ],
    )
    def test_what_passes_is_asked_again_once(self, connect: Connect, trouble: Step):
        server, aws = connect(trouble, answer(200, SECRET))

        assert password(aws) == PASSWORD
        assert len(server.sent) == 2

    @pytest.mark.parametrize(
        "trouble", [pytest.param(THROTTLED, id="throttled"), pytest.param(hang_up, id="no answer")]
    )
    def test_there_is_no_third_one(self, connect: Connect, trouble: Step):
        server, aws = connect(trouble)

        with pytest.raises(DerivationUnavailable):
            derive(aws)

        assert len(server.sent) == 2

    @pytest.mark.parametrize(
        "step",
        [
            pytest.param(REFUSED, id="refused"),
            pytest.param(answer(400, {"__type": "com.amazonaws.kms#DisabledException"}), id="disabled key"),
            pytest.param(answer(400, b"\xff"), id="refused, not text"),
            pytest.param(answer(200, b""), id="an empty answer"),
            pytest.param(answer(200, b'{"SecretString":"\xff"}'), id="an answer that is not text"),
            pytest.param(answer(200, {"SecretBinary": "AAAA"}), id="another answer"),
            pytest.param(answer(200, {"SecretString": "not JSON"}), id="a secret that is not JSON"),
            pytest.param(answer(302, b""), id="sent elsewhere"),
        ],
    )
    def test_what_stays_is_asked_once(self, connect: Connect, step: Step):
        server, aws = connect(step)

        with pytest.raises(SecretUnavailable):
            password(aws)

        assert len(server.sent) == 1

    def test_nobody_there_is_unavailable(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]

        with closing(aws_client(f"http://127.0.0.1:{port}")) as aws, pytest.raises(DerivationUnavailable):
            derive(aws)

    def test_server_that_takes_no_connection_is_given_up(self):
        # Its queue is full, so that a further connection is neither taken nor refused.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
            address = server.getsockname()
            waiting = [socket.socket() for _ in range(4)]
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(address)

            with closing(aws_client(f"http://127.0.0.1:{address[1]}")) as aws, pytest.raises(SecretUnavailable):
                password(aws)

            for client in waiting:
                client.close()


class TestConnection:
    def test_it_is_kept(self, connect: Connect):
        server, aws = connect(answer(200, SECRET))

        for _ in range(3):
            password(aws)

        assert [sent.connection for sent in server.sent] == [1, 1, 1]

    def test_one_that_the_server_has_closed_costs_no_attempt(self, connect: Connect):
        server, aws = connect(answer_and_hang_up(SECRET), THROTTLED, answer(200, SECRET))
        password(aws)
        server.hung_up.acquire()

        # With one attempt lost to the closed connection, throttling would be the last word.
        assert password(aws) == PASSWORD
        assert [sent.connection for sent in server.sent] == [1, 2, 2]

    def test_each_thread_has_its_own(self, connect: Connect):
        meeting = threading.Barrier(4)

        def meet(handler: Any) -> None:
            meeting.wait(30)
            answer(200, SECRET)(handler)

        server, aws = connect(meet)
        with ThreadPoolExecutor(4) as threads:
            passwords = list(threads.map(lambda _: password(aws), range(4)))

        assert passwords == [PASSWORD] * 4
        assert sorted(sent.connection for sent in server.sent) == [1, 2, 3, 4]

    def test_closing_ends_it_and_the_next_call_opens_another(self, connect: Connect):
        server, aws = connect(answer(200, SECRET))
        password(aws)

        aws.close()

        assert server.hung_up.acquire(timeout=30)
        assert password(aws) == PASSWORD
        assert [sent.connection for sent in server.sent] == [1, 2]

    def test_server_that_the_public_roots_do_not_vouch_for_is_refused(self, tmp_path: Path):
        with ScriptedAws(answer(200, SECRET), tls=self_signed(tmp_path)) as server:
            with closing(aws_client(server.url)) as aws, pytest.raises(SecretUnavailable) as refusal:
                password(aws)

            trouble = refusal.value.__cause__
            assert isinstance(trouble, AwsUnavailable)
            assert isinstance(trouble.__cause__, ssl.SSLCertVerificationError)
            assert server.sent == []


class TestSecrecy:
    def test_refusal_says_the_code_and_not_the_message(self, connect: Connect):
        _, aws = connect(REFUSED)

        with pytest.raises(AwsUnavailable) as refusal:
            aws.call("kms", "TrentService.GenerateMac", {}, answer=dict[str, str])

        assert str(refusal.value) == "400 AccessDeniedException"

    def test_client_and_settings_do_not_show_credentials(self):
        hidden = {"AWS_ACCESS_KEY_ID": "hidden", "AWS_SECRET_ACCESS_KEY": "hidden", "AWS_SESSION_TOKEN": "hidden"}
        settings = Settings(variables={"AWS_REGION": "eu-central-1", "URL_SUFFIX": "amazonaws.com"} | hidden)

        assert "hidden" not in f"{settings!r} {settings.aws!r} {Aws(settings.aws)!r}"


class CredentialsServer(ThreadingHTTPServer):
    """Gives whoever shows the token credentials that are about to end, others each time."""

    daemon_threads = True
    given = 0


class CredentialsHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = cast(CredentialsServer, self.server)
        is_known = self.headers.get("Authorization") == "the-token"
        server.given += is_known
        body = json.dumps(
            {
                "AccessKeyId": f"ASIA{server.given}",
                "SecretAccessKey": f"made-up-{server.given}",
                "Token": f"token-{server.given}",
                "Expiration": (datetime.now(UTC) + timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        ).encode()
        self.send_response(200 if is_known else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name for it
        """Nothing: what it has given is seen in the requests."""


class TestCredentialsOfAFunctionFromASnapshot:
    @pytest.fixture
    def credentials(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, "/nowhere")
        with CredentialsServer(("127.0.0.1", 0), CredentialsHandler) as server:
            url = f"http://127.0.0.1:{server.server_address[1]}/credentials"
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)
            monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "the-token")
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            yield monkeypatch
            server.shutdown()
            thread.join()

    def client(self, url: str) -> Aws:
        return Aws(Settings(variables={"AWS_REGION": "eu-central-1", "AWS_ENDPOINT_URL": url}).aws)

    @pytest.mark.usefixtures("credentials")
    def test_they_are_asked_for_and_replaced_before_they_end(self):
        with ScriptedAws(answer(200, SECRET)) as server, closing(self.client(server.url)) as aws:
            password(aws)
            password(aws)

        tokens = [sent.headers["x-amz-security-token"] for sent in server.sent]
        keys = [sent.headers["authorization"].split("Credential=")[1].split("/")[0] for sent in server.sent]
        assert tokens[0] != tokens[1]
        assert [key.removeprefix("ASIA") for key in keys] == [token.removeprefix("token-") for token in tokens]

    def test_when_they_are_refused_nothing_is_sent(self, credentials: pytest.MonkeyPatch):
        credentials.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "another-token")

        with ScriptedAws(answer(200, SECRET)) as server:
            with closing(self.client(server.url)) as aws, pytest.raises(DerivationUnavailable):
                derive(aws)

            assert server.sent == []


def self_signed(directory: Path) -> ssl.SSLContext:
    """Of a server that vouches for itself, under the name it is asked by."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = directory / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
