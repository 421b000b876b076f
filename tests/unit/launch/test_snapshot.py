"""The code that a run carries with it."""

import importlib.util
import marshal
from pathlib import Path

from toolkit.launch.snapshot import freeze_code, name_code, newest_code


def test_frozen_code_is_compiled_once_and_names_the_place_where_it_lies(tmp_path: Path) -> None:
    code_dir = tmp_path / "code"
    frozen = [freeze_code(code_dir) for _ in range(2)]
    assert frozen[0] == frozen[1] == name_code(code_dir)
    source = frozen[0] / "toolkit" / "launch" / "job.py"
    compiled = Path(importlib.util.cache_from_source(str(source)))
    header = compiled.read_bytes()[:16]
    assert int.from_bytes(header[8:12], "little") == int(source.stat().st_mtime)  # else a rank compiles it again
    assert marshal.loads(compiled.read_bytes()[16:]).co_filename == str(source)
    assert sorted(entry.name for entry in code_dir.iterdir()) == sorted([frozen[0].name, "newest"])


def test_code_that_a_job_was_handed_in_with_stays_when_other_code_is_submitted(tmp_path: Path) -> None:
    checkout, code_dir = tmp_path / "checkout", tmp_path / "code"
    (checkout / "toolkit").mkdir(parents=True)
    (checkout / "submit.py").write_text("before = 1\n", encoding="utf-8")
    first = freeze_code(code_dir, source_dir=checkout)
    (checkout / "submit.py").write_text("after = 1\n", encoding="utf-8")
    second = freeze_code(code_dir, source_dir=checkout)
    assert first != second
    assert (first / "submit.py").read_text(encoding="utf-8") == "before = 1\n"
    assert newest_code(code_dir) == second
    assert freeze_code(tmp_path / "rehearsed", source_dir=second).name == second.name
