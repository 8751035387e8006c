"""Who may import whom (pyproject.toml), and the one place that reads the environment."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.translation import ROOT

PACKAGE = ROOT / "layers/shared/keyservice"


def environment_readers(files: list[Path]) -> list[str]:
    """Stems of the files that touch os.environ, os.getenv or import either name."""
    readers: list[str] = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
            if isinstance(node, ast.Attribute):
                names = {node.attr}
            if names & {"environ", "environb", "getenv", "getenvb"}:
                readers.append(file.stem)
                break
    return sorted(readers)


def test_the_import_contracts_hold() -> None:
    contracts = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert contracts.returncode == 0, contracts.stdout


def test_only_wiring_reads_the_environment() -> None:
    assert environment_readers([*PACKAGE.rglob("*.py"), *(ROOT / "functions").glob("*.py")]) == ["wiring"]
