#!/usr/bin/env python3
"""Slurm of other Debian releases, unpacked beside the one that is installed: no package of this machine changes.

  releases.py fetch [RELEASE...]   get what is not there yet: by default trixie, which has Slurm 24.11; 40 MB each

Each program is given the loader and the libraries of its own release, so it runs from where it lies. Needs apt-get and
dpkg-deb, and Debian's archive among apt's sources; any user may run it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

DEFAULT = ("trixie",)
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurmdbd", "slurm-wlm-mysql-plugin", "patchelf")
SUFFIX = "-wlm"  # Debian has /usr/sbin/slurmd-wlm, and makes a link to it when a package is installed


class ReleaseError(Exception):
    """A release could not be fetched."""


def root_dir(release: str) -> Path:
    """Name the folder that `fetch` fills: bin, lib, and lib/slurm-wlm with Slurm's plugins."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / f"devcluster-slurm-{release}-r1"


def bin_dir(release: str) -> Path:
    return root_dir(release) / "bin"


def plugin_dir(release: str) -> Path:
    return root_dir(release) / "lib" / "slurm-wlm"


def is_fetched(release: str) -> bool:
    return (root_dir(release) / "COMPLETE").is_file()


def fetch(release: str) -> None:
    """Get a release, once; two at a time do not disturb each other."""
    root = root_dir(release)
    if is_fetched(release):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="slurm", dir=root.parent) as made:
        work, done = Path(made), Path(made) / "done"
        packages = _download(release, work)
        slurm = _unpack((one for one in packages if one.name.startswith("slurm")), work / "slurm")
        rest = _unpack((one for one in packages if not one.name.startswith("slurm")), work / "rest")
        (done / "bin").mkdir(parents=True)
        (done / "lib").mkdir()
        for path in rest.glob("usr/lib/*-linux-gnu*/*.so*"):
            path.rename(done / "lib" / path.name)
        next(slurm.glob("usr/lib/*-linux-gnu*/slurm-wlm")).rename(done / "lib" / "slurm-wlm")
        for path in [*slurm.glob("usr/bin/*"), *slurm.glob("usr/sbin/*")]:
            path.rename(done / "bin" / path.name.removesuffix(SUFFIX))
        _relink(done, root, patchelf=rest / "usr" / "bin" / "patchelf")
        (done / "COMPLETE").touch()
        try:
            done.rename(root)
        except OSError:
            if not is_fetched(release):  # else another fetch was first
                raise


def _download(release: str, work: Path) -> list[Path]:
    """Get the packages and all that they need, as if nothing were installed here."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb {_find_archive()} {release} main\n", encoding="utf-8")
    settings = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    _run(*apt, "update")
    _run(*apt, "install", "--yes", "--download-only", "--no-install-recommends", *PACKAGES)
    return sorted((work / "cache" / "archives").glob("*.deb"))


def _find_archive() -> str:
    """Name the address from which this machine has its Debian."""
    said = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    found = [line for line in said.splitlines() if line.rstrip("/").endswith("/debian")]
    if not found:
        raise ReleaseError("apt has no archive of Debian here")
    return found[0]


def _unpack(packages: Iterable[Path], place: Path) -> Path:
    for package in packages:
        _run("dpkg-deb", "--extract", package, place)
    return place


def _relink(done: Path, root: Path, *, patchelf: Path) -> None:
    """Let the programs in `done` use the loader and the libraries that will be in `root`."""
    libraries = done / "lib"
    loader = next(libraries.glob("ld-linux*"))
    # not the newer run path: it would not hold for what the plugins need
    words = ["--force-rpath", "--set-rpath", f"{root}/lib/slurm-wlm:{root}/lib"]
    for program in (done / "bin").iterdir():
        if program.read_bytes()[:4] == b"\x7fELF":
            command = [loader, "--library-path", libraries, patchelf, "--set-interpreter", f"{root}/lib/{loader.name}"]
            _run(*command, *words, program)


def _run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        raise ReleaseError(f"{' '.join(map(str, words))}: {done.stdout.strip()} {done.stderr.strip()}")
    return done.stdout


def main(words: list[str]) -> None:
    if words[:1] != ["fetch"]:
        sys.exit(__doc__)
    for release in words[1:] or DEFAULT:
        try:
            fetch(release)
        except (OSError, ReleaseError) as error:
            sys.exit(f"releases: {release}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
