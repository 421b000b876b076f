"""What was skipped stands in the last lines of the suite, and in CI little may be: a plugin of pytest."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

# What cannot be run on a system, by the reason that the test gives; nothing that could be installed belongs here.
CANNOT_BE_RUN = {
    "no /proc": "a system other than Linux",
    "no /dev/shm here": "a system other than Linux",
    "another C library": "a system other than Linux",
}


def find_skips(config: pytest.Config) -> Sequence[pytest.TestReport]:
    """Give the reports of tests that were skipped, from all processes that ran some."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []  # a worker of xdist has none


def reason_of(report: pytest.TestReport) -> str:
    assert isinstance(report.longrepr, (tuple, list)), report.longrepr
    return str(report.longrepr[2]).removeprefix("Skipped: ")


def list_forbidden(reports: Sequence[pytest.TestReport], environ: Mapping[str, str]) -> list[str]:
    """List the tests that had to run: in CI all but those that need a GPU."""
    if environ.get("CI") != "true":
        return []
    reports = [one for one in reports if "gpu" not in one.keywords and reason_of(one) not in CANNOT_BE_RUN]
    return [f"{report.nodeid} ({reason_of(report)})" for report in reports]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and list_forbidden(find_skips(session.config), os.environ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = find_skips(terminalreporter.config)
    for reason, count in Counter(map(reason_of, reports)).items():
        terminalreporter.write_line(f"{count} skipped: {reason}")
    for test in list_forbidden(reports, os.environ):
        terminalreporter.write_line(f"FAILED {test}: in CI only what needs a GPU may be skipped", red=True)
