"""The whole service on this machine: the template's functions behind an HTTP API, with everything they talk to."""

import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import Any, Self

from local.aws import ACCOUNT_ID, REGION, AwsServer
from local.errors import StartFailed
from local.gateway import Gateway
from local.issuer import KEY_ID, Issuer, LiteMaaSIssuer
from local.litellm_process import LiteLLMProcess
from local.loopback import listen, port_of
from local.postgres import PostgresServer
from local.processes import end_all, private_directory, remove_directory
from local.roles import APP, MIGRATOR, create_roles
from local.runtime_api import RuntimeApi
from local.serving import ServerThread
from local.template import Application, Template
from local.workers import InvocationFailed, WorkerPool

CHECKOUT = Path(__file__).parent.parent
STACK_NAME = "keyservice-local"
AUDIENCE = "keyservice-local"
MIGRATION_FUNCTION = "MigrateDatabase"
WORKERS_PER_FUNCTION = 4
# The parameter that only the template of a drop-in has.
LITEMAAS_SECRET = "LiteMaaSTokenSecretArn"

type Step = Callable[[str], None]


class LocalStack:
    """Start it with `LocalStack.start`; it ends with the block, and with this process whatever becomes of it."""

    url: str
    """Of the API, without a slash at the end."""
    issuer_url: str
    database: PostgresServer
    database_name: str
    aws: AwsServer
    mac_key_arn: str
    litellm: LiteLLMProcess | None
    """None when an outside LiteLLM is used."""
    litellm_url: str
    litellm_master_key: str
    log_path: Path
    """What the functions wrote to stdout and stderr, and Lambda about them."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._pools: dict[str, WorkerPool] = {}
        self._issuer: Issuer
        self._litemaas = LiteMaaSIssuer()
        self._thread: ServerThread
        self.secret_arns: dict[str, str] = {}

    @classmethod
    def start(
        cls,
        *,
        template: Path = CHECKOUT / "template.yaml",
        parameters: Mapping[str, str] | None = None,
        extra_environment: Mapping[str, str] | None = None,
        litellm_url: str | None = None,
        litellm_master_key: str | None = None,
        database: PostgresServer | None = None,
        aws: AwsServer | None = None,
        port: int = 0,
        workers_per_function: int = WORKERS_PER_FUNCTION,
        log_directory: Path | None = None,
        interpreter: Path = Path(sys.executable),
        report: Step = lambda _: None,
    ) -> Self:
        """A running stack with an empty, migrated database.

        `parameters` are the template's and win over what the stack would give them; `extra_environment` reaches every
        function. An outside LiteLLM needs both its URL and its master key. `database` and `aws` that are passed in are
        left running at the end, and a database of the wanted name that exists there is used as it is. `interpreter` runs
        the functions, with the layer's requirements and Lambda's runtime client. `report` hears one line for each step.
        Raises StartFailed with one line for a person; nothing is left behind then.
        """
        if (litellm_url is None) != (litellm_master_key is None):
            raise StartFailed("an outside LiteLLM needs both LITELLM_URL and LITELLM_MASTER_KEY")
        stack = cls()
        try:
            stack._start(
                Template(template),
                parameters=dict(parameters or {}),
                extra_environment=dict(extra_environment or {}),
                outside_litellm=(litellm_url, litellm_master_key) if litellm_url and litellm_master_key else None,
                database=database,
                aws=aws,
                port=port,
                workers_per_function=workers_per_function,
                log_directory=log_directory,
                interpreter=interpreter,
                report=report,
            )
        except BaseException:
            stack.close()
            raise
        return stack

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closing.close()

    @property
    def admin_dsn(self) -> str:
        """The superuser's connection string for the stack's database."""
        return self.database.admin_dsn(self.database_name)

    def token(
        self,
        subject: str | None = "alice",
        *,
        username: str | EllipsisType | None = ...,
        email: str | EllipsisType | None = ...,
        roles: Sequence[str] | None = None,
        ttl_seconds: int = 3600,
        issuer: str | None = None,
        audience: str | Sequence[str] | None = AUDIENCE,
        key_id: str = KEY_ID,
        forged: bool = False,
        **claims: object,
    ) -> str:
        """A bearer token the API accepts unless it is told otherwise. None leaves a claim out.

        Username and email follow from the subject unless given. `ttl_seconds` below zero makes an expired token,
        `forged` a bad signature, `key_id` one that names another key.
        """
        return self._issuer.token(
            {
                "iss": issuer or self.issuer_url,
                "aud": list(audience) if isinstance(audience, tuple) else audience,
                "sub": subject,
                "preferred_username": subject if username is ... else username,
                "email": f"{subject}@example.com" if email is ... else email,
                "roles": None if roles is None else list(roles),
                **claims,
            },
            ttl_seconds=ttl_seconds,
            key_id=key_id,
            forged=forged,
        )

    def litemaas_token(self, user_id: object, *, ttl_seconds: float = 3600, **changes: object) -> str:
        """A token as LiteMaaS makes one for the row of `users`, which the API of a drop-in's template accepts.

        `changes` are to its claims; None leaves one out.
        """
        return self._litemaas.token({"userId": str(user_id), **changes}, ttl_seconds=ttl_seconds)

    def change_litemaas_secret(self) -> None:
        """LiteMaaS signs with another secret from now on, and Secrets Manager knows it."""
        self._litemaas = LiteMaaSIssuer()
        self.aws.change_secret(self.secret_arns[LITEMAAS_SECRET], {"jwtSecret": self._litemaas.secret})

    def invoke(self, function: str, event: Mapping[str, Any] | None = None) -> Any:
        """The function's return value, without any HTTP. Raises InvocationFailed."""
        answer = self._thread.run(self._pool(function).invoke(json.dumps(event or {}).encode()))
        return json.loads(answer)

    @property
    def function_names(self) -> list[str]:
        """As the template calls them."""
        return list(self._pools)

    def worker_pids(self, function: str) -> list[int]:
        """Of the processes there are now; a killed one is in the list until its end is noticed."""
        return self._pool(function).pids()

    def environment(self, function: str) -> dict[str, str]:
        """What the function's processes get, beside the address of their Runtime API."""
        return dict(self._pool(function).environment)

    def retire_workers(self) -> None:
        """End all idle workers: the next request of each function meets a cold start."""
        for pool in self._pools.values():
            self._thread.run(pool.retire())

    def _pool(self, function: str) -> WorkerPool:
        if function not in self._pools:
            raise KeyError(f"the template has no function {function}: only {', '.join(self._pools)}")
        return self._pools[function]

    def _start(
        self,
        template: Template,
        *,
        parameters: dict[str, str],
        extra_environment: dict[str, str],
        outside_litellm: tuple[str, str] | None,
        database: PostgresServer | None,
        aws: AwsServer | None,
        port: int,
        workers_per_function: int,
        log_directory: Path | None,
        interpreter: Path,
        report: Step,
    ) -> None:
        # The port first: that it is taken should be said before anything is started.
        api_listener = listen(port)
        self._closing.callback(api_listener.close)
        self.url = f"http://127.0.0.1:{port_of(api_listener)}"
        root = private_directory(name="ks")
        self._closing.callback(remove_directory, root)
        logs = log_directory or root
        logs.mkdir(parents=True, exist_ok=True)
        self.log_path = logs / "functions.log"
        self.log_path.touch()

        # The processes take turns at being slow: start all, then wait for each.
        report("starting PostgreSQL, KMS, Secrets Manager and LiteLLM")
        self.aws = aws or AwsServer(log_path=logs / "aws.log")
        if aws is None:
            self._closing.callback(self.aws.close)
        self._start_litellm(outside_litellm, root=root, logs=logs)
        with ThreadPoolExecutor(max_workers=1) as other_thread:
            starting_issuer = other_thread.submit(self._start_issuer)
            self.database = database or PostgresServer(log_path=logs / "postgres.log")
            if database is None:
                self._closing.callback(self.database.close)
            self.database_name = parameters.get("DatabaseName", "litemaas")
            passwords = create_roles(self.database)
            if not self.database.has_database(self.database_name):
                self.database.create_database(self.database_name, owner=MIGRATOR)
            self.aws.wait_until_ready()
            starting_issuer.result()

        self.mac_key_arn = self.aws.create_mac_key()
        for name, value in {
            "DatabaseSecretArn": {"username": APP, "password": passwords.app},
            "DatabaseMigratorSecretArn": {"username": MIGRATOR, "password": passwords.migrator},
            "LiteLLMSecretArn": {"masterKey": self.litellm_master_key},
            LITEMAAS_SECRET: {"jwtSecret": self._litemaas.secret},
        }.items():
            self.secret_arns[name] = self.aws.create_secret(f"{name}-{secrets.token_hex(4)}", value)
        application = self._resolve(template, parameters)
        home = root / "home"
        home.mkdir()
        environment = {"AWS_ENDPOINT_URL": self.aws.url, "HOME": str(home), **extra_environment}
        self._start_functions(
            application, environment=environment, workers_per_function=workers_per_function, interpreter=interpreter
        )
        self._thread.serve(
            Gateway(application, invoke=lambda name, event: self._pools[name].invoke(event)), [api_listener]
        )
        if MIGRATION_FUNCTION in self._pools:
            report("creating the tables")
            self._migrate()
        if self.litellm is not None:
            self.litellm.wait_until_ready()

    def _start_litellm(self, outside: tuple[str, str] | None, *, root: Path, logs: Path) -> None:
        if outside is not None:
            self.litellm = None
            self.litellm_url, self.litellm_master_key = outside[0].rstrip("/"), outside[1]
            return
        self.litellm_master_key = f"sk-local-{secrets.token_hex(12)}"
        self.litellm = LiteLLMProcess(
            master_key=self.litellm_master_key, state_path=root / "litellm.sqlite", log_path=logs / "litellm.log"
        )
        self._closing.callback(self.litellm.stop)
        self.litellm_url = self.litellm.url

    def _start_issuer(self) -> None:
        self._thread = ServerThread()
        self._closing.callback(self._thread.close)
        listener = listen()
        self.issuer_url = f"http://127.0.0.1:{port_of(listener)}"
        self._issuer = Issuer(url=self.issuer_url)
        self._thread.serve(self._issuer, [listener])

    def _start_functions(
        self,
        application: Application,
        *,
        environment: Mapping[str, str],
        workers_per_function: int,
        interpreter: Path,
    ) -> None:
        runtime_api = RuntimeApi()
        listeners = {name: [listen() for _ in range(workers_per_function)] for name in application.functions}
        self._thread.serve(runtime_api, [listener for several in listeners.values() for listener in several])
        for name, function in application.functions.items():
            self._pools[name] = WorkerPool(
                function,
                name=f"{STACK_NAME}-{name}",
                environment=environment,
                listeners=listeners[name],
                runtime_api=runtime_api,
                log_path=self.log_path,
                loop=self._thread.loop,
                interpreter=interpreter,
            )
        self._closing.callback(self._stop_functions)

    def _stop_functions(self) -> None:
        for pool in self._pools.values():
            self._thread.run(pool.close())
        end_all([child for pool in self._pools.values() for child in pool.children()])

    def _resolve(self, template: Template, parameters: Mapping[str, str]) -> Application:
        known = {
            "JwtIssuer": self.issuer_url,
            "JwtAudience": AUDIENCE,
            "DatabaseHost": str(self.database.socket_directory),
            "DatabasePort": str(self.database.port),
            "DatabaseName": self.database_name,
            "DatabaseAppUser": APP,
            "LiteLLMUrl": self.litellm_url,
            **self.secret_arns,
            # Nothing here is in a VPC, and nothing is deployed.
            "VpcSubnetIds": "subnet-00000000000000000",
            "VpcSecurityGroupIds": "sg-00000000000000000",
            "ReleaseSha": "0" * 64,
        }
        values = {name: value for name, value in known.items() if name in template.parameter_names}
        keys = template.resources_of_type("AWS::KMS::Key")
        return template.resolve(
            parameters={**values, **parameters},
            references={
                "AWS::AccountId": ACCOUNT_ID,
                "AWS::Partition": "aws",
                "AWS::Region": REGION,
                "AWS::StackName": STACK_NAME,
                "AWS::URLSuffix": "amazonaws.com",
                **dict.fromkeys(keys, self.mac_key_arn.rpartition("/")[2]),
            },
            attributes={name: {"Arn": self.mac_key_arn} for name in keys},
        )

    def _migrate(self) -> None:
        try:
            self.invoke(MIGRATION_FUNCTION)
        except InvocationFailed as failure:
            raise StartFailed(f"the migrations failed: {failure}") from failure
