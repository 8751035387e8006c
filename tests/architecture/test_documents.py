"""What the documents point to is there: files, headings of files, make words, and tests by their names."""

import re
from pathlib import Path

import pytest

from tests.architecture.test_readme import make_targets
from tests.architecture.translation import ROOT, read_template

DOCUMENTS = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])


def links(document: Path) -> list[tuple[str, str]]:
    """Text and target of each that stays in the checkout."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    return re.findall(r"\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_links_to_exists(document: Path) -> None:
    assert [target for _, target in links(document) if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_test_that_a_document_names_is_in_that_file(document: Path) -> None:
    named = [(name, target) for name, target in links(document) if re.fullmatch(r"test_\w+", name)]

    assert [
        (name, target) for name, target in named if f"def {name}(" not in (document.parent / target).read_text()
    ] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_make_word_in_a_document_is_one(document: Path) -> None:
    text = document.read_text()
    typed = re.findall(r"(?m)^ *(?:.*&& )?make ([a-z]+)", "\n".join(re.findall(r"(?ms)```sh\n(.*?)```", text)))
    named = re.findall(r"`make ([a-z]+)", text)

    assert {*typed, *named} - make_targets() == set()


def test_each_of_the_ten_abuses_is_tried_by_a_test() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    abuses = re.split(r"(?m)^### (?=\d+\. )", text.partition("\n## What is not defended against")[0])[1:]

    assert [int(abuse.split(".")[0]) for abuse in abuses] == list(range(1, 11))
    assert [abuse.splitlines()[0] for abuse in abuses if not re.search(r"\[test_\w+\]", abuse)] == []


def test_a_parameter_that_is_set_in_the_guide_to_deploying_is_one() -> None:
    guide = (ROOT / "docs/deploy.md").read_text()
    foundation = (ROOT / "stacks/foundation.yaml").read_text() + (ROOT / "stacks/deploy-role.yaml").read_text()
    named = set(re.findall(r"\b([A-Z][a-z]+[A-Za-z]*)=[^=\s]", guide))

    known = set(read_template()["Parameters"]) | set(re.findall(r"(?m)^  ([A-Z]\w+):$", foundation))
    of_a_filter = {"Name", "Values"}
    assert named - known - of_a_filter == set()
