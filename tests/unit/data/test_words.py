"""Words as arrays: where they stand and how they hash, next to a plain regular expression."""

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.quality.words import find_words, hash_runs

LATIN = st.text(alphabet="abcXYZ019 .,-_\n\u00e9\u0451\u00df", max_size=200)


@settings(max_examples=100, deadline=None)
@given(LATIN)
def test_words_of_spaced_scripts_stand_where_a_regular_expression_finds_them(text: str) -> None:
    words = find_words(text)
    expected = [(match.start(), match.end()) for match in re.finditer(r"[^\W_]+", text)]
    assert list(zip(words.starts.tolist(), words.ends.tolist(), strict=True)) == expected


@settings(max_examples=100, deadline=None)
@given(LATIN)
def test_equal_words_hash_alike_and_others_apart(text: str) -> None:
    words = find_words(text)
    spelled = [text[a:b].lower() for a, b in zip(words.starts, words.ends, strict=True)]
    assert len(set(spelled)) == len(set(words.hashes.tolist()))


def test_characters_of_unspaced_scripts_are_words() -> None:
    text = "GPU\u4e16\u754c\u306e\u0e01"
    words = find_words(text)
    assert [text[a:b] for a, b in zip(words.starts, words.ends, strict=True)] == ["GPU", *text[3:]]


def test_a_mark_stays_with_its_letter() -> None:
    assert len(find_words("\u0928\u092e\u0938\u094d\u0924\u0947").hashes) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=30), st.integers(1, 6))
def test_runs_hash_alike_exactly_when_their_words_are_equal(spelled: list[str], length: int) -> None:
    runs = hash_runs(find_words(" ".join(spelled)).hashes, length)
    size = min(length, len(spelled))
    expected = [tuple(spelled[i : i + size]) for i in range(len(spelled) - size + 1)] if spelled else []
    assert len(runs) == len(expected)
    assert len(set(runs.tolist())) == len(set(expected))


def test_hashes_do_not_change_between_versions() -> None:
    """Signatures on disk depend on them."""
    assert find_words("Hello world").hashes.tolist() == [1414742852741108760, 12766057583076466004]
    assert hash_runs(np.arange(3, dtype=np.uint64), 2).tolist() == hash_runs(np.arange(3, dtype=np.uint64), 2).tolist()
