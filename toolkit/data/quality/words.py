"""Words of a text as arrays: where they stand, and 64-bit hashes of them and of runs of them."""

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

_BETWEEN, _INSIDE, _ALONE = 0, 1, 2
# Scripts written without spaces: each character is a word of its own, so that runs of words exist there too.
# Thai and Lao, Myanmar, Khmer, kana and ideographs. Source: Unicode 15.1, Blocks.txt.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x31FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
_LAST = 0xFFFF  # stands for everything beyond the basic plane (ideographs, emoji): each a word of its own
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: the golden ratio in 64 bits
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # the first multiplier of splitmix64's finish
_SHIFT = np.uint64(29)
_LONGEST = 256  # characters with a power of their own in a word's hash

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text, in order: runs of letters, marks and digits, or single characters of unspaced scripts.

    starts, ends: int64 [num_words], in characters of the text. hashes: uint64 [num_words], blind to case.
    """

    starts: Positions
    ends: Positions
    hashes: Hashes


def find_words(text: str) -> Words:
    """Find the words of a text, in array operations only."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few letters grow (U+0130); positions matter more than their case
        lowered = text
    codes = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    kinds = _kinds()[np.minimum(codes, _LAST)]
    is_start = kinds == _INSIDE
    is_start[1:] &= kinds[:-1] != _INSIDE
    is_start |= kinds == _ALONE
    starts = np.flatnonzero(is_start)
    if not len(starts):
        return Words(starts, starts, np.empty(0, np.uint64))
    first = starts[0]
    inside = (kinds[first:] != _BETWEEN).astype(np.uint64)
    lengths = np.diff(starts, append=len(codes))
    place = np.arange(len(inside)) - np.repeat(starts - first, lengths)
    terms = (codes[first:] + np.uint64(1)) * _powers()[np.minimum(place, _LONGEST - 1)] * inside
    ends = starts + np.add.reduceat(inside, starts - first).astype(np.int64)
    return Words(starts, ends, _finish(np.add.reduceat(terms, starts - first)))


def hash_runs(hashes: Hashes, length: int) -> Hashes:
    """Hash each run of `length` neighbours; fewer than that are one run.

    Returns:
        uint64 [max(1, num_words - length + 1)], or [0] for no words.
    """
    length = min(length, len(hashes))
    if not length:
        return hashes
    runs = hashes[: len(hashes) - length + 1].copy()
    for place in range(1, length):
        runs *= _BASE
        runs ^= hashes[place : len(hashes) - length + 1 + place]
    return _finish(runs)


def _finish(values: Hashes) -> Hashes:
    values ^= values >> _SHIFT
    values *= _MIX
    values ^= values >> _SHIFT
    return values


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    categories = (unicodedata.category(chr(code))[0] for code in range(_LAST + 1))
    kinds = np.fromiter((_INSIDE if major in "LMN" else _BETWEEN for major in categories), np.uint8, _LAST + 1)
    for low, high in _UNSPACED:
        kinds[low : high + 1] = np.where(kinds[low : high + 1] == _INSIDE, _ALONE, _BETWEEN)
    kinds[_LAST] = _ALONE
    return kinds


@cache
def _powers() -> Hashes:
    return np.cumprod(np.full(_LONGEST, _BASE), dtype=np.uint64)
