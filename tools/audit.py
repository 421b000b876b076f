#!/usr/bin/env python3
"""Check what is installed: licences against a list, versions against known vulnerabilities. `make audit` runs it.

Exit code 0: all is well; 1: a licence or a vulnerability wants a decision; 2: the advisories could not be had, so
nothing is known of vulnerabilities. Licences come from pip-licenses, advisories from pip-audit (PyPI, then OSV).
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

NOTICE = Path(__file__).parents[1] / "NOTICE"
SERVICES = ("pypi", "osv")

_PERMISSIVE = re.compile(
    r"(MIT|MIT License|MIT-CMU|(\d-Clause )?BSD( License)?|0BSD|BSD-\d-Clause|ISC( License \(ISCL\))?|Zlib|Unlicense|"
    r"Apache( Software)?( License)?([ -]2\.0)?( License)?( WITH LLVM-exception)?|BSL-1\.0|CC0-1\.0|PSF-2\.0|"
    r"CNRI-Python|Python Software Foundation License|Academic Free License \(AFL\))"
)
_WEAK_COPYLEFT = re.compile(r"MPL-2\.0|Mozilla Public License 2\.0 \(MPL 2\.0\)")
_LOOKED_UP = {"hdfs-native": "Apache-2.0"}  # its metadata is silent; the licence file of its repository says so
_OWN = {"toolkit", "pip", "setuptools"}
_NO_LICENCE = {"DFSG approved"}  # a classifier that says nothing of the terms


def judge_licence(licence: str) -> str:
    """Say what a licence is: `permissive`, `notice` (weak copyleft: listed in NOTICE) or `unknown`.

    All parts that are joined by AND (or stand side by side) count, of those joined by OR the best one.
    """
    parts = [part.strip(" ()") for part in re.split(r";| AND ", licence) if part.strip() not in _NO_LICENCE]
    ranks = ("permissive", "notice", "unknown")
    return max((min(map(_judge_one, part.split(" OR ")), key=ranks.index) for part in parts), key=ranks.index)


def _judge_one(licence: str) -> str:
    # the split may have cut a bracket that belongs to the name
    words = {licence.strip(), f"{licence.strip()})"}
    if any(_PERMISSIVE.fullmatch(word) for word in words):
        return "permissive"
    return "notice" if any(_WEAK_COPYLEFT.fullmatch(word) for word in words) else "unknown"


def judge_licences(rows: Iterable[Mapping[str, str]], *, notice: str) -> list[str]:
    """List the packages whose licence is unknown, or wants a line in NOTICE and has none."""
    problems = []
    for row in rows:
        name = row["Name"]
        if name in _OWN:
            continue
        licence = _LOOKED_UP.get(name, row["License"])
        verdict = judge_licence(licence)
        if verdict == "unknown":
            problems.append(f"{name} {row['Version']}: licence {licence!r} is on no list")
        elif verdict == "notice" and not re.search(rf"^{re.escape(name)}\b", notice, re.MULTILINE):
            problems.append(f"{name} {row['Version']}: {licence} wants a line in NOTICE")
    return problems


def judge_advisories(report: Mapping[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """Give the known vulnerabilities in a report of pip-audit, packages of which nothing was learned, and local builds.

    A local build (torch 2.13.0+cpu) is no version that an advisory names.
    """
    found, unknown, local = [], [], []
    for package in report["dependencies"]:
        name = package["name"]
        if "skip_reason" in package:
            if name not in _OWN:
                (local if "+" in package["skip_reason"] else unknown).append(name)
            continue
        for one in package["vulns"]:
            fixed = ", ".join(one["fix_versions"]) or "no version yet"
            found.append(f"{name} {package['version']}: {one['id']}, mended in {fixed}")
    return found, unknown, local


def _run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    return done.stdout


def _ask_for_advisories() -> tuple[list[str], list[str], list[str]]:
    """Ask one service after another until one of them knows packages."""
    for service in SERVICES:
        said = _run("pip_audit", "--format", "json", "--progress-spinner", "off", "--vulnerability-service", service)
        if not said.strip():
            continue
        report = json.loads(said)
        found, unknown, local = judge_advisories(report)
        if 2 * len(unknown) < len(report["dependencies"]):
            return found, unknown, local
    return [], ["all packages"], []


def main() -> int:
    """Check, and say what was found."""
    rows: Sequence[Mapping[str, str]] = json.loads(
        _run("piplicenses", "--from=mixed", "--format=json", "--with-system")
    )
    problems = judge_licences(rows, notice=NOTICE.read_text(encoding="utf-8"))
    print(f"licences: {len(rows)} packages, {len(problems)} want a decision")
    found, unknown, local = _ask_for_advisories()
    print(f"vulnerabilities: {'not known' if unknown and not found else f'{len(found)} known'}")
    if local:
        print(f"  not looked up, local builds: {', '.join(local)} (audit them where PyPI's build is installed)")
    for line in [*problems, *found]:
        print(f"  {line}")
    if problems or found:
        return 1
    if unknown:
        print(f"no advisories could be had of {', '.join(unknown)}", file=sys.stderr)
        print(f"  {' and '.join(SERVICES)} were asked\n  run this where they answer", file=sys.stderr)
    return 2 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
