"""Whether this database is the one its keys in LiteLLM were made from: not a clone, not restored from an older dump."""

import msgspec

from keyservice import reconciliation_store as store
from keyservice.database import Database
from keyservice.litellm import LiteLLM
from keyservice.models import Brake, Deadline


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of the stack as they are now."""

    stack_name: str
    litellm_url: str


def find_brake(
    database: Database,
    litellm: LiteLLM,
    *,
    deployment: Deployment,
    installation: store.Installation,
    deadline: Deadline,
) -> Brake | None:
    """Why what the database says must not be carried out unasked; None when nothing speaks against it.

    A clone carries the mark of the stack it was taken from, whose keys are not ours. And T1 commits a token before
    LiteLLM hears of it, and tokens are never removed: a key with our mark whose hash is not here was made after the
    dump that this database was restored from. Such keys are LiteLLM's newest, so one page of those tells. LiteLLM is
    read first, the database after. Raises Unavailable.
    """
    if installation.stack_name != deployment.stack_name:
        return "otherStack"
    if installation.litellm_url != deployment.litellm_url:
        return "otherGateway"
    newest = litellm.list_keys(mark=installation.mark, page=1, order="newest first", deadline=deadline)
    ours = [key.token for key in newest.keys if key.is_ours(installation.mark)]
    return "unknownKeys" if store.read_tokens(database, ours).keys() < set(ours) else None
