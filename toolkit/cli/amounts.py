"""Numbers on the command line: what argparse is given as a type, with a sentence where a text is none."""

import argparse
import math

from toolkit.config.values import parse_seconds


def duration(text: str) -> int:
    """Read a time, as configurations have it."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """Read a whole number from 0 on."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from 0 on")
    return number


def amount(text: str) -> float:
    """Read a number from 0 on."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number from 0 on")
    return number
