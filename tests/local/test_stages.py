"""The stages of samconfig.toml, and the questions of a first deployment."""

import tomllib
from collections.abc import Callable, Iterator

import pytest

from local.errors import StartFailed
from local.stages import CHECKOUT, Stage, with_answers
from local.template import Template

SAMCONFIG = """\
version = 0.1

[dev.deploy.parameters]
stack_name = "keyservice-dev"
parameter_overrides = [
  "file://.aws-sam/release.yaml",
  "JwtIssuer=https://issuer.dev.example.com",  # the issuer
  "DatabaseHost=db.internal",
  "DatabaseSecretArn=arn:aws:secretsmanager:eu-central-1:111111111111:secret:app-AAAAAA",
  "VpcSubnetIds=subnet-11111111111111111,subnet-22222222222222222",
]

[prod.deploy.parameters]
stack_name = "keyservice-prod"
parameter_overrides = [
  "JwtIssuer=https://issuer.dev.example.com",
]
"""
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:app-AbCdEf"


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(CHECKOUT / "template.yaml")


def answers(*given: str) -> Callable[[str], str]:
    rest: Iterator[str] = iter(given)
    return lambda _: next(rest)


def test_examples_are_known_by_what_belongs_to_nobody():
    assert set(Stage("dev", text=SAMCONFIG).examples) == {"JwtIssuer", "DatabaseSecretArn", "VpcSubnetIds"}


def test_each_answer_takes_the_place_of_its_example_in_its_stage_only(template: Template):
    stage = Stage("dev", text=SAMCONFIG)
    ask = answers("https://issuer.test", ARN, "subnet-0123456789abcdef0,subnet-0123456789abcdef1")

    answered = with_answers(SAMCONFIG, stage, template=template, ask=ask, say=lambda _: None)

    assert Stage("dev", text=answered).overrides == {
        "JwtIssuer": "https://issuer.test",
        "DatabaseHost": "db.internal",
        "DatabaseSecretArn": ARN,
        "VpcSubnetIds": "subnet-0123456789abcdef0,subnet-0123456789abcdef1",
    }
    assert Stage("dev", text=answered).examples == {}
    assert "# the issuer" in answered
    assert tomllib.loads(answered)["prod"] == tomllib.loads(SAMCONFIG)["prod"]


def test_an_answer_that_cloudformation_would_refuse_is_asked_again_with_the_reason(template: Template):
    said: list[str] = []
    ask = answers("issuer.test", "", "https://issuer.test", ARN, "subnet-0123456789abcdef0")

    answered = with_answers(SAMCONFIG, Stage("dev", text=SAMCONFIG), template=template, ask=ask, say=said.append)

    assert Stage("dev", text=answered).overrides["JwtIssuer"] == "https://issuer.test"
    assert [line for line in said if "cannot be 'issuer.test': must be a URL" in line]


def test_a_question_says_what_is_asked_for(template: Template):
    said: list[str] = []
    ask = answers("https://issuer.test", ARN, "subnet-0123456789abcdef0")

    with_answers(SAMCONFIG, Stage("dev", text=SAMCONFIG), template=template, ask=ask, say=said.append)

    assert "Issuer of the access tokens" in said[0]
    assert "for example https://issuer.dev.example.com" in said[0]


def test_a_stage_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(StartFailed, match="no stage 'live', only dev, prod"):
        Stage("live", text=SAMCONFIG)


def test_every_stage_of_ours_comes_with_examples_and_nothing_of_anybodys():
    text = (CHECKOUT / "samconfig.toml").read_text()

    for name in ("dev", "litemaas", "prod", "staging"):
        stage = Stage(name, text=text)
        addresses = {n for n, v in stage.overrides.items() if "." in v or "arn:" in v or "subnet-" in v}
        assert addresses <= set(stage.examples)
        assert stage.is_drop_in == (name == "litemaas")
