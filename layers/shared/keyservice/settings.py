"""The settings of one execution environment, read from a mapping of the environment's variables."""

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from keyservice.models import ReconcileMode, RevealPolicy
from keyservice.signatures import Credentials


class SettingsError(Exception):
    """A variable is missing or malformed; the message names it and never its value."""


class ClaimNames(msgspec.Struct, frozen=True, kw_only=True):
    """Which claims of the access token say who calls; `provider` is users.oauth_provider.

    `subject_column`: the column of `users` that the subject is found in. `id` means that the token was made by LiteMaaS
    itself, for a row that is there.
    """

    subject_column: Literal["oauth_id", "id"] = "oauth_id"
    provider: str
    subject: str
    username: str
    email: str
    full_name: str
    roles: str


class DatabaseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`iam_user`: who logs in with a token signed by the function's role instead of a secret's password.
    `prepares_statements`: not where a pooler gives the next transaction another session and what is prepared gets lost.
    """

    host: str
    port: int
    name: str
    secret_arn: str
    ca_bundle: str
    iam_user: str | None = None
    prepares_statements: bool = True


class AwsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`credentials`: those that Lambda gives with the environment; None for a function that starts from a snapshot, which
    has to ask for them."""

    region: str
    kms_url: str
    secrets_manager_url: str
    credentials: Credentials | None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every variable a function may be given; one a function does not get raises when it is read."""

    variables: Mapping[str, str]

    def __repr__(self) -> str:
        """Without the variables: Lambda puts the role's credentials among them."""
        return "Settings(***)"

    def text(self, name: str) -> str:
        value = self.variables.get(name, "")
        if not value:
            raise SettingsError(f"the environment variable {name} is not set")
        return value

    def integer(self, name: str) -> int:
        return self._parsed(name, int)

    def seconds(self, name: str) -> float:
        return self._parsed(name, float)

    def _parsed[T](self, name: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(self.text(name))
        except ValueError as error:
            raise SettingsError(f"the environment variable {name} is not a number") from error

    @property
    def database(self) -> DatabaseSettings:
        return DatabaseSettings(
            host=self.text("DATABASE_HOST"),
            port=self.integer("DATABASE_PORT"),
            name=self.text("DATABASE_NAME"),
            secret_arn=self.text("DATABASE_SECRET_ARN"),
            ca_bundle=self.variables.get("DATABASE_CA_BUNDLE", ""),
            iam_user=self.variables.get("DATABASE_IAM_USER") or None,
            prepares_statements=self.text("DATABASE_PREPARED_STATEMENTS") == "true",
        )

    @property
    def aws(self) -> AwsSettings:
        return AwsSettings(
            region=self.text("AWS_REGION"),
            kms_url=self._aws_url("kms", named="AWS_ENDPOINT_URL_KMS"),
            secrets_manager_url=self._aws_url("secretsmanager", named="AWS_ENDPOINT_URL_SECRETS_MANAGER"),
            credentials=self._credentials,
        )

    def _aws_url(self, service: str, *, named: str) -> str:
        """Where AWS's own tools would look for the service with these variables."""
        url = self.variables.get(named) or self.variables.get("AWS_ENDPOINT_URL")
        return url or ".".join([f"https://{service}", self.text("AWS_REGION"), self.text("URL_SUFFIX")])

    @property
    def _credentials(self) -> Credentials | None:
        access_key_id = self.variables.get("AWS_ACCESS_KEY_ID")
        if not access_key_id:
            return None
        return Credentials(
            access_key_id, self.text("AWS_SECRET_ACCESS_KEY"), self.variables.get("AWS_SESSION_TOKEN") or None
        )

    @property
    def claim_names(self) -> ClaimNames:
        column = self.text("SUBJECT_COLUMN")
        if column not in ("oauth_id", "id"):
            raise SettingsError("the environment variable SUBJECT_COLUMN is neither `oauth_id` nor `id`")
        return ClaimNames(
            subject_column=column,
            provider=self.text("OAUTH_PROVIDER"),
            subject=self.text("SUBJECT_CLAIM"),
            username=self.text("USERNAME_CLAIM"),
            email=self.text("EMAIL_CLAIM"),
            full_name=self.text("NAME_CLAIM"),
            roles=self.text("ROLES_CLAIM"),
        )

    @property
    def model_access(self) -> Literal["subscription", "any"]:
        value = self.text("MODEL_ACCESS")
        if value not in ("subscription", "any"):
            raise SettingsError("the environment variable MODEL_ACCESS is neither `subscription` nor `any`")
        return value

    @property
    def owners_may_reset_spend(self) -> bool:
        value = self.text("OWNERS_MAY_RESET_SPEND")
        if value not in ("true", "false"):
            raise SettingsError("the environment variable OWNERS_MAY_RESET_SPEND is neither `true` nor `false`")
        return value == "true"

    @property
    def expiry_mode(self) -> Literal["deactivate", "delete"]:
        value = self.text("EXPIRY_MODE")
        if value not in ("deactivate", "delete"):
            raise SettingsError("the environment variable EXPIRY_MODE is neither `deactivate` nor `delete`")
        return value

    @property
    def reveal_policy(self) -> RevealPolicy:
        value = self.text("REVEAL_POLICY")
        if value not in ("never", "recent-login"):
            raise SettingsError("the environment variable REVEAL_POLICY is neither `never` nor `recent-login`")
        return value

    @property
    def lease_seconds(self) -> float:
        """How long an operation belongs to the invocation that claimed it: its timeout and 5 s more."""
        return self.seconds("FUNCTION_TIMEOUT_SECONDS") + 5

    @property
    def reconcile_mode(self) -> ReconcileMode:
        value = self.text("RECONCILE_MODE")
        if value not in ("report", "heal"):
            raise SettingsError("the environment variable RECONCILE_MODE is neither `report` nor `heal`")
        return value

    @property
    def reconcile_bucket(self) -> str | None:
        return self.variables.get("RECONCILE_BUCKET") or None
