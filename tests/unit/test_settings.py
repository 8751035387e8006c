import pytest

from keyservice.settings import ClaimNames, DatabaseSettings, Settings, SettingsError
from keyservice.signatures import Credentials

VARIABLES = {
    "DATABASE_HOST": "db.example.com",
    "DATABASE_PORT": "5432",
    "DATABASE_NAME": "litemaas",
    "DATABASE_SECRET_ARN": "arn:database",
    "DATABASE_CA_BUNDLE": "",
    "DATABASE_PREPARED_STATEMENTS": "true",
    "OAUTH_PROVIDER": "openshift",
    "SUBJECT_CLAIM": "sub",
    "SUBJECT_COLUMN": "oauth_id",
    "USERNAME_CLAIM": "preferred_username",
    "EMAIL_CLAIM": "email",
    "NAME_CLAIM": "name",
    "ROLES_CLAIM": "roles",
    "MODEL_ACCESS": "subscription",
    "FUNCTION_TIMEOUT_SECONDS": "25",
    "MAX_ACTIVE_KEYS": "10",
    "GATEWAY_DRAIN_SECONDS": "900.5",
}


def settings_with(**changed: str) -> Settings:
    return Settings(variables=VARIABLES | changed)


def test_database_is_read_from_its_variables():
    assert settings_with().database == DatabaseSettings(
        host="db.example.com", port=5432, name="litemaas", secret_arn="arn:database", ca_bundle=""
    )


def test_ca_bundle_may_be_missing():
    variables = {name: value for name, value in VARIABLES.items() if name != "DATABASE_CA_BUNDLE"}

    assert Settings(variables=variables).database.ca_bundle == ""
    assert settings_with(DATABASE_CA_BUNDLE="/opt/ca.pem").database.ca_bundle == "/opt/ca.pem"


def test_iam_user_is_none_unless_it_is_given():
    assert settings_with().database.iam_user is None
    assert settings_with(DATABASE_IAM_USER="").database.iam_user is None
    assert settings_with(DATABASE_IAM_USER="keyservice_app").database.iam_user == "keyservice_app"


def test_statements_are_prepared_unless_it_is_false():
    assert settings_with().database.prepares_statements
    assert not settings_with(DATABASE_PREPARED_STATEMENTS="false").database.prepares_statements


@pytest.mark.parametrize(
    ("variables", "kms_url", "secrets_manager_url"),
    [
        pytest.param(
            {},
            "https://kms.cn-north-1.amazonaws.com.cn",
            "https://secretsmanager.cn-north-1.amazonaws.com.cn",
            id="AWS's own",
        ),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://all"},
            "http://all",
            "http://all",
            id="one for all services",
        ),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://all", "AWS_ENDPOINT_URL_KMS": "http://kms"},
            "http://kms",
            "http://all",
            id="one for KMS before that",
        ),
        pytest.param(
            {"AWS_ENDPOINT_URL_SECRETS_MANAGER": "http://secrets"},
            "https://kms.cn-north-1.amazonaws.com.cn",
            "http://secrets",
            id="one for Secrets Manager",
        ),
    ],
)
def test_aws_is_where_its_own_tools_would_look(variables: dict[str, str], kms_url: str, secrets_manager_url: str):
    aws = settings_with(AWS_REGION="cn-north-1", URL_SUFFIX="amazonaws.com.cn", **variables).aws

    assert (aws.kms_url, aws.secrets_manager_url) == (kms_url, secrets_manager_url)


def test_credentials_are_those_of_the_environment_and_none_without_an_access_key():
    own = {"AWS_REGION": "eu-central-1", "URL_SUFFIX": "amazonaws.com"}
    access_key = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "made-up"}

    assert settings_with(**own).aws.credentials is None
    assert settings_with(**own, **access_key).aws.credentials == Credentials("AKIDEXAMPLE", "made-up", None)
    assert settings_with(**own, **access_key, AWS_SESSION_TOKEN="token").aws.credentials == Credentials(
        "AKIDEXAMPLE", "made-up", "token"
    )


def test_claim_names_are_read_from_their_variables():
    assert settings_with(NAME_CLAIM="displayName").claim_names == ClaimNames(
        provider="openshift",
        subject="sub",
        username="preferred_username",
        email="email",
        full_name="displayName",
        roles="roles",
    )


def test_lease_is_the_functions_timeout_and_five_seconds():
    assert settings_with(FUNCTION_TIMEOUT_SECONDS="25").lease_seconds == 30.0


def test_numbers_are_parsed():
    settings = settings_with()

    assert settings.integer("MAX_ACTIVE_KEYS") == 10
    assert settings.seconds("GATEWAY_DRAIN_SECONDS") == 900.5


@pytest.mark.parametrize("access", ["subscription", "any"])
def test_model_access_is_one_of_two(access: str):
    assert settings_with(MODEL_ACCESS=access).model_access == access


@pytest.mark.parametrize("value", ["", "Subscription", "none"])
def test_any_other_model_access_is_refused(value: str):
    with pytest.raises(SettingsError, match="MODEL_ACCESS"):
        _ = settings_with(MODEL_ACCESS=value).model_access


@pytest.mark.parametrize("name", ["DATABASE_HOST", "DATABASE_PORT", "DATABASE_NAME", "DATABASE_SECRET_ARN"])
def test_missing_variable_is_named(name: str):
    with pytest.raises(SettingsError, match=name):
        _ = settings_with(**{name: ""}).database


def test_malformed_number_is_named_and_not_shown():
    with pytest.raises(SettingsError, match="DATABASE_PORT") as caught:
        _ = settings_with(DATABASE_PORT="CANARY").database

    assert "CANARY" not in str(caught.value)


def test_malformed_seconds_are_named():
    with pytest.raises(SettingsError, match="GATEWAY_DRAIN_SECONDS"):
        settings_with(GATEWAY_DRAIN_SECONDS="soon").seconds("GATEWAY_DRAIN_SECONDS")


@pytest.mark.parametrize("mode", ["report", "heal"])
def test_reconcile_mode_is_one_of_two(mode: str):
    assert Settings(variables={"RECONCILE_MODE": mode}).reconcile_mode == mode


@pytest.mark.parametrize("value", ["Heal", "on", ""])
def test_any_other_reconcile_mode_is_refused(value: str):
    with pytest.raises(SettingsError, match="RECONCILE_MODE"):
        _ = Settings(variables={"RECONCILE_MODE": value}).reconcile_mode


def test_without_a_bucket_reports_are_kept_nowhere():
    assert Settings(variables={"RECONCILE_BUCKET": ""}).reconcile_bucket is None
    assert Settings(variables={"RECONCILE_BUCKET": "reports"}).reconcile_bucket == "reports"


def test_subject_may_be_the_id_of_a_row():
    assert settings_with(SUBJECT_COLUMN="id").claim_names.subject_column == "id"
    assert settings_with().claim_names.subject_column == "oauth_id"


def test_subject_in_another_column_is_refused():
    with pytest.raises(SettingsError, match="SUBJECT_COLUMN"):
        _ = settings_with(SUBJECT_COLUMN="email").claim_names
