"""Names that file systems allow and URLs would not, and what must hold of each."""

import urllib.parse
from contextlib import suppress

from hypothesis import strategies as st

from toolkit import storage

ODD = "ab#?;%*[]{}:&@=+,~'\"\\ \t<>|!$^`.-_0é日\u0301\u200b"


def names(*, without: str = "") -> st.SearchStrategy[str]:
    """Draw names of files."""
    odd = st.sampled_from([letter for letter in ODD if letter not in without])
    any_letter = st.characters(exclude_categories=("Cs",), exclude_characters=f"/\0{without}")
    known = st.sampled_from([one for one in ("corpus#2", "a%25b", "a::b", "memory:x", "*", "[ab]", "a?b", "...") if
                             not set(one) & set(without)])  # fmt: skip
    drawn = known | st.text(odd, min_size=1, max_size=12) | st.text(any_letter, min_size=1, max_size=12)
    return drawn.filter(lambda name: name not in {".", ".."})


def neighbours_of(name: str) -> set[str]:
    """Give names that one could be taken for: cut at each letter, decoded, or matched by it as a pattern."""
    cuts = {name[:end] for end in range(1, len(name))} | {name[start:] for start in range(1, len(name))}
    others = {urllib.parse.unquote(name), urllib.parse.quote(name, safe=""), name.strip(), "a", "axb", "corpus"}
    return {one for one in cuts | others if one and "/" not in one and one not in {".", "..", name} and "\0" not in one}


def check_name(url: str, name: str, *, without: str = "") -> None:
    """Write, read, list, rename and remove a file and a directory of that name, and find the others untouched."""
    others = {one: one.encode() for one in neighbours_of(name) if not set(one) & set(without)}
    for other, content in others.items():
        storage.write_atomic(storage.join(url, other), content)
    for inner in ((name,), (name, name)):
        path, top = storage.join(url, *inner), storage.join(url, name)
        storage.write_atomic(path, b"mine")
        everything = {**others, "/".join(inner): b"mine"}
        assert storage.file_sizes(url) == {one: len(everything[one]) for one in everything}
        listed = storage.list_files(url)
        assert sorted(storage.read_file(one) for one in listed) == sorted(everything.values())
        assert storage.read_file(path) == b"mine"
        assert storage.size(path) == 4
        assert storage.exists(top)
        storage.rename(top, f"{top}.moved")
        assert not storage.exists(top)
        storage.rename(f"{top}.moved", top)
        assert [storage.read_file(one) for one in storage.list_files(top)] == [b"mine"]
        storage.remove_tree(top)
        assert not storage.exists(top)
        assert {one: storage.read_file(storage.join(url, one)) for one in others} == others
        assert len(storage.list_files(url)) == len(others)
    with suppress(FileNotFoundError):
        storage.remove_tree(url)
