"""A small token dataset of made text, for tests that need a real one."""

import json
from pathlib import Path

from toolkit.data.manifest import Manifest
from toolkit.data.prepare.preparation import Preparation
from toolkit.data.prepare.tokenizer import train_tokenizer
from toolkit.data.prepare.tokens import prepare

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "the",
    "dog",
    "ran",
    "to",
    "the",
    "old",
    "red",
    "barn",
    "near",
    "our",
    "small",
    "house",
]


def make_texts(count: int = 300) -> list[str]:
    return [" ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(40 + i % 7)) + f" {i}" for i in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def make_dataset(directory: Path, *, tokens_per_shard: int = 4000) -> tuple[Path, Manifest]:
    corpus = write_jsonl(directory / "corpus.jsonl", make_texts())
    tokenizer = directory / "tokenizer.json"
    train_tokenizer([str(corpus)], column="text", vocab_size=300, path=tokenizer)
    asked = Preparation(
        inputs=(str(corpus),), tokenizer=str(tokenizer), validation=0.2, tokens_per_shard=tokens_per_shard
    )
    manifest, _ = prepare(asked, directory / "dataset")
    return directory / "dataset", manifest
