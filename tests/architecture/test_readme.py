"""The README stays short, and whatever it tells a reader to run is run by .ci/run."""

import re

import pytest

from tests.architecture.translation import ROOT

# These measure for minutes, deploy or build for AWS, write what is kept in the repository, or run until they are stopped.
NOT_IN_CI = {"bench", "build", "clean", "deploy", "dev", "help", "lock", "openapi", "plan", "preflight"}


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def make_targets() -> set[str]:
    return set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))


def targets_of_ci() -> set[str]:
    [words] = re.findall(r"(?m)^for word in (.*); do$", (ROOT / ".ci/run").read_text())
    return set(words.split())


def named_targets(text: str) -> set[str]:
    """Targets of `make X` in code spans and blocks."""
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))
    return set(re.findall(r"(?:^|[\s`;&=])make ([a-z]+)", code))


def test_the_readme_fits_on_two_screens(readme: str) -> None:
    assert len(readme.splitlines()) <= 120


def test_every_make_word_in_the_readme_is_a_target(readme: str) -> None:
    assert named_targets(readme) <= make_targets()
    assert {"demo", "dev", "test"} <= named_targets(readme)


def test_every_make_word_in_the_readme_is_run_by_ci(readme: str) -> None:
    assert named_targets(readme) - NOT_IN_CI <= targets_of_ci()


def test_ci_runs_only_targets() -> None:
    assert targets_of_ci() == {"check", "contract", "demo", "test"}
    assert targets_of_ci() <= make_targets()


def test_every_target_explains_itself_in_help() -> None:
    explained = set(re.findall(r"(?m)^([a-z]+):.*## \S", (ROOT / "Makefile").read_text()))

    assert explained == make_targets()


def test_what_the_readme_links_to_exists(readme: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", readme)

    assert [link for link in links if not (ROOT / link).exists()] == []
