"""The code that a run carries with it."""

import importlib.util
import marshal
from pathlib import Path

from toolkit.launch.snapshot import freeze_code


def test_frozen_code_is_compiled_once_and_names_the_place_where_it_lies(tmp_path: Path) -> None:
    code_dir = tmp_path / "code"
    for _ in range(2):  # a later submit puts its own in place
        freeze_code(code_dir)
    source = code_dir / "toolkit" / "launch" / "job.py"
    compiled = Path(importlib.util.cache_from_source(str(source)))
    header = compiled.read_bytes()[:16]
    assert int.from_bytes(header[8:12], "little") == int(source.stat().st_mtime)  # else a rank compiles it again
    assert marshal.loads(compiled.read_bytes()[16:]).co_filename == str(source)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["code"]
