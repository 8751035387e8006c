"""The service's AWS client, for whatever answers in AWS's place."""

from keyservice.aws import Aws
from keyservice.settings import Settings
from local.aws import CREDENTIALS


def aws_client(url: str) -> Aws:
    return Aws(Settings(variables=CREDENTIALS | {"AWS_ENDPOINT_URL": url}).aws)
