"""Fixtures and options of all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["tests.skips"]

GOLDEN_DIR = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the texts that tests/golden expects")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text that we emit with the one a person has read."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN_DIR / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"no {path}; read the text, then: pytest --update-golden\n{text}"
        assert text == path.read_text(encoding="utf-8")

    return compare
