"""Commands in docs/runbooks are commands that there are. What needs no AWS is run by tests/e2e/test_runbooks.py."""

import re
import shlex
from dataclasses import dataclass

import botocore.session
import pytest
from botocore import xform_name

from tests.architecture.translation import ROOT

# Where the command line has another name than the service, and what it adds by itself (AWS CLI reference).
SERVICES = {"deploy": "codedeploy"}
OF_THE_COMMAND_LINE = {("logs", "tail"): {"since", "format", "follow"}}
GLOBAL_OPTIONS = {"cli-binary-format", "cli-read-timeout", "output", "query", "region", "profile"}
PAGES = sorted((ROOT / "docs/runbooks").glob("*.md"))


@dataclass(frozen=True)
class Command:
    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words[:3])}"


def shell_commands() -> list[Command]:
    """Every `aws` in the blocks of shell, also one inside $(…)."""
    found: list[Command] = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            text = re.sub(r"\\\n\s*", " ", block)
            commands = [c for line in text.splitlines() for c in re.findall(r"(?:^|\$\(|&& )\s*(aws .*)", line)]
            words = [shlex.split(command.removesuffix(")"), comments=True) for command in commands]
            found += [Command(page.name, tuple(several)) for several in words]
    return found


COMMANDS = shell_commands()


def test_there_are_commands_on_most_pages() -> None:
    assert len(COMMANDS) >= 20
    assert {page.name for page in PAGES} - {command.page for command in COMMANDS} <= {"spend.md"}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_of_aws_exists_with_its_options(command: Command) -> None:
    _, service, operation, *arguments = command.words
    given = {word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--")} - GLOBAL_OPTIONS

    if (service, operation) in OF_THE_COMMAND_LINE:
        assert given <= OF_THE_COMMAND_LINE[service, operation]
        return
    model = botocore.session.get_session().get_service_model(SERVICES.get(service, service))
    operations = {xform_name(name, "-"): model.operation_model(name) for name in model.operation_names}
    shape = operations[operation].input_shape
    assert shape is not None
    options = {xform_name(member, "-") for member in shape.members}
    required = {xform_name(member, "-") for member in shape.required_members}

    # A switch is turned off by --no- before its name.
    positive = {name.removeprefix("no-") if name.removeprefix("no-") in options else name for name in given}
    assert positive <= options
    assert required <= given


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: object) -> None:
    text = (ROOT / "docs/runbooks" / str(page)).read_text()
    anchors = {
        file.name: {
            re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).strip().replace(" ", "-")
            for line in file.read_text().splitlines()
            if line.startswith("#")
        }
        for file in PAGES
    }
    own = str(page).rpartition("/")[2]
    links = re.findall(r"\]\((?!https?:)([\w./-]*?)(?:#([\w-]+))?\)", text)
    broken = [
        (file, anchor)
        for file, anchor in links
        if not (ROOT / "docs/runbooks" / (file or own)).exists()
        or (anchor and anchor not in anchors.get(file or own, set()))
    ]

    assert broken == []
