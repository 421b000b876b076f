"""What `make audit` decides, on made-up packages."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("licence", "verdict"),
    [
        ("MIT", "permissive"),
        ("BSD License", "permissive"),
        ("Apache Software License; MIT License", "permissive"),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause", "permissive"),
        ("Academic Free License (AFL); MIT License", "permissive"),
        ("ISC License (ISCL)", "permissive"),
        ("GPL-3.0-only OR MIT", "permissive"),
        ("DFSG approved; MIT License", "permissive"),
        ("MPL-2.0 AND MIT", "notice"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "notice"),
        ("GPL-3.0-only", "unknown"),
        ("MIT AND GPL-3.0-only", "unknown"),
        ("GNU Affero General Public License v3", "unknown"),
        ("Limited MIT", "unknown"),
        ("UNKNOWN", "unknown"),
        ("MIT-like, but not for profit", "unknown"),
    ],
)
def test_licences_are_judged_by_all_their_parts(audit: ModuleType, licence: str, verdict: str) -> None:
    assert audit.judge_licence(licence) == verdict


def test_what_is_on_no_list_and_what_wants_a_notice_is_named(audit: ModuleType) -> None:
    rows = [
        {"Name": "good", "Version": "1", "License": "MIT"},
        {"Name": "strange", "Version": "2", "License": "SSPL"},
        {"Name": "weak", "Version": "3", "License": "MPL-2.0"},
        {"Name": "noted", "Version": "4", "License": "MPL-2.0"},
        {"Name": "toolkit", "Version": "0", "License": "UNKNOWN"},
    ]
    assert audit.judge_licences(rows, notice="Words.\n\nnoted   what it is for\n") == [
        "strange 2: licence 'SSPL' is on no list",
        "weak 3: MPL-2.0 wants a line in NOTICE",
    ]


def test_vulnerabilities_and_what_is_not_known_are_told_apart(audit: ModuleType) -> None:
    report = {
        "dependencies": [
            {"name": "well", "version": "1", "vulns": []},
            {"name": "hurt", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]},
            {"name": "worse", "version": "3", "vulns": [{"id": "CVE-2", "fix_versions": []}]},
            {"name": "hidden", "skip_reason": "Dependency not found on PyPI and could not be audited: hidden (4)"},
            {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.1+cpu)"},
            {"name": "toolkit", "skip_reason": "Dependency not found on PyPI and could not be audited: toolkit (0)"},
        ]
    }
    assert audit.judge_advisories(report) == (
        ["hurt 2: CVE-1, mended in 2.1", "worse 3: CVE-2, mended in no version yet"],
        ["hidden"],
        ["torch"],
    )


def test_an_audit_without_advisories_does_not_pass(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"piplicenses": '[{"Name": "good", "Version": "1", "License": "MIT"}]', "pip_audit": ""}
    monkeypatch.setattr(audit, "_run", lambda name, *_: said[name])
    assert audit.main() == 2
    assert "no advisories could be had of all packages" in capsys.readouterr().err
    said["pip_audit"] = '{"dependencies": [{"name": "good", "version": "1", "vulns": []}]}'
    assert audit.main() == 0
    said["piplicenses"] = '[{"Name": "bad", "Version": "1", "License": "SSPL"}]'
    assert audit.main() == 1
