"""Fails when an installed file differs from what its wheel says it holds, as an edited package cache would make it.

Usage: verify_records.py DIRECTORY. Reads the RECORD of every distribution (PyPA binary distribution format).
"""

import base64
import csv
import hashlib
import sys
from pathlib import Path


def differing_files(site: Path) -> list[str]:
    """Paths below `site` that are listed with a hash and are missing or hold something else; bin/ is left out of a layer."""
    differing: list[str] = []
    for record in sorted(site.glob("*.dist-info/RECORD")):
        for name, digest, _size in csv.reader(record.read_text().splitlines()):
            if not digest or not (site / name).resolve().is_relative_to(site.resolve()) or name.startswith("bin/"):
                continue
            algorithm, _, expected = digest.partition("=")
            file = site / name
            actual = hashlib.new(algorithm, file.read_bytes()).digest() if file.is_file() else b""
            if base64.urlsafe_b64encode(actual).rstrip(b"=").decode() != expected:
                differing.append(name)
    return differing


def main() -> None:
    site = Path(sys.argv[1])
    if not any(site.glob("*.dist-info/RECORD")):
        sys.exit(f"{site}: no RECORD to compare with")
    if differing := differing_files(site):
        sys.exit("differs from its wheel: " + ", ".join(differing))


if __name__ == "__main__":
    main()
