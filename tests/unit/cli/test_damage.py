"""Whatever became of the files of a run, each verb answers in a sentence, and other runs are shown."""

import json
import signal
from pathlib import Path
from types import FrameType

import pytest

from tests.damage import DAMAGES, make_root
from toolkit.cli.main import main

VERBS = {"list": ["status"], "list as JSON": ["status", "--json"], "status": ["status", "first"]}
LOGS, CANCEL, NODES = {"logs": ["logs", "first"]}, {"cancel": ["cancel", "first"]}, {"nodes": ["nodes"]}
FILES: dict[str, dict[str, list[str]]] = {
    "config.yaml": {**LOGS, **CANCEL},
    "asked.yaml": {},
    "identity.json": CANCEL,
    "job.json": {**LOGS, **CANCEL},
    "attempts.jsonl": {**LOGS, **CANCEL},
    "metrics.jsonl": {},
    "expected.json": {},
    "failure.json": {},
    "refused": {},
    "0.out": LOGS,
    "nodes.jsonl": NODES,
    "state.json": CANCEL,
    "spec.json": CANCEL,
}
"""Files, and the verbs that read them besides those above."""
PLAIN = {"zeros", "no text", "list", "number", "not YAML", "unknown section", "directory", "pipe", "loop"}
"""Damages that are no configuration in any case."""


def give_up(number: int, frame: FrameType | None) -> None:
    raise AssertionError("it waits")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_named_and_hides_nothing_else(
    file: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    DAMAGES[damage](make_root(tmp_path / "runs")[file])
    signal.signal(signal.SIGALRM, give_up)
    for name, words in {**VERBS, **FILES[file]}.items():
        signal.alarm(20)
        try:
            code = main([*words, "--root", str(tmp_path / "runs")])
        finally:
            signal.alarm(0)
        out, err = (text.decode(errors="replace") for text in capsysbinary.readouterr())
        assert code in {0, 2}, name
        assert "Traceback" not in err
        if code == 2:
            assert err.startswith("error: "), name
        if name == "list":
            assert code == 0
            assert "second" in out
        if name == "list as JSON":
            rows = {run["run"]: run for run in json.loads(out)}
            assert rows["second"]["step"] == 39
            if file == "config.yaml" and damage not in {"gone", "leads nowhere"}:
                assert "unreadable" in rows["first"] or damage not in PLAIN, damage
