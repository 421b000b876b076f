"""What a host of a site sees of this machine: a host name, a /tmp of its own, and of the rest what its user needs.

A host is a UTS and a mount namespace; nothing that is mounted for it is seen outside, and all of it goes with its last
process. Directories that the user may not enter are covered by others, in which only what is needed is bound back.
"""

import os
import pwd
import shlex
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

OWN = (Path("/tmp"), Path("/dev/shm"))
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Cover:
    """A directory that is hidden by another one, and what of it is bound back."""

    hidden: Path
    kept: tuple[Path, ...]


def needed_paths() -> list[Path]:
    """What a user runs: this checkout, and the interpreter with its packages."""
    return [CHECKOUT, Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix)]


def hops(path: Path) -> Iterator[Path]:
    """Give what the kernel looks up to reach a path: each symbolic link on the way, and the place at the end."""
    here, rest = Path("/"), list(path.absolute().parts[1:])
    while rest:
        here = here / rest.pop(0)
        if here.is_symlink():
            yield here
            target = Path(os.path.normpath(here.parent / here.readlink()))
            here, rest = Path("/"), [*target.parts[1:], *rest]
    yield here


def may_enter(directory: Path, user: str) -> bool:
    """Say whether a user may go through a directory, by its mode."""
    entry, found = pwd.getpwnam(user), directory.stat()
    if found.st_uid == entry.pw_uid:
        return bool(found.st_mode & stat.S_IXUSR)
    return bool(found.st_mode & (stat.S_IXGRP if found.st_gid == entry.pw_gid else stat.S_IXOTH))


def plan_covers(
    paths: Iterable[Path], *, own: Iterable[Path], is_open: Callable[[Path], bool]
) -> tuple[list[Cover], list[Path]]:
    """Find what to cover so that all paths can be reached.

    Args:
        paths: what is needed, as it is named.
        own: directories that the host has for itself.
        is_open: whether the user may enter a directory.

    Returns:
        The covers, and the paths that can be reached without one.
    """
    places = _without_nested(place for path in paths for hop in hops(path) for place in _opened(hop, is_open))
    hidden: dict[Path, list[Path]] = {directory: [] for directory in own}
    free = []
    for place in places:
        above = reversed(place.parents)
        cover = next((directory for directory in above if directory in hidden or not is_open(directory)), None)
        if cover is None:
            free.append(place)
        else:
            hidden.setdefault(cover, []).append(place)
    return [Cover(hidden=directory, kept=tuple(kept)) for directory, kept in hidden.items()], free


def _opened(path: Path, is_open: Callable[[Path], bool]) -> list[Path]:
    """Give the entries of a directory that is closed itself, else the path."""
    return sorted(path.iterdir()) if path.is_dir() and not path.is_symlink() and not is_open(path) else [path]


def _without_nested(paths: Iterable[Path]) -> list[Path]:
    found = sorted(set(paths))
    whole = {path for path in found if not path.is_symlink()}
    return [path for path in found if not whole.intersection(path.parents)]


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host of a site; what it has for itself lies in a directory."""

    name: str
    dir: Path
    covers: tuple[Cover, ...] = ()
    read_only: tuple[Path, ...] = ()
    """What stays where it is, and cannot be written."""

    @property
    def hosts_file(self) -> Path:
        """What is its /etc/hosts; a process that sees it is one of this host."""
        return self.dir / "hosts"

    def make(self, hosts: str) -> None:
        """Make its directory."""
        self.dir.mkdir(parents=True)
        self.hosts_file.write_text(hosts, encoding="utf-8")
        for cover in self.covers:
            directory = self._cover_dir(cover)
            directory.mkdir()
            directory.chmod(0o1777 if cover.hidden in OWN else 0o755)
            for path in cover.kept:
                _make_mount_point(path, directory / path.relative_to(cover.hidden))

    def enter(self, command: list[str], *, writable: Path) -> list[str]:
        """Give the command that runs another one on the host, where a directory can be written."""
        script = "\n".join(["set -euo pipefail", *self._mounts(writable), 'exec "$@"'])
        return ["unshare", "--uts", "--mount", "bash", "-c", script, self.name, *command]

    def _mounts(self, writable: Path) -> Iterator[str]:
        yield f"hostname {self.name}"
        yield f"mount --bind {shlex.quote(str(self.hosts_file))} /etc/hosts"
        for path in self.read_only:
            yield from _bind(path, path, can_write=False)
        for cover in self.covers:
            directory = self._cover_dir(cover)
            for path in cover.kept:
                if not path.is_symlink():
                    yield from _bind(path, directory / path.relative_to(cover.hidden), can_write=path == writable)
            yield f"mount --rbind {shlex.quote(str(directory))} {shlex.quote(str(cover.hidden))}"
        yield 'cd "$PWD"'

    def _cover_dir(self, cover: Cover) -> Path:
        return self.dir / str(cover.hidden)[1:].replace("/", "-")


def plan_host(name: str, directory: Path, *, user: str, writable: Path, programs: Iterable[Path] = ()) -> Host:
    """Find what a host must cover so that a user can run what is needed, and write to one directory.

    Args:
        name: of the host.
        directory: what it has for itself.
        user: who uses it.
        writable: where the user may write.
        programs: directories of more programs that are run there.
    """
    paths = [*needed_paths(), *programs, writable]
    covers, free = plan_covers(paths, own=OWN, is_open=lambda path: may_enter(path, user))
    read_only = tuple(path for path in free if path == CHECKOUT)
    return Host(name=name, dir=directory, covers=tuple(covers), read_only=read_only)


def _make_mount_point(path: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        place.symlink_to(path.readlink())
    elif path.is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()


def _bind(path: Path, place: Path, *, can_write: bool) -> Iterator[str]:
    yield f"mount --bind {shlex.quote(str(path))} {shlex.quote(str(place))}"
    if not can_write:
        yield f"mount -o remount,bind,ro {shlex.quote(str(place))}"
