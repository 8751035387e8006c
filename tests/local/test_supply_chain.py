"""What `make release` makes of the tools' answers, and what keeps a release from being made."""

import re
from typing import Any

import pytest

from local.supply_chain import UNRELEASED, NotReleasable, described, judged, licence_of, shipped, version_of
from tests.architecture.translation import ROOT

HASHES = [{"alg": "SHA-256", "content": "ab" * 32}]


def bill(**component: Any) -> dict[str, Any]:
    given = {"name": "httpx", "version": "0.28.1", "externalReferences": [{"type": "distribution", "hashes": HASHES}]}
    return {"bomFormat": "CycloneDX", "metadata": {"tools": {}}, "components": [given | component]}


def test_the_version_is_that_of_the_newest_release_in_the_changelog():
    changelog = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n\n## [1.1.9] - 2026-11-01\n"

    assert version_of(changelog) == "1.2.0"
    assert version_of("# Changelog\n\n## [Unreleased]\n") == UNRELEASED


def test_the_changelogs_releases_stand_newest_first():
    headings = re.findall(r"(?m)^## \[(.*)\]", (ROOT / "CHANGELOG.md").read_text())
    releases = [tuple(map(int, version.split("."))) for version in headings[1:]]

    assert headings[0] == "Unreleased"
    assert releases == sorted(releases, reverse=True)


def test_a_component_gets_its_licence_and_the_bill_its_subject():
    made = described(bill(), version="1.2.0", licences={"httpx": "BSD-3-Clause"})

    assert made["components"][0]["licenses"] == [{"license": {"name": "BSD-3-Clause"}}]
    assert made["components"][0]["externalReferences"][0]["hashes"] == HASHES
    assert (made["metadata"]["component"]["name"], made["metadata"]["component"]["version"]) == ("keyservice", "1.2.0")
    assert made["metadata"]["tools"] == {}


def test_what_is_for_windows_alone_is_not_shipped():
    here = {"bom-ref": "1", "name": "psycopg", "description": "psycopg==3.3.9 --hash=sha256:ab"}
    there = {
        "bom-ref": "2",
        "name": "tzdata",
        "description": "tzdata==2026.1 ; sys_platform == 'win32' --hash=sha256:ab",
    }

    made = shipped({"components": [here, there], "dependencies": [{"ref": "1"}, {"ref": "2"}]})

    assert made == {"components": [here], "dependencies": [{"ref": "1"}]}


def test_a_package_without_hashes_is_no_release():
    with pytest.raises(NotReleasable, match="httpx is not pinned by hash"):
        described(bill(externalReferences=[]), version="1.2.0", licences={"httpx": "BSD-3-Clause"})


def test_every_package_of_the_layer_names_its_licence():
    pinned = re.findall(r"(?m)^([a-z][a-z0-9-]*)==(.*)$", (ROOT / "layers/shared/requirements.txt").read_text())
    packages = [name for name, rest in pinned if "win32" not in rest]

    licences = {package: licence_of(package) for package in packages}

    assert len(licences) > 5
    assert [package for package, licence in licences.items() if len(licence) > 80] == []
    assert re.search("LGPL|Lesser", licences["psycopg"])


def test_a_package_that_is_not_there_has_no_licence():
    with pytest.raises(NotReleasable, match="no-such-package is not installed"):
        licence_of("no-such-package")


def test_vulnerabilities_are_told_with_their_remedy_and_unknown_packages_by_name():
    flaw = {"id": "CVE-2027-0001", "fix_versions": ["1.0.1", "0.9.8"], "aliases": [], "description": "text"}
    audit = {
        "dependencies": [
            {"name": "sound", "version": "1.0.0", "vulns": []},
            {"name": "flawed", "version": "1.0.0", "vulns": [flaw, flaw | {"id": "CVE-2027-0002", "fix_versions": []}]},
            {"name": "unknown", "skip_reason": "not found"},
            {"name": "for-windows", "skip_reason": "not found"},
        ]
    }

    assert judged(audit, of={"sound", "flawed", "unknown"}) == (
        [
            "flawed 1.0.0: CVE-2027-0001, put right in 1.0.1, 0.9.8",
            "flawed 1.0.0: CVE-2027-0002, put right in no release",
        ],
        ["unknown"],
    )
