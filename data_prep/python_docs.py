"""Collect real English text that every machine with this project has: the documentation of Python.

Docstrings of the installed standard library and its help topics (PSF licence), and of the installed numpy
and torch packages (BSD-3-Clause), read from their sources; nothing is imported or run. One document a module.
"""

import argparse
import ast
import importlib.util
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from toolkit import storage

MIN_CHARACTERS = 200
PSF, BSD = "PSF-2.0", "BSD-3-Clause"


def main() -> None:
    """Write the corpus and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="data/python-docs.jsonl", help="JSON lines to write (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON on the last line")
    asked = parser.parse_args()
    library = Path(sysconfig.get_paths()["stdlib"])
    records = [*read_modules(library, licence=PSF), *read_topics(library)]
    for package in ("numpy", "torch"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            records += read_modules(Path(spec.submodule_search_locations[0]), licence=BSD)
    unique = {record["text"]: record for record in records}.values()
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in unique).encode()
    storage.write_atomic(asked.out, data)
    print(f"{asked.out}: {len(unique)} documents, {len(data) / 1e6:.1f} MB of Python documentation ({PSF}, {BSD})")
    if asked.json:
        print(json.dumps({"path": asked.out, "documents": len(unique), "bytes": len(data)}))


def read_modules(root: Path, *, licence: str) -> Iterator[dict[str, str]]:
    """Give the docstrings of each module below a directory as one text."""
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root)
        if skipped & set(module.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError, OSError):
            continue  # sources made to be broken, or in another encoding
        text = "\n\n".join(read_docstrings(tree))
        if len(text) >= MIN_CHARACTERS:
            yield {"text": text, "source": f"{root.name}/{module.as_posix()}", "licence": licence}


def read_docstrings(tree: ast.Module) -> Iterator[str]:
    """Give the docstrings of a module, its classes and functions, in the order of the source."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text if isinstance(node, ast.Module) else f"{node.name}: {text}"


def read_topics(library: Path) -> Iterator[dict[str, str]]:
    """Give the topics of Python's `help()`: the chapters of the language reference."""
    path = library / "pydoc_data" / "topics.py"
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                if len(text) >= MIN_CHARACTERS:
                    yield {"text": text, "source": f"pydoc_data/topics/{name}", "licence": PSF}


if __name__ == "__main__":
    main()
