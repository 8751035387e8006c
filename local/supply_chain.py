"""`make release`: what a release is made of, in build/release: bill of materials, licences, known vulnerabilities.

All of it is about layers/shared/requirements.txt, which is what the functions run on; boto3 comes with Lambda's runtime.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parent.parent
REQUIREMENTS = CHECKOUT / "layers/shared/requirements.txt"
OUTPUT = CHECKOUT / "build/release"
TOOLS = CHECKOUT / ".tools/release/bin"

UNRELEASED = "0.0.0-unreleased"


class NotReleasable(Exception):
    """The message is one line for the person who releases."""


def version_of(changelog: str) -> str:
    """Of the newest release in it: the changelog is the one place where the version stands."""
    newest = re.search(r"(?m)^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", changelog)
    return UNRELEASED if newest is None else newest[1]


def licence_of(package: str) -> str:
    """As an SPDX expression where the package has one. Raises NotReleasable when it names none."""
    try:
        told = metadata(package)
    except PackageNotFoundError as error:
        raise NotReleasable(
            f"{package} is not installed in .venv, so its licence is not known; run make lock"
        ) from error
    classifiers = [c.rpartition(" :: ")[2] for c in told.get_all("Classifier") or [] if c.startswith("License ::")]
    # Some put the whole text of the licence there.
    short = [text for text in (told.get("License-Expression"), told.get("License")) if text and "\n" not in text]
    named = [*short, *classifiers]
    if not named:
        raise NotReleasable(f"{package} names no licence")
    return named[0]


def shipped(bill: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the pinned file has for Windows only: the layer is built for Linux."""
    components = [each for each in bill["components"] if "sys_platform == 'win32'" not in each.get("description", "")]
    names = {each["bom-ref"] for each in components}
    return {
        **bill,
        "components": components,
        "dependencies": [each for each in bill.get("dependencies", []) if each["ref"] in names],
    }


def described(bill: Mapping[str, Any], *, version: str, licences: Mapping[str, str]) -> dict[str, Any]:
    """The bill of materials with what it is of, and with licences. Raises NotReleasable for a package without hashes."""
    components: list[dict[str, Any]] = []
    for component in bill["components"]:
        hashes = [h for reference in component.get("externalReferences", []) for h in reference.get("hashes", [])]
        if not hashes:
            raise NotReleasable(f"{component['name']} is not pinned by hash; run make lock")
        components.append({**component, "licenses": [{"license": {"name": licences[component["name"]]}}]})
    service = {"type": "application", "name": "keyservice", "version": version, "bom-ref": "keyservice"}
    return {**bill, "metadata": {**bill["metadata"], "component": service}, "components": components}


def judged(audit: Mapping[str, Any], *, of: set[str]) -> tuple[list[str], list[str]]:
    """One line for each known vulnerability of these packages, and those that nothing is known about."""
    packages = [package for package in audit["dependencies"] if package["name"] in of]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, put right in {', '.join(flaw['fix_versions']) or 'no release'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    return found, [package["name"] for package in packages if "skip_reason" in package]


def release(*, audit_required: bool) -> None:
    """Writes the three files and says what is in them. Raises NotReleasable."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    version = version_of((CHECKOUT / "CHANGELOG.md").read_text())
    print(f"version {version}, from CHANGELOG.md")

    made = _run("cyclonedx-py", "requirements", "--output-reproducible", "--of", "JSON", "-o", "-", str(REQUIREMENTS))
    if made.returncode != 0:
        raise NotReleasable("the bill of materials could not be made:\n" + made.stderr)
    bill = shipped(json.loads(made.stdout))
    licences = {component["name"]: licence_of(component["name"]) for component in bill["components"]}
    _write("sbom.cdx.json", json.dumps(described(bill, version=version, licences=licences), indent=2) + "\n")
    versions = {component["name"]: component["version"] for component in bill["components"]}
    rows = [f"| {name} | {versions[name]} | {licence} |\n" for name, licence in sorted(licences.items())]
    _write("licences.md", "".join(["| package | version | licence |\n|---|---|---|\n", *rows]))

    audited = _run("pip-audit", "--disable-pip", "--require-hashes", "--format", "json", "-r", str(REQUIREMENTS))
    try:
        answer: dict[str, Any] = json.loads(audited.stdout)
    except ValueError:
        answer = {"dependencies": [{"name": name, "skip_reason": "no answer"} for name in versions]}
    _write("audit.json", json.dumps(answer, indent=2) + "\n")
    found, unknown = judged(answer, of=set(versions))
    if found:
        raise NotReleasable("known vulnerabilities:\n" + "\n".join(found))
    if unknown:
        text = f"SKIPPED: {len(unknown)} of {len(versions)} packages were not looked up; is the network there?"
        if audit_required:
            raise NotReleasable(text)
        print(text)
    else:
        print(f"no known vulnerability in {len(versions)} packages")


def _run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=False, timeout=300)


def _write(name: str, text: str) -> None:
    (OUTPUT / name).write_text(text)
    print(f"build/release/{name}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    parser.add_argument("--audit-required", action="store_true", help="fail when vulnerabilities cannot be looked up")
    try:
        release(audit_required=parser.parse_args().audit_required)
    except NotReleasable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
