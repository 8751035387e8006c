"""What `sam build` puts into the layer, built here by the same Makefile."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.translation import ROOT

SOURCES = ROOT / "layers/shared"
UV_DIRECTORY = ROOT / ".tools/bootstrap/bin"

# e_machine of an ELF file (System V ABI): 183 is AArch64.
ELF_MAGIC = b"\x7fELF"
AARCH64 = (183).to_bytes(2, "little")
# Bytes 4 to 8 of a .pyc (PEP 552): 1 is "by hash, unchecked".
UNCHECKED_HASH = (1).to_bytes(4, "little")


def build(directory: Path) -> Path:
    """As SAM does it: the Makefile runs in a scratch copy of the layer's sources."""
    scratch, artifacts = directory / "scratch", directory / "artifacts"
    shutil.copytree(SOURCES, scratch, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        ["make", "--silent", "build-SharedLayer", f"ARTIFACTS_DIR={artifacts}"],
        cwd=scratch,
        env=os.environ | {"PATH": f"{UV_DIRECTORY}:{os.environ['PATH']}", "UV_PYTHON": sys.executable},
        check=True,
    )
    return artifacts / "python"


def sums(site: Path) -> dict[str, str]:
    return {
        str(file.relative_to(site)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(site.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("layer"))


def test_two_builds_are_the_same_bytes(site: Path, tmp_path: Path) -> None:
    assert sums(build(tmp_path)) == sums(site)


def test_the_layer_holds_the_package_with_its_migrations(site: Path) -> None:
    expected = {
        str(file.relative_to(SOURCES))
        for file in (SOURCES / "keyservice").rglob("*")
        if file.is_file() and file.suffix in {".py", ".sql"}
    }

    assert expected <= set(sums(site))
    assert any(name.endswith(".sql") for name in expected)


def test_every_binary_is_for_arm64(site: Path) -> None:
    heads = {file.name: file.read_bytes()[:20] for file in site.rglob("*") if file.is_file() and ".so" in file.suffixes}

    assert heads
    assert {name for name, head in heads.items() if head[:4] != ELF_MAGIC or head[18:20] != AARCH64} == set()


def test_every_module_is_compiled_to_byte_code_that_is_taken_as_it_is(site: Path) -> None:
    sources = {file for file in site.rglob("*.py") if "__pycache__" not in file.parts}
    compiled = {file: file.parent / "__pycache__" / f"{file.stem}.cpython-313.pyc" for file in sources}

    assert sorted(str(source) for source, code in compiled.items() if not code.is_file()) == []
    assert {code.read_bytes()[4:8] for code in compiled.values()} == {UNCHECKED_HASH}


def test_tracebacks_name_the_path_in_lambda(site: Path) -> None:
    code = (site / "keyservice/__pycache__/errors.cpython-313.pyc").read_bytes()

    assert b"/opt/python/keyservice/errors.py" in code
    assert str(site).encode() not in code


def test_scanners_find_each_packages_metadata_and_nothing_runs_from_bin(site: Path) -> None:
    packages = {path.name.partition("-")[0] for path in site.glob("*.dist-info")}

    assert {"aws_lambda_powertools", "httpx", "msgspec", "psycopg", "psycopg_binary"} <= packages
    assert not (site / "bin").exists()
    assert not (site / ".lock").exists()


def test_the_layer_is_far_below_lambdas_limit(site: Path) -> None:
    unpacked_megabytes = sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) / 1e6

    # Lambda takes 250 MB for a function with its layers; 29 MB as of the first release.
    assert unpacked_megabytes < 60


@pytest.mark.parametrize("architecture", ["mips", ""])
def test_an_unknown_architecture_is_refused(tmp_path: Path, architecture: str) -> None:
    answer = subprocess.run(
        ["make", "--silent", "build-SharedLayer", f"ARTIFACTS_DIR={tmp_path}", f"LAYER_ARCH={architecture}"],
        cwd=SOURCES,
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode != 0
    assert "arm64 and x86_64 are known" in answer.stderr
