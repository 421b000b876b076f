"""Numbers on the command line."""

import argparse
from collections.abc import Callable

import pytest

from toolkit.cli.amounts import amount, count, duration


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [(amount, "1e3", 1000.0), (amount, "0", 0.0), (count, "7", 7), (duration, "36h", 129_600)],
)
def test_a_number_is_read(read: Callable[[str], float], text: str, value: float) -> None:
    assert read(text) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e400", "9" * 5000, "", "x", "-inf"])
@pytest.mark.parametrize("read", [amount, count, duration])
def test_a_text_that_is_no_amount_is_told_in_a_sentence(read: Callable[[str], float], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no (number|whole number|time)"):
        read(text)
