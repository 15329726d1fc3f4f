"""Print licenses and known vulnerabilities of the suite's dependencies, direct and transitive, with extras.

    python scripts/audit_dependencies.py                      # or: make audit
    python scripts/audit_dependencies.py --only licenses      # without network

Licenses are those that the installed packages state. pip-audit queries OSV (https://osv.dev) for vulnerabilities; it
sends names and versions only. Exit status 1 if a package is flagged, 2 if the service cannot be queried.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]

KINDS = {
    "permissive": r"apache|\bmit\b|bsd|\bisc\b|zlib|unlicense|public domain|cc0|psf|python soft|cnri|bsl-1\.0|\bafl\b",
    "weak copyleft": r"lgpl|lesser general|mpl|mozilla|epl|cddl",
    "strong copyleft": r"(?<!l)gpl|(?<!lesser )general public|affero|sspl|eupl",
    "proprietary": r"proprietary|nvidia|commercial",
}
"""Type → pattern of license names, least strict first; if several match, the strictest counts."""
ALLOWED = {"permissive", "weak copyleft"}  # weak copyleft has no obligations for code that only imports the library
REVIEWED = {
    "nvidia-*": "NVIDIA's licenses: free of charge to use, not open source; torch's CUDA wheels need them",
    "cuda-*": "NVIDIA's licenses: free of charge to use, not open source; torch's CUDA wheels need them",
    "math-verify": "Apache-2.0 (LICENSE of github.com/huggingface/Math-Verify)",
    "sentencepiece": "Apache-2.0 (LICENSE of github.com/google/sentencepiece)",
    "hf-transfer": "Apache-2.0 (the LICENSE that it brings)",
    "zss": "BSD (the LICENSE that it brings)",
    "conda-inject": "MIT (the LICENSE that it brings)",
    "snakemake-interface-*": "MIT (the LICENSE that they bring)",
    "docutils": "public domain and BSD; only its mode for Emacs is GPL (the COPYING that it brings)",
    "pycocoevalcap": "BSD-2-Clause (github.com/salaniz/pycocoevalcap); brings programs in Java, see docs/installing.md",
}
"""Packages whose license was reviewed: the license, or why it is acceptable."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """An installed package.

    Args:
        name: normalized.
        version: installed.
        needed_by: a package that requires it, the first one found.
        license: as stated by the package; empty if it states none.
    """

    name: str
    version: str
    needed_by: str
    license: str

    @property
    def kind(self) -> str:
        """``permissive``, ``weak copyleft``, ``strong copyleft``, ``proprietary``, ``unknown`` or ``unstated``.

        The strictest of several licenses (``MPL-2.0 AND MIT``), the least strict of alternatives (``OR``).
        """
        if not self.license:
            return "unstated"
        strictness = [*KINDS, "unknown"]
        parts = [re.split(r"\s+OR\s+", part) for part in re.split(r"\s+AND\s+|;", self.license)]
        kinds = [min((_kind_of(choice) for choice in choices), key=strictness.index) for choices in parts]
        return max(kinds, key=strictness.index)

    @property
    def reviewed(self) -> str:
        """The result of the license's review; empty without one."""
        return next((why for name, why in REVIEWED.items() if re.fullmatch(name.replace("*", ".*"), self.name)), "")

    @property
    def flagged(self) -> bool:
        """Whether its license is neither of an allowed type nor reviewed."""
        return self.kind not in ALLOWED and not self.reviewed


def _kind_of(license: str) -> str:
    matching = [kind for kind, pattern in KINDS.items() if re.search(pattern, license, re.IGNORECASE)]
    return matching[-1] if matching else "unknown"


def needed(requirements: Iterable[str], by: str) -> tuple[list[Package], list[str]]:
    """The installed packages of requirements, with transitive ones; and the names of those not installed."""
    found: dict[str, Package] = {}
    missing: set[str] = set()
    todo, seen = [(Requirement(text), by) for text in requirements], set()
    while todo:
        requirement, parent = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.add(name)
            continue
        license = _stated(distribution.metadata)
        found.setdefault(name, Package(name=name, version=distribution.version, needed_by=parent, license=license))
        for text in distribution.requires or ():
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((further, name))
    return sorted(found.values(), key=lambda package: package.name), sorted(missing)


def _stated(metadata: importlib.metadata.PackageMetadata) -> str:
    """The license that a package states: its SPDX expression, else its classifiers, else the older license field."""
    fields = metadata.json
    classifiers = [text.rpartition(" :: ")[2] for text in fields.get("classifier", ()) if text.startswith("License ::")]
    field = str(fields.get("license", "")).strip()
    free = field.splitlines()[0] if field else ""
    stated = str(fields.get("license_expression", "")) or "; ".join(classifiers) or free
    return "" if stated.upper() == "UNKNOWN" else stated


def project_requirements(extras: Iterable[str]) -> list[str]:
    """The project's own requirements, with those of some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]


def vulnerabilities(packages: Iterable[Package], service: str | None) -> list[tuple[str, str, str]]:
    """Known vulnerabilities: package with version, identifier, and the versions that fix it.

    Raises:
        ConnectionError: the service gave no valid answer; one line states the reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        versions = (f"{package.name}=={package.version.partition('+')[0]}\n" for package in packages)
        listed.write_text("".join(versions), encoding="utf-8")
        words = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--format", "json", "--no-deps"]
        words += ["--disable-pip", "--progress-spinner", "off", "--cache-dir", folder, "--requirement", str(listed)]
        audit = subprocess.run(
            [*words, *(["--osv-url", service] if service else [])], capture_output=True, text=True, check=False
        )
    with contextlib.suppress(json.JSONDecodeError):
        return [
            (f"{package['name']} {package['version']}", found["id"], ", ".join(found["fix_versions"]) or "none")
            for package in json.loads(audit.stdout)["dependencies"]
            for found in package.get("vulns", ())
        ]
    last = next((line for line in reversed(audit.stderr.splitlines()) if line.strip()), "no answer")
    raise ConnectionError(f"the vulnerability service cannot be queried ({last.strip()[:200]})")


def print_licenses(packages: Iterable[Package]) -> None:
    """Print a table of all packages, with flagged ones marked, and the number of each type of license."""
    packages, kinds = list(packages), dict.fromkeys([*KINDS, "unknown", "unstated"], 0)
    for package in packages:
        kinds[package.kind] += 1
        license = package.reviewed or package.license or "not stated"
        mark = "FLAGGED " if package.flagged else ""
        print(f"{package.name:<32} {package.version:<16} {package.kind:<15} {mark}{license}  (for {package.needed_by})")
    print(f"{len(packages)} packages: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count))


def main(arguments: list[str] | None = None) -> int:
    """Print the findings; the exit status is 1 if a package is flagged, 2 if the service cannot be queried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["licenses", "vulnerabilities"], help="one of the two")
    parser.add_argument("--extras", default="tracking,serve,qlora,verify,remote", help="extras, separated by commas")
    parser.add_argument("--service", help="URL of another service with OSV's API")
    given = parser.parse_args(arguments)
    packages, missing = needed(project_requirements(filter(None, given.extras.split(","))), "clips-suite")
    if missing:
        print(f"not installed, so not checked: {', '.join(missing)}", file=sys.stderr)
    flagged = False
    if given.only != "vulnerabilities":
        print_licenses(packages)
        flagged = any(package.flagged for package in packages)
    if given.only != "licenses":
        try:
            known = vulnerabilities(packages, given.service)
        except ConnectionError as error:
            print(f"audit_dependencies: {error}", file=sys.stderr)
            return 2
        for package, name, fixed in known:
            print(f"{package:<40} {name:<24} fixed in: {fixed}")
        print(f"{len(packages)} packages, {len(known)} known vulnerabilities")
        flagged = flagged or bool(known)
    return int(flagged)


if __name__ == "__main__":
    sys.exit(main())
