"""The commands over filters and deduplication, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.corpus import make_prose, read_texts

ROOT = Path(__file__).parents[3]


def start(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "data_prep" / script, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_corpus_is_filtered_and_then_deduplicated(tmp_path: Path) -> None:
    prose = make_prose(1)
    texts = [f"{prose} jo@corp.io", f"{prose} al@corp.io", "short"]
    corpus = tmp_path / "a.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    done = start("filter_corpus.py", corpus, "--out", tmp_path / "clean", "--json")
    assert done.returncode == 0, done.stderr
    assert "2 of 3 documents kept" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["masked"] == {"email": 2}
    done = start("dedup_corpus.py", tmp_path / "clean", "--out", tmp_path / "unique", "--json")
    assert done.returncode == 0, done.stderr
    assert "removed 1 exact and 0 near duplicates of 1 documents" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["clusters"] == 1
    assert read_texts(tmp_path / "unique") == [[f"{prose} <EMAIL>"]]


def test_mistakes_end_with_2_and_a_sentence(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("privacy: {emails: drop}\n", encoding="utf-8")
    done = start("filter_corpus.py", tmp_path, "--rules", rules, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"unknown key privacy.emails  [{rules}:1]\n  did you mean privacy.email?" in done.stderr
    done = start("dedup_corpus.py", tmp_path / "nothing", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "no text found" in done.stderr
