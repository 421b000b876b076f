"""Code frozen beside the job: it never runs the checkout, which people go on editing.

    code/   <hash of its content>/   newest (the name of the one that was frozen last)

Each content has a directory of its own, which is never changed: a job that runs or waits keeps the code that it was
handed in with, whatever is submitted after it.
"""

import compileall
import shutil
from pathlib import Path

import xxhash

import toolkit
from toolkit import storage

_PARTS = ("toolkit", "data_prep", "sbatch", "submit.py", "pyproject.toml")
_NEWEST = "newest"


def checkout_dir() -> Path:
    """Find the directory that holds the package that is running."""
    return Path(toolkit.__path__[0]).resolve().parent


def name_code(code_dir: Path, *, source_dir: Path | None = None) -> Path:
    """Say where code would be frozen; writes nothing.

    Args:
        code_dir: the directory of all frozen code of a run.
        source_dir: what is copied; None: the code that is running.
    """
    source_dir = source_dir or checkout_dir()
    digest = xxhash.xxh3_64()
    for path in _list_files(source_dir):
        digest.update(f"{path.relative_to(source_dir)}\n".encode())
        digest.update(path.read_bytes())
    return code_dir / digest.hexdigest()


def freeze_code(code_dir: Path, *, source_dir: Path | None = None) -> Path:
    """Copy the toolkit where `name_code` says, unless it stands there already; give that directory."""
    source_dir = source_dir or checkout_dir()
    frozen = name_code(code_dir, source_dir=source_dir)
    if not frozen.is_dir():
        beside = frozen.with_name(frozen.name + ".partial")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            _copy(source_dir, beside)
            _compile(beside, lives_in=frozen)
            beside.rename(frozen)
        except BaseException:  # Ctrl-C too
            shutil.rmtree(beside, ignore_errors=True)
            raise
    storage.write_atomic(str(code_dir / _NEWEST), f"{frozen.name}\n".encode())
    return frozen


def _copy(source_dir: Path, target_dir: Path) -> None:
    for source in _list_files(source_dir):
        target = target_dir / source.relative_to(source_dir)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)  # without its mode


def newest_code(code_dir: Path) -> Path:
    """Find the code that was frozen last."""
    return code_dir / (code_dir / _NEWEST).read_text(encoding="utf-8").strip()


def _list_files(source_dir: Path) -> list[Path]:
    places = [source_dir / name for name in _PARTS]
    files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()]
    return sorted(path for path in files if "__pycache__" not in path.parts)


def _compile(directory: Path, *, lives_in: Path) -> None:
    """Compile once what every rank imports: a thousand would all do it, and write the same files over each other.

    A file that does not compile is left to the rank that imports it, whose error names it.
    """
    compileall.compile_dir(directory, quiet=2, stripdir=str(directory), prependdir=str(lives_in))
