"""Made documents and the reading of corpora, for tests of what is done to them."""

import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zstandard

VOCABULARY = [
    f"{a}{b}{c}" for a in ("ka", "lo", "mi", "ste", "ru") for b in ("ne", "ta", "vo", "sil") for c in ("", "n", "r")
]


@contextmanager
def show_nothing(title: str, *, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int], None]]:
    yield lambda num_bytes: None


class StoppedError(Exception):
    """Ends a run from within."""


def stop_at(count: int) -> Callable[..., Any]:
    """Show progress by ending the run at the count-th report of it."""
    reports = 0

    def report(num_bytes: int) -> None:
        nonlocal reports
        reports += 1
        if reports == count:
            raise StoppedError

    @contextmanager
    def show(title: str, *, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int], None]]:
        yield report

    return show


def make_prose(seed: int, *, num_words: int = 120) -> str:
    """Text of made words in which nothing repeats much: it breaks no rule of the default filter."""
    choice = random.Random(seed)
    words = [choice.choice(VOCABULARY) for _ in range(num_words)]
    return " ".join(f"{word}." if place % 12 == 11 else word for place, word in enumerate(words))


def change_words(text: str, count: int, *, seed: int) -> str:
    """Replace some words by others."""
    choice = random.Random(seed)
    words = text.split(" ")
    for place in choice.sample(range(len(words)), count):
        words[place] = f"other{choice.randrange(10**6)}"
    return " ".join(words)


def read_part(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line) for line in lines]


def read_texts(directory: Path) -> list[list[str]]:
    return [[record["text"] for record in read_part(path)] for path in sorted(directory.glob("part-*.jsonl.zst"))]


def read_bytes(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, to compare two byte for byte."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }
