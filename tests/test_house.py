"""Rules of the house that a machine can hold: floors, doors, sizes, scripts."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "toolkit"
GROUND = [
    *("redact", "modes", "errors", "log", "fields", "topology", "remote", "lock", "trees", "storage"),
    *("records", "config", "rundir", "meeting"),
    "distributed",
]
TRADES = ["plan", "cluster", "data", "model", "checkpoint", "monitor", "health"]
DOORS = {
    "submitit": ["cluster/"],
    "deepspeed": ["model/pipeline.py", "train/engine.py", "checkpoint/reshard.py"],
    "wandb": ["monitor/sinks.py"],
    "tensorboard": ["monitor/sinks.py"],
    "fsspec": ["remote.py"],
    "datasets": ["data/text/hub.py"],
    "tokenizers": ["data/prepare/tokenizer.py", "data/prepare/engines.py"],
    "gigatoken": ["data/prepare/engines.py"],
    "py3langid": ["data/quality/language.py"],
    "phonenumbers": ["data/quality/privacy.py"],
    "rensa": ["data/quality/dedup.py"],
}
LOGIN_MODULES = [
    "toolkit.cli.main",
    "toolkit.launch.submit",
    "toolkit.launch.after",
    "toolkit.plan.search",
    "toolkit.cluster.slurm",
    "toolkit.cluster.local",
    "toolkit.config.check",
    "toolkit.storage",
    "toolkit.data.cache",
    "toolkit.rundir",
    "toolkit.monitor.sinks",
    "toolkit.data.prepare.tokens",
    "toolkit.data.quality.filters",
    "toolkit.data.quality.dedup",
    "toolkit.data.stream",
    "toolkit.checkpoint.upload",
    "toolkit.launch.archive",
]
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def may_import(room: str) -> set[str]:
    if room in GROUND:
        return set(GROUND[: GROUND.index(room) + 1])
    if room in TRADES:
        return {*GROUND, room}
    if room == "train":
        return {*GROUND, *TRADES, "train"}
    return {*GROUND, *TRADES, "train", "launch"} if room == "launch" else {*GROUND, *TRADES, "train", "launch", "cli"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_down_and_through_the_doors(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    room = place.parts[0].removesuffix(".py")
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "toolkit" and len(parts) > 1:
            assert parts[1] in may_import(room) or room in {"__main__", "__init__"}, f"{place} imports {name}"
        doors = DOORS.get(parts[0])
        assert doors is None or place.as_posix().startswith(tuple(doors)), f"{place} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= 45, f"{node.name} has {length} lines"


def test_the_login_half_never_imports_torch() -> None:
    names = "; ".join(f"import {name}" for name in LOGIN_MODULES)
    check = "import sys; print([m for m in ('torch', 'deepspeed', 'datasets', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{names}; {check}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_say_something() -> None:
    forbidden = {"utils", "common", "helpers", "misc"} | set(sys.stdlib_module_names)
    assert [path for path in FILES if path.stem in forbidden and path.parent == PACKAGE] == []
    assert [path for path in FILES if path.stem in {"utils", "common", "helpers", "misc"}] == []
    assert [path for path in PACKAGE.rglob("__init__.py") if path.read_text(encoding="utf-8").strip()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "sbatch").iterdir()), ids=lambda path: path.name)
def test_batch_scripts_are_short_valid_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_faces_are_short() -> None:
    long = [
        path for path in (ROOT / "data_prep").glob("*.py") if len(path.read_text(encoding="utf-8").splitlines()) > 80
    ]
    assert long == []


def test_no_machine_is_named_and_links_lead_somewhere() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"/(?:work|root|home)/\w")
    for name in tracked:
        text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else ""
        assert name == "tests/test_house.py" or not pattern.search(text), name
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link
