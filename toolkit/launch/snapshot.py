"""Code frozen into the run directory: the job never runs the checkout, which people go on editing."""

import compileall
import shutil
from pathlib import Path

import toolkit

_PARTS = ("toolkit", "data_prep", "sbatch", "submit.py", "pyproject.toml")


def checkout_dir() -> Path:
    """Find the directory that holds the package that is running."""
    return Path(toolkit.__path__[0]).resolve().parent


def freeze_code(code_dir: Path, *, source_dir: Path | None = None) -> None:
    """Copy the toolkit beside and put it in place of what a former submit left.

    Args:
        code_dir: where it goes.
        source_dir: what is copied; None: the code that is running.
    """
    beside = code_dir.with_name(code_dir.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name in _PARTS:
        source = (source_dir or checkout_dir()) / name
        if source.is_dir():
            shutil.copytree(source, beside / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, beside / name)
    _compile(beside, lives_in=code_dir)
    shutil.rmtree(code_dir, ignore_errors=True)
    beside.rename(code_dir)


def _compile(directory: Path, *, lives_in: Path) -> None:
    """Compile once what every rank imports: a thousand would all do it, and write the same files over each other.

    A file that does not compile is left to the rank that imports it, whose error names it.
    """
    compileall.compile_dir(directory, quiet=2, stripdir=str(directory), prependdir=str(lives_in))
