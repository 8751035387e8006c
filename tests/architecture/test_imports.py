"""Who may import whom (pyproject.toml), and the one place that reads the environment."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from tests.architecture.translation import ROOT

PACKAGE = ROOT / "layers/shared/keyservice"
HANDLERS = sorted((ROOT / "functions").glob("*.py"))


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


def imported_modules(file: Path) -> set[str]:
    """Every module the file imports, `from package import module` as package.module where that is one."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "keyservice":
            modules |= {f"keyservice.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or ".")
    return modules


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
    assert environment_readers([*PACKAGE.rglob("*.py"), *HANDLERS]) == ["wiring"]


def test_handlers_know_endpoint_wiring_models_and_nothing_else_of_ours() -> None:
    boundaries = {"keyservice.authorizer", "keyservice.custom_resource", "keyservice.endpoint", "keyservice.jobs"}
    known = boundaries | {"keyservice.models", "keyservice.wiring", "msgspec"}
    foreign = {
        file.stem: imported
        for file in HANDLERS
        if (
            imported := {
                m for m in imported_modules(file) - known if m.partition(".")[0] not in sys.stdlib_module_names
            }
        )
    }

    assert HANDLERS
    assert foreign == {}
