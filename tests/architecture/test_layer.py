"""What goes into the layer is pinned, the same wherever it is built, and named nowhere by a package index."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.architecture.translation import ROOT

PINNED = [ROOT / "layers/shared/requirements.txt", *sorted((ROOT / "requirements").glob("*.txt"))]


def requirements(file: Path) -> dict[str, str]:
    """Name of each requirement with all that is said of it: version, marker, hashes."""
    text = re.sub(r"(?m)^\s*#.*\n?", "", file.read_text())
    entries = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return {re.split(r"[=\s\[;<>~@]", entry, maxsplit=1)[0]: entry for entry in entries}


@pytest.mark.parametrize("file", PINNED, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_requirement_has_one_version_and_its_hashes(file: Path) -> None:
    entries = requirements(file)

    assert entries
    assert [entry for entry in entries.values() if not re.match(r"[a-z0-9-]+==[^ ]+ ", entry)] == []
    assert [entry for entry in entries.values() if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("file", PINNED, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_host_name_stands_in_a_pinned_file(file: Path) -> None:
    assert re.findall(r"https?:|--(?:extra-)?index-url|--find-links|--trusted-host", file.read_text()) == []


def test_the_tests_run_on_the_versions_the_layer_ships() -> None:
    shipped = requirements(ROOT / "layers/shared/requirements.txt")
    tested = requirements(ROOT / "requirements/dev.txt")

    assert {name: tested.get(name) for name in shipped} == shipped


def test_boto3_comes_from_the_runtime_not_from_the_layer() -> None:
    shipped = requirements(ROOT / "layers/shared/requirements.txt")

    assert {"boto3", "botocore", "awslambdaric"}.isdisjoint(shipped)


def test_one_python_version_everywhere() -> None:
    template = (ROOT / "template.yaml").read_text()
    makefile = (ROOT / "layers/shared/Makefile").read_text()

    assert (ROOT / ".python-version").read_text() == "3.13\n"
    assert set(re.findall(r"python3\.\d+", template)) == {"python3.13"}
    assert re.findall(r"(?m)^export PYENV_VERSION \?= (.*)$", makefile) == ["3.13"]
    assert re.findall(r"--python-version (\S+)", makefile) == ["3.13"]


def test_the_layers_makefile_has_the_target_that_sam_calls() -> None:
    template = yaml.load(
        (ROOT / "template.yaml").read_text(), Loader=yaml.BaseLoader
    )  # BaseLoader drops !Ref and its kin
    layer = template["Resources"]["SharedLayer"]
    makefile = (ROOT / layer["Properties"]["ContentUri"] / "Makefile").read_text()

    assert layer["Metadata"]["BuildMethod"] == "makefile"
    assert re.search(r"(?m)^build-SharedLayer:", makefile)


def verify_records(site: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "layers/shared/verify_records.py"
    return subprocess.run([sys.executable, script, site], capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory with one installed package of one module."""
    (tmp_path / "module.py").write_text("answer = 42\n")
    (tmp_path / "package-1.dist-info").mkdir()
    (tmp_path / "package-1.dist-info" / "RECORD").write_text(
        "module.py,sha256=CndQInRPZMNShj8WXy4SWJhBmZm8V8gyBHcgNtDvay4,12\npackage-1.dist-info/RECORD,,\n../../bin/package,sha256=AAAA,4\n"
    )
    return tmp_path


def test_an_untouched_package_may_go_into_the_layer(site: Path) -> None:
    assert verify_records(site).returncode == 0


def test_an_edited_file_keeps_the_layer_from_being_built(site: Path) -> None:
    (site / "module.py").write_text("answer = 43\n")

    verdict = verify_records(site)

    assert (verdict.returncode, verdict.stderr) == (1, "differs from its wheel: module.py\n")


def test_a_missing_file_keeps_the_layer_from_being_built(site: Path) -> None:
    (site / "module.py").unlink()

    verdict = verify_records(site)

    assert (verdict.returncode, verdict.stderr) == (1, "differs from its wheel: module.py\n")


def test_a_directory_without_packages_is_no_layer(tmp_path: Path) -> None:
    assert verify_records(tmp_path).returncode == 1
